//! The primary while a shadow is being made of it: every write is noted as owed to the shadow.

use std::sync::Arc;

use gnomon_terms::{Bytes, Extent};

use super::{Disk, DiskError, FileDisk, Segment};
use crate::{
    outbox::Outbox,
    standby::Turns,
    stripes::{Stripes, split_bytes},
};

/// A local disk that remembers in an [`Outbox`] which blocks the shadow lacks since they were written.
pub struct TrackedDisk {
    /// Where the bytes are.
    pub local: Arc<FileDisk>,
    /// What the shadow lacks.
    pub outbox: Arc<Outbox>,
    /// Shared with the mover that takes and acknowledges.
    pub stripes: Arc<Stripes>,
    /// Which write belongs to which turn, if the shadow is a standby.
    pub turns: Arc<Turns>,
}

impl TrackedDisk {
    /// Notes and changes `at .. at + len` stripe by stripe; `deed` gets the offset and length of each piece.
    fn change(
        &self,
        at: u64,
        len: u64,
        mut deed: impl FnMut(u64, u64) -> Result<(), DiskError>,
    ) -> Result<(), DiskError> {
        let _within = self.turns.enter();
        for (at, len) in split_bytes(at, len) {
            let extent = Extent::touching(at, len);
            let _guard = self.stripes.lock(extent);
            self.outbox.note_write(extent);
            self.turns.before_write(&*self.local, extent);
            deed(at, len)?;
        }
        Ok(())
    }
}

impl Disk for TrackedDisk {
    fn size(&self) -> Bytes {
        self.local.size()
    }

    fn read_at(&self, into: &mut [u8], at: u64) -> Result<(), DiskError> {
        self.local.read_at(into, at)
    }

    fn write_at(&self, data: &[u8], at: u64) -> Result<(), DiskError> {
        self.change(at, data.len() as u64, |piece, len| {
            let from = (piece - at) as usize;
            self.local.write_at(&data[from..from + len as usize], piece)
        })
    }

    fn write_zeroes(&self, at: u64, len: u64, punch: bool) -> Result<(), DiskError> {
        self.change(at, len, |at, len| self.local.write_zeroes(at, len, punch))
    }

    fn discard(&self, at: u64, len: u64) -> Result<(), DiskError> {
        self.change(at, len, |at, len| self.local.discard(at, len))
    }

    fn flush(&self) -> Result<(), DiskError> {
        self.local.flush()
    }

    fn try_read_at(&self, into: &mut [u8], at: u64) -> Result<bool, DiskError> {
        self.local.try_read_at(into, at)
    }

    fn segments(&self, at: u64, len: u64) -> Result<Vec<Segment>, DiskError> {
        self.local.segments(at, len)
    }
}
