//! The network as an expert: it reads each delta's token and rolls its likeliest future out a few steps.
//!
//! A step of 32 hidden units costs one to two microseconds, a forecast of four steps ten: more than the reactive clock
//! allows for each access of a busy guest. So it has an *allowance* of steps for each second of the guest's time; beyond
//! it, it is silent and does not read, and begins with a fresh state afterwards.

use gnomon_terms::{Bytes, Instant};

use super::experience::Experience;
use super::expert::{Foreseen, SequenceExpert};
use super::model::{About, Model};
use super::network::{State, Work};
use super::study::{Lesson, beginner};
use super::vocabulary::{ESCAPE, Vocabulary};
use crate::UnitIndex;

/// Steps for each second of the guest's time: at 1.5 µs each, 3 % of a core.
const STEPS_PER_SECOND: f64 = 20_000.0;
/// Steps that can be saved up.
const MOST_SAVED: f64 = 5_000.0;
/// Steps that a forecast follows at most.
const DEPTH: usize = 4;
/// Other likely tokens of the first step that are named as well.
const BESIDE: usize = 2;
/// Below this chance (of all steps together) nothing is foreseen.
const LEAST: f32 = 0.15;
/// Units after which an expert without a model makes itself a vocabulary.
const FIRST_LOOK: usize = 4096;
/// Tokens that make a lesson.
const LESSON: usize = 512;
/// Tokens that are kept for one.
const MOST_KEPT: usize = 4096;
/// Tokens before a miss that are learned from again, and how many such stretches are kept.
const BEFORE_MISS: usize = 16;
const MOST_MISSED: usize = 64;

/// A network that reads along.
#[derive(Debug)]
pub struct RecurrentExpert {
    blocks_per_unit: u32,
    model: Option<Model>,
    /// True: it hands out lessons, and makes itself a model if it has none.
    learns: bool,
    state: State,
    work: Work,
    aside: State,
    last: Option<UnitIndex>,
    /// Steps that it may still make, and as of when.
    allowance: (f64, Instant),
    /// Whether the last read was within the allowance.
    awake: bool,
    /// Units read before there was a vocabulary.
    first: Vec<UnitIndex>,
    kept: Vec<u16>,
    missed: Vec<Vec<u16>>,
}

impl RecurrentExpert {
    /// Uses `model`, whose deltas must be in units of this size; else it is as if there were none. One that `learns`
    /// hands out lessons.
    pub fn new(blocks_per_unit: u32, model: Option<Model>, learns: bool) -> RecurrentExpert {
        let model = model.filter(|model| model.blocks_per_unit == blocks_per_unit);
        let state = model.as_ref().map(|model| model.network.start()).unwrap_or_default();
        RecurrentExpert {
            blocks_per_unit,
            model,
            learns,
            aside: state.clone(),
            state,
            work: Work::default(),
            last: None,
            allowance: (MOST_SAVED, Instant::ORIGIN),
            awake: false,
            first: Vec::new(),
            kept: Vec::new(),
            missed: Vec::new(),
        }
    }

    /// Takes `steps` out of the allowance, if they are in it.
    fn may(&mut self, steps: usize) -> bool {
        let enough = self.allowance.0 >= steps as f64;
        if enough {
            self.allowance.0 -= steps as f64;
        }
        enough
    }

    fn earn(&mut self, at: Instant) {
        let earned = at.since(self.allowance.1).as_secs_f64() * STEPS_PER_SECOND;
        // Time that runs backwards earns nothing, and what was earned once is not earned again.
        self.allowance = ((self.allowance.0 + earned).min(MOST_SAVED), self.allowance.1.max(at));
    }

    fn keep(&mut self, token: u16) {
        if !self.learns {
            return;
        }
        if self.kept.len() == MOST_KEPT {
            self.kept.drain(..MOST_KEPT / 2);
        }
        self.kept.push(token);
    }

    /// A first vocabulary from what was read, and weights that know nothing yet.
    fn look_first(&mut self, unit: UnitIndex) {
        if !self.learns {
            return;
        }
        self.first.push(unit);
        if self.first.len() == FIRST_LOOK {
            let vocabulary = Vocabulary::of(&[&self.first], 128);
            self.kept = vocabulary.tokens_of(&self.first);
            let network = beginner(&vocabulary);
            (self.state, self.aside) = (network.start(), network.start());
            let (blocks_per_unit, about) = (self.blocks_per_unit, About::default());
            self.model = Some(Model { network, vocabulary, blocks_per_unit, about });
            self.first = Vec::new();
        }
    }
}

impl SequenceExpert for RecurrentExpert {
    fn name(&self) -> &'static str {
        self.model.as_ref().map_or("gru", |model| model.network.shape().cell.name())
    }

    fn read(&mut self, at: Instant, unit: UnitIndex) {
        let last = self.last.replace(unit);
        let Some(token) = self.model.as_ref().zip(last).map(|(model, last)| model.vocabulary.token(last, unit))
        else {
            return if self.model.is_none() {
                self.look_first(unit)
            };
        };
        self.keep(token);
        self.earn(at);
        let awake = self.may(1);
        let Some(model) = &self.model else { return };
        if !awake {
            self.awake = false;
            return;
        }
        if !self.awake {
            self.state.copy_from(&model.network.start());
        }
        self.awake = true;
        model.network.read(token, &mut self.state, &mut self.work);
    }

    fn foresee(&mut self, out: &mut Vec<Foreseen>) {
        // The output of a step costs as much as the step.
        if !self.awake || !self.may(2 * DEPTH) {
            return;
        }
        let (Some(model), Some(mut unit)) = (&self.model, self.last) else { return };
        self.aside.copy_from(&self.state);
        let mut sureness = 1.0;
        for depth in 0..DEPTH {
            let chances = model.network.chances(&self.aside, &mut self.work);
            if depth == 0 {
                beside(model, unit, chances, out);
            }
            let (token, chance) = likeliest(chances);
            sureness *= chance;
            let next = model.vocabulary.follow(unit, token).filter(|_| sureness >= LEAST);
            let Some(next) = next else { return };
            out.push(Foreseen { unit: next, sureness });
            unit = next;
            model.network.read(token, &mut self.aside, &mut self.work);
        }
    }

    fn missed(&mut self, unit: UnitIndex) {
        if self.learns && self.last == Some(unit) && self.missed.len() < MOST_MISSED && self.kept.len() > 1 {
            let from = self.kept.len().saturating_sub(BEFORE_MISS);
            self.missed.push(self.kept[from..].to_vec());
        }
    }

    fn lesson(&mut self) -> Option<Lesson> {
        let model = self.model.as_ref().filter(|_| self.learns && self.kept.len() >= LESSON)?;
        let tokens = std::mem::take(&mut self.kept);
        // The last token is where the next lesson starts from.
        self.kept.extend(tokens.last());
        Some(Lesson {
            blocks_per_unit: self.blocks_per_unit,
            vocabulary: model.vocabulary.clone(),
            tokens,
            missed: std::mem::take(&mut self.missed),
            network: model.network.clone(),
        })
    }

    /// It goes on to say where the first weights came from.
    fn adopt(&mut self, model: Model) {
        let fits = |own: &Model| own.vocabulary == model.vocabulary && own.network.shape() == model.network.shape();
        if self.model.as_ref().is_some_and(fits) {
            let about = self.model.take().map(|own| own.about).unwrap_or_default();
            self.model = Some(Model { about, ..model });
        }
    }

    /// The network, if it has become another than it was given.
    fn keep(&self, into: &mut Experience) {
        into.network = self.model.clone().filter(|_| self.learns);
    }

    fn bytes(&self) -> Bytes {
        let model = self.model.as_ref().map_or(0, |model| model.network.bytes() + model.vocabulary.tokens() * 12);
        let kept = self.kept.capacity() * 2 + self.first.capacity() * 4 + self.missed.len() * BEFORE_MISS * 2;
        Bytes((model + kept) as u64)
    }
}

/// Names the tokens after the likeliest.
fn beside(model: &Model, unit: UnitIndex, chances: &[f32], out: &mut Vec<Foreseen>) {
    let (first, _) = likeliest(chances);
    let mut bound = f32::INFINITY;
    for _ in 0..BESIDE {
        let others = chances.iter().zip(0u16..).filter(|(chance, token)| *token != first && **chance < bound);
        let Some((chance, token)) = others.max_by(|a, b| a.0.total_cmp(b.0)) else { return };
        bound = *chance;
        let next = model.vocabulary.follow(unit, token).filter(|_| *chance >= LEAST);
        out.extend(next.map(|unit| Foreseen { unit, sureness: *chance }));
    }
}

/// The likeliest token and its chance; the escape if no chance is a number.
fn likeliest(chances: &[f32]) -> (u16, f32) {
    let mut best = (ESCAPE, 0.0);
    for (chance, token) in chances.iter().zip(0u16..) {
        if *chance > best.1 {
            best = (token, *chance);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sequence::corpus::Corpus;
    use crate::sequence::network::{Cell, Network};
    use crate::sequence::study::Student;
    use crate::sequence::trainer::{Plan, Trainer};

    fn path(steps: usize) -> Vec<UnitIndex> {
        let mut at = 5000u32;
        let next = |n: usize| {
            at = at.wrapping_add_signed([4, 4, -3, 11, -15][n % 5]);
            UnitIndex(at)
        };
        (0..steps).map(next).collect()
    }

    fn model(cell: Cell) -> Model {
        let corpus = Corpus::of(&[path(3000)], 16, 0.2);
        let plan = Plan { hidden: 8, rate: 0.02, lanes: 4, stretch: 16, most_epochs: 4, ..Plan::new(cell, 1) };
        let mut trainer = Trainer::new(plan, &corpus);
        while !trainer.advance(&corpus, 100).over {}
        let (network, vocabulary) = (trainer.best().clone(), corpus.vocabulary.clone());
        Model { network, vocabulary, blocks_per_unit: 16, about: About::default() }
    }

    fn at(nth: usize) -> Instant {
        Instant::from_micros(nth as u64 * 10_000)
    }

    fn foreseen(expert: &mut RecurrentExpert) -> Vec<Foreseen> {
        let mut out = Vec::new();
        expert.foresee(&mut out);
        out
    }

    #[test]
    fn a_learned_pattern_is_rolled_out() {
        for cell in [Cell::Gru, Cell::Lstm] {
            let mut expert = RecurrentExpert::new(16, Some(model(cell)), false);
            let path = path(204);
            path[..200].iter().enumerate().for_each(|(nth, unit)| expert.read(at(nth), *unit));
            let units: Vec<_> = foreseen(&mut expert).iter().map(|found| found.unit).collect();
            assert_eq!((expert.name(), &units[..]), (cell.name(), &path[200..]));
            assert!(expert.lesson().is_none());
        }
    }

    #[test]
    fn a_busy_guest_costs_no_more_than_the_allowance() {
        let mut expert = RecurrentExpert::new(16, Some(model(Cell::Gru)), false);
        let told = (0..20_000).filter(|nth| {
            // All at the same time, and then at times that run backwards.
            expert.read(Instant::from_micros(20_000 - nth), path(5)[*nth as usize % 5]);
            !foreseen(&mut expert).is_empty()
        });
        assert!(told.count() as f64 <= MOST_SAVED / 9.0 + 400.0);
    }

    #[test]
    fn hostile_weights_and_foreign_units_say_nothing() {
        let model = model(Cell::Gru);
        let hostile = Network::of(model.network.shape(), vec![f32::NAN; model.network.values().len()]).unwrap();
        let mut expert = RecurrentExpert::new(16, Some(Model { network: hostile, ..model.clone() }), false);
        path(50).iter().enumerate().for_each(|(nth, unit)| expert.read(at(nth), *unit));
        assert_eq!(foreseen(&mut expert), []);
        let mut foreign = RecurrentExpert::new(1, Some(model), false);
        path(50).iter().enumerate().for_each(|(nth, unit)| foreign.read(at(nth), *unit));
        assert_eq!(foreseen(&mut foreign), []);
    }

    #[test]
    fn without_a_model_it_makes_itself_one_and_learns_in_lessons() {
        let mut expert = RecurrentExpert::new(16, None, true);
        let (mut student, path) = (None, path(40_000));
        for (nth, unit) in path.iter().enumerate() {
            expert.read(at(nth), *unit);
            if nth % 100 == 0 {
                expert.missed(*unit);
            }
            let Some(lesson) = expert.lesson() else { continue };
            assert!(lesson.missed.len() <= MOST_MISSED && lesson.tokens.len() <= MOST_KEPT);
            let student = student.get_or_insert_with(|| Student::new(&lesson));
            assert!(student.hear(lesson));
            student.study(16);
            expert.adopt(student.model());
        }
        let right = foreseen(&mut expert);
        assert!(right.len() >= 3 && right[0].sureness > 0.6, "{right:?}");
        assert!(expert.bytes() < Bytes(256 << 10));
    }
}
