//! A guest that is expected here: its QEMU waits, and what comes over the session is its memory.

use std::{sync::Arc, time::Duration};

use gnomon_proto::frame::Message;
use gnomon_qemu::{Incoming, IncomingFrom, Resolved, VmSpec};
use tokio::sync::{mpsc, oneshot};

use super::{hub::Hub, relay};
use crate::{api::ApiError, daemon::Daemon};

/// How long a guest that has been sent may take to be loaded and run.
const RUN_WITHIN: Duration = Duration::from_secs(30);

/// A guest that is expected.
pub struct Arrival {
    name: String,
    running: Option<oneshot::Receiver<Result<(), ApiError>>>,
}

/// Starts the QEMU that the guest will run in, on the disks of this node.
pub async fn expect(
    daemon: &Arc<Daemon>,
    hub: &Hub,
    spec: VmSpec,
    resolved: Resolved,
    ram: mpsc::Receiver<Message>,
) -> Result<Arrival, ApiError> {
    let name = spec.name.clone();
    let vms = Arc::clone(&daemon.vms);
    let (tell, running) = oneshot::channel();
    let vm = tokio::task::spawn_blocking(move || vms.receive(spec, resolved)).await.map_err(ApiError::internal)??;
    let qemu = vm.qemu().ok_or_else(|| ApiError::unavailable("QEMU has ended at once"))?;
    let end = relay::incoming(ram, hub.sender())?;
    let mut incoming = Incoming::start(qemu.qmp(), IncomingFrom::Stream(end), false)?;
    std::thread::spawn(move || {
        let outcome = await_running(&mut incoming);
        // Whoever expected it may have given up.
        let _ = tell.send(outcome);
    });
    Ok(Arrival { name, running: Some(running) })
}

impl Arrival {
    /// Waits until the guest runs here.
    pub async fn running(&mut self) -> Result<(), ApiError> {
        let running = self.running.take().ok_or_else(|| ApiError::refused("this guest was waited for already"))?;
        running.await.map_err(|_| ApiError::unavailable("QEMU has ended while the guest was loaded"))?
    }

    /// Whether nobody has waited for it to run yet.
    pub fn is_pending(&self) -> bool {
        self.running.is_some()
    }

    /// The guest will not come: its QEMU ends.
    pub async fn withdraw(self, daemon: &Arc<Daemon>) -> Result<(), ApiError> {
        let vms = Arc::clone(&daemon.vms);
        tokio::task::spawn_blocking(move || vms.remove(&self.name)).await.map_err(ApiError::internal)?
    }
}

fn await_running(incoming: &mut Incoming) -> Result<(), ApiError> {
    // Loading takes as long as memory takes to come: there is no bound but the session's life, which cuts QEMU's
    // stream and so ends the wait.
    while !incoming.await_loaded(RUN_WITHIN)? {}
    match incoming.await_running(RUN_WITHIN)? {
        true => Ok(()),
        false => Err(ApiError::unavailable("the guest was loaded but does not run").then("see `gnomon vm show`")),
    }
}
