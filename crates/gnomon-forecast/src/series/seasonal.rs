//! What it was at this hour of the day before.

use std::collections::VecDeque;

use super::{Errors, SeriesForecaster, Step};

/// Seasonal naive: the value one season ago. Until a season has been seen, or where it was not measured, the last value.
///
/// Source: R. J. Hyndman, G. Athanasopoulos, "Forecasting: Principles and Practice", section 5.2.
#[derive(Clone, Debug)]
pub struct SeasonalForecaster {
    season: usize,
    /// One season; what was not measured is there as the value before it.
    last: VecDeque<f64>,
    errors: Errors,
}

impl SeasonalForecaster {
    /// A season is so many steps; at least one.
    pub fn new(season: usize) -> SeasonalForecaster {
        SeasonalForecaster { season: season.max(1), last: VecDeque::new(), errors: Errors::default() }
    }

    /// The value a season before the step after the next `ahead` ones.
    fn middle(&self, ahead: usize) -> Option<f64> {
        match self.last.len() == self.season {
            true => self.last.get(ahead % self.season).copied(),
            false => self.last.back().copied(),
        }
    }
}

impl SeriesForecaster for SeasonalForecaster {
    fn name(&self) -> &'static str {
        "seasonal"
    }

    fn observe(&mut self, step: &Step) {
        if let (Some(value), Some(middle)) = (step.value, self.middle(0)) {
            self.errors.note(value - middle);
        }
        let Some(value) = step.value.or(self.last.back().copied()) else { return };
        if self.last.len() == self.season {
            self.last.pop_front();
        }
        self.last.push_back(value);
    }

    fn quantiles(&self, ahead: usize, levels: &[f64]) -> Option<Vec<f64>> {
        let (middle, errors) = (self.middle(ahead)?, self.errors.quantiles(levels)?);
        Some(errors.into_iter().map(|error| middle + error).collect())
    }

    fn bytes(&self) -> usize {
        size_of::<Self>() + self.last.capacity() * size_of::<f64>() + self.errors.bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::series::{
        EwmaForecaster,
        tests::{coverage, noise},
    };

    #[test]
    fn a_season_is_known_after_one_even_with_a_gap() {
        let mut seasonal = SeasonalForecaster::new(4);
        for round in 0..3 {
            for (step, value) in [1.0, 5.0, 9.0, 5.0].into_iter().enumerate() {
                if round > 0 {
                    assert_eq!(seasonal.middle(0), Some(value), "round {round}, step {step}");
                    assert_eq!(seasonal.middle(4), Some(value));
                }
                seasonal.observe(&Step::of(value));
            }
        }
        (0..4).for_each(|_| seasonal.observe(&Step::missing()));
        assert_eq!(seasonal.middle(2), Some(5.0), "what was not measured is the value before it");
    }

    #[test]
    fn it_is_surer_than_an_average_where_there_are_seasons() {
        let mut seed = 3;
        let values: Vec<f64> = (0..960)
            .map(|step| 50.0 * (f64::from(step % 24) / 24.0 * std::f64::consts::TAU).sin() + noise(&mut seed))
            .collect();
        let (mut seasonal, mut ewma) = (SeasonalForecaster::new(24), EwmaForecaster::new(0.2));
        let held = coverage(&mut seasonal, &values, 0.9);
        coverage(&mut ewma, &values, 0.9);
        assert!((held - 0.9).abs() < 0.06, "{held}");
        let width = |f: &dyn SeriesForecaster| f.forecast(0, 0.9).map(|i| i.high - i.low).expect("seen enough");
        assert!(width(&seasonal) * 5.0 < width(&ewma));
    }
}
