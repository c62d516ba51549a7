//! The role of a predictor, and the two plainest ones.
//!
//! A predictor answers on two clocks. On the *background* clock it says in which order a whole set of lacking units
//! is best pulled ([`Predictor::rank`]): asked rarely, it may cost time in proportion to the set. On the *reactive*
//! clock it says, access by access, what is likely to be read next ([`Predictor::react`]): asked always, it must
//! cost well under a microsecond. Neither answer can do harm: what is wrongly predicted costs bytes and time only.

use std::time::Duration;

use gnomon_terms::{Access, Bytes, Instant};

use crate::reason::{Clock, Expected, Reason};
use crate::reliability::Reliability;
use crate::sequence::{Experience, Knowledge, Lesson, Model};
use crate::{BlockMap, Geometry, UnitIndex};

/// What a predictor expects of one unit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Chance {
    /// Which unit.
    pub unit: UnitIndex,
    /// That it is read before `due`, 0 to 1.
    pub probability: f32,
    /// When the forecast stops being of use.
    pub due: Instant,
}

/// How much an expert of an ensemble counts at present.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Weight {
    /// Those it stands with.
    pub clock: Clock,
    /// The expert's name.
    pub expert: &'static str,
    /// Its share of the weights of its clock, 0 to 1.
    pub weight: f32,
}

/// What one expert's reactive forecasts were worth lately (some thousand forecasts or reads). Each forecast is judged by
/// what came after it, so all of it is held-out time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ExpertScore {
    /// The expert's name.
    pub expert: &'static str,
    /// Its share of the weights among those it stands with, 0 to 1.
    pub weight: f32,
    /// Forecasts that ended.
    pub ended: u64,
    /// The share of them that came true in time.
    pub precision: f32,
    /// The share of the reads of lacking units that it alone had foretold, or was the first to.
    pub coverage: f32,
    /// The mean time from a forecast to the read that made it true.
    pub lead: Duration,
    /// Bytes of forecasts that did not come true, acted on or not.
    pub wasted: Bytes,
    /// Memory it takes.
    pub state: Bytes,
}

/// Accesses in, chances out.
///
/// Predictors keep no clock and no random source: the same calls bring the same answers.
pub trait Predictor: Send {
    /// The name under which scores and tables show it: lower case, no blanks.
    fn name(&self) -> &'static str;

    /// Notes what a guest did. Called for each access, in order.
    fn observe(&mut self, access: &Access);

    /// Appends to `out` the units of `lacking` it has an opinion about, best to pull first. Units it leaves out go
    /// last, in address order; units that are named twice or are not lacking are passed over.
    fn rank(&mut self, now: Instant, lacking: &BlockMap, out: &mut Vec<UnitIndex>);

    /// Appends to `out` what is likely to be read soon after `access`, which has just been observed.
    fn react(&mut self, _access: &Access, _out: &mut Vec<Chance>) {}

    /// How likely `unit` is to be read, 0 to 1, as far as this predictor can tell.
    fn probability(&self, _now: Instant, _unit: UnitIndex) -> f32 {
        0.0
    }

    /// From now on what `lacking` does not hold is at the guest's place: history ends and the forecast is tested.
    fn begin(&mut self, _now: Instant, _lacking: &BlockMap) {}

    /// A read of `unit` had to wait: the order was wrong, or too slow.
    fn missed(&mut self, _now: Instant, _unit: UnitIndex) {}

    /// The chance below which a reactive forecast is not worth the link, and how far ahead forecasts look.
    fn bar(&self) -> (f32, Duration) {
        (0.0, DEFAULT_HORIZON)
    }

    /// The weights of the experts, for those that have any.
    fn weights(&self) -> Vec<Weight> {
        Vec::new()
    }

    /// What the reactive experts were worth, for those that have any.
    fn scores(&self) -> Vec<ExpertScore> {
        Vec::new()
    }

    /// How its reactive forecasts ended, acted on or not, by the chance that they were given.
    fn reliability(&self) -> Reliability {
        Reliability::default()
    }

    /// Up to `most` of the forecasts that no read has made true so far, those that still may come true first, of these
    /// what a move would act on, and the latest first. Asking changes nothing, here as below.
    fn expected(&self, _now: Instant, _most: usize) -> Vec<Expected> {
        Vec::new()
    }

    /// The first `most` units that [`Predictor::rank`] would name, as far as can be told in bounded time.
    fn first(&self, _now: Instant, _lacking: &BlockMap, _most: usize) -> Vec<UnitIndex> {
        Vec::new()
    }

    /// Why each of `units` stands where it does in that order; units that do not exist are passed over.
    fn reasons(&self, _now: Instant, _units: &[UnitIndex]) -> Vec<Reason> {
        Vec::new()
    }

    /// What is to be learned elsewhere, if anything is: learning costs too much to be done between two accesses.
    fn lesson(&mut self) -> Option<Lesson> {
        None
    }

    /// What came of a lesson.
    fn adopt(&mut self, _model: Model) {}

    /// This is known from elsewhere. What its sequence experts had learned is forgotten, and so is their standing.
    fn know(&mut self, _knowledge: Knowledge) {}

    /// What it has learned that another process should know again. Copies less than 1 MiB.
    fn experience(&self) -> Experience {
        Experience::default()
    }
}

/// How far ahead reactive forecasts look at first. Ten seconds: a guest's scan has passed by then, and a link of
/// 100 Mbit/s has carried 2,000 units.
pub const DEFAULT_HORIZON: Duration = Duration::from_secs(10);

/// Predicts nothing: the baseline every other predictor must beat.
#[derive(Clone, Copy, Debug, Default)]
pub struct SilentPredictor;

impl Predictor for SilentPredictor {
    fn name(&self) -> &'static str {
        "silence"
    }
    fn observe(&mut self, _: &Access) {}
    fn rank(&mut self, _: Instant, _: &BlockMap, _: &mut Vec<UnitIndex>) {}
}

/// Expects everything that is allocated, in address order: what a plain disk mirror does, and the floor that users
/// can check every other predictor against.
#[derive(Clone, Copy, Debug)]
pub struct SequentialPredictor {
    geometry: Geometry,
}

impl SequentialPredictor {
    /// For a resource cut as `geometry` says.
    pub fn new(geometry: Geometry) -> SequentialPredictor {
        SequentialPredictor { geometry }
    }
}

impl Predictor for SequentialPredictor {
    fn name(&self) -> &'static str {
        "sequential"
    }
    fn observe(&mut self, _: &Access) {}
    fn rank(&mut self, _: Instant, lacking: &BlockMap, out: &mut Vec<UnitIndex>) {
        out.extend(lacking_units(self.geometry, lacking));
    }
}

/// The units that hold any block of `lacking`, in address order.
pub fn lacking_units(geometry: Geometry, lacking: &BlockMap) -> impl Iterator<Item = UnitIndex> {
    let per_unit = u64::from(geometry.blocks_per_unit());
    let mut from = gnomon_terms::BlockIndex(0);
    std::iter::from_fn(move || {
        let unit = lacking.next_from(from)?.0 / per_unit;
        from = gnomon_terms::BlockIndex((unit + 1) * per_unit);
        Some(UnitIndex(unit as u32))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use gnomon_terms::{BlockCount, Extent};

    #[test]
    fn sequence_is_address_order_and_silence_is_silent() {
        let geometry = Geometry::new(BlockCount(100), 16).unwrap();
        let mut lacking = BlockMap::empty(BlockCount(100));
        for start in [97, 17, 31, 2] {
            lacking.insert(Extent::new(start, 1));
        }
        let mut out = Vec::new();
        SilentPredictor.rank(Instant::ORIGIN, &lacking, &mut out);
        assert!(out.is_empty());
        SequentialPredictor::new(geometry).rank(Instant::ORIGIN, &lacking, &mut out);
        assert_eq!(out, [UnitIndex(0), UnitIndex(1), UnitIndex(6)]);
    }
}
