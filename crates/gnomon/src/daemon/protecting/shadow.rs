//! The shadow's side: a second memory of a guest of another node, and the QEMU that waits on it.
//!
//! ```text
//!   (nothing) ──Keep──► kept, empty ──frames, Seal──► kept, has n ──Ready──► loaded ──TakeOver──► a VM of this node
//!       ▲                   ▲                             │                    │
//!       └──Forget───────────┴──── daemon restarted ───────┴─────── Keep ───────┘
//! ```
//! A checkpoint is in memory only: after a restart of the daemon there is a record, and nothing to go on from, until the
//! primary has sent everything anew. The QEMU that waits is ended then; it runs nothing.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use gnomon_machine::shadow::{Limits, Shadow};
use gnomon_proto::frame::Message;
use gnomon_qemu::{GuestMemory, Qemu, Resolved, Standby, VmSpec};
use gnomon_terms::Epoch;
use parking_lot::Mutex;

use super::{
    STREAM,
    copies::Copies,
    guarding::HeirGuard,
    pulse::millis,
    rpc::{Ceded, Disk, Kept},
};
use crate::{
    api::{
        ApiError,
        types::{ShadowView, VmView},
    },
    daemon::{Daemon, records::ShadowRecord},
};

/// How long a QEMU may take to load a guest, and to run it: some milliseconds is what it takes.
pub(super) const STEP: Duration = Duration::from_secs(10);

/// The shadows that this node keeps, by VM.
#[derive(Default)]
pub struct Shadows {
    all: Mutex<BTreeMap<String, Arc<Keeping>>>,
}

/// A shadow that this node keeps.
pub struct Keeping {
    record: ShadowRecord,
    /// The newest one that a primary has said.
    epoch: AtomicU64,
    /// The nodes of the guest's other shadows, as is on record.
    siblings: Mutex<Vec<String>>,
    /// Whether a takeover by hand is under way: then this node leaves the guest to no other.
    busy: AtomicBool,
    /// The guest's disks, once they have been opened.
    copies: Mutex<Option<Arc<Copies>>>,
    engine: Mutex<Option<Engine>>,
    /// Its guard, if it has one; taken when it is over.
    guard: Mutex<Option<Arc<HeirGuard>>>,
    /// For whoever looks: the engine is busy while a checkpoint is applied.
    seen: Mutex<Seen>,
}

/// What there is between the first `Keep` and the end of the daemon.
pub(super) struct Engine {
    pub(super) shadow: Shadow<Standby>,
    pub(super) qemu: Arc<Qemu>,
    memory: GuestMemory,
    spec: VmSpec,
    resolved: Resolved,
}

#[derive(Clone, Copy, Default)]
struct Seen {
    /// Counts sessions; what comes of an old one is not heard.
    session: u64,
    connected: bool,
    /// Of the checkpoints' numbers, in the session.
    generation: u64,
    committed: Option<(Epoch, u64, Instant)>,
    /// Of that of the committed one.
    committed_in: u64,
    loaded: bool,
}

/// What a primary says of its guest.
pub struct Wanted {
    /// Names the protection.
    pub id: String,
    /// The node that asks.
    pub from: String,
    /// The epoch in which the guest runs there.
    pub epoch: Epoch,
    /// The guest.
    pub spec: VmSpec,
    /// Settled on the primary's host.
    pub resolved: Resolved,
    /// Its disks.
    pub disks: Vec<Disk>,
    /// As on record at the primary.
    pub strict: bool,
    /// As on record at the primary.
    pub lease_s: Option<u64>,
    /// The nodes of its other shadows.
    pub siblings: Vec<String>,
    /// How often a daemon has begun to checkpoint it.
    pub generation: u64,
    /// The session, for the disks' answers.
    pub wire: Arc<dyn gnomon_volume::wire::Wire>,
}

impl Shadows {
    /// Shadows on record: empty. QEMUs that waited for them are ended.
    pub fn open(daemon: &Arc<Daemon>) -> Result<(), ApiError> {
        for record in daemon.records.shadows()? {
            if daemon.records.promoted(&record.id)?.is_some() {
                super::takeover::finish_promotion(daemon, &record)?;
                continue;
            }
            daemon.vms.end_leftover(&record.vm)?;
            let keeping = daemon.shadows.put(daemon, record);
            if let Err(error) = keeping.watch(daemon) {
                tracing::error!(vm = keeping.record.vm, %error, "its guard cannot be brought back");
            }
        }
        Ok(())
    }

    fn put(&self, daemon: &Arc<Daemon>, record: ShadowRecord) -> Arc<Keeping> {
        daemon.vms.reserve(&record.vm, &record.from);
        let keeping = Arc::new(Keeping {
            epoch: AtomicU64::new(record.epoch),
            siblings: Mutex::new(record.siblings.clone()),
            busy: AtomicBool::new(false),
            record,
            copies: Mutex::default(),
            engine: Mutex::default(),
            guard: Mutex::default(),
            seen: Mutex::default(),
        });
        self.all.lock().insert(keeping.record.vm.clone(), Arc::clone(&keeping));
        keeping
    }

    /// The shadow of this VM.
    pub fn get(&self, vm: &str) -> Option<Arc<Keeping>> {
        self.all.lock().get(vm).cloned()
    }

    /// The shadow of this protection.
    pub fn by_id(&self, id: &str) -> Option<Arc<Keeping>> {
        self.all.lock().values().find(|keeping| keeping.record.id == id).cloned()
    }

    /// All of them, by VM.
    pub fn list(&self) -> Vec<Arc<Keeping>> {
        self.all.lock().values().cloned().collect()
    }

    /// Keeps the shadow of a guest, or finds the one that is kept: its QEMU waits when this returns. Blocks for some
    /// 60 ms.
    pub fn keep(&self, daemon: &Arc<Daemon>, wanted: Wanted) -> Result<(Arc<Keeping>, Kept), ApiError> {
        let known = self.get(&wanted.spec.name);
        if let Some(keeping) = known.as_ref().filter(|keeping| keeping.record.id == wanted.id) {
            return Ok((Arc::clone(keeping), keeping.begin(daemon, &wanted)?));
        }
        match known {
            Some(other) if other.record.from != wanted.from => return Err(taken(&other.record)),
            // The same node has begun anew, and this one was never told.
            Some(other) => self.forget(daemon, &other)?,
            None => {}
        }
        let keeping = self.make(daemon, &wanted)?;
        match keeping.watch(daemon).and_then(|()| keeping.begin(daemon, &wanted)) {
            Ok(kept) => Ok((keeping, kept)),
            Err(error) => {
                self.forget(daemon, &keeping)?;
                Err(error)
            }
        }
    }

    fn make(&self, daemon: &Arc<Daemon>, wanted: &Wanted) -> Result<Arc<Keeping>, ApiError> {
        let name = &wanted.spec.name;
        if let Ok(vm) = daemon.vms.get(name) {
            let node = &daemon.config.node;
            let refused = ApiError::refused(format!("node {node} has a VM '{name}' of its own"));
            return Err(match vm.qemu() {
                Some(_) => refused.then("rename or stop one of them"),
                None => refused.then(format!("it has ended: `gnomon vm stop {name}` on node {node} forgets it")),
            });
        }
        daemon.vms.refuse_unless_it_fits(&wanted.resolved)?;
        let record = ShadowRecord {
            id: wanted.id.clone(),
            vm: name.clone(),
            from: wanted.from.clone(),
            epoch: wanted.epoch.0,
            token: daemon.records.next_token()?,
            volumes: wanted.spec.disks.iter().map(|disk| disk.name.clone()).collect(),
            strict: wanted.strict,
            lease_s: wanted.lease_s,
            siblings: wanted.siblings.clone(),
        };
        daemon.records.put_shadow(&record)?;
        Ok(self.put(daemon, record))
    }

    /// The shadow is not wanted any more: nothing of it stays.
    pub fn forget(&self, daemon: &Arc<Daemon>, keeping: &Arc<Keeping>) -> Result<(), ApiError> {
        if let Some(engine) = keeping.engine.lock().take() {
            engine.qemu.kill()?;
        }
        daemon.vms.forget_waiting(&keeping.record.vm, &keeping.record.volumes, keeping.record.token);
        keeping.discard_copies(daemon)?;
        self.remove(daemon, &keeping.record)?;
        tracing::info!(vm = keeping.record.vm, "the shadow of the VM at node {} is gone", keeping.record.from);
        Ok(())
    }

    /// Takes a shadow off the records: it is a VM of this node now, or nothing.
    pub(super) fn remove(&self, daemon: &Arc<Daemon>, record: &ShadowRecord) -> Result<(), ApiError> {
        daemon.records.remove_shadow(&record.vm)?;
        if let Some(keeping) = self.all.lock().remove(&record.vm) {
            drop(keeping.guard.lock().take());
        }
        daemon.vms.unreserve(&record.vm);
        Ok(())
    }
}

impl Engine {
    /// Loads the devices of the checkpoint it has. A QEMU that did not take them is of no use, and is ended: another one
    /// waits on the same memory when somebody needs it.
    pub(super) fn load(&mut self) -> Result<(), ApiError> {
        let loaded = self.shadow.load(STEP);
        if loaded.is_err() {
            self.qemu.kill()?;
        }
        Ok(loaded?)
    }
}

impl Keeping {
    /// As it is on record.
    pub fn record(&self) -> &ShadowRecord {
        &self.record
    }

    /// The epoch in which its guest runs at the primary.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Relaxed)
    }

    /// Whether a primary's guest was loaded here and waits to run.
    pub fn is_loaded(&self) -> bool {
        self.seen.lock().loaded
    }

    /// Whether there is a session with the primary.
    pub fn is_connected(&self) -> bool {
        self.seen.lock().connected
    }

    /// The nodes of the guest's other shadows.
    pub(super) fn siblings(&self) -> Vec<String> {
        self.siblings.lock().clone()
    }

    /// The guest's other shadows are at these nodes: durable when this returns.
    pub(super) fn know_siblings(&self, daemon: &Daemon, nodes: Vec<String>) -> Result<(), ApiError> {
        let mut siblings = self.siblings.lock();
        let record = ShadowRecord { epoch: self.epoch(), siblings: nodes.clone(), ..self.record.clone() };
        daemon.records.put_shadow(&record)?;
        *siblings = nodes;
        Ok(())
    }

    /// The checkpoint from which the guest would go on here: its epoch, its generation and its number.
    pub(super) fn has(&self) -> Option<(u64, u64, u64)> {
        let seen = *self.seen.lock();
        seen.committed.map(|(epoch, checkpoint, _)| (epoch.0, seen.committed_in, checkpoint))
    }

    /// A takeover by hand begins here: false if one is under way. Until it has [ended](Keeping::is_not_busy) the guest is
    /// left to no other shadow.
    pub(super) fn is_busy_from_now(&self) -> bool {
        !self.busy.swap(true, Ordering::SeqCst)
    }

    /// A takeover by hand came to nothing.
    pub(super) fn is_not_busy(&self) {
        self.busy.store(false, Ordering::SeqCst);
    }

    /// Another shadow is to take over: what there is here, unless it runs here or is about to. A guest that was loaded here
    /// for a switchover is let go of, so that nobody makes it run any more.
    pub(super) fn cede(&self, daemon: &Daemon) -> Result<Ceded, ApiError> {
        let mut slot = self.engine.lock();
        if let Some(epoch) = daemon.records.promoted(&self.record.id)? {
            return Ok(Ceded::Promoted { epoch });
        }
        if self.busy.load(Ordering::SeqCst) {
            return Ok(Ceded::Busy);
        }
        if self.is_loaded() {
            self.let_loaded_go(&mut slot)?;
        }
        Ok(Ceded::Free { has: self.has() })
    }

    /// What was loaded, and not made to run, cannot be taken back.
    fn let_loaded_go(&self, slot: &mut Option<Engine>) -> Result<(), ApiError> {
        if let Some(engine) = slot.take() {
            engine.qemu.kill()?;
        }
        let mut seen = self.seen.lock();
        let session = seen.session;
        *seen = Seen { session, ..Seen::default() };
        drop(seen);
        self.weigh();
        Ok(())
    }

    /// Its guard.
    pub(super) fn guard(&self) -> Option<Arc<HeirGuard>> {
        self.guard.lock().clone()
    }

    /// Begins to watch its term, if it has one.
    fn watch(self: &Arc<Keeping>, daemon: &Arc<Daemon>) -> Result<(), ApiError> {
        let here = |error: ApiError| {
            let message = format!("at node {}: {}", daemon.config.node, error.message);
            ApiError { message, ..error }
        };
        *self.guard.lock() = HeirGuard::begin(daemon, self).map_err(here)?;
        Ok(())
    }

    /// What there is to go on from has changed, perhaps.
    fn weigh(&self) {
        if let Some(guard) = self.guard() {
            guard.inherits(self.has_memory());
        }
    }

    /// How long ago it was known to have a checkpoint.
    pub(super) fn silence(&self) -> Duration {
        self.seen.lock().committed.map_or(Duration::ZERO, |(.., at)| at.elapsed())
    }

    /// A primary begins a session.
    fn begin(&self, daemon: &Arc<Daemon>, wanted: &Wanted) -> Result<Kept, ApiError> {
        let mut slot = self.engine.lock();
        if self.is_loaded() {
            // It was to be taken over, and was not.
            self.let_loaded_go(&mut slot)?;
        }
        if self.epoch.swap(wanted.epoch.0, Ordering::Relaxed) != wanted.epoch.0
            || *self.siblings.lock() != wanted.siblings
        {
            self.know_siblings(daemon, wanted.siblings.clone())?;
        }
        let copies = self.open_copies(daemon, wanted)?;
        let disks = copies.begin(&wanted.id, &wanted.disks, &wanted.wire)?;
        let mut engine = match slot.take() {
            Some(engine) if engine.resolved.dimms == wanted.resolved.dimms => engine,
            other => {
                // The guest has given memory back since: its next devices could not be loaded on what is here.
                other.map_or(Ok(()), |other| other.qemu.kill().map(drop))?;
                self.start(daemon, wanted)?
            }
        };
        if disks.iter().any(|has| has.sealed.is_none()) {
            // Memory of a moment that its disks do not have is of no use.
            engine.shadow.start_over();
        }
        let begun = self.awaken(daemon, &mut engine).and_then(|()| Ok(engine.shadow.begin(wanted.epoch)?));
        let has = engine.shadow.has().map(|(epoch, checkpoint)| (epoch.0, checkpoint));
        *slot = Some(engine);
        begun?;
        let mut seen = self.seen.lock();
        (seen.session, seen.connected, seen.generation) = (seen.session + 1, true, wanted.generation);
        if has.is_none() {
            seen.committed = None;
        }
        drop(seen);
        self.weigh();
        Ok(Kept { has, stage: limits().stage.0, disks })
    }

    fn open_copies(&self, daemon: &Arc<Daemon>, wanted: &Wanted) -> Result<Arc<Copies>, ApiError> {
        let mut copies = self.copies.lock();
        match &*copies {
            Some(copies) => Ok(Arc::clone(copies)),
            None => Ok(Arc::clone(copies.insert(Arc::new(Copies::open(daemon, &self.record, &wanted.disks)?)))),
        }
    }

    /// The guest's disks; an error until a primary has said what they are.
    pub(super) fn copies(&self) -> Result<Arc<Copies>, ApiError> {
        self.copies.lock().clone().ok_or_else(nothing)
    }

    /// The guest's disks, also when no primary has begun a session since the daemon started.
    pub(super) fn found_copies(&self, daemon: &Arc<Daemon>) -> Result<Arc<Copies>, ApiError> {
        let mut copies = self.copies.lock();
        match &*copies {
            Some(copies) => Ok(Arc::clone(copies)),
            None => Ok(Arc::clone(copies.insert(Arc::new(Copies::of_record(daemon, &self.record)?)))),
        }
    }

    /// Whether there is a checkpoint of the guest's memory to go on from.
    pub fn has_memory(&self) -> bool {
        self.seen.lock().committed.is_some()
    }

    /// Removes the volumes of a shadow that is not wanted any more, also of one that was found on record only.
    fn discard_copies(&self, daemon: &Arc<Daemon>) -> Result<(), ApiError> {
        if let Some(copies) = self.copies.lock().take() {
            return copies.discard(daemon);
        }
        let of_ours = |name: &String| daemon.keeper.get(name).ok();
        let ours = self.record.volumes.iter().filter_map(of_ours);
        let ours = ours.filter(|handle| handle.record().move_id.as_deref() == Some(&self.record.id));
        ours.into_iter().try_for_each(|handle| daemon.keeper.discard(&handle))
    }

    /// Makes memory, and a QEMU that waits on it.
    fn start(&self, daemon: &Arc<Daemon>, wanted: &Wanted) -> Result<Engine, ApiError> {
        wanted.resolved.check(&wanted.spec)?;
        let memory = GuestMemory::create(&self.record.vm, &wanted.resolved)?;
        let (spec, resolved) = (wanted.spec.clone(), wanted.resolved.clone());
        let qemu = daemon.vms.launch_waiting(spec.clone(), resolved.clone(), self.record.token, memory.shared())?;
        let standby = Standby::new(&qemu)?;
        let writer = Arc::new(memory.map_writable()?);
        let shadow = Shadow::new(STREAM, writer, limits(), Some(standby));
        Ok(Engine { shadow, qemu: Arc::new(qemu), memory, spec, resolved })
    }

    /// Starts another QEMU on the same memory if the one that waited has ended.
    pub(super) fn awaken(&self, daemon: &Arc<Daemon>, engine: &mut Engine) -> Result<(), ApiError> {
        if engine.qemu.exit_watch().exited().is_none() {
            return Ok(());
        }
        tracing::warn!(vm = self.record.vm, said = engine.qemu.last_words(), "the QEMU that waited has ended");
        let (spec, resolved) = (engine.spec.clone(), engine.resolved.clone());
        let qemu = daemon.vms.launch_waiting(spec, resolved, self.record.token, engine.memory.shared())?;
        engine.shadow.await_in(Standby::new(&qemu)?);
        engine.qemu = Arc::new(qemu);
        Ok(())
    }

    /// The number of the session that was begun last.
    pub(super) fn session(&self) -> u64 {
        self.seen.lock().session
    }

    /// Takes in a frame of a session. An error ends the session. Blocks, before anybody else is held up, for the writes
    /// of a checkpoint that is complete.
    pub(super) fn take(
        &self,
        session: u64,
        message: Message,
        wire: &dyn gnomon_machine::wire::Wire,
    ) -> Result<(), ApiError> {
        let Message::Seal { checkpoint, marks, .. } = &message else {
            let mut slot = self.engine.lock();
            let engine = slot.as_mut().filter(|_| self.session() == session).ok_or_else(over)?;
            return Ok(engine.shadow.take(message, wire)?);
        };
        let (checkpoint, marks, copies) = (*checkpoint, marks.clone(), self.copies()?);
        let arrived = copies.await_whole(&marks);
        let mut slot = self.engine.lock();
        let engine = slot.as_mut().filter(|_| self.session() == session).ok_or_else(over)?;
        let before = copies.sealed();
        if let Err(error) = arrived.and_then(|()| copies.seal(&marks)) {
            engine.shadow.end();
            // A session that is over tells the primary as much.
            let _ = wire.send(Message::Sealed { stream: STREAM, checkpoint, ok: false });
            return Err(error);
        }
        if let Err(error) = engine.shadow.take(message, wire) {
            copies.go_back(before);
            return Err(error.into());
        }
        let committed = engine.shadow.committed().map(|has| (has.epoch, has.checkpoint, has.at));
        let mut seen = self.seen.lock();
        (seen.committed, seen.committed_in) = (committed, seen.generation);
        drop(seen);
        self.weigh();
        copies.apply(&marks)
    }

    /// A session is over. What it had not sealed is dropped.
    pub(super) fn end(&self, session: u64) {
        let mut slot = self.engine.lock();
        let mut seen = self.seen.lock();
        if seen.session != session {
            return;
        }
        seen.connected = false;
        if let Ok(copies) = self.copies() {
            copies.end();
        }
        if let Some(engine) = slot.as_mut() {
            engine.shadow.end();
        }
    }

    /// Gives up the checkpoint it has, and begins the session anew.
    pub(super) fn start_over(&self, epoch: Epoch) -> Result<(), ApiError> {
        let mut slot = self.engine.lock();
        let engine = slot.as_mut().ok_or_else(over)?;
        engine.shadow.start_over();
        self.seen.lock().committed = None;
        self.weigh();
        Ok(engine.shadow.begin(epoch)?)
    }

    /// Loads the devices of the checkpoint it has, which is to be this one.
    pub(super) fn load(&self, daemon: &Arc<Daemon>, checkpoint: u64) -> Result<(), ApiError> {
        let mut slot = self.engine.lock();
        let engine = slot.as_mut().ok_or_else(nothing)?;
        match engine.shadow.has() {
            Some((_, has)) if has == checkpoint => {}
            has => {
                let has = has.map_or("nothing".to_string(), |(_, has)| format!("checkpoint {has}"));
                return Err(ApiError::refused(format!("the shadow has {has}, and checkpoint {checkpoint} is meant")));
            }
        }
        self.awaken(daemon, engine)?;
        engine.load()?;
        self.seen.lock().loaded = true;
        Ok(())
    }

    /// The engine, for a takeover; nobody else has it meanwhile.
    pub(super) fn engine(&self) -> parking_lot::MutexGuard<'_, Option<Engine>> {
        self.engine.lock()
    }

    /// As the API shows it.
    pub fn view(&self) -> ShadowView {
        let seen = *self.seen.lock();
        ShadowView {
            of: self.record.from.clone(),
            connected: seen.connected,
            checkpoint: seen.committed.map(|(_, checkpoint, _)| checkpoint),
            epoch: seen.committed.map(|(epoch, ..)| epoch.0),
            age_ms: seen.committed.map(|(.., at)| millis(at.elapsed())),
            siblings: self.siblings(),
            guard: self.guard().map(|guard| guard.view()),
        }
    }

    /// As a VM of this node that does not run.
    pub fn vm_view(&self, daemon: &Daemon) -> VmView {
        let waiting =
            self.engine.try_lock().and_then(|slot| slot.as_ref().map(|engine| engine.qemu.record().clone()));
        let view = daemon.vms.waiting_view(&self.record.vm, &self.record.volumes, waiting);
        VmView { status: "shadow".to_string(), shadow: Some(self.view()), ..view }
    }
}

fn limits() -> Limits {
    Limits::default()
}

fn over() -> ApiError {
    ApiError::refused("a frame of a session that is over")
}

pub(super) fn nothing() -> ApiError {
    ApiError::refused("the shadow has no whole checkpoint: there is nothing to go on from").then(
        "when the primary is gone for good, remove the shadow with `gnomon vm unprotect` and start from its disks",
    )
}

fn taken(other: &ShadowRecord) -> ApiError {
    ApiError::refused(format!("a shadow of another VM '{}', of node {}, is kept here", other.vm, other.from))
        .then("rename one of the two VMs")
}
