//! Many small trees, each correcting those before it, for all levels at once.

use std::collections::VecDeque;

use super::{
    LEVELS, SeriesForecaster, Step, between,
    lags::Lags,
    pinball,
    rows::{Past, Taught, at_distance, distances},
    tree::{Coarse, Row, Tree, coarse},
};

/// Rows that are kept: four weeks of 5-minute steps, 30 bytes each.
const ROWS: usize = 8064;
/// The first training. Each later one waits for twice the rows, and from half the window on for half a window of new ones.
const FIRST: u64 = 256;
/// Trees at most; how many are kept is decided on time that was held out.
const TREES: usize = 60;
/// Trees without an improvement on it after which no more are tried.
const PATIENCE: usize = 10;
/// How much of its answer a tree gives: the rest is left to those after it.
const SHRINK: f32 = 0.1;
/// The last fifth of the rows is held out.
const HELD_OUT: usize = 5;

/// What a training left behind.
#[derive(Clone, Debug)]
struct Model {
    base: [f32; LEVELS.len()],
    trees: Vec<Tree>,
}

/// One distance.
#[derive(Clone, Debug)]
struct Head {
    ahead: usize,
    rows: VecDeque<Row>,
    /// All rows there ever were, and how many are needed for the next training.
    seen: u64,
    due: u64,
    model: Option<Model>,
}

/// Gradient-boosted trees over lags and calendar on the pinball loss. A tree's questions are chosen for the sum of the
/// slopes of all levels, a leaf answers each level with that quantile of what is left there. Trained by
/// [`SeriesForecaster::tend`] only: some 0.1 s for a full window, on the last four weeks.
///
/// Source: J. Friedman, "Greedy Function Approximation: A Gradient Boosting Machine", 2001, and "Stochastic Gradient
/// Boosting", 2002.
#[derive(Clone, Debug)]
pub struct BoostedForecaster {
    lags: Lags,
    past: Past,
    heads: Vec<Head>,
}

impl BoostedForecaster {
    /// Of a series with a `season` of so many steps, to be asked up to `horizon` steps after the next.
    pub fn new(season: usize, horizon: usize) -> BoostedForecaster {
        let heads =
            distances(horizon).map(|ahead| Head { ahead, rows: VecDeque::new(), seen: 0, due: FIRST, model: None });
        BoostedForecaster { lags: Lags::new(season), past: Past::default(), heads: heads.collect() }
    }
}

impl SeriesForecaster for BoostedForecaster {
    fn name(&self) -> &'static str {
        "boosted"
    }

    fn observe(&mut self, step: &Step) {
        self.past.teach(&mut self.lags, &mut self.heads, step);
    }

    fn quantiles(&self, ahead: usize, levels: &[f64]) -> Option<Vec<f64>> {
        let told = |head: &Head| -> Option<Vec<f64>> {
            let known = coarse(&self.lags.features(head.ahead)?);
            let centre = self.lags.centre();
            let mut said = head.model.as_ref()?.says(&known).map(|said| self.lags.stretch(centre + said));
            said.sort_by(f64::total_cmp);
            Some(levels.iter().map(|level| between(&LEVELS, &said, *level)).collect())
        };
        let near = told(self.heads.first()?)?;
        let far = self.heads.get(1).and_then(|head| Some((head.ahead, told(head)?)));
        Some(at_distance(ahead, near, far))
    }

    fn tend(&mut self) -> bool {
        let due: Vec<&mut Head> = self.heads.iter_mut().filter(|head| head.seen >= head.due).collect();
        let any = !due.is_empty();
        due.into_iter().for_each(Head::train);
        any
    }

    fn bytes(&self) -> usize {
        let heads = self.heads.iter().map(|head| {
            let trees = head.model.as_ref().map_or(0, |model| model.trees.capacity());
            head.rows.capacity() * size_of::<Row>() + trees * size_of::<Tree>()
        });
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
        self.seen += 1;
    }
}

impl Head {
    fn train(&mut self) {
        self.due = self.seen + self.seen.min(ROWS as u64 / 2);
        let rows = self.rows.make_contiguous();
        let (learn, held_out) = rows.split_at(rows.len() - rows.len() / HELD_OUT);
        self.model = Some(Model::of(learn, held_out));
    }
}

impl Model {
    /// Learns from `learn`; keeps as many trees as are of use on `held_out`.
    fn of(learn: &[Row], held_out: &[Row]) -> Model {
        let mut came: Vec<f32> = learn.iter().map(|row| row.came).collect();
        let base = std::array::from_fn(|level| quantile(&mut came, LEVELS[level]));
        let (mut said, mut apart) = (vec![base; learn.len()], vec![base; held_out.len()]);
        let mut model = Model { base, trees: Vec::new() };
        let (mut best, mut keep) = (loss(held_out, &apart), 0);
        let mut dice = 0x9e37_79b9_7f4a_7c15;
        while model.trees.len() < TREES && model.trees.len() < keep + PATIENCE {
            let tree = next_tree(learn, &said, &mut dice);
            step(&mut said, learn, &tree);
            step(&mut apart, held_out, &tree);
            model.trees.push(tree);
            let loss = loss(held_out, &apart);
            if loss < best {
                (best, keep) = (loss, model.trees.len());
            }
        }
        model.trees.truncate(keep);
        model
    }

    fn says(&self, known: &Coarse) -> [f32; LEVELS.len()] {
        let mut said = self.base;
        self.trees.iter().for_each(|tree| add(&mut said, tree.says(known)));
        said
    }
}

/// The tree that best corrects what was said so far.
fn next_tree(rows: &[Row], said: &[[f32; LEVELS.len()]], dice: &mut u64) -> Tree {
    let slope = |(row, said): (&Row, &[f32; LEVELS.len()])| -> f32 {
        LEVELS.iter().zip(said).map(|(level, said)| *level as f32 - f32::from(u8::from(row.came < *said))).sum()
    };
    let slopes: Vec<f32> = rows.iter().zip(said).map(slope).collect();
    // Every other row by chance: trees that saw different rows err differently.
    let sample: Vec<u32> = (0..rows.len() as u32).filter(|_| toss(dice)).collect();
    let mut tree = Tree::grow(rows, &slopes, &sample);
    let mut left = Vec::new();
    for (leaf, members) in tree.sort(rows).iter().enumerate() {
        for (level, wanted) in LEVELS.iter().enumerate() {
            left.clear();
            left.extend(members.iter().map(|at| rows[*at as usize].came - said[*at as usize][level]));
            tree.answer(leaf, level, quantile(&mut left, *wanted));
        }
    }
    tree
}

fn step(said: &mut [[f32; LEVELS.len()]], rows: &[Row], tree: &Tree) {
    said.iter_mut().zip(rows).for_each(|(said, row)| add(said, tree.says(&row.known)));
}

fn add(said: &mut [f32; LEVELS.len()], tree: &[f32; LEVELS.len()]) {
    said.iter_mut().zip(tree).for_each(|(said, tree)| *said += SHRINK * tree);
}

fn loss(rows: &[Row], said: &[[f32; LEVELS.len()]]) -> f64 {
    let of = |(row, said): (&Row, &[f32; LEVELS.len()])| -> f64 {
        LEVELS.iter().zip(said).map(|(level, said)| pinball(*level, f64::from(*said), f64::from(row.came))).sum()
    };
    rows.iter().zip(said).map(of).sum()
}

/// The quantile of `values`, which are put into another order; 0.0 of none.
fn quantile(values: &mut [f32], level: f64) -> f32 {
    let Some(last) = values.len().checked_sub(1) else { return 0.0 };
    let place = (level * last as f64).round() as usize;
    *values.select_nth_unstable_by(place.min(last), f32::total_cmp).1
}

/// A coin that a seed repeats. Source: Marsaglia, "Xorshift RNGs" (2003).
fn toss(dice: &mut u64) -> bool {
    *dice ^= *dice << 13;
    *dice ^= *dice >> 7;
    *dice ^= *dice << 17;
    *dice & (1 << 40) != 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::series::{
        EwmaForecaster, LinearForecaster, QuantileForecaster,
        tests::{coverage, loss, noise},
    };

    /// The logistic map: each value follows from the last, and no line has anything to do with it.
    fn chaos(seed: &mut u64, steps: usize) -> Vec<f64> {
        let mut last = 0.3;
        (0..steps)
            .map(|_| {
                last = (4.0 * last * (1.0 - last) + 0.01 * noise(seed)).clamp(0.01, 0.99);
                100.0 * last
            })
            .collect()
    }

    #[test]
    fn it_learns_what_no_line_says() {
        let values = chaos(&mut 41, 3000);
        let boosted = loss(&mut BoostedForecaster::new(24, 0), &values, 1500);
        for (name, other) in [
            ("ewma", loss(&mut EwmaForecaster::new(0.2), &values, 1500)),
            ("quantile", loss(&mut QuantileForecaster::new(288), &values, 1500)),
            ("linear", loss(&mut LinearForecaster::new(24, 0), &values, 1500)),
        ] {
            assert!(boosted < 0.6 * other, "{name}: {other}, boosted {boosted}");
        }
        let held = coverage(&mut BoostedForecaster::new(24, 0), &values, 0.9);
        assert!((held - 0.9).abs() < 0.08, "{held}");
    }

    #[test]
    fn shuffled_it_keeps_next_to_no_trees_and_is_no_better_than_the_distribution() {
        let mut values = chaos(&mut 43, 3000);
        let mut seed = 47;
        for at in (1..values.len()).rev() {
            values.swap(at, ((noise(&mut seed) + 1.0) / 2.0 * (at as f64 + 1.0)) as usize % (at + 1));
        }
        let boosted = loss(&mut BoostedForecaster::new(24, 0), &values, 1500);
        let known = loss(&mut QuantileForecaster::new(1024), &values, 1500);
        assert!(boosted > 0.97 * known, "{boosted} {known}: something was learned of the future");
    }

    #[test]
    fn without_tending_it_says_nothing_and_trainings_become_rare() {
        let mut boosted = BoostedForecaster::new(24, 0);
        let mut trained = Vec::new();
        for (at, value) in chaos(&mut 53, 3000).into_iter().enumerate() {
            boosted.observe(&Step::of(value));
            if at < 300 {
                assert_eq!(boosted.quantiles(0, &[0.5]), None);
            } else if boosted.tend() {
                trained.push(at);
            }
        }
        assert_eq!(trained.len(), 4, "{trained:?}");
        assert!(trained.windows(2).all(|pair| pair[1] >= 2 * pair[0] - 20), "{trained:?}");
    }
}
