//! Where a standby writes: into its journal, and from there, or straight, into the volume.

use gnomon_proto::frame::{Change, Content};
use gnomon_terms::{Bytes, Extent};

use super::{Inner, StandbyError, StandbyReceiver};
use crate::{
    disk::layered,
    standby::{
        journal::{Found, JournalError, Say, Stand},
        stage::Write,
    },
    stripes::{split, split_bytes},
};

impl StandbyReceiver {
    /// Blocks of a first copy.
    pub(super) fn write_blocks(&self, extent: Extent, content: &Content) -> Result<(), StandbyError> {
        for piece in split(extent) {
            let _guard = self.stripes.lock(piece);
            layered::store(&*self.local, extent, piece, content)?;
        }
        Ok(())
    }

    /// A write that goes straight into the volume.
    pub(super) fn write_change(&self, at: u64, len: u64, change: &Change) -> Result<(), StandbyError> {
        let data = match change {
            Change::Data(data) => Some(&data[..]),
            Change::Zero | Change::Discard => None,
        };
        self.write(at, len, data)
    }

    fn write(&self, at: u64, len: u64, data: Option<&[u8]>) -> Result<(), StandbyError> {
        for (piece, long) in split_bytes(at, len) {
            let _guard = self.stripes.lock(Extent::touching(piece, long));
            match data {
                Some(data) => {
                    let from = (piece - at) as usize;
                    self.local.write_at(&data[from..from + long as usize], piece)?;
                }
                None => self.local.write_zeroes(piece, long, true)?,
            }
        }
        Ok(())
    }

    /// A write of a turn that is not sealed. Storage is reserved for it now: once it is sealed, a full disk must not be
    /// in its way.
    pub(super) fn stage_change(
        &self,
        inner: &mut Inner,
        at: u64,
        len: u32,
        change: &Change,
    ) -> Result<(), StandbyError> {
        let (say, body) = match change {
            Change::Data(data) => (Say::Data { at, len }, &data[..]),
            Change::Zero | Change::Discard => (Say::Zero { at, len }, &[][..]),
        };
        if !body.is_empty() {
            self.local.reserve(at, u64::from(len))?;
        }
        self.append(inner, say, body)
    }

    /// Appends a record and takes it into the book.
    pub(super) fn append(&self, inner: &mut Inner, say: Say, body: &[u8]) -> Result<(), StandbyError> {
        let (found, newest) = (self.log(inner, say, body)?, inner.stage.newest());
        inner.stage.take(found).map_err(|error| inner.refused(error, newest))
    }

    /// Appends a record, after making room for it if there is none.
    pub(super) fn log(&self, inner: &mut Inner, say: Say, body: &[u8]) -> Result<Found, StandbyError> {
        match inner.journal.append(say, body) {
            Err(JournalError::Full { .. }) => {
                self.reclaim(inner)?;
                Ok(inner.journal.append(say, body)?)
            }
            done => Ok(done?),
        }
    }

    /// The first seal of a copy that was of no moment. It claims nothing before the slot says so, so nothing is lost
    /// when this ends half way.
    pub(super) fn seal_first(&self, inner: &mut Inner, turn: u64) -> Result<(), StandbyError> {
        self.put_writes(inner, turn)?;
        self.local.flush()?;
        inner.stage.apply(turn);
        let tail = inner.stage.applied_to().unwrap_or_default();
        inner.journal.advance(tail, Stand::Sealed(turn))?;
        inner.based = false;
        Ok(())
    }

    /// Writes a sealed turn, and those before it, into the volume. Not durable there; it is in the journal.
    pub(super) fn put(&self, inner: &mut Inner, turn: u64) -> Result<(), StandbyError> {
        if inner.stage.applied() < Some(turn) {
            self.put_writes(inner, turn)?;
            inner.stage.apply(turn);
        }
        Ok(())
    }

    fn put_writes(&self, inner: &Inner, turn: u64) -> Result<(), StandbyError> {
        for Write { at, len, body } in inner.stage.writes_to(turn) {
            let data = body.map(|place| inner.journal.body(place, len as usize)).transpose()?;
            self.write(at, u64::from(len), data.as_deref())?;
        }
        Ok(())
    }

    /// Gives back the room of what is in the volume, when half of the journal is in use.
    pub(super) fn make_room(&self, inner: &mut Inner) -> Result<(), StandbyError> {
        match inner.journal.used() > inner.journal.capacity() / 2 {
            true => self.reclaim(inner),
            false => Ok(()),
        }
    }

    /// Gives back the room of what is in the volume, after making it durable there.
    fn reclaim(&self, inner: &mut Inner) -> Result<(), StandbyError> {
        let (Some(turn), Some(tail)) = (inner.stage.applied(), inner.stage.applied_to()) else { return Ok(()) };
        if tail > inner.journal.slot().tail {
            self.local.flush()?;
            inner.journal.advance(tail, Stand::Sealed(turn))?;
        }
        Ok(())
    }

    /// Writes all that is sealed into the volume and makes it durable there: the journal is of no more use. The turn the
    /// volume is at.
    pub(super) fn settle(&self, inner: &mut Inner) -> Result<Option<u64>, StandbyError> {
        let sealed = inner.stage.sealed();
        if let Some(turn) = sealed {
            self.put(inner, turn)?;
        }
        self.local.flush()?;
        Ok(sealed)
    }

    /// The size of the volume.
    pub fn size(&self) -> Bytes {
        self.local.size()
    }
}
