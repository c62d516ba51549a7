//! The same weights in gnomon's GRU and in candle's: the same outputs within 1e-5, and the tokens each reads in a second.
//!
//! Prints JSON; fails when outputs differ. `RAYON_NUM_THREADS=1` holds candle to the one thread that ours has (`cargo xtask
//! crosscheck` sets it). What is timed is a step and the chances after it, one token at a time, as a running guest has them;
//! candle's layer multiplies by a vector of zeros and a one where ours looks up a row.

use std::{collections::HashMap, process::ExitCode, time::Instant};

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{
    VarBuilder,
    ops::softmax_last_dim,
    rnn::{GRU, GRUConfig, GRUState, RNN, gru},
};
use gnomon_forecast::sequence::{Cell, Dice, Network, Shape, Work, shipped};

/// Tokens that are read.
const TOKENS: usize = 20_000;
/// What two ways of adding up floats may differ by.
const CLOSE: f32 = 1e-5;

fn main() -> ExitCode {
    let seeded = Network::seeded(Shape { cell: Cell::Gru, tokens: 128, hidden: 32 }, 1);
    let networks = [("shipped", shipped().network), ("seeded, 32 of 128", seeded)];
    let mut all_close = true;
    for (name, network) in networks {
        match compare(name, &network) {
            Ok(is_close) => all_close &= is_close,
            Err(error) => {
                eprintln!("{name}: {error}");
                all_close = false;
            }
        }
    }
    if all_close { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn compare(name: &str, network: &Network) -> Result<bool> {
    let mut dice = Dice(7);
    let tokens: Vec<u16> = (0..TOKENS).map(|_| dice.below(network.shape().tokens) as u16).collect();
    let begun = Instant::now();
    let ours = said(network, &tokens);
    let our_rate = TOKENS as f64 / begun.elapsed().as_secs_f64();
    let theirs = Theirs::of(network)?;
    let begun = Instant::now();
    let said = theirs.said(&tokens)?;
    let their_rate = TOKENS as f64 / begun.elapsed().as_secs_f64();
    let difference = ours.iter().zip(&said).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    let is_close = ours.len() == said.len() && difference <= CLOSE;
    println!(
        "{{\"network\":\"{name}\",\"largest_difference\":{difference:e},\"close\":{is_close},\
         \"tokens_per_s\":{our_rate:.0},\"candle_tokens_per_s\":{their_rate:.0}}}"
    );
    Ok(is_close)
}

/// Our chances of each token, after each token.
fn said(network: &Network, tokens: &[u16]) -> Vec<f32> {
    let (mut state, mut work, mut all) = (network.start(), Work::default(), Vec::new());
    for token in tokens {
        network.read(*token, &mut state, &mut work);
        all.extend_from_slice(network.chances(&state, &mut work));
    }
    all
}

/// The same network in candle.
struct Theirs {
    layer: GRU,
    output: Tensor,
    output_bias: Tensor,
    /// A row for each token: zeros and a one.
    inputs: Vec<Tensor>,
}

impl Theirs {
    /// Our tables have a row for what comes in; candle's weights a row for what goes out. Our one bias is what candle adds
    /// to the recurrent side.
    fn of(network: &Network) -> Result<Theirs> {
        let (shape, device) = (network.shape(), Device::Cpu);
        let [input, recurrent, bias, output, output_bias] = shape.ranges().map(|range| &network.values()[range]);
        let table = |values: &[f32], rows: usize| Tensor::from_slice(values, (rows, values.len() / rows), &device);
        let flat = |values: &[f32]| Tensor::from_slice(values, values.len(), &device);
        let tensors = HashMap::from([
            ("weight_ih_l0".to_owned(), table(input, shape.tokens)?.t()?.contiguous()?),
            ("weight_hh_l0".to_owned(), table(recurrent, shape.hidden)?.t()?.contiguous()?),
            ("bias_ih_l0".to_owned(), Tensor::zeros(shape.gates(), DType::F32, &device)?),
            ("bias_hh_l0".to_owned(), flat(bias)?),
        ]);
        let weights = VarBuilder::from_tensors(tensors, DType::F32, &device);
        let layer = gru(shape.tokens, shape.hidden, GRUConfig::default(), weights)?;
        let one = |token: usize| {
            let row: Vec<f32> = (0..shape.tokens).map(|at| f32::from(u8::from(at == token))).collect();
            Tensor::from_slice(&row, (1, shape.tokens), &device)
        };
        let inputs = (0..shape.tokens).map(one).collect::<Result<_>>()?;
        Ok(Theirs { layer, output: table(output, shape.hidden)?, output_bias: table(output_bias, 1)?, inputs })
    }

    fn said(&self, tokens: &[u16]) -> Result<Vec<f32>> {
        let (mut state, mut all): (GRUState, Vec<f32>) = (self.layer.zero_state(1)?, Vec::new());
        for token in tokens {
            state = self.layer.step(&self.inputs[usize::from(*token)], &state)?;
            let scores = (state.h().matmul(&self.output)? + &self.output_bias)?;
            all.extend(softmax_last_dim(&scores)?.flatten_all()?.to_vec1::<f32>()?);
        }
        Ok(all)
    }
}
