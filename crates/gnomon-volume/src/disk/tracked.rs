//! The primary while there are shadows of it, or one is being made: every write is noted as owed to each.

use std::sync::Arc;

use gnomon_terms::{Bytes, Extent};

use super::{Disk, DiskError, FileDisk, Segment};
use crate::{
    outbox::Outbox,
    standby::Turns,
    stripes::{Stripes, split_bytes},
};

/// Who is to have what is written here.
#[derive(Clone)]
pub struct Follower {
    /// What it lacks.
    pub outbox: Arc<Outbox>,
    /// Which write belongs to which turn, if it is a standby.
    pub turns: Arc<Turns>,
}

/// A local disk that remembers in each follower's [`Outbox`] which blocks that lacks since they were written.
pub struct TrackedDisk {
    /// Where the bytes are.
    pub local: Arc<FileDisk>,
    /// The peer of a move, or the standbys of a protected guest's disk. Always in the same order.
    pub followers: Vec<Follower>,
    /// Shared with the engines that take and acknowledge.
    pub stripes: Arc<Stripes>,
}

impl TrackedDisk {
    /// Notes and changes `at .. at + len` stripe by stripe; `deed` gets the offset and length of each piece.
    fn change(
        &self,
        at: u64,
        len: u64,
        mut deed: impl FnMut(u64, u64) -> Result<(), DiskError>,
    ) -> Result<(), DiskError> {
        within(&self.followers, &mut || {
            for (at, len) in split_bytes(at, len) {
                let extent = Extent::touching(at, len);
                let _guard = self.stripes.lock(extent);
                for follower in &self.followers {
                    follower.outbox.note_write(extent);
                    follower.turns.before_write(&*self.local, extent);
                }
                deed(at, len)?;
            }
            Ok(())
        })
    }
}

/// Does `deed` within the boundaries of all followers: no mark of any comes between.
fn within<T>(followers: &[Follower], deed: &mut dyn FnMut() -> T) -> T {
    match followers.split_first() {
        None => deed(),
        Some((first, others)) => {
            let _within = first.turns.enter();
            within(others, deed)
        }
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
