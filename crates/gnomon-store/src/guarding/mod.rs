//! Drives the guard of one protected VM on this node: asks the store, watches the clock, and tells the guest's hands.
//!
//! ```text
//!   clock thread:  never waits for the store. Tells the hands: run at epoch e · stand · superseded
//!   store thread:  look, claim, renew, one at a time; a store that does not answer delays nobody else
//!   watch thread:  a change at the store is looked at without delay
//! ```
//! The three share one [`Guard`] behind a lock that is never held over a call. What decides is in `gnomon_proto::guard`.

mod term;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError},
    },
    thread,
    time::Duration,
};

use gnomon_proto::guard::{Ask, Claimed, Guard, GuardState, Renewed, Rules, Unanswered, Will};
use gnomon_terms::{Epoch, ErrorKind, Instant};
use parking_lot::{Condvar, Mutex, MutexGuard};

pub use self::term::Term;
use self::term::{Desk, Seen};
use crate::{
    lease::{Lease, local_now},
    store::{Change, Store, StoreError},
};

/// A lease's time to live if nothing else is wished: long enough for an election of etcd (1 to 2 s) between two
/// renewals, short enough for a failover that is noticed as a hiccup.
pub const DEFAULT_TTL: Duration = Duration::from_secs(5);

/// How often the watch thread sees whether it is still needed.
const WATCH_NAP: Duration = Duration::from_millis(500);

/// What a guard does to the guest. Called on one thread, one call at a time, and never twice with the same word.
pub trait Hands: Send + Sync {
    /// The guest may run here, as the holder of `epoch`: a primary that stood goes on, a shadow promotes itself. Called
    /// again when the epoch rises under a running guest. Must return soon; long work belongs on another thread.
    fn run(&self, epoch: Epoch);

    /// The guest must stand. Returns when it does, within [`Rules::stand_within`].
    fn stand(&self);

    /// Another node holds the later epoch `by`: the guest stands and never runs here again; its state here is old.
    fn superseded(&self, by: Epoch);
}

/// Whose guard it is, and how it goes about it.
#[derive(Clone, Debug)]
pub struct Wish {
    /// This node.
    pub node: String,
    /// What is guarded: a name of the VM's protection, and of its term at the store.
    pub vm: String,
    /// The lease's time to live; the same on all nodes of the VM.
    pub ttl: Duration,
    /// Whether the guest stands rather than run unsure of its lease.
    pub strict: bool,
    /// How far this node goes to hold the VM.
    pub will: Will,
    /// The epoch that this node held before its daemon was restarted, if it did.
    pub held: Option<Epoch>,
}

/// A guard at work. It ends when this is dropped; its lease then ends by itself, and the guest is left as it is.
pub struct Guarding {
    shared: Arc<Shared>,
}

/// How a guard stands, for people.
#[derive(Clone, Debug)]
pub struct Standing {
    /// Where the guard is.
    pub state: GuardState,
    /// Whether the guest was told to run.
    pub runs: bool,
    /// How long the lease surely lives; zero when it is not held.
    pub sure_for: Duration,
    /// The term as it was seen last.
    pub term: Option<Term>,
    /// Why the store could not be asked, when the last try failed.
    pub trouble: Option<String>,
}

/// Whether a write may still go out, for the data path: one atomic load and one look at the clock. A daemon that was
/// stopped for a while finds it shut, before any of its threads has noticed.
#[derive(Clone, Debug, Default)]
pub struct Gate(Arc<AtomicU64>);

/// Why a guard could not do as told.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GuardingError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// This node does not hold the VM.
    #[error("this node does not hold '{vm}': whoever does names its heirs; `gnomon vm show` says who that is")]
    NotHeld {
        /// Which VM.
        vm: String,
    },
}

impl GuardingError {
    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            GuardingError::Store(error) => error.kind(),
            GuardingError::NotHeld { .. } => ErrorKind::Refused,
        }
    }
}

struct Shared {
    store: Arc<dyn Store>,
    wish: Wish,
    hands: Box<dyn Hands>,
    rules: Rules,
    state: Mutex<State>,
    /// Something was told, or it is time to end.
    told: Condvar,
    gate: Gate,
}

struct State {
    guard: Guard,
    lease: Option<Lease>,
    term: Option<Term>,
    trouble: Option<String>,
    /// What the hands were told last: the epoch at which the guest runs.
    runs: Option<Epoch>,
    over: bool,
}

impl Guarding {
    /// Begins to guard. The guest stands here until [`Hands::run`] is called, also after a restart of the daemon.
    ///
    /// [`StoreError::NoLeases`] when `store` is not one that other hosts see.
    pub fn begin(store: Arc<dyn Store>, wish: Wish, hands: Box<dyn Hands>) -> Result<Guarding, GuardingError> {
        store.leases()?;
        let rules = Rules::of(wish.ttl, wish.strict);
        let guard = match wish.held {
            Some(epoch) => Guard::resumed(rules, wish.will, epoch, local_now()),
            None => Guard::new(rules, wish.will, local_now()),
        };
        let state = State { guard, lease: None, term: None, trouble: None, runs: None, over: false };
        let (state, told) = (Mutex::new(state), Condvar::new());
        let shared = Arc::new(Shared { store, wish, hands, rules, state, told, gate: Gate::default() });
        for work in [Shared::keep_to_the_clock, Shared::keep_to_the_store, Shared::keep_watch] {
            let shared = Arc::clone(&shared);
            thread::spawn(move || work(&shared));
        }
        Ok(Guarding { shared })
    }

    /// From now on this node goes that far: a failover by hand, or a shadow that has fallen behind.
    pub fn set_will(&self, will: Will) {
        self.shared.change(|state, now| state.guard.set_will(will, now));
    }

    /// Says which nodes may take over, and returns when the store has it. Before a shadow is struck off, nothing may be
    /// acknowledged that it lacks; once this has returned, it may. Blocks on the store.
    pub fn set_heirs(&self, heirs: &[String]) -> Result<(), GuardingError> {
        let lease = self.shared.state.lock().lease.as_ref().map(Lease::id);
        let not_held = || GuardingError::NotHeld { vm: self.shared.wish.vm.clone() };
        if !self.shared.desk().set_heirs(lease.ok_or_else(not_held)?, heirs)? {
            return Err(not_held());
        }
        if let Some(term) = &mut self.shared.state.lock().term {
            term.heirs = heirs.to_vec();
        }
        Ok(())
    }

    /// Gives the VM up for an heir, as in a planned switchover: the caller has made sure that the guest stands and that
    /// its last state is at the heir. Returns when the store has ended the lease, and blocks on it until then.
    pub fn let_go(&self) -> Result<(), GuardingError> {
        let lease = self.shared.change(|state, now| {
            state.guard.let_go(now);
            state.lease.take()
        });
        match lease {
            Some(lease) => Ok(self.shared.store.leases()?.revoke(&lease)?),
            None => Ok(()),
        }
    }

    /// Ends the protection: the lease is given back and the term forgotten. The guest may run wherever it is, unguarded.
    pub fn end(&self) -> Result<(), GuardingError> {
        let lease = self.shared.change(|state, now| {
            // First: the hands are not told to make it stand.
            state.over = true;
            state.guard.let_go(now);
            state.lease.take()
        });
        if let Some(lease) = lease {
            self.shared.store.leases()?.revoke(&lease)?;
        }
        Ok(self.shared.desk().forget()?)
    }

    /// The term as it is at the store now, and whether its holder's lease lives; `None` when there is none. Blocks on
    /// the store.
    pub fn look(&self) -> Result<Option<(Term, bool)>, GuardingError> {
        Ok(self.shared.desk().look()?.map(|(sight, term)| (term, sight.held)))
    }

    /// How it stands.
    pub fn standing(&self) -> Standing {
        let state = self.shared.state.lock();
        let now = local_now();
        Standing {
            state: state.guard.state(),
            runs: state.runs.is_some(),
            sure_for: state.lease.as_ref().map_or(Duration::ZERO, |lease| lease.remaining_at(now)),
            term: state.term.clone(),
            trouble: state.trouble.clone(),
        }
    }

    /// The gate of the VM's writes.
    pub fn gate(&self) -> Gate {
        self.shared.gate.clone()
    }
}

impl Drop for Guarding {
    fn drop(&mut self) {
        self.shared.state.lock().over = true;
        self.shared.told.notify_all();
    }
}

impl Gate {
    /// Whether a write may go out now.
    pub fn is_open(&self) -> bool {
        local_now().as_nanos() < self.0.load(Ordering::Acquire)
    }

    fn open_until(&self, until: Instant) {
        self.0.store(until.as_nanos(), Ordering::Release);
    }
}

impl Shared {
    fn desk(&self) -> Desk<'_> {
        Desk { store: &*self.store, node: &self.wish.node, vm: &self.wish.vm }
    }

    /// Changes something, and has everybody look at what follows.
    fn change<T>(&self, deed: impl FnOnce(&mut State, Instant) -> T) -> T {
        let mut state = self.state.lock();
        let done = deed(&mut state, local_now());
        self.gate.open_until(open_until(&state.guard, self.rules));
        self.told.notify_all();
        done
    }

    /// Waits until something is told or the guard has something to ask for. False when it is over.
    fn wait(&self, state: &mut MutexGuard<'_, State>) -> bool {
        let wait = state.guard.asks_at().map_or(LONGEST_WAIT, |at| at.since(local_now()));
        if !state.over {
            self.told.wait_for(state, wait.min(LONGEST_WAIT));
        }
        !state.over
    }

    /// The clock thread.
    fn keep_to_the_clock(&self) {
        let mut known_superseded = false;
        loop {
            let mut state = self.state.lock();
            let may = state.guard.epoch().filter(|_| state.guard.may_run(local_now()));
            let superseded = match state.guard.state() {
                GuardState::Superseded { by } if !known_superseded => Some(by),
                _ => None,
            };
            if state.over {
                return;
            }
            if may == state.runs && superseded.is_none() {
                // The store thread wakes this one when it has asked or heard; and the clock does.
                let stands_at = state.guard.stands_at().filter(|_| may.is_some());
                let wait = stands_at.map_or(LONGEST_WAIT, |at| at.since(local_now()));
                self.told.wait_for(&mut state, wait.min(LONGEST_WAIT));
                continue;
            }
            let stood = state.runs.is_some() && may.is_none();
            state.runs = may;
            drop(state);
            match may {
                Some(epoch) => self.hands.run(epoch),
                None if stood => self.hands.stand(),
                None => {}
            }
            if let Some(by) = superseded {
                known_superseded = true;
                self.hands.superseded(by);
            }
        }
    }

    /// The store thread.
    fn keep_to_the_store(&self) {
        loop {
            let ask = {
                let mut state = self.state.lock();
                match state.guard.poll(local_now()) {
                    Some(ask) => ask,
                    None if self.wait(&mut state) => continue,
                    None => return,
                }
            };
            match ask {
                Ask::Look => self.look(),
                Ask::Claim { epoch, over } => self.claim(epoch, over),
                Ask::Renew => self.renew(),
            }
        }
    }

    fn look(&self) {
        let seen = self.desk().look();
        self.change(|state, now| {
            state.trouble = trouble(&seen);
            match seen {
                Ok(seen) => {
                    state.guard.saw(now, Ok(sight_of(&seen)));
                    state.term = seen.map(|(_, term)| term);
                }
                Err(_) => state.guard.saw(now, Err(Unanswered)),
            }
        });
    }

    fn claim(&self, epoch: Epoch, over: Option<u64>) {
        let heirs =
            self.state.lock().term.as_ref().map(|term| heirs_after(term, &self.wish.node)).unwrap_or_default();
        let claimed = self.desk().claim(self.wish.ttl, epoch, over, heirs);
        let unused = self.change(|state, now| {
            state.trouble = trouble(&claimed);
            let (claimed, granted) = claimed.unwrap_or((Claimed::Unknown, None));
            state.guard.claimed(now, claimed);
            let (lease, term) = granted?;
            state.term = Some(term);
            match state.guard.epoch() {
                Some(held) if held == epoch => {
                    state.lease = Some(lease);
                    None
                }
                _ => Some(lease),
            }
        });
        if let Some(lease) = unused {
            // It was told meanwhile not to take the VM over. If this fails, the lease ends by itself.
            let _ = self.store.leases().and_then(|leases| leases.revoke(&lease));
        }
    }

    fn renew(&self) {
        let Some(mut lease) = self.state.lock().lease.clone() else {
            self.change(|state, now| state.guard.renewed(now, Renewed::Ended));
            return;
        };
        let kept = self.store.leases().and_then(|leases| leases.keep_alive(&mut lease));
        self.change(|state, now| {
            state.trouble = trouble(&kept);
            // It may have been let go in the meantime.
            if state.lease.as_ref().map(Lease::id) != Some(lease.id()) {
                return;
            }
            let renewed = match kept {
                Ok(()) => Renewed::Until(lease.sure_until()),
                Err(StoreError::LeaseEnded { .. }) => Renewed::Ended,
                Err(_) => Renewed::Unknown,
            };
            state.lease = (renewed != Renewed::Ended).then_some(lease);
            state.guard.renewed(now, renewed);
        });
    }

    /// The watch thread.
    fn keep_watch(&self) {
        while !self.state.lock().over {
            match self.store.watch(&self.desk().prefix()) {
                Ok(changes) => self.nudge_at(&changes),
                // The guard looks by itself now and then; this only makes it quicker.
                Err(_) => thread::sleep(WATCH_NAP),
            }
        }
    }

    fn nudge_at(&self, changes: &Receiver<Change>) {
        while !self.state.lock().over {
            match changes.recv_timeout(WATCH_NAP) {
                Ok(_) => self.change(|state, now| state.guard.nudge(now)),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }
}

/// A wait has to have some end; whoever wakes for nothing looks, and waits again.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

fn sight_of(seen: &Seen) -> Option<gnomon_proto::guard::Sight> {
    seen.as_ref().map(|(sight, _)| *sight)
}

/// Who may take over from `node` when it claims `term` anew: as before if it was the holder. If it was an heir, nobody:
/// what the others have is of before.
fn heirs_after(term: &Term, node: &str) -> Vec<String> {
    match term.holder == node {
        true => term.heirs.clone(),
        false => Vec::new(),
    }
}

/// Until when writes may go out.
fn open_until(guard: &Guard, rules: Rules) -> Instant {
    match guard.state() {
        GuardState::Holding { sure_until, .. } if rules.strict => sure_until,
        GuardState::Holding { .. } | GuardState::Lapsed { .. } if !rules.strict => Instant::from_nanos(u64::MAX),
        _ => Instant::ORIGIN,
    }
}

/// What a person is told of a failure.
fn trouble<T>(result: &Result<T, StoreError>) -> Option<String> {
    let error = result.as_ref().err()?;
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
    Some(format!("{error}{cause}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heirs_stay_with_their_holder_and_go_with_another() {
        let term =
            Term { epoch: 1, holder: "a".to_string(), lease: 7, heirs: vec!["b".to_string(), "c".to_string()] };
        assert_eq!(heirs_after(&term, "a"), ["b", "c"]);
        assert!(heirs_after(&term, "b").is_empty(), "c lacks what b has, if anything");
    }

    #[test]
    fn the_gate_is_open_while_the_lease_is_sure() {
        let gate = Gate::default();
        assert!(!gate.is_open());
        gate.open_until(local_now().after(Duration::from_secs(600)));
        assert!(gate.is_open());
        gate.open_until(local_now());
        assert!(!gate.is_open(), "also when no thread has noticed");
    }
}
