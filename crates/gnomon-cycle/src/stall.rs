//! What would the guest feel if it switched now?
//!
//! The reads of the recent past stand for those of the near future: of the last reads, how many would find a block
//! lacking? A unit counts once, because the first read that waits brings the whole unit.

use std::collections::VecDeque;
use std::time::Duration;

use gnomon_forecast::{BlockMap, Geometry};
use gnomon_terms::{BytesPerSecond, Extent, Instant};

/// Reads that are remembered: 4,096 looked up in a map take some 50 µs, cheap enough for each 100 ms.
const REMEMBERED: usize = 4096;

/// What a guest would feel within a horizon after switching now.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StallForecast {
    /// Reads expected within the horizon.
    pub reads_expected: u64,
    /// Of these, the reads that would have to wait.
    pub reads_stalling: u64,
    /// The waits added up, at the given rate and round trip.
    pub stall: Duration,
}

/// The recent reads of a guest.
#[derive(Clone, Debug, Default)]
pub(crate) struct RecentReads {
    reads: VecDeque<(Instant, Extent)>,
}

impl RecentReads {
    pub(crate) fn note(&mut self, at: Instant, extent: Extent) {
        if self.reads.len() == REMEMBERED {
            self.reads.pop_front();
        }
        self.reads.push_back((at, extent));
    }

    /// The last reads, at most `most`, the latest first.
    pub(crate) fn last(&self, most: usize) -> impl Iterator<Item = (Instant, Extent)> {
        self.reads.iter().rev().take(most).copied()
    }

    /// What the reads of the last `horizon` would feel with `lacking` missing. If the memory does not reach back
    /// that far, it is scaled up.
    pub(crate) fn forecast(
        &self,
        (now, horizon): (Instant, Duration),
        (geometry, lacking): (Geometry, &BlockMap),
        (rate, round_trip): (BytesPerSecond, Duration),
    ) -> StallForecast {
        let recent = || self.reads.iter().rev().take_while(|(at, _)| now.since(*at) <= horizon);
        let reads = recent().count() as u64;
        let mut units: Vec<_> = recent()
            .filter(|(_, extent)| lacking.contains_any(*extent))
            .flat_map(|(_, extent)| {
                geometry.units_of(*extent).filter(|u| lacking.contains_any(geometry.extent_of(*u)))
            })
            .collect();
        units.sort_unstable();
        units.dedup();
        let scale = self.scale(now, horizon, reads);
        let one = rate.time_for(geometry.unit_bytes()).saturating_add(round_trip);
        let stalling = (units.len() as f64 * scale) as u64;
        let stall = one.checked_mul(u32::try_from(stalling).unwrap_or(u32::MAX)).unwrap_or(Duration::MAX);
        StallForecast { reads_expected: (reads as f64 * scale) as u64, reads_stalling: stalling, stall }
    }

    /// How much longer the horizon is than what the memory holds of it.
    fn scale(&self, now: Instant, horizon: Duration, reads: u64) -> f64 {
        if (reads as usize) < REMEMBERED {
            return 1.0;
        }
        let held = self.reads.front().map_or(horizon, |(at, _)| now.since(*at));
        (horizon.as_secs_f64() / held.as_secs_f64().max(1e-3)).max(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gnomon_terms::BlockCount;

    const SECOND: Duration = Duration::from_secs(1);

    fn forecast(recent: &RecentReads, lacking: &BlockMap, horizon: Duration) -> StallForecast {
        let geometry = Geometry::new(lacking.size(), 16).unwrap();
        let now = Instant::ORIGIN.after(10 * SECOND);
        recent.forecast((now, horizon), (geometry, lacking), (BytesPerSecond(65536), Duration::ZERO))
    }

    #[test]
    fn a_unit_stalls_once() {
        let mut recent = RecentReads::default();
        recent.note(Instant::ORIGIN.after(SECOND), Extent::new(40, 1));
        for start in [0, 1, 17, 33] {
            recent.note(Instant::ORIGIN.after(9 * SECOND), Extent::new(start, 1));
        }
        let mut lacking = BlockMap::full(BlockCount(64));
        lacking.remove(Extent::new(16, 16));
        let expected = StallForecast { reads_expected: 4, reads_stalling: 2, stall: 2 * SECOND };
        assert_eq!(forecast(&recent, &lacking, 5 * SECOND), expected);
        let nothing = forecast(&recent, &BlockMap::empty(BlockCount(64)), 5 * SECOND);
        assert_eq!((nothing.reads_stalling, nothing.stall), (0, Duration::ZERO));
    }

    #[test]
    fn a_short_memory_is_scaled_up() {
        let mut recent = RecentReads::default();
        for read in 0..2 * REMEMBERED as u64 {
            recent.note(Instant::ORIGIN.after(9 * SECOND), Extent::new(read % 64, 1));
        }
        let forecast = forecast(&recent, &BlockMap::full(BlockCount(64)), 5 * SECOND);
        assert_eq!((forecast.reads_expected, forecast.reads_stalling), (5 * REMEMBERED as u64, 20));
    }
}
