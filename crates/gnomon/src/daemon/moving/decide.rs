//! When to switch, whether to try again, and whether it gets anywhere: pure decisions of what is known.

use std::time::Duration;

use gnomon_cycle::StallForecast;
use gnomon_terms::{BlockCount, Bytes, BytesPerSecond, PageCount};

use crate::api::{Kind, types::MoveMode};

/// How far ahead the stall of a switch is forecast.
pub const STALL_HORIZON: Duration = Duration::from_secs(10);

/// The share of its time that the guest may be expected to wait for blocks after the switch, hybrid mode. It falls
/// quickly from there, because the blocks it waits for come first; and the host is free so much sooner.
const MAY_WAIT: f64 = 0.25;

/// How long the guest may stand for the rest of its memory, by how long it has been sent already. A guest that dirties
/// memory as fast as the link carries it never comes under the first, and is made to stand longer rather than never
/// to arrive.
const DOWNTIMES: [(Duration, Duration); 4] = [
    (Duration::ZERO, Duration::from_millis(40)),
    (Duration::from_secs(10), Duration::from_millis(100)),
    (Duration::from_secs(20), Duration::from_millis(300)),
    (Duration::from_secs(40), Duration::from_secs(1)),
];
/// Pages that are sent within any pause: 256 KiB, 5 ms at 400 Mbit/s.
const FEW_PAGES: PageCount = PageCount(64);
/// Passes over its memory before what is left is judged by how long the last one took: the first sends pages that were
/// never written, which takes no time.
const PASSES: u32 = 2;

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

/// How long a guest may stand for the rest of its memory that has been sent for so long.
pub fn downtime_after(sent_for: Duration) -> Duration {
    DOWNTIMES.iter().rev().find(|(after, _)| sent_for >= *after).map_or(DOWNTIMES[0].1, |(_, downtime)| *downtime)
}

/// A pass over what was written of a guest's memory, beside the running guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pass {
    /// How many there were, with this one.
    pub count: u32,
    /// Pages that were owed at its beginning.
    pub pages: PageCount,
    /// How long it took until the destination had them.
    pub took: Duration,
}

/// Whether a guest may be made to stand for the `owed` pages, which would take as long as those of the last pass did.
pub fn may_stand(owed: PageCount, last: &Pass, downtime: Duration) -> bool {
    if owed <= FEW_PAGES {
        return true;
    }
    let share = owed.0 as f64 / last.pages.0.max(1) as f64;
    last.count >= PASSES && last.took.mul_f64(share) <= downtime
}

/// What its user is told of a guest that has been sent for so long.
pub fn strain(sent_for: Duration) -> Option<String> {
    let [first, .., last] = DOWNTIMES;
    let downtime = downtime_after(sent_for);
    match downtime {
        _ if downtime == first.1 => None,
        _ if downtime == last.1 => Some(format!(
            "the guest writes memory faster than the link carries it in {} s: raise --bandwidth, let it write less, or \
             cancel",
            last.1.as_secs_f64()
        )),
        _ => Some(format!(
            "the guest writes memory about as fast as the link carries it: it may stand for {} ms",
            downtime.as_millis()
        )),
    }
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
    fn a_guest_that_does_not_converge_may_stand_longer() {
        let table = [(0, 40, ""), (9, 40, ""), (10, 100, "100 ms"), (25, 300, "300 ms"), (3600, 1000, "in 1 s")];
        for (seconds, millis, told) in table {
            let sent_for = Duration::from_secs(seconds);
            assert_eq!(downtime_after(sent_for), Duration::from_millis(millis), "{seconds} s");
            assert!(strain(sent_for).unwrap_or_default().contains(told), "{seconds} s");
            assert_eq!(strain(sent_for).is_none(), told.is_empty(), "{seconds} s");
        }
    }

    #[test]
    fn a_guest_stands_for_what_can_be_sent_meanwhile() {
        let pass =
            |count, pages, millis| Pass { count, pages: PageCount(pages), took: Duration::from_millis(millis) };
        let table = [
            ("nothing was written", 0, pass(1, 65_536, 900), 40, true),
            ("hardly anything", 64, pass(1, 65_536, 900), 40, true),
            ("how fast they go is not known", 200, pass(1, 65_536, 900), 40, false),
            ("as many as in the last pass", 400, pass(2, 400, 39), 40, true),
            ("more than that", 500, pass(2, 400, 39), 40, false),
            ("it may stand longer by now", 500, pass(3, 400, 39), 100, true),
            ("nothing was sent last", 100, pass(2, 0, 1), 40, false),
            ("and it took no time", 100, pass(2, 0, 0), 40, true),
        ];
        for (name, owed, last, downtime, expected) in table {
            assert_eq!(may_stand(PageCount(owed), &last, Duration::from_millis(downtime)), expected, "{name}");
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
