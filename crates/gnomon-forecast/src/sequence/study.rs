//! Learning while the guest runs: what an expert hands out to be learned from, and who learns from it.
//!
//! ```text
//!   expert ──Lesson {tokens, what was missed}──► Student (another thread, a bounded number of updates)
//!      ▲                                             │
//!      └───────────────── Model ─────────────────────┘
//! ```
//! A step of training costs some ten steps of use, so it is not done where accesses are handled. What was missed (the
//! guest had to wait for it) is learned from again, before what is new.

use std::collections::VecDeque;

use super::adam::Adam;
use super::gradient::Tape;
use super::model::{About, Model};
use super::network::{Cell, Network, Shape, State};
use super::vocabulary::Vocabulary;

/// What an expert saw since it was last asked.
#[derive(Clone, Debug)]
pub struct Lesson {
    /// Blocks in the units that the tokens are about.
    pub blocks_per_unit: u32,
    /// Which delta each token is.
    pub vocabulary: Vocabulary,
    /// What was read, in order.
    pub tokens: Vec<u16>,
    /// Short stretches that ended with a read that had to wait.
    pub missed: Vec<Vec<u16>>,
    /// The weights with which the expert began, for a student that does not know it yet.
    pub network: Network,
}

/// Tokens of a stretch: as many as an update of the offline trainer reads in a lane.
const STRETCH: usize = 32;
/// How far a weight moves at an update: less than offline, because one lane is noisier than eight.
const RATE: f32 = 0.002;
/// Stretches that wait to be learned from; older ones give way. 64 KiB at most.
const WAITING: usize = 256;

/// Learns for one expert. Costs nothing unless told to study.
#[derive(Clone, Debug)]
pub struct Student {
    model: Model,
    adam: Adam,
    state: State,
    waiting: VecDeque<Vec<u16>>,
    missed: VecDeque<Vec<u16>>,
    tape: Tape,
    gradient: Vec<f32>,
    /// Loss of the last updates, nats a token, falling in by a sixteenth.
    loss: f32,
}

impl Student {
    /// Begins with the weights of an expert's first lesson.
    pub fn new(lesson: &Lesson) -> Student {
        let network = lesson.network.clone();
        let (weights, state) = (network.values().len(), network.start());
        let blocks_per_unit = lesson.blocks_per_unit;
        let model =
            Model { network, vocabulary: lesson.vocabulary.clone(), blocks_per_unit, about: About::default() };
        Student {
            model,
            adam: Adam::new(weights),
            state,
            waiting: VecDeque::new(),
            missed: VecDeque::new(),
            tape: Tape::default(),
            gradient: vec![0.0; weights],
            loss: 0.0,
        }
    }

    /// Takes a lesson in. One of another vocabulary is not this student's and is refused.
    pub fn hear(&mut self, lesson: Lesson) -> bool {
        if lesson.vocabulary != self.model.vocabulary {
            return false;
        }
        // Neighbouring stretches share a token: the last of one is what the next one starts from.
        let stretches = (0..lesson.tokens.len().saturating_sub(1)).step_by(STRETCH);
        self.waiting.extend(stretches.map(|from| lesson.tokens[from..].iter().copied().take(STRETCH + 1).collect()));
        self.missed.extend(lesson.missed);
        for queue in [&mut self.waiting, &mut self.missed] {
            queue.drain(..queue.len().saturating_sub(WAITING));
        }
        true
    }

    /// Makes up to `updates` updates, what was missed first; how many were made. Each costs about 33 steps forward and
    /// back (some 200 µs for 32 hidden units).
    pub fn study(&mut self, updates: usize) -> usize {
        for made in 0..updates {
            let fresh = self.missed.is_empty();
            let Some(stretch) = self.missed.pop_front().or_else(|| self.waiting.pop_front()) else { return made };
            let mut aside = self.model.network.start();
            let state = if fresh { &mut self.state } else { &mut aside };
            let scale = 1.0 / stretch.len().max(1) as f32;
            self.gradient.fill(0.0);
            let loss = self.tape.learn(&self.model.network, &stretch, state, scale, &mut self.gradient);
            self.loss += (loss * scale - self.loss) / 16.0;
            self.adam.follow(self.model.network.values_mut(), &self.gradient, RATE);
        }
        updates
    }

    /// Stretches that wait.
    pub fn behind(&self) -> usize {
        self.waiting.len() + self.missed.len()
    }

    /// What it knows now.
    pub fn model(&self) -> Model {
        let mut model = self.model.clone();
        model.about.loss = self.loss;
        model
    }
}

/// The first weights of an expert without a model.
pub(super) fn beginner(vocabulary: &Vocabulary) -> Network {
    Network::seeded(Shape { cell: Cell::Gru, tokens: vocabulary.tokens(), hidden: 32 }, 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sequence::trainer::judge;

    fn lesson(tokens: Vec<u16>, missed: Vec<Vec<u16>>) -> Lesson {
        let vocabulary = Vocabulary::new(vec![1, 5, -9, 40]).unwrap();
        let network = beginner(&vocabulary);
        Lesson { blocks_per_unit: 16, vocabulary, tokens, missed, network }
    }

    fn pattern(len: usize) -> Vec<u16> {
        (0..len).map(|n| [1, 2, 1, 3, 4][n % 5]).collect()
    }

    #[test]
    fn it_learns_what_it_hears_and_stops_when_there_is_nothing_more() {
        let mut student = Student::new(&lesson(Vec::new(), Vec::new()));
        let before = judge(&student.model().network, &pattern(200)).0;
        for _ in 0..20 {
            assert!(student.hear(lesson(pattern(640), Vec::new())));
            while student.study(10) == 10 {}
        }
        assert_eq!((student.behind(), student.study(5)), (0, 0));
        let after = judge(&student.model().network, &pattern(200)).0;
        assert!(after < before / 3.0, "{before} {after}");
    }

    #[test]
    fn what_was_missed_comes_first_and_queues_are_bounded() {
        let mut student = Student::new(&lesson(Vec::new(), Vec::new()));
        student.hear(lesson(pattern(100_000), vec![pattern(8); 1000]));
        assert_eq!(student.behind(), 2 * WAITING);
        student.study(1);
        assert_eq!((student.missed.len(), student.waiting.len()), (WAITING - 1, WAITING));
    }

    #[test]
    fn another_vocabulary_is_not_heard() {
        let mut student = Student::new(&lesson(Vec::new(), Vec::new()));
        let foreign = Lesson { vocabulary: Vocabulary::new(vec![7]).unwrap(), ..lesson(pattern(50), Vec::new()) };
        assert!(!student.hear(foreign) && student.behind() == 0);
    }
}
