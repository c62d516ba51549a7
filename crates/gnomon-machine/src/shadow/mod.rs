//! The shadow's side: a second memory of the guest, always of a whole checkpoint, and a QEMU that waits on it.
//!
//! ```text
//!            begin            first Seal            Seal
//!   Nothing ──────► filling ────────────► has n ──────────► has n+1 …
//!                     │ pages go straight    │ pages are staged, applied by the Seal
//!                     ▼ in; no claim         ▼
//!                   error, end: Nothing    error, end: has n ── load ──► n is loaded ── take_over ──► n runs here
//! ```
//! Once devices are loaded no frame is taken: the memory is that QEMU's. A takeover loads them by itself when nobody
//! has before; a planned one has them loaded first, because up to then it can be called off.
//!
//! Before the first Seal nothing is claimed, so that the first copy of all memory needs no stage. From then on the
//! memory is that of a sealed checkpoint at every moment between two calls. What the last Seal replaced is kept, so
//! that one checkpoint can be undone ([`Shadow::revert`]) when the guest's volumes did not get as far.
//!
//! All of this is in memory: a shadow whose process ends has nothing, and is filled anew.
//!
//! A session is given up at the first frame that is not as it must be. The peer is told ([`Message::Sealed`] with `ok`
//! false), begins another one, and sends what it owes.

mod device;
mod error;
mod successor;

use std::{
    borrow::Cow,
    sync::Arc,
    time::{Duration, Instant},
};

use gnomon_proto::frame::{Mark, Message, Stream};
use gnomon_qemu::{STATE_LIMIT, StateBlob};
use gnomon_terms::{Bytes, Epoch, PageCount};

pub use error::{FailoverError, ShadowError};
pub use successor::{Ready, Successor};

use crate::{
    page::pack::Unpacker,
    ram::Ram,
    stage::{Stage, Undo},
    wire::Wire,
};
use device::Arriving;

/// What a shadow may keep aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Pages of one checkpoint. While the next one arrives, as many again are kept to undo the last.
    pub stage: PageCount,
    /// The state of devices.
    pub device: Bytes,
}

impl Default for Limits {
    /// 256 MiB of pages: what a guest changes in two seconds at 128 MiB/s, faster than most links carry.
    fn default() -> Limits {
        Limits { stage: PageCount(65_536), device: STATE_LIMIT }
    }
}

/// A checkpoint that the shadow has.
#[derive(Debug)]
pub struct Committed {
    /// Its epoch.
    pub epoch: Epoch,
    /// Its number.
    pub checkpoint: u64,
    /// How far the guest's volumes had got.
    pub marks: Vec<Mark>,
    /// Pages it changed; zero for the first.
    pub pages: PageCount,
    /// When it was applied.
    pub at: Instant,
    device: StateBlob,
}

/// A takeover, told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TookOver {
    /// Where the guest goes on from.
    pub checkpoint: u64,
    /// Its epoch: that of the host that is gone.
    pub epoch: Epoch,
    /// How far its volumes had got.
    pub marks: Vec<Mark>,
    /// How old the checkpoint was here.
    pub age: Duration,
    /// How long the devices took to load.
    pub loading: Duration,
    /// How long it took to make it run.
    pub starting: Duration,
}

/// The shadow of one guest.
pub struct Shadow<S: Successor> {
    stream: Stream,
    ram: Arc<dyn Ram>,
    limits: Limits,
    successor: Option<S>,
    /// The newest epoch that a session was begun with.
    epoch: Epoch,
    committed: Option<Committed>,
    before: Option<(Undo, Committed)>,
    session: Option<Session>,
    /// A QEMU that has loaded the guest, and how long that took.
    loaded: Option<(S::Loaded, Duration)>,
    taken_over: bool,
}

/// A checkpoint on its way in.
struct Session {
    epoch: Epoch,
    /// The least number that may come; the first frame says it.
    next: Option<u64>,
    pages: Stage,
    unpacker: Unpacker,
    device: Arriving,
}

impl<S: Successor> Shadow<S> {
    /// A shadow of a guest, with nothing in it. `ram` is the memory that `successor` maps.
    pub fn new(stream: Stream, ram: Arc<dyn Ram>, limits: Limits, successor: Option<S>) -> Shadow<S> {
        Shadow {
            stream,
            ram,
            limits,
            successor,
            epoch: Epoch(0),
            committed: None,
            before: None,
            session: None,
            loaded: None,
            taken_over: false,
        }
    }

    /// Another QEMU waits from now on, on the same memory.
    pub fn await_in(&mut self, successor: S) {
        self.successor = Some(successor);
    }

    /// The checkpoint it has.
    pub fn committed(&self) -> Option<&Committed> {
        self.committed.as_ref()
    }

    /// What a primary has to know to begin a session ([`crate::primary::Replicator::connect`]).
    pub fn has(&self) -> Option<(Epoch, u64)> {
        self.committed.as_ref().map(|committed| (committed.epoch, committed.checkpoint))
    }

    /// Begins a session with a primary of this epoch. One before is over, and what it had not sealed is dropped.
    pub fn begin(&mut self, epoch: Epoch) -> Result<(), ShadowError> {
        if self.is_over() {
            return Err(ShadowError::TakenOver);
        }
        if epoch < self.epoch {
            return Err(ShadowError::OldEpoch { said: epoch, here: self.epoch });
        }
        self.epoch = epoch;
        let device = Arriving::new(self.limits.device);
        let (pages, unpacker) = (Stage::new(self.limits.stage), Unpacker::default());
        self.session = Some(Session { epoch, next: None, pages, unpacker, device });
        Ok(())
    }

    /// Ends the session. What was not sealed is dropped.
    pub fn end(&mut self) {
        self.session = None;
    }

    /// Gives up the checkpoint it has, so that the memory can be filled anew without a stage. The guest cannot be taken
    /// over until the next Seal.
    pub fn start_over(&mut self) {
        if self.is_over() {
            return;
        }
        self.session = None;
        self.before = None;
        self.committed = None;
    }

    /// Takes a frame in, and answers a Seal on `wire`. Blocks while a checkpoint is applied. After an error the session
    /// is over, the peer has been told if it can be, and the shadow has the checkpoint it had.
    pub fn take(&mut self, message: Message, wire: &dyn Wire) -> Result<(), ShadowError> {
        let of = checkpoint_of(&message);
        let taken = self.frame(message);
        if taken.is_err() {
            self.session = None;
        }
        let (stream, ok) = (self.stream, taken.is_ok());
        match (taken, of) {
            (Ok(false), _) => Ok(()),
            (taken, Some(checkpoint)) => {
                let told = wire.send(Message::Sealed { stream, checkpoint, ok });
                taken.and(told.map_err(ShadowError::from))
            }
            (taken, None) => taken.map(drop),
        }
    }

    /// Has the QEMU that waits load the devices of the checkpoint it has, without running it; does nothing when that was
    /// done. From here on no frame is taken: the memory is that QEMU's. A guest that is not taken over after all has to
    /// be filled anew, in another shadow. Blocks for some 4 ms, the patience at most.
    pub fn load(&mut self, patience: Duration) -> Result<(), FailoverError> {
        if self.taken_over {
            return Err(FailoverError::Done);
        }
        if self.loaded.is_some() {
            return Ok(());
        }
        let committed = self.committed.as_ref().ok_or(FailoverError::Nothing)?;
        let successor = self.successor.take().ok_or(FailoverError::NobodyWaits)?;
        self.session = None;
        let (checkpoint, began) = (committed.checkpoint, Instant::now());
        let loaded = successor.load(&committed.device, patience);
        let loaded = loaded.map_err(|source| FailoverError::Load { checkpoint, source })?;
        self.loaded = Some((loaded, began.elapsed()));
        Ok(())
    }

    /// Makes the guest run here from the checkpoint it has. The primary must be dead or fenced, or two will run. Blocks
    /// for some 5 ms, twice the patience at most. From `Ok` on, no frame is taken any more.
    pub fn take_over(&mut self, patience: Duration) -> Result<TookOver, FailoverError> {
        self.load(patience)?;
        let (Some((loaded, loading)), Some(committed)) = (self.loaded.take(), &self.committed) else {
            return Err(FailoverError::Nothing);
        };
        // Whatever comes of it: it may run, and then the memory is its own.
        self.taken_over = true;
        let (checkpoint, began) = (committed.checkpoint, Instant::now());
        loaded.run(patience).map_err(|source| FailoverError::Run { checkpoint, source })?;
        Ok(TookOver {
            checkpoint,
            epoch: committed.epoch,
            marks: committed.marks.clone(),
            age: began - committed.at,
            loading,
            starting: began.elapsed(),
        })
    }

    /// Goes back to the checkpoint before, once; which that is. `None`, and nothing changed, if it is not known. The
    /// session is over.
    pub fn revert(&mut self) -> Option<u64> {
        if self.is_over() {
            return None;
        }
        let (undo, before) = self.before.take()?;
        self.session = None;
        undo.revert(&*self.ram);
        let checkpoint = before.checkpoint;
        self.committed = Some(before);
        Some(checkpoint)
    }

    /// Whether its memory is a QEMU's by now.
    fn is_over(&self) -> bool {
        self.taken_over || self.loaded.is_some()
    }

    /// Whether the frame was a Seal.
    fn frame(&mut self, message: Message) -> Result<bool, ShadowError> {
        match message {
            Message::Pages { stream, epoch, checkpoint, packed, body, .. } if stream == self.stream => {
                self.pages(epoch, checkpoint, packed, &body).map(|()| false)
            }
            Message::Device { stream, epoch, checkpoint, at, bytes } if stream == self.stream => {
                self.in_turn(epoch, checkpoint)?.device.take(at, &bytes).map(|()| false)
            }
            Message::Seal { stream, epoch, checkpoint, records, device, marks } if stream == self.stream => {
                self.seal(epoch, checkpoint, records, device, marks).map(|()| true)
            }
            other => Err(ShadowError::NotForUs { kind: other.kind() }),
        }
    }

    fn pages(&mut self, epoch: Epoch, checkpoint: u64, packed: bool, body: &[u8]) -> Result<(), ShadowError> {
        let (ram, claims) = (self.ram.clone(), self.committed.is_some());
        let session = self.in_turn(epoch, checkpoint)?;
        let body = if packed { Cow::Owned(session.unpacker.unpack(body)?) } else { Cow::Borrowed(body) };
        match claims {
            true => session.pages.take(&body, &*ram)?,
            false => session.pages.pass(&body, &*ram)?,
        }
        Ok(())
    }

    /// Everything that can fail comes before the first page is applied.
    fn seal(
        &mut self,
        epoch: Epoch,
        checkpoint: u64,
        records: u64,
        device: u32,
        marks: Vec<Mark>,
    ) -> Result<(), ShadowError> {
        let (limit, ram) = (self.limits.stage, self.ram.clone());
        let failed = |source| ShadowError::Device { checkpoint, source };
        let session = self.in_turn(epoch, checkpoint)?;
        let blob = StateBlob::of_bytes(session.device.close(device)?).map_err(failed)?;
        let stage = std::mem::replace(&mut session.pages, Stage::new(limit));
        session.next = Some(checkpoint.saturating_add(1));
        if let Some(successor) = &self.successor {
            successor.fits(&blob).map_err(failed)?;
        }
        let pages = stage.pages();
        let undo = stage.apply(records, &*ram)?;
        let new = Committed { epoch, checkpoint, marks, pages, at: Instant::now(), device: blob };
        self.before = self.committed.replace(new).map(|before| (undo, before));
        Ok(())
    }

    /// The session, if a frame of this epoch and checkpoint is in turn.
    fn in_turn(&mut self, epoch: Epoch, checkpoint: u64) -> Result<&mut Session, ShadowError> {
        if self.is_over() {
            return Err(ShadowError::TakenOver);
        }
        let has = self.has();
        let session = self.session.as_mut().ok_or(ShadowError::NoSession)?;
        match epoch.cmp(&session.epoch) {
            std::cmp::Ordering::Less => return Err(ShadowError::OldEpoch { said: epoch, here: session.epoch }),
            std::cmp::Ordering::Greater => return Err(ShadowError::OtherEpoch { said: epoch, here: session.epoch }),
            std::cmp::Ordering::Equal => {}
        }
        // Numbers that the guest's other shadows had a part in are left out here, also between pages and their Seal.
        let expected = session.next.unwrap_or_else(|| first_of_session(epoch, checkpoint, has));
        if checkpoint < expected {
            return Err(ShadowError::OutOfTurn { said: checkpoint, expected });
        }
        session.next = Some(checkpoint);
        Ok(session)
    }
}

/// A session begins with any checkpoint that is newer than what the shadow `has`.
fn first_of_session(epoch: Epoch, checkpoint: u64, has: Option<(Epoch, u64)>) -> u64 {
    match has {
        Some((of, newest)) if of == epoch => checkpoint.max(newest.saturating_add(1)),
        _ => checkpoint,
    }
}

/// Of which checkpoint a frame is.
fn checkpoint_of(message: &Message) -> Option<u64> {
    match message {
        Message::Pages { checkpoint, .. } | Message::Device { checkpoint, .. } | Message::Seal { checkpoint, .. } => {
            Some(*checkpoint)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_begins_after_what_the_shadow_has() {
        let table = [
            ("nothing", None, 4, 4),
            ("older", Some((Epoch(1), 3)), 4, 4),
            ("numbers may be left out between sessions", Some((Epoch(1), 3)), 6, 6),
            ("the same again", Some((Epoch(1), 4)), 4, 5),
            ("of another epoch", Some((Epoch(0), 9)), 4, 4),
        ];
        for (name, has, said, expected) in table {
            assert_eq!(first_of_session(Epoch(1), said, has), expected, "{name}");
        }
    }
}
