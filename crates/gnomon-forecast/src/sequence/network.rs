//! One small recurrent network over tokens: a GRU or an LSTM cell, with one layout of weights for both, which serves the
//! step forward, the way back ([`super::gradient`]) and the file ([`super::weights`]) alike.
//!
//! ```text
//!   token ──input──► gates ◄──recurrent + bias── hidden state
//!                      │
//!                      ▼
//!                 hidden state ──output + output_bias──► a score for each token
//! ```
//! The input is one token of many, so "weights times input" is a row of a table: the row is what the token adds to the
//! gates. Where several are read together (a place and an hour), their rows are added. All tables are stored by what comes
//! in (row) and what goes out (columns beside each other), so that the step forward adds rows and never jumps.
//!
//! | part | rows | columns |
//! |---|---|---|
//! | input | tokens | gates × hidden |
//! | recurrent | hidden | gates × hidden |
//! | bias | 1 | gates × hidden |
//! | output | hidden | tokens |
//! | output_bias | 1 | tokens |
//!
//! Source: Cho et al. (2014) for the GRU, in the form that computes the candidate's recurrent part before the reset gate
//! (three gates r, z, n); Hochreiter and Schmidhuber (1997) with the forget gate of Gers et al. (2000) for the LSTM (four
//! gates i, f, g, o).

use std::ops::Range;

use super::dice::Dice;
use super::math::{axpy, sigmoid, softmax, tanh};
use super::vocabulary::MAX_TOKENS;

/// Which cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cell {
    /// Gated recurrent unit: one state, three gates.
    Gru,
    /// Long short-term memory: two states, four gates.
    Lstm,
}

impl Cell {
    /// Its name in tables and files.
    pub fn name(self) -> &'static str {
        match self {
            Cell::Gru => "gru",
            Cell::Lstm => "lstm",
        }
    }

    /// The cell of that name.
    pub fn named(name: &str) -> Option<Cell> {
        [Cell::Gru, Cell::Lstm].into_iter().find(|cell| cell.name() == name)
    }

    /// How many gates it has.
    pub fn gates(self) -> usize {
        match self {
            Cell::Gru => 3,
            Cell::Lstm => 4,
        }
    }
}

/// Units of hidden state at most: a step of 128 costs some 20 µs, more than any forecast of a read is worth.
pub const MAX_HIDDEN: usize = 128;

/// How large a network is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Which cell.
    pub cell: Cell,
    /// Tokens, 1 to [`MAX_TOKENS`].
    pub tokens: usize,
    /// Units of hidden state, 1 to [`MAX_HIDDEN`].
    pub hidden: usize,
}

/// The five parts of the weights, in the order in which they are stored.
pub const PARTS: [&str; 5] = ["input", "recurrent", "bias", "output", "output_bias"];

impl Shape {
    /// This shape, with its sizes brought within their bounds.
    pub fn bounded(self) -> Shape {
        Shape { tokens: self.tokens.clamp(1, MAX_TOKENS), hidden: self.hidden.clamp(1, MAX_HIDDEN), ..self }
    }

    /// Columns of the gates.
    pub fn gates(self) -> usize {
        self.cell.gates() * self.hidden
    }

    /// Rows and columns of each of `PARTS`.
    pub fn sizes(self) -> [(usize, usize); 5] {
        let Shape { tokens, hidden, .. } = self;
        [(tokens, self.gates()), (hidden, self.gates()), (1, self.gates()), (hidden, tokens), (1, tokens)]
    }

    /// Where each of `PARTS` lies among all weights.
    pub fn ranges(self) -> [Range<usize>; 5] {
        let mut from = 0;
        self.sizes().map(|(rows, columns)| {
            let range = from..from + rows * columns;
            from = range.end;
            range
        })
    }

    /// How many weights there are.
    pub fn weights(self) -> usize {
        self.sizes().iter().map(|(rows, columns)| rows * columns).sum()
    }
}

/// The weights of one network. They may be anything, not a number included: what they forecast is then worthless, and
/// found to be.
#[derive(Clone, Debug, PartialEq)]
pub struct Network {
    shape: Shape,
    values: Vec<f32>,
}

/// The parts of some weights, or of their gradient.
pub(super) struct Parts<'a> {
    pub(super) input: &'a [f32],
    pub(super) recurrent: &'a [f32],
    pub(super) bias: &'a [f32],
    pub(super) output: &'a [f32],
    pub(super) output_bias: &'a [f32],
}

impl Network {
    /// Weights that a seed repeats, each even within 1/√hidden; nothing is forecast yet.
    pub fn seeded(shape: Shape, seed: u64) -> Network {
        let shape = shape.bounded();
        let (mut dice, reach) = (Dice(seed), 1.0 / (shape.hidden as f32).sqrt());
        Network { shape, values: (0..shape.weights()).map(|_| dice.even() * reach).collect() }
    }

    /// The same, of which the output says nothing yet: what is known otherwise stands until something is learned.
    pub(crate) fn silent(shape: Shape, seed: u64) -> Network {
        let mut network = Network::seeded(shape, seed);
        let [.., output, _] = network.shape.ranges();
        network.values[output.start..].fill(0.0);
        network
    }

    /// Weights that come from elsewhere; none if they are not as many as the shape has, or the shape is out of bounds.
    pub fn of(shape: Shape, values: Vec<f32>) -> Option<Network> {
        (shape == shape.bounded() && values.len() == shape.weights()).then_some(Network { shape, values })
    }

    /// How large it is.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// All weights, part after part.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    pub(crate) fn values_mut(&mut self) -> &mut [f32] {
        &mut self.values
    }

    pub(super) fn parts(&self) -> Parts<'_> {
        let [input, recurrent, bias, output, output_bias] = self.shape.ranges().map(|range| &self.values[range]);
        Parts { input, recurrent, bias, output, output_bias }
    }

    /// The state before anything was read.
    pub fn start(&self) -> State {
        State { hidden: vec![0.0; self.shape.hidden], memory: vec![0.0; self.shape.hidden] }
    }

    /// Reads one token: the state goes on. Unknown tokens are read as the escape. Nothing is allocated.
    pub fn read(&self, token: u16, state: &mut State, work: &mut Work) {
        self.read_together(&[token], state, work);
    }

    /// Reads tokens that come together, in one step.
    pub(crate) fn read_together(&self, tokens: &[u16], state: &mut State, work: &mut Work) {
        self.gates(&state.hidden, &mut work.gates);
        self.input(tokens, &mut work.input);
        match self.shape.cell {
            Cell::Gru => gru(&work.input, &mut work.gates, state),
            Cell::Lstm => lstm(&work.input, &mut work.gates, state),
        }
    }

    /// How likely each token is to come next.
    pub fn chances<'w>(&self, state: &State, work: &'w mut Work) -> &'w [f32] {
        self.chances_over(&[], state, work)
    }

    /// The same, over what is known of each token otherwise: the logarithm of its weight, which the network's score is
    /// added to. Tokens that `known` does not reach have the weight one.
    pub(crate) fn chances_over<'w>(&self, known: &[f32], state: &State, work: &'w mut Work) -> &'w [f32] {
        self.scores(known, state, &mut work.scores);
        softmax(&mut work.scores);
        &work.scores
    }

    /// What the hidden state, and what is known otherwise, say for each token.
    pub(super) fn scores(&self, known: &[f32], state: &State, scores: &mut Vec<f32>) {
        let parts = self.parts();
        scores.clear();
        scores.extend_from_slice(parts.output_bias);
        axpy(scores, 1.0, known);
        for (unit, value) in state.hidden.iter().enumerate() {
            axpy(scores, *value, row(parts.output, unit, self.shape.tokens));
        }
    }

    /// This token, if the network has one of its number; else the escape.
    pub(super) fn known(&self, token: u16) -> u16 {
        if usize::from(token) < self.shape.tokens { token } else { 0 }
    }

    /// What tokens that come together add to the gates.
    pub(super) fn input(&self, tokens: &[u16], input: &mut Vec<f32>) {
        let table = self.parts().input;
        input.clear();
        input.resize(self.shape.gates(), 0.0);
        for token in tokens {
            axpy(input, 1.0, row(table, usize::from(self.known(*token)), self.shape.gates()));
        }
    }

    /// What the hidden state adds to the gates.
    pub(super) fn gates(&self, hidden: &[f32], gates: &mut Vec<f32>) {
        let parts = self.parts();
        gates.clear();
        gates.extend_from_slice(parts.bias);
        for (unit, value) in hidden.iter().enumerate() {
            axpy(gates, *value, row(parts.recurrent, unit, self.shape.gates()));
        }
    }

    /// Bytes of the weights.
    pub fn bytes(&self) -> usize {
        self.values.len() * size_of::<f32>()
    }
}

/// What a network remembers of what it has read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    pub(super) hidden: Vec<f32>,
    /// The cell state of an LSTM; unused by a GRU.
    pub(super) memory: Vec<f32>,
}

impl State {
    /// Takes over another state without allocating.
    pub fn copy_from(&mut self, other: &State) {
        self.hidden.clone_from(&other.hidden);
        self.memory.clone_from(&other.memory);
    }
}

/// Room for the intermediate values of a step, used again and again.
#[derive(Clone, Debug, Default)]
pub struct Work {
    pub(super) input: Vec<f32>,
    pub(super) gates: Vec<f32>,
    pub(super) scores: Vec<f32>,
}

/// Row `at` of a table of `columns`.
pub(super) fn row(table: &[f32], at: usize, columns: usize) -> &[f32] {
    &table[at * columns..(at + 1) * columns]
}

/// r and z from the sums, n from the input and the reset part; h' = (1 − z) n + z h. Leaves r, z, n in `gates`.
pub(super) fn gru(input: &[f32], gates: &mut [f32], state: &mut State) {
    let hidden = state.hidden.len();
    for unit in 0..hidden {
        let (r, z, n) = (unit, hidden + unit, 2 * hidden + unit);
        gates[r] = sigmoid(gates[r] + input[r]);
        gates[z] = sigmoid(gates[z] + input[z]);
        gates[n] = tanh(input[n] + gates[r] * gates[n]);
        state.hidden[unit] = (1.0 - gates[z]) * gates[n] + gates[z] * state.hidden[unit];
    }
}

/// c' = f c + i g, h' = o tanh c'. Leaves i, f, g, o in `gates`.
pub(super) fn lstm(input: &[f32], gates: &mut [f32], state: &mut State) {
    let hidden = state.hidden.len();
    for unit in 0..hidden {
        let [i, f, g, o] = [0, 1, 2, 3].map(|gate| gate * hidden + unit);
        for gate in [i, f, o] {
            gates[gate] = sigmoid(gates[gate] + input[gate]);
        }
        gates[g] = tanh(gates[g] + input[g]);
        state.memory[unit] = gates[f] * state.memory[unit] + gates[i] * gates[g];
        state.hidden[unit] = gates[o] * tanh(state.memory[unit]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(cell: Cell) -> Shape {
        Shape { cell, tokens: 5, hidden: 3 }
    }

    #[test]
    fn one_step_is_the_textbooks() {
        // One hidden unit and one token: the sums can be written down.
        for (cell, values, expected) in [
            // input r,z,n; recurrent r,z,n; bias r,z,n; output; output_bias
            (Cell::Gru, vec![0.5, -0.5, 1.0, 0.0, 0.0, 0.0, 0.1, 0.2, 0.3, 1.0, 0.0], {
                let (r, z) = (sigmoid(0.6), sigmoid(-0.3));
                (1.0 - z) * tanh(1.0 + r * 0.3)
            }),
            (Cell::Lstm, vec![0.5, -0.5, 1.0, 0.2, 0.0, 0.0, 0.0, 0.0, 0.1, 0.2, 0.3, 0.4, 1.0, 0.0], {
                sigmoid(0.6) * tanh(sigmoid(0.6) * tanh(1.3))
            }),
        ] {
            let network = Network::of(Shape { cell, tokens: 1, hidden: 1 }, values).unwrap();
            let (mut state, mut work) = (network.start(), Work::default());
            network.read(0, &mut state, &mut work);
            assert!((state.hidden[0] - expected).abs() < 1e-6, "{cell:?}: {state:?} {expected}");
        }
    }

    #[test]
    fn chances_are_chances_and_the_same_seed_gives_the_same() {
        for cell in [Cell::Gru, Cell::Lstm] {
            let tell = |seed| {
                let network = Network::seeded(shape(cell), seed);
                let (mut state, mut work) = (network.start(), Work::default());
                [1u16, 2, 999, 4].into_iter().for_each(|token| network.read(token, &mut state, &mut work));
                network.chances(&state, &mut work).to_vec()
            };
            assert!((tell(1).iter().sum::<f32>() - 1.0).abs() < 1e-5);
            assert_eq!(tell(1), tell(1));
            assert_ne!(tell(1), tell(2));
        }
    }

    #[test]
    fn shapes_are_bounded_and_ranges_cover_all() {
        let huge = Shape { cell: Cell::Lstm, tokens: usize::MAX, hidden: 0 }.bounded();
        assert_eq!((huge.tokens, huge.hidden), (MAX_TOKENS, 1));
        for cell in [Cell::Gru, Cell::Lstm] {
            let shape = shape(cell);
            assert_eq!(shape.ranges()[4].end, shape.weights());
            assert_eq!(Network::of(shape, vec![0.0; shape.weights() + 1]), None);
            assert_eq!(Network::of(Shape { hidden: 0, ..shape }, Vec::new()), None);
            assert_eq!(Cell::named(cell.name()), Some(cell));
        }
    }
}
