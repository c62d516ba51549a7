//! How far off a forecaster was lately, and the quantiles that follow from it.

use super::ranks::Ranks;

/// Errors that are remembered: enough for a level of 0.99, few enough to follow a series that changes its manner.
const REMEMBERED: usize = 128;
/// Errors without which there are no quantiles: with fewer, the widest of them says little.
const ENOUGH: usize = 8;

/// The last errors, signed: value − forecast.
///
/// Source: G. Shafer, V. Vovk, "A Tutorial on Conformal Prediction", 2008 (bounds from the ranks of past errors).
#[derive(Clone, Debug)]
pub struct Errors {
    last: Ranks,
}

impl Default for Errors {
    fn default() -> Errors {
        Errors { last: Ranks::new(REMEMBERED) }
    }
}

impl Errors {
    /// Notes an error.
    pub fn note(&mut self, error: f64) {
        if error.is_finite() {
            self.last.push(error);
        }
    }

    /// What is to be added to the forecast for each of `levels`; `None` while there are too few errors.
    pub fn quantiles(&self, levels: &[f64]) -> Option<Vec<f64>> {
        if self.last.len() < ENOUGH {
            return None;
        }
        levels.iter().map(|level| self.last.at(*level)).collect()
    }

    /// Bytes of state.
    pub fn bytes(&self) -> usize {
        self.last.bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_ranks_of_errors() {
        let mut errors = Errors::default();
        assert_eq!(errors.quantiles(&[0.5]), None);
        // -49 to 50: 100 errors.
        (0..100).for_each(|error| errors.note(f64::from(error) - 49.0));
        let said = errors.quantiles(&[0.0, 0.05, 0.5, 0.95, 1.0]).expect("enough errors");
        for (said, expected) in said.into_iter().zip([-49.0, -45.0, 0.5, 46.0, 50.0]) {
            assert!((said - expected).abs() <= 1.0, "{said} {expected}");
        }
    }

    #[test]
    fn old_errors_are_forgotten() {
        let mut errors = Errors::default();
        errors.note(1e9);
        errors.note(f64::NAN);
        (0..REMEMBERED).for_each(|_| errors.note(1.0));
        assert_eq!(errors.quantiles(&[0.0, 1.0]), Some(vec![1.0, 1.0]));
    }
}
