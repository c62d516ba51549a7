//! How far a move is, for people and programs.

use std::time::Instant;

use gnomon_cycle::StallForecast;
use gnomon_terms::{BlockCount, BytesPerSecond};

use crate::api::types::Progress;

/// How much an interval counts against those before it: half after about three intervals.
const SMOOTHING: f64 = 0.2;

/// A rate that follows what it sees, smoothly.
pub struct Meter {
    last: Option<(Instant, u64)>,
    rate: f64,
}

impl Meter {
    /// Nothing seen yet.
    pub fn new() -> Meter {
        Meter { last: None, rate: 0.0 }
    }

    /// The counter stands at `total` now.
    pub fn see(&mut self, now: Instant, total: u64) {
        if let Some((then, before)) = self.last {
            let elapsed = now.duration_since(then).as_secs_f64();
            if elapsed <= 0.0 {
                return;
            }
            let rate = total.saturating_sub(before) as f64 / elapsed;
            self.rate = if self.rate == 0.0 { rate } else { self.rate + SMOOTHING * (rate - self.rate) };
        }
        self.last = Some((now, total));
    }

    /// Bytes a second lately.
    pub fn rate(&self) -> BytesPerSecond {
        BytesPerSecond(self.rate as u64)
    }
}

/// What the loop of one volume says each tenth of a second.
#[derive(Clone, Copy, Debug, Default)]
pub struct Look {
    /// Blocks the destination lacks.
    pub lacking: BlockCount,
    /// What the guest would feel if it switched now.
    pub stall: StallForecast,
}

/// The progress of a phase in which what is lacking shrinks.
pub fn shrinking(phase: &str, lacking: u64, total: u64, rate: BytesPerSecond, message: String) -> Progress {
    let eta_s = eta(lacking, rate);
    let done_bytes = total.saturating_sub(lacking);
    Progress { phase: phase.to_string(), done_bytes, total_bytes: total, rate: rate.0, eta_s, message }
}

/// Seconds until so many bytes are there, if anything is carried.
pub fn eta(lacking: u64, rate: BytesPerSecond) -> Option<f64> {
    (rate.0 > 0).then(|| lacking as f64 / rate.0 as f64)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_meter_follows_what_it_sees() {
        let (mut meter, begin) = (Meter::new(), Instant::now());
        for second in 0..20u64 {
            meter.see(begin + Duration::from_secs(second), second * 1000);
        }
        assert_eq!(meter.rate(), BytesPerSecond(1000));
        meter.see(begin + Duration::from_secs(20), 0);
        assert!(meter.rate() < BytesPerSecond(1000), "a counter that falls back is no negative rate");
    }

    #[test]
    fn an_eta_needs_a_rate() {
        assert_eq!(shrinking("prime", 10, 100, BytesPerSecond(0), String::new()).eta_s, None);
        let progress = shrinking("prime", 10, 100, BytesPerSecond(5), String::new());
        assert_eq!((progress.eta_s, progress.done_bytes), (Some(2.0), 90));
    }
}
