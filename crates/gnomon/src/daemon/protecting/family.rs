//! What the shadows of one VM have in common, at its primary: the guest that stands once for all of them, the guard and the
//! leash that say whether it runs, and which frames may leave.
//!
//! Each shadow is driven by itself ([`super::primary`]), in sessions of its own. What ends the guest here (a switchover to
//! one of them, a takeover by one) ends the protection by the others: nobody else takes over, and their nodes are told.

use std::sync::{Arc, Weak};

use gnomon_machine::{commits::Commits, primary::Guest};
use parking_lot::Mutex;

use super::{
    guarding::PrimaryGuard,
    leash::Leash,
    shared::{Order, Shared},
};
use crate::{
    api::ApiError,
    daemon::{
        cards::Gate,
        records::{ProtectRecord, Records},
    },
};

/// All shadows of one VM.
pub struct Family {
    /// The VM.
    pub vm: String,
    /// Names the protection on all nodes.
    pub id: String,
    /// Whether the guest may run, as its guard says.
    pub(super) leash: Arc<Leash>,
    /// Its guard, if it has one; taken when it is over.
    pub(super) guard: Mutex<Option<Arc<PrimaryGuard>>>,
    members: Mutex<Vec<Arc<Shared>>>,
    /// While an engine has it, with the way in which its pages are followed.
    guest: Mutex<(Weak<Guest>, String)>,
    frames: Mutex<Frames>,
    gate: Arc<Gate>,
}

/// Strict mode: for whom frames wait.
#[derive(Default)]
struct Frames {
    commits: Commits,
    /// The gate's number of the time since frames began to wait.
    session: Option<u64>,
}

impl Family {
    /// That of a VM that has no shadow yet.
    pub fn new(record: &ProtectRecord, gate: Arc<Gate>) -> Arc<Family> {
        Arc::new(Family {
            vm: record.vm.clone(),
            id: record.id.clone(),
            leash: Arc::default(),
            guard: Mutex::default(),
            members: Mutex::default(),
            guest: Mutex::default(),
            frames: Mutex::default(),
            gate,
        })
    }

    // ---- members --------------------------------------------------------------------------------------------

    /// A shadow as it is on record.
    pub fn add(self: &Arc<Family>, record: ProtectRecord) -> Arc<Shared> {
        if record.strict && !record.exposed {
            self.frames.lock().commits.expect(&record.to);
        }
        let shared = Arc::new(Shared::new(record, Arc::clone(self)));
        self.members.lock().push(Arc::clone(&shared));
        shared
    }

    /// A shadow is none any more; whether it was the last one.
    pub fn leave(&self, shared: &Arc<Shared>) -> bool {
        let mut members = self.members.lock();
        members.retain(|member| !Arc::ptr_eq(member, shared));
        members.is_empty()
    }

    /// All shadows.
    pub fn members(&self) -> Vec<Arc<Shared>> {
        self.members.lock().clone()
    }

    /// All shadows but this.
    pub fn others(&self, shared: &Arc<Shared>) -> Vec<Arc<Shared>> {
        let mut others = self.members();
        others.retain(|member| !Arc::ptr_eq(member, shared));
        others
    }

    /// The shadow at a node.
    pub fn member(&self, node: &str) -> Option<Arc<Shared>> {
        self.members().into_iter().find(|member| member.node() == node)
    }

    /// The nodes of all shadows.
    pub fn nodes(&self) -> Vec<String> {
        self.members().iter().map(|member| member.node().to_string()).collect()
    }

    /// The nodes of the other shadows.
    pub fn siblings_of(&self, node: &str) -> Vec<String> {
        self.nodes().into_iter().filter(|other| other != node).collect()
    }

    /// The node that the guest was given to, while it is not known whether it runs there.
    pub fn given_to(&self) -> Option<String> {
        let members = self.members();
        members.iter().find(|member| member.record.lock().given.is_some()).map(|member| member.node().to_string())
    }

    /// Changes what is the same in all records; durable before it is believed.
    pub fn write(&self, records: &Records, deed: impl Fn(&mut ProtectRecord)) -> Result<(), ApiError> {
        self.members().iter().try_for_each(|member| member.write(records, &deed))
    }

    /// The guest does not live here any more: nothing is left to do for the other shadows.
    pub fn give_up_others(&self, shared: &Arc<Shared>) {
        for other in self.others(shared) {
            if let Order::Switch(job) = other.order.send_replace(Order::GivenUp) {
                job.finish(Err(ApiError::refused("the guest does not run here any more")));
            }
        }
    }

    /// A shadow's node holds the guest, as the store says. One that was given to it is not lost: its session ends as it
    /// would have.
    pub(super) fn is_lost(&self, holder: Option<&str>) {
        if self.given_to().is_some() {
            return;
        }
        let taken_by = holder.and_then(|holder| self.member(holder)).or_else(|| self.members().first().cloned());
        let Some(taken_by) = taken_by else { return };
        if let Order::Switch(job) = taken_by.order.send_replace(Order::Lost) {
            job.finish(Err(ApiError::refused("the shadow's node holds the guest by now")));
        }
    }

    // ---- the guest ------------------------------------------------------------------------------------------

    /// The guest, and the way in which its pages are followed; made by `follow` if no engine has it.
    pub(super) fn guest(
        &self,
        follow: impl FnOnce() -> Result<(Arc<Guest>, String), ApiError>,
    ) -> Result<(Arc<Guest>, String), ApiError> {
        let mut known = self.guest.lock();
        if let Some(guest) = known.0.upgrade() {
            return Ok((guest, known.1.clone()));
        }
        let (guest, tracker) = follow()?;
        *known = (Arc::downgrade(&guest), tracker.clone());
        // Its checkpoints are numbered anew.
        let mut frames = self.frames.lock();
        frames.commits.begin_anew();
        if frames.commits.committed().is_some() {
            frames.session = Some(self.gate.begin());
        }
        Ok((guest, tracker))
    }

    /// The guest is not what is followed any more: whoever begins next follows it anew.
    pub(super) fn forget_guest(&self) {
        self.guest.lock().0 = Weak::new();
    }

    /// Its guard.
    pub(super) fn guard(&self) -> Option<Arc<PrimaryGuard>> {
        self.guard.lock().clone()
    }

    // ---- frames ---------------------------------------------------------------------------------------------

    /// The guest stands for a checkpoint that a shadow has a part in. From here on frames wait for that one, too, unless it
    /// is exposed on record.
    pub(super) fn closes(&self, shared: &Shared, checkpoint: u64) {
        let mut frames = self.frames.lock();
        if shared.is_waited_for() {
            frames.commits.join(shared.node(), checkpoint);
            frames.session.get_or_insert_with(|| self.gate.begin());
        }
        self.gate.close(checkpoint);
    }

    /// A shadow has said that it has a checkpoint: what all have that are waited for may leave.
    pub(super) fn sealed(&self, node: &str, checkpoint: u64) {
        let mut frames = self.frames.lock();
        frames.commits.sealed(node, checkpoint);
        self.release(&frames);
    }

    /// The same shadow may be named as an heir, in strict mode if it has all that has left. Decided and told to the guard at
    /// once, so that one that is struck off meanwhile stays so.
    pub(super) fn name_heir(&self, node: &str, strict: bool, checkpoint: u64) {
        let mut frames = self.frames.lock();
        let may_be_named = frames.commits.sealed(node, checkpoint) || !strict;
        if let Some(guard) = self.guard().filter(|_| may_be_named) {
            guard.in_step(node, true);
        }
    }

    /// A shadow is about to be struck off: from here on it is not named as an heir.
    pub(super) fn doubt(&self, node: &str) {
        self.frames.lock().commits.doubt(node);
    }

    /// A shadow was struck off, on record: frames do not wait for it any more. Without others they leave at once.
    pub(super) fn leave_behind(&self, node: &str) {
        let mut frames = self.frames.lock();
        frames.commits.leave(node);
        match frames.commits.committed() {
            Some(_) => self.release(&frames),
            None => {
                frames.session = None;
                self.gate.expose();
            }
        }
    }

    /// Whether frames wait for another shadow than this.
    pub(super) fn waits_for_others(&self, node: &str) -> bool {
        self.frames.lock().commits.has_others(node)
    }

    fn release(&self, frames: &Frames) {
        if let Some((session, committed)) = frames.session.zip(frames.commits.committed()) {
            self.gate.commit(session, committed);
        }
    }
}
