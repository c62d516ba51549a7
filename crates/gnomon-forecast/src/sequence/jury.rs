//! The sequence experts of the blend, and how much each is believed.
//!
//! ```text
//!   read ──► each expert foresees ──► what is not there yet, and nobody has named: judged by what comes ──► precision
//!                                                                                        by expert and sureness
//!   silence has all the weight at first; an expert is heard once it has earned as much as silence
//! ```
//! *Earning*: a forecast is judged by time that comes after it, before the move as after it (before it, a unit counts
//! as lacking when it was not touched since the last window was opened: as if the guest had moved then). Who names a
//! unit first is judged by it, and the plain experts of the blend go first; even what they name only later is nothing to
//! earn by. So a network is paid for what it adds to tables, and a table for what it adds to readahead. Forecasts that would not be acted on (of a class whose precision is below
//! the bar) neither earn nor cost. Where a read continues a stream nobody is asked: readahead knows, and the link is busy.
//!
//! *Drift*: an expert whose precision halves from one window to the next starts over with nothing.

use gnomon_terms::{Access, Instant, Op};

use super::experience::Experience;
use super::expert::{Foreseen, SequenceExpert};
use super::model::Model;
use super::study::Lesson;
use super::vocabulary::ends;
use crate::gate::{Ended, Gate};
use crate::hedge::Hedge;
use crate::history::Tick;
use crate::predictor::{ExpertScore, Weight};
use crate::reason::{Clock, Expected};
use crate::reliability::Reliability;
use crate::tally::Tally;
use crate::{Chance, Geometry, UnitIndex};

/// Experts at most; a power of two would be wasted.
pub const MOST_EXPERTS: usize = 5;
/// Classes of sureness of one expert.
const CLASSES: usize = 8;
/// Units that one access may have foreseen: a bound on what an expert can cost.
const MOST_FORESEEN: usize = 32;

/// The experts and their standing.
#[derive(Debug)]
pub struct Jury {
    geometry: Geometry,
    experts: Vec<Box<dyn SequenceExpert>>,
    gate: Gate,
    hedge: Hedge<{ 1 + MOST_EXPERTS }>,
    tallies: [Tally; MOST_EXPERTS],
    found: Vec<Foreseen>,
    chances: Vec<(UnitIndex, u8)>,
    last: Option<UnitIndex>,
}

impl Jury {
    /// Of these experts, the plainest first; those after the fifth are not heard.
    pub fn new(geometry: Geometry, mut experts: Vec<Box<dyn SequenceExpert>>) -> Jury {
        experts.truncate(MOST_EXPERTS);
        Jury {
            geometry,
            gate: Gate::new(experts.len() * CLASSES),
            experts,
            hedge: Hedge::led_by_the_first(0.02, 0.01),
            tallies: Default::default(),
            found: Vec::new(),
            chances: Vec::new(),
            last: None,
        }
    }

    /// So many units that were lacking are read at once.
    pub fn count(&mut self, units: u32) {
        self.tallies.iter_mut().for_each(|tally| tally.read(units));
    }

    /// A unit is read: a forecast of it has ended. `bar` is what a forecast needs to be acted on.
    pub fn read(&mut self, unit: UnitIndex, now: Tick, bar: f32) {
        if let Some(ended) = self.gate.read(unit, now) {
            self.learn(ended, bar);
        }
    }

    /// The guest reads: each expert hears of it.
    pub fn hear(&mut self, access: &Access) {
        self.chances.clear();
        if access.op != Op::Read {
            return;
        }
        for unit in ends(self.geometry, access).into_iter().flatten() {
            if self.last.replace(unit) != Some(unit) {
                self.experts.iter_mut().for_each(|expert| expert.read(access.at, unit));
            }
        }
    }

    /// Asks each expert what it foresees after the last read, and notes it as far as it is `wanted` (lacking, and named by
    /// nobody).
    pub fn ask(&mut self, (now, due): (Tick, Tick), bar: f32, wanted: impl Fn(UnitIndex) -> bool) {
        let mut found = std::mem::take(&mut self.found);
        for at in 0..self.experts.len() {
            self.experts[at].foresee(&mut found);
            for foreseen in found.drain(..).take(MOST_FORESEEN) {
                if foreseen.unit.0 < self.geometry.units() && wanted(foreseen.unit) {
                    self.expect(foreseen.unit, class(at, foreseen.sureness), (now, due), bar);
                }
            }
        }
        self.found = found;
    }

    /// The plain experts have named `unit` by themselves: who named it before has nothing to earn by it.
    pub fn withdraw(&mut self, unit: UnitIndex) {
        self.gate.withdraw(unit);
    }

    fn expect(&mut self, unit: UnitIndex, class: u8, (now, due): (Tick, Tick), bar: f32) {
        if let Some(ended) = self.gate.expect(unit, class, now, due) {
            self.learn(ended, bar);
        }
        self.chances.push((unit, class));
    }

    fn learn(&mut self, ended: Ended, bar: f32) {
        let at = expert(ended.class);
        if !self.gate.is_proven(ended.class) || self.gate.precision(ended.class) >= bar {
            let mut losses = [0.5; 1 + MOST_EXPERTS];
            losses[1 + at] = if ended.came_true { 0.0 } else { 1.0 };
            self.hedge.charge(&losses);
        }
        if self.tallies[at].ended(ended) {
            self.hedge.forget(1 + at);
            self.gate.forget(at * CLASSES..(at + 1) * CLASSES);
        }
    }

    /// Whether an expert has earned to be heard: as much as silence.
    fn is_heard(&self, at: usize) -> bool {
        let weights = self.hedge.weights();
        weights[1 + at] >= weights[0]
    }

    /// What those who are heard expect after the last access. Each chance is halfway between the `bar` and the precision
    /// that its class had: as likely to be acted on while the link has room, and the first to give way when it has none,
    /// because what is foreseen further ahead is also needed later.
    pub fn chances(&mut self, bar: f32, due: Instant, out: &mut Vec<Chance>) {
        for (unit, class) in &self.chances {
            let precision = self.gate.precision(*class);
            if precision >= bar && self.is_heard(expert(*class)) {
                out.push(Chance { unit: *unit, probability: (bar + precision) / 2.0, due });
            }
        }
        self.chances.clear();
    }

    /// The forecasts that are out, as a person is told of them.
    pub fn pending(&self, now: Tick, bar: f32) -> impl Iterator<Item = Expected> {
        self.gate.pending().map(move |(class, forecast)| {
            let (at, precision) = (expert(class), self.gate.precision(class));
            forecast.expected(now, self.experts[at].name(), precision, self.is_heard(at) && precision >= bar)
        })
    }

    /// What experts that look far expect to be read at all, first what is needed first.
    pub fn rest(&self, out: &mut Vec<UnitIndex>) {
        self.experts.iter().for_each(|expert| expert.rest(out));
    }

    /// The guest had to wait for `unit`.
    pub fn missed(&mut self, unit: UnitIndex) {
        self.experts.iter_mut().for_each(|expert| expert.missed(unit));
    }

    /// What is to be learned elsewhere.
    pub fn lesson(&mut self) -> Option<Lesson> {
        self.experts.iter_mut().find_map(|expert| expert.lesson())
    }

    /// What came of a lesson.
    pub fn adopt(&mut self, model: &Model) {
        self.experts.iter_mut().for_each(|expert| expert.adopt(model.clone()));
    }

    /// What the experts have learned.
    pub fn experience(&self) -> Experience {
        let mut kept = Experience { blocks_per_unit: self.geometry.blocks_per_unit(), ..Experience::default() };
        self.experts.iter().for_each(|expert| expert.keep(&mut kept));
        kept
    }

    /// The experts' weights; what is missing to one is silence's.
    pub fn weights(&self) -> impl Iterator<Item = Weight> {
        let weights = self.experts.iter().zip(&self.hedge.weights()[1..]);
        weights.map(|(expert, weight)| Weight { clock: Clock::Sequence, expert: expert.name(), weight: *weight })
    }

    /// How their forecasts ended, by the chance that they were given.
    pub fn reliability(&self) -> &Reliability {
        self.gate.reliability()
    }

    /// What each expert was worth.
    pub fn scores(&self) -> impl Iterator<Item = ExpertScore> {
        let unit = self.geometry.unit_bytes();
        let all = self.experts.iter().zip(&self.tallies).zip(&self.hedge.weights()[1..]);
        all.map(move |((expert, tally), weight)| tally.score(expert.name(), *weight, unit, expert.bytes()))
    }
}

/// The class of a forecast: who made it, and how sure it was. A sureness that is no number is the least.
fn class(expert: usize, sureness: f32) -> u8 {
    (expert * CLASSES + (sureness.clamp(0.0, 1.0) * CLASSES as f32) as usize).min(expert * CLASSES + CLASSES - 1)
        as u8
}

/// Who made forecasts of a class.
fn expert(class: u8) -> usize {
    usize::from(class) / CLASSES
}

#[cfg(test)]
mod tests {
    use super::*;
    use gnomon_terms::{BlockCount, Bytes, Extent, ResourceId};

    /// Foresees what comes `step` units after, for ever sure.
    #[derive(Debug)]
    struct Stepper {
        step: u32,
        at: u32,
    }

    impl SequenceExpert for Stepper {
        fn name(&self) -> &'static str {
            "stepper"
        }
        fn read(&mut self, _: Instant, unit: UnitIndex) {
            self.at = unit.0;
        }
        fn foresee(&mut self, out: &mut Vec<Foreseen>) {
            out.push(Foreseen { unit: UnitIndex(self.at.wrapping_add(self.step)), sureness: f32::NAN });
            out.push(Foreseen { unit: UnitIndex(u32::MAX), sureness: 7.0 });
        }
        fn bytes(&self) -> Bytes {
            Bytes(8)
        }
    }

    /// Reads unit after unit, `step` apart; the share of accesses after which something is expected.
    fn told(jury: &mut Jury, reads: u32, step: u32) -> f32 {
        let (mut out, mut told) = (Vec::new(), 0);
        for nth in 0..reads {
            let unit = UnitIndex(nth * step % 100_000);
            let (now, at) = (Tick(nth + 1), Instant::from_micros(u64::from(nth) * 16_777));
            let extent = Extent::new(u64::from(unit.0) * 16, 16);
            let access = Access { at, resource: ResourceId(0), extent, op: Op::Read };
            jury.read(unit, now, 0.3);
            jury.count(1);
            jury.hear(&access);
            jury.ask((now, Tick(nth + 20)), 0.3, |_| true);
            out.clear();
            jury.chances(0.3, at, &mut out);
            told += u32::from(!out.is_empty());
        }
        told as f32 / reads as f32
    }

    fn jury(steps: &[u32]) -> Jury {
        let experts = steps.iter().map(|step| Box::new(Stepper { step: *step, at: 0 }) as Box<dyn SequenceExpert>);
        Jury::new(Geometry::new(BlockCount(1_600_000), 16).unwrap(), experts.collect())
    }

    #[test]
    fn who_is_right_earns_to_be_heard_and_who_is_wrong_never_is() {
        let mut jury = jury(&[7, 5]);
        assert!(told(&mut jury, 100, 7) == 0.0, "nobody is heard at once");
        assert!(told(&mut jury, 2000, 7) > 0.8);
        let weights: Vec<f32> = jury.weights().map(|weight| weight.weight).collect();
        assert!(weights[0] > 0.5 && weights[1] < 0.05, "{weights:?}");
        let scores: Vec<ExpertScore> = jury.scores().collect();
        assert!(scores[0].precision > 0.9 && scores[0].coverage > 0.9 && scores[0].lead > std::time::Duration::ZERO);
        assert!(scores[1].precision < 0.1 && scores[1].wasted.0 > scores[0].wasted.0, "{scores:?}");
    }

    #[test]
    fn who_names_second_is_not_paid() {
        let mut jury = jury(&[7, 7]);
        told(&mut jury, 3000, 7);
        let weights: Vec<f32> = jury.weights().map(|weight| weight.weight).collect();
        assert!(weights[0] > 0.5 && weights[1] < 0.05, "{weights:?}");
    }

    #[test]
    fn what_no_longer_holds_is_unlearned() {
        let mut jury = jury(&[7]);
        told(&mut jury, 4000, 7);
        assert!(told(&mut jury, 6000, 11) < 0.5);
        assert!(jury.weights().all(|weight| weight.weight < 0.06));
    }
}
