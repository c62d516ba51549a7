//! More when forecasts come true, less when they do not.
//!
//! ```text
//!   accuracy > 0.8 for 3 verdicts ──► look further ahead, ask for less certainty
//!   accuracy < 0.2 for 3 verdicts ──► look less far, ask for more certainty
//!   in between                    ──► leave as is
//! ```
//! Three verdicts in a row are the hysteresis: one good or bad batch moves nothing.

use std::time::Duration;

/// Above this share of forecasts that came true, more is forecast.
pub const HIGH_ACCURACY: f32 = 0.8;
/// Below this share, less is forecast.
pub const LOW_ACCURACY: f32 = 0.2;
/// Forecasts whose end makes one verdict: enough that chance alone moves the share by less than 0.1.
const BATCH: u32 = 64;
/// Verdicts that must agree before anything changes.
const AGREE: i32 = 3;
/// The horizon moves within these bounds: below a second a link cannot act, above ten minutes the background order
/// does better.
const HORIZON: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(600));
/// The threshold moves within these bounds.
const THRESHOLD: (f32, f32) = (0.05, 0.9);

/// The horizon and threshold of reactive forecasts, and the evidence that moves them.
#[derive(Clone, Debug)]
pub struct Adjuster {
    horizon: Duration,
    threshold: f32,
    ended: u32,
    true_ones: u32,
    agreeing: i32,
}

impl Adjuster {
    /// Starts with these values, without evidence.
    pub fn new(horizon: Duration, threshold: f32) -> Adjuster {
        Adjuster { horizon, threshold, ended: 0, true_ones: 0, agreeing: 0 }
    }

    /// How far ahead to look.
    pub fn horizon(&self) -> Duration {
        self.horizon
    }

    /// The chance below which a forecast is not acted on.
    pub fn threshold(&self) -> f32 {
        self.threshold
    }

    /// A forecast above the threshold has ended: it came true within the horizon, or it did not.
    pub fn ended(&mut self, came_true: bool) {
        self.ended += 1;
        self.true_ones += u32::from(came_true);
        if self.ended == BATCH {
            self.verdict(self.true_ones as f32 / BATCH as f32);
            (self.ended, self.true_ones) = (0, 0);
        }
    }

    /// A read had to wait that no forecast named: missing things argues for a lower threshold, gently.
    pub fn missed(&mut self) {
        self.threshold = (self.threshold * 0.9999).max(THRESHOLD.0);
    }

    fn verdict(&mut self, accuracy: f32) {
        self.agreeing = match accuracy {
            a if a > HIGH_ACCURACY => self.agreeing.max(0) + 1,
            a if a < LOW_ACCURACY => self.agreeing.min(0) - 1,
            _ => 0,
        };
        if self.agreeing >= AGREE {
            self.turn(1.25, 0.9);
        } else if self.agreeing <= -AGREE {
            self.turn(0.8, 1.1);
        }
    }

    fn turn(&mut self, horizon: f64, threshold: f32) {
        self.agreeing = 0;
        self.horizon = self.horizon.mul_f64(horizon).clamp(HORIZON.0, HORIZON.1);
        self.threshold = (self.threshold * threshold).clamp(THRESHOLD.0, THRESHOLD.1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(batches: &[bool]) -> Adjuster {
        let mut adjuster = Adjuster::new(Duration::from_secs(10), 0.5);
        for came_true in batches {
            (0..BATCH).for_each(|_| adjuster.ended(*came_true));
        }
        adjuster
    }

    #[test]
    fn three_verdicts_move_it_and_two_do_not() {
        let table = [
            (vec![true; 2], 10.0, 0.5),
            (vec![true; 3], 12.5, 0.45),
            (vec![false; 3], 8.0, 0.55),
            (vec![true, true, false, true, true], 10.0, 0.5),
        ];
        for (batches, horizon, threshold) in table {
            let adjuster = after(&batches);
            assert_eq!(adjuster.horizon().as_secs_f64(), horizon, "{batches:?}");
            assert!((adjuster.threshold() - threshold).abs() < 1e-6, "{batches:?}");
        }
    }

    #[test]
    fn it_stays_within_its_bounds() {
        let always = after(&[true; 200]);
        assert_eq!((always.horizon(), always.threshold()), (HORIZON.1, THRESHOLD.0));
        let never = after(&[false; 200]);
        assert_eq!((never.horizon(), never.threshold()), (HORIZON.0, THRESHOLD.1));
    }
}
