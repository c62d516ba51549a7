//! How it was distributed lately, whatever the order.

use super::{SeriesForecaster, Step, ranks::Ranks};

/// Values without which there are no quantiles.
const ENOUGH: usize = 8;

/// The ranks of the last values themselves. Autopilot sizes tasks with such moving percentiles; on bursts without a
/// rhythm there is little to know beyond them.
///
/// Source: K. Rzadca et al., "Autopilot: workload autoscaling at Google", EuroSys 2020, section 3.2.
#[derive(Clone, Debug)]
pub struct QuantileForecaster {
    last: Ranks,
}

impl QuantileForecaster {
    /// Over the last `window` values, at least one.
    pub fn new(window: usize) -> QuantileForecaster {
        QuantileForecaster { last: Ranks::new(window) }
    }
}

impl SeriesForecaster for QuantileForecaster {
    fn name(&self) -> &'static str {
        "quantile"
    }

    fn observe(&mut self, step: &Step) {
        if let Some(value) = step.value {
            self.last.push(value);
        }
    }

    /// The same at every distance: it knows no order.
    fn quantiles(&self, _ahead: usize, levels: &[f64]) -> Option<Vec<f64>> {
        if self.last.len() < ENOUGH {
            return None;
        }
        levels.iter().map(|level| self.last.at(*level)).collect()
    }

    fn bytes(&self) -> usize {
        size_of::<Self>() + self.last.bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::series::{
        LastForecaster,
        tests::{coverage, loss, noise},
    };

    #[test]
    fn bursts_without_a_rhythm_are_held() {
        let mut seed = 13;
        let bursts: Vec<f64> = (0..3000).map(|_| if noise(&mut seed) > 0.8 { 100.0 } else { 0.0 }).collect();
        let held = coverage(&mut QuantileForecaster::new(288), &bursts, 0.95);
        assert!(held > 0.9, "{held}");
        let last = loss(&mut LastForecaster::default(), &bursts, 288);
        assert!(loss(&mut QuantileForecaster::new(288), &bursts, 288) < 0.8 * last);
    }
}
