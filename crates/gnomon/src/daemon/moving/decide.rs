//! When to switch, whether to try again, and whether it gets anywhere: pure decisions of what is known.

use std::time::Duration;

use gnomon_cycle::StallForecast;
use gnomon_terms::{BlockCount, Bytes, BytesPerSecond};

use crate::api::{Kind, types::MoveMode};

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

/// How long to wait before another session is tried after one that failed; `None`: the move is given up.
///
/// Before the switch a failure that another session would only repeat (a certificate that is refused, a full disk) ends
/// the move: nothing has changed, and its operator is told at once. After it nothing does: the guest's blocks are on
/// two nodes, and the move goes on whenever what stands in its way is mended.
pub fn try_again(switched: bool, is_fault: bool, error: Kind) -> Option<Duration> {
    match (error, switched) {
        (Kind::Unavailable, true) => Some(Duration::from_millis(500)),
        (Kind::Unavailable, false) => (!is_fault).then_some(Duration::from_millis(500)),
        (_, true) => Some(Duration::from_secs(5)),
        (_, false) => None,
    }
}

/// Looks without a new least after which a copy counts as getting nowhere: ten seconds of them.
const PATIENT_LOOKS: u32 = 100;

/// Whether what is lacking becomes less.
#[derive(Clone, Copy, Debug, Default)]
pub struct Convergence {
    least: Option<BlockCount>,
    looks_since: u32,
}

impl Convergence {
    /// So much is lacking now. True while the guest writes faster than the link carries.
    pub fn is_stuck(&mut self, lacking: BlockCount) -> bool {
        match self.least {
            Some(least) if lacking >= least => self.looks_since += 1,
            _ => (self.least, self.looks_since) = (Some(lacking), 0),
        }
        self.looks_since >= PATIENT_LOOKS
    }
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
    fn what_lasts_ends_a_move_before_its_switch_and_never_after_it() {
        let table = [
            (false, false, Kind::Unavailable, Some(500)),
            (false, true, Kind::Unavailable, None),
            (false, false, Kind::Refused, None),
            (false, false, Kind::Corrupt, None),
            (true, false, Kind::Unavailable, Some(500)),
            (true, true, Kind::Unavailable, Some(500)),
            (true, false, Kind::Refused, Some(5000)),
            (true, true, Kind::Corrupt, Some(5000)),
        ];
        for (switched, is_fault, kind, expect) in table {
            let wait = try_again(switched, is_fault, kind).map(|wait| wait.as_millis());
            assert_eq!(wait, expect, "{switched} {is_fault} {kind:?}");
        }
    }

    #[test]
    fn a_copy_without_a_new_least_is_stuck() {
        let mut convergence = Convergence::default();
        let stuck = |convergence: &mut Convergence, lacking: &[u64]| {
            lacking.iter().map(|lacking| convergence.is_stuck(BlockCount(*lacking))).filter(|stuck| *stuck).count()
        };
        assert_eq!(stuck(&mut convergence, &(0..500).rev().collect::<Vec<_>>()), 0, "it gets less");
        assert_eq!(stuck(&mut convergence, &[7; 99]), 0, "it may be a burst");
        assert_eq!(stuck(&mut convergence, &[7, 3, 90]), 3);
        let mut slow = Convergence::default();
        let slowly: Vec<u64> = (0..50).rev().flat_map(|least| [least + 20; 90].into_iter().chain([least])).collect();
        assert_eq!(stuck(&mut slow, &slowly), 0, "slowly is not never");
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
