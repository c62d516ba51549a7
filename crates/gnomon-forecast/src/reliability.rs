//! Whether a chance means what it says: of forecasts that were given a chance of six in ten, six in ten should come true.

/// Bins of a tenth each.
pub const BINS: usize = 10;

/// The forecasts whose chance was in one tenth.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Bin {
    /// Forecasts that ended.
    pub ended: u32,
    /// Of these, those that came true.
    pub came_true: u32,
    /// The sum of the chances that they were given.
    pub stated: f64,
}

/// How forecasts ended, by the chance that they were given before that was known.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Reliability {
    /// The tenths, the least chance first.
    pub bins: [Bin; BINS],
}

impl Bin {
    /// The mean chance that was given, and the share that came true; none without forecasts.
    pub fn shares(&self) -> Option<(f64, f64)> {
        let ended = f64::from(self.ended);
        (self.ended > 0).then(|| (self.stated / ended, f64::from(self.came_true) / ended))
    }
}

impl Reliability {
    /// A forecast that was given `chance` (0 to 1) has ended.
    pub fn note(&mut self, chance: f32, came_true: bool) {
        let bin = &mut self.bins[((chance * BINS as f32) as usize).min(BINS - 1)];
        bin.ended = bin.ended.saturating_add(1);
        bin.came_true = bin.came_true.saturating_add(u32::from(came_true));
        bin.stated += f64::from(chance);
    }

    /// Together with another's.
    pub fn and(mut self, other: &Reliability) -> Reliability {
        for (bin, more) in self.bins.iter_mut().zip(&other.bins) {
            bin.ended = bin.ended.saturating_add(more.ended);
            bin.came_true = bin.came_true.saturating_add(more.came_true);
            bin.stated += more.stated;
        }
        self
    }

    /// How far chances are off in the mean over forecasts, 0 to 1; none without forecasts.
    ///
    /// Source: the expected calibration error of M. Naeini, G. Cooper and M. Hauskrecht, "Obtaining Well Calibrated
    /// Probabilities Using Bayesian Binning", 2015.
    pub fn error(&self) -> Option<f64> {
        let ended: f64 = self.bins.iter().map(|bin| f64::from(bin.ended)).sum();
        let off = |bin: &Bin| bin.shares().map_or(0.0, |(said, was)| (said - was).abs() * f64::from(bin.ended));
        (ended > 0.0).then(|| self.bins.iter().map(off).sum::<f64>() / ended)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_honest_chance_has_no_error_and_a_boast_has() {
        let (mut honest, mut boast) = (Reliability::default(), Reliability::default());
        assert_eq!(honest.error(), None);
        for n in 0..1000 {
            honest.note(0.75, n % 4 != 0);
            boast.note(1.0, n % 4 == 0);
        }
        assert!(honest.error().is_some_and(|error| error < 1e-6), "{honest:?}");
        assert_eq!(boast.error(), Some(0.75));
        let both = honest.and(&boast);
        assert!(both.error().is_some_and(|error| (error - 0.375).abs() < 1e-6), "{both:?}");
        assert_eq!((both.bins[7].ended, both.bins[9].came_true), (1000, 250));
    }
}
