//! Leases: a promise of a store to forget something, unless its holder says in time that it is alive.
//!
//! ```text
//!   holder's clock   asked ────────────── sure until ──┐ the margin for clocks that run at different rates
//!                      │ request    answer             ▼
//!   store's clock      └──► granted ◄──────────────── ends: what is bound to it vanishes
//! ```
//! The store counts from when it granted or renewed, which is never before the holder asked. So a holder that counts
//! from the moment *before* it asked, and stops a little early, has stopped before anybody can see the lease end.
//! Nothing here compares the time of day of two hosts; only that a second is nearly a second on each.
//!
//! Source: C. Gray and D. Cheriton, "Leases: An Efficient Fault-Tolerant Mechanism for Distributed File Cache
//! Consistency", 1989.

use std::time::Duration;

use gnomon_terms::Instant;

use crate::store::{StoreError, Version};

/// How much faster the store's clock may run than the holder's: one part in this many. NTP slews a clock by at most
/// 500 parts in a million and a quartz is off by under 100, so 1 % is ten times what two sound hosts can differ.
pub const CLOCK_RATE_MARGIN: u32 = 100;

/// The shortest time to live that is worth asking for: etcd grants whole seconds, and none shorter than an election of
/// its own takes, which is 1 to 2 s by default.
pub const SHORTEST_TTL: Duration = Duration::from_secs(2);

/// Leases of a store that several hosts can see. Every call blocks; none longer than the store's patience.
pub trait Leases: Send + Sync {
    /// A new lease for `ttl`, rounded up to what the store grants.
    fn grant(&self, ttl: Duration) -> Result<Lease, StoreError>;

    /// Says that the holder is alive: the lease lives for its whole time to live from when the store heard it.
    /// [`StoreError::LeaseEnded`] when it is too late.
    fn keep_alive(&self, lease: &mut Lease) -> Result<(), StoreError>;

    /// Ends a lease now; one that has ended already is no error.
    fn revoke(&self, lease: &Lease) -> Result<(), StoreError>;

    /// What an administrator should know of this store's leases: a fault that is known of its version.
    fn caution(&self) -> Result<Option<String>, StoreError>;

    /// Writes `key` if it has the version `expected` (`None`: if there is none), bound to `lease`: it vanishes when the
    /// lease ends. [`StoreError::LeaseEnded`] when that has happened already.
    fn bind(&self, lease: &Lease, key: &str, expected: Option<Version>, value: &[u8]) -> Result<Version, StoreError>;
}

/// Names a lease for good: a store gives no name twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LeaseId(pub i64);

impl std::fmt::Display for LeaseId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A lease as its holder sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    id: LeaseId,
    ttl: Duration,
    /// By [`local_now`], before the last request that the store granted was sent.
    asked: Instant,
}

impl Lease {
    /// A lease that the store granted for `ttl`, asked for at `asked` (read before the request was sent).
    pub fn new(id: LeaseId, ttl: Duration, asked: Instant) -> Lease {
        Lease { id, ttl, asked }
    }

    /// Its name.
    pub fn id(&self) -> LeaseId {
        self.id
    }

    /// What the store granted.
    pub fn ttl(&self) -> Duration {
        self.ttl
    }

    /// Until then, by this host's clock, it has surely not ended at the store.
    pub fn sure_until(&self) -> Instant {
        sure_until(self.asked, self.ttl)
    }

    /// How long it surely lives from now on, by this host's clock.
    pub fn remaining(&self) -> Duration {
        self.remaining_at(local_now())
    }

    /// How long it surely lives after `now`.
    pub fn remaining_at(&self, now: Instant) -> Duration {
        self.sure_until().since(now)
    }

    /// The store renewed it for `ttl`, asked for at `asked`.
    pub fn renewed(&mut self, ttl: Duration, asked: Instant) {
        (self.ttl, self.asked) = (ttl, asked);
    }
}

/// Until when a lease for `ttl` that was asked for at `asked` has surely not ended.
pub fn sure_until(asked: Instant, ttl: Duration) -> Instant {
    asked.after(ttl.saturating_sub(ttl / CLOCK_RATE_MARGIN))
}

/// This host's monotonic clock, which goes on while the host sleeps: a lease ends in that time too, and
/// `CLOCK_MONOTONIC` would not know.
pub fn local_now() -> Instant {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let nanos = u64::try_from(now.tv_nsec).unwrap_or(0);
    Instant::from_nanos(u64::try_from(now.tv_sec).unwrap_or(0).saturating_mul(1_000_000_000).saturating_add(nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_counted_from_before_it_was_asked_for_and_a_little_short() {
        let asked = Instant::from_nanos(5_000_000_000);
        let mut lease = Lease::new(LeaseId(7), Duration::from_secs(10), asked);
        assert_eq!(lease.remaining_at(asked), Duration::from_millis(9_900));
        assert_eq!(lease.remaining_at(asked.after(Duration::from_secs(9))), Duration::from_millis(900));
        assert_eq!(lease.remaining_at(asked.after(Duration::from_secs(10))), Duration::ZERO);
        lease.renewed(Duration::from_secs(4), asked.after(Duration::from_secs(9)));
        assert_eq!(lease.sure_until(), asked.after(Duration::from_millis(9_000 + 3_960)));
    }

    #[test]
    fn the_local_clock_goes_on() {
        let before = local_now();
        assert!(before > Instant::ORIGIN && local_now() >= before);
    }
}
