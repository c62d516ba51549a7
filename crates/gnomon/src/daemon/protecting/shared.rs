//! What the API and the driver of a protection share.

use std::{sync::atomic::AtomicU64, time::Instant};

use parking_lot::Mutex;
use tokio::sync::watch;

use super::pulse::Pulse;
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
    /// Pages said in the session.
    pub(super) said: AtomicU64,
    /// Whether no driver is at work.
    idle: watch::Sender<bool>,
}

impl Shared {
    /// A protection as it is on record.
    pub fn new(record: ProtectRecord) -> Shared {
        let (record, order) = (Mutex::new(record), watch::Sender::default());
        Shared {
            record,
            pulse: Pulse::default(),
            order,
            alone_since: Mutex::default(),
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
        let view = self.pulse.view(&record.to, record.epoch);
        let view = ProtectionView { strict: record.strict, exposed: record.exposed, ..view };
        match record.given {
            Some(_) => ProtectionView { state: ProtectionState::Given, ..view },
            None => view,
        }
    }
}
