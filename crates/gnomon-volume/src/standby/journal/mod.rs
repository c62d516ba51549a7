//! A standby's journal: the writes of turns that are not in the volume yet, beside it in NAME.raw.standby.
//!
//! ```text
//!   0        slot 0     what the volume is, where the log begins ([`slot`])
//!   4096     slot 1     the same; the newest that is durable is never written over
//!   8192     log        records one after the other ([`record`]), round and round
//!
//!            tail                        sealed              head
//!   ─────────┼───────────────────────────┼───────────────────┼──────── free ─────
//!            in the volume, not durably  │ staged
//! ```
//! A place in the log is counted from when the log was begun and never goes back; its byte is that, modulo the log's
//! length. A record says its place and is checked with a secret, so that reading ends at the head: at a record that was
//! torn when the daemon was killed, or at what an earlier round has left.
//!
//! A turn is sealed by one record and one sync. Only when that is durable the slot is told how far it got, without
//! another sync: so if the log cannot be read that far, it is not torn but damaged.

mod medium;
mod record;
mod slot;

use std::io;

use gnomon_terms::{Bytes, Epoch, ErrorKind};

pub use medium::{FileMedium, Medium};
pub(super) use record::Say;
pub use slot::Lineage;
pub(super) use slot::{Slot, Stand};

use record::{HEAD, LONGEST};
use slot::SLOT;

/// Where the second slot is.
const SLOTS: [u64; 2] = [0, 4096];
/// Where the log is.
const LOG_AT: u64 = 8192;
/// Kept free for records without a body: a log that is full of writes can still be sealed.
const SLACK: u64 = 64 * HEAD as u64;
/// The least that is of use: two writes of the longest kind.
const LEAST: u64 = LOG_AT + 2 * LONGEST as u64 + SLACK;

/// Why a journal cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// The file could not be made, read or written.
    #[error("the standby's journal could not be {deed}")]
    Io {
        /// opened, read, written or synced.
        deed: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file system is full.
    #[error("no space left for the standby's journal: free some on the file system that holds the volume")]
    NoSpace,
    /// The writes of turns that are not sealed do not fit.
    #[error("the writes of unsealed turns are more than {limit}: give the standby a larger journal, or begin anew")]
    Full {
        /// How much the log holds.
        limit: Bytes,
    },
    /// What was sealed cannot be read back.
    #[error("the standby's journal is damaged at {at}, before {sealed}, where it was sealed: begin the standby anew")]
    Corrupt {
        /// Where reading ended.
        at: u64,
        /// How far it should be read.
        sealed: u64,
    },
    /// The file is not the journal of this volume.
    #[error("the file of the standby's journal is not one of this volume ({why}): move it away to begin anew")]
    Foreign {
        /// What was found.
        why: &'static str,
    },
}

impl JournalError {
    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            JournalError::Io { .. } | JournalError::NoSpace | JournalError::Full { .. } => ErrorKind::Unavailable,
            JournalError::Corrupt { .. } | JournalError::Foreign { .. } => ErrorKind::Corrupt,
        }
    }

    /// Wraps what the system said.
    pub(super) fn io(deed: &'static str) -> impl FnOnce(io::Error) -> JournalError {
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => JournalError::NoSpace,
            _ => JournalError::Io { deed, source },
        }
    }
}

/// The journal of one volume.
pub(super) struct Journal {
    medium: Box<dyn Medium>,
    slot: Slot,
    /// The place of the newest slot that is durable.
    safe: usize,
    head: u64,
}

/// A record that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// What it says.
    pub say: Say,
    /// Where its body begins.
    pub body: u64,
    /// Where it ends.
    pub end: u64,
}

impl Journal {
    /// Opens, or makes, the journal of a volume of `size`.
    pub fn open(medium: Box<dyn Medium>, size: Bytes) -> Result<Journal, JournalError> {
        if medium.len() < LEAST {
            return Err(JournalError::Foreign { why: "it is too short" });
        }
        let (slots, is_new) = read_slots(&*medium)?;
        match slots {
            Some((_, slot)) if slot.size != size => Err(JournalError::Foreign { why: "the volume has another size" }),
            Some((safe, slot)) => Ok(Journal { head: slot.tail, medium, slot, safe }),
            None if is_new => Journal::make(medium, size),
            None => Err(JournalError::Foreign { why: "neither slot can be read" }),
        }
    }

    fn make(medium: Box<dyn Medium>, size: Bytes) -> Result<Journal, JournalError> {
        let key = medium.draw().map_err(JournalError::io("opened"))?;
        let (lineage, epoch, stand) = (Lineage::default(), Epoch(0), Stand::Nothing);
        let slot = Slot { number: 0, generation: 0, lineage, epoch, stand, size, tail: 0, sealed_to: 0, key };
        let mut journal = Journal { medium, slot, safe: 0, head: 0 };
        journal.note(slot)?;
        journal.secure()?;
        Ok(journal)
    }

    /// What it says of the volume.
    pub fn slot(&self) -> &Slot {
        &self.slot
    }

    /// How much the log holds.
    pub fn capacity(&self) -> u64 {
        self.medium.len() - LOG_AT
    }

    /// How much of it is in use.
    pub fn used(&self) -> u64 {
        self.head - self.slot.tail
    }

    /// Reads the log from its beginning; records can be appended after what was found.
    pub fn read(&mut self) -> Result<Vec<Found>, JournalError> {
        let mut found = Vec::new();
        self.head = self.slot.tail;
        while let Some(record) = self.read_one(self.head)? {
            self.head = record.end;
            found.push(record);
        }
        match self.head < self.slot.sealed_to {
            true => Err(JournalError::Corrupt { at: self.head, sealed: self.slot.sealed_to }),
            false => Ok(found),
        }
    }

    fn read_one(&self, pos: u64) -> Result<Option<Found>, JournalError> {
        let left = self.slot.tail + self.capacity() - pos;
        if left < HEAD as u64 {
            return Ok(None);
        }
        let mut head = [0; HEAD];
        self.load(&mut head, pos)?;
        let Some(say) = record::parse(&head, pos).filter(|say| (HEAD + say.body()) as u64 <= left) else {
            return Ok(None);
        };
        let body = self.body(pos + HEAD as u64, say.body())?;
        let is_true = record::is_true(&self.slot.key, self.slot.generation, &head, &body);
        let (body, end) = (pos + HEAD as u64, pos + (HEAD + say.body()) as u64);
        Ok(is_true.then_some(Found { say, body, end }))
    }

    /// The body of a record that was read or appended.
    pub fn body(&self, at: u64, len: usize) -> Result<Vec<u8>, JournalError> {
        let mut body = vec![0; len];
        self.load(&mut body, at)?;
        Ok(body)
    }

    /// Appends a record; it is durable after the next seal.
    pub fn append(&mut self, say: Say, body: &[u8]) -> Result<Found, JournalError> {
        debug_assert_eq!(say.body(), body.len(), "a body is as long as it is said to be");
        let (pos, len) = (self.head, (HEAD + body.len()) as u64);
        let slack = if body.is_empty() { 0 } else { SLACK };
        if self.used() + len + slack > self.capacity() {
            return Err(JournalError::Full { limit: Bytes(self.capacity()) });
        }
        let head = record::head(&self.slot.key, self.slot.generation, pos, say, body);
        self.store(&[&head[..], body].concat(), pos)?;
        self.head += len;
        Ok(Found { say, body: pos + HEAD as u64, end: self.head })
    }

    /// Makes everything appended so far durable, the last of it a seal.
    pub fn seal(&mut self) -> Result<(), JournalError> {
        self.sync()?;
        if let Err(error) = self.note(Slot { sealed_to: self.head, ..self.slot }) {
            // The seal is durable all the same.
            tracing::warn!(%error, "how far a standby was sealed could not be noted");
        }
        Ok(())
    }

    /// The log begins at `tail` from now on, and the volume is as `stand` says, durably, with what is before it.
    pub fn advance(&mut self, tail: u64, stand: Stand) -> Result<(), JournalError> {
        let (before, sealed_to) = (self.slot, self.slot.sealed_to.max(tail));
        self.note(Slot { tail, stand, sealed_to, ..before })?;
        // What is before the tail must not be written over until that is durable.
        self.secure().inspect_err(|_| self.slot = Slot { number: self.slot.number, ..before })
    }

    /// The log is empty from now on, and the volume is as `stand` says, durably. Both slots say so when this returns: no
    /// older one may be believed.
    pub fn restart(&mut self, lineage: Lineage, epoch: Epoch, stand: Stand) -> Result<(), JournalError> {
        let generation = self.slot.generation + 1;
        for _ in SLOTS {
            self.note(Slot { lineage, epoch, stand, generation, tail: 0, sealed_to: 0, ..self.slot })?;
            self.head = 0;
            self.secure()?;
        }
        Ok(())
    }

    /// Writes the slot, over the one that may be lost.
    fn note(&mut self, slot: Slot) -> Result<(), JournalError> {
        let slot = Slot { number: self.slot.number + 1, ..slot };
        self.medium.write_at(&slot.to_bytes(), SLOTS[1 - self.safe]).map_err(JournalError::io("written"))?;
        self.slot = slot;
        Ok(())
    }

    /// Makes the slot that was written last durable: the other one may be written over.
    fn secure(&mut self) -> Result<(), JournalError> {
        self.sync()?;
        self.safe = 1 - self.safe;
        Ok(())
    }

    fn sync(&mut self) -> Result<(), JournalError> {
        self.medium.sync().map_err(JournalError::io("synced"))
    }

    fn load(&self, into: &mut [u8], pos: u64) -> Result<(), JournalError> {
        let (at, here) = self.place(pos, into.len());
        let (first, second) = into.split_at_mut(here);
        let read = self.medium.read_at(first, at).and_then(|()| self.medium.read_at(second, LOG_AT));
        read.map_err(JournalError::io("read"))
    }

    fn store(&mut self, data: &[u8], pos: u64) -> Result<(), JournalError> {
        let (at, here) = self.place(pos, data.len());
        let (first, second) = data.split_at(here);
        let written = self.medium.write_at(first, at).and_then(|()| match second {
            [] => Ok(()),
            rest => self.medium.write_at(rest, LOG_AT),
        });
        written.map_err(JournalError::io("written"))
    }

    /// The byte of a place, and how much of `len` bytes fits before the log begins again.
    fn place(&self, pos: u64, len: usize) -> (u64, usize) {
        let at = pos % self.capacity();
        (LOG_AT + at, len.min((self.capacity() - at) as usize))
    }
}

/// The newest slot that is whole, and its place; and whether there never was one.
fn read_slots(medium: &dyn Medium) -> Result<(Option<(usize, Slot)>, bool), JournalError> {
    let mut bytes = [[0; SLOT]; 2];
    for (bytes, at) in bytes.iter_mut().zip(SLOTS) {
        medium.read_at(bytes, at).map_err(JournalError::io("read"))?;
    }
    let whole = bytes.iter().enumerate().filter_map(|(place, bytes)| Some((place, Slot::of_bytes(bytes)?)));
    let newest = whole.max_by_key(|(_, slot)| slot.number);
    // The first slot goes into place 1 and says nothing of a volume. If it is torn, the other was never written.
    Ok((newest, bytes[0] == [0; SLOT]))
}

#[cfg(test)]
mod tests;
