//! Which copies to give up while the shadow is only a spare and its space is bounded.

use std::time::Duration;

use gnomon_forecast::UnitIndex;
use gnomon_terms::{Bytes, Instant};

/// A copy is given up only for one that is this much more likely to be read. Without the margin two units of nearly
/// equal chance would push each other out for ever.
const MARGIN: f32 = 1.5;
/// The list of copies is made anew at most this often: it costs O(units).
const FRESH: Duration = Duration::from_secs(1);

/// What to do when a further copy is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    /// There is room.
    Copy,
    /// Give the worst copy up first.
    Drop,
    /// Neither: what is there is as good as what is wanted.
    Rest,
}

/// Whether a copy of `wanted` bytes and this `chance` fits into what is left of `budget` after `held` bytes, given
/// the chance of the `worst` copy.
pub(crate) fn room(held: Bytes, wanted: Bytes, budget: Bytes, chance: f32, worst: Option<f32>) -> Room {
    if held.0.saturating_add(wanted.0) <= budget.0 {
        return Room::Copy;
    }
    match worst {
        Some(_) if held.0 > budget.0 => Room::Drop,
        Some(worst) if chance > worst * MARGIN => Room::Drop,
        _ => Room::Rest,
    }
}

/// The copies by chance, as of some time.
#[derive(Clone, Debug, Default)]
pub(crate) struct Spares {
    /// Most likely first, so that the worst is popped.
    order: Vec<(f32, UnitIndex)>,
    made: Option<Instant>,
}

impl Spares {
    /// True when the list is used up or old, and may be made anew.
    pub(crate) fn is_stale(&self, now: Instant) -> bool {
        self.made.is_none_or(|made| now.since(made) >= FRESH)
    }

    /// Makes the list anew.
    pub(crate) fn renew(&mut self, now: Instant, copies: impl Iterator<Item = (f32, UnitIndex)>) {
        self.order = copies.collect();
        self.order.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        self.made = Some(now);
    }

    /// Chance and unit of the worst copy that `still` is one.
    pub(crate) fn worst(&mut self, still: impl Fn(UnitIndex) -> bool) -> Option<(f32, UnitIndex)> {
        while let Some(last) = self.order.last().copied() {
            if still(last.1) {
                return Some(last);
            }
            self.order.pop();
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_give_way_only_to_clearly_better_ones() {
        let table = [
            ((0, 10, 20, 0.1, Some(0.9)), Room::Copy),
            ((15, 10, 20, 0.5, Some(0.4)), Room::Rest),
            ((15, 10, 20, 0.61, Some(0.4)), Room::Drop),
            ((15, 10, 20, 0.9, None), Room::Rest),
            ((25, 10, 20, 0.0, Some(0.9)), Room::Drop),
        ];
        for ((held, wanted, budget, chance, worst), expected) in table {
            let room = room(Bytes(held), Bytes(wanted), Bytes(budget), chance, worst);
            assert_eq!(room, expected, "{held} {chance} {worst:?}");
        }
    }

    #[test]
    fn the_worst_is_found_and_the_gone_passed_over() {
        let mut spares = Spares::default();
        assert!(spares.is_stale(Instant::ORIGIN));
        let copies = [(0.5, UnitIndex(1)), (0.1, UnitIndex(2)), (0.2, UnitIndex(3))];
        spares.renew(Instant::ORIGIN, copies.into_iter());
        assert!(!spares.is_stale(Instant::ORIGIN));
        assert_eq!(spares.worst(|_| true), Some((0.1, UnitIndex(2))));
        assert_eq!(spares.worst(|unit| unit != UnitIndex(2)), Some((0.2, UnitIndex(3))));
        assert_eq!(spares.worst(|_| false), None);
    }
}
