//! What a static reserve would have served: the baseline that staging has to beat.
//!
//! A reserve of fixed size that is filled up again as quickly as blocks are staged here. Its size is the mean of what
//! was staged, so that both cost the same idle bytes.

use std::{collections::VecDeque, time::Duration};

use gnomon_terms::{Bytes, Instant};

/// Requests that are remembered until what they took has come back. Beyond it the last two become one, which comes back
/// when the later of them would: the baseline is then a little worse than it would be, after a thousand requests within
/// the time that a block takes to be staged.
const MOST_AWAY: usize = 1024;

/// A simulated reserve.
#[derive(Clone, Debug, Default)]
pub(super) struct StaticReserve {
    /// What was taken and when it is back, by that time.
    away: VecDeque<(Instant, u64)>,
    gone: u64,
    hit: u64,
}

impl StaticReserve {
    /// A request, against a reserve of `size` whose bytes come back after `delay`.
    pub(super) fn ask(&mut self, now: Instant, bytes: Bytes, size: Bytes, delay: Duration) {
        while let Some((_, back)) = self.away.pop_front_if(|(due, _)| *due <= now) {
            self.gone -= back;
        }
        let taken = size.0.saturating_sub(self.gone).min(bytes.0);
        if taken == 0 {
            return;
        }
        self.hit = self.hit.saturating_add(taken);
        self.gone += taken;
        let due = now.after(delay).max(self.away.back().map_or(now, |(due, _)| *due));
        let full = self.away.len() >= MOST_AWAY;
        match self.away.back_mut().filter(|_| full) {
            Some(last) => *last = (due, last.1 + taken),
            None => self.away.push_back((due, taken)),
        }
    }

    /// What it has served.
    pub(super) fn hit(&self) -> Bytes {
        Bytes(self.hit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::ORIGIN.after(Duration::from_secs(seconds))
    }

    #[test]
    fn what_was_taken_comes_back_after_the_delay() {
        let mut reserve = StaticReserve::default();
        // (second, asked) of a reserve of 10 that comes back after 5 s, and what was hit in all.
        for (second, asked, hit) in
            [(0, 4, 4), (1, 4, 8), (2, 4, 10), (3, 4, 10), (5, 4, 14), (6, 9, 18), (60, 99, 28)]
        {
            reserve.ask(at(second), Bytes(asked), Bytes(10), Duration::from_secs(5));
            assert_eq!(reserve.hit(), Bytes(hit), "second {second}");
        }
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut reserve = StaticReserve::default();
        (0..10_000).for_each(|_| reserve.ask(at(0), Bytes(1), Bytes(1 << 40), Duration::from_secs(1)));
        assert_eq!((reserve.away.len(), reserve.hit()), (MOST_AWAY, Bytes(10_000)));
        reserve.ask(at(9), Bytes(1), Bytes(1), Duration::from_secs(1));
        assert_eq!(reserve.hit(), Bytes(10_001), "all of it came back");
    }

    #[test]
    fn a_reserve_that_shrank_below_what_is_away_serves_nothing() {
        let mut reserve = StaticReserve::default();
        reserve.ask(at(0), Bytes(8), Bytes(8), Duration::from_secs(9));
        reserve.ask(at(1), Bytes(8), Bytes(4), Duration::from_secs(9));
        assert_eq!(reserve.hit(), Bytes(8));
    }
}
