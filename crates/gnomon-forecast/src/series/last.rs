//! It will be what it is: silence about change, the baseline that every other model has to beat.

use super::{Errors, SeriesForecaster, Step};

/// The last value; how far it was off lately makes the other quantiles.
#[derive(Clone, Debug, Default)]
pub struct LastForecaster {
    last: Option<f64>,
    errors: Errors,
}

impl SeriesForecaster for LastForecaster {
    fn name(&self) -> &'static str {
        "last"
    }

    fn observe(&mut self, step: &Step) {
        let Some(value) = step.value else { return };
        if let Some(last) = self.last.replace(value) {
            self.errors.note(value - last);
        }
    }

    /// The further ahead, the wider: steps of a random walk add up as the root of their number. The middle stays: that
    /// is what this model is about.
    fn quantiles(&self, ahead: usize, levels: &[f64]) -> Option<Vec<f64>> {
        let (last, wider) = (self.last?, (1.0 + ahead as f64).sqrt());
        let middle = self.errors.quantiles(&[0.5])?.first().copied()?;
        let errors = self.errors.quantiles(levels)?;
        Some(errors.into_iter().map(|error| last + (error - middle) * wider).collect())
    }

    fn bytes(&self) -> usize {
        size_of::<Self>() + self.errors.bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::series::tests::{coverage, noise};

    #[test]
    fn its_middle_is_the_last_value_and_a_walk_is_held() {
        let mut seed = 9;
        let mut at = 100.0;
        let walk: Vec<f64> = (0..2000)
            .map(|_| {
                at += noise(&mut seed);
                at
            })
            .collect();
        let mut last = LastForecaster::default();
        let held = coverage(&mut last, &walk, 0.8);
        assert!((held - 0.8).abs() < 0.05, "{held}");
        assert_eq!(last.forecast(7, 0.5).map(|interval| interval.middle), walk.last().copied());
    }
}
