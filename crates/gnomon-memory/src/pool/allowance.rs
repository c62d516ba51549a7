//! How much may be staged for a group: a bucket of bytes that fills at a rate.
//!
//! What is staged is paid from it, whatever becomes of the block. So a guest that asks and returns in a loop, and
//! populations that are given up again and again, cost no more than the rate.

use gnomon_terms::{Bytes, BytesPerSecond, Instant};

/// A bucket.
#[derive(Clone, Copy, Debug)]
pub(super) struct Allowance {
    left: u64,
    at: Instant,
}

impl Allowance {
    /// A full one.
    pub(super) fn full(now: Instant, most: Bytes) -> Allowance {
        Allowance { left: most.0, at: now }
    }

    /// What may be staged now.
    pub(super) fn left(&mut self, now: Instant, rate: BytesPerSecond, most: Bytes) -> Bytes {
        let gained = u128::from(rate.0) * now.since(self.at).as_nanos() / 1_000_000_000;
        // Time that is not worth a byte yet is kept for the next look.
        if gained > 0 {
            self.left = self.left.saturating_add(u64::try_from(gained).unwrap_or(u64::MAX));
            self.at = now;
        }
        self.left = self.left.min(most.0);
        Bytes(self.left)
    }

    /// Pays.
    pub(super) fn pay(&mut self, bytes: Bytes) {
        self.left = self.left.saturating_sub(bytes.0);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn it_fills_at_its_rate_and_not_beyond() {
        let at = |millis| Instant::ORIGIN.after(Duration::from_millis(millis));
        let mut allowance = Allowance::full(at(0), Bytes(100));
        // (millisecond, paid before it, left) at 10 a second.
        for (millis, paid, left) in
            [(0, 0, 100), (0, 100, 0), (50, 0, 0), (100, 0, 1), (1100, 0, 11), (99_000, 0, 100)]
        {
            allowance.pay(Bytes(paid));
            assert_eq!(allowance.left(at(millis), BytesPerSecond(10), Bytes(100)), Bytes(left), "at {millis} ms");
        }
    }

    #[test]
    fn looking_often_loses_nothing() {
        let mut allowance = Allowance::full(Instant::ORIGIN, Bytes(0));
        let looks = (1..=1000).map(|n| Instant::ORIGIN.after(Duration::from_millis(n)));
        let last = looks.map(|now| allowance.left(now, BytesPerSecond(10), Bytes(100))).last();
        assert_eq!(last, Some(Bytes(10)));
    }

    #[test]
    fn a_smaller_budget_takes_effect_at_once() {
        let mut allowance = Allowance::full(Instant::ORIGIN, Bytes(100));
        assert_eq!(allowance.left(Instant::ORIGIN, BytesPerSecond(10), Bytes(7)), Bytes(7));
    }
}
