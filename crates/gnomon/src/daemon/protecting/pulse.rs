//! How a protection does: what its driver notes, and what a user is told of it.
//!
//! ```text
//!             first Seal                    old, or a checkpoint failed
//!   syncing ─────────────► protected ◄──────────────────────────────► behind
//!      ▲                      │ no session with the shadow              │
//!      └──────────────────── lost ◄─────────────────────────────────────┘
//! ```
//! Nothing is claimed that the shadow has not sealed: *lag* is the age of the newest sealed checkpoint, counted from when
//! the guest stood for it.

use std::{
    collections::VecDeque,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use gnomon_machine::primary::Told;
use parking_lot::Mutex;

use crate::api::types::{ProtectionState, ProtectionView};

/// Pauses that percentiles are made of: at ten checkpoints a second, the last minute and a half.
const PAUSES: usize = 1024;
/// A checkpoint older than this is behind, whatever the interval. The longest interval that is chosen by itself is two
/// seconds, and the one on its way is as old again.
const LATE: Duration = Duration::from_secs(5);
/// So many intervals late is behind.
const LATE_INTERVALS: u32 = 10;

/// What a driver notes. Shared by the driver, the link's thread and whoever asks.
#[derive(Default)]
pub struct Pulse(Mutex<Facts>);

/// What is known of a protection.
#[derive(Default)]
struct Facts {
    connected: bool,
    /// The guest does not run here any more.
    ended: bool,
    tracker: String,
    /// Checkpoints that were sent and not sealed, with when they began.
    sent: VecDeque<(u64, Instant)>,
    /// The newest one that was sealed, with when it began.
    sealed: Option<(u64, Instant)>,
    /// What went wrong, and when; gone once a checkpoint is sealed.
    trouble: Option<Trouble>,
    pauses: VecDeque<Duration>,
    bytes: u64,
    last: Told,
    interval: Duration,
}

/// What went wrong.
#[derive(Clone, Debug, PartialEq)]
struct Trouble {
    since: SystemTime,
    why: String,
}

impl Pulse {
    /// A session with the shadow has begun. `anew`: what it had counts no more.
    pub fn connected(&self, anew: bool) {
        let mut facts = self.0.lock();
        facts.connected = true;
        facts.sent.clear();
        if anew {
            facts.sealed = None;
        }
    }

    /// The session is over.
    pub fn lost(&self, why: &str) {
        let mut facts = self.0.lock();
        facts.connected = false;
        facts.sent.clear();
        facts.trouble.get_or_insert_with(|| Trouble::now(why)).why = why.to_string();
    }

    /// A checkpoint did not come about, and the session goes on.
    pub fn failed(&self, why: &str) {
        self.0.lock().trouble.get_or_insert_with(|| Trouble::now(why)).why = why.to_string();
    }

    /// The guest does not run here any more.
    pub fn ended(&self) {
        let mut facts = self.0.lock();
        (facts.connected, facts.ended) = (false, true);
    }

    /// Pages are followed in this way.
    pub fn follows_by(&self, tracker: &str) {
        self.0.lock().tracker = tracker.to_string();
    }

    /// The guest stands for a checkpoint.
    pub fn begins(&self, checkpoint: u64) {
        self.0.lock().sent.push_back((checkpoint, Instant::now()));
    }

    /// A checkpoint was sent whole; the next one comes in `interval`.
    pub fn sent(&self, told: Told, interval: Duration) {
        let mut facts = self.0.lock();
        facts.bytes += told.bytes.0;
        facts.interval = interval;
        facts.last = told;
        if facts.pauses.len() == PAUSES {
            facts.pauses.pop_front();
        }
        facts.pauses.push_back(told.pause);
    }

    /// The shadow has this checkpoint. True when it is the first one since there was trouble, or since the beginning.
    pub fn sealed(&self, checkpoint: u64) -> bool {
        let mut facts = self.0.lock();
        let mut newest = None;
        while let Some(sent) = facts.sent.front().copied().filter(|(number, _)| *number <= checkpoint) {
            newest = Some(sent);
            facts.sent.pop_front();
        }
        let Some(newest) = newest else { return false };
        let is_news = facts.sealed.is_none() || facts.trouble.is_some();
        facts.sealed = Some(newest);
        facts.trouble = None;
        is_news
    }

    /// How old the newest checkpoint is that the shadow has; before it has one, how long ago the first one was taken that it
    /// has not sealed.
    pub fn behind_by(&self) -> Option<Duration> {
        let facts = self.0.lock();
        let since = facts.sealed.or_else(|| facts.sent.front().copied()).map(|(_, began)| began);
        since.map(|since| since.elapsed())
    }

    /// From which age on a checkpoint is behind.
    pub fn bound(&self) -> Duration {
        bound(self.0.lock().interval)
    }

    /// As a user is told.
    pub fn view(&self, to: &str, epoch: u64) -> ProtectionView {
        let facts = self.0.lock();
        let now = Instant::now();
        let lag = facts.sealed.map(|(_, began)| now.saturating_duration_since(began));
        let state = match facts.ended {
            true => ProtectionState::Ended,
            false => state_of(facts.connected, lag, facts.interval, facts.trouble.is_some()),
        };
        let late = lag.filter(|_| state == ProtectionState::Behind && facts.trouble.is_none());
        let trouble = facts.trouble.clone().filter(|_| state != ProtectionState::Protected);
        ProtectionView {
            to: to.to_string(),
            state,
            since: trouble
                .as_ref()
                .map(|trouble| seconds(trouble.since))
                .or_else(|| late.map(|lag| seconds(SystemTime::now()) - lag.as_secs_f64())),
            why: trouble.map(|trouble| trouble.why).or_else(|| {
                late.map(|_| {
                    "the shadow has not sealed the last checkpoints yet: its node or the link is busy".into()
                })
            }),
            epoch,
            checkpoint: facts.sealed.map(|(checkpoint, _)| checkpoint),
            lag_ms: lag.map(millis),
            interval_ms: millis(facts.interval),
            bytes: facts.bytes,
            last_bytes: facts.last.bytes.0,
            pause_p50_ms: percentile(&facts.pauses, 0.50).map(millis),
            pause_p99_ms: percentile(&facts.pauses, 0.99).map(millis),
            tracker: facts.tracker.clone(),
            strict: false,
            exposed: false,
            guard: None,
        }
    }
}

impl Trouble {
    fn now(why: &str) -> Trouble {
        Trouble { since: SystemTime::now(), why: why.to_string() }
    }
}

fn bound(interval: Duration) -> Duration {
    LATE.max(interval * LATE_INTERVALS)
}

/// What a protection is called. `lag` is the age of the newest sealed checkpoint of this session or one it goes on from.
fn state_of(connected: bool, lag: Option<Duration>, interval: Duration, trouble: bool) -> ProtectionState {
    let bound = bound(interval);
    match (connected, lag) {
        (false, None) if !trouble => ProtectionState::Syncing,
        (false, _) => ProtectionState::Lost,
        (true, None) => ProtectionState::Syncing,
        (true, Some(lag)) if trouble || lag > bound => ProtectionState::Behind,
        (true, Some(_)) => ProtectionState::Protected,
    }
}

/// The value below which this share of them is; the least of the rest for few of them.
fn percentile(values: &VecDeque<Duration>, share: f64) -> Option<Duration> {
    let mut sorted: Vec<Duration> = values.iter().copied().collect();
    sorted.sort_unstable();
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied()
}

/// Milliseconds, to a hundredth.
pub fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e5).round() / 100.0
}

/// Seconds since 1970.
pub fn seconds(at: SystemTime) -> f64 {
    at.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn a_state_follows_from_link_lag_and_trouble() {
        use ProtectionState::{Behind, Lost, Protected, Syncing};
        let table = [
            ("before the first session", false, None, 100, false, Syncing),
            ("the first copy", true, None, 100, false, Syncing),
            ("the first copy after a loss", true, None, 100, true, Syncing),
            ("fresh", true, Some(150), 100, false, Protected),
            ("as old as two long intervals", true, Some(4000), 2000, false, Protected),
            ("older than any interval", true, Some(6000), 100, false, Behind),
            ("a long interval is not late by itself", true, Some(6000), 3000, false, Protected),
            ("fresh, and then one failed", true, Some(150), 100, true, Behind),
            ("no link, with something there", false, Some(150), 100, true, Lost),
            ("no link, with nothing there", false, None, 100, true, Lost),
        ];
        for (name, connected, lag, interval, trouble, expected) in table {
            assert_eq!(state_of(connected, lag.map(MS), MS(interval), trouble), expected, "{name}");
        }
    }

    #[test]
    fn a_seal_settles_what_was_sent_before_it() {
        let pulse = Pulse::default();
        pulse.connected(true);
        (1..=3).for_each(|checkpoint| pulse.begins(checkpoint));
        assert!(pulse.sealed(2), "the first one is news");
        assert!(!pulse.sealed(2) && !pulse.sealed(1), "nothing new");
        let newest = || pulse.view("b", 1).checkpoint;
        assert_eq!(newest(), Some(2));
        pulse.failed("the disk is full");
        assert_eq!(pulse.view("b", 1).why.as_deref(), Some("the disk is full"));
        assert!(pulse.sealed(3), "after trouble it is news");
        assert_eq!((pulse.view("b", 1).why, newest()), (None, Some(3)));
        pulse.lost("cut");
        assert_eq!((pulse.view("b", 1).state, newest()), (ProtectionState::Lost, Some(3)));
        pulse.connected(true);
        assert_eq!((pulse.view("b", 1).state, newest()), (ProtectionState::Syncing, None), "it is filled anew");
    }

    #[test]
    fn percentiles_of_few_and_many() {
        let values = |count: u64| (1..=count).map(MS).collect::<VecDeque<_>>();
        assert_eq!(percentile(&values(0), 0.5), None);
        assert_eq!(percentile(&values(1), 0.99), Some(MS(1)));
        assert_eq!((percentile(&values(100), 0.5), percentile(&values(100), 0.99)), (Some(MS(50)), Some(MS(99))));
    }
}
