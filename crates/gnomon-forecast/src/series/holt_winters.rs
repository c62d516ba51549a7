//! A level, a trend that dies away, and a day.

use super::{Errors, SeriesForecaster, Step};

/// How much a new value moves the level, the trend and its place of the season. The usual small values: demand of
/// guests is noisy, and an answer that follows each burst is worse than none.
const LEVEL: f64 = 0.1;
const TREND: f64 = 0.01;
const SEASON: f64 = 0.1;
/// What is left of the trend at each step ahead: 0.9 is 10 steps in all, so a forecast cannot run away.
const DAMPING: f64 = 0.9;

/// Holt-Winters' additive method with a damped trend.
///
/// Source: P. R. Winters, "Forecasting Sales by Exponentially Weighted Moving Averages", 1960; the damping is
/// Gardner and McKenzie's, 1985.
#[derive(Clone, Debug)]
pub struct HoltWintersForecaster {
    level: Option<f64>,
    trend: f64,
    season: Box<[f64]>,
    /// The place in the season of the next step.
    next: usize,
    errors: Errors,
}

impl HoltWintersForecaster {
    /// A season is so many steps; at least one.
    pub fn new(season: usize) -> HoltWintersForecaster {
        let season = vec![0.0; season.max(1)].into_boxed_slice();
        HoltWintersForecaster { level: None, trend: 0.0, season, next: 0, errors: Errors::default() }
    }

    fn middle(&self, ahead: usize) -> Option<f64> {
        let steps = ahead as f64 + 1.0;
        let trend = self.trend * DAMPING * (1.0 - DAMPING.powf(steps)) / (1.0 - DAMPING);
        Some(self.level? + trend + self.season[(self.next + ahead) % self.season.len()])
    }

    fn learn(&mut self, value: f64) {
        let Some(level) = self.level else {
            self.level = Some(value);
            return;
        };
        let (expected, seasonal) = (level + DAMPING * self.trend, self.season[self.next]);
        let new = expected + LEVEL * (value - seasonal - expected);
        self.trend = DAMPING * self.trend + TREND * (new - level - DAMPING * self.trend);
        self.season[self.next] += SEASON * (value - new - seasonal);
        self.level = Some(new);
    }
}

impl SeriesForecaster for HoltWintersForecaster {
    fn name(&self) -> &'static str {
        "holt-winters"
    }

    fn observe(&mut self, step: &Step) {
        if let Some(value) = step.value {
            if let Some(middle) = self.middle(0) {
                self.errors.note(value - middle);
            }
            self.learn(value);
        }
        self.next = (self.next + 1) % self.season.len();
    }

    fn quantiles(&self, ahead: usize, levels: &[f64]) -> Option<Vec<f64>> {
        let (middle, errors) = (self.middle(ahead)?, self.errors.quantiles(levels)?);
        Some(errors.into_iter().map(|error| middle + error).collect())
    }

    fn bytes(&self) -> usize {
        size_of::<Self>() + self.season.len() * size_of::<f64>() + self.errors.bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::series::{
        EwmaForecaster, SeasonalForecaster,
        tests::{loss, noise},
    };

    fn days(seed: &mut u64, rising: f64) -> Vec<f64> {
        let hour = |step: usize| (step % 24) as f64 / 24.0 * std::f64::consts::TAU;
        (0..2400).map(|step| 100.0 + rising * step as f64 + 20.0 * hour(step).sin() + 5.0 * noise(seed)).collect()
    }

    #[test]
    fn noisy_days_are_known_better_than_by_one_day_alone() {
        let values = days(&mut 21, 0.05);
        let winters = loss(&mut HoltWintersForecaster::new(24), &values, 1200);
        assert!(winters < 0.9 * loss(&mut SeasonalForecaster::new(24), &values, 1200));
        assert!(winters < 0.9 * loss(&mut EwmaForecaster::new(0.2), &values, 1200));
    }

    #[test]
    fn a_gap_moves_the_clock_and_nothing_else() {
        let mut winters = HoltWintersForecaster::new(24);
        days(&mut 4, 0.0).into_iter().for_each(|value| winters.observe(&Step::of(value)));
        let before = (winters.middle(24 + 6), winters.level);
        (0..24).for_each(|_| winters.observe(&Step::missing()));
        assert_eq!(winters.level, before.1);
        let (then, now) = (before.0.expect("it is begun"), winters.middle(6).expect("it is begun"));
        assert!((then - now).abs() < 1.0, "{then} {now}");
    }
}
