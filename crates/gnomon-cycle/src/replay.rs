//! What would a move have felt like? A recorded trace is replayed through the real loop over a simulated plane.
//!
//! The story is always the same: the guest runs at the source for the first half of the requests (history); a budget
//! of bytes is pulled in the order the loop asks for; the guest switches; then the link pulls at a fixed rate while
//! the guest goes on as recorded. A read *stalls* when any of its blocks was neither pulled, nor fetched on demand,
//! nor overwritten since the switch. A stalled read brings the whole of its units at once and for free, for every
//! predictor. Reactive forecasts share the link with the background and go first.
//!
//! What the story leaves open is settled like this:
//! - *span*: from address 0 to the end of the last block ever touched; *touched* allocation: the blocks the whole
//!   trace touches (it leaks the future: everything allocated is touched sometime, which flatters address order);
//!   *half* allocation: these and as many untouched whole units, evenly spread, as make half of the units of the
//!   span hold something;
//! - *budget*: a share of the allocated bytes; the move that would exceed it is not made;
//! - *rate*: a multiple of the trace's bytes read per second over its whole length; where a format has no clock,
//!   requests are 1 ms apart (`gnomon_forecast::trace::STEP_WITHOUT_CLOCK_US`);
//! - the link carries one move at a time, so a new forecast waits for at most one unit; a move costs the blocks that
//!   were lacking when it began, and is taken off the link when a demand brings all of them first;
//! - a discard counts as an overwrite;
//! - *silence* pulls nothing at all, not even the budget: demand only; *readahead* and *successor* pull in address
//!   order beside what they foresee; the *oracle* ranks by the first needed read after the switch and then by
//!   address;
//! - a network is on trial alone and in the blend when one is given, and boots that were recorded likewise; one that
//!   goes on learning is taught after each [`LESSON_EACH`] accesses with at most [`UPDATES`] updates;
//! - *wasted* bytes were carried by moves and not read before they were overwritten or the trace ended.

use std::time::Duration;

use gnomon_forecast::sequence::{Knowledge, RecordedExpert, RecurrentExpert, SequencePredictor, Student};
use gnomon_forecast::trace::Trace;
use gnomon_forecast::{
    BlockMap, DEFAULT_BLOCKS_PER_UNIT, ExpertScore, Geometry, OraclePredictor, Predictor, Reliability, UnitIndex,
};
use gnomon_terms::{
    Access, BlockCount, Bytes, BytesPerSecond, Event, Extent, Instant, Move, Op, Outcome, Place, ResourceId, Settled,
};

use crate::config::{self, CycleConfig, CycleError, Forecast, PREDICTORS};
use crate::cycle::Cycle;
use crate::felt::{Curve, Felt, GapPoint, gap_over_time};

/// Which blocks hold something at the switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocation {
    /// Half of the address span.
    Half,
    /// What the trace touches, and nothing else.
    Touched,
}

/// How to replay.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ReplayOptions {
    /// Percent of the allocated bytes that are pulled before the switch, 0 to 100.
    pub budget_percent: f64,
    /// The pull rate as a multiple of the trace's own mean read rate.
    pub rate: f64,
    /// Which blocks hold something.
    pub allocation: Allocation,
    /// Blocks in a unit.
    pub blocks_per_unit: u32,
}

impl Default for ReplayOptions {
    fn default() -> ReplayOptions {
        let (allocation, blocks_per_unit) = (Allocation::Half, DEFAULT_BLOCKS_PER_UNIT);
        ReplayOptions { budget_percent: 10.0, rate: 1.0, allocation, blocks_per_unit }
    }
}

/// What one predictor was worth on one trace.
#[derive(Clone, Debug, PartialEq)]
pub struct ReplayResult {
    /// Its name.
    pub predictor: &'static str,
    /// Percent of the reads after the switch that stalled.
    pub stalled_pct: f64,
    /// Share of the way from sequential (0) to the oracle (1); below 0 it is worse than address order. 1 when these
    /// two are equal.
    pub gap_closed: f64,
    /// Bytes that were carried for nothing.
    pub bytes_wasted: Bytes,
    /// Nanoseconds of thought for each access (observe and react), by the given clock; 0 for the oracle.
    pub ns_per_access: f64,
    /// What its reactive experts were worth at the end, if it has any.
    pub experts: Vec<ExpertScore>,
    /// How their forecasts ended, by the chance that they were given.
    pub reliability: Reliability,
    /// How much of the gap was closed so far, over the reads after the switch; nothing without "sequential".
    pub over_time: Vec<GapPoint>,
}

/// Accesses between two lessons.
pub const LESSON_EACH: usize = 512;
/// Updates of a network's weights for each lesson.
pub const UPDATES: usize = 32;

/// Replays `trace` once for each of [`PREDICTORS`] and the oracle, in this order. `clock` reads nanoseconds and is
/// used only to report the cost. An empty trace stalls nothing.
pub fn replay(
    trace: &Trace,
    options: &ReplayOptions,
    clock: &mut dyn FnMut() -> u64,
) -> Result<Vec<ReplayResult>, CycleError> {
    replay_knowing(trace, options, &Knowledge::default(), clock)
}

/// The same, where the blend also has `knowledge`; what that holds is then tried alone as well, before the oracle.
pub fn replay_knowing(
    trace: &Trace,
    options: &ReplayOptions,
    knowledge: &Knowledge,
    clock: &mut dyn FnMut() -> u64,
) -> Result<Vec<ReplayResult>, CycleError> {
    let names: Vec<&'static str> = PREDICTORS.into_iter().chain(known(knowledge)).collect();
    replay_some(trace, options, knowledge, &names, clock)
}

/// Replays with some predictors only, and with the oracle. Without "sequential" among them nothing has a gap to close.
pub fn replay_some(
    trace: &Trace,
    options: &ReplayOptions,
    knowledge: &Knowledge,
    names: &[&'static str],
    clock: &mut dyn FnMut() -> u64,
) -> Result<Vec<ReplayResult>, CycleError> {
    let size = BlockCount(trace.accesses.iter().map(|a| a.extent.end().0).max().unwrap_or(0).max(1));
    let geometry = Geometry::new(size, options.blocks_per_unit)?;
    let allocated = allocated(&trace.accesses, geometry, options.allocation);
    let (history, future) = trace.accesses.split_at(trace.accesses.len() / 2);
    let rate = (mean_read_rate(&trace.accesses) * options.rate) as u64;
    let budget = (allocated.count().bytes().0 as f64 * options.budget_percent / 100.0) as u64;
    let story = Story {
        geometry,
        lacking: &allocated,
        allocated: &allocated,
        history,
        future,
        budget: Bytes(budget),
        rate: BytesPerSecond(rate),
    };
    let mut runs = Vec::new();
    for name in names.iter().copied() {
        let nanos = cost(name, knowledge, &story, clock)?;
        let (result, judged) = story.tell(forecast(name, geometry, knowledge))?;
        runs.push(Run { name, result, nanos, judged });
    }
    let oracle = Box::new(OraclePredictor::new(geometry, future));
    let (result, judged) = story.tell(Forecast::Given(oracle))?;
    runs.push(Run { name: "oracle", result, nanos: 0.0, judged });
    Ok(results(&runs))
}

/// What is on trial because of what is known.
fn known(knowledge: &Knowledge) -> impl Iterator<Item = &'static str> {
    let network = knowledge.model.as_ref().map(|model| model.network.shape().cell.name());
    let network = network.or(knowledge.learns.then_some("gru"));
    network.into_iter().chain((!knowledge.recordings.is_empty()).then_some("recorded"))
}

/// The predictor called `name`, with what is known.
fn forecast(name: &'static str, geometry: Geometry, knowledge: &Knowledge) -> Forecast {
    let Knowledge { model, recordings, learns, .. } = knowledge.clone();
    match name {
        "blend" => Forecast::Knowing(Box::new(knowledge.clone())),
        "gru" | "lstm" => {
            let expert = Box::new(RecurrentExpert::new(geometry.blocks_per_unit(), model, learns));
            Forecast::Given(Box::new(SequencePredictor::new(geometry, expert)))
        }
        "recorded" => {
            let expert = Box::new(RecordedExpert::new(recordings));
            Forecast::Given(Box::new(SequencePredictor::new(geometry, expert)))
        }
        name => Forecast::Named(name),
    }
}

/// One predictor's turn.
struct Run {
    name: &'static str,
    result: MoveResult,
    nanos: f64,
    judged: Judged,
}

/// What its reactive experts were worth, and whether their chances meant what they say.
type Judged = (Vec<ExpertScore>, Reliability);

/// A move of which the demo wants to know how it would have gone in another order.
pub struct MoveStory<'a> {
    /// What was seen before the switch; may be empty.
    pub history: &'a [Access],
    /// What the guest did after the switch, in order.
    pub future: &'a [Access],
    /// The blocks that held something at the switch.
    pub allocated: &'a BlockMap,
    /// The blocks that were lacking at the switch.
    pub lacking: &'a BlockMap,
    /// What the link carried.
    pub rate: BytesPerSecond,
    /// Blocks in a unit.
    pub blocks_per_unit: u32,
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MoveResult {
    /// Reads after the switch.
    pub reads: u64,
    /// Of these, the reads that would have stalled.
    pub stalled: u64,
    /// Bytes that would have been carried for nothing.
    pub wasted: Bytes,
    /// Reads and stalls over time.
    pub felt: Vec<Felt>,
}

/// How many reads of a recorded move would have stalled with the predictor called `name`: one of [`PREDICTORS`] or
/// "oracle". The rules are those of the module, without a budget.
pub fn replay_move(story: &MoveStory<'_>, name: &'static str) -> Result<MoveResult, CycleError> {
    let geometry = Geometry::new(story.allocated.size(), story.blocks_per_unit)?;
    config::check_size(story.lacking, geometry.blocks())?;
    let forecast = match name {
        "oracle" => Forecast::Given(Box::new(OraclePredictor::new(geometry, story.future))),
        name => Forecast::Named(name),
    };
    let MoveStory { history, future, allocated, lacking, rate, .. } = *story;
    Ok(Story { geometry, lacking, allocated, history, future, budget: Bytes(0), rate }.tell(forecast)?.0)
}

/// Everything a run is told, the predictor aside.
struct Story<'a> {
    geometry: Geometry,
    allocated: &'a BlockMap,
    lacking: &'a BlockMap,
    history: &'a [Access],
    future: &'a [Access],
    budget: Bytes,
    rate: BytesPerSecond,
}

const RESOURCE: ResourceId = ResourceId(0);
const SHADOW: Place = Place(1);

impl Story<'_> {
    fn tell(&self, forecast: Forecast) -> Result<(MoveResult, Judged), CycleError> {
        let silent = matches!(forecast, Forecast::Named("silence"));
        let mut config = CycleConfig::new(RESOURCE, self.allocated.clone());
        (config.forecast, config.blocks_per_unit) = (forecast, self.geometry.blocks_per_unit());
        let (mut cycle, mut school) = (Cycle::new(config)?, School::default());
        for access in self.history {
            cycle.handle(access.at, Event::Accessed(Access { resource: RESOURCE, ..*access }));
            school.attend(&mut cycle);
        }
        let switch = self.history.last().or(self.future.first()).map_or(Instant::ORIGIN, |access| access.at);
        cycle.advance(switch);
        cycle.begin_shadow(SHADOW, self.lacking.clone())?;
        // One unit at a time: what is foreseen next never waits behind more than that.
        cycle.set_window(if silent { Bytes(0) } else { Bytes(1) });
        let mut plane = SimPlane::new(cycle, self.geometry, self.lacking.clone(), switch, self.rate);
        plane.prime(self.budget);
        plane.cycle.switched(switch);
        for access in self.future {
            plane.live(Access { resource: RESOURCE, ..*access });
            school.attend(&mut plane.cycle);
        }
        let result = plane.end();
        Ok((result, (plane.cycle.score().experts, plane.cycle.reliability())))
    }
}

/// Where a network of the loop goes on learning: what the daemon does on another thread.
#[derive(Default)]
struct School {
    accesses: usize,
    student: Option<Student>,
}

impl School {
    fn attend(&mut self, cycle: &mut Cycle) {
        self.accesses += 1;
        if !self.accesses.is_multiple_of(LESSON_EACH) {
            return;
        }
        let Some(lesson) = cycle.lesson() else { return };
        let student = self.student.get_or_insert_with(|| Student::new(&lesson));
        if student.hear(lesson) && student.study(UPDATES) > 0 {
            cycle.adopt(student.model());
        }
    }
}

/// The destination of a move and the link to it, simulated.
struct SimPlane {
    cycle: Cycle,
    geometry: Geometry,
    lacking: BlockMap,
    /// Blocks that a move brought and nothing has read.
    unread: BlockMap,
    rate: BytesPerSecond,
    /// The move on the link, its bytes and when it arrives.
    carrying: Option<(Move, Bytes, Instant)>,
    /// Until when the link has been used or idle.
    free_at: Instant,
    result: MoveResult,
    curve: Curve,
}

impl SimPlane {
    fn new(cycle: Cycle, geometry: Geometry, lacking: BlockMap, now: Instant, rate: BytesPerSecond) -> SimPlane {
        let unread = BlockMap::empty(geometry.blocks());
        let (carrying, result, curve) = (None, MoveResult::default(), Curve::default());
        SimPlane { cycle, geometry, lacking, unread, rate, carrying, free_at: now, result, curve }
    }

    /// What came of it.
    fn end(&mut self) -> MoveResult {
        self.feel(self.cycle.now);
        let (wasted, felt) = (self.unread.count().bytes(), self.curve.points());
        MoveResult { wasted, felt, ..self.result }
    }

    /// Notes what the guest has felt so far.
    fn feel(&mut self, at: Instant) {
        let MoveResult { reads, stalled, .. } = self.result;
        self.curve.note(Felt { at, reads, stalled });
    }

    /// Pulls up to `budget` bytes in no time.
    fn prime(&mut self, budget: Bytes) {
        let mut left = budget.0;
        while left > 0 {
            let Some(mv) = self.cycle.poll_move() else { return };
            let cost = self.lacking.count_in(mv.extent).bytes();
            if cost.0 > left {
                self.settle(mv, Bytes(0), Settled::Failed);
                return;
            }
            left -= cost.0;
            self.settle(mv, cost, Settled::Done);
        }
    }

    /// The guest does `access`, at its time.
    fn live(&mut self, access: Access) {
        self.pull(access.at);
        let extent = self.geometry.clip(access.extent);
        self.cycle.handle(access.at, Event::Accessed(access));
        if access.op != Op::Read {
            return self.cover(access.at, extent);
        }
        self.unread.remove(extent);
        self.feel(access.at);
        self.result.reads += 1;
        if self.lacking.contains_any(extent) {
            self.result.stalled += 1;
            self.cycle.handle(access.at, Event::Stalled(access));
            for unit in self.geometry.units_of(extent) {
                self.cover(access.at, self.geometry.extent_of(unit));
            }
            self.abandon(access.at);
        }
    }

    /// A move that a demand has made needless is taken off the link.
    fn abandon(&mut self, now: Instant) {
        let lacking = &self.lacking;
        if let Some((mv, _, _)) = self.carrying.take_if(|(mv, _, _)| !lacking.contains_any(mv.extent)) {
            self.free_at = now;
            self.settle(mv, Bytes(0), Settled::Needless);
        }
    }

    /// Lets the link run until `now`.
    fn pull(&mut self, now: Instant) {
        loop {
            if self.carrying.is_none() {
                self.cycle.advance(self.free_at);
                let Some(mv) = self.cycle.poll_move() else { break };
                let cost = self.lacking.count_in(mv.extent).bytes();
                self.carrying = Some((mv, cost, self.free_at.after(self.rate.time_for(cost))));
            }
            let Some((mv, cost, arrival)) = self.carrying.take_if(|(_, _, arrival)| *arrival <= now) else { return };
            self.free_at = arrival;
            self.settle(mv, cost, Settled::Done);
        }
        self.free_at = self.free_at.max(now);
    }

    fn settle(&mut self, mv: Move, carried: Bytes, settled: Settled) {
        if settled == Settled::Done {
            let brought: Vec<Extent> = mv.extent.blocks().map(|b| Extent { start: b, len: BlockCount(1) }).collect();
            for block in brought.into_iter().filter(|block| self.lacking.contains_any(*block)) {
                self.unread.insert(block);
            }
            self.lacking.remove(mv.extent);
        }
        let outcome = Outcome { id: mv.id, settled, carried, took: Duration::ZERO };
        self.cycle.handle(self.free_at, Event::Settled(outcome));
    }

    fn cover(&mut self, now: Instant, extent: Extent) {
        self.lacking.remove(extent);
        self.cycle.handle(now, Event::Covered { resource: RESOURCE, extent, place: SHADOW });
    }
}

/// The blocks that hold something.
fn allocated(accesses: &[Access], geometry: Geometry, allocation: Allocation) -> BlockMap {
    let mut map = BlockMap::empty(geometry.blocks());
    accesses.iter().for_each(|access| {
        map.insert(access.extent);
    });
    if allocation == Allocation::Touched {
        return map;
    }
    let units = || (0..geometry.units()).map(UnitIndex).map(|unit| geometry.extent_of(unit));
    let touched = units().filter(|extent| map.contains_any(*extent)).count() as u64;
    let others = u64::from(geometry.units()) - touched;
    let wanted = (u64::from(geometry.units()) / 2).saturating_sub(touched);
    let mut debt = 0;
    for extent in units() {
        if !map.contains_any(extent) {
            debt += wanted;
            if debt >= others {
                debt -= others;
                map.insert(extent);
            }
        }
    }
    map
}

/// Bytes read per second over the whole of `accesses`.
pub fn mean_read_rate(accesses: &[Access]) -> f64 {
    let (Some(first), Some(last)) = (accesses.first(), accesses.last()) else { return 0.0 };
    let read: u64 = accesses.iter().filter(|a| a.op == Op::Read).map(|a| a.extent.bytes().0).sum();
    read as f64 / last.at.since(first.at).as_secs_f64().max(1e-3)
}

/// Accesses over which the cost of a thought is taken: enough for tables to be as full as they get, and a network's
/// three runs over a long trace would take longer than its replay.
const COSTED: usize = 50_000;

/// Nanoseconds an access costs the predictor called `name`, over the first [`COSTED`] accesses: the least of three runs,
/// because what else the machine does can only add.
fn cost(
    name: &'static str,
    knowledge: &Knowledge,
    story: &Story<'_>,
    clock: &mut dyn FnMut() -> u64,
) -> Result<f64, CycleError> {
    let mut least = u64::MAX;
    for _ in 0..3 {
        let forecast = forecast(name, story.geometry, knowledge);
        let mut predictor = config::predictor(forecast, story.geometry, story.allocated)?;
        let mut chances = Vec::new();
        let before = clock();
        for access in story.history.iter().chain(story.future).take(COSTED) {
            think(predictor.as_mut(), access, &mut chances);
        }
        least = least.min(clock().saturating_sub(before));
    }
    let accesses = (story.history.len() + story.future.len()).min(COSTED);
    Ok(least as f64 / accesses.max(1) as f64)
}

fn think(predictor: &mut dyn Predictor, access: &Access, chances: &mut Vec<gnomon_forecast::Chance>) {
    predictor.observe(access);
    chances.clear();
    predictor.react(access, chances);
}

fn results(runs: &[Run]) -> Vec<ReplayResult> {
    let stalled = |name| runs.iter().find(|run| run.name == name).map_or(0.0, |run| run.result.stalled as f64);
    let (sequential, oracle) = (stalled("sequential"), stalled("oracle"));
    let felt = |name| runs.iter().find(|run| run.name == name).map_or(&[][..], |run| &run.result.felt);
    let one = |Run { name, result, nanos, judged: (experts, reliability) }: &Run| {
        let gap = sequential - oracle;
        let closed = (sequential - result.stalled as f64) / gap;
        ReplayResult {
            predictor: name,
            stalled_pct: 100.0 * result.stalled as f64 / result.reads.max(1) as f64,
            gap_closed: if gap == 0.0 { 1.0 } else { closed },
            bytes_wasted: result.wasted,
            ns_per_access: *nanos,
            experts: experts.clone(),
            reliability: *reliability,
            over_time: gap_over_time(&result.felt, felt("sequential"), felt("oracle")),
        }
    };
    runs.iter().map(one).collect()
}
