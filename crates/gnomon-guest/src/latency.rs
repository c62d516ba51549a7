//! Latencies in a fixed-size histogram: 16 steps to each doubling, so a quantile is right to within 6 %.

use std::time::Duration;

/// Steps to each doubling; the error of a quantile is at most one step.
const STEPS: u64 = 16;
const BUCKETS: usize = 64 * STEPS as usize;

/// Counts of microsecond latencies. 8 KiB, whatever is put in.
#[derive(Clone, Debug)]
pub struct Latencies {
    counts: Vec<u64>,
    total: u64,
    max: u64,
}

impl Default for Latencies {
    fn default() -> Latencies {
        Latencies { counts: vec![0; BUCKETS], total: 0, max: 0 }
    }
}

impl Latencies {
    /// Notes one latency.
    pub fn note(&mut self, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        self.counts[bucket(micros)] += 1;
        self.total += 1;
        self.max = self.max.max(micros);
    }

    /// Adds all that `other` saw.
    pub fn merge(&mut self, other: &Latencies) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
        self.total += other.total;
        self.max = self.max.max(other.max);
    }

    /// The latency in microseconds that `share` (0 to 1) of all did not exceed; 0 when there were none.
    pub fn quantile(&self, share: f64) -> u64 {
        let wanted = (self.total as f64 * share).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted && self.total > 0 {
                return upper(index as u64).min(self.max);
            }
        }
        self.max
    }

    /// The longest, in microseconds.
    pub fn max(&self) -> u64 {
        self.max
    }
}

/// Values below 16 have their own bucket; above, the leading bit and the four after it name it.
fn bucket(micros: u64) -> usize {
    if micros < STEPS {
        return micros as usize;
    }
    let power = u64::from(micros.ilog2());
    let step = (micros >> (power - 4)) & (STEPS - 1);
    ((power - 3) * STEPS + step) as usize
}

/// The largest value that falls into bucket `index`.
fn upper(index: u64) -> u64 {
    if index < STEPS {
        return index;
    }
    let (power, step) = (index / STEPS + 3, index % STEPS);
    ((STEPS + step + 1) << (power - 4)) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_what_its_upper_edge_says() {
        for micros in (0..5000).chain([1 << 20, (1 << 40) + 12345]) {
            let edge = upper(bucket(micros) as u64);
            assert!(edge >= micros && edge - micros <= micros / 16, "{micros} fell under {edge}");
        }
    }

    #[test]
    fn quantiles_of_a_known_set() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.quantile(0.5), 0);
        for micros in 1..=1000 {
            latencies.note(Duration::from_micros(micros));
        }
        assert!((470..=540).contains(&latencies.quantile(0.5)));
        assert!((985..=1000).contains(&latencies.quantile(0.99)));
        assert_eq!((latencies.quantile(1.0), latencies.max()), (1000, 1000));
    }

    #[test]
    fn merging_is_noting_both() {
        let (mut one, mut two, mut both) = (Latencies::default(), Latencies::default(), Latencies::default());
        for micros in 0..100 {
            let latency = Duration::from_micros(micros * micros);
            if micros % 3 == 0 {
                one.note(latency)
            } else {
                two.note(latency)
            }
            both.note(latency);
        }
        one.merge(&two);
        assert_eq!((one.quantile(0.5), one.max()), (both.quantile(0.5), both.max()));
    }
}
