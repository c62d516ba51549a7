//! What it was lately, the newest weighing most: the forecaster to beat.

use super::{Errors, SeriesForecaster, Step};

/// Exponentially weighted moving average.
///
/// Source: R. G. Brown, "Statistical Forecasting for Inventory Control", 1959.
#[derive(Clone, Debug)]
pub struct EwmaForecaster {
    newest: f64,
    level: Option<f64>,
    errors: Errors,
}

impl EwmaForecaster {
    /// `newest` is how much a new value weighs against all before it, above 0.0 and up to 1.0 (the last value alone).
    pub fn new(newest: f64) -> EwmaForecaster {
        EwmaForecaster { newest: newest.clamp(f64::EPSILON, 1.0), level: None, errors: Errors::default() }
    }
}

impl SeriesForecaster for EwmaForecaster {
    fn name(&self) -> &'static str {
        "ewma"
    }

    fn observe(&mut self, step: &Step) {
        let Some(value) = step.value else { return };
        if let Some(level) = self.level {
            self.errors.note(value - level);
        }
        self.level = Some(self.level.map_or(value, |level| level + self.newest * (value - level)));
    }

    /// The further ahead, the wider: errors of a level that drifts add up as the root of their number.
    fn quantiles(&self, ahead: usize, levels: &[f64]) -> Option<Vec<f64>> {
        let (level, errors) = (self.level?, self.errors.quantiles(levels)?);
        let wider = (1.0 + ahead as f64 * self.newest * self.newest).sqrt();
        Some(errors.into_iter().map(|error| level + error * wider).collect())
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
    fn intervals_hold_what_they_promise() {
        let mut seed = 42;
        let values: Vec<f64> = (0..2000).map(|_| 50.0 + 5.0 * noise(&mut seed)).collect();
        for wanted in [0.5, 0.8, 0.95] {
            let held = coverage(&mut EwmaForecaster::new(0.2), &values, wanted);
            assert!((held - wanted).abs() < 0.05, "{wanted}: {held}");
        }
    }

    #[test]
    fn it_follows_a_new_level() {
        let mut ewma = EwmaForecaster::new(0.3);
        (0..50).for_each(|_| ewma.observe(&Step::of(10.0)));
        (0..50).for_each(|_| ewma.observe(&Step::of(90.0)));
        assert!((ewma.forecast(0, 0.5).expect("seen enough").middle - 90.0).abs() < 0.1);
    }

    #[test]
    fn further_ahead_is_less_sure() {
        let mut ewma = EwmaForecaster::new(0.5);
        let mut seed = 7;
        (0..100).for_each(|_| ewma.observe(&Step::of(noise(&mut seed))));
        let width = |ahead| ewma.forecast(ahead, 0.9).map(|i| i.high - i.low).expect("seen enough");
        assert!(width(0) < width(5) && width(5) < width(50));
    }

    #[test]
    fn what_was_not_measured_is_left_out() {
        let mut ewma = EwmaForecaster::new(0.2);
        for value in [f64::NAN, f64::INFINITY, 3.0, f64::NAN] {
            ewma.observe(&Step::of(value));
        }
        assert_eq!(ewma.level, Some(3.0));
    }
}
