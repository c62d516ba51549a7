//! A guest on its way by checkpoints, at its source.
//!
//! ```text
//!   runs ── pass, pass … ──► near ── checkpoint ──► freeze ──► stands, all of it there ── Load ──► loaded there
//!    ▲      beside it          │      (what devices   │                                     │
//!    │                         │       say first)     │                                     │ given, by whoever drives
//!    └──────── cancel ─────────┴──────────────────────┴─────────────────────────────────────┤ the move: `forbid_return`
//!                                                                                           ▼
//!                                                                                 stands here for good
//! ```
//! Passes over what was written are sent beside the running guest until the rest fits into the pause that it may be made to
//! stand for. A pass ends when the destination has it: what waits in queues when the guest stands is time that it stands
//! longer. One checkpoint is made just before the last one, because the first one says all of the devices, and the next
//! only what changed of them.
//!
//! The engine blocks, and works on a thread of its own, one piece of work at a time. Whoever drops this in the midst of
//! one has the guest run on here, when the work comes to its end.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use gnomon_link::SessionSender;
use gnomon_machine::{
    primary::{QemuHypervisor, ReplicateError, Replicator, Setup, Told},
    wire::{Wire, WireClosed},
};
use gnomon_proto::frame::Message;
use gnomon_qemu::{CaptureOptions, DirtyTracker};
use gnomon_terms::{Bytes, BytesPerSecond, PageCount};
use gnomon_volume::disk::Disk;
use tokio::{sync::OwnedMutexGuard, task::JoinHandle};

use super::{
    decide::{Pass, downtime_after, may_stand},
    hub::Hub,
    landing::{EPOCH, STREAM, length},
    rpc::Ask,
    transfer::{blocking, ended},
    window::Window,
};
use crate::{
    api::ApiError,
    daemon::{
        keeper::VolumeHandle,
        vms::{VmHandle, makeup::built},
    },
};

/// How long one look waits for a piece of work: the pace of the move meanwhile.
const LOOK: Duration = Duration::from_millis(100);
/// What may be spent on remembering what the destination has, as a share of the guest's memory: deltas and duplicates are
/// found among the pages that change, which are few.
const REMEMBERED: u64 = 8;
/// At least so much of it, for small guests.
const REMEMBERED_LEAST: u64 = 64 << 20;
/// How long the destination may take to answer for a checkpoint while the guest stands for it.
const PATIENCE: Duration = Duration::from_secs(5);

/// A guest that is being sent.
pub struct Sending {
    vm: Arc<VmHandle>,
    volumes: Vec<Arc<VolumeHandle>>,
    window: Arc<Window>,
    tally: Arc<Tally>,
    begun: Instant,
    /// While no work is under way.
    sender: Option<Sender>,
    work: Option<JoinHandle<Worked>>,
    stage: Stage,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Passes are made beside the running guest.
    Passes,
    /// What is left fits into a pause.
    Near,
    /// The guest stands and is loaded at the destination.
    Standing,
}

/// The engine, and what one pass was like.
struct Sender {
    engine: Replicator,
    last: Pass,
    /// The guest is followed by one engine at a time: that of a session before may still be at work.
    _turn: OwnedMutexGuard<()>,
}

/// What a piece of work has come to.
enum Done {
    Pass { owed: PageCount },
    Frozen(Told),
}

/// The engine after a piece of work, and what came of it.
type Worked = (Sender, Result<Done, ReplicateError>);

/// Pages of the pass that is under way, for whoever looks.
#[derive(Debug, Default)]
pub struct Tally {
    owed: AtomicU64,
    said: AtomicU64,
}

/// What is needed to begin.
pub struct Setting {
    /// Which guest.
    pub vm: Arc<VmHandle>,
    /// Its volumes.
    pub volumes: Vec<Arc<VolumeHandle>>,
    /// The move.
    pub move_id: String,
    /// Follows the guest's writes.
    pub tracker: Box<dyn DirtyTracker>,
    /// How fast the link is, if that is known.
    pub link: Option<BytesPerSecond>,
    /// Nobody else sends this guest.
    pub turn: OwnedMutexGuard<()>,
}

impl Sending {
    /// Has memory made and a QEMU started at the destination. The guest runs.
    pub async fn start(hub: &Hub, setting: Setting) -> Result<Sending, ApiError> {
        let Setting { vm, volumes, move_id, tracker, link, turn } = setting;
        let qemu = vm.qemu().ok_or_else(|| ended(&vm))?;
        let asked = Arc::clone(&qemu);
        let (spec, resolved) = blocking(move || built(&asked)).await?;
        let memory = Bytes((resolved.whole_memory() / REMEMBERED).max(REMEMBERED_LEAST));
        let options = CaptureOptions::of(&resolved);
        hub.rpc.ask::<()>(&Ask::Receive { move_id, spec: Box::new(spec), resolved }).await?;
        let setup = Setup {
            stream: STREAM,
            epoch: EPOCH,
            memory,
            pace: gnomon_machine::primary::Pace::Every(Duration::ZERO),
            link,
            patience: PATIENCE,
        };
        let hypervisor = QemuHypervisor::new(qemu, options);
        // Its volumes do not go turn by turn: their handover follows the last checkpoint.
        let marks = |_| Ok(Vec::new());
        let (tally, pages) = (Arc::new(Tally::default()), tracker.pages());
        let mut engine = Replicator::new(setup, Box::new(hypervisor), tracker, Box::new(marks));
        tally.begin(pages);
        let window = Arc::clone(hub.window());
        let wire = Counted { sender: hub.sender(), window: Arc::clone(&window), tally: Arc::clone(&tally) };
        let (acks, _) = engine.connect(Arc::new(wire), None);
        let told = acks.clone();
        hub.serve(
            STREAM,
            Arc::new(move |message| {
                if let Message::Sealed { checkpoint, ok, .. } = message {
                    told.sealed(checkpoint, ok);
                }
            }),
        );
        let session = Arc::clone(hub.session());
        tokio::spawn(async move {
            session.closed().await;
            acks.gone();
        });
        let sender = Some(Sender { engine, last: Pass::default(), _turn: turn });
        Ok(Sending { vm, volumes, window, tally, begun: Instant::now(), sender, work: None, stage: Stage::Passes })
    }

    /// Its VM's name.
    pub fn name(&self) -> String {
        self.vm.record().name
    }

    /// How long it has been sent.
    pub fn sent_for(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Bytes of its memory that the destination lacks, as far as is known.
    pub fn owed(&self) -> Bytes {
        let (owed, said) = (self.tally.owed.load(Ordering::Relaxed), self.tally.said.load(Ordering::Relaxed));
        PageCount(owed.saturating_sub(said)).bytes()
    }

    /// Whether the guest stands, with all of it loaded at the destination; waits a tenth of a second for a pass. A guest that
    /// `may` stand is made to as soon as little is left, which is waited for.
    pub async fn is_standing(&mut self, hub: &Hub, may: bool) -> Result<bool, ApiError> {
        if self.stage == Stage::Near && may && self.work.is_none() {
            return self.freeze(hub).await.map(|()| true);
        }
        if self.stage == Stage::Standing {
            return Ok(true);
        }
        let mut work = match self.work.take() {
            Some(work) => work,
            None => self.begin(|sender, window, tally| sender.pass(window, tally))?,
        };
        let until = Instant::now() + LOOK;
        match tokio::time::timeout_at(until.into(), &mut work).await {
            Err(_) => self.work = Some(work),
            Ok(done) => {
                self.took(done.map_err(ApiError::internal)?)?;
                if self.stage == Stage::Near && !may {
                    // It waits for its disks, and one pass in a while is enough.
                    tokio::time::sleep_until(until.into()).await;
                }
            }
        }
        Ok(false)
    }

    /// Makes the guest stand, and has the destination load it.
    async fn freeze(&mut self, hub: &Hub) -> Result<(), ApiError> {
        let volumes = self.volumes.clone();
        let work = self.begin(move |sender, _, _| sender.freeze(&volumes))?;
        let Some(told) = self.took(work.await.map_err(ApiError::internal)?)? else {
            return Err(ApiError::internal("the guest was to stand"));
        };
        let sealed = Instant::now();
        let load = Ask::Load { vm: self.name(), checkpoint: told.checkpoint };
        // Both take some milliseconds, and neither needs the other.
        let (loaded, flushed) = tokio::join!(hub.rpc.ask::<()>(&load), flush(self.volumes.clone()));
        loaded.and(flushed)?;
        self.stage = Stage::Standing;
        tracing::info!(
            stood = ?told.stood_at.map(|at| sealed - at),
            loaded = ?sealed.elapsed(),
            pages = told.standing.0,
            bytes = told.bytes.0,
            device = told.device.0,
            passes = told.rounds,
            "the guest stands, and all of it is at the destination"
        );
        Ok(())
    }

    fn begin(
        &mut self,
        deed: impl FnOnce(&mut Sender, &Window, &Tally) -> Result<Done, ReplicateError> + Send + 'static,
    ) -> Result<JoinHandle<Worked>, ApiError> {
        let mut sender = self.sender.take().ok_or_else(|| ApiError::internal("the guest is sent by nobody"))?;
        let (window, tally) = (Arc::clone(&self.window), Arc::clone(&self.tally));
        Ok(tokio::task::spawn_blocking(move || {
            let done = deed(&mut sender, &window, &tally);
            (sender, done)
        }))
    }

    /// A piece of work has ended.
    fn took(&mut self, (sender, done): Worked) -> Result<Option<Told>, ApiError> {
        let last = sender.last;
        self.sender = Some(sender);
        match done.map_err(|error| self.failed(error))? {
            Done::Frozen(told) => Ok(Some(told)),
            Done::Pass { owed } => {
                let is_near = may_stand(owed, &last, downtime_after(self.sent_for()));
                self.stage = if is_near { Stage::Near } else { Stage::Passes };
                Ok(None)
            }
        }
    }

    /// A QEMU that has ended is the reason of whatever failed with it.
    fn failed(&self, error: ReplicateError) -> ApiError {
        match self.vm.qemu().is_none_or(|qemu| qemu.exit_watch().exited().is_some()) {
            true => ended(&self.vm),
            false => error.into(),
        }
    }

    /// The guest's disks are given away: it must not run here again, whatever becomes of this.
    pub fn forbid_return(&mut self) {
        if let Some(mut sender) = self.sender.take() {
            sender.engine.leave_standing();
            // What it remembers takes a while to be freed, and the guest waits.
            thread::spawn(move || drop(sender));
        }
    }

    /// Waits until the guest runs at the destination, which it does by itself.
    pub async fn complete(self, hub: &Hub) -> Result<(), ApiError> {
        hub.rpc.ask::<()>(&Ask::Running).await
    }

    /// The guest runs on here. The session is of no use for memory any more.
    pub async fn cancel(mut self, hub: &Hub) -> Result<(), ApiError> {
        // Whoever waits for room in it is let go.
        self.window.end();
        if let Some(work) = self.work.take() {
            self.sender = Some(work.await.map_err(ApiError::internal)?.0);
        }
        if let Some(mut sender) = self.sender.take() {
            blocking(move || Ok(sender.engine.go_on().map(drop)?)).await?;
        }
        hub.rpc.ask::<bool>(&Ask::Withdraw { vm: Some(self.name()) }).await?;
        Ok(())
    }
}

impl Sender {
    /// Sends what is owed beside the running guest, and waits until the destination has it.
    fn pass(&mut self, window: &Window, tally: &Tally) -> Result<Done, ReplicateError> {
        let pages = self.engine.owed()?;
        tally.begin(pages);
        let begun = Instant::now();
        self.engine.send_beside()?;
        if !window.drain() {
            return Err(WireClosed.into());
        }
        self.last = Pass { count: self.last.count + 1, pages, took: begun.elapsed() };
        let owed = self.engine.owed()?;
        tally.begin(owed);
        Ok(Done::Pass { owed })
    }

    /// Takes the last checkpoint, and leaves the guest standing. What its disks have not made durable is made so before, for
    /// QEMU flushes them when the guest stands.
    fn freeze(&mut self, volumes: &[Arc<VolumeHandle>]) -> Result<Done, ReplicateError> {
        let first = self.engine.checkpoint()?;
        self.engine.await_sealed(first.checkpoint)?;
        for handle in volumes {
            if let Err(error) = handle.volume.local().flush() {
                // The handover flushes once more, and fails by it.
                tracing::warn!(volume = handle.record().name, %error, "it cannot be flushed");
            }
        }
        Ok(Done::Frozen(self.engine.freeze()?))
    }
}

impl Tally {
    fn begin(&self, pages: PageCount) {
        self.owed.store(pages.0, Ordering::Relaxed);
        self.said.store(0, Ordering::Relaxed);
    }
}

/// What the guest wrote before it stood is durable: the handover, which makes sure of it, has less to do.
async fn flush(volumes: Vec<Arc<VolumeHandle>>) -> Result<(), ApiError> {
    blocking(move || volumes.iter().try_for_each(|handle| Ok(handle.volume.local().flush()?))).await
}

/// What the engine sends: counted, and no more of it on its way than the link holds.
struct Counted {
    sender: SessionSender,
    window: Arc<Window>,
    tally: Arc<Tally>,
}

impl Wire for Counted {
    fn send(&self, message: Message) -> Result<(), WireClosed> {
        let length = length(&message);
        if length > 0 && !self.window.enter(length) {
            return Err(WireClosed);
        }
        if let Message::Pages { records, .. } = &message {
            self.tally.said.fetch_add(u64::from(*records), Ordering::Relaxed);
        }
        self.sender.blocking_send(message).map_err(|_| WireClosed)
    }
}
