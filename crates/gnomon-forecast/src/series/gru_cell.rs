//! The arithmetic of a small gated recurrent unit: a step, what it says, and the gradient of a stretch of steps.
//!
//! ```text
//!   z = σ(Wz·[x, h])   r = σ(Wr·[x, h])   n = tanh(Wn·[x, r∘h])   h' = (1 − z)∘n + z∘h   said = V·[h', 1]
//! ```
//!
//! The input carries a constant, so gates need no bias.

use super::{
    LEVELS,
    lags::{FEATURES, Features},
};

/// Numbers that it remembers.
pub(super) const STATE: usize = 12;
/// What it remembers.
pub(super) type State = [f32; STATE];

/// What a gate sees: the input, and the state.
const SEEN: usize = FEATURES + STATE;
/// Weights of a gate, and of all: three gates and a line for each level.
const GATE: usize = STATE * SEEN;
const LINES: usize = 3 * GATE;
const LINE: usize = STATE + 1;
const WEIGHTS: usize = LINES + LEVELS.len() * LINE;
/// Adam's step and memory.
///
/// Source: D. Kingma, J. Ba, "Adam: A Method for Stochastic Optimization", 2015.
const RATE: f32 = 0.004;
const FIRST: f32 = 0.9;
const SECOND: f32 = 0.999;

/// The weights, and how they moved.
#[derive(Clone, Debug)]
pub(super) struct Network {
    weights: Vec<f32>,
    first: Vec<f32>,
    second: Vec<f32>,
    steps: i32,
}

/// One step, as the way back needs it.
#[derive(Clone, Debug)]
pub(super) struct Taken {
    seen: [f32; SEEN],
    keep: State,
    reset: State,
    new: State,
    /// The state after it.
    pub(super) after: State,
}

/// What a stretch says about the weights.
#[derive(Clone, Debug)]
pub(super) struct Gradient {
    /// The mean pinball loss over steps and levels.
    #[cfg_attr(not(test), expect(dead_code))]
    pub(super) loss: f32,
    /// By how much it rises with each weight.
    pub(super) weights: Vec<f32>,
    /// The state after the stretch.
    pub(super) after: State,
}

impl Network {
    /// Small weights by chance; lines begin at nothing.
    pub(super) fn new(seed: u64) -> Network {
        let mut dice = seed ^ 0x9e37_79b9_7f4a_7c15;
        let mut small = || {
            dice ^= dice << 13;
            dice ^= dice >> 7;
            dice ^= dice << 17;
            ((dice >> 40) as f32 / (1 << 23) as f32 - 1.0) / (SEEN as f32).sqrt()
        };
        let weights = (0..WEIGHTS).map(|at| if at < LINES { small() } else { 0.0 }).collect();
        Network { weights, first: vec![0.0; WEIGHTS], second: vec![0.0; WEIGHTS], steps: 0 }
    }

    /// One step.
    pub(super) fn step(&self, input: &Features, before: &State) -> Taken {
        let mut seen = [0.0; SEEN];
        seen[..FEATURES].copy_from_slice(input);
        seen[FEATURES..].copy_from_slice(before);
        let keep = self.gate(0, &seen).map(sigmoid);
        let reset = self.gate(1, &seen).map(sigmoid);
        let mut hidden = seen;
        hidden[FEATURES..].iter_mut().zip(reset).for_each(|(state, reset)| *state *= reset);
        let new = self.gate(2, &hidden).map(f32::tanh);
        let after = std::array::from_fn(|at| (1.0 - keep[at]) * new[at] + keep[at] * before[at]);
        Taken { seen, keep, reset, new, after }
    }

    /// What it says for each level.
    pub(super) fn says(&self, state: &State) -> [f32; LEVELS.len()] {
        std::array::from_fn(|level| {
            let line = &self.weights[LINES + level * LINE..][..LINE];
            line[STATE] + line.iter().zip(state).map(|(weight, state)| weight * state).sum::<f32>()
        })
    }

    /// The gradient of the pinball loss over a stretch of what was seen and what came.
    pub(super) fn gradient(&self, rows: &[(Features, f32)], state: &State) -> Gradient {
        let (mut taken, mut at) = (Vec::with_capacity(rows.len()), *state);
        for (input, _) in rows {
            let step = self.step(input, &at);
            at = step.after;
            taken.push(step);
        }
        let share = 1.0 / (rows.len().max(1) * LEVELS.len()) as f32;
        let (mut loss, mut weights, mut later) = (0.0, vec![0.0; WEIGHTS], [0.0; STATE]);
        for (step, (_, came)) in taken.iter().zip(rows).rev() {
            for (level, said) in self.says(&step.after).into_iter().enumerate() {
                let (tau, short) = (LEVELS[level] as f32, came - said);
                let slope = if short > 0.0 { -tau } else { 1.0 - tau } * share;
                loss -= slope * short;
                let line = LINES + level * LINE;
                for unit in 0..STATE {
                    weights[line + unit] += slope * step.after[unit];
                    later[unit] += slope * self.weights[line + unit];
                }
                weights[line + STATE] += slope;
            }
            later = self.back(step, &later, &mut weights);
        }
        Gradient { loss, weights, after: at }
    }

    /// Follows a gradient by one step of Adam; one longer than `longest` is shortened to it.
    pub(super) fn follow(&mut self, gradient: &[f32], longest: f32) {
        let length = gradient.iter().map(|slope| slope * slope).sum::<f32>().sqrt();
        if !length.is_finite() {
            return;
        }
        let scale = (longest / length.max(f32::MIN_POSITIVE)).min(1.0);
        self.steps = self.steps.saturating_add(1);
        let (young, old) = (1.0 - FIRST.powi(self.steps), 1.0 - SECOND.powi(self.steps));
        let moments = self.first.iter_mut().zip(&mut self.second);
        for ((weight, (first, second)), slope) in self.weights.iter_mut().zip(moments).zip(gradient) {
            let slope = slope * scale;
            *first = FIRST * *first + (1.0 - FIRST) * slope;
            *second = SECOND * *second + (1.0 - SECOND) * slope * slope;
            *weight -= RATE * (*first / young) / ((*second / old).sqrt() + 1e-6);
        }
    }

    /// Bytes of state.
    pub(super) fn bytes(&self) -> usize {
        3 * WEIGHTS * size_of::<f32>()
    }

    fn gate(&self, gate: usize, seen: &[f32; SEEN]) -> State {
        std::array::from_fn(|unit| self.row(gate, unit).iter().zip(seen).map(|(weight, seen)| weight * seen).sum())
    }

    fn row(&self, gate: usize, unit: usize) -> &[f32] {
        &self.weights[gate * GATE + unit * SEEN..][..SEEN]
    }

    /// One step back: adds to the gradient, and says what the state before it is worth.
    fn back(&self, step: &Taken, later: &State, weights: &mut [f32]) -> State {
        let before: State = std::array::from_fn(|at| step.seen[FEATURES + at]);
        let mut hidden = step.seen;
        hidden[FEATURES..].iter_mut().zip(step.reset).for_each(|(state, reset)| *state *= reset);
        let mut earlier: State = std::array::from_fn(|at| later[at] * step.keep[at]);
        let new: State = std::array::from_fn(|at| later[at] * (1.0 - step.keep[at]) * (1.0 - step.new[at].powi(2)));
        let of_hidden = self.through(2, &new, &hidden, weights);
        let slope = |gate: &State, at: usize| gate[at] * (1.0 - gate[at]);
        let keep: State = std::array::from_fn(|at| later[at] * (before[at] - step.new[at]) * slope(&step.keep, at));
        let reset: State = std::array::from_fn(|at| of_hidden[at] * before[at] * slope(&step.reset, at));
        let of_keep = self.through(0, &keep, &step.seen, weights);
        let of_reset = self.through(1, &reset, &step.seen, weights);
        for at in 0..STATE {
            earlier[at] += of_hidden[at] * step.reset[at] + of_keep[at] + of_reset[at];
        }
        earlier
    }

    /// A gate's slopes: added to the gradient of its weights, and told for the state that it saw.
    fn through(&self, gate: usize, slopes: &State, seen: &[f32; SEEN], weights: &mut [f32]) -> State {
        let mut state = [0.0; STATE];
        for (unit, slope) in slopes.iter().enumerate() {
            let row = &mut weights[gate * GATE + unit * SEEN..][..SEEN];
            row.iter_mut().zip(seen).for_each(|(sum, seen)| *sum += slope * seen);
            let of_state = &self.row(gate, unit)[FEATURES..];
            state.iter_mut().zip(of_state).for_each(|(sum, weight)| *sum += slope * weight);
        }
        state
    }
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::series::tests::noise;

    #[test]
    fn the_gradient_is_what_the_loss_rises_by() {
        let mut seed = 131;
        let mut network = Network::new(7);
        network.weights.iter_mut().for_each(|weight| *weight += 0.2 * noise(&mut seed) as f32);
        let rows: Vec<(Features, f32)> = (0..5)
            .map(|_| (std::array::from_fn(|_| noise(&mut seed) as f32), 5.0 * noise(&mut seed) as f32))
            .collect();
        let state: State = std::array::from_fn(|_| noise(&mut seed) as f32);
        let told = network.gradient(&rows, &state);
        // Some of each gate, of both what it sees, and of the lines.
        let places = (0..3).flat_map(|gate| [0, 5, FEATURES + 1, 7 * SEEN + 3, GATE - 1].map(|at| gate * GATE + at));
        for at in places.chain([LINES, LINES + STATE, WEIGHTS - 1]) {
            let moved = |by: f32| {
                let mut other = network.clone();
                other.weights[at] += by;
                f64::from(other.gradient(&rows, &state).loss)
            };
            let rise = (moved(2e-3) - moved(-2e-3)) / 4e-3;
            assert!((rise - f64::from(told.weights[at])).abs() < 2e-3, "weight {at}: {rise} {}", told.weights[at]);
        }
    }

    #[test]
    fn what_is_no_number_is_not_followed() {
        let mut network = Network::new(1);
        let before = network.weights.clone();
        network.follow(&[f32::NAN; WEIGHTS], 1.0);
        network.follow(&[f32::INFINITY; WEIGHTS], 1.0);
        assert_eq!(network.weights, before);
    }
}
