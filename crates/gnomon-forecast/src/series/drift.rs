//! Whether a stream of losses has become another one.

/// Losses are between 0 and 1 with a mean about a quarter. A rise by less than this is no drift.
const TOLERATED: f64 = 0.05;
/// How much unexpected loss has to add up: the mean doubling for a hundred steps, or all going wrong for some thirty.
const ALARM: f64 = 20.0;
/// Before this many losses their mean says nothing.
const ENOUGH: u64 = 64;

/// Page and Hinkley's test for a rise of the mean: what losses exceed it by is added up, and never below nothing.
///
/// Source: E. S. Page, "Continuous Inspection Schemes", Biometrika 1954.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Drift {
    seen: u64,
    mean: f64,
    excess: f64,
}

impl Drift {
    /// Notes a loss, 0 to 1; true when it is one too many. The test then begins anew.
    pub(super) fn note(&mut self, loss: f64) -> bool {
        self.seen += 1;
        self.mean += (loss - self.mean) / self.seen as f64;
        self.excess = (self.excess + loss - self.mean - TOLERATED).max(0.0);
        let alarm = self.seen > ENOUGH && self.excess > ALARM;
        if alarm {
            *self = Drift::default();
        }
        alarm
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::series::tests::noise;

    #[test]
    fn noise_is_no_drift_and_a_new_manner_is() {
        let (mut drift, mut seed) = (Drift::default(), 1);
        assert!((0..20_000).all(|_| !drift.note(0.25 + 0.25 * noise(&mut seed))));
        assert!((0..60).any(|_| drift.note(0.9)));
        assert!((0..60).all(|_| !drift.note(0.9)), "the new manner is the usual one now");
    }
}
