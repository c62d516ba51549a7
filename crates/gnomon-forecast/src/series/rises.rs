//! How much each member of a group will ask for next, in the mean: one small network for all of them.
//!
//! A sum of members is steadier than a member, but what tells of a rise is in the member: one that has just let go of half of
//! what it had asks again more likely than one that never moves. Members of a group have in common how they behave, not how
//! large they are; so one network learns from all, in each member's own scale, and what it says of each is added up. It says
//! a mean and a mean square, not quantiles: means add up, and so do variances.

use std::collections::VecDeque;

use crate::sequence::{Adam, Dice};

/// What is known of a member.
pub(super) const KNOWN: usize = 28;
/// What is known of one member at one step, squashed: none of it beyond this.
pub(super) const MOST_KNOWN: f64 = 7.5;
/// See [`MOST_KNOWN`].
pub(super) type Known = [f32; KNOWN];

/// Numbers between what is known and what is said.
const HIDDEN: usize = 24;
/// What is said: the logarithms of the mean, and of the mean square over [`SPREAD`], in the member's scale.
const SAID: usize = 2;
const WEIGHTS: usize = KNOWN * HIDDEN + (HIDDEN + 1) * SAID;
/// The mean square is learned in terms of twenty times the scale squared: both are around one then.
const SPREAD: f32 = 20.0;
/// A rise of more than so many times the scale counts as this: one burst is not to decide for a week.
const MOST: f32 = 60.0;
/// How far what is said may be from the scale, as a logarithm: e^5 is beyond [`MOST`].
const LOGS: (f32, f32) = (-6.0, 5.0);
/// The longest pull of one row.
const PULL: f32 = 10.0;
/// How fast weights move.
const RATE: f32 = 0.003;
/// Rows that are kept, one in so many by chance: 16,384 are two weeks of twenty members.
const ROWS: usize = 16_384;
const ONE_IN: usize = 5;
/// Rows that wait to be learned from at most, and how many earlier ones are learned again each time.
const WAITING: usize = 2048;
const AGAIN: usize = 64;
/// Times it has learned without which it says nothing.
const ENOUGH: u32 = 200;
/// Steps of 1/16 in which rows are kept.
const GRAIN: f32 = 16.0;

/// Something to learn from: what was known, and what came, in the member's scale.
#[derive(Clone, Copy, Debug)]
struct Row {
    known: [i8; KNOWN],
    came: f32,
}

/// The mean and the variance of a rise.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Rise {
    pub(super) mean: f64,
    pub(super) variance: f64,
}

/// The network of one group: a layer of rectified sums, learned by the Poisson loss, of which the least is at the mean
/// whatever the distribution.
///
/// Source: P. McCullagh, J. Nelder, "Generalized Linear Models", 1989, chapter 9 (quasi-likelihood).
#[derive(Clone, Debug)]
pub(super) struct Rises {
    weights: Vec<f32>,
    adam: Adam,
    waiting: Vec<Row>,
    kept: VecDeque<Row>,
    dice: Dice,
    learned: u32,
}

impl Rises {
    /// One that knows nothing; what it begins with is the same each time.
    pub(super) fn new() -> Rises {
        let mut dice = Dice(1);
        let width = (3.0 / KNOWN as f32).sqrt();
        let mut weights: Vec<f32> = (0..KNOWN * HIDDEN).map(|_| width * dice.even()).collect();
        weights.resize(WEIGHTS, 0.0);
        Rises { weights, adam: Adam::new(WEIGHTS), waiting: Vec::new(), kept: VecDeque::new(), dice, learned: 0 }
    }

    /// What came where this was known: a rise of so many times the member's scale.
    pub(super) fn note(&mut self, known: &Known, came: f64) {
        if self.waiting.len() == WAITING {
            self.waiting.swap_remove(self.dice.below(WAITING));
        }
        let known = known.map(|known| (known * GRAIN).round() as i8);
        let came = if came > 0.0 { came.min(f64::from(MOST)) as f32 } else { 0.0 };
        self.waiting.push(Row { known, came });
    }

    /// What is expected of a member of this scale; `None` while too little was learned.
    pub(super) fn expects(&self, known: &Known, scale: f64) -> Option<Rise> {
        let said = self.say(known, &mut [0.0; HIDDEN]).map(|log| f64::from(log.exp()));
        let (mean, square) = (said[0] * scale, said[1] * f64::from(SPREAD) * scale * scale);
        (self.learned >= ENOUGH).then(|| Rise { mean, variance: (square - mean * mean).max(0.0) })
    }

    /// Learns from what waits, and from some that was learned before; `true` when there was anything.
    pub(super) fn tend(&mut self) -> bool {
        if self.waiting.is_empty() {
            return false;
        }
        let mut rows = std::mem::take(&mut self.waiting);
        let fresh = rows.len();
        if !self.kept.is_empty() {
            rows.extend((0..AGAIN).map(|_| self.kept[self.dice.below(self.kept.len())]));
        }
        let mut gradient = vec![0.0; WEIGHTS];
        for row in &rows {
            self.pull(row, &mut gradient, 1.0 / rows.len() as f32);
        }
        self.adam.follow(&mut self.weights, &gradient, RATE);
        rows.truncate(fresh);
        for row in rows.drain(..) {
            self.keep(row);
        }
        self.waiting = rows;
        self.learned = self.learned.saturating_add(1);
        true
    }

    /// Bytes of state.
    pub(super) fn bytes(&self) -> usize {
        3 * WEIGHTS * size_of::<f32>() + (self.waiting.capacity() + self.kept.capacity()) * size_of::<Row>()
    }

    fn keep(&mut self, row: Row) {
        if self.dice.below(ONE_IN) > 0 {
            return;
        }
        if self.kept.len() == ROWS {
            self.kept.pop_front();
        }
        self.kept.push_back(row);
    }

    /// What is said, and through which hidden numbers.
    fn say(&self, known: &Known, hidden: &mut [f32; HIDDEN]) -> [f32; SAID] {
        let (first, second) = self.weights.split_at(KNOWN * HIDDEN);
        for (known, weights) in known.iter().zip(first.chunks_exact(HIDDEN)) {
            hidden.iter_mut().zip(weights).for_each(|(hidden, weight)| *hidden += known * weight);
        }
        hidden.iter_mut().for_each(|hidden| *hidden = hidden.max(0.0));
        let mut said = [second[HIDDEN * SAID], second[HIDDEN * SAID + 1]];
        for (hidden, weights) in hidden.iter().zip(second.chunks_exact(SAID)) {
            said.iter_mut().zip(weights).for_each(|(said, weight)| *said += hidden * weight);
        }
        said.map(|log| log.clamp(LOGS.0, LOGS.1))
    }

    /// Adds a row's part of the gradient.
    fn pull(&self, row: &Row, gradient: &mut [f32], part: f32) {
        let known = row.known.map(|known| f32::from(known) / GRAIN);
        let mut hidden = [0.0; HIDDEN];
        let said = self.say(&known, &mut hidden);
        let came = [row.came, row.came * row.came / SPREAD];
        let off: [f32; SAID] = std::array::from_fn(|at| part * (said[at].exp() - came[at]).clamp(-PULL, PULL));
        let second = &self.weights[KNOWN * HIDDEN..];
        let (first, above) = gradient.split_at_mut(KNOWN * HIDDEN);
        let mut back = [0.0; HIDDEN];
        for (at, (hidden, back)) in hidden.iter().zip(&mut back).enumerate().filter(|(_, (hidden, _))| **hidden > 0.0)
        {
            for (to, off) in off.iter().enumerate() {
                above[at * SAID + to] += off * hidden;
                *back += off * second[at * SAID + to];
            }
        }
        above[HIDDEN * SAID..].iter_mut().zip(off).for_each(|(sum, off)| *sum += off);
        for (known, sums) in known.iter().zip(first.chunks_exact_mut(HIDDEN)) {
            sums.iter_mut().zip(&back).for_each(|(sum, back)| *sum += known * back);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::series::tests::noise;

    /// Two kinds of members: the first asks for 10 in each third step after it was low, the other by chance.
    fn teach(rises: &mut Rises, steps: usize, seed: &mut u64) {
        for _ in 0..steps {
            for _ in 0..20 {
                let low = noise(seed) > 0.0;
                let asks = noise(seed) > 1.0 / 3.0;
                rises.note(&known(low), if low && asks { 10.0 } else { 0.0 });
            }
            rises.tend();
        }
    }

    fn known(low: bool) -> Known {
        let mut known = [0.0; KNOWN];
        (known[3], known[KNOWN - 1]) = (f32::from(u8::from(low)), 1.0);
        known
    }

    #[test]
    fn it_learns_who_asks_and_how_much_that_varies() {
        let (mut rises, mut seed) = (Rises::new(), 7);
        teach(&mut rises, 1500, &mut seed);
        let (low, high) = (rises.expects(&known(true), 3.0), rises.expects(&known(false), 3.0));
        let (low, high) = (low.expect("it has learned"), high.expect("it has learned"));
        // A third of the time 10 in a scale of 3: mean 10, mean square 300, variance 200.
        assert!((low.mean - 10.0).abs() < 1.5 && high.mean < 0.5, "{low:?} {high:?}");
        assert!((low.variance - 200.0).abs() < 60.0, "{low:?}");
    }

    #[test]
    fn it_says_nothing_before_it_has_learned_and_nothing_odd_after() {
        let (mut rises, mut seed) = (Rises::new(), 11);
        assert!(!rises.tend());
        teach(&mut rises, 10, &mut seed);
        assert_eq!(rises.expects(&known(true), 1.0), None);
        for came in [f64::NAN, f64::INFINITY, -1.0, 1e300] {
            (0..400).for_each(|_| rises.note(&[MOST_KNOWN as f32; KNOWN], came));
            rises.tend();
        }
        teach(&mut rises, 200, &mut seed);
        let rise = rises.expects(&[MOST_KNOWN as f32; KNOWN], 1e12).expect("it has learned");
        assert!(rise.mean.is_finite() && rise.variance.is_finite(), "{rise:?}");
        (0..100_000).for_each(|_| rises.note(&known(false), 0.0));
        assert!(rises.waiting.len() <= WAITING && rises.bytes() < 2 << 20, "{}", rises.bytes());
    }

    #[test]
    fn a_gradient_is_the_slope_of_the_loss() {
        let (mut rises, mut seed) = (Rises::new(), 13);
        teach(&mut rises, 50, &mut seed);
        let row = Row { known: [5; KNOWN], came: 2.0 };
        let known = row.known.map(|known| f32::from(known) / GRAIN);
        // Poisson: e^z − y z, for the mean and for the square.
        let loss = |rises: &Rises| -> f64 {
            let said = rises.say(&known, &mut [0.0; HIDDEN]).map(f64::from);
            let came = [2.0, 4.0 / f64::from(SPREAD)];
            said.iter().zip(came).map(|(log, came)| log.exp() - came * log).sum()
        };
        let mut gradient = vec![0.0; WEIGHTS];
        rises.pull(&row, &mut gradient, 1.0);
        for at in (0..WEIGHTS).step_by(37).chain(WEIGHTS - 2..WEIGHTS) {
            let by = |change: f32| {
                let mut other = rises.clone();
                other.weights[at] += change;
                loss(&other)
            };
            let slope = (by(1e-2) - by(-1e-2)) / 2e-2;
            assert!(
                (slope - f64::from(gradient[at])).abs() < 0.02 + 0.05 * slope.abs(),
                "{at}: {slope}, {}",
                gradient[at]
            );
        }
    }
}
