//! How far chances are to be believed: sharper or flatter than they were said, as what came has shown.
//!
//! The weighted mean of forecasts that are each well calibrated is too timid: where they agree for different reasons more
//! is known than any of them says. And a network that learns while it forecasts is too bold. One number mends either:
//! chances are raised to a power and scaled to sum to one. It follows the slope of the log loss, which has one bottom.
//!
//! Source: R. Ranjan, T. Gneiting, "Combining probability forecasts", 2010, for the timid mean; C. Guo et al., "On
//! calibration of modern neural networks", 2017, for the one number (there its inverse, a temperature).

use super::{Chances, Region};

/// How far the power follows the slope of one visit's loss, in nats: it has moved half of its way after some hundred.
const RATE: f32 = 0.005;
/// The power stays within these: beyond them models are wrong in another way.
const LEAST: f32 = 0.5;
const MOST: f32 = 2.0;

/// A power for chances; 1 leaves them as they are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Sharpness {
    power: f32,
}

impl Default for Sharpness {
    fn default() -> Sharpness {
        Sharpness { power: 1.0 }
    }
}

impl Sharpness {
    /// The power.
    pub(super) fn power(&self) -> f32 {
        self.power
    }

    /// The chances as they are to be believed.
    pub(super) fn of(&self, said: &Chances) -> Chances {
        Chances::of(said.all().iter().map(|chance| chance.powf(self.power)).collect())
    }

    /// Something came of which this had been said.
    pub(super) fn learn(&mut self, said: &Chances, came: Region) {
        let believed = self.of(said);
        let expected: f32 = believed.all().iter().zip(said.all()).map(|(chance, said)| chance * said.ln()).sum();
        // What came was likelier than expected: chances were too flat.
        let slope = said.at(came).ln() - expected;
        self.power = (self.power + RATE * slope).clamp(LEAST, MOST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::location::{LocationScore, tests::dice, tests::region};

    /// Says one chance of the first of four places while another is true; how it was said, and how believed.
    fn told(said: f32, truth: f64) -> (LocationScore, LocationScore, Sharpness) {
        let rest = (1.0 - said) / 3.0;
        let chances = Chances::of(vec![said, rest, rest, rest]);
        let (mut as_said, mut as_believed) = (LocationScore::default(), LocationScore::default());
        let (mut sharpness, mut seed) = (Sharpness::default(), 149);
        for round in 0..6000 {
            let came = region(if (dice(&mut seed, 1000) as f64) < 1000.0 * truth { 0 } else { 1 + round % 3 });
            if round > 3000 {
                as_said.judge(&chances, came);
                as_believed.judge(&sharpness.of(&chances), came);
            }
            sharpness.learn(&chances, came);
        }
        (as_said, as_believed, sharpness)
    }

    #[test]
    fn the_timid_are_made_bolder_and_the_bold_more_timid() {
        for (said, truth) in [(0.6, 0.8), (0.9, 0.7)] {
            let (as_said, as_believed, _) = told(said, truth);
            assert!(as_believed.calibration_error() < 0.3 * as_said.calibration_error(), "{as_believed:?}");
            assert!(as_believed.log_loss() < as_said.log_loss(), "{as_believed:?}");
        }
    }

    #[test]
    fn who_is_right_is_left_alone_and_who_is_always_wrong_within_bounds() {
        let (_, _, sharpness) = told(0.7, 0.7);
        assert!((sharpness.power() - 1.0).abs() < 0.15, "{sharpness:?}");
        assert_eq!(told(0.97, 0.0).2.power(), LEAST);
        assert_eq!(told(0.3, 1.0).2.power(), MOST);
    }
}
