//! What a person is told of a group's planner.

use std::time::Duration;

use gnomon_forecast::series::{ExpertView, LEVELS};
use gnomon_terms::Bytes;

use super::{Aim, GroupPlanner, LEAST_MEMBERS, Mode, Shown, StepReport, collector::Sums};

/// A group as its planner sees it. Nothing in it is of one member; sums of steps and what is expected are there from
/// [`LEAST_MEMBERS`] members on.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupView {
    /// Members at present.
    pub members: usize,
    /// What is staged, and why.
    pub mode: Mode,
    /// How far ahead.
    pub horizon: Duration,
    /// What the reserve is turned towards.
    pub aim: Aim,
    /// Where its knob stands: the level of the quantile, 0.02–0.99, and what that is multiplied by, 1–9.
    pub level: f64,
    /// See `level`.
    pub scale: f64,
    /// What should be staged.
    pub target: Bytes,
    /// What is expected to be asked for within the horizon, for each of [`LEVELS`].
    pub expected: Option<[Bytes; LEVELS.len()]>,
    /// Sums of the last step, with noise.
    pub shown: Option<Shown>,
    /// The models, and how far each is believed; losses in bytes.
    pub experts: Vec<ExpertView>,
    /// How often the blend's forecasts of the next step were judged, and the share of what came between its 0.05 and 0.95
    /// quantiles (honest is 0.9).
    pub judged: u64,
    /// See `judged`.
    pub covered: f64,
    /// Its mean pinball loss in bytes, the last day weighing most.
    pub loss: Bytes,
    /// The share of bytes that were there, and that of the idle bytes in what members have: lately, over half a day.
    pub hit_share: Option<f64>,
    /// See `hit_share`.
    pub idle_share: Option<f64>,
    /// The share of bytes that a static reserve of as many idle bytes would have had.
    pub static_hit_share: Option<f64>,
    /// By how much forecasts would hit more than that reserve: 0.1 is a tenth more.
    pub gain: Option<f64>,
    /// Bytes asked for, since the group is planned for.
    pub asked: Bytes,
    /// Of these, bytes that were staged.
    pub hit: Bytes,
    /// Of these, bytes that were not.
    pub missed: Bytes,
    /// Of those, bytes that were being populated.
    pub late: Bytes,
    /// Bytes that were staged, and given back without having been of use.
    pub unused: Bytes,
    /// How much of what models learned is of members who are still there: 1.0 when nobody left lately.
    pub history: f64,
    /// How often something was said of who is no member.
    pub refused: u64,
}

/// Bytes since the group is planned for.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Totals {
    asked: u64,
    hit: u64,
    late: u64,
    unused: u64,
}

impl Totals {
    pub(super) fn note(&mut self, sums: &Sums, report: &StepReport) {
        let late = report.late.0.min((sums.asked - sums.hit) as u64);
        for (total, now) in [
            (&mut self.asked, sums.asked as u64),
            (&mut self.hit, sums.hit as u64),
            (&mut self.late, late),
            (&mut self.unused, report.unused.0),
        ] {
            *total = total.saturating_add(now);
        }
    }
}

/// The view of a planner.
pub(super) fn look(planner: &GroupPlanner) -> GroupView {
    let (group, totals) = (planner.collector.group(), planner.totals);
    let (score, history) = (*group.blend().score(), group.history());
    let told = |ahead: &super::ahead::Ahead| LEVELS.map(|level| Bytes(ahead.at(level) as u64));
    GroupView {
        members: group.len(),
        mode: planner.contest.mode(),
        horizon: planner.config.horizon,
        aim: planner.reserve.aim(),
        level: planner.reserve.level(),
        scale: planner.reserve.scale(),
        target: planner.target().bytes(),
        expected: planner.ahead.as_ref().filter(|_| group.len() >= LEAST_MEMBERS).map(told),
        shown: planner.collector.shown(),
        experts: group.blend().experts(),
        judged: score.judged,
        covered: score.covered,
        loss: Bytes((score.recent * history) as u64),
        hit_share: planner.reserve.hit_share(),
        idle_share: planner.reserve.idle_share(),
        static_hit_share: planner.contest.static_hit_share(),
        gain: planner.contest.gain(),
        asked: Bytes(totals.asked),
        hit: Bytes(totals.hit),
        missed: Bytes(totals.asked - totals.hit),
        late: Bytes(totals.late),
        unused: Bytes(totals.unused),
        history,
        refused: planner.collector.refused(),
    }
}
