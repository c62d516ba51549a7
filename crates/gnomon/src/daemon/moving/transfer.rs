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
use gnomon_qemu::{Outgoing, OutgoingOptions};

use super::{hub::Hub, relay, rpc::Ask};
use crate::{
    api::ApiError,
    daemon::{Daemon, vms::VmHandle},
};

/// How long one look at QEMU waits for the guest to stand: the pace of the move meanwhile.
const LOOK: Duration = Duration::from_millis(100);
/// How long QEMU may take to send the state of its devices: a few hundred KiB.
const SWITCH_WITHIN: Duration = Duration::from_secs(30);
/// How long the guest may take to run here again.
const RESUME_WITHIN: Duration = Duration::from_secs(30);
/// How long the guest may stand for the rest of its memory, by how long it has been sent already. A guest that dirties
/// memory as fast as the link carries it never comes under the first, and is made to stand longer rather than never
/// to arrive.
const DOWNTIMES: [(Duration, Duration); 4] = [
    (Duration::ZERO, Duration::from_millis(40)),
    (Duration::from_secs(10), Duration::from_millis(100)),
    (Duration::from_secs(20), Duration::from_millis(300)),
    (Duration::from_secs(40), Duration::from_secs(1)),
];
/// The guest's memory has a session's only memory stream.
const RAM: Stream = Stream(0);

/// A guest that is being sent.
pub struct Transfer {
    vm: Arc<VmHandle>,
    outgoing: Option<Outgoing>,
    standing: bool,
    begun: Instant,
    downtime: Duration,
}

impl Transfer {
    /// Has a QEMU started at the destination, and begins to send.
    pub async fn start(hub: &Hub, vm: Arc<VmHandle>) -> Result<Transfer, ApiError> {
        let qemu = vm.qemu().ok_or_else(|| ApiError::refused("the VM does not run"))?;
        let record = qemu.record().clone();
        let (Some(spec), Some(resolved)) = (record.spec, record.resolved) else {
            return Err(ApiError::refused(format!("VM '{}' was adopted: its devices are not known", record.name))
                .then("restart it with `gnomon vm run`; adopted VMs cannot be moved by this version"));
        };
        hub.rpc.ask::<()>(&Ask::Incoming { spec: Box::new(spec), resolved }).await?;
        Transfer::send(hub, vm).await
    }

    /// Begins to send to a QEMU that waits at the other side.
    pub async fn send(hub: &Hub, vm: Arc<VmHandle>) -> Result<Transfer, ApiError> {
        let qemu = vm.qemu().ok_or_else(|| ApiError::refused("the VM does not run"))?;
        let end = relay::outgoing(RAM, hub.sender(), Arc::clone(hub.window()))?;
        let downtime = downtime_after(Duration::ZERO);
        let options = OutgoingOptions { downtime, ..OutgoingOptions::default() };
        let outgoing = blocking(move || Ok(Outgoing::start(qemu.qmp(), end, &options)?)).await?;
        Ok(Transfer { vm, outgoing: Some(outgoing), standing: false, begun: Instant::now(), downtime })
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
            self.standing = self.with(|outgoing| Ok(outgoing.await_standing(LOOK)?)).await?;
        }
        Ok(self.standing)
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
        self.keep().await?;
        hub.rpc.ask::<bool>(&Ask::Withdraw).await?;
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

fn downtime_after(sent_for: Duration) -> Duration {
    DOWNTIMES.iter().rev().find(|(after, _)| sent_for >= *after).map_or(DOWNTIMES[0].1, |(_, downtime)| *downtime)
}

async fn blocking<T: Send + 'static>(
    deed: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(deed).await.map_err(ApiError::internal)?
}

/// After a session was lost in the midst of the switch: is the guest there? Then its QEMU here ends.
pub async fn settle(daemon: &Arc<Daemon>, hub: &Hub, vm: &str) -> Result<(), ApiError> {
    let Ok(here) = daemon.vms.get(vm) else { return Ok(()) };
    let there: bool = hub.rpc.ask(&Ask::HasGuest { vm: vm.to_string() }).await?;
    if here.qemu().is_none() && !there {
        return Err(ApiError::unavailable(format!("VM '{vm}' runs on neither node"))
            .then("start it at the destination with `gnomon vm run`: its volume is there"));
    }
    if there {
        let (vms, vm) = (Arc::clone(&daemon.vms), vm.to_string());
        return blocking(move || vms.remove(&vm)).await;
    }
    Err(ApiError::unavailable(format!("VM '{vm}' was paused in the midst of the switch and is still here"))
        .then("if the other node is dead: `gnomon volume rollback`, then `gnomon vm stop` and `run` it here"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_does_not_converge_may_stand_longer() {
        let table = [(0, 40), (9, 40), (10, 100), (25, 300), (3600, 1000)];
        for (seconds, millis) in table {
            assert_eq!(downtime_after(Duration::from_secs(seconds)), Duration::from_millis(millis), "{seconds} s");
        }
    }
}
