//! Why a checkpoint did not come about.

use std::time::Duration;

use gnomon_qemu::{StateError, TrackError};
use gnomon_terms::ErrorKind;

use crate::wire::WireClosed;

/// Why a checkpoint did not come about. The guest runs on in each case, unless a [`StateError::StillStands`] says that
/// it does not; the shadow has the last checkpoint it has sealed.
#[derive(Debug, thiserror::Error)]
pub enum ReplicateError {
    /// The guest could not be made to stand, or to go on.
    #[error("checkpoint {checkpoint} was not taken")]
    State {
        /// Which.
        checkpoint: u64,
        /// Why.
        #[source]
        source: StateError,
    },
    /// Its dirty pages could not be told or read.
    #[error("checkpoint {checkpoint} was not taken: the guest's dirty pages are not known")]
    Track {
        /// Which.
        checkpoint: u64,
        /// Why.
        #[source]
        source: TrackError,
    },
    /// It cannot be said how far its volumes have got.
    #[error("checkpoint {checkpoint} was not taken: {why}")]
    Volumes {
        /// Which.
        checkpoint: u64,
        /// Why.
        why: String,
    },
    /// There is no session, or it is over. What was on its way is owed again.
    #[error("no link to the shadow: connect, and go on from the checkpoint it has")]
    Link(#[from] WireClosed),
    /// The shadow has refused a checkpoint. The session is over.
    #[error("the shadow has not applied checkpoint {checkpoint}; its node's log says why")]
    Refused {
        /// Which.
        checkpoint: u64,
    },
    /// The shadow has not answered for long. The session goes on.
    #[error("the shadow has not sealed {unsealed} checkpoints within {after:?}: is its node overloaded?")]
    Behind {
        /// How many are on their way.
        unsealed: usize,
        /// How long that was waited for.
        after: Duration,
    },
    /// The guest stands for a switchover to another of its shadows, or has gone there.
    #[error("the guest stands, and is being handed over to another of its shadows")]
    Held,
    /// The shadow claims a checkpoint that was never sent. The session is over.
    #[error("the shadow claims checkpoint {claimed}, and the last one sent is {last}")]
    NeverSent {
        /// What it claims.
        claimed: u64,
        /// The last one there was.
        last: u64,
    },
}

impl ReplicateError {
    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            ReplicateError::State { source, .. } => source.kind(),
            ReplicateError::Track { source, .. } => source.kind(),
            ReplicateError::Volumes { .. }
            | ReplicateError::Link(_)
            | ReplicateError::Refused { .. }
            | ReplicateError::Behind { .. }
            | ReplicateError::Held => ErrorKind::Unavailable,
            ReplicateError::NeverSent { .. } => ErrorKind::Corrupt,
        }
    }

    /// Whether the session ended with it, so that [`crate::primary::Replicator::connect`] comes next.
    pub fn ends_the_session(&self) -> bool {
        matches!(self, ReplicateError::Link(_) | ReplicateError::Refused { .. } | ReplicateError::NeverSent { .. })
    }
}
