//! The destination of a move: one session's worth of it.
//!
//! The source asks, this side does; it decides nothing but whether it can, and what the handover's machine says. A
//! session that ends leaves everything as it is: the next one finds it by the move's id.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use gnomon_link::Session;
use gnomon_proto::{
    frame::{Message, Stream},
    handover::TakerState,
};
use gnomon_qemu::{Resolved, RunState, VmSpec};
use gnomon_volume::{disk::Role, plane::Carrier};
use tokio::sync::mpsc;

use super::{
    arrival::{self, Arrival},
    confirm, doubt,
    giving_back::GivingBack,
    handover::Receiver,
    hub::{Hub, Inbox},
    landing, maps,
    rpc::{self, Ask, Opened, State},
    stray,
};
use crate::{
    api::{ApiError, Kind},
    daemon::{
        Daemon,
        keeper::VolumeHandle,
        protecting::{self, Seat},
        records::{SourceRecord, StandingRecord},
    },
};

/// Serves a session that another node has begun, until it ends.
pub async fn serve(daemon: Arc<Daemon>, session: Session) {
    let source = session.peer().to_string();
    let (hub, inbox) = Hub::start(session);
    let Inbox { mut control, ram } = inbox;
    let mut side = Destination {
        daemon: &daemon,
        hub: &hub,
        source,
        volumes: HashMap::new(),
        confirmed: HashSet::new(),
        ram: Some(ram),
        vm: None,
        back: GivingBack::default(),
        seat: Seat::default(),
    };
    let (ended, hold) = (Arc::clone(hub.session()), daemon.moves.clone());
    let mut turn = None;
    loop {
        let message = tokio::select! {
            message = control.recv() => message,
            _ = ended.closed() => None,
            error = guest_failed(&mut side.vm) => {
                // The source sends memory that nobody takes: it is told, and may begin again.
                ended.close(&format!("the guest cannot come: {error}"));
                None
            }
        };
        let Some(message) = message else { break };
        if let Message::Request { id, body } = message {
            let answer = match serde_json::from_slice::<Ask>(&body) {
                Ok(ask) => {
                    if let (Some(id), None) = (takes_turn(&ask), &turn) {
                        // The session before this one must have let go of the volumes.
                        turn = Some(hold.enter(id, ended.clone()).await);
                    }
                    side.answer(ask).await
                }
                Err(error) => Err(ApiError::usage(format!("this question is not known here: {error}"))
                    .then("both nodes should run the same version of gnomon")),
            };
            rpc::reply(&hub.sender(), id, answer).await;
        } else {
            side.take_in(message).await;
        }
    }
    side.let_go().await;
    hub.end("the session is over").await;
}

/// The move or protection that a session is for from this question on: one session at a time serves it.
fn takes_turn(ask: &Ask) -> Option<&str> {
    match ask {
        Ask::Open { move_id, .. } => Some(move_id),
        Ask::Shadow { question: protecting::Ask::Keep { id, .. } } => Some(id),
        _ => None,
    }
}

/// Why the guest that is expected cannot come; waits while it may.
async fn guest_failed(vm: &mut Option<Arrival>) -> ApiError {
    match vm {
        Some(vm) => vm.failed().await,
        None => std::future::pending().await,
    }
}

/// This side of one session.
struct Destination<'a> {
    daemon: &'a Arc<Daemon>,
    hub: &'a Hub,
    source: String,
    volumes: HashMap<Stream, Held>,
    /// Volumes that were confirmed here without their source: the move is over for them.
    confirmed: HashSet<Stream>,
    ram: Option<mpsc::Receiver<Message>>,
    vm: Option<Arrival>,
    back: GivingBack,
    seat: Seat,
}

/// A volume of this session.
struct Held {
    handle: Arc<VolumeHandle>,
    receiver: Receiver,
    reads_before: u64,
}

impl Destination<'_> {
    async fn answer(&mut self, ask: Ask) -> Result<serde_json::Value, ApiError> {
        let answer = match ask {
            Ask::Open { .. } => serde_json::to_value(self.open(ask).await?),
            Ask::State { stream } => serde_json::to_value(self.state(Stream(stream))?),
            Ask::Incoming { spec, resolved } => serde_json::to_value(self.expect_guest(*spec, resolved).await?),
            Ask::Receive { move_id, spec, resolved } => {
                serde_json::to_value(self.receive_guest(move_id, *spec, resolved).await?)
            }
            Ask::Load { vm, checkpoint } => serde_json::to_value(self.load_guest(&vm, checkpoint).await?),
            Ask::Running => serde_json::to_value(self.await_guest().await?),
            Ask::HasGuest { vm } => serde_json::to_value(self.has_guest(vm).await?),
            Ask::Withdraw { vm } => serde_json::to_value(self.withdraw(vm).await?),
            Ask::Release { stream } => serde_json::to_value(self.release(Stream(stream))?),
            Ask::Compare { volume, size, stream } => {
                serde_json::to_value(super::verify::answer(self.daemon, self.hub, &volume, size, Stream(stream))?)
            }
            Ask::Survey { volume, needed } => {
                serde_json::to_value(super::outlook::answer(self.daemon, &volume, needed)?)
            }
            Ask::Probe { .. } => Ok(serde_json::Value::Null),
            Ask::Abandon { stream } => serde_json::to_value(self.abandon(Stream(stream)).await?),
            Ask::HandBack { stream } => {
                let handle = Arc::clone(&self.held(Stream(stream))?.handle);
                serde_json::to_value(self.back.begin(self.hub, &handle, Stream(stream)).await?)
            }
            Ask::Yield => serde_json::to_value(self.back.yield_all(self.daemon, self.hub).await?),
            Ask::LetGo { move_id, volume, epoch } => {
                self.volumes.retain(|_, held| held.handle.record().name != volume);
                serde_json::to_value(self.back.let_go(self.daemon, &move_id, &volume, epoch).await?)
            }
            Ask::Guest { vm } => serde_json::to_value(self.back.built(self.daemon, &vm)?),
            Ask::SendGuest { vm } => serde_json::to_value(self.back.send_guest(self.daemon, self.hub, &vm).await?),
            Ask::Standing => serde_json::to_value(self.back.is_standing().await?),
            Ask::SendRest => serde_json::to_value(self.back.send_rest().await?),
            Ask::KeepGuest => serde_json::to_value(self.back.keep_guest().await?),
            Ask::EndGuest { vm } => serde_json::to_value(self.back.end_guest(self.daemon, &vm).await?),
            Ask::Fate { move_id } => serde_json::to_value(doubt::fate(self.daemon, &move_id)?),
            Ask::Shadow { question } => {
                return self.seat.answer(self.daemon, &self.source, self.hub, &mut self.ram, question).await;
            }
            Ask::Overruled { move_id, volume, epoch } => {
                serde_json::to_value(confirm::overruled(self.daemon, &self.source, &move_id, &volume, epoch)?)
            }
        };
        answer.map_err(ApiError::internal)
    }

    /// Makes room for a volume, or finds the one of an interrupted move, and says which blocks are here.
    async fn open(&mut self, ask: Ask) -> Result<Opened, ApiError> {
        let Ask::Open { move_id, volume, size, needed, epoch, stream, reverse, boot } = ask else {
            return Err(ApiError::internal("not a question to open a volume"));
        };
        let stream = Stream(stream);
        if let Some(epoch) = confirm::confirmed_at(self.daemon, &move_id, &volume)? {
            self.confirmed.insert(stream);
            return Ok(Opened { fresh: false, role: Role::Primary.name().to_string(), epoch });
        }
        let fresh = self.daemon.keeper.get(&volume).is_err();
        let handle = match self.daemon.keeper.get(&volume) {
            Ok(handle) => self.found(handle, &move_id, size)?,
            Err(_) => {
                let source = SourceRecord { node: self.source.clone(), stream: stream.0, reverse, boot };
                self.make(&volume, move_id, size, needed, epoch, source)?
            }
        };
        self.note_boot(&handle, boot)?;
        // The source has the move on record, so it has not been rolled back while this node was away.
        handle.volume.confirm()?;
        let receiver = Receiver::resume(&handle, stream);
        let reads_before = handle.watcher.counts().reads;
        if let Some(shadow) = handle.volume.shadow() {
            let engine = Arc::clone(&shadow);
            self.hub.serve(stream, Arc::new(move |message| engine.handle(message)));
            let (attached, wire) = (Arc::clone(&shadow), self.hub.wire());
            // It asks at once for what readers wait for, and may wait for room in the session.
            tokio::task::spawn_blocking(move || attached.attach(wire)).await.map_err(ApiError::internal)?;
            let carrier = Carrier::Destination(shadow);
            handle.watcher.run(|_, plane| plane.set_carrier(carrier)).await?;
        }
        if let Some(valid) = handle.volume.valid() {
            maps::send(&self.hub.sender(), stream, handle.record().epoch(), maps::VALID, &valid).await?;
        }
        let record = handle.record();
        let opened = Opened { fresh, role: handle.role().to_string(), epoch: record.epoch };
        self.volumes.insert(stream, Held { handle, receiver, reads_before });
        Ok(opened)
    }

    /// A source that has rebooted lost what it had in memory only: that is owed first, and then its boot is on record.
    fn note_boot(&self, handle: &VolumeHandle, boot: Option<[u8; 16]>) -> Result<(), ApiError> {
        let mut standing = handle.record().standing;
        let (StandingRecord::Shadow(source) | StandingRecord::Draining(source)) = &mut standing else {
            return Ok(());
        };
        if is_same_boot(source.boot, boot) {
            return Ok(());
        }
        let node = &source.node;
        tracing::warn!(
            volume = handle.record().name,
            "node {node} may have rebooted: unflushed writes go there again"
        );
        handle.volume.distrust_source();
        source.boot = boot;
        self.daemon.keeper.update(handle, |record| record.standing = standing)
    }

    /// A volume of this name is here: only that of the same move is meant.
    fn found(&self, handle: Arc<VolumeHandle>, move_id: &str, size: u64) -> Result<Arc<VolumeHandle>, ApiError> {
        let record = handle.record();
        let ended_here = matches!(record.standing, StandingRecord::Primary) && record.move_id.is_none();
        if record.move_id.as_deref() != Some(move_id) && !(ended_here && record.epoch > 1) {
            return Err(ApiError::refused(format!(
                "node {} has another volume called '{}' ({})",
                self.daemon.config.node,
                record.name,
                handle.role()
            ))
            .then("rename or remove one of them; nothing was changed"));
        }
        if record.size != size {
            return Err(ApiError::refused(format!(
                "volume '{}' has {} bytes at its source and {} here",
                record.name, size, record.size
            ))
            .then("cancel this move and begin a new one"));
        }
        Ok(handle)
    }

    fn make(
        &self,
        volume: &str,
        move_id: String,
        size: u64,
        needed: u64,
        epoch: u64,
        source: SourceRecord,
    ) -> Result<Arc<VolumeHandle>, ApiError> {
        let keeper = &self.daemon.keeper;
        let path = keeper.place_for(volume)?;
        // Refused, not unavailable: the move would ask again for as long as it takes, and its operator would wait.
        keeper
            .check_space(needed, &format!("node {}: the copy of volume '{volume}'", self.daemon.config.node))
            .map_err(|error| ApiError { kind: Kind::Refused, ..error })?;
        let mut draft = keeper.new_record(volume, path, size, epoch, StandingRecord::Shadow(source));
        draft.move_id = Some(move_id);
        keeper.create_shadow(draft)
    }

    fn state(&self, stream: Stream) -> Result<State, ApiError> {
        if self.confirmed.contains(&stream) {
            return Ok(State { role: Role::Primary.name().to_string(), ..State::default() });
        }
        let held = self.held(stream)?;
        let volume = &held.handle.volume;
        let shadow = volume.shadow();
        Ok(State {
            role: held.handle.role().to_string(),
            epoch: held.handle.record().epoch,
            missing: volume.missing().0,
            owed: volume.outbox().map_or(0, |outbox| outbox.owed().0),
            fault: shadow.as_ref().and_then(|shadow| shadow.take_fault()),
            degraded: shadow.is_some_and(|shadow| shadow.is_mirror_degraded()),
            reads: held.handle.watcher.counts().reads - held.reads_before,
        })
    }

    // ---- the guest ------------------------------------------------------------------------------------------

    /// Starts the QEMU that the guest will run in.
    async fn expect_guest(&mut self, spec: VmSpec, resolved: Resolved) -> Result<(), ApiError> {
        self.give_up(spec.name.clone()).await?;
        let ram = self.take_ram()?;
        self.vm = Some(arrival::expect(self.daemon, self.hub, spec, resolved, ram).await?);
        Ok(())
    }

    /// The same for a guest that comes by checkpoints.
    async fn receive_guest(&mut self, move_id: String, spec: VmSpec, resolved: Resolved) -> Result<(), ApiError> {
        let expected = landing::Expected { move_id, from: self.source.clone(), spec, resolved };
        let ram = self.take_ram()?;
        self.vm = Some(arrival::expect_landing(self.daemon, self.hub, expected, ram).await?);
        Ok(())
    }

    fn take_ram(&mut self) -> Result<mpsc::Receiver<Message>, ApiError> {
        self.ram.take().ok_or_else(|| {
            ApiError::refused("a guest was announced already in this session").then("begin a new session")
        })
    }

    async fn load_guest(&self, vm: &str, checkpoint: u64) -> Result<(), ApiError> {
        let landing = self.daemon.moves.landing(vm);
        let landing = landing.ok_or_else(|| ApiError::refused(format!("VM '{vm}' does not land here")))?;
        tokio::task::spawn_blocking(move || landing.load(checkpoint)).await.map_err(ApiError::internal)?
    }

    async fn await_guest(&mut self) -> Result<(), ApiError> {
        let none = || ApiError::refused("no guest was announced in this session");
        self.vm.as_mut().ok_or_else(none)?.running().await
    }

    /// Whether a guest of this name lives on this node. One that still waits for memory of a session before this one
    /// never will, and ends.
    async fn has_guest(&self, vm: String) -> Result<bool, ApiError> {
        let (daemon, vms, is_pending) = (Arc::clone(self.daemon), Arc::clone(&self.daemon.vms), self.vm.is_some());
        let look = move || {
            if let Err(error) = landing::run_if_taken(&daemon, &vm) {
                tracing::error!(vm, %error, "it was given to this node, and does not run");
            }
            if !is_pending {
                arrival::end_waiting(&vms, &vm)?;
            }
            let qemu = vms.get(&vm).ok().and_then(|vm| vm.qemu());
            let status = qemu.and_then(|qemu| qemu.qmp().query_status().ok());
            // Somebody may have stopped it since.
            Ok(status.is_some_and(|status| matches!(status.state, RunState::Running | RunState::Paused)))
        };
        tokio::task::spawn_blocking(look).await.map_err(ApiError::internal)?
    }

    /// The guest will not come: its QEMU ends, also one that has loaded it in an earlier session. One that runs already is
    /// left alone.
    async fn withdraw(&mut self, vm: Option<String>) -> Result<bool, ApiError> {
        if let Some(vm) = self.vm.take_if(|vm| vm.is_pending()) {
            vm.withdraw(self.daemon).await?;
            return Ok(true);
        }
        match vm {
            Some(vm) => self.give_up(vm).await,
            None => Ok(false),
        }
    }

    /// The source has not given a guest away that may be loaded here: what is here of it goes.
    async fn give_up(&self, vm: String) -> Result<bool, ApiError> {
        let daemon = Arc::clone(self.daemon);
        tokio::task::spawn_blocking(move || landing::give_up(&daemon, &vm)).await.map_err(ApiError::internal)?
    }

    // ---- ends -----------------------------------------------------------------------------------------------

    /// Everything is here: the source is let go.
    fn release(&mut self, stream: Stream) -> Result<(), ApiError> {
        if self.confirmed.contains(&stream) {
            return Ok(());
        }
        let handle = Arc::clone(&self.held(stream)?.handle);
        if matches!(handle.record().standing, StandingRecord::Primary) {
            return Ok(());
        }
        handle.volume.make_whole()?;
        self.daemon.keeper.update(&handle, |record| {
            record.standing = StandingRecord::Primary;
            record.move_id = None;
            record.handover = None;
        })?;
        Ok(handle.volume.release()?)
    }

    /// The move is off: the spare copy goes.
    async fn abandon(&mut self, stream: Stream) -> Result<(), ApiError> {
        let Some(held) = self.volumes.remove(&stream) else { return Ok(()) };
        if !matches!(held.handle.record().standing, StandingRecord::Shadow(_)) {
            return Err(ApiError::refused(format!(
                "volume '{}' is no spare copy any more: it is {}",
                held.handle.record().name,
                held.handle.role()
            )));
        }
        if let Some(vm) = landing::with_volume(self.daemon, &held.handle.record().name) {
            self.give_up(vm).await?;
        }
        stray::discard(self.daemon, &held.handle).await
    }

    /// The session is over; what is here stays.
    async fn let_go(&mut self) {
        for held in self.volumes.values() {
            if let Some(shadow) = held.handle.volume.shadow() {
                shadow.detach();
            }
        }
        self.back.end(self.daemon).await;
        self.seat.let_go(self.daemon).await;
        for held in self.volumes.values() {
            doubt::ask_when_alone(self.daemon, &held.handle);
        }
        if let Some(vm) = self.vm.as_ref().and_then(Arrival::may_be_ours) {
            return landing::ask_when_alone(self.daemon, vm);
        }
        // A guest whose memory stopped coming never runs; QEMU ends by itself when its stream is cut, but the record
        // of it must not stay.
        if let Err(error) = self.withdraw(None).await {
            tracing::warn!(%error, "the QEMU of a guest that did not come could not be ended");
        }
    }

    /// Bitmaps and handovers.
    async fn take_in(&mut self, message: Message) {
        let stream = match &message {
            Message::Bitmap { stream, .. } | Message::Handover { stream, .. } => *stream,
            other => return tracing::warn!(kind = %other.kind(), "unexpected at a destination"),
        };
        if let Message::Handover { epoch, step, .. } = message
            && self.back.hear(self.hub, stream, epoch, step).await
        {
            return;
        }
        let Some(held) = self.volumes.get_mut(&stream) else {
            return tracing::warn!(%stream, "a handover of a volume that was not opened was ignored");
        };
        if let Err(error) = held.receiver.take_in(self.daemon, &held.handle, self.hub, message).await {
            tracing::error!(%error, volume = held.handle.record().name, "the handover cannot go on");
        }
        if held.receiver.state() == TakerState::Taken
            && let Some(vm) = landing::with_volume(self.daemon, &held.handle.record().name)
        {
            let daemon = Arc::clone(self.daemon);
            // Not waited for, because the next volume may be on its way. What comes of it is asked.
            tokio::task::spawn_blocking(move || landing::run_if_taken(&daemon, &vm));
        }
    }

    fn held(&self, stream: Stream) -> Result<&Held, ApiError> {
        self.volumes
            .get(&stream)
            .ok_or_else(|| ApiError::refused(format!("stream {stream} was not opened in this session")))
    }
}

/// Whether a source that speaks from `boot` still has in memory what it had when it spoke from `known`.
fn is_same_boot(known: Option<[u8; 16]>, boot: Option<[u8; 16]>) -> bool {
    known.is_some() && known == boot
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_boot_that_is_known_and_the_same_keeps_memory() {
        let (one, other) = (Some([1; 16]), Some([2; 16]));
        let table =
            [(one, one, true), (one, other, false), (None, one, false), (one, None, false), (None, None, false)];
        for (known, boot, same) in table {
            assert_eq!(is_same_boot(known, boot), same, "{known:?} {boot:?}");
        }
    }
}
