//! What the forecasts were worth, so far.

use std::{fmt, time::Duration};

use gnomon_forecast::{ExpertScore, Weight};
use gnomon_terms::Bytes;

/// What the forecasts of one shadow were worth; counts start when the shadow is begun.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Score {
    /// Reads after the switch that found all they needed.
    pub hits: u64,
    /// Reads after the switch that had to wait.
    pub misses: u64,
    /// Of the misses, those for which a move was already on its way.
    pub late: u64,
    /// Units that were carried and then replaced or given up before a read found them.
    pub unused: u64,
    /// Bytes that crossed the link for moves.
    pub moved: Bytes,
    /// Of these, the bytes of unused units.
    pub wasted: Bytes,
    /// Copies that were given up to make room for better ones.
    pub dropped: u64,
    /// Moves that failed.
    pub failed: u64,
    /// What each expert counts at present.
    pub weights: Vec<Weight>,
    /// What each reactive expert's forecasts were worth lately, acted on or not.
    pub experts: Vec<ExpertScore>,
    /// The chance below which a reactive forecast is not acted on.
    pub threshold: f32,
    /// How far ahead reactive forecasts look.
    pub horizon: Duration,
}

impl Score {
    /// The share of reads after the switch that had to wait, 0 to 1; 0 without reads.
    pub fn stalled_share(&self) -> f64 {
        match self.hits + self.misses {
            0 => 0.0,
            reads => self.misses as f64 / reads as f64,
        }
    }
}

impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = 100.0 * self.stalled_share();
        write!(f, "{} reads, {percent:.2} % waited ({} late); ", self.hits + self.misses, self.late)?;
        write!(f, "{} moved, {} of it unused; threshold {:.2}, ", self.moved, self.wasted, self.threshold)?;
        write!(f, "horizon {:.0?}", self.horizon)?;
        self.weights.iter().try_for_each(|w| write!(f, "; {} {:.2}", w.expert, w.weight))
    }
}

#[cfg(test)]
mod tests {
    use gnomon_forecast::Clock;

    use super::*;

    #[test]
    fn a_person_can_read_it() {
        let weights = vec![Weight { clock: Clock::Background, expert: "sequential", weight: 0.25 }];
        let score = Score { hits: 3, misses: 1, moved: Bytes(1 << 20), weights, ..Score::default() };
        let text = score.to_string();
        assert!(text.starts_with("4 reads, 25.00 % waited (0 late); 1.0 MiB moved"), "{text}");
        assert!(text.ends_with("sequential 0.25"), "{text}");
    }
}
