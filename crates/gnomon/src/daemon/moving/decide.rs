//! When to switch: a pure decision of what is lacking and what the guest would feel.

use std::time::Duration;

use gnomon_cycle::StallForecast;
use gnomon_terms::{BlockCount, Bytes, BytesPerSecond};

use crate::api::types::MoveMode;

/// How far ahead the stall of a switch is forecast.
pub const STALL_HORIZON: Duration = Duration::from_secs(10);

/// The share of its time that the guest may be expected to wait for blocks after the switch, hybrid mode. It falls
/// quickly from there, because the blocks it waits for come first; and the host is free so much sooner.
const MAY_WAIT: f64 = 0.25;

/// What the decision rests on.
#[derive(Clone, Copy, Debug)]
pub struct Outlook {
    /// Blocks the destination lacks.
    pub lacking: BlockCount,
    /// What the guest would feel if it switched now.
    pub stall: StallForecast,
    /// Bytes a second lately; zero when nothing has been carried yet.
    pub rate: BytesPerSecond,
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
    stall.reads_expected > 0 && stall.stall <= STALL_HORIZON.mul_f64(MAY_WAIT)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each read that waits waits for 5 ms.
    fn outlook(lacking: u64, expected: u64, stalling: u64) -> Outlook {
        let stall = Duration::from_millis(5 * stalling);
        let stall = StallForecast { reads_expected: expected, reads_stalling: stalling, stall };
        Outlook { lacking: BlockCount(lacking), stall, rate: BytesPerSecond(50_000_000) }
    }

    #[test]
    fn each_mode_has_its_moment() {
        let table = [
            (MoveMode::Post, outlook(1 << 20, 100, 100), true),
            (MoveMode::Pre, outlook(1 << 20, 100, 0), false),
            (MoveMode::Pre, outlook(200, 100, 100), true),
            (MoveMode::Hybrid, outlook(1 << 20, 1000, 501), false),
            (MoveMode::Hybrid, outlook(1 << 20, 1000, 500), true),
            (MoveMode::Hybrid, outlook(1 << 20, 0, 0), false),
            (MoveMode::Hybrid, outlook(0, 0, 0), true),
        ];
        for (mode, outlook, expect) in table {
            assert_eq!(is_ready(mode, &outlook), expect, "{mode:?} {outlook:?}");
        }
    }
}
