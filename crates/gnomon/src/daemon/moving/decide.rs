//! When to switch: a pure decision of what is lacking and what the guest would feel.

use std::time::Duration;

use gnomon_cycle::StallForecast;
use gnomon_terms::{BlockCount, Bytes, BytesPerSecond};

use crate::api::types::MoveMode;

/// How far ahead the stall of a switch is forecast.
pub const STALL_HORIZON: Duration = Duration::from_secs(10);

/// The share of the guest's reads that may have to wait, hybrid mode: one in fifty is felt less than the switch
/// itself, and less is seldom reached before the volume is whole.
const READS_MAY_STALL: f64 = 0.02;

/// What the decision rests on.
#[derive(Clone, Copy, Debug)]
pub struct Outlook {
    /// Blocks the destination lacks.
    pub lacking: BlockCount,
    /// What the guest would feel if it switched now.
    pub stall: StallForecast,
    /// Bytes a second lately; zero when nothing has been carried yet.
    pub rate: BytesPerSecond,
    /// Bytes a second the guest writes.
    pub writes: BytesPerSecond,
}

/// Whether the guest may switch now.
pub fn is_ready(mode: MoveMode, outlook: &Outlook) -> bool {
    match mode {
        MoveMode::Post => true,
        MoveMode::Pre => is_nearly_whole(outlook),
        MoveMode::Hybrid => is_nearly_whole(outlook) || stalls_little(&outlook.stall),
    }
}

/// What is left is what the guest writes while it is carried: it is sent when the guest stands.
fn is_nearly_whole(outlook: &Outlook) -> bool {
    /// Carried within a pause of 20 ms at 400 Mbit/s.
    const LITTLE: Bytes = Bytes(1 << 20);
    let lacking = outlook.lacking.bytes();
    lacking <= LITTLE || outlook.rate.time_for(lacking) <= Duration::from_millis(20)
}

fn stalls_little(stall: &StallForecast) -> bool {
    stall.reads_expected > 0 && stall.reads_stalling as f64 <= READS_MAY_STALL * stall.reads_expected as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outlook(lacking: u64, expected: u64, stalling: u64) -> Outlook {
        let stall = StallForecast { reads_expected: expected, reads_stalling: stalling, stall: Duration::ZERO };
        let (rate, writes) = (BytesPerSecond(50_000_000), BytesPerSecond(0));
        Outlook { lacking: BlockCount(lacking), stall, rate, writes }
    }

    #[test]
    fn each_mode_has_its_moment() {
        let table = [
            (MoveMode::Post, outlook(1 << 20, 100, 100), true),
            (MoveMode::Pre, outlook(1 << 20, 100, 0), false),
            (MoveMode::Pre, outlook(200, 100, 100), true),
            (MoveMode::Hybrid, outlook(1 << 20, 1000, 21), false),
            (MoveMode::Hybrid, outlook(1 << 20, 1000, 20), true),
            (MoveMode::Hybrid, outlook(1 << 20, 0, 0), false),
            (MoveMode::Hybrid, outlook(0, 0, 0), true),
        ];
        for (mode, outlook, expect) in table {
            assert_eq!(is_ready(mode, &outlook), expect, "{mode:?} {outlook:?}");
        }
    }
}
