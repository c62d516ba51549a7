//! A guest that is expected here: its QEMU waits, and what comes over the session is its memory.

use std::{sync::Arc, time::Duration};

use gnomon_proto::frame::Message;
use gnomon_qemu::{Incoming, IncomingFrom, Qemu, Resolved, RunState, VmSpec};
use tokio::sync::{mpsc, oneshot};

use super::{hub::Hub, relay};
use crate::{
    api::ApiError,
    daemon::{Daemon, vms::Vms},
};

/// How long a guest that has been sent may take to be loaded and run.
const RUN_WITHIN: Duration = Duration::from_secs(30);

/// A guest that is expected.
pub struct Arrival {
    name: String,
    expected: Expected,
}

/// What is known of its coming.
enum Expected {
    Waiting(oneshot::Receiver<Result<(), ApiError>>),
    Known(Result<(), ApiError>),
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
    let launch = move || {
        end_waiting(&vms, &spec.name)?;
        vms.receive(spec, resolved)
    };
    let vm = tokio::task::spawn_blocking(launch).await.map_err(ApiError::internal)??;
    let qemu = vm.qemu().ok_or_else(|| ApiError::unavailable("QEMU has ended at once"))?;
    let end = relay::incoming(ram, hub.sender())?;
    let mut incoming = Incoming::start(qemu.qmp(), IncomingFrom::Stream(end), false)?;
    let vms = Arc::clone(&daemon.vms);
    std::thread::spawn(move || {
        let outcome = await_running(&mut incoming);
        if outcome.is_ok() {
            vms.plug_in(&vm);
        }
        // Whoever expected it may have given up.
        let _ = tell.send(outcome);
    });
    Ok(Arrival { name, expected: Expected::Waiting(running) })
}

/// Ends a QEMU that waits for this guest since a session that is over: when the daemon died in it, nobody else did, and
/// nothing will ever come. For a caller in whose session no guest was announced. Blocks.
pub fn end_waiting(vms: &Vms, name: &str) -> Result<(), ApiError> {
    let qemu = vms.get(name).ok().and_then(|vm| vm.qemu());
    let waits = |qemu: Arc<Qemu>| qemu.qmp().query_status().is_ok_and(|status| status.state == RunState::Inmigrate);
    if qemu.is_some_and(waits) {
        tracing::info!(vm = name, "a QEMU that waits for a guest since an earlier session is ended");
        vms.remove(name)?;
    }
    vms.end_leftover(name)
}

impl Arrival {
    /// Waits until the guest runs here.
    pub async fn running(&mut self) -> Result<(), ApiError> {
        self.settle().await
    }

    /// Waits until it is known that the guest cannot come, and tells why: its QEMU has ended, or does not take it. Waits
    /// for ever when the guest runs. May be dropped and called again.
    pub async fn failed(&mut self) -> ApiError {
        match self.settle().await {
            Err(error) => error,
            Ok(()) => std::future::pending().await,
        }
    }

    /// Whether the guest does not run here yet.
    pub fn is_pending(&mut self) -> bool {
        if let Expected::Waiting(running) = &mut self.expected
            && let Ok(outcome) = running.try_recv()
        {
            self.expected = Expected::Known(outcome);
        }
        !matches!(self.expected, Expected::Known(Ok(())))
    }

    async fn settle(&mut self) -> Result<(), ApiError> {
        let outcome = match &mut self.expected {
            Expected::Known(outcome) => return outcome.clone(),
            Expected::Waiting(running) => running.await,
        };
        let ended = |_| ApiError::unavailable("QEMU has ended while the guest was loaded");
        let outcome = outcome.map_err(ended).flatten();
        self.expected = Expected::Known(outcome.clone());
        outcome
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
