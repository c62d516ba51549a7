//! What staging was worth, for each group: bytes that were there when asked for, and what keeping them cost.

mod histogram;
mod reserve;

use std::time::Duration;

use gnomon_terms::{Bytes, Instant};

use crate::accounts::Tally;
use histogram::Histogram;
use reserve::StaticReserve;

/// Bytes of a GiB, of which populating is told.
const GIB: f64 = (1u64 << 30) as f64;

/// Why a staged block went back to the host without having served anybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Why {
    /// Nobody asked for its size for long.
    Age,
    /// The budget of its group or of the host became smaller.
    Budget,
    /// The host needs its memory.
    Floor,
    /// The target does not want it any more, and it has lingered.
    Target,
}

/// What is known of a group since it was added. Bytes are of 1; a share is 0 to 1.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GroupStats {
    /// How long it has been there.
    pub over: Duration,
    /// Requests.
    pub requests: u64,
    /// Bytes that were asked for and staged.
    pub hit: Bytes,
    /// Bytes that were asked for and not staged.
    pub missed: Bytes,
    /// Those of the bytes hit that were on another node than the guest.
    pub far: Bytes,
    /// Bytes that a static reserve of the mean of what was staged would have served.
    pub static_hit: Bytes,
    /// Bytes that are staged now.
    pub staged_now: Bytes,
    /// The integral of what was staged over time, in byte-seconds: what staging cost.
    pub idle_byte_seconds: f64,
    /// How long a request took to be decided: half of them less than this. `None` without requests. At most an eighth
    /// too long.
    pub decision_p50: Option<Duration>,
    /// And 99 of 100.
    pub decision_p99: Option<Duration>,
    /// Blocks that were populated to the end.
    pub staged: Tally,
    /// Populations that were given up.
    pub given_up: Tally,
    /// Blocks that went without having served anybody, by reason.
    pub evicted_by_age: Tally,
    /// See [`Why::Budget`].
    pub evicted_by_budget: Tally,
    /// See [`Why::Floor`].
    pub evicted_by_floor: Tally,
    /// See [`Why::Target`].
    pub evicted_by_target: Tally,
    /// Blocks that guests let go.
    pub returned: Tally,
    /// How long a GiB took to be populated, on average; `None` when nothing was.
    pub populate_per_gib: Option<Duration>,
}

/// Keeps the books of a group.
#[derive(Clone, Debug, Default)]
pub(crate) struct Recorder {
    since: Instant,
    told: GroupStats,
    level_at: Instant,
    decisions: Histogram,
    populating: Duration,
    reserve: StaticReserve,
}

impl GroupStats {
    /// The share of bytes asked for that was staged; `None` before anything was asked for.
    pub fn hit_ratio(&self) -> Option<f64> {
        ratio(self.hit, self.hit.0.saturating_add(self.missed.0))
    }

    /// The same of a static reserve of equal idle bytes.
    pub fn static_hit_ratio(&self) -> Option<f64> {
        ratio(self.static_hit, self.hit.0.saturating_add(self.missed.0))
    }

    /// What was staged on average.
    pub fn mean_staged(&self) -> Bytes {
        mean(self.idle_byte_seconds, self.over)
    }
}

impl Recorder {
    /// Begins.
    pub(crate) fn new(now: Instant) -> Recorder {
        Recorder { since: now, level_at: now, ..Recorder::default() }
    }

    /// From now on so much is staged.
    pub(crate) fn level(&mut self, now: Instant, staged: Bytes) {
        self.told.idle_byte_seconds = self.idle(now);
        self.level_at = self.level_at.max(now);
        self.told.staged_now = staged;
    }

    /// A request was decided. To be said before the level that it leaves.
    pub(crate) fn request(&mut self, now: Instant, hit: Bytes, missing: Bytes) {
        self.told.requests += 1;
        self.told.hit.0 = self.told.hit.0.saturating_add(hit.0);
        self.told.missed.0 = self.told.missed.0.saturating_add(missing.0);
        let asked = Bytes(hit.0.saturating_add(missing.0));
        let size = mean(self.idle(now), now.since(self.since));
        let delay = self.per_byte() * asked.0.min(size.0) as f64;
        self.reserve.ask(now, asked, size, Duration::try_from_secs_f64(delay).unwrap_or(Duration::MAX));
    }

    /// So much of what served a request is on another node than its guest.
    pub(crate) fn far(&mut self, bytes: Bytes) {
        self.told.far.0 = self.told.far.0.saturating_add(bytes.0);
    }

    /// How long the decision took.
    pub(crate) fn decided(&mut self, took: Duration) {
        self.decisions.count(took);
    }

    /// A block was populated to the end.
    pub(crate) fn staged(&mut self, size: Bytes, took: Duration) {
        self.told.staged.add(size);
        self.populating = self.populating.saturating_add(took);
    }

    /// A population was given up.
    pub(crate) fn given_up(&mut self, size: Bytes) {
        self.told.given_up.add(size);
    }

    /// A block went without having served anybody.
    pub(crate) fn evicted(&mut self, size: Bytes, why: Why) {
        match why {
            Why::Age => self.told.evicted_by_age.add(size),
            Why::Budget => self.told.evicted_by_budget.add(size),
            Why::Floor => self.told.evicted_by_floor.add(size),
            Why::Target => self.told.evicted_by_target.add(size),
        }
    }

    /// A guest let a block go.
    pub(crate) fn returned(&mut self, size: Bytes) {
        self.told.returned.add(size);
    }

    /// All of it, as of now.
    pub(crate) fn view(&self, now: Instant) -> GroupStats {
        let per_gib = (self.told.staged.bytes.0 > 0).then(|| self.per_byte() * GIB);
        GroupStats {
            over: now.since(self.since),
            static_hit: self.reserve.hit(),
            idle_byte_seconds: self.idle(now),
            decision_p50: self.decisions.quantile(0.5),
            decision_p99: self.decisions.quantile(0.99),
            populate_per_gib: per_gib.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()),
            ..self.told.clone()
        }
    }

    fn idle(&self, now: Instant) -> f64 {
        self.told.idle_byte_seconds + self.told.staged_now.0 as f64 * now.since(self.level_at).as_secs_f64()
    }

    /// Seconds that a byte takes to be staged.
    fn per_byte(&self) -> f64 {
        let bytes = self.told.staged.bytes.0;
        if bytes > 0 { self.populating.as_secs_f64() / bytes as f64 } else { 0.0 }
    }
}

fn mean(byte_seconds: f64, over: Duration) -> Bytes {
    let seconds = over.as_secs_f64();
    if seconds > 0.0 { Bytes((byte_seconds / seconds) as u64) } else { Bytes(0) }
}

fn ratio(part: Bytes, all: u64) -> Option<f64> {
    (all > 0).then(|| part.0 as f64 / all as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::ORIGIN.after(Duration::from_secs(seconds))
    }

    #[test]
    fn idle_bytes_are_counted_over_time() {
        let mut recorder = Recorder::new(at(100));
        recorder.level(at(110), Bytes(8));
        recorder.level(at(120), Bytes(4));
        let view = recorder.view(at(125));
        assert_eq!(view.idle_byte_seconds, 100.0);
        assert_eq!((view.over, view.mean_staged()), (Duration::from_secs(25), Bytes(4)));
        recorder.level(at(90), Bytes(1));
        assert_eq!(recorder.view(at(120)).idle_byte_seconds, 80.0, "a clock that goes back counts nothing");
    }

    #[test]
    fn ratios_are_of_bytes_asked_for() {
        let mut recorder = Recorder::new(at(0));
        assert_eq!(recorder.view(at(1)).hit_ratio(), None);
        recorder.level(at(0), Bytes(30));
        recorder.request(at(10), Bytes(30), Bytes(10));
        recorder.request(at(10), Bytes(0), Bytes(20));
        let view = recorder.view(at(10));
        assert_eq!((view.requests, view.hit, view.missed), (2, Bytes(30), Bytes(30)));
        assert_eq!(view.hit_ratio(), Some(0.5));
        assert_eq!(
            view.static_hit,
            Bytes(50),
            "30 staged on average, which come back at once: nothing was populated yet"
        );
    }

    #[test]
    fn populating_is_told_for_a_gib() {
        let mut recorder = Recorder::new(at(0));
        assert_eq!(recorder.view(at(0)).populate_per_gib, None);
        recorder.staged(Bytes(1 << 29), Duration::from_millis(400));
        recorder.staged(Bytes(1 << 29), Duration::from_millis(600));
        assert_eq!(recorder.view(at(0)).populate_per_gib, Some(Duration::from_secs(1)));
    }

    #[test]
    fn each_reason_has_its_tally() {
        let mut recorder = Recorder::new(at(0));
        [Why::Age, Why::Budget, Why::Floor, Why::Target]
            .into_iter()
            .zip(1..)
            .for_each(|(why, size)| recorder.evicted(Bytes(size), why));
        let view = recorder.view(at(0));
        let tallies = [view.evicted_by_age, view.evicted_by_budget, view.evicted_by_floor, view.evicted_by_target];
        assert_eq!(tallies.map(|tally| tally.bytes.0), [1, 2, 3, 4]);
    }
}
