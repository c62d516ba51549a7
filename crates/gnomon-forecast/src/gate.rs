//! How far a reactive forecast can be trusted: every forecast is remembered, acted on or not, and counted as come
//! true when its unit is read before it is due.
//!
//! Precision is kept for each *class* of forecast (what was said, and how sure the source was), so a stream of one
//! repeat and one of a hundred are not mistaken for each other. The memory is a direct-mapped table of 4,096
//! forecasts of 16 bytes.

use crate::UnitIndex;
use crate::history::Tick;
use crate::reason::Expected;
use crate::reliability::Reliability;

const PLACES: usize = 1 << 12;
const FREE: u32 = u32::MAX;
/// Ends after which a precision is believed: chance alone moves it by less than 0.1 then.
const PROOF: f32 = 32.0;

/// One forecast whose truth is not known yet.
#[derive(Clone, Copy, Debug)]
pub struct Pending {
    unit: u32,
    made: Tick,
    due: Tick,
    class: u8,
}

impl Pending {
    /// The forecast as it is told to a person.
    pub fn expected(&self, now: Tick, expert: &'static str, probability: f32, is_heard: bool) -> Expected {
        let left = (now <= self.due).then(|| self.due.after(now));
        Expected { unit: UnitIndex(self.unit), expert, probability, is_heard, made: now.after(self.made), left }
    }
}

/// How a forecast ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its class.
    pub class: u8,
    /// Whether the unit was read in time.
    pub came_true: bool,
    /// Ticks from the forecast to its end.
    pub lead: u32,
}

/// The forecasts that are out, and how those before them ended.
#[derive(Clone, Debug)]
pub struct Gate {
    pending: Vec<Pending>,
    ended: Vec<f32>,
    came_true: Vec<f32>,
    reliability: Reliability,
}

/// Forecasts that are imagined for each class, and how many of them came true: unproven classes start near, not above,
/// the usual threshold.
const IMAGINED: (f32, f32) = (3.0, 1.0);

impl Gate {
    /// For so many classes, none of them proven.
    pub fn new(classes: usize) -> Gate {
        let free = Pending { unit: FREE, made: Tick(0), due: Tick(0), class: 0 };
        let (ended, came_true) = (vec![IMAGINED.0; classes], vec![IMAGINED.1; classes]);
        Gate { pending: vec![free; PLACES], ended, came_true, reliability: Reliability::default() }
    }

    /// Notes a forecast of `class` for `unit`. If it takes the place of one that had run out, that one has ended.
    pub fn expect(&mut self, unit: UnitIndex, class: u8, now: Tick, due: Tick) -> Option<Ended> {
        let place = &mut self.pending[place(unit)];
        if place.unit == unit.0 && now <= place.due {
            return None;
        }
        let old = std::mem::replace(place, Pending { unit: unit.0, made: now, due, class });
        (old.unit != FREE && now > old.due).then(|| self.end(old.class, false, now.since(old.made)))
    }

    /// Whether a forecast for `unit` is out.
    pub fn expects(&self, unit: UnitIndex, now: Tick) -> bool {
        let place = &self.pending[place(unit)];
        place.unit == unit.0 && now <= place.due
    }

    /// The forecasts that no read has made true, with their classes; also those that have run out.
    pub fn pending(&self) -> impl Iterator<Item = (u8, &Pending)> {
        self.pending.iter().filter(|place| place.unit != FREE).map(|place| (place.class, place))
    }

    /// `unit` is read: the forecast that named it, if any, has ended.
    pub fn read(&mut self, unit: UnitIndex, now: Tick) -> Option<Ended> {
        let place = &mut self.pending[place(unit)];
        if place.unit != unit.0 {
            return None;
        }
        let (class, came_true, lead) = (place.class, now <= place.due, now.since(place.made));
        place.unit = FREE;
        Some(self.end(class, came_true, lead))
    }

    /// The share of forecasts of `class` that came true.
    pub fn precision(&self, class: u8) -> f32 {
        self.came_true[usize::from(class)] / self.ended[usize::from(class)]
    }

    /// How the forecasts ended, by the chance that they were given.
    pub fn reliability(&self) -> &Reliability {
        &self.reliability
    }

    /// Takes a forecast back, so that it counts neither as true nor as false; whether there was one.
    pub fn withdraw(&mut self, unit: UnitIndex) -> bool {
        let place = &mut self.pending[place(unit)];
        let there = place.unit == unit.0;
        if there {
            place.unit = FREE;
        }
        there
    }

    /// Whether `class` has ended often enough for its precision to mean something.
    pub fn is_proven(&self, class: u8) -> bool {
        self.ended[usize::from(class)] >= PROOF
    }

    /// Forgets how forecasts of these classes ended: what they stand for has changed.
    pub fn forget(&mut self, classes: std::ops::Range<usize>) {
        self.ended[classes.clone()].fill(IMAGINED.0);
        self.came_true[classes].fill(IMAGINED.1);
    }

    fn end(&mut self, class: u8, came_true: bool, lead: u32) -> Ended {
        let at = usize::from(class);
        // The chance as it stood before this was known.
        self.reliability.note(self.precision(class), came_true);
        self.ended[at] += 1.0;
        self.came_true[at] += f32::from(u8::from(came_true));
        if self.ended[at] > 512.0 {
            // Old evidence counts half, so that a change of habit shows within some hundred forecasts.
            self.ended[at] /= 2.0;
            self.came_true[at] /= 2.0;
        }
        Ended { class, came_true, lead }
    }
}

fn place(unit: UnitIndex) -> usize {
    (unit.0.wrapping_mul(0x9E37_79B9) >> (32 - PLACES.trailing_zeros())) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forecast_ends_once_true_or_false() {
        let mut gate = Gate::new(5);
        assert_eq!(gate.expect(UnitIndex(7), 3, Tick(1), Tick(10)), None);
        assert_eq!(gate.expect(UnitIndex(7), 4, Tick(2), Tick(20)), None);
        assert_eq!(gate.read(UnitIndex(8), Tick(5)), None);
        assert_eq!(gate.read(UnitIndex(7), Tick(5)), Some(Ended { class: 3, came_true: true, lead: 4 }));
        assert_eq!(gate.read(UnitIndex(7), Tick(5)), None);
        gate.expect(UnitIndex(7), 3, Tick(6), Tick(10));
        assert_eq!(gate.read(UnitIndex(7), Tick(11)), Some(Ended { class: 3, came_true: false, lead: 5 }));
        gate.expect(UnitIndex(7), 3, Tick(12), Tick(13));
        let ended = Ended { class: 3, came_true: false, lead: 2 };
        assert_eq!(gate.expect(UnitIndex(7), 3, Tick(14), Tick(20)), Some(ended));
        assert!(gate.expects(UnitIndex(7), Tick(20)) && !gate.expects(UnitIndex(7), Tick(21)));
    }

    #[test]
    fn precision_follows_the_evidence() {
        let mut gate = Gate::new(5);
        for round in 0..2000 {
            gate.expect(UnitIndex(1), 0, Tick(round), Tick(round + 1));
            gate.read(UnitIndex(1), Tick(round));
        }
        assert!(gate.precision(0) > 0.99);
        assert!((gate.precision(1) - 1.0 / 3.0).abs() < 1e-6);
        assert!(gate.is_proven(0) && !gate.is_proven(1));
        gate.expect(UnitIndex(9), 1, Tick(1), Tick(2));
        assert!(gate.withdraw(UnitIndex(9)) && !gate.withdraw(UnitIndex(9)) && !gate.withdraw(UnitIndex(10)));
        assert!((gate.precision(1) - 1.0 / 3.0).abs() < 1e-6, "what was taken back is no evidence");
        gate.forget(0..1);
        assert!(gate.precision(0) < 0.4 && !gate.is_proven(0));
    }
}
