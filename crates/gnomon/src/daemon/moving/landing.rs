//! A guest that lands here by checkpoints: a second memory that is filled while the guest runs at its source, and the QEMU
//! that waits on it.
//!
//! ```text
//!             Receive           Seal, Load            all its volumes are this node's
//!   (nothing) ──────► filling ────────────► loaded ─────────────────────────────────► a VM of this node
//!       ▲                │                     │
//!       │                │ the session ends    │ the source says that it was not given, or knows nothing of it
//!       └────────────────┴─────────────────────┘
//! ```
//! The source has the devices loaded here *before* it decides to give the volumes away. So from the decision on nothing of
//! the guest is needed from there: as soon as the last of its volumes is taken, on record, it runs, whoever has died
//! meanwhile. A loaded guest outlives its session and this daemon, because it may have been given; it does not run before
//! that is known. Until it runs it is no VM of this node, and nothing can be asked of it.
//!
//! *Taken* is the volumes' record, and the only permission to run: the source gave them on record before, and does not run
//! the guest again from then on.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use gnomon_link::SessionSender;
use gnomon_machine::{
    shadow::{Limits, Shadow},
    wire::{Wire, WireClosed},
};
use gnomon_proto::frame::{Message, Stream};
use gnomon_qemu::{GuestMemory, Qemu, RamWriter, Resolved, RunState, Standby, VmSpec};
use gnomon_terms::Epoch;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use super::{arrival, confirm, doubt, rpc::Fate};
use crate::{
    api::{ApiError, types::VmView},
    daemon::{
        Daemon,
        records::{LandingRecord, StandingRecord, VmRecord},
    },
};

/// The guest's number in its session; its volumes are counted from zero.
pub const STREAM: Stream = Stream(u32::MAX);
/// The epoch of its checkpoints: they are of one session, and not compared with any other.
pub const EPOCH: Epoch = Epoch(1);
/// How long a QEMU may take to load a guest, and to run it: some milliseconds is what it takes.
const STEP: Duration = Duration::from_secs(10);
/// How often it is looked at whether anybody still waits for a QEMU that has not ended.
const WATCH: Duration = Duration::from_secs(1);
/// How long to wait before the source is asked what became of a guest that is loaded: it begins a session by itself
/// within half a second.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// A guest that is landing.
pub struct Landing {
    record: LandingRecord,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// While it is filled.
    shadow: Option<Shadow<Standby>>,
    /// Not known after a restart of the daemon.
    qemu: Option<Arc<Qemu>>,
    is_loaded: bool,
    /// Its QEMU did not take it.
    is_refused: bool,
    /// It has landed, or was given up.
    is_over: bool,
    /// Who waits for it to run.
    tell: Option<oneshot::Sender<Result<(), ApiError>>>,
}

/// What the source says of its guest.
pub struct Expected {
    /// The move.
    pub move_id: String,
    /// The source.
    pub from: String,
    /// The guest.
    pub spec: VmSpec,
    /// Settled on the source's host.
    pub resolved: Resolved,
}

/// Told when the guest runs here, or cannot come.
pub type Outcome = oneshot::Receiver<Result<(), ApiError>>;

// ---- filling ---------------------------------------------------------------------------------------------------------

/// Makes memory for a guest and starts a QEMU that waits on it; what was left of an earlier session goes first.
/// Checkpoints come from `frames`. Blocks for some 60 ms.
pub fn begin(
    daemon: &Arc<Daemon>,
    expected: Expected,
    frames: mpsc::Receiver<Message>,
    answers: SessionSender,
) -> Result<(Arc<Landing>, Outcome), ApiError> {
    let Expected { move_id, from, spec, resolved } = expected;
    give_up(daemon, &spec.name)?;
    arrival::end_waiting(&daemon.vms, &spec.name)?;
    refuse_unless_free(daemon, &spec.name)?;
    daemon.vms.refuse_unless_it_fits(&resolved)?;
    let record = LandingRecord {
        vm: spec.name.clone(),
        move_id,
        from,
        token: daemon.records.next_token()?,
        volumes: spec.disks.iter().map(|disk| disk.name.clone()).collect(),
    };
    daemon.records.put_landing(&record)?;
    let landing = add(daemon, record);
    match landing.start(daemon, spec, resolved) {
        Ok(outcome) => {
            let filled = Arc::clone(&landing);
            thread::spawn(move || filled.fill(frames, &answers));
            Ok((landing, outcome))
        }
        Err(error) => {
            landing.discard(daemon)?;
            Err(error)
        }
    }
}

fn refuse_unless_free(daemon: &Daemon, name: &str) -> Result<(), ApiError> {
    match daemon.vms.get(name) {
        Ok(vm) if vm.qemu().is_some() || vm.is_unreachable() => {
            let node = &daemon.config.node;
            Err(ApiError::refused(format!("VM '{name}' runs already at node {node}"))
                .then("stop it, or rename one of the two"))
        }
        // One of a shadow is refused; one that has ended is forgotten when the guest lands.
        Err(error) if error.kind == crate::api::Kind::Refused => Err(error),
        _ => Ok(()),
    }
}

fn add(daemon: &Daemon, record: LandingRecord) -> Arc<Landing> {
    daemon.vms.reserve_landing(&record.vm, &record.from);
    let name = record.vm.clone();
    let landing = Arc::new(Landing { record, inner: Mutex::default() });
    daemon.moves.landings.lock().insert(name, Arc::clone(&landing));
    landing
}

impl Landing {
    fn start(self: &Arc<Landing>, daemon: &Daemon, spec: VmSpec, resolved: Resolved) -> Result<Outcome, ApiError> {
        resolved.check(&spec)?;
        let memory = GuestMemory::create(&self.record.vm, &resolved)?;
        let qemu = Arc::new(daemon.vms.launch_waiting(spec, resolved, self.record.token, memory.shared())?);
        let writer: Arc<RamWriter> = Arc::new(memory.map_writable()?);
        let mut shadow = Shadow::new(STREAM, writer, Limits::default(), Some(Standby::new(&qemu)?));
        shadow.begin(EPOCH)?;
        let (tell, outcome) = oneshot::channel();
        self.watch(&qemu);
        *self.inner.lock() = Inner { shadow: Some(shadow), qemu: Some(qemu), tell: Some(tell), ..Inner::default() };
        Ok(outcome)
    }

    /// Whoever waits for the guest is told when its QEMU ends before it runs.
    fn watch(self: &Arc<Landing>, qemu: &Arc<Qemu>) {
        let (watch, qemu, landing) = (qemu.exit_watch(), Arc::downgrade(qemu), Arc::downgrade(self));
        thread::spawn(move || {
            let exited = loop {
                match watch.wait(WATCH) {
                    Some(exited) => break exited,
                    None if landing.upgrade().is_none_or(|landing| landing.inner.lock().is_over) => return,
                    None => {}
                }
            };
            let said = qemu.upgrade().map(|qemu| qemu.last_words()).unwrap_or_default();
            if let Some(landing) = landing.upgrade().filter(|landing| !landing.inner.lock().is_refused) {
                landing.tell(Err(ApiError::unavailable(format!("the QEMU that waited for it {exited} {said}"))));
            }
        });
    }

    /// Takes frames in until the session is over, on a thread of its own. After one that cannot be taken the source has
    /// been told, and gives the session up.
    fn fill(&self, mut frames: mpsc::Receiver<Message>, answers: &SessionSender) {
        let wire = LinkWire(answers);
        let mut taken = 0;
        while let Some(message) = frames.blocking_recv() {
            let length = length(&message);
            let filled = match self.inner.lock().shadow.as_mut() {
                Some(shadow) => shadow.take(message, &wire),
                None => return,
            };
            if let Err(error) = filled {
                tracing::warn!(vm = self.record.vm, %error, "a part of a guest's memory was not taken");
                return self.tell(Err(error.into()));
            }
            if length > 0 {
                taken += length as u64;
                // A session that is over takes no more memory either.
                let _ = wire.send(Message::RamAck { stream: STREAM, taken });
            }
        }
    }

    /// Loads the devices of the last checkpoint, which is to be this one. The guest does not run.
    pub fn load(&self, checkpoint: u64) -> Result<(), ApiError> {
        let mut inner = self.inner.lock();
        let shadow = inner.shadow.as_mut().ok_or_else(|| self.not_filled())?;
        let loaded = match shadow.has() {
            Some((_, has)) if has == checkpoint => shadow.load(STEP).map_err(ApiError::from),
            _ => Err(self.not_filled()),
        };
        inner.is_loaded = loaded.is_ok();
        // A QEMU that does not take a guest ends. The source hears of it by this answer, which says why.
        inner.is_refused = loaded.is_err();
        loaded
    }

    fn not_filled(&self) -> ApiError {
        ApiError::refused(format!("the memory of VM '{}' has not arrived", self.record.vm))
    }

    /// Whether the guest is loaded and does not run: it may have been given to this node.
    pub fn is_loaded(&self) -> bool {
        let inner = self.inner.lock();
        inner.is_loaded && !inner.is_over
    }

    fn tell(&self, outcome: Result<(), ApiError>) {
        if let Some(tell) = self.inner.lock().tell.take() {
            // Whoever expected it may have given up.
            let _ = tell.send(outcome);
        }
    }
}

/// What counts of a frame for the window of what is on its way.
pub fn length(message: &Message) -> usize {
    match message {
        Message::Pages { body, .. } => body.len(),
        Message::Device { bytes, .. } => bytes.len(),
        _ => 0,
    }
}

/// What the engine answers.
struct LinkWire<'a>(&'a SessionSender);

impl Wire for LinkWire<'_> {
    fn send(&self, message: Message) -> Result<(), WireClosed> {
        self.0.blocking_send(message).map_err(|_| WireClosed)
    }
}

// ---- landing ---------------------------------------------------------------------------------------------------------

/// Lets a guest run that has landed: its devices are loaded, and all of its volumes are this node's. Does nothing for any
/// other. Called in a session with its source, whenever that may have become so. Blocks for some milliseconds.
pub fn run_if_taken(daemon: &Arc<Daemon>, vm: &str) -> Result<(), ApiError> {
    let Some(landing) = daemon.moves.landing(vm) else { return Ok(()) };
    if !landing.is_taken(daemon) {
        return Ok(());
    }
    let ran = landing.run(daemon);
    if let Err(error) = &ran {
        tracing::error!(vm, %error, "a guest that was given to this node does not run: it starts from its disks");
        landing.tell(ran.clone());
        landing.discard(daemon)?;
    }
    ran
}

/// The guest that lands with this volume.
pub fn with_volume(daemon: &Daemon, volume: &str) -> Option<String> {
    let landings = daemon.moves.landings.lock();
    let landing = landings.values().find(|landing| landing.record.volumes.iter().any(|name| name == volume));
    landing.map(|landing| landing.record.vm.clone())
}

impl Landing {
    /// Whether all of its volumes were given to this node, on record.
    fn is_taken(&self, daemon: &Daemon) -> bool {
        let is_taken = |name: &String| {
            let Ok(handle) = daemon.keeper.get(name) else { return false };
            let record = handle.record();
            let is_ours = record.move_id.as_deref() == Some(&self.record.move_id);
            let is_drained =
                || confirm::confirmed_at(daemon, &self.record.move_id, name).is_ok_and(|at| at.is_some());
            matches!(record.standing, StandingRecord::Draining(_)) && is_ours || is_drained()
        };
        !self.record.volumes.is_empty() && self.record.volumes.iter().all(is_taken)
    }

    /// On record as landing until it is on record as a VM: whatever dies in between, it is known that it may run.
    fn run(&self, daemon: &Arc<Daemon>) -> Result<(), ApiError> {
        let mut inner = self.inner.lock();
        if inner.is_over {
            return Ok(());
        }
        let begun = Instant::now();
        let qemu = match inner.qemu.clone() {
            Some(qemu) if inner.is_loaded => qemu,
            Some(_) => return Err(self.not_filled()),
            // Of a daemon before this one, to which it did not answer yet.
            None => match daemon.vms.find_waiting(&self.record.vm)? {
                Some((qemu, state)) if state != RunState::Inmigrate => Arc::new(qemu),
                _ => return Err(self.not_filled()),
            },
        };
        qemu.qmp().cont_after_migration(STEP)?;
        tracing::info!(vm = self.record.vm, took = ?begun.elapsed(), "the guest that landed runs");
        inner.is_over = true;
        // Held until it is a VM of this node: who finds a landing that is over, and no VM, ends the QEMU as nobody's.
        daemon.vms.take_in(self.as_vm(&qemu), qemu)?;
        self.leave(daemon);
        // Unmapping takes longer the more there is.
        let shadow = inner.shadow.take();
        drop(inner);
        self.tell(Ok(()));
        drop(shadow);
        daemon.records.remove_landing(&self.record.vm)
    }

    fn as_vm(&self, qemu: &Qemu) -> VmRecord {
        let (volumes, token) = (self.record.volumes.clone(), self.record.token);
        VmRecord { qemu: Some(qemu.record().clone()), ..VmRecord::new(&self.record.vm, volumes, token) }
    }

    /// The name is a VM's of this node, or nobody's.
    fn leave(&self, daemon: &Daemon) {
        daemon.moves.landings.lock().remove(&self.record.vm);
        daemon.vms.unreserve(&self.record.vm);
    }

    /// The guest was not given, and does not come this way: nothing of it stays. Does nothing to one that has landed.
    fn discard(&self, daemon: &Daemon) -> Result<(), ApiError> {
        let mut inner = self.inner.lock();
        if std::mem::replace(&mut inner.is_over, true) {
            return Ok(());
        }
        let (shadow, qemu) = (inner.shadow.take(), inner.qemu.take());
        drop(inner);
        if let Some(qemu) = qemu {
            qemu.kill()?;
        }
        daemon.vms.end_leftover(&self.record.vm)?;
        arrival::refuse_probes(daemon, &self.record.volumes);
        daemon.vms.forget_waiting(&self.record.vm, &self.record.volumes, self.record.token);
        drop(shadow);
        self.leave(daemon);
        self.tell(Err(ApiError::refused("the guest was withdrawn")));
        daemon.records.remove_landing(&self.record.vm)
    }

    /// As a VM of this node that does not run.
    pub fn view(&self, daemon: &Daemon) -> VmView {
        let waiting = self.inner.try_lock().and_then(|inner| Some(inner.qemu.as_ref()?.record().clone()));
        let view = daemon.vms.waiting_view(&self.record.vm, &self.record.volumes, waiting);
        VmView { status: "landing".to_string(), ..view }
    }
}

// ---- not landing -----------------------------------------------------------------------------------------------------

/// The source says, or has shown, that a guest was not given: what is here of it goes. True when there was something.
/// One that was given is let be.
pub fn give_up(daemon: &Arc<Daemon>, vm: &str) -> Result<bool, ApiError> {
    match daemon.moves.landing(vm) {
        Some(landing) if landing.is_taken(daemon) => Err(ApiError::refused(format!(
            "VM '{vm}' was given to node {}: it is not ended here",
            daemon.config.node
        ))),
        Some(landing) => landing.discard(daemon).map(|()| true),
        None => Ok(false),
    }
}

/// Ends what waits for a guest whose source is gone for good, whether or not it was given; `None` when nothing does.
pub fn stop(daemon: &Arc<Daemon>, vm: &str, force: bool) -> Option<Result<VmView, ApiError>> {
    let landing = daemon.moves.landing(vm)?;
    let from = &landing.record.from;
    Some(match force {
        true => {
            let view = landing.view(daemon);
            landing.discard(daemon).map(|()| view)
        }
        false => Err(ApiError::refused(format!("VM '{vm}' is on its way here from node {from}")).then(format!(
            "cancel its move at node {from}; when that is gone for good, end what waits here with --force"
        ))),
    })
}

/// Asks what became of a guest that is loaded, until a session of its move has begun or its source knows of none.
pub fn ask_when_alone(daemon: &Arc<Daemon>, vm: &str) {
    let Some(landing) = daemon.moves.landing(vm) else { return };
    let daemon = Arc::clone(daemon);
    tokio::spawn(async move {
        let (node, move_id) = (&landing.record.from, &landing.record.move_id);
        loop {
            tokio::time::sleep(ASK_AGAIN).await;
            if landing.inner.lock().is_over || daemon.moves.is_served(move_id) {
                return;
            }
            let asked = doubt::ask(&daemon, node, move_id).await;
            let Ok(Fate::Undone | Fate::Unknown) = asked else { continue };
            let Some(_turn) = daemon.moves.try_enter(move_id) else { continue };
            let (ender, ended) = (Arc::clone(&daemon), Arc::clone(&landing));
            let end = move || give_up(&ender, &ended.record.vm);
            match tokio::task::spawn_blocking(end).await {
                Ok(Ok(_)) => return,
                Ok(Err(error)) => tracing::error!(vm = landing.record.vm, %error, "a guest that does not land"),
                Err(error) => tracing::error!(vm = landing.record.vm, %error, "a guest that does not land"),
            }
        }
    });
}

/// What is on record as landing: the names are nobody else's, and the disks are offered, so that each QEMU can answer. Called
/// before any is asked, or ended as one that nobody knows.
pub fn offer_again(daemon: &Arc<Daemon>) -> Result<(), ApiError> {
    let vms = daemon.records.vms()?;
    for record in daemon.records.landings()? {
        if vms.iter().any(|vm| vm.name == record.vm && vm.token == record.token) {
            // It has landed, and the daemon died before it had forgotten.
            daemon.records.remove_landing(&record.vm)?;
            continue;
        }
        for volume in &record.volumes {
            if let Err(error) = daemon.keeper.lend(volume, record.token, &record.vm) {
                tracing::error!(vm = record.vm, volume, %error, "its disk cannot be served");
            }
        }
        add(daemon, record);
    }
    Ok(())
}

/// Goes on with what was landing when the daemon ended: a guest that was not loaded never will be; one that runs is a VM;
/// any other waits for its source. One whose QEMU does not answer is let be.
pub fn resume(daemon: &Arc<Daemon>) -> Result<(), ApiError> {
    let landings: Vec<Arc<Landing>> = daemon.moves.landings.lock().values().cloned().collect();
    for landing in landings {
        let vm = &landing.record.vm;
        match daemon.vms.find_waiting(vm) {
            Ok(None) => landing.discard(daemon)?,
            Ok(Some((_, RunState::Inmigrate))) => landing.discard(daemon)?,
            Ok(Some((qemu, state))) => {
                *landing.inner.lock() = Inner { qemu: Some(Arc::new(qemu)), is_loaded: true, ..Inner::default() };
                match state {
                    RunState::Paused => ask_when_alone(daemon, vm),
                    _ => landing.run(daemon)?,
                }
            }
            Err(error) => tracing::error!(vm, %error, "the QEMU in which it lands does not answer"),
        }
    }
    Ok(())
}
