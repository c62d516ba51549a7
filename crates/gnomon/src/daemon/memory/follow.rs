//! Memory that follows what a guest needs: the agent's word goes in, a request comes out.
//!
//! ```text
//!   judged ──Grow, Shrink──► busy ──done──► judged
//!     ▲                        └──refused──► rests, twice as long each time ──► judged
//!     └──────────────────────────────────────────────┘
//! ```
//! Each request is made on a thread of its own: a guest that is slow to answer holds nobody up. There is one at most, and one
//! that does not do as it asked is asked more and more rarely: each vain step may leave a block at it.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use gnomon_cycle::staging::{Limits, Pressure, Said, Verdict};
use gnomon_terms::Bytes;

use super::{
    Memory, demand,
    resize::{self, Ask},
};
use crate::{
    api::{ApiError, types::MemoryChange},
    daemon::Daemon,
};

/// What a guest that is short is given at once.
const STEP: Bytes = Bytes(512 << 20);
/// How long one rests that did not do as it asked; doubled each time, up to the other.
const REST: Duration = Duration::from_secs(60);
const LONGEST_REST: Duration = Duration::from_secs(3600);

/// A VM whose memory follows.
#[derive(Debug, Default)]
pub(super) struct Following {
    pressure: Pressure,
    busy: bool,
    refusals: u32,
    rests_until: Option<Instant>,
}

/// What is known of a VM when it is judged.
struct Look {
    said: Said,
    given: Bytes,
    limits: Limits,
}

impl Following {
    /// What is to be done now. Anything but to stay has to be ended by [`Following::ended`].
    fn verdict(&mut self, now: Instant, look: &Look) -> Verdict {
        if self.busy || self.rests_until.is_some_and(|until| now < until) {
            return Verdict::Stay;
        }
        let verdict = self.pressure.note(&look.said, look.given, &look.limits);
        self.busy = verdict != Verdict::Stay;
        verdict
    }

    /// It was done, or was not.
    fn ended(&mut self, now: Instant, well: bool) {
        self.busy = false;
        self.refusals = if well { 0 } else { self.refusals.saturating_add(1) };
        let times = 1u32.checked_shl(self.refusals.saturating_sub(1)).unwrap_or(u32::MAX);
        self.rests_until = (!well).then(|| now + REST.saturating_mul(times).min(LONGEST_REST));
    }
}

/// Gives guests that are short more, and asks those back that are at ease, where that was asked for.
pub(super) fn follow(daemon: &Arc<Daemon>) {
    for (name, verdict) in daemon.memory.verdicts(daemon) {
        let daemon = Arc::clone(daemon);
        thread::spawn(move || {
            let changed = match verdict {
                Verdict::Grow(bytes) => resize::change(&daemon, &name, Ask::More(bytes.0)),
                Verdict::Shrink(bytes) => resize::change(&daemon, &name, Ask::Less(bytes.0)),
                Verdict::Stay => return,
            };
            daemon.memory.followed(&name, changed);
        });
    }
}

impl Memory {
    /// Whether a VM's memory follows what its guest needs.
    pub(super) fn is_auto(&self, vm: &str) -> bool {
        self.following.lock().contains_key(vm)
    }

    /// Lets a VM's memory follow from now on, or no more: as is on record, which is read when nobody else decides about it.
    pub(super) fn set_auto(&self, vm: &str, on_record: impl FnOnce() -> bool) {
        let mut following = self.following.lock();
        match on_record() {
            true => drop(following.entry(vm.to_string()).or_default()),
            false => drop(following.remove(vm)),
        }
    }

    /// What is to be done about the VMs that follow. Their QEMUs are asked, all at once.
    fn verdicts(&self, daemon: &Daemon) -> Vec<(String, Verdict)> {
        let names = self.following.lock().keys().cloned().collect();
        let verdict = |(name, added): (String, u64)| {
            let look = look(daemon, &name, added)?;
            let verdict = self.following.lock().get_mut(&name)?.verdict(Instant::now(), &look);
            (verdict != Verdict::Stay).then_some((name, verdict))
        };
        self.ask(daemon, names, demand::added).into_iter().filter_map(verdict).collect()
    }

    fn followed(&self, vm: &str, changed: Result<MemoryChange, ApiError>) {
        if let Some(following) = self.following.lock().get_mut(vm) {
            following.ended(Instant::now(), changed.as_ref().is_ok_and(|change| change.done != 0));
        }
        match changed {
            Ok(change) => tracing::info!(vm, done = change.done, staged = change.staged, "its memory followed"),
            Err(error) => tracing::warn!(vm, error = error.message, "its memory did not follow"),
        }
    }
}

fn look(daemon: &Daemon, name: &str, added: u64) -> Option<Look> {
    let view = daemon.vitals.agent(name).filter(|_| daemon.vitals.beats(name))?;
    let qemu = daemon.vms.get(name).ok()?.qemu()?;
    let (given, most) = (demand::with(&qemu, added)?, qemu.record().spec.as_ref()?.max_memory?);
    let boot = qemu.record().resolved.as_ref()?.memory;
    let limits = Limits { least: Bytes(boot), most: Bytes(most), step: STEP };
    Some(Look { said: demand::said(&view), given, limits })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// A guest with 1 GiB that is short of it.
    fn short() -> Look {
        let [total, available, free, given, most] = [1000, 10, 100, 1024, 4096].map(|mib| Bytes(mib * MIB));
        let limits = Limits { least: given, most, step: STEP };
        Look { said: Said { total, available, free, waiting: None }, given, limits }
    }

    /// Seconds in which it asks, of the first so many; each request ends within its second.
    fn asks(seconds: u64, well: bool) -> Vec<u64> {
        let (mut following, begun) = (Following::default(), Instant::now());
        let at = |second: &u64| {
            let now = begun + Duration::from_secs(*second);
            let asks = following.verdict(now, &short()) != Verdict::Stay;
            if asks {
                following.ended(now, well);
            }
            asks
        };
        (0..seconds).filter(at).collect()
    }

    #[test]
    fn who_refuses_is_asked_more_and_more_rarely() {
        let refused = asks(86_400, false);
        assert!(refused.len() < 35, "{refused:?}");
        let pauses: Vec<u64> = refused.windows(2).map(|two| two[1] - two[0]).collect();
        assert!(pauses.is_sorted() && pauses[0] >= 60 && pauses.iter().all(|pause| *pause < 3700), "{pauses:?}");
        assert!(asks(3600, true).len() > 100, "one that takes it is asked again as soon as it is short again");
    }

    #[test]
    fn there_is_one_request_at_a_time() {
        let (mut following, begun) = (Following::default(), Instant::now());
        let mut asks = 0;
        for second in 0..600 {
            let verdict = following.verdict(begun + Duration::from_secs(second), &short());
            asks += u32::from(verdict != Verdict::Stay);
        }
        assert_eq!(asks, 1, "the first has not ended");
        following.ended(begun + Duration::from_secs(600), true);
        let mut verdicts = (601..700).map(|second| following.verdict(begun + Duration::from_secs(second), &short()));
        assert!(verdicts.any(|verdict| verdict != Verdict::Stay));
    }
}
