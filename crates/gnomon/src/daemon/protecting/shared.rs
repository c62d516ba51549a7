//! What the API and the driver of a protection share.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Instant,
};

use parking_lot::Mutex;
use tokio::sync::watch;

use super::{guarding::PrimaryGuard, leash::Leash, pulse::Pulse};
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
    /// As it is on record.
    pub record: Mutex<ProtectRecord>,
    /// How it does.
    pub pulse: Pulse,
    /// What was asked of it.
    pub order: watch::Sender<Order>,
    /// Since when there has been no checkpoint, after a session was lost.
    pub(super) alone_since: Mutex<Option<Instant>>,
    /// Its guard, if it has one; taken when it is over.
    pub(super) guard: Mutex<Option<Arc<PrimaryGuard>>>,
    /// Whether the guest may run, as that says.
    pub(super) leash: Arc<Leash>,
    /// Pages said in the session.
    pub(super) said: AtomicU64,
    /// Whether no driver is at work.
    idle: watch::Sender<bool>,
}

impl Shared {
    /// A protection as it is on record.
    pub fn new(record: ProtectRecord) -> Shared {
        Shared {
            record: Mutex::new(record),
            pulse: Pulse::default(),
            order: watch::Sender::default(),
            alone_since: Mutex::default(),
            guard: Mutex::default(),
            leash: Arc::default(),
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

    /// Its guard.
    pub(super) fn guard(&self) -> Option<Arc<PrimaryGuard>> {
        self.guard.lock().clone()
    }

    /// The shadow has all of a checkpoint of this session, or has lost it.
    pub(super) fn in_step(&self, in_step: bool) {
        if let Some(guard) = self.guard() {
            guard.in_step(in_step);
        }
    }

    /// The shadow's node holds the guest. One that was given to it is not lost: its session ends as it would have.
    pub(super) fn is_lost(&self) {
        if self.record.lock().given.is_some() {
            return;
        }
        if let Order::Switch(job) = self.order.send_replace(Order::Lost) {
            job.finish(Err(ApiError::refused("the shadow's node holds the guest by now")));
        }
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
        let guard = self.guard().map(|guard| guard.view());
        let view = self.pulse.view(&record.to, record.epoch);
        let view = ProtectionView { strict: record.strict, exposed: record.exposed, guard, ..view };
        match record.given {
            Some(_) => ProtectionView { state: ProtectionState::Given, ..view },
            None => view,
        }
    }
}
