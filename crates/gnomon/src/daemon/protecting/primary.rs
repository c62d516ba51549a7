//! The primary's side: drives the engine that says checkpoints, over as many sessions as it takes.
//!
//! ```text
//!            ┌────────────────────── session lost: again, after a while ───────────────────────┐
//!            ▼                                                                                 │
//!   dial ─► fate? ─┬─ a shadow ──► keep ──► checkpoint, checkpoint … ──┬── link, refusal ──────┘
//!                  ├─ ready, and given ──► switch.rs                   ├── unprotect ──► forget ──► over
//!                  └─ promoted ──► given up here                       └── switchover ──► switch.rs
//! ```
//! The guest is never held up by a link: a session that is lost costs protection, and the state says so. The engine
//! outlives its sessions, so that a short loss costs only what changed meanwhile. A VM's other shadows have drivers of
//! their own ([`super::family`] is what they share), and none waits for another.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use gnomon_link::SessionSender;
use gnomon_machine::{
    primary::{Acks, Guest, QemuHypervisor, Replicator, Resume, Setup},
    wire::{Wire, WireClosed},
};
use gnomon_proto::frame::Message;
use gnomon_qemu::{CaptureOptions, Qemu, Resolved, TrackTarget, VmSpec, track};
use gnomon_terms::{Bytes, Epoch, PAGE_SIZE};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{
    STREAM, ask, blocking,
    ended::{self, given_up},
    leash::Leashed,
    rpc::{Ask, Fate, Kept},
    run::{AGAIN, Left, Run, tell, wake_up},
    shared::{Order, Shared},
    story::Story,
    volumes::Volumes,
};
use crate::{
    api::{ApiError, Kind},
    daemon::{
        Daemon,
        jobs::Job,
        moving::hub::Hub,
        records::ProtectRecord,
        vms::{VmHandle, makeup},
    },
};

/// What may be spent on remembering what the shadow has, as a share of the guest's memory: deltas and duplicates are
/// found among the pages that change, which are few.
const REMEMBERED: u64 = 8;
/// At least so much of it, for small guests.
const REMEMBERED_LEAST: u64 = 64 << 20;
/// How long the shadow may be silent before a checkpoint is not begun: longer than a host stops for a snapshot of its
/// own, shorter than the link's own patience.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often the initial copy is told of.
const TELL_EVERY: Duration = Duration::from_millis(100);

/// Drives one protection.
pub struct Primary {
    pub(super) daemon: Arc<Daemon>,
    pub(super) shared: Arc<Shared>,
    pub(super) vm: Arc<VmHandle>,
    pub(super) qemu: Arc<Qemu>,
    pub(super) story: Story,
    pub(super) volumes: Arc<Volumes>,
    /// Only its driver has it; a lock makes that so for the compiler.
    engine: Mutex<Option<Replicator>>,
    /// How the guest is built: while it is protected, its memory stays what it is.
    built: Mutex<Option<(VmSpec, Resolved)>>,
    /// The guest that the engine shares with those of the other shadows.
    guest: Mutex<Option<Arc<Guest>>>,
    /// Told when another shadow's checkpoint is one for this, too.
    captured: Arc<Notify>,
}

/// How a session ended well.
pub(super) enum End {
    /// It is not wanted any more.
    Unwanted,
    /// The guest runs at the shadow's node, and is gone here.
    Moved,
    /// The guest was lost to the shadow's node, which runs it at this epoch.
    Lost(u64),
    /// Somebody else has seen to it.
    GivenUp,
    /// The daemon stops; it is on record.
    Resting,
    /// The guest's QEMU has ended. The shadow has what it had.
    GuestGone,
}

impl Primary {
    /// A driver of what is on record. Blocks for some milliseconds.
    pub fn new(
        daemon: &Arc<Daemon>,
        shared: &Arc<Shared>,
        vm: Arc<VmHandle>,
        volumes: Arc<Volumes>,
    ) -> Result<Primary, ApiError> {
        let record = shared.record.lock().clone();
        let qemu = vm.qemu().ok_or_else(|| ApiError::unavailable(format!("VM '{}' does not run", record.vm)))?;
        let primary = Primary {
            daemon: Arc::clone(daemon),
            shared: Arc::clone(shared),
            vm,
            qemu,
            story: Story::new(daemon, &record.vm, &record.to),
            volumes,
            engine: Mutex::default(),
            built: Mutex::default(),
            guest: Mutex::default(),
            captured: Arc::default(),
        };
        primary.put_engine(primary.start_engine(&record)?);
        Ok(primary)
    }

    fn start_engine(&self, record: &ProtectRecord) -> Result<Replicator, ApiError> {
        let (spec, resolved) = makeup::built(&self.qemu)?;
        let setup = Setup {
            stream: STREAM,
            epoch: Epoch(record.epoch),
            memory: Bytes((resolved.whole_memory() / REMEMBERED).max(REMEMBERED_LEAST)),
            pace: super::pace(record.interval_ms),
            link: self.daemon.config.link.as_ref().and_then(|link| link.rate),
            patience: PATIENCE,
        };
        let (guest, tracker) = self.shared.family.guest(|| self.follow(record))?;
        self.shared.pulse.follows_by(&tracker);
        let (volumes, shared) = (Arc::clone(&self.volumes), Arc::clone(&self.shared));
        let marks = move |checkpoint| {
            shared.family.closes(&shared, checkpoint);
            shared.pulse.begins(checkpoint);
            volumes.mark()
        };
        let engine = Replicator::of(&guest, setup, Box::new(marks));
        let captured = Arc::clone(&self.captured);
        engine.on_captured(move || captured.notify_one());
        *self.guest.lock() = Some(guest);
        *self.built.lock() = Some((spec, resolved));
        Ok(engine)
    }

    /// Begins to follow the guest's pages, for the engines of all shadows; by which means.
    fn follow(&self, record: &ProtectRecord) -> Result<(Arc<Guest>, String), ApiError> {
        let (made_of, memory) = makeup::whole(&self.qemu)?;
        let tracking = track(&TrackTarget::of_memory(self.qemu.record().pid, &memory)?)?;
        for (tier, why) in &tracking.passed {
            tracing::info!(vm = record.vm, %tier, why = %why, "a better way to follow its pages cannot be had");
        }
        let tracker = tracking.tracker.tier().to_string();
        let hypervisor = QemuHypervisor::new(Arc::clone(&self.qemu), CaptureOptions::of(&made_of));
        let leash = Arc::clone(&self.shared.family.leash);
        let hypervisor = Leashed::new(Arc::clone(&self.qemu), hypervisor, leash);
        let pace = super::pace(record.interval_ms);
        // What the shadows have said of checkpoints before counts no more: numbers begin anew.
        let records = &self.daemon.records;
        self.shared.family.write(records, |other| other.generation = record.generation + 1)?;
        let noted = self.daemon.memory.noting(&self.qemu, &record.vm, tracking.tracker);
        Ok((Guest::new(Box::new(hypervisor), noted, pace), tracker))
    }

    /// Its record, as it is now.
    pub(super) fn record(&self) -> ProtectRecord {
        self.shared.record.lock().clone()
    }

    /// Drives the protection to its end. `job` is told how the first copy goes.
    pub async fn run(mut self, mut job: Option<Job>) {
        self.shared.drives();
        if self.shared.family.given_to().is_none()
            && let Err(error) = self.wake_up().await
        {
            tracing::error!(vm = self.record().vm, %error, "its guest may stand: try `cont` on its monitor");
        }
        let ended = self.sessions(&mut job).await;
        self.shared.rests();
        // The engine lets go of the guest's pages before anybody may follow them anew.
        drop(self.guest.lock().take());
        drop(self.engine());
        let told = match ended {
            Ok(End::GuestGone) => {
                let gone = Err(ApiError::unavailable("the guest ended while it was being protected"));
                finish(job, gone);
                return ended::stand_by(self.daemon, self.shared, self.story).await;
            }
            Ok(End::Lost(epoch)) => given_up(&self.daemon, &self.shared, epoch)
                .await
                .and(Err(ApiError::refused("the guest runs at the shadow's node by now"))),
            Ok(End::Moved | End::GivenUp) => Err(ApiError::refused("the guest does not run here any more")),
            Ok(End::Resting) => return,
            Ok(End::Unwanted) => self.forget().await.and(Err(ApiError::refused("it is not wanted any more"))),
            Err(error) => self.forget().await.and(Err(error)),
        };
        self.daemon.protections.over(&self.shared);
        finish(job, told);
    }

    /// Begins sessions until one comes to an end; an error is one after which there is nothing to protect.
    async fn sessions(&mut self, job: &mut Option<Job>) -> Result<End, ApiError> {
        loop {
            let error = match self.session(job).await {
                Ok(end) => return Ok(end),
                Err(error) => error,
            };
            if self.qemu.exit_watch().exited().is_some() {
                return Ok(End::GuestGone);
            }
            if job.is_some() && error.kind != Kind::Unavailable {
                return Err(error);
            }
            if let Some(job) = job {
                tell(job, "waiting", 0, 0, &format!("waiting for node {}: {error}", self.record().to));
            }
            self.shared.pulse.lost(&error.to_string());
            self.story.lost(&error);
            self.expose_if_alone().await;
            if let Some(end) = self.wait(&error).await {
                return Ok(end);
            }
        }
    }

    /// Waits before another session is tried; `Some` when there is to be none.
    async fn wait(&self, error: &ApiError) -> Option<End> {
        let mut orders = self.shared.order.subscribe();
        let order = orders.borrow_and_update().clone();
        match order {
            Order::End => {
                ended::tell_unwanted(&self.daemon, &self.record()).await;
                return Some(End::Unwanted);
            }
            Order::GivenUp => return Some(End::GivenUp),
            Order::Lost => return Some(self.lost()),
            Order::Rest => return Some(End::Resting),
            Order::Switch(job) => {
                self.shared.switch_begins();
                job.finish(Err(error.clone()));
            }
            Order::None => {}
        }
        tokio::select! {
            () = tokio::time::sleep(AGAIN) => {}
            _ = orders.changed() => {}
        }
        None
    }

    async fn session(&mut self, job: &mut Option<Job>) -> Result<End, ApiError> {
        let record = self.record();
        let session = self.daemon.dial(&record.to).await?;
        let (hub, _inbox) = Hub::start(session);
        // First: whoever takes a guest back that was given away looks who has a session, and waits.
        self.shared.has_session(Some(Arc::clone(hub.session())));
        let outcome = self.drive(&hub, job).await;
        self.shared.is_out_of_step();
        if let Some(engine) = &mut *self.engine.lock() {
            engine.disconnect();
        }
        hub.end("the session is over").await;
        // Again: a Seal that was answered at the very end was heard until now.
        self.shared.is_out_of_step();
        let volumes = Arc::clone(&self.volumes);
        let stopped = blocking(move || {
            volumes.disconnect();
            Ok(())
        });
        let stopped = stopped.await;
        self.shared.has_session(None);
        stopped.and(outcome)
    }

    async fn drive(&mut self, hub: &Hub, job: &mut Option<Job>) -> Result<End, ApiError> {
        let record = self.record();
        if let Some(node) = self.shared.family.given_to().filter(|node| *node != record.to) {
            return Err(ApiError::unavailable(format!("the guest stands here: it was given to node {node}")));
        }
        let fate = ask(&hub.rpc, Ask::Fate { id: record.id.clone() }).await?;
        match (fate, record.given) {
            (Fate::Promoted { .. }, Some(_)) => return self.moved().await,
            (Fate::Promoted { epoch }, None) => return Ok(End::Lost(epoch)),
            (Fate::Ready, Some(given)) => return self.give_again(hub, given).await,
            (Fate::Shadow, Some(given)) => self.take_back(given).await?,
            (Fate::Shadow | Fate::Ready, None) => {}
        }
        self.begin(hub).await?;
        self.await_disks(hub, job.as_ref()).await?;
        loop {
            let left = self.checkpoints(hub, job).await?;
            if let Left::Broken(error) = left {
                return Err(error);
            }
            let order = self.shared.order.borrow().clone();
            match order {
                Order::None => {}
                Order::GivenUp => return Ok(End::GivenUp),
                Order::Lost => return Ok(self.lost()),
                Order::Rest => return Ok(End::Resting),
                Order::End => {
                    ask::<()>(&hub.rpc, Ask::Forget { id: self.record().id }).await?;
                    return Ok(End::Unwanted);
                }
                Order::Switch(wish) => {
                    self.shared.switch_begins();
                    if self.switch(hub, &wish).await? {
                        return Ok(End::Moved);
                    }
                }
            }
        }
    }

    /// Begins a session of the engine.
    async fn begin(&mut self, hub: &Hub) -> Result<(), ApiError> {
        self.wake_up().await?;
        if self.engine.lock().as_ref().is_none_or(|engine| engine.epoch().0 != self.record().epoch) {
            self.renew_engine()?;
        }
        if self.is_made_otherwise().await? {
            // What is followed for its other shadows is of no use to them either: they will find out as this has.
            self.shared.family.forget_guest();
            self.renew_engine()?;
        }
        let record = self.record();
        let (spec, resolved) = self.built.lock().clone().ok_or_else(no_engine)?;
        let pages = resolved.whole_memory() / PAGE_SIZE;
        let disks = self.volumes.told()?;
        let keep = Ask::Keep {
            id: record.id,
            epoch: record.epoch,
            spec: Box::new(spec),
            resolved,
            disks,
            strict: record.strict,
            lease_s: record.lease_s,
            siblings: self.shared.family.siblings_of(&record.to),
            generation: record.generation,
        };
        let kept: Kept = ask(&hub.rpc, keep).await?;
        self.volumes.connect(hub, &kept.disks)?;
        let wire = Arc::new(PrimaryWire { sender: hub.sender(), shared: Arc::clone(&self.shared) });
        let has = kept.has.map(|(epoch, checkpoint)| (Epoch(epoch), checkpoint));
        let (acks, resume) = self.engine.lock().as_mut().ok_or_else(no_engine)?.connect(wire, has);
        let mut anew = kept.has.is_none();
        if resume == Resume::StartsOver && kept.has.is_some() && pages > kept.stage {
            // It cannot keep what it has beside all of it.
            ask::<()>(&hub.rpc, Ask::StartOver).await?;
            anew = true;
        }
        self.begin_strictly(anew).await?;
        self.hear(hub, acks);
        self.shared.said.store(0, Ordering::Relaxed);
        self.shared.pulse.connected(anew);
        Ok(())
    }

    /// Waits until the standbys of the disks are in step: only then a checkpoint can count on them. Returns early when
    /// something was asked.
    async fn await_disks(&self, hub: &Hub, job: Option<&Job>) -> Result<(), ApiError> {
        let session = Arc::clone(hub.session());
        loop {
            let volumes = Arc::clone(&self.volumes);
            if blocking(move || volumes.await_in_step(TELL_EVERY)).await? {
                return Ok(());
            }
            if let Some(reason) = session.close_reason() {
                return Err(ApiError::unavailable(format!("the link to node {} ended: {reason}", self.record().to)));
            }
            let Some(job) = job else { continue };
            if job.is_cancelled() {
                self.shared.order.send_replace(Order::End);
            }
            let (total, owed) = (self.volumes.size().0, self.volumes.owed().0);
            let message = format!("the first copy of its disks is on its way to node {}", self.record().to);
            tell(job, "disks", total.saturating_sub(owed), total, &message);
            if !matches!(*self.shared.order.borrow(), Order::None) {
                return Ok(());
            }
        }
    }

    /// Answers of the shadow reach the engine; so does the end of the session.
    fn hear(&self, hub: &Hub, acks: Acks) {
        let (shared, told) = (Arc::clone(&self.shared), acks.clone());
        let (story, strict) = (self.story.clone(), self.record().strict);
        hub.serve(
            STREAM,
            Arc::new(move |message| {
                if let Message::Sealed { checkpoint, ok, .. } = message {
                    if ok {
                        shared.is_not_alone();
                        // Before the engine knows: after the last one the cables are pulled.
                        shared.family.sealed(shared.node(), checkpoint);
                    }
                    told.sealed(checkpoint, ok);
                    if ok {
                        shared.family.name_heir(shared.node(), strict, checkpoint);
                    }
                    if ok && shared.pulse.sealed(checkpoint) {
                        story.protected(checkpoint);
                    }
                }
            }),
        );
        let session = Arc::clone(hub.session());
        tokio::spawn(async move {
            session.closed().await;
            acks.gone();
        });
    }

    /// Whether the guest has given memory back, as it was asked to before, since its pages began to be followed.
    async fn is_made_otherwise(&self) -> Result<bool, ApiError> {
        let qemu = Arc::clone(&self.qemu);
        let now = blocking(move || makeup::built(&qemu)).await?;
        Ok(self.built.lock().as_ref() != Some(&now))
    }

    /// Makes the guest run again when a crash of the daemon cut its checkpoint off. A guest that was given away stands
    /// for that reason, and never comes here.
    async fn wake_up(&self) -> Result<(), ApiError> {
        let (qemu, leash) = (Arc::clone(&self.qemu), Arc::clone(&self.shared.family.leash));
        let guest = self.guest.lock().clone().ok_or_else(no_engine)?;
        // Another shadow's checkpoint is not under way then, nor its switchover.
        let woken = move || guest.undisturbed(|| leash.run(|| wake_up(&qemu)).unwrap_or(Ok(()))).unwrap_or(Ok(()));
        blocking(woken).await
    }

    /// The shadow's node holds the guest: it runs it at the next epoch.
    fn lost(&self) -> End {
        End::Lost(self.record().epoch + 1)
    }

    /// Takes checkpoints until something is asked or the session is of no use.
    async fn checkpoints(&mut self, hub: &Hub, job: &mut Option<Job>) -> Result<Left, ApiError> {
        self.end_exposure().await?;
        let run = Run {
            engine: self.engine()?,
            qemu: Arc::clone(&self.qemu),
            shared: Arc::clone(&self.shared),
            volumes: Arc::clone(&self.volumes),
        };
        let captured = Arc::clone(&self.captured);
        let (handle, session) = (tokio::runtime::Handle::current(), Arc::clone(hub.session()));
        let mut orders = self.shared.order.subscribe();
        let wait = move |due: Duration| {
            handle.block_on(async {
                tokio::select! {
                    _ = orders.wait_for(|order| !matches!(order, Order::None)) => true,
                    _ = session.closed() => false,
                    () = captured.notified() => false,
                    () = tokio::time::sleep(due) => false,
                }
            })
        };
        let (told, first) = (job.clone(), job.take());
        let work = blocking(move || Ok(run.checkpoints(first, wait)));
        tokio::pin!(work);
        let mut ticks = tokio::time::interval(TELL_EVERY);
        let (engine, left, first) = loop {
            tokio::select! {
                done = &mut work => break done?,
                _ = ticks.tick() => {
                    self.tell_first_copy(hub, told.as_ref());
                    self.weigh().await;
                }
            }
        };
        self.put_engine(engine);
        *job = first;
        Ok(left)
    }

    /// Tells how far the first copy is; one that is not wanted any more ends with its session.
    fn tell_first_copy(&self, hub: &Hub, job: Option<&Job>) {
        let Some(job) = job.filter(|job| !job.view().state.is_over()) else { return };
        if job.is_cancelled() {
            self.shared.order.send_replace(Order::End);
        }
        // A switchover is asked of a shadow that is there: the copy has been made.
        if !matches!(*self.shared.order.borrow(), Order::None | Order::Switch(_)) {
            hub.session().close("the first copy is not wanted any more");
        }
        let total = self.built.lock().as_ref().map_or(0, |(_, resolved)| resolved.whole_memory());
        let said = (self.shared.said.load(Ordering::Relaxed) * PAGE_SIZE).min(total);
        tell(job, "sync", said, total, &format!("the first copy is on its way to node {}", self.record().to));
    }

    /// Another engine, of the epoch that is on record by now.
    pub(super) fn renew_engine(&mut self) -> Result<(), ApiError> {
        // One at a time follows the guest's pages.
        drop(self.guest.lock().take());
        drop(self.engine());
        self.put_engine(self.start_engine(&self.record())?);
        Ok(())
    }

    pub(super) fn engine(&self) -> Result<Replicator, ApiError> {
        self.engine.lock().take().ok_or_else(no_engine)
    }

    pub(super) fn put_engine(&self, engine: Replicator) {
        *self.engine.lock() = Some(engine);
    }

    /// It is not a shadow any more: nothing is left of it here.
    async fn forget(&self) -> Result<(), ApiError> {
        ended::forget(&self.daemon, &self.shared, &self.story).await
    }
}

fn no_engine() -> ApiError {
    ApiError::internal("a protection has no engine")
}

/// What the engine sends, counted.
struct PrimaryWire {
    sender: SessionSender,
    shared: Arc<Shared>,
}

impl Wire for PrimaryWire {
    fn send(&self, message: Message) -> Result<(), WireClosed> {
        if let Message::Pages { records, .. } = &message {
            self.shared.said.fetch_add(u64::from(*records), Ordering::Relaxed);
        }
        self.sender.blocking_send(message).map_err(|_| WireClosed)
    }
}

fn finish(job: Option<Job>, told: Result<serde_json::Value, ApiError>) {
    if let Some(job) = job {
        job.finish(told);
    }
}
