//! The guard at the primary: holds the term while the guest runs here, and says who may take over.
//!
//! ```text
//!   a shadow is in step ──► heir      lost, or a switchover is under way ──► struck off
//! ```
//! A thread of its own brings that to the store, and tries again until it is there. A shadow is an heir only while it
//! has a whole checkpoint of this session: what the guest does without it would be lost. Of several heirs the first one to
//! change the term takes over; the others are none then.

use std::{
    collections::BTreeSet,
    sync::{Arc, Weak},
    thread,
    time::Duration,
};

use gnomon_proto::guard::{GuardState, Will};
use gnomon_store::guarding::{Guarding, GuardingError, Hands, Wish};
use gnomon_terms::Epoch;
use parking_lot::{Condvar, Mutex};

use super::{name_at_store, store, view};
use crate::{
    api::{ApiError, types::GuardView},
    daemon::{
        Daemon,
        protecting::{blocking, family::Family, leash},
    },
};

/// From a change of the heirs that did not reach the store to the next try.
const AGAIN: Duration = Duration::from_millis(500);
/// How often it is looked whether the guard has learnt something that others wait for.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long a daemon that starts waits for what the store says, before it goes on as the guard lets it.
const LEARNS_WITHIN: Duration = Duration::from_secs(2);

/// The guard of a protection whose guest runs here.
pub struct PrimaryGuard {
    guarding: Guarding,
    heirs: Arc<Heirs>,
    /// Held while the heirs are told to the store: the last word is the last that was meant.
    telling: Mutex<()>,
}

/// What the thread of the heirs goes by.
#[derive(Default)]
struct Heirs {
    known: Mutex<Known>,
    changed: Condvar,
}

#[derive(Clone, Debug, Default)]
struct Known {
    /// The nodes of the shadows that are.
    in_step: BTreeSet<String>,
    /// A switchover or an end is under way.
    suspended: bool,
    /// The epoch that this node holds.
    holds: Option<u64>,
    /// That of its record.
    recorded: Option<u64>,
    /// The heirs at the store, as far as is known.
    named: Option<BTreeSet<String>>,
    over: bool,
}

impl Known {
    /// Who is to be an heir.
    fn wanted(&self) -> BTreeSet<String> {
        if self.suspended { BTreeSet::new() } else { self.in_step.clone() }
    }

    /// Whether there is something to tell; nothing is while the term is not held.
    fn is_told(&self) -> bool {
        self.holds.is_none() || (self.named.as_ref() == Some(&self.wanted()) && self.recorded == self.holds)
    }
}

/// Begins to guard a protection, if it is to be guarded. A daemon that comes back holds its guest in strict mode until
/// the store has answered.
pub fn begin(daemon: &Arc<Daemon>, family: &Arc<Family>, comes_back: bool) -> Result<(), ApiError> {
    let Some(record) = family.members().first().map(|member| member.record.lock().clone()) else { return Ok(()) };
    let Some(lease_s) = record.lease_s.filter(|_| family.guard().is_none()) else { return Ok(()) };
    if comes_back && record.strict {
        family.leash.hold();
    }
    let wish = Wish {
        node: daemon.config.node.clone(),
        vm: name_at_store(&record.vm, &record.id),
        ttl: Duration::from_secs(lease_s),
        strict: record.strict,
        will: Will::Found,
        held: record.term.map(Epoch),
    };
    let heirs = Arc::new(Heirs::default());
    let hands = PrimaryHands { daemon: Arc::clone(daemon), family: Arc::clone(family), heirs: Arc::clone(&heirs) };
    let guarding = Guarding::begin(store(daemon)?, wish, Box::new(hands))?;
    let guard = Arc::new(PrimaryGuard { guarding, heirs, telling: Mutex::new(()) });
    let (heirs, weak, records) = (Arc::clone(&guard.heirs), Arc::downgrade(&guard), Arc::clone(&daemon.records));
    let of = Arc::downgrade(family);
    *family.guard.lock() = Some(guard);
    thread::spawn(move || {
        let record = |epoch| match of.upgrade() {
            Some(family) => family.write(&records, |record| record.term = Some(epoch)),
            None => Ok(()),
        };
        keep_heirs(&heirs, &weak, record);
    });
    Ok(())
}

/// Ends the guard of a protection that is over, with its term. What the store does not hear now ends by itself: nobody
/// is an heir any more.
pub async fn end(family: &Family) {
    let Some(guard) = family.guard() else { return };
    if let Err(error) = blocking(move || Ok(guard.guarding.end()?)).await {
        tracing::warn!(vm = family.vm, %error, "its term stays at the store");
    }
}

/// The daemon is told to stop: whoever does that is there, and does not mean the shadow to take over. A host that dies
/// says nothing.
pub async fn rest(family: &Family) {
    let Some(guard) = family.guard() else { return };
    if let Err(error) = blocking(move || guard.suspend()).await {
        tracing::warn!(vm = family.vm, %error, "its shadow takes over when the lease has ended");
    }
}

/// The node that holds the guest by now, if it is not this one, for a daemon that starts: asks the store for a moment.
pub async fn superseded_by(family: &Family) -> Option<String> {
    let guard = family.guard()?;
    let learnt = async {
        loop {
            let standing = guard.guarding.standing();
            match standing.state {
                GuardState::Superseded { .. } => {
                    return Some(standing.term.map(|term| term.holder).unwrap_or_default());
                }
                GuardState::Holding { .. } => return None,
                GuardState::Lapsed { .. } | GuardState::Watching => tokio::time::sleep(LOOK_EVERY).await,
            }
        }
    };
    tokio::time::timeout(LEARNS_WITHIN, learnt).await.unwrap_or(None)
}

impl PrimaryGuard {
    /// The shadow at a node has all of a checkpoint of this session, or has lost it.
    pub fn in_step(&self, node: &str, in_step: bool) {
        if self.heirs.known.lock().in_step.contains(node) != in_step {
            self.heirs.change(|known| {
                known.in_step.remove(node);
                known.in_step.extend(in_step.then(|| node.to_string()));
            });
        }
    }

    /// The shadow at a node is no heir from now on. Returns when the store has it: only then may the guest be heard of
    /// things that this shadow lacks.
    pub fn strike_off(&self, node: &str) -> Result<(), ApiError> {
        self.in_step(node, false);
        Ok(self.tell()?)
    }

    /// From now on nobody takes over: what is done next decides who runs the guest. Returns when the store has it.
    pub fn suspend(&self) -> Result<(), ApiError> {
        self.heirs.change(|known| known.suspended = true);
        let told = self.tell();
        if told.is_err() {
            self.go_on();
        }
        told.map_err(|error| {
            ApiError::from(error).then("the shadow might take over at any time: try again when the store answers")
        })
    }

    /// What was done has come to nothing: shadows are heirs again while they are in step.
    pub fn go_on(&self) {
        self.heirs.change(|known| known.suspended = false);
    }

    /// Gives the guest up to the shadow's node, whose operator asked for it: it does not run here.
    pub fn let_go(&self) -> Result<(), ApiError> {
        Ok(self.guarding.let_go()?)
    }

    /// As the API shows it of the shadow at a node.
    pub fn view(&self, node: &str) -> GuardView {
        view(self.guarding.standing(), node, true)
    }

    /// Tells the store who may take over.
    fn tell(&self) -> Result<(), GuardingError> {
        let _telling = self.telling.lock();
        let wanted = self.heirs.known.lock().wanted();
        self.guarding.set_heirs(&wanted.iter().cloned().collect::<Vec<_>>())?;
        self.heirs.known.lock().named = Some(wanted);
        Ok(())
    }
}

impl Drop for PrimaryGuard {
    fn drop(&mut self) {
        self.heirs.change(|known| known.over = true);
    }
}

impl Heirs {
    fn change(&self, deed: impl FnOnce(&mut Known)) {
        deed(&mut self.known.lock());
        self.changed.notify_all();
    }
}

/// The thread of the heirs. The term is on record before anybody may take it over: so a daemon that comes back knows
/// what it held.
fn keep_heirs(heirs: &Heirs, guard: &Weak<PrimaryGuard>, record: impl Fn(u64) -> Result<(), ApiError>) {
    loop {
        let mut known = heirs.known.lock();
        heirs.changed.wait_while(&mut known, |known| known.is_told() && !known.over);
        let (over, holds) = (known.over, known.holds);
        drop(known);
        let (false, Some(epoch), Some(guard)) = (over, holds, guard.upgrade()) else { return };
        let done = record(epoch).and_then(|()| {
            heirs.known.lock().recorded = Some(epoch);
            Ok(guard.tell()?)
        });
        drop(guard);
        if let Err(error) = done {
            tracing::warn!(%error, "who may take over is not at the store yet");
            let mut known = heirs.known.lock();
            if !known.over {
                heirs.changed.wait_for(&mut known, AGAIN);
            }
        }
    }
}

/// What the guard does to the guest here.
struct PrimaryHands {
    daemon: Arc<Daemon>,
    family: Arc<Family>,
    heirs: Arc<Heirs>,
}

impl PrimaryHands {
    fn vm(&self) -> &str {
        &self.family.vm
    }

    fn qemu(&self) -> Option<Arc<gnomon_qemu::Qemu>> {
        self.daemon.vms.get(self.vm()).ok()?.qemu()
    }
}

impl Hands for PrimaryHands {
    fn run(&self, epoch: Epoch) {
        self.family.leash.let_run();
        self.heirs.change(|known| {
            // A term that was begun anew has no heirs.
            if known.holds != Some(epoch.0) {
                (known.holds, known.named) = (Some(epoch.0), None);
            }
        });
        let strict = self.family.members().iter().any(|member| member.record.lock().strict);
        if let Some(qemu) = self.qemu().filter(|_| strict)
            && let Err(error) = leash::let_go_on(&self.family.leash, &qemu)
        {
            tracing::error!(vm = self.vm(), %error, "the guest may run again, and may stand: try `cont` on its monitor");
        }
        tracing::info!(vm = self.vm(), term = epoch.0, "its guard lets it run here");
    }

    fn stand(&self) {
        self.family.leash.hold();
        if let Some(qemu) = self.qemu()
            && let Err(error) = qemu.qmp().stop()
        {
            tracing::error!(vm = self.vm(), %error, "the guest has to stand and cannot be stopped");
        }
        tracing::warn!(vm = self.vm(), "the lease is not sure any more: its guest stands");
    }

    fn superseded(&self, by: Epoch) {
        tracing::error!(vm = self.vm(), term = by.0, "another node holds it: the guest does not run here any more");
        self.heirs.change(|known| known.holds = None);
        // Its address is the other node's by now.
        self.daemon.vms.gate(self.vm()).fence();
        let standing = self.family.guard().map(|guard| guard.guarding.standing());
        let holder = standing.and_then(|standing| standing.term).map(|term| term.holder);
        self.family.is_lost(holder.as_deref());
        self.family.leash.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shadow_is_an_heir_while_it_is_in_step_and_nothing_else_is_decided() {
        let set = |nodes: &[&str]| nodes.iter().map(|node| node.to_string()).collect::<BTreeSet<_>>();
        let table: [(&[&str], bool, &[&str], &str); 4] = [
            (&["b"], false, &["b"], "in step"),
            (&["b", "c"], false, &["b", "c"], "both are"),
            (&[], false, &[], "lost"),
            (&["b", "c"], true, &[], "a switchover is under way"),
        ];
        for (in_step, suspended, wanted, what) in table {
            let known = Known { in_step: set(in_step), suspended, ..Known::default() };
            assert_eq!(known.wanted(), set(wanted), "{what}");
            assert!(known.is_told(), "{what}: nothing is told before the term is held");
            let held = Known { holds: Some(1), recorded: Some(1), ..known };
            let told = Known { named: Some(set(wanted)), ..held.clone() };
            assert!(!held.is_told() && told.is_told(), "{what}");
            assert!(!Known { holds: Some(2), ..told }.is_told(), "{what}: it is not on record");
        }
    }
}
