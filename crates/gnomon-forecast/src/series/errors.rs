//! How far off a forecaster was lately, and the bounds that follow from it.

use std::collections::VecDeque;

use super::Interval;

/// Errors that are remembered: enough for a bound at 95 %, few enough to follow a series that changes its manner.
const REMEMBERED: usize = 128;
/// Errors without which there are no bounds: with fewer, the widest of them says little.
const ENOUGH: usize = 8;

/// The last errors, signed: value − forecast.
///
/// Source: G. Shafer, V. Vovk, "A Tutorial on Conformal Prediction", 2008 (bounds from the ranks of past errors).
#[derive(Clone, Debug, Default)]
pub struct Errors {
    last: VecDeque<f64>,
}

impl Errors {
    /// Notes an error.
    pub fn note(&mut self, error: f64) {
        if self.last.len() == REMEMBERED {
            self.last.pop_front();
        }
        self.last.push_back(error);
    }

    /// The interval around `middle` that would have held this share of the values; `None` while there are too few
    /// errors. Skewed errors make a skewed interval; the middle is always inside.
    pub fn around(&self, middle: f64, coverage: f64) -> Option<Interval> {
        if self.last.len() < ENOUGH {
            return None;
        }
        let mut sorted: Vec<f64> = self.last.iter().copied().collect();
        sorted.sort_unstable_by(f64::total_cmp);
        let outside = (1.0 - coverage.clamp(0.0, 1.0)) / 2.0;
        // Of n errors the next falls below the k-th smallest with probability k / (n + 1).
        let places = sorted.len() as f64 + 1.0;
        let low = (outside * places).floor() as usize;
        let high = (((1.0 - outside) * places).ceil() as usize).min(sorted.len());
        let at = |place: usize| sorted[place.saturating_sub(1).min(sorted.len() - 1)];
        Some(Interval { low: middle + at(low).min(0.0), middle, high: middle + at(high).max(0.0) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_ranks_of_errors() {
        let mut errors = Errors::default();
        assert_eq!(errors.around(0.0, 0.9), None);
        // -49 to 50: 100 errors.
        (0..100).for_each(|error| errors.note(f64::from(error) - 49.0));
        let table = [(0.9, -45.0, 46.0), (0.5, -25.0, 26.0), (1.0, -49.0, 50.0), (0.0, 0.0, 2.0)];
        for (coverage, low, high) in table {
            let interval = errors.around(1000.0, coverage).expect("enough errors");
            assert!(
                (interval.low - (1000.0 + low)).abs() <= 1.0 && (interval.high - (1000.0 + high)).abs() <= 1.0,
                "{coverage}: {interval:?}"
            );
        }
    }

    #[test]
    fn old_errors_are_forgotten() {
        let mut errors = Errors::default();
        errors.note(1e9);
        (0..REMEMBERED).for_each(|_| errors.note(1.0));
        assert_eq!(errors.around(0.0, 1.0), Some(Interval { low: 0.0, middle: 0.0, high: 1.0 }));
    }
}
