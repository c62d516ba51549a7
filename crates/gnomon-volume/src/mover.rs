//! The source of a move: carries what the loop asks for, and answers the destination.
//!
//! ```text
//!   loop ──Move──► begin ──► sender (one for each class) ──Push──► link
//!                              take · read · send
//!   link ──PushAck──► handle ──acknowledge──► outbox ──Settled──► tap ──► loop
//!        ──Fetch────► handle ──read local──► Fetched
//!        ──Mirror───► handle ──write local──► MirrorAck            (only while draining)
//! ```
//!
//! While *priming*, the guest runs here: a push carries the content of now, and a write makes it owed again. While
//! *draining*, the guest runs at the destination: what is owed no longer changes here, except by the writes that
//! the destination mirrors back. A frame of an epoch that is over is refused, so a late push or a late write of a
//! fenced guest never lands.
//!
//! Nothing here needs to survive a crash: what is owed is in the outbox's map file, and the destination says at
//! every new session which blocks it has.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant as Clock},
};

use gnomon_proto::{
    Class,
    frame::{Answer, Change, Content, Message, Settlement, Stream},
};
use gnomon_terms::{
    Access, Bytes, Epoch, Event, Extent, Move, MoveId, Outcome, Place, Priority, ResourceId, Settled, Verb,
};
use parking_lot::Mutex;

use crate::{
    disk::{
        Disk, DiskError, FileDisk,
        layered::{FETCH_BLOCKS, fits, is_zero},
    },
    outbox::Outbox,
    stripes::{Stripes, split},
    tap::Tap,
    verify::{Asker, Compared, Replies, Side, VerifyError},
    wire::Wire,
};

/// Where the guest runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Here; the destination has a spare copy in the making.
    Priming,
    /// At the destination, which lacks what is still owed.
    Draining,
}

/// What a mover is made of.
pub struct MoverParts {
    /// The volume, as the loop numbers it.
    pub resource: ResourceId,
    /// The destination, as the loop numbers it.
    pub place: Place,
    /// The volume, as the session numbers it.
    pub stream: Stream,
    /// The bytes.
    pub local: Arc<FileDisk>,
    /// What the destination lacks.
    pub outbox: Arc<Outbox>,
    /// Locks shared with the guest's writes.
    pub stripes: Arc<Stripes>,
    /// Where facts for the loop are told.
    pub tap: Arc<Tap>,
    /// The session.
    pub wire: Arc<dyn Wire>,
    /// Where the guest runs.
    pub phase: Phase,
    /// The volume's epoch.
    pub epoch: Epoch,
}

/// Bytes that crossed the link for a volume, by cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// For a guest that waited.
    pub demand: Bytes,
    /// Expected within the horizon.
    pub prefetch: Bytes,
    /// In the background.
    pub background: Bytes,
    /// Writes mirrored back.
    pub mirror: Bytes,
    /// Pushes that failed since the last one that did not: the destination is full or broken.
    pub failures_in_a_row: u64,
}

impl Carried {
    /// Bytes that were carried to the destination.
    pub fn pushed(&self) -> u64 {
        self.demand.0 + self.prefetch.0 + self.background.0
    }
}

/// The source engine of one volume's move. Lives as long as a session.
pub struct Mover {
    parts: MoverParts,
    state: Mutex<State>,
    /// Held while an acknowledgement is taken in: what is owed does not shrink while a handover decides.
    acknowledging: Mutex<()>,
    queues: [Mutex<Option<mpsc::Sender<Move>>>; 2],
    senders: Mutex<Vec<JoinHandle<()>>>,
    replies: Replies,
    demand: AtomicU64,
    prefetch: AtomicU64,
    background: AtomicU64,
    mirror: AtomicU64,
    failures: AtomicU64,
}

struct State {
    phase: Phase,
    epoch: Epoch,
    next_seq: u64,
    in_flight: HashMap<u64, InFlight>,
}

/// A push (or drop) that has not been acknowledged.
struct InFlight {
    id: MoveId,
    /// What the loop asked for.
    asked: Extent,
    /// What was sent of it.
    sent: Extent,
    verb: Verb,
    carried: Bytes,
    begun: Clock,
    /// A handover has come between: its acknowledgement acknowledges nothing.
    void: bool,
}

impl Mover {
    /// Starts the engine and its two senders, which end with [`Mover::stop`].
    pub fn start(parts: MoverParts) -> Arc<Mover> {
        let state = State { phase: parts.phase, epoch: parts.epoch, next_seq: 1, in_flight: HashMap::new() };
        let (prefetch, prefetch_moves) = mpsc::channel();
        let (background, background_moves) = mpsc::channel();
        let mover = Arc::new(Mover {
            parts,
            state: Mutex::new(state),
            acknowledging: Mutex::new(()),
            queues: [Mutex::new(Some(prefetch)), Mutex::new(Some(background))],
            senders: Mutex::default(),
            replies: Replies::default(),
            demand: AtomicU64::new(0),
            prefetch: AtomicU64::new(0),
            background: AtomicU64::new(0),
            mirror: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        });
        for (class, moves) in [(Class::Prefetch, prefetch_moves), (Class::Background, background_moves)] {
            let engine = Arc::clone(&mover);
            let sender = thread::spawn(move || engine.send_all(class, &moves));
            mover.senders.lock().push(sender);
        }
        mover
    }

    /// Takes a move over from the loop. Never blocks: the loop's window bounds how many there are.
    pub fn begin(&self, mv: Move) {
        let queue = &self.queues[usize::from(mv.priority == Priority::Background)];
        let queued = queue.lock().as_ref().is_some_and(|queue| queue.send(mv).is_ok());
        if !queued {
            self.settle(mv.id, Settled::Failed, Bytes(0), Duration::ZERO);
        }
    }

    /// The volume is about to be handed over at `epoch`: what is under way counts no more, and what is owed stays as
    /// it is until the destination speaks at that epoch.
    pub fn hand_over(&self, epoch: Epoch) {
        self.turn_to(epoch, Phase::Draining);
    }

    /// It was not handed over: the guest runs here, at `epoch`, as before.
    pub fn take_back(&self, epoch: Epoch) {
        self.turn_to(epoch, Phase::Priming);
    }

    fn turn_to(&self, epoch: Epoch, phase: Phase) {
        let _none = self.acknowledging.lock();
        let mut state = self.state.lock();
        (state.epoch, state.phase) = (epoch, phase);
        state.in_flight.values_mut().for_each(|flight| flight.void = true);
    }

    /// What has been carried so far.
    pub fn carried(&self) -> Carried {
        let load = |counter: &AtomicU64| Bytes(counter.load(Ordering::Relaxed));
        Carried {
            demand: load(&self.demand),
            prefetch: load(&self.prefetch),
            background: load(&self.background),
            mirror: load(&self.mirror),
            failures_in_a_row: self.failures.load(Ordering::Relaxed),
        }
    }

    /// Compares this copy with the destination's: see [`crate::verify`]. Blocks until it is done.
    pub fn verify(&self, watch: &mut dyn FnMut(Bytes) -> bool) -> Result<Compared, VerifyError> {
        let (ours, wire) = (self.side(), &*self.parts.wire);
        Asker { ours, replies: &self.replies, wire, stream: self.parts.stream }.compare(watch)
    }

    fn side(&self) -> Side {
        let MoverParts { local, stripes, outbox, .. } = &self.parts;
        let (local, stripes, outbox) = (local.clone(), Arc::clone(stripes), Some(Arc::clone(outbox)));
        Side { local, stripes, valid: None, outbox }
    }

    /// Ends the senders and waits for them; what is in flight settles as failed, so that the loop asks again. The
    /// session must have been closed before, or a sender may wait for room in it.
    ///
    /// The next engine may only start after this: with two senders at work, one could take a block that the other
    /// is about to hear acknowledged, and what was written in between would be forgotten.
    pub fn stop(&self) {
        for queue in &self.queues {
            queue.lock().take();
        }
        self.replies.end();
        let senders = std::mem::take(&mut *self.senders.lock());
        for sender in senders {
            if sender.join().is_err() {
                tracing::error!("a sender of a move has panicked");
            }
        }
        let in_flight: Vec<InFlight> = self.state.lock().in_flight.drain().map(|(_, flight)| flight).collect();
        for flight in in_flight {
            self.settle(flight.id, Settled::Failed, flight.carried, flight.begun.elapsed());
        }
    }

    /// Takes in a message of this move. May block for the local disk, so each class has a thread of its own.
    pub fn handle(&self, message: Message) {
        match message {
            Message::PushAck { seq, settled, .. } => self.on_ack(seq, settled),
            Message::Fetch { epoch, id, extent, .. } => self.on_fetch(epoch, id, extent),
            Message::Mirror { epoch, seq, at, len, change, .. } => self.on_mirror(epoch, seq, at, len, &change),
            Message::MirrorFlush { seq, .. } => self.on_mirror_flush(seq),
            Message::Accesses { touches, .. } => {
                for touch in touches {
                    self.on_touch(touch);
                }
            }
            Message::HashRange { id, extent, .. } => self.on_hash_range(id, extent),
            Message::Hashes { id, start, hashes, .. } => self.replies.answer(id, start, hashes),
            other => tracing::warn!(kind = %other.kind(), "a message that no source of a move expects was ignored"),
        }
    }

    // ---- carrying -------------------------------------------------------------------------------------------

    fn send_all(&self, class: Class, moves: &mpsc::Receiver<Move>) {
        while let Ok(mv) = moves.recv() {
            let begun = Clock::now();
            let sent = match mv.verb {
                Verb::Copy => self.send_copy(class, mv, begun),
                Verb::Drop => self.send_drop(mv, begun),
            };
            if let Err(settled) = sent {
                self.settle(mv.id, settled, Bytes(0), begun.elapsed());
            }
        }
    }

    /// Sends what is owed of the move's extent; `Err` tells how a move ended that was not sent.
    fn send_copy(&self, class: Class, mv: Move, begun: Clock) -> Result<(), Settled> {
        let sent = hull(&self.parts.outbox.owed_runs(mv.extent)).ok_or(Settled::Needless)?;
        let (epoch, seq) = self.reserve(mv, sent, begun)?;
        for piece in split(sent) {
            let _guard = self.parts.stripes.lock(piece);
            self.parts.outbox.take(piece);
        }
        let content = match read_content(&*self.parts.local, sent) {
            Ok(content) => content,
            Err(error) => {
                self.failures.fetch_add(1, Ordering::Relaxed);
                tracing::error!(%error, "the source cannot read what it has to copy");
                return self.release(seq);
            }
        };
        if let Content::Data(data) = &content {
            let counter = if class == Class::Prefetch { &self.prefetch } else { &self.background };
            counter.fetch_add(data.len() as u64, Ordering::Relaxed);
            if let Some(flight) = self.state.lock().in_flight.get_mut(&seq) {
                flight.carried = Bytes(data.len() as u64);
            }
        }
        self.send_reserved(seq, Message::Push { stream: self.parts.stream, epoch, seq, extent: sent, class, content })
    }

    /// Gives up the destination's spare copy: owed first, so that it is never believed to be there.
    fn send_drop(&self, mv: Move, begun: Clock) -> Result<(), Settled> {
        let (epoch, seq) = self.reserve(mv, mv.extent, begun)?;
        for piece in split(mv.extent) {
            let _guard = self.parts.stripes.lock(piece);
            self.parts.outbox.owe(piece);
        }
        self.send_reserved(seq, Message::Drop { stream: self.parts.stream, epoch, seq, extent: mv.extent })
    }

    /// Numbers a message over `sent`. Refused while another one over the same blocks is in flight: classes overtake
    /// each other, and an older content must never land on a newer one. That is not left to the loop to heed.
    fn reserve(&self, mv: Move, sent: Extent, begun: Clock) -> Result<(Epoch, u64), Settled> {
        let mut state = self.state.lock();
        if state.in_flight.values().any(|other| !other.sent.overlap(sent).is_empty()) {
            return Err(Settled::Failed);
        }
        let seq = state.next_seq;
        state.next_seq += 1;
        let flight =
            InFlight { id: mv.id, asked: mv.extent, sent, verb: mv.verb, carried: Bytes(0), begun, void: false };
        state.in_flight.insert(seq, flight);
        Ok((state.epoch, seq))
    }

    fn send_reserved(&self, seq: u64, message: Message) -> Result<(), Settled> {
        match self.parts.wire.send(message) {
            Ok(()) => Ok(()),
            Err(_) => self.release(seq),
        }
    }

    /// Takes back what was not sent. Whoever took it out first, this thread or `stop`, settles it.
    fn release(&self, seq: u64) -> Result<(), Settled> {
        match self.state.lock().in_flight.remove(&seq) {
            Some(_) => Err(Settled::Failed),
            None => Ok(()),
        }
    }

    fn on_ack(&self, seq: u64, settlement: Settlement) {
        let _guard = self.acknowledging.lock();
        let (void, copied) = match self.state.lock().in_flight.get(&seq) {
            Some(flight) => (flight.void, (flight.verb == Verb::Copy).then_some(flight.sent)),
            None => return tracing::debug!(seq, "an acknowledgement of nothing in flight was ignored"),
        };
        let settled = match settlement {
            _ if void => Settled::Failed,
            Settlement::Done => Settled::Done,
            Settlement::Needless => Settled::Needless,
            Settlement::Failed | Settlement::Stale => Settled::Failed,
        };
        // Acknowledged while it is still in flight: once it is not, another push may take the same blocks, and what
        // was written in between would look as if it had been acknowledged.
        match (settled, copied) {
            (Settled::Failed, _) => _ = self.failures.fetch_add(u64::from(!void), Ordering::Relaxed),
            (_, Some(sent)) => self.acknowledge(sent),
            (_, None) => {}
        }
        if settled != Settled::Failed {
            self.failures.store(0, Ordering::Relaxed);
        }
        let Some(flight) = self.state.lock().in_flight.remove(&seq) else { return };
        self.settle(flight.id, settled, flight.carried, flight.begun.elapsed());
        self.tell_outdated(flight.asked);
    }

    /// The destination has what was last taken of `extent`.
    fn acknowledge(&self, extent: Extent) {
        for piece in split(extent) {
            let _guard = self.parts.stripes.lock(piece);
            self.parts.outbox.acknowledge(piece);
        }
    }

    fn settle(&self, id: MoveId, settled: Settled, carried: Bytes, took: Duration) {
        self.parts.tap.tell(Event::Settled(Outcome { id, settled, carried, took }));
    }

    /// Says which blocks of a settled move are owed all the same: written meanwhile, or not sent.
    fn tell_outdated(&self, asked: Extent) {
        for extent in self.parts.outbox.owed_runs(asked) {
            let (resource, place) = (self.parts.resource, self.parts.place);
            self.parts.tap.tell(Event::Outdated { resource, extent, place });
        }
    }

    fn tell_covered(&self, extent: Extent) {
        self.acknowledge(extent);
        let (resource, place) = (self.parts.resource, self.parts.place);
        self.parts.tap.tell(Event::Covered { resource, extent, place });
    }

    // ---- answering ------------------------------------------------------------------------------------------

    fn on_fetch(&self, epoch: Epoch, id: u64, extent: Extent) {
        let (current, phase) = {
            let state = self.state.lock();
            (state.epoch, state.phase)
        };
        // A destination that has just taken over, or is about to, may be an epoch ahead or behind: what it lacks does not
        // change here meanwhile.
        let is_of_today = epoch.next() >= current && epoch <= current.next();
        let answer = if !is_of_today || !fits(&Content::Zero, extent, self.parts.local.size()) {
            Answer::Refused
        } else {
            match read_content(&*self.parts.local, extent) {
                Ok(content) => Answer::Blocks(content),
                Err(error) => {
                    tracing::error!(%error, "the source cannot read what the guest waits for");
                    Answer::Failed
                }
            }
        };
        let served = matches!(answer, Answer::Blocks(_));
        if let Answer::Blocks(Content::Data(data)) = &answer {
            self.demand.fetch_add(data.len() as u64, Ordering::Relaxed);
        }
        let sent = self.parts.wire.send(Message::Fetched { stream: self.parts.stream, id, extent, answer });
        // A destination of the epoch before only looks: it keeps nothing of what it reads.
        if served && sent.is_ok() && phase == Phase::Draining && epoch == current {
            self.tell_covered(extent);
        }
    }

    fn on_mirror(&self, epoch: Epoch, seq: u64, at: u64, len: u32, change: &Change) {
        let ok = match self.apply_mirror(epoch, at, u64::from(len), change) {
            Ok(()) => true,
            Err(error) => {
                tracing::error!(%error, "a mirrored write could not be stored: this copy is no longer whole");
                false
            }
        };
        // A closed link needs no acknowledgement: the destination sends again what it owes.
        let _ = self.parts.wire.send(Message::MirrorAck { stream: self.parts.stream, seq, durable: false, ok });
    }

    fn apply_mirror(&self, epoch: Epoch, at: u64, len: u64, change: &Change) -> Result<(), DiskError> {
        {
            let state = self.state.lock();
            if state.phase != Phase::Draining || epoch != state.epoch {
                return Err(DiskError::Fenced { why: format!("{epoch} does not write here at {}", state.epoch) });
            }
        }
        let size = self.parts.local.size().0;
        if at.checked_add(len).is_none_or(|end| end > size) {
            return Err(DiskError::Fenced { why: format!("{len} bytes at {at} are not on a disk of {size}") });
        }
        match change {
            Change::Data(data) => {
                self.mirror.fetch_add(len, Ordering::Relaxed);
                self.parts.local.write_at(data, at)?;
            }
            Change::Zero => self.parts.local.write_zeroes(at, len, true)?,
            Change::Discard => self.parts.local.discard(at, len)?,
        }
        let extent = Extent::touching(at, len);
        self.parts.outbox.note_change(extent);
        self.tell_covered(extent);
        Ok(())
    }

    fn on_mirror_flush(&self, seq: u64) {
        let ok = match self.parts.local.flush() {
            Ok(()) => true,
            Err(error) => {
                tracing::error!(%error, "mirrored writes could not be made durable");
                false
            }
        };
        let _ = self.parts.wire.send(Message::MirrorAck { stream: self.parts.stream, seq, durable: ok, ok });
    }

    fn on_hash_range(&self, id: u64, extent: Extent) {
        let hashes = self.side().answer(extent);
        // A closed link ends the comparison at the other side by itself.
        let _ = self.parts.wire.send(Message::Hashes { stream: self.parts.stream, id, start: extent.start, hashes });
    }

    /// The guest's access at the destination goes to the loop here. It says nothing of what is there: a write that the
    /// destination refused was an access too, and what is owed must not shrink by hearsay.
    fn on_touch(&self, touch: gnomon_proto::frame::Touch) {
        let blocks = self.parts.local.size().blocks();
        if touch.extent.start.0.checked_add(touch.extent.len.0).is_none_or(|end| end > blocks.0) {
            return tracing::warn!("an access past the end of the volume was ignored");
        }
        // Stamped with our clock: the loop must never see time run backwards.
        let access =
            Access { at: self.parts.tap.now(), resource: self.parts.resource, extent: touch.extent, op: touch.op };
        let event = if touch.stalled { Event::Stalled(access) } else { Event::Accessed(access) };
        self.parts.tap.tell(event);
    }
}

/// From the first block of the first run to the last of the last, at most [`FETCH_BLOCKS`]; what is cut off stays
/// owed, and the loop is told so when the move settles.
fn hull(runs: &[Extent]) -> Option<Extent> {
    let (first, last) = (runs.first()?, runs.last()?);
    let len = (last.end().0 - first.start.0).min(FETCH_BLOCKS);
    Some(Extent::new(first.start.0, len))
}

/// The content of `extent` on the local disk, cut at its end; zeroes are found out, so that they need no carrying.
pub fn read_content(local: &dyn Disk, extent: Extent) -> Result<Content, DiskError> {
    let at = extent.start.byte();
    let len = extent.bytes().0.min(local.size().0 - at);
    let segments = local.segments(at, len)?;
    if segments.iter().all(|segment| segment.zero) {
        return Ok(Content::Zero);
    }
    let mut data = vec![0; len as usize];
    local.read_at(&mut data, at)?;
    Ok(if is_zero(&data) { Content::Zero } else { Content::Data(data) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hull_spans_the_runs_and_is_bounded() {
        assert_eq!(hull(&[]), None);
        assert_eq!(hull(&[Extent::new(3, 2), Extent::new(9, 1)]), Some(Extent::new(3, 7)));
        assert_eq!(hull(&[Extent::new(0, 1), Extent::new(900, 1)]), Some(Extent::new(0, FETCH_BLOCKS)));
    }
}
