//! A histogram of durations of bounded size, exact to an eighth.

use std::time::Duration;

/// Buckets to a doubling: the eighth of which a bucket is wide.
const PARTS: u64 = 8;

/// Buckets: up to 2⁴⁰ ns (18 minutes), eight to a doubling. Longer ones are in the last.
const BUCKETS: usize = 40 * PARTS as usize;

/// Durations, counted. Takes 2.5 KiB.
#[derive(Clone, Debug)]
pub(crate) struct Histogram {
    counts: Vec<u64>,
    total: u64,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram { counts: vec![0; BUCKETS], total: 0 }
    }
}

impl Histogram {
    /// Counts one.
    pub(crate) fn count(&mut self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.counts[bucket(nanos)] += 1;
        self.total += 1;
    }

    /// The duration that a share `q` (0 to 1) of all stayed below, at most an eighth too long; `None` when there are
    /// none.
    pub(crate) fn quantile(&self, q: f64) -> Option<Duration> {
        let rank = ((self.total as f64 * q).ceil() as u64).clamp(1, self.total.max(1));
        let mut seen = 0;
        let found = self.counts.iter().position(|count| {
            seen += count;
            seen >= rank
        });
        found.map(|bucket| Duration::from_nanos(end(bucket)))
    }
}

/// Durations below 8 ns have a bucket each; from there on the three bits after the leading one choose it.
fn bucket(nanos: u64) -> usize {
    let bucket = match nanos < PARTS {
        true => nanos,
        false => {
            let doubling = u64::from(nanos.ilog2()) - 3;
            doubling * PARTS + (nanos >> doubling)
        }
    };
    usize::try_from(bucket).unwrap_or(usize::MAX).min(BUCKETS - 1)
}

/// The first duration beyond a bucket.
fn end(bucket: usize) -> u64 {
    let next = bucket as u64 + 1;
    match next < 2 * PARTS {
        true => next,
        false => (next % PARTS + PARTS) << (next / PARTS - 1),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn quantiles_of_known_durations() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile(0.5), None);
        (1..=100).for_each(|micros| histogram.count(Duration::from_micros(micros)));
        for (q, exact) in [(0.5, 50.0), (0.99, 99.0), (1.0, 100.0), (0.0, 1.0)] {
            let told = histogram.quantile(q).expect("there are some").as_nanos() as f64 / 1000.0;
            assert!(told >= exact && told <= exact * 1.126, "{q}: {told}");
        }
        histogram.count(Duration::MAX);
        assert!(histogram.quantile(1.0).expect("there are some") > Duration::from_secs(600));
    }

    proptest! {
        #[test]
        fn a_bucket_is_an_eighth_wide_and_holds_its_durations(nanos in 0u64..1 << 39) {
            let beyond = end(bucket(nanos));
            prop_assert!(beyond > nanos && beyond - nanos <= nanos / 8 + 1, "{nanos} {beyond}");
        }
    }
}
