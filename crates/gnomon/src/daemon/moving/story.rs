//! What the guest felt, told with what it would have felt in another order on the very same accesses.

use gnomon_cycle::{
    Curve, Felt, GapPoint, gap_over_time,
    replay::{MoveResult, MoveStory, replay_move},
};
use gnomon_forecast::{BlockMap, DEFAULT_BLOCKS_PER_UNIT};
use gnomon_terms::{Access, Bytes, BytesPerSecond, Event, Extent, Instant, Op};

/// Accesses kept for the telling, before and after the switch together: 2 million × 48 B is 96 MB at most.
const KEPT: usize = 2_000_000;

/// Reads after the switch, and how many of them waited.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Reads that the guest made after the switch, until everything was there.
    pub reads: u64,
    /// Of these, those that waited.
    pub stalled: u64,
    /// How many would have waited had as many bytes been primed, and the rest carried, in address order.
    pub sequential: u64,
    /// How many would have waited had the future been known from the switch on.
    pub oracle: u64,
    /// The same over time.
    pub over_time: Vec<GapPoint>,
}

impl Told {
    /// The share of the way from address order (0) to a known future (1); none when these are the same. Below 0 it was
    /// worse than address order.
    pub fn gap_closed(&self) -> Option<f64> {
        let (stalled, sequential, oracle) = (self.stalled as f64, self.sequential as f64, self.oracle as f64);
        (sequential > oracle).then(|| (sequential - stalled) / (sequential - oracle))
    }
}

/// What is recorded of a move, in passing.
#[derive(Clone, Debug, Default)]
pub struct Story {
    history: Vec<Access>,
    future: Vec<Access>,
    reads: u64,
    stalled: u64,
    felt: Curve,
    /// What was allocated and what was lacking when the guest switched.
    at_switch: Option<(BlockMap, BlockMap)>,
}

/// Accesses up to which a story is told while it goes on: some tenths of a second.
const TOLD_EARLY: usize = 1 << 17;

impl Story {
    /// The story so far, once the guest has switched and read something; none when telling it would take long. Copies up
    /// to 6 MiB.
    pub fn so_far(&self) -> Option<Story> {
        let accesses = self.history.len() + self.future.len();
        let worth_telling = self.at_switch.is_some() && !self.future.is_empty() && accesses <= TOLD_EARLY;
        worth_telling.then(|| self.clone())
    }

    /// The mean rate at which so many bytes were moved since the first access that is in it.
    pub fn mean_rate(&self, moved: Bytes) -> BytesPerSecond {
        let all = self.history.iter().chain(&self.future).map(|access| access.at);
        let took = all.clone().max().zip(all.min()).map_or(0.0, |(last, first)| last.since(first).as_secs_f64());
        BytesPerSecond(if took > 0.0 { (moved.0 as f64 / took) as u64 } else { 0 })
    }

    /// The guest did this.
    pub fn note(&mut self, event: &Event) {
        let room = self.history.len() + self.future.len() < KEPT;
        match (event, &self.at_switch) {
            (Event::Accessed(access), None) if room => self.history.push(*access),
            (Event::Accessed(access), Some(_)) if room => self.after_switch(*access),
            (Event::Stalled(_), Some(_)) => self.stalled += 1,
            _ => {}
        }
    }

    fn after_switch(&mut self, access: Access) {
        if access.op == Op::Read {
            self.felt.note(self.felt_by(access.at));
            self.reads += 1;
        }
        self.future.push(access);
    }

    fn felt_by(&self, at: Instant) -> Felt {
        Felt { at, reads: self.reads, stalled: self.stalled }
    }

    /// The guest switches now.
    pub fn switch(&mut self, allocated: BlockMap, lacking: BlockMap) {
        self.at_switch = Some((allocated, lacking));
    }

    /// Tells it, with the link's rate as it was. Takes as long as replaying the accesses twice.
    pub fn tell(&self, rate: BytesPerSecond) -> Told {
        let would = |predictor, lacking: &BlockMap| {
            let (allocated, _) = self.at_switch.as_ref()?;
            let story = MoveStory {
                history: &self.history,
                future: &self.future,
                allocated,
                lacking,
                rate,
                blocks_per_unit: DEFAULT_BLOCKS_PER_UNIT,
            };
            replay_move(&story, predictor).ok()
        };
        let lacking = |of: fn(&BlockMap) -> BlockMap| self.at_switch.as_ref().map(|(_, lacking)| of(lacking));
        let sequential = lacking(last_in_order).and_then(|lacking| would("sequential", &lacking)).unwrap_or_default();
        let oracle = lacking(BlockMap::clone).and_then(|lacking| would("oracle", &lacking)).unwrap_or_default();
        let over_time = self.over_time(&sequential, &oracle);
        let (sequential, oracle) = (sequential.stalled, oracle.stalled);
        Told { reads: self.reads, stalled: self.stalled, sequential, oracle, over_time }
    }

    fn over_time(&self, sequential: &MoveResult, oracle: &MoveResult) -> Vec<GapPoint> {
        let mut felt = self.felt.clone();
        if let Some(last) = self.future.last() {
            felt.note(self.felt_by(last.at));
        }
        gap_over_time(&felt.points(), &sequential.felt, &oracle.felt)
    }
}

/// What would have been lacking had as much been primed in address order: the last blocks, as many as were lacking.
fn last_in_order(lacking: &BlockMap) -> BlockMap {
    let (size, count) = (lacking.size(), lacking.count());
    let mut last = BlockMap::empty(size);
    last.insert(Extent::new(size.0 - count.0, count.0));
    last
}

#[cfg(test)]
mod tests {
    use gnomon_terms::{BlockCount, Instant, Op, ResourceId};

    use super::*;

    fn read(block: u64, millis: u64) -> Event {
        let at = Instant::from_micros(millis * 1000);
        Event::Accessed(Access { at, resource: ResourceId(1), extent: Extent::new(block, 1), op: Op::Read })
    }

    #[test]
    fn a_gap_is_told_where_there_is_one() {
        let told = |stalled, sequential, oracle| {
            Told { reads: 9, stalled, sequential, oracle, ..Told::default() }.gap_closed()
        };
        assert_eq!([told(1, 5, 1), told(5, 5, 1), told(7, 5, 1)], [Some(1.0), Some(0.0), Some(-0.5)]);
        assert_eq!(told(0, 0, 0), None);
    }

    #[test]
    fn a_story_is_told_early_only_after_the_switch() {
        let mut story = Story::default();
        story.note(&read(1, 0));
        assert!(story.so_far().is_none());
        story.switch(BlockMap::full(BlockCount(320)), BlockMap::full(BlockCount(320)));
        story.note(&read(2, 500));
        story.note(&read(3, 2000));
        let so_far = story.so_far().expect("two reads");
        assert_eq!((so_far.tell(BytesPerSecond(1)).reads, so_far.mean_rate(Bytes(4000))), (2, BytesPerSecond(2000)));
    }

    #[test]
    fn the_same_reads_are_told_in_each_order() {
        let mut story = Story::default();
        let all = BlockMap::full(BlockCount(320));
        let mut lacking = BlockMap::empty(BlockCount(320));
        lacking.insert(Extent::new(0, 160));
        story.note(&read(300, 0));
        story.switch(all, lacking);
        for (step, block) in [300, 310, 290].into_iter().enumerate() {
            story.note(&read(block, step as u64));
        }
        let told = story.tell(BytesPerSecond(1000));
        let closed: Vec<Option<f64>> = told.over_time.iter().map(GapPoint::closed).collect();
        assert_eq!(closed, [None, Some(1.0), Some(1.0), Some(1.0)], "{told:?}");
        let expected = Told { reads: 3, stalled: 0, sequential: 2, oracle: 0, over_time: told.over_time.clone() };
        assert_eq!(told, expected, "300 and 310 share a unit with none");
    }
}
