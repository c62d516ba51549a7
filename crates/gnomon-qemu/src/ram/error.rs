//! What can go wrong with guest RAM.

use std::{io, path::PathBuf};

use gnomon_terms::{Bytes, ErrorKind, PAGE_SIZE};

/// Why guest RAM could not be made, found or read.
#[derive(Debug, thiserror::Error)]
pub enum RamError {
    /// No guest has RAM of this size.
    #[error("RAM of {} bytes: it must be a multiple of {PAGE_SIZE} and not zero", size.0)]
    BadSize {
        /// What was asked for.
        size: Bytes,
    },
    /// RAM that is there already does not fit the guest.
    #[error("the guest has {} bytes of RAM, and the memory for it has {}", wanted.0, size.0)]
    OtherSize {
        /// What the guest needs.
        wanted: Bytes,
        /// What there is.
        size: Bytes,
    },
    /// The kernel did not give it.
    #[error("cannot make RAM of {} bytes: {source}", size.0)]
    Create {
        /// How much.
        size: Bytes,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// A process's descriptor could not be opened. Another user's process cannot be looked into.
    #[error("cannot open {}: {source}; is the process alive, and ours to look into?", path.display())]
    Open {
        /// What was opened.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// The process has no such memory open.
    #[error("process {pid} has no guest RAM '{what}' as a memfd; its guest must be started again by gnomon")]
    NotThere {
        /// Which process.
        pid: i32,
        /// What was looked for.
        what: String,
    },
    /// Several fit, and which one the guest runs on is not known.
    #[error("process {pid} has {count} memfds called '{what}'; which is the guest's RAM cannot be told")]
    Several {
        /// Which process.
        pid: i32,
        /// What was looked for.
        what: String,
        /// How many there are.
        count: usize,
    },
    /// It could be shrunk under a mapping of ours, which would end this process.
    #[error("the memory with inode {inode} is not sealed against shrinking, so it is not mapped")]
    NotSealed {
        /// Which memory.
        inode: u64,
    },
    /// The kernel did not map it.
    #[error("cannot map {} bytes of guest RAM: {source}", size.0)]
    Map {
        /// How much.
        size: Bytes,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// Beyond the end.
    #[error("{length} bytes at {at} of guest RAM: it has {} bytes", size.0)]
    OutOfRange {
        /// The first byte.
        at: u64,
        /// How many.
        length: usize,
        /// How many there are.
        size: Bytes,
    },
}

impl RamError {
    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            RamError::BadSize { .. }
            | RamError::OtherSize { .. }
            | RamError::NotSealed { .. }
            | RamError::Several { .. }
            | RamError::OutOfRange { .. } => ErrorKind::Refused,
            RamError::Create { .. } | RamError::Open { .. } | RamError::NotThere { .. } | RamError::Map { .. } => {
                ErrorKind::Unavailable
            }
        }
    }
}
