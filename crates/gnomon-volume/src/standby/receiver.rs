//! The shadow's side of a standby: a volume that is always the primary's disk of one moment, and its journal.
//!
//! ```text
//!          first frame        Turn            seal               seal
//!   Nothing ────────► Filling ─────► based ──────────► Sealed n ──────────► Sealed n+1 …
//!                       │ Push, Mirror │ Mirror: journal    │ Mirror: journal
//!                       ▼ into volume  ▼                    ▼ apply: into volume
//!                     end: what came     end: what is not sealed is dropped       take_over: n is here to write
//!                     stays
//! ```
//! A copy that is begun anew is Nothing until the primary's first frame: only that says that the primary has heard of it
//! and owes everything. (An answer that was lost must not leave a copy behind that both take for the old one.)
//!
//! What is not sealed is not in a volume that is Sealed, and what is sealed is durable in its journal before anybody hears
//! of it. There are two steps to a turn, because a guest has several volumes and a memory: [`StandbyReceiver::seal`] can
//! be gone back from until [`StandbyReceiver::apply`] says that all of them have it.
//!
//! One lock, held while the journal or the volume is written: a session's threads and its owner take turns.

mod writing;

use std::{
    sync::Arc,
    time::{Duration, Instant as Clock},
};

use gnomon_proto::frame::{Change, Content, Message, Settlement, Stream};
use gnomon_terms::{Bytes, Epoch, Extent};
use parking_lot::{Condvar, Mutex};

use super::{
    Has, JOURNAL,
    error::StandbyError,
    journal::{FileMedium, Found, Journal, JournalError, Lineage, Medium, Say, Stand},
    stage::{NotStaged, Stage},
};
use crate::{
    blockmap::BootId,
    disk::{Disk, layered::fits},
    stripes::Stripes,
    verify::Side,
    volume::Volume,
    wire::Wire,
};

/// What a receiver is made of.
pub struct ReceiverParts {
    /// The volume, as the session numbers it.
    pub stream: Stream,
    /// The bytes. Nobody else writes them.
    pub local: Arc<dyn Disk>,
    /// Locks shared with whoever reads them.
    pub stripes: Arc<Stripes>,
    /// Where the journal is.
    pub medium: Box<dyn Medium>,
    /// The running kernel.
    pub boot: BootId,
}

impl ReceiverParts {
    /// Those of a volume that nobody writes here. Makes its journal, of so many bytes, if it has none.
    pub fn of(volume: &Volume, stream: Stream, journal: Option<Bytes>) -> Result<ReceiverParts, StandbyError> {
        let path = super::journal_path(volume.path());
        let medium = FileMedium::open(&path, journal.unwrap_or(JOURNAL)).map_err(JournalError::io("opened"))?;
        Ok(ReceiverParts {
            stream,
            local: volume.local().clone(),
            stripes: Arc::clone(volume.stripes()),
            medium: Box::new(medium),
            boot: volume.boot(),
        })
    }
}

/// The standby of one volume. Outlives sessions, and its process: see [`StandbyReceiver::open`].
pub struct StandbyReceiver {
    stream: Stream,
    local: Arc<dyn Disk>,
    stripes: Arc<Stripes>,
    boot: BootId,
    inner: Mutex<Inner>,
    changed: Condvar,
}

struct Inner {
    journal: Journal,
    stage: Stage,
    session: Option<Session>,
    /// The copy has become the disk of a turn that is not sealed: what follows is staged.
    based: bool,
    taken_over: bool,
}

#[derive(Clone)]
struct Session {
    epoch: Epoch,
    wire: Arc<dyn Wire>,
    /// The last mirrored write.
    last: u64,
}

impl StandbyReceiver {
    /// Opens a standby as its journal tells. What was sealed counts, whatever became of the process; the rest is dropped.
    pub fn open(parts: ReceiverParts) -> Result<Arc<StandbyReceiver>, StandbyError> {
        let ReceiverParts { stream, local, stripes, medium, boot } = parts;
        let mut journal = Journal::open(medium, local.size())?;
        let stage = match journal.slot().stand {
            Stand::Sealed(turn) => replay(&mut journal, turn)?,
            _ => Stage::default(),
        };
        let inner = Inner { journal, stage, session: None, based: false, taken_over: false };
        let inner = Mutex::new(inner);
        Ok(Arc::new(StandbyReceiver { stream, local, stripes, boot, inner, changed: Condvar::new() }))
    }

    /// The newest sealed turn: what a takeover goes on from. `None` while the copy is of no moment.
    pub fn sealed(&self) -> Option<u64> {
        self.inner.lock().stage.sealed()
    }

    /// Begins a session with a primary of this epoch, which owes so much and says which line of copies its book is
    /// about. What an earlier one had not sealed is dropped. A standby that could not stage what is owed, or is of
    /// another line, gives up the turn it has: it cannot be taken over until the next seal. Blocks for some syncs.
    pub fn begin(
        &self,
        lineage: Lineage,
        epoch: Epoch,
        owed: Bytes,
        wire: Arc<dyn Wire>,
    ) -> Result<Has, StandbyError> {
        let mut inner = self.inner.lock();
        let slot = *inner.journal.slot();
        if inner.taken_over {
            return Err(StandbyError::TakenOver);
        }
        if epoch < slot.epoch {
            return Err(StandbyError::OldEpoch { said: epoch, here: slot.epoch });
        }
        let is_same = slot.lineage == lineage;
        let may_stage = owed.0 <= inner.journal.capacity() / 2;
        let (sealed, kept) = match slot.stand {
            Stand::Sealed(_) if is_same => (self.settle(&mut inner)?.filter(|_| may_stage), true),
            Stand::Filling(boot) => (None, is_same && boot == self.boot),
            _ => (None, false),
        };
        let stand = match sealed {
            Some(turn) => Stand::Sealed(turn),
            None if kept => Stand::Filling(self.boot),
            None => Stand::Nothing,
        };
        inner.journal.restart(lineage, epoch, stand)?;
        inner.stage = Stage::over(sealed, 0);
        inner.based = false;
        inner.session = Some(Session { epoch, wire, last: 0 });
        Ok(Has { sealed, kept })
    }

    /// The session is over: what was not sealed is dropped, and whoever waits for it is told.
    pub fn end(&self) {
        let mut inner = self.inner.lock();
        inner.session = None;
        self.changed.notify_all();
    }

    /// Takes in a message of the primary. Blocks for the disk. After an error the session is over, and the primary has
    /// been told if it can be.
    pub fn handle(&self, message: Message) -> Result<(), StandbyError> {
        if let Message::HashRange { id, extent, .. } = message {
            return self.answer_hashes(id, extent);
        }
        let mut inner = self.inner.lock();
        let taken = self.take(&mut inner, message);
        let Some(session) = inner.session.clone() else { return taken.map(drop) };
        let answer = match &taken {
            Ok(answer) => answer.clone(),
            Err(_) => {
                inner.session = None;
                Some(Message::Turned { stream: self.stream, turn: inner.stage.newest(), ok: false })
            }
        };
        drop(inner);
        self.changed.notify_all();
        if let Some(answer) = answer {
            // Without a link the primary asks at the next session what is here.
            let _ = session.wire.send(answer);
        }
        taken.map(drop)
    }

    /// Waits until a turn has arrived here, at most `patience`. It may be sealed then. An error if it never may.
    pub fn await_whole(&self, turn: u64, patience: Duration) -> Result<(), StandbyError> {
        let until = Clock::now() + patience;
        let mut inner = self.inner.lock();
        loop {
            match inner.stage.is_whole(turn) {
                Some(true) => return Ok(()),
                Some(false) => return Err(StandbyError::NotWhole { turn }),
                None if turn <= inner.stage.newest() => return Err(inner.out_of_turn(turn)),
                None if inner.session.is_none() => return Err(StandbyError::NoSession),
                None if self.changed.wait_until(&mut inner, until).timed_out() => {
                    return Err(StandbyError::Late { turn, after: patience });
                }
                None => {}
            }
        }
    }

    /// Makes a turn, which has arrived whole, durable. From here on a restart finds it; it can be gone back from until
    /// it is applied. A turn that was sealed before is applied. Blocks for a sync; the first for one of the volume.
    pub fn seal(&self, turn: u64) -> Result<(), StandbyError> {
        let mut inner = self.inner.lock();
        if inner.session.is_none() {
            return Err(StandbyError::NoSession);
        }
        inner.stage.check(turn).map_err(|error| inner.refused(error, turn))?;
        if let Stand::Filling(_) = inner.journal.slot().stand {
            return self.seal_first(&mut inner, turn);
        }
        if let Some(before) = inner.stage.sealed() {
            self.put(&mut inner, before)?;
        }
        // It counts here once it is durable.
        let found = self.log(&mut inner, Say::Seal { turn }, &[])?;
        inner.journal.seal()?;
        inner.stage.take(found).map_err(|error| inner.refused(error, turn))
    }

    /// A sealed turn is there for good, and the primary is told. Blocks while it is written into the volume.
    pub fn apply(&self, turn: u64) -> Result<(), StandbyError> {
        let mut inner = self.inner.lock();
        if inner.stage.sealed() < Some(turn) {
            return Err(inner.out_of_turn(turn));
        }
        self.put(&mut inner, turn)?;
        self.make_room(&mut inner)?;
        let wire = inner.session.as_ref().map(|session| Arc::clone(&session.wire));
        drop(inner);
        if let Some(wire) = wire {
            // Without a link the primary asks at the next session what is here.
            let _ = wire.send(Message::Turned { stream: self.stream, turn, ok: true });
        }
        Ok(())
    }

    /// What came after a sealed turn that was not applied never happened; `None`: no turn has. Ends the session. For a
    /// checkpoint that another part of the guest does not have, and after a restart, when the guest's volumes were
    /// sealed at different turns: all go back to the oldest of them.
    pub fn go_back(&self, to: Option<u64>) -> Result<(), StandbyError> {
        let mut inner = self.inner.lock();
        inner.session = None;
        self.changed.notify_all();
        let slot = *inner.journal.slot();
        match to {
            Some(turn) => {
                if !inner.stage.go_back(turn) {
                    return Err(inner.out_of_turn(turn));
                }
                let settled = self.settle(&mut inner)?.map_or(slot.stand, Stand::Sealed);
                inner.journal.restart(slot.lineage, slot.epoch, settled)?;
            }
            None => inner.journal.restart(slot.lineage, slot.epoch, Stand::Filling(self.boot))?,
        }
        inner.stage = Stage::over(to, 0);
        Ok(())
    }

    /// The volume is at the turn that is returned, durably, and no frame is taken any more: the caller makes this host
    /// its writer, at a newer epoch and on record, and then forgets the journal ([`super::forget`]). The primary must be
    /// dead or fenced. Can be called again.
    pub fn take_over(&self) -> Result<u64, StandbyError> {
        let mut inner = self.inner.lock();
        let slot = *inner.journal.slot();
        let Stand::Sealed(_) = slot.stand else { return Err(StandbyError::NothingSealed) };
        inner.session = None;
        self.changed.notify_all();
        let turn = self.settle(&mut inner)?.ok_or(StandbyError::NothingSealed)?;
        inner.journal.restart(slot.lineage, slot.epoch, Stand::Sealed(turn))?;
        inner.stage = Stage::over(Some(turn), 0);
        inner.taken_over = true;
        Ok(turn)
    }

    /// Reads the volume as it is at the turn that was applied last.
    pub fn read_at(&self, into: &mut [u8], at: u64) -> Result<(), StandbyError> {
        let _inner = self.inner.lock();
        Ok(self.local.read_at(into, at)?)
    }

    fn answer_hashes(&self, id: u64, extent: Extent) -> Result<(), StandbyError> {
        let wire = self.inner.lock().session.as_ref().map(|session| Arc::clone(&session.wire));
        let (local, stripes) = (Arc::clone(&self.local), Arc::clone(&self.stripes));
        let hashes = Side { local, stripes, valid: None, outbox: None }.answer(extent);
        if let Some(wire) = wire {
            let _ = wire.send(Message::Hashes { stream: self.stream, id, start: extent.start, hashes });
        }
        Ok(())
    }

    // ---- frames ---------------------------------------------------------------------------------------------

    /// The answer to a frame, if it gets one.
    fn take(&self, inner: &mut Inner, message: Message) -> Result<Option<Message>, StandbyError> {
        if inner.taken_over {
            return Err(StandbyError::TakenOver);
        }
        let kind = message.kind();
        match message {
            Message::Push { epoch, seq, extent, content, .. } => {
                inner.in_session(epoch)?;
                inner.hear_first(self.boot)?;
                if !inner.is_open() {
                    return Err(StandbyError::NotForUs { kind });
                }
                self.push(extent, &content)?;
                Ok(Some(Message::PushAck { stream: self.stream, seq, settled: Settlement::Done }))
            }
            Message::Mirror { epoch, seq, at, len, change, .. } => {
                inner.in_order(epoch, seq)?;
                inner.hear_first(self.boot)?;
                self.mirror(inner, at, len, &change).map(|()| None)
            }
            Message::Turn { epoch, turn, last, whole, .. } => {
                let session = inner.in_session(epoch)?;
                if last != session.last {
                    return Err(StandbyError::OutOfOrder { said: last, expected: session.last });
                }
                inner.hear_first(self.boot)?;
                self.end_turn(inner, turn, whole).map(|()| None)
            }
            _ => Err(StandbyError::NotForUs { kind }),
        }
    }

    fn push(&self, extent: Extent, content: &Content) -> Result<(), StandbyError> {
        if !fits(content, extent, self.local.size()) {
            let (at, len) = (extent.start.0, extent.len.0);
            return Err(StandbyError::OffDisk { at, len, size: self.local.size() });
        }
        self.write_blocks(extent, content)
    }

    fn mirror(&self, inner: &mut Inner, at: u64, len: u32, change: &Change) -> Result<(), StandbyError> {
        let (size, long) = (self.local.size(), u64::from(len));
        if at.checked_add(long).is_none_or(|end| end > size.0) {
            return Err(StandbyError::OffDisk { at, len: long, size });
        }
        match inner.is_open() {
            true => self.write_change(at, long, change),
            false => self.stage_change(inner, at, len, change),
        }
    }

    fn end_turn(&self, inner: &mut Inner, turn: u64, whole: bool) -> Result<(), StandbyError> {
        if turn <= inner.stage.newest() {
            return Err(inner.out_of_turn(turn));
        }
        let say = Say::Turn { turn, whole };
        if inner.is_open() && !whole {
            // The copy is of no moment after it as before.
            return inner.stage.take(Found { say, body: 0, end: 0 }).map_err(|error| inner.refused(error, turn));
        }
        self.append(inner, say, &[])?;
        inner.based = matches!(inner.journal.slot().stand, Stand::Filling(_));
        Ok(())
    }
}

impl Inner {
    /// Whether the copy is of no moment, so that what comes goes into it.
    fn is_open(&self) -> bool {
        matches!(self.journal.slot().stand, Stand::Filling(_)) && !self.based
    }

    /// A frame of the session has come: a copy that is begun anew is known to the primary.
    fn hear_first(&mut self, boot: BootId) -> Result<(), StandbyError> {
        let slot = *self.journal.slot();
        match slot.stand {
            Stand::Nothing => Ok(self.journal.restart(slot.lineage, slot.epoch, Stand::Filling(boot))?),
            _ => Ok(()),
        }
    }

    fn in_session(&mut self, epoch: Epoch) -> Result<&mut Session, StandbyError> {
        let session = self.session.as_mut().ok_or(StandbyError::NoSession)?;
        match epoch.cmp(&session.epoch) {
            std::cmp::Ordering::Less => Err(StandbyError::OldEpoch { said: epoch, here: session.epoch }),
            std::cmp::Ordering::Greater => Err(StandbyError::OtherEpoch { said: epoch, here: session.epoch }),
            std::cmp::Ordering::Equal => Ok(session),
        }
    }

    fn in_order(&mut self, epoch: Epoch, seq: u64) -> Result<(), StandbyError> {
        let session = self.in_session(epoch)?;
        if Some(seq) != session.last.checked_add(1) {
            return Err(StandbyError::OutOfOrder { said: seq, expected: session.last.saturating_add(1) });
        }
        session.last = seq;
        Ok(())
    }

    fn out_of_turn(&self, said: u64) -> StandbyError {
        StandbyError::OutOfTurn { said, newest: self.stage.newest() }
    }

    fn refused(&self, why: NotStaged, turn: u64) -> StandbyError {
        match why {
            NotStaged::Full => JournalError::Full { limit: Bytes(self.journal.capacity()) }.into(),
            NotStaged::OutOfTurn { newest } => StandbyError::OutOfTurn { said: turn, newest },
            NotStaged::NotWhole => StandbyError::NotWhole { turn },
        }
    }
}

/// What the journal of a volume that was sealed at `turn` has staged.
fn replay(journal: &mut Journal, turn: u64) -> Result<Stage, StandbyError> {
    let mut stage = Stage::over(Some(turn), journal.slot().tail);
    for found in journal.read()? {
        // Only a journal that was written by another program has a record that does not fit those before.
        let damaged = |_| JournalError::Corrupt { at: found.body, sealed: journal.slot().sealed_to };
        stage.take(found).map_err(damaged)?;
    }
    Ok(stage)
}
