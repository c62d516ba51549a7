//! What the API and the driver of a protection share.

use std::sync::atomic::AtomicU64;

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
    /// Pages said in the session.
    pub(super) said: AtomicU64,
}

impl Shared {
    /// A protection as it is on record.
    pub fn new(record: ProtectRecord) -> Shared {
        let (record, order) = (Mutex::new(record), watch::Sender::default());
        Shared { record, pulse: Pulse::default(), order, said: AtomicU64::new(0) }
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

    /// As a user is told.
    pub fn view(&self) -> ProtectionView {
        let record = self.record.lock().clone();
        let view = self.pulse.view(&record.to, record.epoch);
        match record.given {
            Some(_) => ProtectionView { state: ProtectionState::Given, ..view },
            None => view,
        }
    }
}
