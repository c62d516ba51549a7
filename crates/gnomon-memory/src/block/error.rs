//! What can go wrong with a block.

use std::{io, path::PathBuf};

use gnomon_terms::{Bytes, ErrorKind};

/// Why a block could not be made, populated, found or given back.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// No block has this size.
    #[error("a block of {} bytes: it must be a multiple of its pages of {} bytes, not zero and not above {}", size.0, page.0, super::LARGEST_BLOCK)]
    BadSize {
        /// What was asked for.
        size: Bytes,
        /// The size of its pages.
        page: Bytes,
    },
    /// The host has not reserved enough large pages.
    #[error(
        "the host has {free} free pages of 2 MiB and a block needs {needed}: reserve more (`sysctl vm.nr_hugepages=N`, \
         or `hugepages=N` on the kernel's command line), or let the group have pages of 4 KiB"
    )]
    NoHugePages {
        /// Pages of 2 MiB that the block has.
        needed: u64,
        /// Pages that are free, as the host said afterwards.
        free: u64,
    },
    /// The kernel did not give it.
    #[error("cannot {what} a block of {} bytes: {source}", size.0)]
    Kernel {
        /// Which step failed.
        what: &'static str,
        /// The block's size.
        size: Bytes,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// A process's descriptors could not be looked at. Another user's process cannot be looked into.
    #[error("cannot look into {}: {source}; is the process alive, and ours to look into?", path.display())]
    Look {
        /// What was looked at.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// It is called a block and is not made like one.
    #[error("{} is called a block of gnomon and {why}: it is not used", path.display())]
    Strange {
        /// Where it was found.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
}

impl BlockError {
    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            BlockError::BadSize { .. } | BlockError::NoHugePages { .. } => ErrorKind::Refused,
            BlockError::Kernel { .. } | BlockError::Look { .. } => ErrorKind::Unavailable,
            BlockError::Strange { .. } => ErrorKind::Corrupt,
        }
    }
}
