//! What is accessed next, and when: decisions without a disk or a clock.

use std::time::Duration;

use crate::{
    chance::{Dice, Scatter, Zipf},
    disk::SCAN_STEP,
    params::Params,
    record::RECORD_SIZE,
};

/// Records in one step of a scan.
const STEP_RECORDS: u64 = (SCAN_STEP / RECORD_SIZE) as u64;

/// A run of neighbouring records to access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The first record.
    pub first: u64,
    /// How many, at least one and at most a scan step.
    pub count: u64,
}

/// Chooses records: popular ones often, by a Zipf law over clusters scattered over the disk, with now and then a
/// sequential burst, as a table scan or a large file gives. Reader and writer of one seed share the hot set.
#[derive(Debug)]
pub struct Plan {
    records: u64,
    cluster: u64,
    law: Zipf,
    scatter: Scatter,
    scan: u64,
    burst: u64,
    left: Run,
    dice: Dice,
}

impl Plan {
    /// A plan over `records` records. `stream` tells readers and writers of one seed apart.
    pub fn new(params: &Params, records: u64, stream: u64) -> Plan {
        let cluster = params.cluster.clamp(1, records.max(1));
        Plan {
            records,
            cluster,
            law: Zipf::new(records, params.zipf),
            scatter: Scatter::new(records / cluster, params.seed),
            scan: params.scan,
            burst: params.scan_kib * 1024 / RECORD_SIZE as u64,
            left: Run { first: 0, count: 0 },
            dice: Dice::new(params.seed.wrapping_add(stream)),
        }
    }

    /// The next read: one record, or the next step of a burst.
    pub fn read(&mut self) -> Run {
        if self.left.count == 0 && self.scan > 0 && self.dice.below(self.scan) == 0 {
            let first = self.dice.below(self.records);
            self.left = Run { first, count: self.burst.min(self.records - first) };
        }
        if self.left.count == 0 {
            return Run { first: self.record(), count: 1 };
        }
        let step = Run { first: self.left.first, count: self.left.count.min(STEP_RECORDS) };
        self.left = Run { first: step.first + step.count, count: self.left.count - step.count };
        step
    }

    /// The next record by popularity: its rank's cluster is scattered, its place within the cluster kept.
    pub fn record(&mut self) -> u64 {
        let rank = self.law.rank(&mut self.dice);
        self.scatter.place(rank / self.cluster) * self.cluster + rank % self.cluster
    }
}

/// Spreads operations evenly over time. Behind by more than a second, the debt is forgiven: a stall is followed by
/// the normal rate, not by a storm.
#[derive(Debug)]
pub struct Pace {
    interval: Duration,
    due: Duration,
}

impl Pace {
    /// `rate` operations a second, or nothing when it is zero.
    pub fn new(rate: u64) -> Option<Pace> {
        let interval = Duration::from_secs(1).checked_div(u32::try_from(rate).ok()?)?;
        Some(Pace { interval, due: Duration::ZERO })
    }

    /// How long to wait at `now` (since the start) before the next operation, which is thereby spent.
    pub fn wait(&mut self, now: Duration) -> Duration {
        let wait = self.due.saturating_sub(now);
        self.due = self.due.max(now.saturating_sub(Duration::from_secs(1))) + self.interval;
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_stay_on_the_disk_for_any_shape() {
        for (records, cluster, scan) in [(1, 1, 1), (7, 16, 2), (1000, 16, 3), (4099, 16, 0)] {
            let params = Params { cluster, scan, ..Params::default() };
            let mut plan = Plan::new(&params, records, 0);
            for _ in 0..5000 {
                let run = plan.read();
                assert!(run.count >= 1 && run.count <= STEP_RECORDS);
                assert!(run.first + run.count <= records, "{run:?} of {records}");
            }
        }
    }

    #[test]
    fn bursts_are_sequential_and_whole() {
        let params = Params { scan: 1, scan_kib: 256, ..Params::default() };
        let mut plan = Plan::new(&params, 1 << 20, 0);
        let steps: Vec<Run> = (0..4).map(|_| plan.read()).collect();
        for pair in steps.windows(2) {
            assert_eq!(pair[1].first, pair[0].first + STEP_RECORDS);
        }
    }

    #[test]
    fn reader_and_writer_share_the_hot_set() {
        let params = Params { scan: 0, ..Params::default() };
        let hottest = |stream| {
            let mut plan = Plan::new(&params, 10_000, stream);
            let mut seen = vec![0; 10_000];
            (0..20_000).for_each(|_| seen[plan.record() as usize] += 1);
            (0..10_000).max_by_key(|&record| seen[record])
        };
        assert_eq!(hottest(1), hottest(2));
    }

    #[test]
    fn pace_is_even_and_forgives() {
        assert!(Pace::new(0).is_none());
        let mut pace = Pace::new(100).unwrap();
        assert_eq!(pace.wait(Duration::ZERO), Duration::ZERO);
        assert_eq!(pace.wait(Duration::ZERO), Duration::from_millis(10));
        // Five seconds of stall: at most a second's worth (100 operations) is caught up at once.
        let now = Duration::from_secs(5);
        let at_once = (0..1000).take_while(|_| pace.wait(now).is_zero()).count();
        assert!((100..=102).contains(&at_once), "{at_once} at once");
    }
}
