//! How far a reactive forecast can be trusted: every forecast is remembered, acted on or not, and counted as come
//! true when its unit is read before it is due.
//!
//! Precision is kept for each *class* of forecast (what was said, and how sure the source was), so a stream of one
//! repeat and one of a hundred are not mistaken for each other. The memory is a direct-mapped table of 4,096
//! forecasts of 12 bytes.

use crate::UnitIndex;
use crate::history::Tick;

/// Classes of forecasts: 8 lengths of a readahead run, then 4 credits × 4 depths of a successor.
pub const FORECAST_CLASSES: usize = 8 + 16;
const PLACES: usize = 1 << 12;
const FREE: u32 = u32::MAX;

/// One forecast whose truth is not known yet.
#[derive(Clone, Copy, Debug)]
struct Pending {
    unit: u32,
    due: Tick,
    class: u8,
}

/// How a forecast ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its class.
    pub class: u8,
    /// Whether the unit was read in time.
    pub came_true: bool,
}

/// The forecasts that are out, and how those before them ended.
#[derive(Clone, Debug)]
pub struct Gate {
    pending: Vec<Pending>,
    ended: [f32; FORECAST_CLASSES],
    came_true: [f32; FORECAST_CLASSES],
}

impl Default for Gate {
    fn default() -> Gate {
        let free = Pending { unit: FREE, due: Tick(0), class: 0 };
        // One success in three imagined forecasts: unproven classes start near, not above, the usual threshold.
        Gate { pending: vec![free; PLACES], ended: [3.0; FORECAST_CLASSES], came_true: [1.0; FORECAST_CLASSES] }
    }
}

impl Gate {
    /// Notes a forecast of `class` for `unit`. If it takes the place of one that had run out, that one has ended.
    pub fn expect(&mut self, unit: UnitIndex, class: u8, now: Tick, due: Tick) -> Option<Ended> {
        let place = &mut self.pending[place(unit)];
        if place.unit == unit.0 && now <= place.due {
            return None;
        }
        let old = std::mem::replace(place, Pending { unit: unit.0, due, class });
        (old.unit != FREE && now > old.due).then(|| self.end(old.class, false))
    }

    /// `unit` is read: the forecast that named it, if any, has ended.
    pub fn read(&mut self, unit: UnitIndex, now: Tick) -> Option<Ended> {
        let place = &mut self.pending[place(unit)];
        if place.unit != unit.0 {
            return None;
        }
        let (class, came_true) = (place.class, now <= place.due);
        place.unit = FREE;
        Some(self.end(class, came_true))
    }

    /// The share of forecasts of `class` that came true.
    pub fn precision(&self, class: u8) -> f32 {
        self.came_true[usize::from(class)] / self.ended[usize::from(class)]
    }

    fn end(&mut self, class: u8, came_true: bool) -> Ended {
        let at = usize::from(class);
        self.ended[at] += 1.0;
        self.came_true[at] += f32::from(u8::from(came_true));
        if self.ended[at] > 512.0 {
            // Old evidence counts half, so that a change of habit shows within some hundred forecasts.
            self.ended[at] /= 2.0;
            self.came_true[at] /= 2.0;
        }
        Ended { class, came_true }
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
        let mut gate = Gate::default();
        assert_eq!(gate.expect(UnitIndex(7), 3, Tick(1), Tick(10)), None);
        assert_eq!(gate.expect(UnitIndex(7), 4, Tick(2), Tick(20)), None);
        assert_eq!(gate.read(UnitIndex(8), Tick(5)), None);
        assert_eq!(gate.read(UnitIndex(7), Tick(5)), Some(Ended { class: 3, came_true: true }));
        assert_eq!(gate.read(UnitIndex(7), Tick(5)), None);
        gate.expect(UnitIndex(7), 3, Tick(6), Tick(10));
        assert_eq!(gate.read(UnitIndex(7), Tick(11)), Some(Ended { class: 3, came_true: false }));
        gate.expect(UnitIndex(7), 3, Tick(12), Tick(13));
        assert_eq!(gate.expect(UnitIndex(7), 3, Tick(14), Tick(20)), Some(Ended { class: 3, came_true: false }));
    }

    #[test]
    fn precision_follows_the_evidence() {
        let mut gate = Gate::default();
        for round in 0..2000 {
            gate.expect(UnitIndex(1), 0, Tick(round), Tick(round + 1));
            gate.read(UnitIndex(1), Tick(round));
        }
        assert!(gate.precision(0) > 0.99);
        assert!((gate.precision(1) - 1.0 / 3.0).abs() < 1e-6);
    }
}
