//! Trains a network on recordings, in small pieces that the caller asks for; the same plan and the same corpus give the
//! same weights, in one go or with any number of halts.
//!
//! ```text
//!   training tokens, cut into lanes that are read side by side:
//!     lane 0  ├── stretch ──┼── stretch ──┼ …      one update: the same stretch of each lane forward and back,
//!     lane 1  ├── stretch ──┼── stretch ──┼ …      then one step of Adam
//!   end of an epoch: the loss on what was held out; the best weights are kept;
//!   after `patience` epochs without a better one, or `most_epochs`, it is over
//! ```

use super::adam::Adam;
use super::corpus::Corpus;
use super::gradient::Tape;
use super::network::{Cell, Network, Shape, State, Work};

/// How to train. All of it is part of what makes two runs the same.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    /// Which cell.
    pub cell: Cell,
    /// Units of hidden state.
    pub hidden: usize,
    /// Where the first weights come from.
    pub seed: u64,
    /// How far a weight moves at an update.
    pub rate: f32,
    /// Sequences read side by side.
    pub lanes: usize,
    /// Tokens of one stretch.
    pub stretch: usize,
    /// Epochs at most.
    pub most_epochs: u32,
    /// Epochs without a better loss after which it is over.
    pub patience: u32,
}

impl Plan {
    /// What has done well for all traces that were tried: 32 hidden units, 8 lanes of 32 tokens.
    pub fn new(cell: Cell, seed: u64) -> Plan {
        Plan { cell, hidden: 32, seed, rate: 0.005, lanes: 8, stretch: 32, most_epochs: 12, patience: 2 }
    }
}

/// One epoch, looked back at: nats a token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Epoch {
    /// The mean loss on what was learned from, while it was.
    pub training: f32,
    /// The mean loss on what was held out, afterwards.
    pub held_out: f32,
    /// The share of held-out tokens (the escape is no forecast) that were thought the likeliest.
    pub right: f32,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    /// Epochs that are over.
    pub epochs: u32,
    /// Updates made of this epoch's.
    pub updates: usize,
    /// Updates of an epoch.
    pub of: usize,
    /// True when there is nothing more to do.
    pub over: bool,
}

/// A training under way.
#[derive(Clone, Debug)]
pub struct Trainer {
    pub(super) plan: Plan,
    pub(super) corpus: u64,
    pub(super) network: Network,
    pub(super) best: Network,
    pub(super) adam: Adam,
    pub(super) lanes: Vec<State>,
    pub(super) update: usize,
    /// The loss of this epoch so far, and how many tokens it is of.
    pub(super) so_far: (f32, u32),
    pub(super) curve: Vec<Epoch>,
    tape: Tape,
    gradient: Vec<f32>,
}

/// How a corpus is cut for a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cut {
    lanes: usize,
    /// Tokens of a lane.
    tokens: usize,
    /// Updates of one pass over the corpus.
    pass: usize,
    /// Updates of an epoch: one pass, or as many as it takes for the weights to have moved at all.
    updates: usize,
}

/// Updates of an epoch at least: after fewer, a loss says more of the first weights than of the corpus.
const LEAST_UPDATES: usize = 64;

impl Trainer {
    /// Begins.
    pub fn new(plan: Plan, corpus: &Corpus) -> Trainer {
        let shape = Shape { cell: plan.cell, tokens: corpus.vocabulary.tokens(), hidden: plan.hidden };
        let network = Network::seeded(shape, plan.seed);
        let (weights, start) = (network.values().len(), network.start());
        Trainer {
            plan,
            corpus: corpus.digest(),
            best: network.clone(),
            adam: Adam::new(weights),
            lanes: vec![start; cut(&plan, corpus).lanes],
            update: 0,
            so_far: (0.0, 0),
            curve: Vec::new(),
            tape: Tape::default(),
            gradient: vec![0.0; weights],
            network,
        }
    }

    /// Goes on with parts that a checkpoint kept.
    pub(super) fn resumed(
        (plan, corpus): (Plan, u64),
        (network, best): (Network, Network),
        adam: Adam,
        lanes: Vec<State>,
        (update, so_far, curve): (usize, (f32, u32), Vec<Epoch>),
    ) -> Trainer {
        let (tape, gradient) = (Tape::default(), vec![0.0; network.values().len()]);
        Trainer { plan, corpus, network, best, adam, lanes, update, so_far, curve, tape, gradient }
    }

    /// Makes up to `updates` updates, the end of an epoch among them where it falls. Costs `updates` × lanes × stretch
    /// steps forward and back, and at an epoch's end one step forward for each held-out token.
    pub fn advance(&mut self, corpus: &Corpus, updates: usize) -> Progress {
        let cut = cut(&self.plan, corpus);
        for _ in 0..updates {
            if self.is_over() {
                break;
            }
            if self.update < cut.updates {
                self.learn(corpus, cut);
                self.update += 1;
            }
            if self.update >= cut.updates {
                self.end_epoch(corpus);
            }
        }
        Progress { epochs: self.curve.len() as u32, updates: self.update, of: cut.updates, over: self.is_over() }
    }

    /// The epochs so far.
    pub fn curve(&self) -> &[Epoch] {
        &self.curve
    }

    /// The weights with the least held-out loss so far; the first ones before the first epoch is over.
    pub fn best(&self) -> &Network {
        &self.best
    }

    /// The epoch whose weights are the best.
    pub fn best_epoch(&self) -> Option<Epoch> {
        self.curve.iter().copied().min_by(|a, b| a.held_out.total_cmp(&b.held_out))
    }

    /// How it trains.
    pub fn plan(&self) -> Plan {
        self.plan
    }

    fn is_over(&self) -> bool {
        let best = self.curve.iter().enumerate().min_by(|a, b| a.1.held_out.total_cmp(&b.1.held_out));
        let waited = best.map_or(0, |(at, _)| self.curve.len() - 1 - at);
        self.curve.len() >= self.plan.most_epochs as usize || waited >= self.plan.patience.max(1) as usize
    }

    fn learn(&mut self, corpus: &Corpus, cut: Cut) {
        let at = self.update % cut.pass.max(1);
        if at == 0 {
            let start = self.network.start();
            self.lanes.iter_mut().for_each(|lane| lane.copy_from(&start));
        }
        self.gradient.fill(0.0);
        let scale = 1.0 / (cut.lanes * self.plan.stretch.max(1)) as f32;
        for (lane, state) in self.lanes.iter_mut().enumerate() {
            let from = lane * cut.tokens + at * self.plan.stretch.max(1);
            let to = (from + self.plan.stretch.max(1) + 1).min((lane + 1) * cut.tokens);
            let tokens = &corpus.training[from..to];
            let loss = self.tape.learn(&self.network, tokens, state, scale, &mut self.gradient);
            self.so_far.0 += loss;
            self.so_far.1 += tokens.len().saturating_sub(1) as u32;
        }
        self.adam.follow(self.network.values_mut(), &self.gradient, self.plan.rate);
    }

    fn end_epoch(&mut self, corpus: &Corpus) {
        let (held_out, right) = judge(&self.network, &corpus.held_out);
        let better = self.curve.iter().all(|epoch| held_out < epoch.held_out);
        if better {
            self.best = self.network.clone();
        }
        // A loss that overflowed is told as the largest there is: files have no word for infinity.
        let training = (self.so_far.0 / self.so_far.1.max(1) as f32).min(f32::MAX);
        self.curve.push(Epoch { training, held_out, right });
        (self.update, self.so_far) = (0, (0.0, 0));
    }
}

/// The mean loss of `network` on `tokens` in nats, and the share that it had thought the likeliest. A chance that is no
/// number counts as none, so the loss is always finite.
pub fn judge(network: &Network, tokens: &[u16]) -> (f32, f32) {
    let (mut state, mut work) = (network.start(), Work::default());
    let (mut loss, mut right) = (0.0f64, 0u32);
    for pair in tokens.windows(2) {
        network.read(pair[0], &mut state, &mut work);
        let chances = network.chances(&state, &mut work);
        let next = usize::from(pair[1]);
        let chance = chances.get(next).copied().unwrap_or(0.0);
        loss -= f64::from(chance.max(1e-9)).ln();
        right += u32::from(next != 0 && chances.iter().all(|other| *other <= chance));
    }
    let all = tokens.len().saturating_sub(1).max(1);
    ((loss / all as f64) as f32, right as f32 / all as f32)
}

/// Lanes of at least two stretches each; fewer lanes for a short corpus.
fn cut(plan: &Plan, corpus: &Corpus) -> Cut {
    let stretch = plan.stretch.max(1);
    let lanes = (corpus.training.len() / (2 * stretch)).clamp(1, plan.lanes.clamp(1, 64));
    let tokens = corpus.training.len() / lanes;
    let pass = tokens.saturating_sub(1).div_ceil(stretch);
    let passes = if pass == 0 { 0 } else { LEAST_UPDATES.div_ceil(pass) };
    Cut { lanes, tokens, pass, updates: pass * passes }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::UnitIndex;
    use crate::sequence::dice::Dice;

    /// A path whose steps repeat with a period of five: order two foretells all of it, counting nothing.
    fn path(steps: usize) -> Vec<UnitIndex> {
        let mut at = 1000u32;
        let next = |n: usize| {
            at = at.wrapping_add_signed([3, 3, -2, 9, -13][n % 5]);
            UnitIndex(at)
        };
        (0..steps).map(next).collect()
    }

    fn plan(cell: Cell) -> Plan {
        Plan { hidden: 8, rate: 0.02, lanes: 4, stretch: 16, most_epochs: 6, ..Plan::new(cell, 1) }
    }

    fn trained(plan: Plan, corpus: &Corpus) -> Trainer {
        let mut trainer = Trainer::new(plan, corpus);
        while !trainer.advance(corpus, 50).over {}
        trainer
    }

    #[test]
    fn what_has_an_order_is_learned() {
        let corpus = Corpus::of(&[path(3000)], 16, 0.2);
        for cell in [Cell::Gru, Cell::Lstm] {
            let trainer = trained(plan(cell), &corpus);
            let best = trainer.best_epoch().unwrap();
            assert!(best.held_out < 0.2 && best.right > 0.95, "{cell:?}: {:?}", trainer.curve());
            assert!(corpus.plain_loss() > 1.0);
            assert_eq!(judge(trainer.best(), &corpus.held_out), (best.held_out, best.right));
        }
    }

    #[test]
    fn what_was_shuffled_is_not_learned() {
        let mut corpus = Corpus::of(&[path(3000)], 16, 0.2);
        Dice(5).shuffle(&mut corpus.training);
        Dice(6).shuffle(&mut corpus.held_out);
        let best = trained(plan(Cell::Gru), &corpus).best_epoch().unwrap();
        assert!(best.held_out > corpus.plain_loss() * 0.98, "{best:?} {}", corpus.plain_loss());
    }

    #[test]
    fn the_same_seed_gives_the_same_weights_and_another_others() {
        let corpus = Corpus::of(&[path(600)], 16, 0.2);
        let weights = |seed| trained(Plan { seed, most_epochs: 2, ..plan(Cell::Lstm) }, &corpus).network;
        assert_eq!(weights(4), weights(4));
        assert_ne!(weights(4), weights(5));
    }

    #[test]
    fn short_and_empty_corpora_come_to_an_end() {
        for steps in [0, 1, 2, 3, 20, 40] {
            let corpus = Corpus::of(&[path(steps)], 16, 0.2);
            let trainer = trained(plan(Cell::Gru), &corpus);
            assert!(trainer.curve().iter().all(|epoch| epoch.held_out.is_finite()), "{steps}");
        }
    }
}
