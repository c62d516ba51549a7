//! What can go wrong between a daemon and the holder.

use std::{io, path::PathBuf, time::Duration};

use gnomon_terms::ErrorKind;

use crate::block::{BlockError, BlockId};

/// Why blocks cannot be held.
#[derive(Debug, thiserror::Error)]
pub enum HolderError {
    /// The socket could not be made, reached or used.
    #[error("cannot {what} the holder's socket {}: {source}", path.display())]
    Socket {
        /// Which step failed.
        what: &'static str,
        /// The socket.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// Another process holds for this socket already.
    #[error("another holder serves {}: this one is not needed", path.display())]
    AlreadyHeld {
        /// The socket.
        path: PathBuf,
    },
    /// Another daemon is connected.
    #[error("the holder at {} serves another daemon: end that one, or give this one a folder of its own", path.display())]
    Busy {
        /// The socket.
        path: PathBuf,
    },
    /// It did not answer in time, or not what was to be expected.
    #[error("the holder (process {pid}) {what}")]
    Silent {
        /// The holder.
        pid: i32,
        /// What it did.
        what: &'static str,
    },
    /// It does not take a block.
    #[error("the holder does not keep block {id}: {why}")]
    NotKept {
        /// Which block.
        id: BlockId,
        /// Its reason.
        why: &'static str,
    },
    /// It could not be started.
    #[error("cannot start the holder {}: {why}", program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// What happened.
        why: String,
    },
    /// It could not be ended, so it is not certain that it has a block no more.
    #[error("the holder (process {pid}) does not answer and does not end within {after:?} of being killed")]
    Undead {
        /// The holder.
        pid: i32,
        /// How long was waited.
        after: Duration,
    },
    /// What it has could not be looked at.
    #[error(transparent)]
    Look(#[from] BlockError),
}

impl HolderError {
    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            HolderError::AlreadyHeld { .. } | HolderError::Busy { .. } => ErrorKind::Refused,
            HolderError::Look(error) => error.kind(),
            HolderError::Socket { .. }
            | HolderError::Silent { .. }
            | HolderError::NotKept { .. }
            | HolderError::Start { .. }
            | HolderError::Undead { .. } => ErrorKind::Unavailable,
        }
    }
}
