//! A small recurrent network over the recent past, with an answer for each level.

use std::collections::VecDeque;

use super::{
    LEVELS, SeriesForecaster, Step, between,
    gru_cell::{Gradient, Network, STATE, State},
    lags::{FEATURES, Features, Lags},
    rows::{Past, Taught, at_distance, distances},
    tree::{Row, fine},
};

/// Steps that are learned from at once, through which a gradient is followed.
const STRETCH: usize = 12;
/// Stretches that are learned again for each new one, and how many rows there are to choose from.
const AGAIN: usize = 3;
const ROWS: usize = 2016;
/// Stretches without which it says nothing: what it says before is what it began with.
const ENOUGH: u32 = 24;
/// The longest gradient that is followed whole.
const LONGEST: f32 = 5.0;

/// One distance.
#[derive(Clone, Debug)]
struct Head {
    ahead: usize,
    network: Network,
    /// What it has seen up to now, and up to the first row that was not learned from.
    now: State,
    learned: State,
    rows: VecDeque<Row>,
    fresh: usize,
    stretches: u32,
    dice: u64,
}

/// A gated recurrent unit of 12 numbers that sees what the other learned models see and keeps what it finds of use. It
/// learns in [`SeriesForecaster::tend`] only, from each dozen of steps and from three dozens of the last week, by
/// the pinball loss.
///
/// Source: K. Cho et al., "Learning Phrase Representations using RNN Encoder–Decoder", 2014; R. Wen et al., "A
/// Multi-Horizon Quantile Recurrent Forecaster", 2017.
#[derive(Clone, Debug)]
pub struct GruForecaster {
    lags: Lags,
    past: Past,
    heads: Vec<Head>,
}

impl GruForecaster {
    /// Of a series with a `season` of so many steps, to be asked up to `horizon` steps after the next. `seed` sets the
    /// weights it begins with.
    pub fn new(season: usize, horizon: usize, seed: u64) -> GruForecaster {
        let heads = distances(horizon).map(|ahead| Head {
            ahead,
            network: Network::new(seed ^ ahead as u64),
            now: [0.0; STATE],
            learned: [0.0; STATE],
            rows: VecDeque::new(),
            fresh: 0,
            stretches: 0,
            dice: seed | 1,
        });
        GruForecaster { lags: Lags::new(season), past: Past::default(), heads: heads.collect() }
    }
}

impl SeriesForecaster for GruForecaster {
    fn name(&self) -> &'static str {
        "gru"
    }

    fn observe(&mut self, step: &Step) {
        self.past.teach(&mut self.lags, &mut self.heads, step);
        for head in &mut self.heads {
            if let Some(features) = self.lags.features(head.ahead) {
                head.now = head.network.step(&input(&features), &head.now).after;
            }
        }
    }

    fn quantiles(&self, ahead: usize, levels: &[f64]) -> Option<Vec<f64>> {
        let told = |head: &Head| -> Option<Vec<f64>> {
            self.lags.features(head.ahead).filter(|_| head.stretches >= ENOUGH)?;
            let centre = self.lags.centre();
            let mut said = head.network.says(&head.now).map(|said| self.lags.stretch(centre + said));
            said.sort_by(f64::total_cmp);
            Some(levels.iter().map(|level| between(&LEVELS, &said, *level)).collect())
        };
        let near = told(self.heads.first()?)?;
        let far = self.heads.get(1).and_then(|head| Some((head.ahead, told(head)?)));
        Some(at_distance(ahead, near, far))
    }

    fn tend(&mut self) -> bool {
        let mut any = false;
        for head in &mut self.heads {
            while head.fresh >= STRETCH {
                head.learn();
                any = true;
            }
        }
        any
    }

    fn bytes(&self) -> usize {
        let heads = self.heads.iter().map(|head| head.rows.capacity() * size_of::<Row>() + head.network.bytes());
        self.lags.bytes() + self.past.bytes() + heads.sum::<usize>()
    }
}

impl Taught for Head {
    fn ahead(&self) -> usize {
        self.ahead
    }

    fn note(&mut self, row: Row) {
        if self.rows.len() == ROWS {
            self.rows.pop_front();
        }
        self.rows.push_back(row);
        // What nobody tends for a week is learned from no more.
        self.fresh = (self.fresh + 1).min(self.rows.len());
    }
}

impl Head {
    /// Learns from the oldest fresh stretch, and from some others again.
    fn learn(&mut self) {
        let begin = self.rows.len() - self.fresh;
        self.fresh -= STRETCH;
        self.stretches = self.stretches.saturating_add(1);
        self.learned = self.descend(begin, self.learned);
        let places = self.rows.len() - STRETCH + 1;
        for _ in 0..AGAIN {
            let begin = self.toss() as usize % places;
            // Its state there is not known any more; it finds one within the stretch.
            self.descend(begin, [0.0; STATE]);
        }
    }

    /// Follows the gradient of one stretch; the state after it.
    fn descend(&mut self, begin: usize, state: State) -> State {
        let rows: Vec<(Features, f32)> =
            self.rows.range(begin..begin + STRETCH).map(|row| (input(&fine(&row.known)), row.came)).collect();
        let Gradient { weights, after, .. } = self.network.gradient(&rows, &state);
        self.network.follow(&weights, LONGEST);
        after
    }

    /// Source: Marsaglia, "Xorshift RNGs" (2003).
    fn toss(&mut self) -> u32 {
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        (self.dice >> 32) as u32
    }
}

/// What the network sees of features: none of them for more than it is worth.
fn input(features: &Features) -> Features {
    let mut input = [0.0; FEATURES];
    input.iter_mut().zip(features).for_each(|(input, feature)| *input = feature.clamp(-4.0, 4.0));
    input
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::series::{
        EwmaForecaster, LastForecaster,
        tests::{coverage, loss, noise},
    };

    /// High and low in runs: what comes depends on how long it has been so, and a value tells it only by its noise.
    fn runs(seed: &mut u64, steps: usize) -> Vec<f64> {
        (0..steps).map(|step| if step / 6 % 2 == 0 { 100.0 } else { 20.0 } + 3.0 * noise(seed)).collect()
    }

    #[test]
    fn it_learns_what_follows_a_run() {
        let values = runs(&mut 113, 2400);
        let gru = loss(&mut GruForecaster::new(24, 0, 1), &values, 1200);
        for (name, other) in [
            ("last", loss(&mut LastForecaster::default(), &values, 1200)),
            ("ewma", loss(&mut EwmaForecaster::new(0.2), &values, 1200)),
        ] {
            assert!(gru < 0.7 * other, "{name}: {other}, gru {gru}");
        }
        let held = coverage(&mut GruForecaster::new(24, 0, 1), &values, 0.9);
        assert!((held - 0.9).abs() < 0.12, "{held}");
    }

    #[test]
    fn a_seed_sets_all_of_it() {
        let values = runs(&mut 127, 600);
        let run = |seed| loss(&mut GruForecaster::new(24, 0, seed), &values, 400);
        assert_eq!(run(5), run(5));
        assert_ne!(run(5), run(6));
    }
}
