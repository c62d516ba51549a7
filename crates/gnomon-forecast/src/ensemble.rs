//! The default predictor: every expert is heard, weighted by what it would have been worth.
//!
//! ```text
//!            ┌─ background: six experts sort units into classes ─ counted in windows ─ hedge ─► rank
//!   access ──┤
//!            ├─ reactive: streams, successors (and silence) ─ precision by class ─ hedge ─────► chances
//!            └─ sequence: tables and networks, heard once they have earned it (`sequence/jury.rs`) ─► chances
//! ```
//! Background: the score of a unit is the weighted geometric mean of its classes' hazards. "Sequential" gives every
//! unit the same, and ties (scores within [`TIE`]) go in address order: where it has the weight, the order *is*
//! address order, the floor that users can check. Reactive: silence is an expert that is always half right; a source
//! is heard while its weight is not far below that of silence, and each chance carries the precision of its class.
//! Sequence: a jury of its own, judged by what it adds to these. While a recorded boot is recognised, its rest leads
//! the background order.
//!
//! State: experts learn from all accesses from the start ([`Predictor::observe`]); [`Predictor::begin`] marks the
//! time from which only units not touched since count as lacking. Cost: O(1) an access beside the opening of
//! windows, which costs O(tracked units) at access counts that grow by √2.

mod explain;

use std::time::Duration;

use gnomon_terms::{Access, Bytes, Instant, Op};

use crate::adjust::Adjuster;
use crate::calibration::{Table, Verdict, Window, hazards};
use crate::experts::{CLASSES, EXPERTS, N, Sight, classes};
use crate::gate::{Ended, Gate};
use crate::hedge::Hedge;
use crate::history::{History, Tick};
use crate::predictor::{DEFAULT_HORIZON, ExpertScore, Weight};
use crate::readahead::{Ahead, Streams};
use crate::reason::{Clock, Expected, Reason};
use crate::regions::{Regions, region_of};
use crate::reliability::Reliability;
use crate::sequence::jury::Jury;
use crate::sequence::{
    AssociationExpert, DeltaExpert, Experience, Knowledge, Lesson, Model, Order, RecordedExpert, RecurrentExpert,
    SequenceExpert,
};
use crate::successor::{Follower, Successors};
use crate::tally::Tally;
use crate::{BlockMap, Chance, Geometry, Predictor, UnitIndex, lacking_units};

/// Scores whose natural logarithms fall into the same interval of this width are ties.
pub const TIE: f32 = 0.25;
/// Windows counted at a time.
const WINDOWS: usize = 3;
/// Accesses before the first window: enough to have classes at all.
const FIRST_WINDOW: u64 = 512;
/// Accesses between two windows at most, so that a guest that runs for months is judged by its recent days.
const LONGEST_WINDOW: u64 = 1 << 22;
/// The reactive experts, in the order of their weights.
const REACTIVE: [&str; 3] = ["silence", "readahead", "successor"];
/// Classes of their forecasts: 8 lengths of a readahead run, then 4 credits × 4 depths of a successor.
const FORECAST_CLASSES: usize = 8 + 16;
/// Units of one access that are looked at: 16 MiB at 64 KiB. A larger access (a discard of a whole disk) says
/// nothing about habits, and the cost of one access must stay bounded.
const UNITS_PER_ACCESS: usize = 256;

/// The blend of all experts.
#[derive(Debug)]
pub struct Ensemble {
    geometry: Geometry,
    history: History,
    regions: Regions,
    windows: Vec<Window>,
    accesses: u64,
    next_window: u64,
    blocks_read: u64,
    started: Option<Tick>,
    background: Hedge<N>,
    streams: Streams,
    successors: Successors,
    gate: Gate,
    reactive: Hedge<3>,
    adjuster: Adjuster,
    tallies: [Tally; 3],
    jury: Jury,
    /// Units untouched since then count as lacking.
    reference: Tick,
    begun: bool,
    current: Box<Table>,
    found: Vec<Follower>,
    chances: Vec<(UnitIndex, u8)>,
}

impl Ensemble {
    /// For a resource cut as `geometry` says, of which `allocated` holds something.
    pub fn new(geometry: Geometry, allocated: &BlockMap) -> Ensemble {
        Ensemble::knowing(geometry, allocated, Knowledge::default())
    }

    /// The same, with what is known from elsewhere.
    pub fn knowing(geometry: Geometry, allocated: &BlockMap, knowledge: Knowledge) -> Ensemble {
        Ensemble {
            geometry,
            history: History::new(geometry),
            regions: Regions::new(geometry, allocated),
            windows: Vec::new(),
            accesses: 0,
            next_window: FIRST_WINDOW,
            blocks_read: 0,
            started: None,
            background: Hedge::new(0.01, 0.01),
            streams: Streams::default(),
            successors: Successors::default(),
            gate: Gate::new(FORECAST_CLASSES),
            reactive: Hedge::new(0.02, 0.01),
            adjuster: Adjuster::new(DEFAULT_HORIZON, 0.3),
            tallies: Default::default(),
            jury: Jury::new(geometry, experts(geometry, knowledge)),
            reference: Tick(1),
            begun: false,
            current: Box::new([[1.0; CLASSES]; N]),
            found: Vec::new(),
            chances: Vec::new(),
        }
    }

    /// Bytes of memory for each unit ever touched, the tables of fixed size (less than 2 MiB) aside.
    pub fn bytes_per_tracked_unit(&self) -> f64 {
        let windows: usize = self.windows.iter().map(Window::bytes).sum();
        let bytes = self.history.bytes() + self.regions.bytes() + windows;
        bytes as f64 / self.history.tracked().max(1) as f64
    }

    /// What is remembered of each unit.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// Notes one touch of one unit. Only the first unit of a request judges the experts: a long request is one
    /// decision of the guest, not many.
    fn touch(&mut self, unit: UnitIndex, now: Tick, op: Op, judge: bool) {
        let before = self.history.note(unit, now, op);
        for at in 0..self.windows.len() {
            let Some(place) = self.windows[at].touch(unit, before.as_ref(), op == Op::Read) else { continue };
            if judge {
                self.judge(self.windows[at].verdict(unit, place, now));
            }
        }
        self.regions.touch(unit);
    }

    /// Charges each expert the share of guests that would have waited, had it pulled since the window was opened at
    /// twice the pace at which the guest reads, after a head start of a tenth.
    fn judge(&mut self, verdict: Verdict) {
        let elapsed = self.history_ticks().max(1.0);
        let pace = self.blocks_read as f32 / self.geometry.blocks_per_unit() as f32 / elapsed;
        let pulled = 0.1 * verdict.allocated + 2.0 * pace * verdict.age as f32;
        self.background.charge(&verdict.ahead.map(|ahead| ahead / (ahead + pulled + 1.0)));
    }

    fn history_ticks(&self) -> f32 {
        let last = self.windows.last().map_or(Tick(1), Window::since);
        last.since(self.started.unwrap_or(last)) as f32
    }

    fn open_window(&mut self, now: Tick) {
        self.current = hazards(self.windows.iter());
        if self.windows.len() == WINDOWS {
            self.windows.remove(0);
        }
        self.windows.push(Window::open(now, &self.history, &self.regions, &self.current));
        let wait = (self.accesses as f64 * 0.414) as u64;
        self.next_window = self.accesses + wait.clamp(1, LONGEST_WINDOW);
    }

    fn expect(&mut self, unit: UnitIndex, class: u8, now: Tick, due: Tick) {
        if self.history.past(unit).is_some_and(|past| past.last_touch() >= self.reference) {
            return;
        }
        if let Some(ended) = self.gate.expect(unit, class, now, due) {
            self.learn(ended);
        }
        self.jury.withdraw(unit);
        self.chances.push((unit, class));
    }

    fn learn(&mut self, ended: Ended) {
        let loss = if ended.came_true { 0.0 } else { 1.0 };
        let mut losses = [0.5; 3];
        losses[source(ended.class)] = loss;
        self.tallies[source(ended.class)].ended(ended);
        self.reactive.charge(&losses);
        if self.gate.precision(ended.class) >= self.adjuster.threshold() {
            self.adjuster.ended(ended.came_true);
        }
    }

    fn look_ahead(&mut self, access: &Access, now: Tick) {
        let due = Tick::at(access.at.after(self.adjuster.horizon()));
        if let Some(Ahead { extent, run }) = self.streams.read(access.extent) {
            let class = run.max(1).ilog2().min(7) as u8;
            for unit in self.geometry.units_of(extent) {
                self.expect(unit, class, now, due);
            }
        }
        let mut found = std::mem::take(&mut self.found);
        // Within one request the successor is known; what matters is where the next request begins.
        let mut units = self.geometry.units_of(access.extent);
        if let Some(first) = units.next() {
            self.successors.read(first);
            let last = units.last().unwrap_or(first);
            self.successors.read(last);
            self.successors.followers(last, &mut found);
        }
        for follower in found.drain(..) {
            let class = 8 + 4 * (follower.depth - 1) + (follower.credit.min(4) - 1);
            self.expect(follower.unit, class, now, due);
        }
        self.found = found;
    }

    /// Since when a unit must be untouched to count as lacking for the sequence experts: since the move, or, before
    /// there is one, since the last window was opened.
    fn lacking_since(&self) -> Tick {
        match self.windows.last() {
            Some(window) if !self.begun => window.since(),
            _ => self.reference,
        }
    }

    /// Lets the sequence experts hear of a read.
    fn hear(&mut self, access: &Access, now: Tick) {
        let due = Tick::at(access.at.after(self.adjuster.horizon()));
        let (since, bar) = (self.lacking_since(), self.adjuster.threshold());
        let (history, gate) = (&self.history, &self.gate);
        self.jury.hear(access);
        // Where a stream goes on there is nothing to add, and the link is busy with it.
        if !self.streams.goes_on() {
            let wanted = |unit| is_untouched(history, unit, since) && !gate.expects(unit, now);
            self.jury.ask((now, due), bar, wanted);
        }
    }

    fn log_score(&self, table: &Table, place: [u8; N]) -> f32 {
        let weights = self.background.weights();
        (0..N).map(|expert| weights[expert] * table[expert][usize::from(place[expert])].ln()).sum()
    }

    /// By what a unit's place in the background order is decided: the least goes first, and ties by address.
    fn key(&self, table: &Table, unit: UnitIndex, now: Tick) -> i32 {
        -(self.log_score(table, classes(self.sight(unit, now))) / TIE).floor() as i32
    }

    fn sight(&self, unit: UnitIndex, now: Tick) -> Sight<'_> {
        let touched = self.regions.as_slice()[region_of(unit)].touched();
        Sight { past: self.history.past(unit), touched, now }
    }
}

/// Whether nothing has touched `unit` since a time.
fn is_untouched(history: &History, unit: UnitIndex, since: Tick) -> bool {
    history.past(unit).is_none_or(|past| past.last_touch() < since)
}

/// Whether a reactive expert is heard: while the evidence against it is not overwhelming.
fn is_heard(weights: &[f32; 3], at: usize) -> bool {
    weights[at] * 16.0 >= weights[0]
}

/// Which reactive expert a class of forecasts belongs to.
fn source(class: u8) -> usize {
    if class < 8 { 1 } else { 2 }
}

impl Predictor for Ensemble {
    fn name(&self) -> &'static str {
        "blend"
    }

    fn observe(&mut self, access: &Access) {
        let access = &Access { extent: self.geometry.clip(access.extent), ..*access };
        let now = Tick::at(access.at);
        self.started.get_or_insert(now);
        self.accesses += 1;
        self.chances.clear();
        if self.accesses >= self.next_window {
            self.open_window(now);
        }
        if access.op == Op::Read {
            self.blocks_read += access.extent.len.0;
            let (since, mut lacked) = (self.lacking_since(), 0);
            for unit in self.geometry.units_of(access.extent).take(UNITS_PER_ACCESS) {
                lacked += u32::from(is_untouched(&self.history, unit, since));
                self.jury.read(unit, now, self.adjuster.threshold());
                if let Some(ended) = self.gate.read(unit, now) {
                    self.learn(ended);
                }
            }
            self.tallies.iter_mut().for_each(|tally| tally.read(lacked));
            self.jury.count(lacked);
        }
        for (nth, unit) in self.geometry.units_of(access.extent).take(UNITS_PER_ACCESS).enumerate() {
            self.touch(unit, now, access.op, nth == 0);
        }
        if access.op == Op::Read {
            self.look_ahead(access, now);
            self.hear(access, now);
        }
    }

    fn rank(&mut self, now: Instant, lacking: &BlockMap, out: &mut Vec<UnitIndex>) {
        let now = Tick::at(now);
        self.current = hazards(self.windows.iter());
        let mut keyed: Vec<(i32, UnitIndex)> =
            lacking_units(self.geometry, lacking).map(|unit| (self.key(&self.current, unit, now), unit)).collect();
        keyed.sort_unstable();
        self.jury.rest(out);
        out.extend(keyed.into_iter().map(|(_, unit)| unit));
    }

    fn react(&mut self, access: &Access, out: &mut Vec<Chance>) {
        let due = access.at.after(self.adjuster.horizon());
        let weights = self.reactive.weights();
        for (unit, class) in self.chances.drain(..) {
            if is_heard(weights, source(class)) {
                out.push(Chance { unit, probability: self.gate.precision(class), due });
            }
        }
        self.jury.chances(self.adjuster.threshold(), due, out);
    }

    fn probability(&self, now: Instant, unit: UnitIndex) -> f32 {
        if unit.0 >= self.geometry.units() {
            return 0.0;
        }
        self.log_score(&self.current, classes(self.sight(unit, Tick::at(now)))).exp().clamp(0.0, 1.0)
    }

    fn begin(&mut self, now: Instant, _lacking: &BlockMap) {
        self.reference = Tick::at(now);
        self.begun = true;
    }

    fn missed(&mut self, _now: Instant, unit: UnitIndex) {
        self.adjuster.missed();
        self.jury.missed(unit);
    }

    fn bar(&self) -> (f32, Duration) {
        (self.adjuster.threshold(), self.adjuster.horizon())
    }

    fn weights(&self) -> Vec<Weight> {
        let background = EXPERTS.iter().zip(self.background.weights()).map(|of| (Clock::Background, of));
        let reactive = REACTIVE.iter().zip(self.reactive.weights()).map(|of| (Clock::Reactive, of));
        let plain = background.chain(reactive);
        let plain = plain.map(|(clock, (expert, weight))| Weight { clock, expert, weight: *weight });
        plain.chain(self.jury.weights()).collect()
    }

    fn scores(&self) -> Vec<ExpertScore> {
        let (unit, weights) = (self.geometry.unit_bytes(), self.reactive.weights());
        let plain = (1..REACTIVE.len()).map(|at| self.tallies[at].score(REACTIVE[at], weights[at], unit, Bytes(0)));
        plain.chain(self.jury.scores()).collect()
    }

    fn reliability(&self) -> Reliability {
        self.gate.reliability().and(self.jury.reliability())
    }

    fn expected(&self, now: Instant, most: usize) -> Vec<Expected> {
        self.out(now, most)
    }

    fn first(&self, now: Instant, lacking: &BlockMap, most: usize) -> Vec<UnitIndex> {
        self.head(now, lacking, most)
    }

    fn reasons(&self, now: Instant, units: &[UnitIndex]) -> Vec<Reason> {
        self.why(now, units)
    }

    fn lesson(&mut self) -> Option<Lesson> {
        self.jury.lesson()
    }

    fn adopt(&mut self, model: Model) {
        self.jury.adopt(&model);
    }

    fn know(&mut self, knowledge: Knowledge) {
        self.jury = Jury::new(self.geometry, experts(self.geometry, knowledge));
    }

    fn experience(&self) -> Experience {
        self.jury.experience()
    }
}

/// The sequence experts, the plainest first; a network only if there is one, or is to be one.
fn experts(geometry: Geometry, knowledge: Knowledge) -> Vec<Box<dyn SequenceExpert>> {
    let mut experts: Vec<Box<dyn SequenceExpert>> = vec![
        Box::new(RecordedExpert::new(knowledge.recordings)),
        Box::new(DeltaExpert::knowing(Order::Two, &knowledge.tables)),
        Box::new(AssociationExpert::knowing(&knowledge.tables)),
    ];
    if knowledge.model.is_some() || knowledge.learns {
        let network = RecurrentExpert::new(geometry.blocks_per_unit(), knowledge.model, knowledge.learns);
        experts.push(Box::new(network));
    }
    experts
}

#[cfg(test)]
mod tests {
    use super::*;
    use gnomon_terms::{BlockCount, Extent, ResourceId};
    use proptest::prelude::*;

    fn geometry(units: u64) -> Geometry {
        Geometry::new(BlockCount(units * 16), 16).unwrap()
    }

    fn ensemble(units: u64) -> Ensemble {
        Ensemble::new(geometry(units), &BlockMap::full(BlockCount(units * 16)))
    }

    fn access(second: u64, op: Op, unit: u64) -> Access {
        let at = Instant::from_micros(second * 1_000_000);
        Access { at, resource: ResourceId(0), extent: Extent::new(unit * 16, 16), op }
    }

    fn ranked(ensemble: &mut Ensemble, second: u64) -> Vec<u32> {
        let lacking = BlockMap::full(ensemble.geometry.blocks());
        let mut out = Vec::new();
        ensemble.rank(Instant::from_micros(second * 1_000_000), &lacking, &mut out);
        out.into_iter().map(|unit| unit.0).collect()
    }

    #[test]
    fn without_evidence_the_order_is_that_of_addresses() {
        let mut ensemble = ensemble(50);
        assert_eq!(ranked(&mut ensemble, 1), (0..50).collect::<Vec<_>>());
        ensemble.observe(&access(1, Op::Read, 30));
        assert_eq!(ranked(&mut ensemble, 2), (0..50).collect::<Vec<_>>());
    }

    #[test]
    fn what_is_read_again_and_again_goes_first() {
        let mut ensemble = ensemble(4000);
        // Twenty units at the end are read in turn for ever, the others once or never.
        for second in 0..6000u64 {
            let unit = if second.is_multiple_of(4) { second / 4 } else { 3900 + 5 * (second % 20) };
            ensemble.observe(&access(second, Op::Read, unit));
        }
        let order = ranked(&mut ensemble, 6000);
        let first = order.iter().take(40).filter(|unit| **unit >= 3900).count();
        assert!(first >= 15, "{:?}", &order[..40]);
        assert_eq!(order.len(), 4000);
        let chance = |unit| ensemble.probability(Instant::from_micros(6_000_000_000), UnitIndex(unit));
        assert!(chance(3905) > chance(10));
    }

    #[test]
    fn streams_are_foreseen_with_the_precision_they_had() {
        let mut ensemble = ensemble(4000);
        let mut out = Vec::new();
        for nth in 0..600 {
            let access = access(nth / 10, Op::Read, nth);
            ensemble.observe(&access);
            if nth == 560 {
                out.clear();
            }
            ensemble.react(&access, &mut out);
        }
        // A window is told in halves, so some accesses say nothing; forty of them must.
        assert!(out.len() > 20, "{out:?}");
        assert!(out.iter().all(|chance| chance.unit.0 > 560 && chance.probability > 0.5), "{out:?}");
    }

    #[test]
    fn misses_lower_the_threshold_and_all_weights_are_told() {
        let mut ensemble = ensemble(10);
        let (before, _) = ensemble.bar();
        (0..1000).for_each(|_| ensemble.missed(Instant::ORIGIN, UnitIndex(1)));
        assert!(ensemble.bar().0 < before);
        let names: Vec<_> = ensemble.weights().iter().map(|weight| weight.expert).collect();
        assert!(names.contains(&"sequential") && names.contains(&"silence") && names.contains(&"delta-markov"));
        let sum: f32 = ensemble.weights().iter().take(EXPERTS.len() + 3).map(|weight| weight.weight).sum();
        assert!((sum - 2.0).abs() < 1e-3, "each clock's weights sum to one: {sum}");
        // The sequence experts have earned nothing yet.
        assert!(ensemble.weights().iter().skip(EXPERTS.len() + 3).all(|weight| weight.weight <= 0.011));
    }

    #[test]
    fn a_tracked_unit_costs_no_more_than_32_bytes() {
        let units = 64 * 1000;
        let mut ensemble = ensemble(units);
        (0..units).for_each(|unit| ensemble.observe(&access(unit, Op::Read, unit)));
        assert_eq!((ensemble.history().tracked() as u64, ensemble.windows.len()), (units, WINDOWS));
        // With the loop's own: two block maps (2 bytes each) and two unit maps (1 bit each).
        assert!(ensemble.bytes_per_tracked_unit() + 2.0 * 2.0 + 0.25 <= 32.0);
    }

    proptest! {
        #[test]
        fn any_accesses_are_safe_and_the_order_is_whole(
            story in prop::collection::vec((0u64..u64::MAX, 0u8..3, 0u64..5000, 0u64..5000), 0..700),
        ) {
            let mut ensemble = ensemble(100);
            let mut out = Vec::new();
            for (nanos, op, start, len) in story {
                let op = [Op::Read, Op::Write, Op::Discard][usize::from(op)];
                let (at, extent) = (Instant::from_nanos(nanos), Extent::new(start, len));
                let access = Access { at, resource: ResourceId(0), extent, op };
                ensemble.observe(&access);
                ensemble.react(&access, &mut out);
            }
            prop_assert!(out.iter().all(|chance| (0.0..=1.0).contains(&chance.probability)));
            let mut order = ranked(&mut ensemble, 5);
            order.sort_unstable();
            prop_assert_eq!(order, (0..100).collect::<Vec<u32>>());
        }
    }
}
