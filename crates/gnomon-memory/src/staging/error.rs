//! What can go wrong with staged memory.

use std::io;

use gnomon_terms::ErrorKind;

use crate::{accounts::Imbalance, block::BlockError, holder::HolderError, pool::PoolError};

/// Why memory could not be staged, taken or given back.
#[derive(Debug, thiserror::Error)]
pub enum StagingError {
    /// A block.
    #[error(transparent)]
    Block(#[from] BlockError),
    /// The holder.
    #[error(transparent)]
    Holder(#[from] HolderError),
    /// The pool.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// The books do not allow it.
    #[error(transparent)]
    Imbalance(#[from] Imbalance),
    /// There is no thread for the worker.
    #[error("cannot start the thread that stages memory: {source}")]
    Thread {
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
}

impl StagingError {
    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            StagingError::Block(error) => error.kind(),
            StagingError::Holder(error) => error.kind(),
            StagingError::Pool(_) | StagingError::Imbalance(_) => ErrorKind::Refused,
            StagingError::Thread { .. } => ErrorKind::Unavailable,
        }
    }
}
