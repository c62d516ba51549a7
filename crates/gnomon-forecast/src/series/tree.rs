//! A tree of three questions about the recent past, with an answer for each level in each of its eight leaves.

use super::{
    LEVELS,
    lags::{FEATURES, Features},
};

/// Questions from root to leaf.
const DEPTH: usize = 3;
/// Leaves of a tree.
const LEAVES: usize = 1 << DEPTH;
/// Rows without which there is no leaf: with fewer, its 0.95 quantile is one row's.
const LEAST: u32 = 48;
/// Features are kept in steps of 1/32: three hundredths of their logarithm, and a row is as many bytes as features.
const GRAIN: f32 = 32.0;
/// Values of a feature.
const BINS: usize = 256;

/// Features as trees see them.
pub(super) type Coarse = [i8; FEATURES];

/// Something to learn from: what was known, and how far from the centre it came.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    pub(super) known: Coarse,
    pub(super) came: f32,
}

/// Features in steps of 1/32, from −4 to 4.
pub(super) fn coarse(features: &Features) -> Coarse {
    features.map(|feature| (feature * GRAIN).round().clamp(-128.0, 127.0) as i8)
}

/// Features from their steps of 1/32.
pub(super) fn fine(known: &Coarse) -> Features {
    known.map(|known| f32::from(known) / GRAIN)
}

/// A complete binary tree; question `i` is followed by `2i + 1` (no) and `2i + 2` (yes).
#[derive(Clone, Debug)]
pub(super) struct Tree {
    /// Is this feature greater than this? One that nothing is greater than has no use: all go left.
    questions: [(u8, i8); LEAVES - 1],
    leaves: [[f32; LEVELS.len()]; LEAVES],
}

/// What is known of the rows of one node for each value of each feature.
struct Histogram {
    sums: Vec<f32>,
    counts: Vec<u32>,
}

impl Tree {
    /// Asks the questions that best tell apart rows with different `slopes` (how much a row wants its answers raised),
    /// of which only every row in `sample` is looked at.
    pub(super) fn grow(rows: &[Row], slopes: &[f32], sample: &[u32]) -> Tree {
        let mut tree = Tree { questions: [(0, i8::MAX); LEAVES - 1], leaves: [[0.0; LEVELS.len()]; LEAVES] };
        let mut nodes: Vec<u8> = vec![0; sample.len()];
        for depth in 0..DEPTH {
            let first = (1 << depth) - 1;
            let mut histograms: Vec<Histogram> = (0..1 << depth).map(|_| Histogram::new()).collect();
            for (row, node) in sample.iter().zip(&nodes) {
                let row = *row as usize;
                histograms[usize::from(*node) - first].note(&rows[row].known, slopes[row]);
            }
            for (at, histogram) in histograms.iter().enumerate() {
                tree.questions[first + at] = histogram.best_question();
            }
            for (row, node) in sample.iter().zip(&mut nodes) {
                *node = tree.below(usize::from(*node), &rows[*row as usize].known) as u8;
            }
        }
        tree
    }

    /// Sets what a leaf says to `level`.
    pub(super) fn answer(&mut self, leaf: usize, level: usize, value: f32) {
        self.leaves[leaf][level] = value;
    }

    /// Where these features lead to.
    pub(super) fn leaf(&self, known: &Coarse) -> usize {
        (0..DEPTH).fold(0, |node, _| self.below(node, known)) - (LEAVES - 1)
    }

    /// What the tree says.
    pub(super) fn says(&self, known: &Coarse) -> &[f32; LEVELS.len()] {
        &self.leaves[self.leaf(known)]
    }

    /// Rows of each leaf, by their places.
    pub(super) fn sort(&self, rows: &[Row]) -> [Vec<u32>; LEAVES] {
        let mut leaves: [Vec<u32>; LEAVES] = Default::default();
        for (at, row) in rows.iter().enumerate() {
            leaves[self.leaf(&row.known)].push(at as u32);
        }
        leaves
    }

    fn below(&self, node: usize, known: &Coarse) -> usize {
        let (feature, most) = self.questions[node];
        2 * node + 1 + usize::from(known[usize::from(feature)] > most)
    }
}

impl Histogram {
    fn new() -> Histogram {
        Histogram { sums: vec![0.0; FEATURES * BINS], counts: vec![0; FEATURES * BINS] }
    }

    fn note(&mut self, known: &Coarse, slope: f32) {
        for (feature, value) in known.iter().enumerate() {
            let bin = feature * BINS + usize::from((i16::from(*value) + 128) as u8);
            self.sums[bin] += slope;
            self.counts[bin] += 1;
        }
    }

    /// The question whose two sides differ most; one without use when no two sides are large enough.
    fn best_question(&self) -> (u8, i8) {
        let (mut best, mut question) = (0.0, (0, i8::MAX));
        for feature in 0..FEATURES {
            let bins = feature * BINS..(feature + 1) * BINS;
            let (sums, counts) = (&self.sums[bins.clone()], &self.counts[bins]);
            let (all, number) = (sums.iter().sum::<f32>(), counts.iter().sum::<u32>());
            let (mut left, mut fewer) = (0.0, 0);
            for bin in 0..BINS - 1 {
                left += sums[bin];
                fewer += counts[bin];
                if counts[bin] == 0 || fewer < LEAST || number - fewer < LEAST {
                    continue;
                }
                let right = all - left;
                let gain =
                    left * left / fewer as f32 + right * right / (number - fewer) as f32 - all * all / number as f32;
                if gain > best + 1e-4 {
                    (best, question) = (gain, (feature as u8, (bin as i16 - 128) as i8));
                }
            }
        }
        question
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_asks_what_matters() {
        // What came depends on the third feature being above 5, and within that on the fourth being above 0.
        let rows: Vec<Row> = (0..1024)
            .map(|at: i32| {
                let mut known = [0; FEATURES];
                (known[2], known[3], known[4]) = ((at % 11) as i8, (at % 3 - 1) as i8, (at % 7) as i8);
                let came = if known[2] > 5 { 10.0 + 4.0 * f32::from(known[3].max(0)) } else { 1.0 };
                Row { known, came }
            })
            .collect();
        let mean = rows.iter().map(|row| row.came).sum::<f32>() / rows.len() as f32;
        let slopes: Vec<f32> = rows.iter().map(|row| row.came - mean).collect();
        let tree = Tree::grow(&rows, &slopes, &(0..1024).collect::<Vec<u32>>());
        assert_eq!(tree.questions[0], (2, 5));
        assert_eq!(tree.questions[2], (3, 0));
        for (leaf, rows_of) in tree.sort(&rows).iter().enumerate() {
            assert!(rows_of.iter().all(|at| tree.leaf(&rows[*at as usize].known) == leaf));
            let mut came: Vec<f32> = rows_of.iter().map(|at| rows[*at as usize].came).collect();
            came.dedup();
            assert!(came.len() <= 1, "leaf {leaf} holds {came:?}");
        }
    }

    #[test]
    fn few_rows_are_not_asked_apart() {
        let rows: Vec<Row> = (0..64).map(|at| Row { known: [at; FEATURES], came: f32::from(at) }).collect();
        let slopes: Vec<f32> = rows.iter().map(|row| row.came).collect();
        let tree = Tree::grow(&rows, &slopes, &(0..64).collect::<Vec<u32>>());
        assert!(rows.iter().all(|row| tree.leaf(&row.known) == 0));
    }

    #[test]
    fn any_feature_has_a_grain() {
        let mut features = [0.5; FEATURES];
        features[..3].copy_from_slice(&[f32::NAN, f32::INFINITY, -9.0]);
        let coarse = coarse(&features);
        assert_eq!(coarse[..4], [0, 127, -128, 16]);
    }
}
