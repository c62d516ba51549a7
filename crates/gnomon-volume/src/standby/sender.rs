//! The primary's side of a standby: a first copy, then each write soon after it was made, turn by turn.
//!
//! ```text
//!             first copy done            fault, or stop
//!   Copying ──────────────────► InStep ─────────────────► Ended
//!      Push … PushAck             Mirror … Turn … Turned
//! ```
//! What the standby may lack is the outbox, and nothing else: in the first copy it shrinks by each answered push, in step
//! by each sealed turn. When the session is lost it says what the next one has to carry.

mod copying;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant as Clock},
};

use gnomon_proto::frame::{Change, Content, Mark, Message, Settlement, Stream};
use gnomon_terms::{BlockCount, Bytes, Epoch, Extent};
use parking_lot::{Condvar, Mutex};

use super::{
    Has,
    error::SenderError,
    ledger::{BadTurn, Step, Taken, pieces},
    turns::Turns,
};
use crate::{
    disk::{Disk, FileDisk, Follower, layered::is_zero},
    mover::read_content,
    outbox::Outbox,
    stripes::{STRIPE_BLOCKS, Stripes, split},
    verify::{Asker, Compared, Replies, Side, VerifyError},
    volume::Volume,
    wire::Wire,
};

/// What is kept in memory for turns on their way, while the guest writes over it. At 1 Gbit/s this is half a second of
/// a guest that writes the same blocks over and over as fast as the link carries.
pub const COPIES: Bytes = Bytes(64 << 20);

/// How long the sender waits for a write before it looks whether it is to stop.
const LOOK: Duration = Duration::from_millis(500);

/// How long writes gather when all that was written has been sent: a block that is written over and over is sent a
/// thousand times a second, not as often as the link can.
const REST: Duration = Duration::from_millis(1);

/// What a sender is made of.
pub struct SenderParts {
    /// The volume, as the session numbers it.
    pub stream: Stream,
    /// The volume's epoch.
    pub epoch: Epoch,
    /// The bytes.
    pub local: Arc<FileDisk>,
    /// What the standby may lack.
    pub outbox: Arc<Outbox>,
    /// Locks shared with the guest's writes.
    pub stripes: Arc<Stripes>,
    /// Where the guest's writes are noted.
    pub turns: Arc<Turns>,
    /// The session.
    pub wire: Arc<dyn Wire>,
    /// How much may be kept for turns on their way ([`COPIES`]).
    pub copies: Bytes,
}

impl SenderParts {
    /// Those of a volume that notes its writes for the standby at a node ([`Volume::begin_standby`]).
    pub fn of(
        volume: &Volume,
        node: &str,
        stream: Stream,
        epoch: Epoch,
        wire: Arc<dyn Wire>,
    ) -> Result<SenderParts, SenderError> {
        let not_tracked = || SenderError::NotTracked { volume: volume.name().to_string() };
        let Follower { outbox, turns } = volume.standby(node).ok_or_else(not_tracked)?;
        Ok(SenderParts {
            stream,
            epoch,
            local: Arc::clone(volume.local()),
            outbox,
            stripes: Arc::clone(volume.stripes()),
            turns,
            wire,
            copies: COPIES,
        })
    }
}

/// How far a sender is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SenderPhase {
    /// The first copy is on its way: no turn can be marked.
    Copying,
    /// Writes follow as they are made.
    InStep,
    /// It was stopped, or has met a fault.
    Ended,
}

/// A sender, told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SenderState {
    /// How far it is.
    pub phase: SenderPhase,
    /// What the standby is not known to have.
    pub owed: BlockCount,
    /// What of it has not been sent.
    pub backlog: BlockCount,
    /// What is kept in memory for turns on their way.
    pub kept: Bytes,
    /// Bodies of frames since the session began.
    pub carried: Bytes,
    /// The newest turn the standby is known to have sealed.
    pub sealed: Option<u64>,
    /// Why it ended, if it was not stopped.
    pub fault: Option<String>,
}

/// Keeps one standby of a volume in step. Lives as long as a session.
pub struct StandbySender {
    parts: SenderParts,
    state: Mutex<State>,
    changed: Condvar,
    replies: Replies,
    carried: AtomicU64,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct State {
    phase: SenderPhase,
    sealed: Option<u64>,
    fault: Option<Arc<SenderError>>,
    /// Pushes of the first copy that were not answered.
    in_flight: HashMap<u64, Extent>,
    pushes: u64,
}

impl StandbySender {
    /// Begins to keep a standby in step that has what it said when the session began. Its thread ends with
    /// [`StandbySender::stop`]; only one may be at work on a standby.
    pub fn start(parts: SenderParts, has: &Has) -> Arc<StandbySender> {
        if !has.kept {
            parts.outbox.owe(parts.outbox.map().whole());
        }
        let state = State {
            phase: SenderPhase::Copying,
            sealed: has.sealed,
            fault: None,
            in_flight: HashMap::new(),
            pushes: 0,
        };
        let sender = Arc::new(StandbySender {
            parts,
            state: Mutex::new(state),
            changed: Condvar::new(),
            replies: Replies::default(),
            carried: AtomicU64::new(0),
            thread: Mutex::new(None),
        });
        let (engine, sealed) = (Arc::clone(&sender), has.sealed);
        *sender.thread.lock() = Some(thread::spawn(move || engine.run(sealed)));
        sender
    }

    /// Waits until the standby is in step, at most `patience`; whether it is. An error if it will not be in this session.
    pub fn await_in_step(&self, patience: Duration) -> Result<bool, SenderError> {
        let until = Clock::now() + patience;
        let mut state = self.state.lock();
        while state.phase == SenderPhase::Copying && !self.changed.wait_until(&mut state, until).timed_out() {}
        match state.phase {
            SenderPhase::Copying => Ok(false),
            SenderPhase::InStep => Ok(true),
            SenderPhase::Ended => Err(SenderError::NotInStep),
        }
    }

    /// The guest stands for this turn, and its requests have drained: what it wrote so far belongs to this turn or one
    /// before, what it writes from now on to a later one. Waits for writes under way, and otherwise for nothing.
    pub fn mark(&self, turn: u64) -> Result<Mark, SenderError> {
        if self.state.lock().phase != SenderPhase::InStep {
            return Err(SenderError::NotInStep);
        }
        match self.parts.turns.close(turn) {
            None => Err(SenderError::NotInStep),
            Some(Ok(())) => Ok(Mark { stream: self.parts.stream, seq: turn }),
            Some(Err(BadTurn::NotNewer { newest })) => Err(SenderError::OutOfTurn { turn, newest }),
            Some(Err(_)) => Err(SenderError::Behind { turn }),
        }
    }

    /// How far it is. Costs nothing.
    pub fn phase(&self) -> SenderPhase {
        self.state.lock().phase
    }

    /// How it does. Looks at a bit for each block of the disk: some milliseconds for 1 TiB.
    pub fn state(&self) -> SenderState {
        let (unsent, kept) = self.parts.turns.with(|book| (book.unsent(), book.copied())).unwrap_or_default();
        let owed = self.parts.outbox.owed();
        let state = self.state.lock();
        let backlog = if state.phase == SenderPhase::InStep { BlockCount(unsent) } else { owed };
        SenderState {
            phase: state.phase,
            owed,
            backlog,
            kept: Bytes(kept),
            carried: Bytes(self.carried.load(Ordering::Relaxed)),
            sealed: state.sealed,
            fault: state.fault.as_ref().map(ToString::to_string),
        }
    }

    /// Takes in a message of the standby. Each class of a session may have a thread of its own.
    pub fn handle(&self, message: Message) {
        match message {
            Message::PushAck { seq, settled, .. } => self.on_push_ack(seq, settled),
            Message::Turned { turn, ok: true, .. } => self.on_sealed(turn),
            Message::Turned { ok: false, .. } => self.fail(SenderError::Refused),
            Message::Hashes { id, start, hashes, .. } => self.replies.answer(id, start, hashes),
            other => {
                tracing::warn!(kind = %other.kind(), "a message that no primary of a standby expects was ignored")
            }
        }
    }

    /// Compares this copy with the standby's: see [`crate::verify`]. Blocks until it is done.
    pub fn verify(&self, watch: &mut dyn FnMut(Bytes) -> bool) -> Result<Compared, VerifyError> {
        let SenderParts { local, stripes, outbox, wire, .. } = &self.parts;
        let (stripes, outbox) = (Arc::clone(stripes), Some(Arc::clone(outbox)));
        let ours = Side { local: local.clone(), stripes, valid: None, outbox };
        Asker { ours, replies: &self.replies, wire: &**wire, stream: self.parts.stream }.compare(watch)
    }

    /// Ends it, and waits until it has. The session must have been closed before, or it may wait for room in it.
    pub fn stop(&self) {
        self.end(None);
        self.replies.end();
        if let Some(Err(_)) = self.thread.lock().take().map(JoinHandle::join) {
            tracing::error!("the sender of a standby has panicked");
            self.parts.turns.end();
        }
    }

    // ---- the thread -----------------------------------------------------------------------------------------

    fn run(&self, sealed: Option<u64>) {
        let done = match sealed {
            // What it has must not be torn by a copy of no moment: what it lacks is the first turn.
            Some(_) => Ok(()),
            None => self.copy(),
        };
        if let Err(error) = done.and_then(|()| self.follow(sealed)) {
            self.fail(error);
        }
        self.parts.turns.end();
    }

    fn is_ended(&self) -> bool {
        self.state.lock().phase == SenderPhase::Ended
    }

    /// Sends each write soon after it was made.
    fn follow(&self, sealed: Option<u64>) -> Result<(), SenderError> {
        let SenderParts { turns, outbox, copies, .. } = &self.parts;
        if self.is_ended() {
            return Ok(());
        }
        turns.begin(sealed.unwrap_or(0), copies.0);
        turns.owe(&outbox.owed_runs(outbox.map().whole()));
        self.turn_to(SenderPhase::InStep);
        let (mut last, mut rested) = (0, Clock::now());
        while !self.is_ended() {
            match turns.next(LOOK, rested) {
                None => {}
                Some(Step::Stripe { stripe, .. }) => self.send_stripe(stripe, &mut last)?,
                Some(Step::End { turn, whole }) => self.send_end(turn, whole, last)?,
            }
            if turns.with(|book| book.next().is_none()) == Some(true) {
                rested = Clock::now() + REST;
            }
        }
        Ok(())
    }

    fn send_end(&self, turn: u64, whole: bool, last: u64) -> Result<(), SenderError> {
        if !whole {
            tracing::warn!(turn, "a turn of a standby is void: the guest overwrote more than is kept for the link");
        }
        // First, for the answer may come at once.
        self.parts.turns.ended(turn);
        let (stream, epoch) = (self.parts.stream, self.parts.epoch);
        Ok(self.parts.wire.send(Message::Turn { stream, epoch, turn, last, whole })?)
    }

    fn send_stripe(&self, stripe: u64, last: &mut u64) -> Result<(), SenderError> {
        for (extent, content) in self.read_stripe(stripe)? {
            let (stream, epoch) = (self.parts.stream, self.parts.epoch);
            *last += 1;
            let at = extent.start.byte();
            let len = extent.bytes().0.min(self.parts.local.size().0 - at) as u32;
            let change = match content {
                Content::Zero => Change::Zero,
                Content::Data(data) => {
                    self.carried.fetch_add(data.len() as u64, Ordering::Relaxed);
                    Change::Data(data)
                }
            };
            self.parts.wire.send(Message::Mirror { stream, epoch, seq: *last, at, len, change })?;
        }
        Ok(())
    }

    /// What of a stripe is to be sent now, as it was at the end of its turn. Read under the lock that writers need: what
    /// was taken cannot change before it was read.
    fn read_stripe(&self, stripe: u64) -> Result<Vec<(Extent, Content)>, SenderError> {
        let SenderParts { local, outbox, stripes, turns, .. } = &self.parts;
        let _guard = stripes.lock(Extent::new(stripe * STRIPE_BLOCKS, 1));
        let Taken { runs, mut copies } = turns.take(stripe);
        let mut read = Vec::new();
        for piece in runs.iter().flat_map(|run| pieces(*run, &copies)).collect::<Vec<_>>() {
            let content = match copies.remove(&piece.start.0) {
                Some(copy) if is_zero(&copy) => Content::Zero,
                Some(copy) => Content::Data(copy.into_vec()),
                None => {
                    outbox.take(piece);
                    read_content(&**local, piece)?
                }
            };
            read.push((piece, content));
        }
        Ok(read)
    }

    // ---- answers --------------------------------------------------------------------------------------------

    fn on_push_ack(&self, seq: u64, settled: Settlement) {
        let Some(extent) = self.state.lock().in_flight.get(&seq).copied() else {
            return tracing::debug!(seq, "an answer to nothing in flight was ignored");
        };
        if matches!(settled, Settlement::Failed | Settlement::Stale) {
            return self.fail(SenderError::Refused);
        }
        self.acknowledge(split(extent));
        self.state.lock().in_flight.remove(&seq);
        self.changed.notify_all();
    }

    fn on_sealed(&self, turn: u64) {
        let had = match self.parts.turns.seal(turn) {
            None => return,
            Some(Err(_)) => return self.fail(SenderError::NeverSent { claimed: turn }),
            Some(Ok(had)) => had,
        };
        for (stripe, _) in had.stripes() {
            let _guard = self.parts.stripes.lock(Extent::new(stripe * STRIPE_BLOCKS, 1));
            for run in self.parts.turns.settled(&had, stripe) {
                self.parts.outbox.acknowledge(run);
            }
        }
        let mut state = self.state.lock();
        state.sealed = state.sealed.max(Some(turn));
        self.changed.notify_all();
    }

    fn acknowledge(&self, pieces: impl Iterator<Item = Extent>) {
        for piece in pieces {
            let _guard = self.parts.stripes.lock(piece);
            self.parts.outbox.acknowledge(piece);
        }
    }

    // ---- phases ---------------------------------------------------------------------------------------------

    fn turn_to(&self, phase: SenderPhase) {
        let mut state = self.state.lock();
        if state.phase != SenderPhase::Ended {
            state.phase = phase;
        }
        self.changed.notify_all();
    }

    fn fail(&self, error: SenderError) {
        tracing::warn!(%error, "a standby is no longer kept in step");
        self.end(Some(error));
    }

    fn end(&self, fault: Option<SenderError>) {
        let mut state = self.state.lock();
        state.phase = SenderPhase::Ended;
        state.fault = state.fault.take().or(fault.map(Arc::new));
        self.changed.notify_all();
        drop(state);
        self.parts.turns.wake();
    }
}
