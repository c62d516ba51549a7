//! How likely is a class of units to be read? Counted in windows that are opened while the guest runs.
//!
//! Opening a window asks: *if a shadow were begun now, which units would be read before they are overwritten?* It
//! counts the units in each expert's classes (the exposure). From then on the **first** touch of a unit answers for
//! its class: a read is an event, a write takes the unit out of question. Because nothing touched the unit since the
//! window was opened, its past then is its past now, and no copy of anything has to be kept.
//!
//! ```text
//!   accesses ──┬────────┬───────────┬───────────────► windows open at distances that grow by √2,
//!              open     open        open              the last three are counted
//! ```

use crate::UnitIndex;
use crate::experts::{CLASSES, N, SEQUENTIAL, Sight, classes};
use crate::history::{History, Past, Tick};
use crate::regions::{Regions, UNITS_PER_REGION, region_of};

/// Events that are imagined for each class before any is counted: a class has to show about as many of its own before
/// it is told apart from the mean.
const PRIOR: f32 = 8.0;

/// A count for each class of each expert.
pub type Table = [[f32; CLASSES]; N];

/// One question asked at one time.
#[derive(Clone, Debug)]
pub struct Window {
    since: Tick,
    exposure: Box<Table>,
    events: Box<Table>,
    /// Units each expert would have pulled before the class, going by what it knew when the window was opened.
    ahead: Box<Table>,
    /// Touched units of each region when the window was opened.
    touched: Vec<u8>,
    /// Allocated units before each region: the address order.
    before: Vec<u32>,
    allocated: f32,
}

/// What the first read of a unit says about the experts.
#[derive(Clone, Copy, Debug)]
pub struct Verdict {
    /// Units each expert would have pulled before this one.
    pub ahead: [f32; N],
    /// Ticks since the window was opened.
    pub age: u32,
    /// Units there were to pull.
    pub allocated: f32,
}

impl Window {
    /// Asks the question at `since`, with each expert ranking its classes by `hazards`.
    pub fn open(since: Tick, history: &History, regions: &Regions, hazards: &Table) -> Window {
        let touched: Vec<u8> = regions.as_slice().iter().map(|r| r.touched()).collect();
        let mut exposure = Box::new([[0.0; CLASSES]; N]);
        for unit in regions.touched_units() {
            let sight = Sight { past: history.past(unit), touched: touched[region_of(unit)], now: since };
            count(&mut exposure, classes(sight), 1.0);
        }
        let mut before = Vec::with_capacity(touched.len());
        let mut allocated = 0u32;
        for region in regions.as_slice() {
            before.push(allocated);
            allocated += u32::from(region.allocated());
            let sight = Sight { past: None, touched: region.touched(), now: since };
            count(&mut exposure, classes(sight), f32::from(region.untouched()));
        }
        let ahead = ahead_of(&exposure, hazards);
        let events = Box::new([[0.0; CLASSES]; N]);
        Window { since, exposure, events, ahead, touched, before, allocated: allocated as f32 }
    }

    /// Bytes that grow with the resource.
    pub fn bytes(&self) -> usize {
        self.touched.len() + self.before.len() * size_of::<u32>()
    }

    /// When it was opened.
    pub fn since(&self) -> Tick {
        self.since
    }

    /// `unit`, whose past was `before`, is touched. Its classes, if this is the first touch since the window
    /// was opened and a read.
    pub fn touch(&mut self, unit: UnitIndex, before: Option<&Past>, read: bool) -> Option<[u8; N]> {
        if !read || before.is_some_and(|past| past.last_touch() >= self.since) {
            return None;
        }
        let touched = *self.touched.get(region_of(unit))?;
        let place = classes(Sight { past: before, touched, now: self.since });
        count(&mut self.events, place, 1.0);
        Some(place)
    }

    /// What the first read of `unit`, which is in the classes `place`, says about the experts.
    pub fn verdict(&self, unit: UnitIndex, place: [u8; N], now: Tick) -> Verdict {
        let in_order = self.before[region_of(unit)] + unit.0 % UNITS_PER_REGION;
        // Within a class the order is that of addresses.
        let share = in_order as f32 / self.allocated.max(1.0);
        let ahead = std::array::from_fn(|expert| {
            let class = usize::from(place[expert]);
            self.ahead[expert][class] + share * self.exposure[expert][class]
        });
        Verdict { ahead, age: now.since(self.since), allocated: self.allocated }
    }
}

/// The share of each class that was read, over all `windows`; a class seen little is taken to be as the mean.
pub fn hazards<'a>(windows: impl Iterator<Item = &'a Window> + Clone) -> Box<Table> {
    let sum = |table: fn(&Window) -> &Table, expert: usize, class: usize| -> f32 {
        windows.clone().map(|w| table(w)[expert][class]).sum()
    };
    let all = sum(|w| &w.exposure, SEQUENTIAL, 0);
    let mean = ((sum(|w| &w.events, SEQUENTIAL, 0) + 1.0) / (all + 1.0)).min(1.0);
    let mut hazards = Box::new([[mean; CLASSES]; N]);
    for (expert, row) in hazards.iter_mut().enumerate() {
        for (class, hazard) in row.iter_mut().enumerate() {
            let (events, exposed) = (sum(|w| &w.events, expert, class), sum(|w| &w.exposure, expert, class));
            // Imagined events among as many units as the mean needs for them.
            *hazard = ((events + PRIOR) / (exposed + PRIOR / mean)).min(1.0);
        }
    }
    hazards
}

fn count(table: &mut Table, place: [u8; N], units: f32) {
    for (row, class) in table.iter_mut().zip(place) {
        row[usize::from(class)] += units;
    }
}

/// For each class, how many units are in classes with a greater hazard.
fn ahead_of(exposure: &Table, hazards: &Table) -> Box<Table> {
    let mut ahead = Box::new([[0.0; CLASSES]; N]);
    for expert in 0..N {
        let mut order: Vec<usize> = (0..CLASSES).collect();
        order.sort_by(|a, b| hazards[expert][*b].total_cmp(&hazards[expert][*a]));
        let mut sum = 0.0;
        for class in order {
            ahead[expert][class] = sum;
            sum += exposure[expert][class];
        }
    }
    ahead
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experts::EXPERTS;
    use crate::{BlockMap, Geometry};
    use gnomon_terms::{BlockCount, Op};

    /// 128 allocated units, of which the first ten were each read three times at tick 10.
    fn story() -> (History, Regions) {
        let geometry = Geometry::new(BlockCount(128 * 16), 16).unwrap();
        let mut history = History::new(geometry);
        let mut regions = Regions::new(geometry, &BlockMap::full(geometry.blocks()));
        for unit in (0..10).map(UnitIndex) {
            (0..3).for_each(|_| {
                history.note(unit, Tick(10), Op::Read);
            });
            regions.touch(unit);
        }
        (history, regions)
    }

    #[test]
    fn every_allocated_unit_is_in_one_class_of_each_expert() {
        let (history, regions) = story();
        let window = Window::open(Tick(20), &history, &regions, &[[1.0; CLASSES]; N]);
        for (expert, exposure) in EXPERTS.iter().zip(window.exposure.iter()) {
            assert_eq!(exposure.iter().sum::<f32>(), 128.0, "{expert}");
        }
    }

    #[test]
    fn only_the_first_touch_counts_and_only_a_read() {
        let (mut history, regions) = story();
        let mut window = Window::open(Tick(20), &history, &regions, &[[1.0; CLASSES]; N]);
        let mut touch = |unit, tick, op| {
            let before = history.note(UnitIndex(unit), Tick(tick), op);
            window.touch(UnitIndex(unit), before.as_ref(), op == Op::Read).is_some()
        };
        assert!(touch(1, 21, Op::Read));
        assert!(!touch(1, 22, Op::Read));
        assert!(!touch(2, 21, Op::Write));
        assert!(!touch(2, 22, Op::Read));
        assert!(touch(100, 23, Op::Read));
    }

    #[test]
    fn a_class_that_is_read_is_found_to_be_hot() {
        let (mut history, regions) = story();
        let mut window = Window::open(Tick(20), &history, &regions, &[[1.0; CLASSES]; N]);
        for unit in (0..10).map(UnitIndex) {
            let before = history.note(unit, Tick(30), Op::Read);
            let place = window.touch(unit, before.as_ref(), true).unwrap();
            let verdict = window.verdict(unit, place, Tick(30));
            assert_eq!((verdict.age, verdict.allocated), (10, 128.0));
            assert!((verdict.ahead[SEQUENTIAL] - unit.0 as f32).abs() < 1e-3);
        }
        let found = hazards([&window].into_iter());
        let untouched = found[1][0];
        let read_thrice = found[1].iter().copied().fold(0.0, f32::max);
        assert!(read_thrice > 3.0 * untouched, "{read_thrice} {untouched}");
        let next = Window::open(Tick(40), &history, &regions, &found);
        let place = classes(Sight { past: None, touched: 0, now: Tick(40) });
        let verdict = next.verdict(UnitIndex(100), place, Tick(40));
        assert!(verdict.ahead[1] > 10.0, "the ten hot units go before: {verdict:?}");
    }
}
