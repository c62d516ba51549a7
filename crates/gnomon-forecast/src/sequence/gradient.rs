//! The way back: how the loss over a stretch of tokens changes with each weight.
//!
//! A [`Tape`] keeps what the steps forward computed; the way back walks it from its end. What was learned before the
//! stretch is taken as given (truncated backpropagation through time).
//!
//! Source: Werbos, "Backpropagation through time" (1990); Williams and Peng (1990) for the truncation.

use super::math::{axpy, dot, softmax};
use super::network::{Cell, Network, State, gru, lstm};

/// One step, as it was computed.
#[derive(Clone, Debug, Default)]
struct Step {
    /// What was read, of the network's tokens.
    tokens: Vec<u16>,
    /// What came next, where that was to be foretold.
    target: Option<u16>,
    input: Vec<f32>,
    before: State,
    after: State,
    /// The gates as they are left by the cell.
    gates: Vec<f32>,
    /// GRU: the recurrent part of the candidate, before the reset gate took its share.
    candidate: Vec<f32>,
    chances: Vec<f32>,
}

/// The steps of one stretch. Its memory is used again.
#[derive(Clone, Debug, Default)]
pub struct Tape {
    steps: Vec<Step>,
    used: usize,
    back: Back,
}

/// What is carried from step to step on the way back.
#[derive(Clone, Debug, Default)]
struct Back {
    hidden: Vec<f32>,
    memory: Vec<f32>,
    /// By the gates' sums, as the input sees them and as the recurrent part sees them.
    by_input: Vec<f32>,
    by_recurrent: Vec<f32>,
}

/// The parts of a gradient.
struct PartsMut<'a> {
    input: &'a mut [f32],
    recurrent: &'a mut [f32],
    bias: &'a mut [f32],
    output: &'a mut [f32],
    output_bias: &'a mut [f32],
}

impl Tape {
    /// Reads `tokens` from `state` on, each foretelling the next, adds the loss's gradient to `gradient` (as long as the
    /// weights, scaled by `scale`), and returns the sum of the losses in nats. `state` ends where the tokens end. Fewer
    /// than two tokens teach nothing.
    pub fn learn(
        &mut self,
        network: &Network,
        tokens: &[u16],
        state: &mut State,
        scale: f32,
        gradient: &mut [f32],
    ) -> f32 {
        self.used = 0;
        let mut loss = 0.0;
        for pair in tokens.windows(2) {
            self.forward(network, &pair[..1], state);
            loss += self.foretell(network, pair[1], &[], state);
        }
        self.backward(network, scale, gradient);
        loss
    }

    /// The same for steps of tokens that come together, of which only what comes after the last is to be foretold, over
    /// what is `known` of it otherwise (see [`Network::chances_over`]). No steps teach nothing.
    pub(crate) fn learn_last(
        &mut self,
        network: &Network,
        steps: &[impl AsRef<[u16]>],
        (target, known): (u16, &[f32]),
        scale: f32,
        gradient: &mut [f32],
    ) -> f32 {
        let mut state = network.start();
        self.used = 0;
        steps.iter().for_each(|tokens| self.forward(network, tokens.as_ref(), &mut state));
        let loss = self.foretell(network, target, known, &state);
        self.backward(network, scale, gradient);
        loss
    }

    /// One step, of which nothing is to be foretold yet.
    fn forward(&mut self, network: &Network, tokens: &[u16], state: &mut State) {
        if self.used == self.steps.len() {
            self.steps.push(Step::default());
        }
        let step = &mut self.steps[self.used];
        self.used += 1;
        step.tokens.clear();
        // Tokens come from a vocabulary of the network's size; a foreign one is the escape, as in a step alone.
        step.tokens.extend(tokens.iter().map(|token| network.known(*token)));
        step.target = None;
        step.before.copy_from(state);
        network.gates(&state.hidden, &mut step.gates);
        network.input(&step.tokens, &mut step.input);
        match network.shape().cell {
            Cell::Gru => {
                step.candidate.clear();
                step.candidate.extend_from_slice(&step.gates[2 * state.hidden.len()..]);
                gru(&step.input, &mut step.gates, state);
            }
            Cell::Lstm => lstm(&step.input, &mut step.gates, state),
        }
        step.after.copy_from(state);
    }

    /// What the last step says of what came next: the loss, in nats.
    fn foretell(&mut self, network: &Network, target: u16, known: &[f32], state: &State) -> f32 {
        let Some(step) = self.steps[..self.used].last_mut() else { return 0.0 };
        let target = network.known(target);
        step.target = Some(target);
        network.scores(known, state, &mut step.chances);
        let score = step.chances[usize::from(target)];
        softmax(&mut step.chances) - score
    }

    fn backward(&mut self, network: &Network, scale: f32, gradient: &mut [f32]) {
        let (shape, parts) = (network.shape(), network.parts());
        let into = split(network, gradient);
        let back = &mut self.back;
        back.reset(shape.hidden, shape.gates());
        for step in self.steps[..self.used].iter_mut().rev() {
            back.output(step, parts.output, (&mut *into.output, &mut *into.output_bias), scale);
            match shape.cell {
                Cell::Gru => back.gru(step),
                Cell::Lstm => back.lstm(step),
            }
            for token in &step.tokens {
                let columns = usize::from(*token) * shape.gates()..(usize::from(*token) + 1) * shape.gates();
                axpy(&mut into.input[columns], 1.0, &back.by_input);
            }
            axpy(into.bias, 1.0, &back.by_recurrent);
            for (unit, value) in step.before.hidden.iter().enumerate() {
                let columns = unit * shape.gates()..(unit + 1) * shape.gates();
                axpy(&mut into.recurrent[columns.clone()], *value, &back.by_recurrent);
                back.hidden[unit] += dot(&parts.recurrent[columns], &back.by_recurrent);
            }
        }
    }
}

impl Back {
    fn reset(&mut self, hidden: usize, gates: usize) {
        for (vector, len) in [
            (&mut self.hidden, hidden),
            (&mut self.memory, hidden),
            (&mut self.by_input, gates),
            (&mut self.by_recurrent, gates),
        ] {
            vector.clear();
            vector.resize(len, 0.0);
        }
    }

    /// What a step that was to foretell something says about the output's weights, and about the hidden state after it.
    fn output(&mut self, step: &mut Step, weights: &[f32], (output, bias): (&mut [f32], &mut [f32]), scale: f32) {
        let Some(target) = step.target else { return };
        // The softmax and the cross-entropy together: chances minus truth.
        step.chances[usize::from(target)] -= 1.0;
        step.chances.iter_mut().for_each(|chance| *chance *= scale);
        axpy(bias, 1.0, &step.chances);
        let tokens = step.chances.len();
        for (unit, value) in step.after.hidden.iter().enumerate() {
            let columns = unit * tokens..(unit + 1) * tokens;
            axpy(&mut output[columns.clone()], *value, &step.chances);
            self.hidden[unit] += dot(&weights[columns], &step.chances);
        }
    }

    /// From the gradient by the hidden state after the step to that by its gates, and by the state before it as far as
    /// the state itself carries it.
    fn gru(&mut self, step: &Step) {
        let hidden = self.hidden.len();
        for unit in 0..hidden {
            let [r, z, n] = [0, 1, 2].map(|gate| gate * hidden + unit);
            let (reset, keep, new) = (step.gates[r], step.gates[z], step.gates[n]);
            let by_hidden = self.hidden[unit];
            let by_new = by_hidden * (1.0 - keep) * (1.0 - new * new);
            self.by_input[n] = by_new;
            self.by_recurrent[n] = by_new * reset;
            let by_keep = by_hidden * (step.before.hidden[unit] - new) * keep * (1.0 - keep);
            let by_reset = by_new * step.candidate[unit] * reset * (1.0 - reset);
            (self.by_input[z], self.by_recurrent[z]) = (by_keep, by_keep);
            (self.by_input[r], self.by_recurrent[r]) = (by_reset, by_reset);
            self.hidden[unit] = by_hidden * keep;
        }
    }

    fn lstm(&mut self, step: &Step) {
        let hidden = self.hidden.len();
        for unit in 0..hidden {
            let at = [0, 1, 2, 3].map(|gate| gate * hidden + unit);
            let [input, forget, new, out] = at.map(|gate| step.gates[gate]);
            let told = super::math::tanh(step.after.memory[unit]);
            let by_hidden = self.hidden[unit];
            let by_memory = self.memory[unit] + by_hidden * out * (1.0 - told * told);
            let by_gates = [
                by_memory * new * input * (1.0 - input),
                by_memory * step.before.memory[unit] * forget * (1.0 - forget),
                by_memory * input * (1.0 - new * new),
                by_hidden * told * out * (1.0 - out),
            ];
            for (gate, by) in at.into_iter().zip(by_gates) {
                (self.by_input[gate], self.by_recurrent[gate]) = (by, by);
            }
            self.memory[unit] = by_memory * forget;
            self.hidden[unit] = 0.0;
        }
    }
}

fn split<'a>(network: &Network, gradient: &'a mut [f32]) -> PartsMut<'a> {
    let [input, recurrent, bias, output, _] = network.shape().ranges().map(|range| range.len());
    let (input, rest) = gradient.split_at_mut(input);
    let (recurrent, rest) = rest.split_at_mut(recurrent);
    let (bias, rest) = rest.split_at_mut(bias);
    let (output, output_bias) = rest.split_at_mut(output);
    PartsMut { input, recurrent, bias, output, output_bias }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sequence::network::{Shape, Work};

    type Learn = fn(&Network, &mut [f32]) -> f32;

    const TOKENS: [u16; 9] = [1, 3, 2, 2, 0, 4, 1, 3, 2];

    /// Token by token, each foretelling the next.
    fn each(network: &Network, gradient: &mut [f32]) -> f32 {
        Tape::default().learn(network, &TOKENS, &mut network.start(), 1.0, gradient)
    }

    /// Three tokens together, one of them twice, of which the last three foretell one, over what is known otherwise.
    fn last(network: &Network, gradient: &mut [f32]) -> f32 {
        let steps: Vec<&[u16]> = vec![&TOKENS[..3], &TOKENS[2..5], &TOKENS[5..8], &TOKENS[1..4]];
        Tape::default().learn_last(network, &steps, (3, &[-0.5, -1.0, 0.7, -2.0]), 1.0, gradient)
    }

    /// The gradient is what a small change of each weight does to the loss. In floats of 32 bits a change of 1/256 is
    /// a compromise of what it leaves out (its square) and of rounding.
    #[test]
    fn each_weight_has_the_slope_that_is_measured() {
        for (cell, learn) in
            [Cell::Gru, Cell::Lstm].into_iter().flat_map(|cell| [(cell, each as Learn), (cell, last)])
        {
            let network = Network::seeded(Shape { cell, tokens: 5, hidden: 4 }, 3);
            let mut gradient = vec![0.0; network.values().len()];
            learn(&network, &mut gradient);
            let most = gradient.iter().fold(0.0f32, |most, by| most.max(by.abs()));
            assert!(most > 0.1, "{cell:?} learns nothing");
            for (at, slope) in gradient.iter().enumerate() {
                let moved = |by: f32| {
                    let mut moved = network.clone();
                    moved.values_mut()[at] += by;
                    f64::from(learn(&moved, &mut vec![0.0; gradient.len()]))
                };
                const STEP: f32 = 1.0 / 256.0;
                let measured = (moved(STEP) - moved(-STEP)) / (2.0 * f64::from(STEP));
                let off = (measured - f64::from(*slope)).abs();
                assert!(off < 2e-3, "{cell:?}: weight {at} has {slope} and should have {measured}");
            }
        }
    }

    #[test]
    fn what_is_known_otherwise_stands_until_something_is_learned() {
        let network = Network::silent(Shape { cell: Cell::Gru, tokens: 4, hidden: 3 }, 3);
        let (mut state, mut work) = (network.start(), Work::default());
        network.read_together(&[1, 2], &mut state, &mut work);
        let known = [0.5f32, 0.25, 0.25, 0.0].map(f32::ln);
        let told = network.chances_over(&known, &state, &mut work);
        assert!(told.iter().zip([0.5, 0.25, 0.25, 0.0]).all(|(told, known)| (told - known).abs() < 1e-6), "{told:?}");
        let mut gradient = vec![0.0; network.values().len()];
        assert_eq!(
            Tape::default().learn_last(&network, &[[]; 0] as &[[u16; 0]], (1, &known), 1.0, &mut gradient),
            0.0
        );
        assert!(gradient.iter().all(|slope| *slope == 0.0));
    }

    #[test]
    fn a_stretch_ends_where_steps_alone_end() {
        let network = Network::seeded(Shape { cell: Cell::Gru, tokens: 5, hidden: 4 }, 3);
        let (mut alone, mut work) = (network.start(), Work::default());
        TOKENS[..8].iter().for_each(|token| network.read(*token, &mut alone, &mut work));
        let (mut state, mut gradient) = (network.start(), vec![0.0; network.values().len()]);
        Tape::default().learn(&network, &TOKENS, &mut state, 1.0, &mut gradient);
        assert_eq!(state, alone);
        let before = gradient.clone();
        assert_eq!(Tape::default().learn(&network, &TOKENS[..1], &mut state, 1.0, &mut gradient), 0.0);
        assert_eq!(gradient, before);
    }
}
