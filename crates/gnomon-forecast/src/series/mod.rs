//! How much, and when: forecasts of a number that is measured at even steps of time.
//!
//! A forecast is not a point. What decides (is this guest as it always was? how much memory will be asked for?) asks for
//! *quantiles*: a value that the next one stays below with probability `level`. Every model answers any level at any
//! number of steps ahead, behind one trait, so [`SeriesBlend`] can pit them against one another on time that none of
//! them has seen, and believe those that were right.
//!
//! ```text
//!   samples ──► Intake ──► Step ──► SeriesBlend ──► quantiles
//!   (time, value)  refuses   even     last · ewma · quantile · seasonal · holt-winters · linear · boosted · gru
//! ```

mod blend;
mod boosted;
mod drift;
mod errors;
mod ewma;
mod group;
mod gru;
mod gru_cell;
mod holt_winters;
mod intake;
mod lags;
mod last;
mod linear;
mod member;
mod quantile;
mod ranks;
mod rises;
mod rows;
mod score;
mod seasonal;
mod tree;

pub use blend::{ExpertView, SeriesBlend};
pub use boosted::BoostedForecaster;
pub use errors::Errors;
pub use ewma::EwmaForecaster;
pub use group::{GroupDemand, GroupError, MAX_MEMBERS, MemberId};
pub use gru::GruForecaster;
pub use holt_winters::HoltWintersForecaster;
pub use intake::{Intake, MAX_GAP, SampleError, Series};
pub use last::LastForecaster;
pub use linear::LinearForecaster;
pub use quantile::QuantileForecaster;
pub use score::{Score, pinball};
pub use seasonal::SeasonalForecaster;

/// The levels at which models are trained and judged; between them they are read off a straight line. Demand is staged
/// at high levels, an update is judged at 0.05 and 0.95, traffic is expected at the middle.
pub const LEVELS: [f64; 7] = [0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99];

/// How many numbers a [`Step`] can carry beside its value.
pub const BESIDE: usize = 8;

/// What one step of time brought.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Step {
    /// The value; `None` when it was not measured.
    pub value: Option<f64>,
    /// What is known beside it at the same moment and may tell of what comes, in the value's unit; 0.0 where nothing is.
    pub beside: [f64; BESIDE],
}

impl Step {
    /// A step of which only the value is known. One that is not finite counts as not measured.
    pub fn of(value: f64) -> Step {
        Step { value: Some(value).filter(|value| value.is_finite()), beside: [0.0; BESIDE] }
    }

    /// A step that was not measured.
    pub fn missing() -> Step {
        Step::default()
    }
}

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

/// Forecasts one series, step by step. State is bounded whatever is observed.
pub trait SeriesForecaster {
    /// Its name in reports.
    fn name(&self) -> &'static str;

    /// What the next step of time brought. Takes microseconds; never trains for long.
    fn observe(&mut self, step: &Step);

    /// For each of `levels` (0.0–1.0, rising) the value that the step after the next `ahead` ones (0: the next) stays
    /// below with that probability, if things go on as they were. As many as levels, never falling. `None` while too
    /// little has been seen.
    fn quantiles(&self, ahead: usize, levels: &[f64]) -> Option<Vec<f64>>;

    /// Training that may take up to tenths of a second, when it is due; `true` when something was learned. Without it a
    /// model stays as it was. Whoever has a budget of processor time calls this within it.
    fn tend(&mut self) -> bool {
        false
    }

    /// Bytes of state, without the allocator's share.
    fn bytes(&self) -> usize;

    /// Where a value is expected with probability `coverage` (0.0–1.0).
    fn forecast(&self, ahead: usize, coverage: f64) -> Option<Interval> {
        let outside = (1.0 - coverage.clamp(0.0, 1.0)) / 2.0;
        let bounds = self.quantiles(ahead, &[outside, 0.5, 1.0 - outside])?;
        let [low, middle, high] = bounds[..] else { return None };
        Some(Interval { low, middle, high })
    }
}

/// The value at `level` on the straight lines through (`levels`, `values`); level beyond their ends gets the end's value.
fn between(levels: &[f64], values: &[f64], level: f64) -> f64 {
    let above = levels.partition_point(|known| *known < level);
    match (above.checked_sub(1), above < levels.len()) {
        (None, _) => values[0],
        (Some(below), false) => values[below],
        (Some(below), true) => {
            let share = (level - levels[below]) / (levels[above] - levels[below]).max(f64::MIN_POSITIVE);
            values[below] + share * (values[above] - values[below])
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// How often the next value fell into the interval, once there was one.
    pub(crate) fn coverage(forecaster: &mut dyn SeriesForecaster, values: &[f64], wanted: f64) -> f64 {
        let (mut inside, mut all) = (0.0, 0.0);
        for value in values {
            if let Some(interval) = forecaster.forecast(0, wanted) {
                assert!(interval.low <= interval.middle && interval.middle <= interval.high, "{interval:?}");
                all += 1.0;
                inside += f64::from(interval.contains(*value));
            }
            forecaster.observe(&Step::of(*value));
            forecaster.tend();
        }
        inside / all
    }

    /// The mean pinball loss over all levels from `from` on.
    pub(crate) fn loss(forecaster: &mut dyn SeriesForecaster, values: &[f64], from: usize) -> f64 {
        let (mut sum, mut all) = (0.0, 0.0);
        for (at, value) in values.iter().enumerate() {
            if let Some(said) = forecaster.quantiles(0, &LEVELS).filter(|_| at >= from) {
                sum += LEVELS.iter().zip(said).map(|(level, said)| pinball(*level, said, *value)).sum::<f64>();
                all += LEVELS.len() as f64;
            }
            forecaster.observe(&Step::of(*value));
            forecaster.tend();
        }
        sum / all
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

    #[test]
    fn levels_between_known_ones_are_on_a_line() {
        let (levels, values) = ([0.1, 0.5, 0.9], [1.0, 3.0, 4.0]);
        for (level, value) in [(0.0, 1.0), (0.1, 1.0), (0.3, 2.0), (0.5, 3.0), (0.7, 3.5), (0.9, 4.0), (1.0, 4.0)] {
            assert!((between(&levels, &values, level) - value).abs() < 1e-12, "{level}");
        }
    }

    /// Every model, small.
    fn all() -> Vec<Box<dyn SeriesForecaster>> {
        vec![
            Box::new(LastForecaster::default()),
            Box::new(EwmaForecaster::new(0.2)),
            Box::new(QuantileForecaster::new(64)),
            Box::new(SeasonalForecaster::new(24)),
            Box::new(HoltWintersForecaster::new(24)),
            Box::new(LinearForecaster::new(24, 3)),
            Box::new(BoostedForecaster::new(24, 3)),
            Box::new(GruForecaster::new(24, 3, 1)),
            Box::new(SeriesBlend::new(24, 3)),
        ]
    }

    #[test]
    fn every_model_answers_rising_levels_at_every_distance_and_stays_bounded() {
        let levels = [0.0, 0.01, 0.3, 0.5, 0.93, 0.999, 1.0];
        for mut model in all() {
            assert_eq!(model.quantiles(0, &levels), None, "{} knows something of nothing", model.name());
            let mut seed = 5;
            let mut bytes = Vec::new();
            for step in 0..3000u32 {
                // Gaps, constants, jumps and noise.
                let value = match step % 7 {
                    0 => Step::missing(),
                    1 => Step::of(f64::NAN),
                    _ if step < 500 => Step::of(1e9),
                    _ => Step::of(noise(&mut seed) * f64::from(step % 50)),
                };
                model.observe(&value);
                model.tend();
                bytes.push(model.bytes());
            }
            for ahead in [0, 1, 3, 100] {
                let said = model.quantiles(ahead, &levels).unwrap_or_else(|| panic!("{} is silent", model.name()));
                assert_eq!(said.len(), levels.len());
                assert!(said.windows(2).all(|pair| pair[0] <= pair[1]), "{} {ahead}: {said:?}", model.name());
                assert!(said.iter().all(|value| value.is_finite()), "{} {ahead}: {said:?}", model.name());
            }
            assert!(bytes[2999] <= 2 * bytes[1500] && bytes[2999] < 2 << 20, "{} grows", model.name());
        }
    }

    #[test]
    fn the_same_steps_give_the_same_numbers() {
        let run = || -> Vec<Vec<f64>> {
            let said = all().into_iter().map(|mut model| {
                let mut seed = 11;
                (0..900).for_each(|_| {
                    model.observe(&Step::of(10.0 + noise(&mut seed)));
                    model.tend();
                });
                model.quantiles(0, &LEVELS).expect("seen enough")
            });
            said.collect()
        };
        assert_eq!(run(), run());
    }
}
