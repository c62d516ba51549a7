//! The role of a sequence expert: units read in, the next units out, each with how sure it is.
//!
//! An expert says nothing of how good it is; that is counted by who uses it ([`super::jury`]). It bounds its own memory
//! and its own time, whatever a guest reads.

use std::{fmt, time::Duration};

use gnomon_terms::{Access, Bytes, Instant, Op};

use super::experience::Experience;
use super::model::Model;
use super::study::Lesson;
use super::vocabulary::ends;
use crate::predictor::DEFAULT_HORIZON;
use crate::{BlockMap, Chance, Geometry, Predictor, UnitIndex, lacking_units};

/// A unit that an expert expects.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Foreseen {
    /// Which unit.
    pub unit: UnitIndex,
    /// How sure it is, 0 to 1, by its own lights.
    pub sureness: f32,
}

/// Units in, units out.
pub trait SequenceExpert: Send + fmt::Debug {
    /// Its name in tables: lower case, no blanks.
    fn name(&self) -> &'static str;

    /// The guest reads `unit`, and did not read it just before.
    fn read(&mut self, at: Instant, unit: UnitIndex);

    /// Appends what is expected to be read soon after what was read last.
    fn foresee(&mut self, out: &mut Vec<Foreseen>);

    /// Appends what is expected to be read at all, first what is needed first. For experts that look far.
    fn rest(&self, _out: &mut Vec<UnitIndex>) {}

    /// The guest had to wait for `unit`.
    fn missed(&mut self, _unit: UnitIndex) {}

    /// What is to be learned from, for experts that learn elsewhere; taken out by asking.
    fn lesson(&mut self) -> Option<Lesson> {
        None
    }

    /// What came of a lesson.
    fn adopt(&mut self, _model: Model) {}

    /// Adds what it has learned and should know again in another process.
    fn keep(&self, _into: &mut Experience) {}

    /// Memory it takes.
    fn bytes(&self) -> Bytes;
}

/// One expert alone, for comparison: address order beside what it foresees, and what it expects at all first.
#[derive(Debug)]
pub struct SequencePredictor {
    geometry: Geometry,
    expert: Box<dyn SequenceExpert>,
    last: Option<UnitIndex>,
    found: Vec<Foreseen>,
    horizon: Duration,
}

impl SequencePredictor {
    /// For a resource cut as `geometry` says.
    pub fn new(geometry: Geometry, expert: Box<dyn SequenceExpert>) -> SequencePredictor {
        SequencePredictor { geometry, expert, last: None, found: Vec::new(), horizon: DEFAULT_HORIZON }
    }

    /// The expert.
    pub fn expert(&self) -> &dyn SequenceExpert {
        &*self.expert
    }
}

impl Predictor for SequencePredictor {
    fn name(&self) -> &'static str {
        self.expert.name()
    }

    fn observe(&mut self, access: &Access) {
        if access.op != Op::Read {
            return;
        }
        for unit in ends(self.geometry, access).into_iter().flatten() {
            if self.last.replace(unit) != Some(unit) {
                self.expert.read(access.at, unit);
            }
        }
    }

    fn rank(&mut self, _: Instant, lacking: &BlockMap, out: &mut Vec<UnitIndex>) {
        self.expert.rest(out);
        out.extend(lacking_units(self.geometry, lacking));
    }

    fn react(&mut self, access: &Access, out: &mut Vec<Chance>) {
        if access.op != Op::Read {
            return;
        }
        let due = access.at.after(self.horizon);
        self.expert.foresee(&mut self.found);
        let known = self.found.drain(..).filter(|found| found.unit.0 < self.geometry.units());
        out.extend(known.map(|found| Chance { unit: found.unit, probability: found.sureness, due }));
    }

    fn missed(&mut self, _: Instant, unit: UnitIndex) {
        self.expert.missed(unit);
    }

    fn lesson(&mut self) -> Option<Lesson> {
        self.expert.lesson()
    }

    fn adopt(&mut self, model: Model) {
        self.expert.adopt(model);
    }
}
