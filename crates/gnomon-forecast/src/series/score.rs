//! How good a forecaster of a series was.

use super::LEVELS;

/// The last steps count: a day of 5-minute steps is two thirds of [`Score::recent`].
const RECENT: f64 = 1.0 / 288.0;

/// What a forecast of the `level` quantile costs when `value` comes: `level` for each unit too low, `1 − level` for each
/// too high. Nobody has a smaller mean than who says the true quantile.
///
/// Source: R. Koenker, G. Bassett, "Regression Quantiles", Econometrica 1978.
pub fn pinball(level: f64, forecast: f64, value: f64) -> f64 {
    let short = value - forecast;
    (level * short).max((level - 1.0) * short)
}

/// What is known of a forecaster: only forecasts that were made before the value came are counted.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Score {
    /// Forecasts that were judged.
    pub judged: u64,
    /// Mean pinball loss over [`LEVELS`] and all time, in the value's unit.
    pub loss: f64,
    /// The same, the last steps weighing most.
    pub recent: f64,
    /// The share of values between its 0.05 and its 0.95 quantile; honest is 0.9.
    pub covered: f64,
}

impl Score {
    /// Judges what was said for [`LEVELS`]; the loss of it.
    pub fn judge(&mut self, said: &[f64; LEVELS.len()], value: f64) -> f64 {
        let loss = loss(said, value);
        self.judged += 1;
        let share = 1.0 / self.judged as f64;
        let inside = f64::from(said[0] <= value && value <= said[LEVELS.len() - 2]);
        self.loss += share * (loss - self.loss);
        self.recent += RECENT.max(share) * (loss - self.recent);
        self.covered += share * (inside - self.covered);
        loss
    }
}

/// The mean pinball loss over [`LEVELS`].
pub(super) fn loss(said: &[f64; LEVELS.len()], value: f64) -> f64 {
    let losses = LEVELS.iter().zip(said).map(|(level, said)| pinball(*level, *said, value));
    losses.sum::<f64>() / LEVELS.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_low_costs_the_level_and_too_high_the_rest() {
        let table = [(0.9, 10.0, 20.0, 9.0), (0.9, 20.0, 10.0, 1.0), (0.5, 4.0, 6.0, 1.0), (0.5, 7.0, 7.0, 0.0)];
        for (level, forecast, value, cost) in table {
            assert!((pinball(level, forecast, value) - cost).abs() < 1e-12, "{level} {forecast} {value}");
        }
    }

    #[test]
    fn means_and_coverage() {
        let mut score = Score::default();
        score.judge(&[5.0; LEVELS.len()], 5.0);
        assert_eq!((score.loss, score.covered), (0.0, 1.0));
        score.judge(&[5.0; LEVELS.len()], 9.0);
        assert!((score.covered - 0.5).abs() < 1e-12 && score.loss > 0.0 && score.judged == 2);
    }
}
