//! The destination of a move: the receiving side.
//!
//! ```text
//!   link ──Push─────► handle ──apply──► local disk + valid ──PushAck──► link
//!   guest's read that misses ──Peer::fetch──► Fetch ──► … ──Fetched──► handle ──► the reader, and the local disk
//!   guest's write ──Peer::offer──► mirror ──Mirror──► link ──MirrorAck──► handle ──► outbox
//! ```
//!
//! While *priming*, the volume is passive here: every push is newer than what is there and replaces it. While
//! *draining*, the guest runs here: a copy fills what is missing and nothing else. Which of the two it is, and in
//! which epoch, is set by the handover; frames of another epoch are answered with `Stale`.
//!
//! A session may end and another begin. Readers that wait keep waiting and their fetches are asked again; writes
//! that were not acknowledged are still owed in the outbox and are sent again.

mod fetches;
mod mirror;

use std::{
    sync::{Arc, Weak},
    thread,
    time::Duration,
};

use gnomon_proto::frame::{Content, MAX_ACCESSES, Message, Settlement, Stream, Touch};
use gnomon_terms::{Access, BlockCount, Bytes, Epoch, Event, Extent, Op, ResourceId, Settled};
use parking_lot::{Mutex, RwLock};

use self::{fetches::Fetches, mirror::Mirror};
use crate::{
    blockmap::BlockMap,
    disk::{
        Disk, DiskError, FileDisk,
        layered::{FlushTicket, Onto, Peer, apply_copy, fits},
    },
    mover::Phase,
    outbox::Outbox,
    stripes::Stripes,
    tap::Tap,
    unflushed::Unflushed,
    verify::{Asker, Compared, Replies, Side, VerifyError},
    wire::{Wire, WireClosed},
};

/// What a shadow is made of.
pub struct ShadowParts {
    /// The volume, as this node numbers it.
    pub resource: ResourceId,
    /// The volume, as the session numbers it.
    pub stream: Stream,
    /// The name of the node that has, or had, the guest.
    pub peer: String,
    /// The bytes.
    pub local: Arc<FileDisk>,
    /// Which blocks are valid here.
    pub valid: Arc<BlockMap>,
    /// What the source lacks since the guest runs here.
    pub outbox: Arc<Outbox>,
    /// What the source has acknowledged and may still lose. Bits of a process before this one are believed.
    pub unflushed: Unflushed,
    /// Locks shared with the guest's writes.
    pub stripes: Arc<Stripes>,
    /// Where stalled reads are told.
    pub tap: Arc<Tap>,
    /// Whether the guest's writes are mirrored back to the source.
    pub reverse: bool,
    /// How long a guest's request waits for a source that is gone.
    pub patience: Duration,
    /// How long a guest's flush waits for a source that is gone before mirroring is given up until it returns.
    pub mirror_patience: Duration,
    /// Where the guest runs.
    pub phase: Phase,
    /// The epoch of the frames to accept.
    pub epoch: Epoch,
}

/// The destination engine of one volume's move. Outlives sessions; ends with the move.
pub struct Shadow {
    parts: ShadowParts,
    state: RwLock<(Epoch, Phase)>,
    wire: RwLock<Option<Arc<dyn Wire>>>,
    fetches: Fetches,
    mirror: Mirror,
    replies: Replies,
    fault: Mutex<Option<String>>,
}

impl Shadow {
    /// Starts the engine, without a session yet. Its thread ends when the last handle is dropped.
    pub fn start(parts: ShadowParts) -> Arc<Shadow> {
        let shadow = Arc::new(Shadow {
            state: RwLock::new((parts.epoch, parts.phase)),
            wire: RwLock::new(None),
            fetches: Fetches::default(),
            mirror: Mirror::default(),
            replies: Replies::default(),
            fault: Mutex::new(None),
            parts,
        });
        let weak = Arc::downgrade(&shadow);
        thread::spawn(move || mirror_all(&weak));
        shadow
    }

    /// A session with the source has begun: asks again what is waited for, and sends again what is owed.
    pub fn attach(&self, wire: Arc<dyn Wire>) {
        *self.wire.write() = Some(wire);
        if self.parts.reverse && self.state.read().1 == Phase::Draining {
            self.mirror.restart(self.parts.outbox.owed_runs(self.parts.valid.whole()));
        }
        for (id, extent) in self.fetches.attach() {
            self.ask(id, extent);
        }
        self.mirror.attach();
    }

    /// Whoever waits for a block is refused: for a spare copy, which nobody reads but a QEMU that probes it and is about to
    /// be ended.
    pub fn refuse_readers(&self) {
        self.fetches.refuse();
    }

    /// The session has ended. Whoever waits goes on waiting, for as long as patience lasts.
    pub fn detach(&self) {
        *self.wire.write() = None;
        self.fetches.detach();
        self.replies.end();
        self.mirror.detach();
    }

    /// The epoch has been handed over: from now on the guest runs here.
    pub fn take_over(&self, epoch: Epoch) {
        *self.state.write() = (epoch, Phase::Draining);
    }

    /// The source's host has rebooted since it was last heard: mirrored writes that it had in memory only are owed
    /// again. Called while no session is attached.
    pub fn distrust_peer(&self) {
        self.parts.unflushed.owe_again(&self.parts.outbox);
    }

    /// What the source lacks of the writes here, or has in memory only.
    pub fn at_risk(&self) -> BlockCount {
        BlockCount(self.parts.outbox.owed().0 + self.parts.unflushed.count().0)
    }

    /// The move is over: whoever still waits is told so.
    pub fn stop(&self) {
        self.fetches.stop();
        self.replies.end();
        self.mirror.stop();
    }

    /// Why copies could not be stored lately, for the source's operator; taking it clears it.
    pub fn take_fault(&self) -> Option<String> {
        self.fault.lock().take()
    }

    /// Whether mirroring has been given up until the source returns.
    pub fn is_mirror_degraded(&self) -> bool {
        self.parts.reverse && self.mirror.is_degraded(self.parts.mirror_patience)
    }

    /// Compares this copy with the source's: see [`crate::verify`]. Blocks until it is done.
    pub fn verify(&self, watch: &mut dyn FnMut(Bytes) -> bool) -> Result<Compared, VerifyError> {
        let wire = self.wire.read().clone().ok_or(WireClosed)?;
        let (ours, stream) = (self.side(), self.parts.stream);
        Asker { ours, replies: &self.replies, wire: &*wire, stream }.compare(watch)
    }

    fn side(&self) -> Side {
        let ShadowParts { local, stripes, valid, outbox, .. } = &self.parts;
        let (local, stripes) = (local.clone(), Arc::clone(stripes));
        Side { local, stripes, valid: Some(Arc::clone(valid)), outbox: Some(Arc::clone(outbox)) }
    }

    /// Sends what the guest touched to the loop at the source. Dropped when there is no session: a forecast that
    /// misses some accesses costs time, never data.
    pub fn report(&self, events: &[Event]) {
        let touches: Vec<Touch> = events.iter().filter_map(touch_of).collect();
        for part in touches.chunks(MAX_ACCESSES) {
            let _ = self.send(Message::Accesses { stream: self.parts.stream, touches: part.to_vec() });
        }
    }

    /// Takes in a message of this move. May block for the local disk, so each class has a thread of its own.
    pub fn handle(&self, message: Message) {
        match message {
            Message::Push { epoch, seq, extent, content, .. } => self.on_push(epoch, seq, extent, &content),
            Message::Drop { epoch, seq, extent, .. } => self.on_drop(epoch, seq, extent),
            Message::Fetched { id, extent, answer, .. } => {
                self.fetches.answer(id, extent, answer, self.parts.local.size())
            }
            Message::MirrorAck { seq, durable, ok, .. } => self.on_mirror_ack(seq, durable, ok),
            Message::HashRange { id, extent, .. } => {
                let hashes = self.side().answer(extent);
                self.send(Message::Hashes { stream: self.parts.stream, id, start: extent.start, hashes });
            }
            Message::Hashes { id, start, hashes, .. } => self.replies.answer(id, start, hashes),
            other => {
                tracing::warn!(kind = %other.kind(), "a message that no destination of a move expects was ignored")
            }
        }
    }

    // ---- receiving ------------------------------------------------------------------------------------------

    fn on_push(&self, epoch: Epoch, seq: u64, extent: Extent, content: &Content) {
        // Held while the copy is applied: a handover waits for it, so no copy of the old epoch lands after it.
        let state = self.state.read();
        let settled = if epoch != state.0 || !fits(content, extent, self.parts.local.size()) {
            Settlement::Stale
        } else {
            let onto = if state.1 == Phase::Priming { Onto::Any } else { Onto::Missing };
            let parts = &self.parts;
            match apply_copy(&parts.local, &parts.valid, &parts.stripes, extent, content, onto) {
                Ok(Settled::Done) => {
                    parts.outbox.note_change(extent);
                    Settlement::Done
                }
                Ok(_) => Settlement::Needless,
                Err(error) => self.failed(error),
            }
        };
        drop(state);
        self.acknowledge(seq, settled);
    }

    fn on_drop(&self, epoch: Epoch, seq: u64, extent: Extent) {
        let state = self.state.read();
        let allowed = *state == (epoch, Phase::Priming) && fits(&Content::Zero, extent, self.parts.local.size());
        let settled = match allowed {
            false => Settlement::Stale,
            true => self.give_up(extent).map_or_else(|error| self.failed(error), |()| Settlement::Done),
        };
        drop(state);
        self.acknowledge(seq, settled);
    }

    /// Forgets a spare copy, then gives its storage back.
    fn give_up(&self, extent: Extent) -> Result<(), DiskError> {
        let (at, size) = (extent.start.byte(), self.parts.local.size().0);
        let len = extent.bytes().0.min(size - at);
        self.parts.valid.retract(&[extent]).map_err(DiskError::io("forget", at, len))?;
        self.parts.local.discard(at, len)
    }

    fn failed(&self, error: DiskError) -> Settlement {
        // One line for each time that the source has taken note: a full disk fails every copy.
        if self.fault.lock().replace(error.to_string()).is_none() {
            tracing::error!(%error, "copies cannot be stored");
        }
        Settlement::Failed
    }

    fn acknowledge(&self, seq: u64, settled: Settlement) {
        // Without a session the source has forgotten the push, and will ask what is here.
        let _ = self.send(Message::PushAck { stream: self.parts.stream, seq, settled });
    }

    fn on_mirror_ack(&self, seq: u64, durable: bool, ok: bool) {
        if !ok {
            *self.fault.lock() = Some(format!("{} could not store a mirrored write", self.parts.peer));
        }
        self.mirror.acknowledge(seq, durable, ok, &self.parts);
    }

    // ---- sending --------------------------------------------------------------------------------------------

    /// Sends if there is a session; false if there is none, or it has just ended.
    fn send(&self, message: Message) -> bool {
        let wire = self.wire.read().clone();
        wire.is_some_and(|wire| wire.send(message).is_ok())
    }

    fn ask(&self, id: u64, extent: Extent) {
        let epoch = self.state.read().0;
        self.send(Message::Fetch { stream: self.parts.stream, epoch, id, extent });
    }
}

impl Peer for Shadow {
    fn name(&self) -> String {
        self.parts.peer.clone()
    }

    fn fetch(&self, extent: Extent) -> Result<Arc<Content>, DiskError> {
        if let Some(id) = self.fetches.enter(extent) {
            self.ask(id, extent);
        }
        self.fetches.wait(extent, self.parts.patience).ok_or_else(|| DiskError::Unreachable {
            at: extent.start.byte(),
            len: extent.bytes().0,
            place: self.parts.peer.clone(),
        })
    }

    fn stalled(&self, extent: Extent) {
        let access = Access { at: self.parts.tap.now(), resource: self.parts.resource, extent, op: Op::Read };
        self.parts.tap.tell(Event::Stalled(access));
    }

    fn offer(&self, extent: Extent) {
        self.mirror.offer(extent);
    }

    fn ask_flush(&self) -> FlushTicket {
        self.mirror.ask_flush()
    }

    fn wait_flush(&self, ticket: FlushTicket) -> Result<(), DiskError> {
        self.mirror.wait_flush(ticket, self.parts.mirror_patience);
        Ok(())
    }
}

/// The mirror thread: carries out what the mirror's queue says, one thing at a time, until the shadow is gone.
fn mirror_all(shadow: &Weak<Shadow>) {
    loop {
        let Some(strong) = shadow.upgrade() else { return };
        let parts = &strong.parts;
        // Asked when there is something to send: the epoch may change while the mirror waits, and a guard held
        // meanwhile would hold up that very change.
        let epoch = || strong.state.read().0;
        let Some(messages) = strong.mirror.next(parts, epoch, Duration::from_millis(500)) else { return };
        for message in messages {
            if !strong.send(message) {
                break;
            }
        }
    }
}

/// What the source's loop needs to know of an event here.
fn touch_of(event: &Event) -> Option<Touch> {
    let (access, stalled) = match event {
        Event::Accessed(access) => (access, false),
        Event::Stalled(access) => (access, true),
        _ => return None,
    };
    let some = !access.extent.is_empty();
    some.then_some(Touch { at: access.at, extent: access.extent, op: access.op, stalled })
}
