//! What can go wrong at a shadow.

use gnomon_proto::frame::Kind;
use gnomon_qemu::StateError;
use gnomon_terms::{Bytes, Epoch, ErrorKind};

use crate::{page::batch::BatchError, stage::StageError, wire::WireClosed};

/// Why a frame was not taken. The session is over, and the shadow has the checkpoint it had.
#[derive(Debug, thiserror::Error)]
pub enum ShadowError {
    /// The sender is of an epoch that is over: another host runs the guest by now.
    #[error("a frame of epoch {said}, and the guest is at {here}: its sender must not run the guest any more")]
    OldEpoch {
        /// The frame's.
        said: Epoch,
        /// The newest one known.
        here: Epoch,
    },
    /// The sender is of another epoch than the session was begun for.
    #[error("a frame of epoch {said} in a session of epoch {here}")]
    OtherEpoch {
        /// The frame's.
        said: Epoch,
        /// The session's.
        here: Epoch,
    },
    /// A checkpoint that comes before those that came.
    #[error("a frame of checkpoint {said}, and {expected} is the least that may come")]
    OutOfTurn {
        /// The frame's.
        said: u64,
        /// The least that could have followed.
        expected: u64,
    },
    /// A frame that no shadow of this guest is sent.
    #[error("a frame {} that is not for this shadow", kind.name())]
    NotForUs {
        /// Its kind.
        kind: Kind,
    },
    /// There is no session, or it was given up.
    #[error("a frame outside a session")]
    NoSession,
    /// The guest runs here by now.
    #[error("the guest has been taken over here, and its memory is its own")]
    TakenOver,
    /// The pages of a checkpoint cannot be staged or applied.
    #[error(transparent)]
    Stage(#[from] StageError),
    /// A piece of the devices begins behind the end of what is there.
    #[error("a piece of the devices begins at {at}, and {have} bytes are there")]
    DeviceGap {
        /// Where it begins.
        at: u64,
        /// How much there is.
        have: u64,
    },
    /// The devices are more than is kept.
    #[error("the devices of a checkpoint are larger than {limit}")]
    DeviceTooLarge {
        /// How much is kept.
        limit: Bytes,
    },
    /// The devices are cut short.
    #[error("the devices of a checkpoint were said to be {said} bytes, and {have} had arrived")]
    DeviceCut {
        /// What the seal said.
        said: u32,
        /// What had arrived.
        have: u64,
    },
    /// The devices do not fit the QEMU that waits here.
    #[error("the devices of checkpoint {checkpoint} cannot be gone on from here")]
    Device {
        /// Of which checkpoint.
        checkpoint: u64,
        /// Why.
        #[source]
        source: StateError,
    },
    /// The answer could not be sent. The checkpoint is the shadow's all the same.
    #[error(transparent)]
    Link(#[from] WireClosed),
}

impl ShadowError {
    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            ShadowError::OldEpoch { .. } | ShadowError::TakenOver => ErrorKind::Refused,
            ShadowError::Stage(error) => error.kind(),
            ShadowError::Device { source, .. } => source.kind(),
            ShadowError::NoSession | ShadowError::DeviceTooLarge { .. } | ShadowError::Link(_) => {
                ErrorKind::Unavailable
            }
            _ => ErrorKind::Corrupt,
        }
    }
}

impl From<BatchError> for ShadowError {
    fn from(error: BatchError) -> ShadowError {
        ShadowError::Stage(error.into())
    }
}

/// Why a guest was not taken over.
#[derive(Debug, thiserror::Error)]
pub enum FailoverError {
    /// No checkpoint was ever sealed here.
    #[error("the shadow has no whole checkpoint yet: start the guest from its disk")]
    Nothing,
    /// No QEMU waits.
    #[error("no QEMU waits for the guest here: start one on the shadow's memory")]
    NobodyWaits,
    /// It has been done.
    #[error("the guest has been taken over here already")]
    Done,
    /// The QEMU did not take the guest. It does not run here, and another QEMU may try.
    #[error("the waiting QEMU did not take the guest from checkpoint {checkpoint}; start another one and try again")]
    Load {
        /// Which.
        checkpoint: u64,
        /// Why.
        #[source]
        source: StateError,
    },
    /// The QEMU has loaded the guest, and whether it runs is not known.
    #[error("the guest was loaded from checkpoint {checkpoint} and was to run; see what its monitor says")]
    Run {
        /// Which.
        checkpoint: u64,
        /// Why.
        #[source]
        source: StateError,
    },
}

impl FailoverError {
    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            FailoverError::Nothing | FailoverError::Done => ErrorKind::Refused,
            FailoverError::NobodyWaits => ErrorKind::Unavailable,
            FailoverError::Load { source, .. } | FailoverError::Run { source, .. } => source.kind(),
        }
    }
}
