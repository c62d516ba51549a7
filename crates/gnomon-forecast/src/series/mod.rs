//! How much, and when: forecasts of a number that is measured at even steps of time.
//!
//! A forecast is an interval, not a point: what decides (is this guest as it always was? how much memory will be asked
//! for?) needs to know how sure it may be. Each forecaster gives a middle; [`Errors`] turns how far it was off lately
//! into the bounds, so an interval is honest whatever made the middle.

mod errors;
mod ewma;
mod seasonal;

pub use errors::Errors;
pub use ewma::EwmaForecaster;
pub use seasonal::SeasonalForecaster;

/// Where the next value is expected.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// The lower bound.
    pub low: f64,
    /// The best guess.
    pub middle: f64,
    /// The upper bound.
    pub high: f64,
}

impl Interval {
    /// Whether a value is within the bounds.
    pub fn contains(&self, value: f64) -> bool {
        (self.low..=self.high).contains(&value)
    }

    /// How far a value is outside, in widths of the interval; 0 within. An interval without width counts as one
    /// thousandth of its middle, so that a constant series does not make every change infinite.
    pub fn excess(&self, value: f64) -> f64 {
        let width = (self.high - self.low).max(self.middle.abs() / 1000.0).max(f64::MIN_POSITIVE);
        (self.low - value).max(value - self.high).max(0.0) / width
    }
}

/// Forecasts one series, step by step.
pub trait SeriesForecaster {
    /// Its name in reports.
    fn name(&self) -> &'static str;

    /// The value of this step. One that is not finite is left out.
    fn observe(&mut self, value: f64);

    /// Where the value of the step after the next `ahead` ones is expected (0: of the next), so that it is inside with
    /// probability `coverage` (0.0–1.0) if errors go on as they were. `None` while too little has been seen.
    fn forecast(&self, ahead: usize, coverage: f64) -> Option<Interval>;
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// How often the next value fell into the interval, once there was one.
    pub(crate) fn coverage(forecaster: &mut dyn SeriesForecaster, values: &[f64], wanted: f64) -> f64 {
        let (mut inside, mut all) = (0.0, 0.0);
        for value in values {
            if let Some(interval) = forecaster.forecast(0, wanted) {
                assert!(interval.low <= interval.middle && interval.middle <= interval.high);
                all += 1.0;
                inside += f64::from(interval.contains(*value));
            }
            forecaster.observe(*value);
        }
        inside / all
    }

    /// Noise in -1..1 that a seed repeats. Source: Marsaglia, "Xorshift RNGs" (2003).
    pub(crate) fn noise(seed: &mut u64) -> f64 {
        *seed ^= *seed << 13;
        *seed ^= *seed >> 7;
        *seed ^= *seed << 17;
        (*seed >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    #[test]
    fn excess_is_counted_in_widths() {
        let interval = Interval { low: 10.0, middle: 11.0, high: 12.0 };
        let table = [(10.0, 0.0), (12.0, 0.0), (14.0, 1.0), (8.0, 1.0), (22.0, 5.0)];
        for (value, excess) in table {
            assert_eq!(interval.excess(value), excess, "{value}");
        }
        let constant = Interval { low: 5.0, middle: 5.0, high: 5.0 };
        assert!(constant.excess(5.0) == 0.0 && constant.excess(5.1) > 10.0 && constant.excess(5.1).is_finite());
    }
}
