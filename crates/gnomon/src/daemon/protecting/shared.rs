//! What the API and the driver of one shadow share.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

use gnomon_link::Session;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::{family::Family, pulse::Pulse};
use crate::{
    api::{
        ApiError,
        types::{ProtectionState, ProtectionView},
    },
    daemon::{
        jobs::Job,
        records::{ProtectRecord, Records},
    },
};

/// What was asked of a protection under way.
#[derive(Clone, Default)]
pub enum Order {
    /// Nothing: it goes on.
    #[default]
    None,
    /// It is not wanted any more.
    End,
    /// The guest is to go on at the shadow; the job tells how it goes.
    Switch(Job),
    /// The daemon stops.
    Rest,
    /// The shadow's node holds the guest by now: it is given up here.
    Lost,
    /// The guest was given up here, by somebody else: nothing is left to do.
    GivenUp,
}

/// What the API and a driver share.
pub struct Shared {
    /// What it has in common with the VM's other shadows.
    pub family: Arc<Family>,
    node: String,
    /// Whether frames wait for it from its next checkpoint on, as is on record: known without waiting for the disk.
    is_waited_for: AtomicBool,
    /// As it is on record.
    pub record: Mutex<ProtectRecord>,
    /// How it does.
    pub pulse: Pulse,
    /// What was asked of it.
    pub order: watch::Sender<Order>,
    /// Since when there has been no checkpoint, after a session was lost.
    pub(super) alone_since: Mutex<Option<Instant>>,
    /// The session, while there is one.
    session: watch::Sender<Option<Arc<Session>>>,
    /// Pages said in the session.
    pub(super) said: AtomicU64,
    /// Whether no driver is at work.
    idle: watch::Sender<bool>,
}

impl Shared {
    /// One as it is on record.
    pub fn new(record: ProtectRecord, family: Arc<Family>) -> Shared {
        Shared {
            family,
            node: record.to.clone(),
            is_waited_for: AtomicBool::new(record.strict && !record.exposed),
            record: Mutex::new(record),
            pulse: Pulse::default(),
            order: watch::Sender::default(),
            alone_since: Mutex::default(),
            session: watch::Sender::default(),
            said: AtomicU64::new(0),
            idle: watch::Sender::new(true),
        }
    }

    /// Changes its record; durable before it is believed.
    pub fn write(&self, records: &Records, deed: impl FnOnce(&mut ProtectRecord)) -> Result<(), ApiError> {
        let mut record = self.record.lock();
        let mut draft = record.clone();
        deed(&mut draft);
        records.put_protection(&draft)?;
        self.is_waited_for.store(draft.strict && !draft.exposed, Ordering::SeqCst);
        *record = draft;
        Ok(())
    }

    /// The switchover that was asked is seen to: the order is none any more, unless another has been given since.
    pub fn switch_begins(&self) {
        self.order.send_if_modified(|order| {
            let is_switch = matches!(order, Order::Switch(_));
            if is_switch {
                *order = Order::None;
            }
            is_switch
        });
    }

    /// The node of the shadow.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Whether frames wait for it from its next checkpoint on. Waits for nothing.
    pub(super) fn is_waited_for(&self) -> bool {
        self.is_waited_for.load(Ordering::SeqCst)
    }

    /// The shadow has lost what it had, or may have.
    pub(super) fn is_out_of_step(&self) {
        if let Some(guard) = self.family.guard() {
            guard.in_step(&self.node, false);
        }
    }

    /// A session has begun, or is over.
    pub(super) fn has_session(&self, session: Option<Arc<Session>>) {
        self.session.send_replace(session);
    }

    /// Ends the session, if there is one, and waits until nothing of it is under way.
    pub(super) async fn end_session(&self, why: &str) {
        if let Some(session) = &*self.session.borrow() {
            session.close(why);
        }
        // The sender lives as long as `self`.
        let _ = self.session.subscribe().wait_for(Option::is_none).await;
    }

    /// A driver begins its work.
    pub fn drives(&self) {
        self.idle.send_replace(false);
    }

    /// No driver is at work any more.
    pub fn rests(&self) {
        self.idle.send_replace(true);
    }

    /// Waits until no driver is at work.
    pub async fn resting(&self) {
        // The sender lives as long as `self`.
        let _ = self.idle.subscribe().wait_for(|idle| *idle).await;
    }

    /// As a user is told.
    pub fn view(&self) -> ProtectionView {
        let record = self.record.lock().clone();
        let guard = self.family.guard().map(|guard| guard.view(&record.to));
        let view = self.pulse.view(&record.to, record.epoch);
        let view = ProtectionView { strict: record.strict, exposed: record.exposed, guard, ..view };
        match record.given {
            Some(_) => ProtectionView { state: ProtectionState::Given, ..view },
            None => view,
        }
    }
}
