//! How good a forecaster of places was.

use super::{Chances, Region};

/// Bins of the chance of the likeliest place.
const BINS: usize = 10;

/// What is known of a forecaster: only forecasts that were made before the access came are counted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LocationScore {
    judged: u64,
    first: u64,
    among_three: u64,
    log_loss: f64,
    /// For each tenth of the likeliest place's chance: how often, the chances' sum, how often it was right.
    bins: [(u64, f64, u64); BINS],
}

impl LocationScore {
    /// Judges a forecast by where the access came from; its log loss, in nats.
    pub fn judge(&mut self, chances: &Chances, came: Region) -> f64 {
        let top = chances.top(3);
        let right = top.first().is_some_and(|(place, _)| *place == came);
        let loss = -f64::from(chances.at(came)).ln();
        self.judged += 1;
        self.first += u64::from(right);
        self.among_three += u64::from(top.iter().any(|(place, _)| *place == came));
        self.log_loss += loss;
        let chance = top.first().map_or(0.0, |(_, chance)| f64::from(*chance));
        let bin = &mut self.bins[((chance * BINS as f64) as usize).min(BINS - 1)];
        *bin = (bin.0 + 1, bin.1 + chance, bin.2 + u64::from(right));
        loss
    }

    /// Forecasts that were judged.
    pub fn judged(&self) -> u64 {
        self.judged
    }

    /// How often the likeliest place was it; 0.0 of none judged, as all below.
    pub fn first(&self) -> f64 {
        self.first as f64 / self.judged.max(1) as f64
    }

    /// How often it was among the three likeliest.
    pub fn among_three(&self) -> f64 {
        self.among_three as f64 / self.judged.max(1) as f64
    }

    /// The mean log loss, in nats.
    pub fn log_loss(&self) -> f64 {
        self.log_loss / self.judged.max(1) as f64
    }

    /// Expected calibration error: how far what was called so and so likely was from how often it happened, the mean over
    /// ten bins.
    ///
    /// Source: M. Naeini, G. Cooper, M. Hauskrecht, "Obtaining Well Calibrated Probabilities Using Bayesian Binning", 2015.
    pub fn calibration_error(&self) -> f64 {
        let off = |bin: &(u64, f64, u64)| (bin.1 - bin.2 as f64).abs();
        self.bins.iter().map(off).sum::<f64>() / self.judged.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::location::tests::region;

    #[test]
    fn who_says_seven_of_ten_is_to_be_right_seven_times_of_ten() {
        let chances = Chances::of(vec![0.7, 0.1, 0.1, 0.05, 0.05]);
        let (mut honest, mut boastful) = (LocationScore::default(), LocationScore::default());
        for round in 0..1000 {
            honest.judge(&chances, region(if round % 10 < 7 { 0 } else { 1 }));
            boastful.judge(&chances, region(if round % 10 < 3 { 0 } else { 4 }));
        }
        assert!(honest.calibration_error() < 0.01 && (boastful.calibration_error() - 0.4).abs() < 0.01);
        assert_eq!((honest.first(), honest.among_three(), boastful.among_three()), (0.7, 1.0, 0.3));
        assert!(honest.log_loss() < boastful.log_loss());
        assert_eq!(LocationScore::default().calibration_error(), 0.0);
    }
}
