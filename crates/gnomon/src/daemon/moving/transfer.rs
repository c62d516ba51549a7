//! A guest on its way: QEMU's own migration, relayed over the session.
//!
//! The guest is copied while it runs; then it stands, nothing irrevocable done. Whoever drives the move hands the
//! volumes over in that moment, and [`Transfer::complete`] sends the rest. Up to then [`Transfer::cancel`] makes the
//! guest run on here.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use gnomon_proto::frame::Stream;
use gnomon_qemu::{MigrationStatus, Outgoing, OutgoingOptions, Qmp, RunState};
use gnomon_terms::Bytes;

use super::{decide::downtime_after, hub::Hub, relay, rpc::Ask};
use crate::{
    api::ApiError,
    daemon::{
        Daemon,
        records::{MoveRecord, VmRecord},
        vms::{
            VmHandle,
            makeup::{all_memory, built, refuse_if_qemu_loses_pages},
        },
    },
};

/// How long one look at QEMU waits for the guest to stand: the pace of the move meanwhile.
const LOOK: Duration = Duration::from_millis(100);
/// How long QEMU may take to send the state of its devices: a few hundred KiB.
const SWITCH_WITHIN: Duration = Duration::from_secs(30);
/// How long the guest may take to run here again.
const RESUME_WITHIN: Duration = Duration::from_secs(30);
/// How long QEMU may take to let a guest run again whose migration nobody drives any more.
const REVIVED_WITHIN: Duration = Duration::from_secs(10);
/// How often it is looked at whether it has.
const REVIVAL_LOOK: Duration = Duration::from_millis(1);
/// The guest's memory has a session's only memory stream.
const RAM: Stream = Stream(0);

/// A guest that is being sent.
pub struct Transfer {
    vm: Arc<VmHandle>,
    outgoing: Option<Outgoing>,
    standing: bool,
    begun: Instant,
    downtime: Duration,
    owed: Bytes,
}

impl Transfer {
    /// Has a QEMU started at the destination, and begins to send.
    pub async fn start(hub: &Hub, vm: Arc<VmHandle>) -> Result<Transfer, ApiError> {
        let qemu = vm.qemu().ok_or_else(|| ended(&vm))?;
        let (spec, resolved) =
            blocking(move || refuse_if_qemu_loses_pages(&qemu).and_then(|()| built(&qemu))).await?;
        hub.rpc.ask::<()>(&Ask::Incoming { spec: Box::new(spec), resolved }).await?;
        Transfer::send(hub, vm).await
    }

    /// Begins to send to a QEMU that waits at the other side. A guest that stands since it was last sent runs first.
    pub async fn send(hub: &Hub, vm: Arc<VmHandle>) -> Result<Transfer, ApiError> {
        let qemu = vm.qemu().ok_or_else(|| ended(&vm))?;
        let sent_before = Arc::clone(&qemu);
        let owed = blocking(move || {
            refuse_if_qemu_loses_pages(&sent_before)?;
            revive(sent_before.qmp())?;
            Ok(Bytes(all_memory(&sent_before)))
        });
        let owed = owed.await?;
        let end = relay::outgoing(RAM, hub.sender(), Arc::clone(hub.window()))?;
        let downtime = downtime_after(Duration::ZERO);
        let options = OutgoingOptions { downtime, ..OutgoingOptions::default() };
        let outgoing = blocking(move || Ok(Outgoing::start(qemu.qmp(), end, &options)?)).await?;
        Ok(Transfer { vm, outgoing: Some(outgoing), standing: false, begun: Instant::now(), downtime, owed })
    }

    /// How long it has been sent.
    pub fn sent_for(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Bytes of its memory that QEMU has left to send, as of the last look.
    pub fn owed(&self) -> Bytes {
        self.owed
    }

    /// Lets the guest stand longer when it has been sent for long.
    pub async fn urge(&mut self) -> Result<(), ApiError> {
        let downtime = downtime_after(self.begun.elapsed());
        if downtime > self.downtime && !self.standing {
            self.downtime = downtime;
            self.with(move |outgoing| Ok(outgoing.set_limits(None, downtime)?)).await?;
        }
        Ok(())
    }

    /// Its VM's name.
    pub fn name(&self) -> String {
        self.vm.record().name
    }

    /// Whether the guest stands and waits for the switch; waits a tenth of a second for it.
    pub async fn is_standing(&mut self) -> Result<bool, ApiError> {
        if !self.standing {
            (self.standing, self.owed) = self
                .with(|outgoing| match outgoing.await_standing(LOOK)? {
                    true => Ok((true, Bytes(0))),
                    false => Ok((false, outgoing.progress()?.remaining)),
                })
                .await?;
        }
        Ok(self.standing)
    }

    /// The guest's disks are given away: it must not run here again, whatever becomes of this transfer.
    pub fn forbid_return(&mut self) {
        if let Some(outgoing) = &mut self.outgoing {
            outgoing.forbid_return();
        }
    }

    /// Sends the rest and waits until the guest runs at the destination.
    pub async fn complete(mut self, hub: &Hub) -> Result<(), ApiError> {
        let begun = Instant::now();
        self.send_rest().await?;
        let sent = begun.elapsed();
        hub.rpc.ask::<()>(&Ask::Running).await?;
        tracing::info!(sent = ?sent, runs_there = ?begun.elapsed(), "the guest has switched");
        Ok(())
    }

    /// Sends the rest of a guest that stands. From here on there is no cancel.
    pub async fn send_rest(&mut self) -> Result<(), ApiError> {
        self.with(|outgoing| Ok(outgoing.switch(SWITCH_WITHIN)?)).await?;
        Ok(())
    }

    /// The guest runs on here.
    pub async fn cancel(self, hub: &Hub) -> Result<(), ApiError> {
        let vm = Some(self.name());
        self.keep().await?;
        hub.rpc.ask::<bool>(&Ask::Withdraw { vm }).await?;
        Ok(())
    }

    /// Sends no more: the guest runs on here.
    pub async fn keep(mut self) -> Result<(), ApiError> {
        match self.outgoing.take() {
            Some(outgoing) => blocking(move || Ok(outgoing.cancel(RESUME_WITHIN)?)).await,
            None => Ok(()),
        }
    }

    async fn with<T: Send + 'static>(
        &mut self,
        deed: impl FnOnce(&mut Outgoing) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let mut outgoing = self.outgoing.take().ok_or_else(|| ApiError::internal("the transfer is over"))?;
        let (outgoing, result) = blocking(move || {
            let result = deed(&mut outgoing);
            Ok((outgoing, result))
        })
        .await?;
        self.outgoing = Some(outgoing);
        result
    }
}

pub(super) async fn blocking<T: Send + 'static>(
    deed: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(deed).await.map_err(ApiError::internal)?
}

/// What is told of a guest that was caught between the two nodes.
pub const GUEST_LOST: &str =
    "the guest was caught between the nodes and lost its memory: start it at the destination with `gnomon vm run`";

/// A guest that ended by itself, or was stopped, is not there to be moved.
pub fn refuse_if_ended(daemon: &Daemon, record: &MoveRecord) -> Result<(), ApiError> {
    match record.vm.as_ref().map(|name| (name, daemon.vms.get(name))) {
        Some((_, Ok(vm))) if vm.qemu().is_none() => Err(ended(&vm)),
        Some((name, Err(_))) => Err(not_moved(&format!("VM '{name}' was stopped while it was about to move"))),
        _ => Ok(()),
    }
}

pub(super) fn ended(vm: &VmHandle) -> ApiError {
    let VmRecord { name, exit, .. } = vm.record();
    match exit {
        Some(how) => not_moved(&format!("VM '{name}' ended while it was about to move: {how}")),
        None => ApiError::unavailable(format!("the monitor of VM '{name}' does not answer")),
    }
}

fn not_moved(why: &str) -> ApiError {
    ApiError::refused(why)
        .then("its volumes are here as before: start it again, or move them with `gnomon volume move`")
}

/// A daemon that died while it sent a guest may have left it standing: as long as nothing is given away, it runs here.
pub async fn run_on(daemon: &Daemon, vm: &str) {
    let Some(qemu) = daemon.vms.get(vm).ok().and_then(|vm| vm.qemu()) else { return };
    if let Err(error) = blocking(move || revive(qemu.qmp())).await {
        tracing::error!(vm, %error, "it may stand since it was last sent: it runs on when the next session sends it");
    }
}

/// Ends a migration that nobody drives any more, and lets the guest run if it stands for that.
pub(super) fn revive(qmp: &Qmp) -> Result<(), ApiError> {
    let begun = Instant::now();
    let is_under_way = |status: &MigrationStatus| {
        use MigrationStatus::{Active, Cancelling, Device, PreSwitchover, Setup};
        matches!(status, Setup | Active | PreSwitchover | Device | Cancelling)
    };
    if is_under_way(&qmp.query_migrate()?.status) {
        tracing::warn!("a migration that nobody drives any more is cancelled");
        qmp.migrate_cancel()?;
    }
    // QEMU has an event for it, which may have been told before anybody listened.
    while is_under_way(&qmp.query_migrate()?.status) {
        if begun.elapsed() > REVIVED_WITHIN {
            return Err(ApiError::unavailable("QEMU does not end a migration that was cancelled"));
        }
        std::thread::sleep(REVIVAL_LOOK);
    }
    match qmp.query_status()?.state {
        RunState::FinishMigrate | RunState::Postmigrate => Ok(qmp.cont_after_migration(REVIVED_WITHIN)?),
        // It runs, or somebody else has stopped it.
        _ => Ok(()),
    }
}

/// After a session was lost in the midst of the switch: is the guest there? If not, its memory is lost, which goes on
/// record. Its QEMU here ends in any case: its disks are there.
pub async fn settle(daemon: &Daemon, hub: &Hub, record: &mut MoveRecord) -> Result<(), ApiError> {
    let Some(vm) = record.vm.clone().filter(|vm| daemon.vms.get(vm).is_ok()) else { return Ok(()) };
    let there: bool = hub.rpc.ask(&Ask::HasGuest { vm: vm.clone() }).await?;
    if !there {
        tracing::error!(vm, "{GUEST_LOST}");
        record.guest_lost = true;
        daemon.records.put_move(record)?;
    }
    let vms = Arc::clone(&daemon.vms);
    blocking(move || vms.remove(&vm)).await
}
