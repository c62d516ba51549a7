//! The ensemble's answers to "what, and why?": read from the state as it is, without changing it.
//!
//! Bounded: at most 8,192 forecasts are out, and [`LOOKED_AT`] units are weighed for an order.

use std::collections::BinaryHeap;

use gnomon_terms::Instant;

use super::{Ensemble, REACTIVE, is_heard, source};
use crate::calibration::{Table, hazards};
use crate::experts::{EXPERTS, N, SEQUENTIAL, classes};
use crate::history::{Past, Tick};
use crate::reason::{Expected, Reason, Seen};
use crate::{BlockMap, UnitIndex, lacking_units};

/// Units that are weighed for the head of an order: 64 GiB at 64 KiB, in address order. The move itself weighs all.
const LOOKED_AT: usize = 1 << 20;
/// What an expert has to say for a unit, in natural logarithms, to be called the reason for its place.
const WORD: f32 = 0.01;

impl Ensemble {
    /// Up to `most` forecasts that no read has made true: those that still may come true first, of
    /// these what a move would act on, the latest first.
    pub(super) fn out(&self, now: Instant, most: usize) -> Vec<Expected> {
        let (now, bar) = (Tick::at(now), self.adjuster.threshold());
        let plain = self.gate.pending().map(|(class, forecast)| {
            let (at, probability) = (source(class), self.gate.precision(class));
            let would_act = is_heard(self.reactive.weights(), at) && probability >= bar;
            forecast.expected(now, REACTIVE[at], probability, would_act)
        });
        let mut all: Vec<Expected> = plain.chain(self.jury.pending(now, bar)).collect();
        all.sort_by_key(|expected| (expected.left.is_none(), !expected.is_heard, expected.made, expected.unit));
        all.truncate(most);
        all
    }

    /// The first `most` units of the order in which `lacking` would be pulled.
    pub(super) fn head(&self, now: Instant, lacking: &BlockMap, most: usize) -> Vec<UnitIndex> {
        let (now, table) = (Tick::at(now), hazards(self.windows.iter()));
        let mut head = Vec::new();
        self.jury.rest(&mut head);
        head.retain(|unit| lacking.contains_any(self.geometry.extent_of(*unit)));
        let mut best = BinaryHeap::new();
        for unit in lacking_units(self.geometry, lacking).take(LOOKED_AT) {
            best.push((self.key(&table, unit, now), unit));
            if best.len() > most {
                best.pop();
            }
        }
        for (_, unit) in best.into_sorted_vec() {
            if head.len() < most && !head.contains(&unit) {
                head.push(unit);
            }
        }
        head.truncate(most);
        head
    }

    /// Why each of `units` stands where it does.
    pub(super) fn why(&self, now: Instant, units: &[UnitIndex]) -> Vec<Reason> {
        let (tick, table) = (Tick::at(now), hazards(self.windows.iter()));
        let mut recalled = Vec::new();
        self.jury.rest(&mut recalled);
        let units = units.iter().copied().filter(|unit| unit.0 < self.geometry.units());
        units
            .map(|unit| {
                let words = self.words(&table, unit, tick);
                let expert = if recalled.contains(&unit) { "recorded" } else { loudest(&words) };
                let score = self.log_score(&table, classes(self.sight(unit, tick)));
                let probability = (!self.windows.is_empty()).then(|| score.exp().clamp(0.0, 1.0));
                Reason { unit, expert, probability, seen: self.history.past(unit).map(|past| seen(past, tick)) }
            })
            .collect()
    }

    /// What each expert has to say for a unit: its weight times how much hotter than the mean its class was found to
    /// be. Their sum, which is the unit's score against the mean, decides the order.
    fn words(&self, table: &Table, unit: UnitIndex, now: Tick) -> [f32; N] {
        let (place, mean) = (classes(self.sight(unit, now)), table[SEQUENTIAL][0].ln());
        let weights = self.background.weights();
        std::array::from_fn(|expert| weights[expert] * (table[expert][usize::from(place[expert])].ln() - mean))
    }
}

/// The expert that speaks most for a unit.
fn loudest(words: &[f32; N]) -> &'static str {
    let loudest = (0..N).max_by(|one, other| words[*one].total_cmp(&words[*other])).unwrap_or(SEQUENTIAL);
    if words[loudest] > WORD { EXPERTS[loudest] } else { EXPERTS[SEQUENTIAL] }
}

fn seen(past: &Past, now: Tick) -> Seen {
    let ago = |then: Tick| (then != Tick(0)).then(|| now.after(then));
    Seen { reads: past.reads, writes: past.writes, last_read: ago(past.last_read), last_write: ago(past.last_write) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{Geometry, Predictor};
    use gnomon_terms::{Access, BlockCount, Extent, Op, ResourceId};

    fn at(second: u64) -> Instant {
        Instant::from_micros(second * 1_000_000)
    }

    fn told(units: u64, reads: impl Iterator<Item = (u64, u64)>) -> Ensemble {
        let geometry = Geometry::new(BlockCount(units * 16), 16).unwrap();
        let mut ensemble = Ensemble::new(geometry, &BlockMap::full(geometry.blocks()));
        for (second, unit) in reads {
            let extent = Extent::new(unit * 16, 16);
            ensemble.observe(&Access { at: at(second), resource: ResourceId(0), extent, op: Op::Read });
        }
        ensemble
    }

    #[test]
    fn who_was_never_asked_anything_expects_nothing_and_goes_by_address() {
        let ensemble = told(50, std::iter::empty());
        let lacking = BlockMap::full(BlockCount(50 * 16));
        assert_eq!(ensemble.expected(at(1), 10), []);
        let head = ensemble.first(at(1), &lacking, 3);
        assert_eq!(head, [0, 1, 2].map(UnitIndex));
        let reasons = ensemble.reasons(at(1), &head);
        assert!(reasons.iter().all(|reason| reason.expert == "sequential" && reason.seen.is_none()), "{reasons:?}");
        assert!(reasons.iter().all(|reason| reason.probability.is_none()), "nothing was counted: {reasons:?}");
    }

    #[test]
    fn a_stream_and_a_pattern_are_explained_by_who_knows_them() {
        let pattern = (0..600u64).scan(0, |unit, nth| {
            *unit += [7, 90, 3][nth as usize % 3];
            Some((nth, *unit))
        });
        let pattern: Vec<(u64, u64)> = pattern.collect();
        let step = pattern[599].1 + [7, 90, 3][600 % 3];
        for (story, next, expert) in [
            ((0..600).map(|nth| (nth / 10, nth)).collect::<Vec<_>>(), 600, "readahead"),
            (pattern, step, "delta-markov"),
        ] {
            let ensemble = told(40_000, story.into_iter());
            for (later, is_out) in [(600, true), (100_000, false)] {
                let all = ensemble.expected(at(later), 64);
                let found = all.iter().find(|expected| u64::from(expected.unit.0) == next);
                let found = found.unwrap_or_else(|| panic!("{expert}: {next} is not in {all:?}"));
                assert_eq!((found.expert, found.probability > 0.5), (expert, true), "{found:?}");
                assert!(is_out || found.left.is_none(), "{found:?}");
            }
            assert_eq!(ensemble.expected(at(600), 3).len(), 3, "no more than was asked for");
        }
    }

    #[test]
    fn the_head_of_the_order_is_that_of_the_move_and_says_what_was_seen() {
        // Twenty units at the end are read in turn for ever, the others once or never.
        let hot = |second: u64| if second.is_multiple_of(4) { second / 4 } else { 3900 + 5 * (second % 20) };
        let mut ensemble = told(4000, (0..6000).map(|second| (second, hot(second))));
        let lacking = BlockMap::full(BlockCount(4000 * 16));
        let head = ensemble.first(at(6000), &lacking, 12);
        let reasons = ensemble.reasons(at(6000), &head);
        let mut order = Vec::new();
        ensemble.rank(at(6000), &lacking, &mut order);
        assert_eq!(head, order[..12]);
        for reason in &reasons {
            let seen = reason.seen.unwrap_or_else(|| panic!("{reason:?}"));
            assert!(reason.expert != "sequential" && seen.reads > 100, "{reason:?}");
            assert!(seen.last_read < Some(Duration::from_secs(60)) && seen.last_write.is_none(), "{reason:?}");
            let chance = ensemble.probability(at(6000), reason.unit);
            assert!(reason.probability.is_some_and(|told| (told - chance).abs() <= 1e-3), "{reason:?} {chance}");
        }
        assert_eq!(
            ensemble.reasons(at(6000), &[UnitIndex(4000), UnitIndex(u32::MAX)]),
            [],
            "there are no such units"
        );
    }
}
