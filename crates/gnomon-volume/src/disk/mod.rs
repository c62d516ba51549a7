//! Where a volume's bytes are: one trait, and implementations named material + role.
//!
//! [`FileDisk`] keeps bytes in a file or block device of this host. Decorators and layered disks live beside it.
//! Errors are neutral here; each front translates them in one table.

mod file;
mod fork;
pub mod layered;
mod tracked;
mod volume;

use std::io;

use gnomon_terms::{Bytes, ErrorKind};

pub use file::{FileDisk, Mode, OpenError};
pub use fork::ForkDisk;
pub use layered::LayeredDisk;
pub use tracked::{Follower, TrackedDisk};
pub use volume::{Role, VolumeDisk};

/// A run of bytes that are in the same state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// How many bytes, greater than 0.
    pub len: u64,
    /// True when no storage is allocated for it.
    pub hole: bool,
    /// True when it is known to read as zeroes.
    pub zero: bool,
    /// True when a read is answered by this host alone.
    pub local: bool,
}

/// A disk: `size` bytes that can be read and written at any offset. Shared by many threads.
///
/// The front validates ranges: `at + len <= size` always holds here. All calls block until done. A write is
/// acknowledged when the call returns; it is durable after the next [`Disk::flush`]. Concurrent overlapping
/// writes end as either of them, block by block.
pub trait Disk: Send + Sync {
    /// Its size; constant for the life of the value.
    fn size(&self) -> Bytes;

    /// Fills `into` with the bytes from `at` on.
    fn read_at(&self, into: &mut [u8], at: u64) -> Result<(), DiskError>;

    /// Replaces the bytes from `at` on.
    fn write_at(&self, data: &[u8], at: u64) -> Result<(), DiskError>;

    /// Makes `len` bytes read as zeroes. `punch` allows the storage to be given back; without it space stays
    /// reserved, so that a later write cannot fail for lack of it.
    fn write_zeroes(&self, at: u64, len: u64, punch: bool) -> Result<(), DiskError>;

    /// Gives `len` bytes up. They read as zeroes afterwards.
    fn discard(&self, at: u64, len: u64) -> Result<(), DiskError>;

    /// Makes sure, where the storage can, that a later write of these bytes does not find it full. They read as before.
    fn reserve(&self, _at: u64, _len: u64) -> Result<(), DiskError> {
        Ok(())
    }

    /// Makes everything acknowledged so far durable.
    fn flush(&self) -> Result<(), DiskError>;

    /// Whether a read of these bytes is answered by this host alone, without waiting for another.
    fn is_local(&self, _at: u64, _len: u64) -> bool {
        true
    }

    /// Fills `into` if that needs no waiting, neither for another host nor for a device; false when it does, and
    /// then `into` may hold anything. A front serves such reads at once and hands the others to a helper thread.
    fn try_read_at(&self, into: &mut [u8], at: u64) -> Result<bool, DiskError> {
        if !self.is_local(at, into.len() as u64) {
            return Ok(false);
        }
        self.read_at(into, at)?;
        Ok(true)
    }

    /// Describes `at .. at + len` in order, without gap; adjacent equal segments may be merged.
    fn segments(&self, at: u64, len: u64) -> Result<Vec<Segment>, DiskError>;
}

/// Why a disk could not do as told.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiskError {
    /// The storage below failed.
    #[error("the storage failed to {deed} {len} bytes at {at}")]
    Io {
        /// read, write, flush, discard.
        deed: &'static str,
        /// Offset.
        at: u64,
        /// Length.
        len: u64,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The storage below is full.
    #[error("no space left for {len} bytes at {at}: free some space on the file system that holds the volume")]
    Full {
        /// Offset.
        at: u64,
        /// Length.
        len: u64,
    },
    /// This writer is not, or no longer, allowed to write.
    #[error("writing is refused: {why}")]
    Fenced {
        /// Who may write instead.
        why: String,
    },
    /// The bytes are only on another host, and it does not answer.
    #[error("{len} bytes at {at} are only on {place}, which does not answer: bring it back or roll the move back")]
    Unreachable {
        /// Offset.
        at: u64,
        /// Length.
        len: u64,
        /// Where the bytes are.
        place: String,
    },
}

impl DiskError {
    /// What the caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            DiskError::Fenced { .. } => ErrorKind::Refused,
            DiskError::Io { .. } | DiskError::Full { .. } | DiskError::Unreachable { .. } => ErrorKind::Unavailable,
        }
    }

    /// Wraps what the system said; a full file system gets its own variant.
    pub fn io(deed: &'static str, at: u64, len: u64) -> impl FnOnce(io::Error) -> DiskError {
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => DiskError::Full { at, len },
            _ => DiskError::Io { deed, at, len, source },
        }
    }
}
