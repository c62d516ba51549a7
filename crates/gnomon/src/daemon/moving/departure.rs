//! A guest that leaves, whichever way its memory goes. What both ways have in common is all that a move knows of them: it
//! is sent while it runs; it stands, with nothing irrevocable done; its volumes are given away; it runs at the destination.

use std::{sync::Arc, time::Duration};

use gnomon_terms::Bytes;

use super::{
    decide,
    hub::Hub,
    ram,
    sending::{Sending, Setting},
    source::SourceMove,
    transfer::{Transfer, blocking, ended, revive},
};
use crate::{
    api::{
        ApiError, Kind,
        types::{RamChoice, RamWay},
    },
    daemon::vms::VmHandle,
};

/// A guest that leaves.
pub enum Departure {
    /// By checkpoints.
    Engine(Box<Sending>),
    /// By QEMU's own migration.
    Qemu(Transfer),
}

impl SourceMove {
    /// Begins to send the guest, in the way that was asked for or the better one.
    pub(super) async fn depart(&mut self, hub: &Hub, vm: Arc<VmHandle>) -> Result<Departure, ApiError> {
        let qemu = vm.qemu().ok_or_else(|| ended(&vm))?;
        let turn = Arc::clone(&self.sending).lock_owned().await;
        let asked = self.record.ram;
        let (daemon, name) = (Arc::clone(&self.daemon), vm.record().name);
        let begin = move || {
            // It may stand since it was last sent.
            revive(qemu.qmp())?;
            let (choice, tracker) = ram::begin(asked, &qemu)?;
            Ok((choice, tracker.map(|tracker| daemon.memory.noting(&qemu, &name, tracker))))
        };
        let (choice, tracker) = blocking(begin).await?;
        tracing::info!(vm = vm.record().name, "its memory goes {choice}");
        self.ram = Some(choice);
        let Some(tracker) = tracker else { return Ok(Departure::Qemu(Transfer::start(hub, vm).await?)) };
        let (configured, given) = (self.daemon.config.link.as_ref().and_then(|link| link.rate), self.shared.rate());
        let setting = Setting {
            vm: Arc::clone(&vm),
            volumes: self.volumes.clone(),
            move_id: self.record.id.clone(),
            tracker,
            link: configured.into_iter().chain(given).min_by_key(|rate| rate.0),
            turn,
        };
        match Sending::start(hub, setting).await {
            // Its daemon is older than ours, and has never heard of it.
            Err(error) if error.kind == Kind::Usage && asked.is_none() => {
                let why = format!("node {} does not take checkpoints: {}", self.record.to, error.message);
                self.ram = Some(RamChoice { way: RamWay::Qemu, why });
                Ok(Departure::Qemu(Transfer::start(hub, vm).await?))
            }
            started => Ok(Departure::Engine(Box::new(started?))),
        }
    }
}

impl Departure {
    /// Its VM's name.
    pub fn name(&self) -> String {
        match self {
            Departure::Engine(sending) => sending.name(),
            Departure::Qemu(transfer) => transfer.name(),
        }
    }

    /// Whether the guest stands and waits for the switch; waits a tenth of a second for it. One that `may` not stand yet, because
    /// its disks are not ready, is made to stand later if its way allows that.
    pub async fn is_standing(&mut self, hub: &Hub, may: bool) -> Result<bool, ApiError> {
        match self {
            Departure::Engine(sending) => sending.is_standing(hub, may).await,
            Departure::Qemu(transfer) => {
                transfer.urge().await?;
                Ok(transfer.is_standing().await? && may)
            }
        }
    }

    /// Bytes of its memory that the destination lacks, as far as is known.
    pub fn owed(&self) -> Bytes {
        match self {
            Departure::Engine(sending) => sending.owed(),
            Departure::Qemu(transfer) => transfer.owed(),
        }
    }

    /// What its user is told of a guest that does not come any nearer.
    pub fn strain(&self) -> Option<String> {
        decide::strain(self.sent_for())
    }

    fn sent_for(&self) -> Duration {
        match self {
            Departure::Engine(sending) => sending.sent_for(),
            Departure::Qemu(transfer) => transfer.sent_for(),
        }
    }

    /// The guest's disks are given away: it must not run here again, whatever becomes of this.
    pub fn forbid_return(&mut self) {
        match self {
            Departure::Engine(sending) => sending.forbid_return(),
            Departure::Qemu(transfer) => transfer.forbid_return(),
        }
    }

    /// Sends what is left, if anything is, and waits until the guest runs at the destination.
    pub async fn complete(self, hub: &Hub) -> Result<(), ApiError> {
        match self {
            Departure::Engine(sending) => sending.complete(hub).await,
            Departure::Qemu(transfer) => transfer.complete(hub).await,
        }
    }

    /// The guest runs on here.
    pub async fn cancel(self, hub: &Hub) -> Result<(), ApiError> {
        match self {
            Departure::Engine(sending) => sending.cancel(hub).await,
            Departure::Qemu(transfer) => transfer.cancel(hub).await,
        }
    }
}
