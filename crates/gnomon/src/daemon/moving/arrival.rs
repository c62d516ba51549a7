//! A guest that is expected here: its QEMU waits, and what comes over the session is its memory. It comes by QEMU's own
//! migration, or lands by checkpoints ([`super::landing`]); whoever waits for it need not know.

use std::{sync::Arc, time::Duration};

use gnomon_proto::frame::Message;
use gnomon_qemu::{Incoming, IncomingFrom, Qemu, Resolved, RunState, VmSpec};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

use super::{
    hub::Hub,
    landing::{self, Landing},
    relay,
};
use crate::{
    api::ApiError,
    daemon::{Daemon, records::StandingRecord, vms::Vms},
};

/// How long a guest that has been sent may take to be loaded and run.
const RUN_WITHIN: Duration = Duration::from_secs(30);

/// How long a QEMU whose session is over may take to come up, or to begin to, before it is ended.
const STARTS_WITHIN: Duration = Duration::from_millis(100);

/// A guest that is expected.
pub struct Arrival {
    name: String,
    expected: Expected,
    /// One that comes by checkpoints.
    lands: Option<Arc<Landing>>,
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
    let (name, disks) = (spec.name.clone(), disks_of(&spec));
    let vms = Arc::clone(&daemon.vms);
    let (tell, running) = oneshot::channel();
    let launch = move || {
        end_waiting(&vms, &spec.name)?;
        vms.receive(spec, resolved)
    };
    let vm = started(daemon, hub, (&name, &disks), tokio::task::spawn_blocking(launch)).await?;
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
    Ok(Arrival { name, expected: Expected::Waiting(running), lands: None })
}

/// The same by checkpoints.
pub async fn expect_landing(
    daemon: &Arc<Daemon>,
    hub: &Hub,
    expected: landing::Expected,
    ram: mpsc::Receiver<Message>,
) -> Result<Arrival, ApiError> {
    let (name, answers, starter) = (expected.spec.name.clone(), hub.sender(), Arc::clone(daemon));
    let disks = disks_of(&expected.spec);
    let begin = move || landing::begin(&starter, expected, ram, answers);
    let (lands, running) = started(daemon, hub, (&name, &disks), tokio::task::spawn_blocking(begin)).await?;
    Ok(Arrival { name, expected: Expected::Waiting(running), lands: Some(lands) })
}

/// Waits for a QEMU that is being started in this session. It opens its disks for that, which are read at the source: once the
/// session is over it would wait for the next one, and that for the end of this one. So it is ended then.
async fn started<T>(
    daemon: &Arc<Daemon>,
    hub: &Hub,
    (name, disks): (&str, &[String]),
    mut start: JoinHandle<Result<T, ApiError>>,
) -> Result<T, ApiError> {
    tokio::select! {
        done = &mut start => return done.map_err(ApiError::internal)?,
        _ = hub.session().closed() => {}
    }
    loop {
        refuse_probes(daemon, disks);
        let (vms, name) = (Arc::clone(&daemon.vms), name.to_string());
        tokio::task::spawn_blocking(move || vms.end_leftover(&name)).await.map_err(ApiError::internal)??;
        // The process may be about to be started.
        if let Ok(done) = tokio::time::timeout(STARTS_WITHIN, &mut start).await {
            return done.map_err(ApiError::internal)?;
        }
    }
}

/// Refuses what a QEMU that is to be ended waits for from its disks, so that they can be taken from it: those that are spare
/// copies of the volumes of another node.
pub fn refuse_probes(daemon: &Daemon, disks: &[String]) {
    for handle in disks.iter().filter_map(|disk| daemon.keeper.get(disk).ok()) {
        if let (StandingRecord::Shadow(_), Some(shadow)) = (handle.record().standing, handle.volume.shadow()) {
            shadow.refuse_readers();
        }
    }
}

/// The volumes of a guest.
fn disks_of(spec: &VmSpec) -> Vec<String> {
    spec.disks.iter().map(|disk| disk.name.clone()).collect()
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

    /// The guest of this name that is loaded and may have been given to this node: it outlives the session.
    pub fn may_be_ours(&self) -> Option<&str> {
        self.lands.as_ref().filter(|landing| landing.is_loaded()).map(|_| self.name.as_str())
    }

    /// The guest will not come: its QEMU ends.
    pub async fn withdraw(self, daemon: &Arc<Daemon>) -> Result<(), ApiError> {
        let daemon = Arc::clone(daemon);
        let withdraw = move || match self.lands {
            Some(_) => landing::give_up(&daemon, &self.name).map(drop),
            None => daemon.vms.remove(&self.name),
        };
        tokio::task::spawn_blocking(withdraw).await.map_err(ApiError::internal)?
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
