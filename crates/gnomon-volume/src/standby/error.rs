//! What can go wrong at either end of a standby.

use std::{path::PathBuf, time::Duration};

use gnomon_proto::frame::Kind;
use gnomon_terms::{Bytes, Epoch, ErrorKind};

use super::journal::JournalError;
use crate::{disk::DiskError, wire::WireClosed};

/// Why a primary's volume is not followed by its standby. The guest is not concerned, and what the standby lacks is owed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SenderError {
    /// No writes are noted: the volume has no outbox.
    #[error("volume {volume} does not note its writes: begin its shadow first")]
    NotTracked {
        /// Which volume.
        volume: String,
    },
    /// The first copy is not over, or the session is.
    #[error("the standby of the volume is not in step with it: a checkpoint cannot count on it yet")]
    NotInStep,
    /// A turn was marked with a number that is not above those before.
    #[error("turn {turn} was marked after turn {newest}: number turns upwards")]
    OutOfTurn {
        /// The number.
        turn: u64,
        /// The newest one.
        newest: u64,
    },
    /// Many turns have been marked, and none was sealed.
    #[error("turn {turn} was not marked: too many before it are not sealed; is the standby's node overloaded?")]
    Behind {
        /// The number.
        turn: u64,
    },
    /// The standby claims a turn that was never sent to it.
    #[error("the standby claims turn {claimed}, which was not sent")]
    NeverSent {
        /// Which.
        claimed: u64,
    },
    /// The standby could not keep what it was sent, or gives the session up.
    #[error("the standby has not kept what it was sent; its node's log says why")]
    Refused,
    /// The volume cannot be read.
    #[error("what the standby lacks cannot be read")]
    Disk(#[from] DiskError),
    /// The session is over.
    #[error(transparent)]
    Link(#[from] WireClosed),
}

impl SenderError {
    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            SenderError::NotTracked { .. } | SenderError::OutOfTurn { .. } => ErrorKind::Refused,
            SenderError::NeverSent { .. } => ErrorKind::Corrupt,
            SenderError::Disk(error) => error.kind(),
            _ => ErrorKind::Unavailable,
        }
    }
}

/// Why a standby did not do as told. After an error of [`super::StandbyReceiver::handle`] the session is over, and the
/// standby is what it was at its last sealed turn.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StandbyError {
    /// The journal cannot be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The volume cannot be read or written, or its file system is full.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The sender is of an epoch that is over: another host runs the guest by now.
    #[error("a frame of epoch {said}, and the standby is at {here}: its sender must not write any more")]
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
    /// A write that does not follow the one before, so one is missing.
    #[error("mirrored write {said} arrived, and {expected} is next")]
    OutOfOrder {
        /// Its number.
        said: u64,
        /// What would have followed.
        expected: u64,
    },
    /// A turn that is not newer, or not known here.
    #[error("turn {said} is out of order: the newest one here is {newest}")]
    OutOfTurn {
        /// Its number.
        said: u64,
        /// The newest one.
        newest: u64,
    },
    /// A turn that has not arrived whole.
    #[error("turn {turn} has not arrived whole and cannot be sealed; a later one can")]
    NotWhole {
        /// Which.
        turn: u64,
    },
    /// A turn that has not arrived yet.
    #[error("turn {turn} has not arrived within {after:?}: is the link slower than the guest writes?")]
    Late {
        /// Which.
        turn: u64,
        /// How long it was waited for.
        after: Duration,
    },
    /// A write past the end of the volume.
    #[error("a write of {len} bytes at {at} is not on a disk of {size}")]
    OffDisk {
        /// Where.
        at: u64,
        /// How much.
        len: u64,
        /// How large the disk is.
        size: Bytes,
    },
    /// There is no session, or it was given up.
    #[error("a frame outside a session")]
    NoSession,
    /// A frame that no standby is sent, or not now.
    #[error("a frame {} that is not for this standby, or not now", kind.name())]
    NotForUs {
        /// Its kind.
        kind: Kind,
    },
    /// No turn was ever sealed here: the volume is of no moment.
    #[error("the standby's copy is not whole yet: it cannot be taken over")]
    NothingSealed,
    /// The guest runs here by now.
    #[error("the volume has been taken over here, and is nobody's standby any more")]
    TakenOver,
    /// The volume and the files beside it cannot be used.
    #[error("the files of the standby in {path} cannot be used")]
    Io {
        /// The volume's file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

impl StandbyError {
    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            StandbyError::Journal(error) => error.kind(),
            StandbyError::Disk(error) => error.kind(),
            StandbyError::OldEpoch { .. } | StandbyError::NothingSealed | StandbyError::TakenOver => {
                ErrorKind::Refused
            }
            StandbyError::NotWhole { .. }
            | StandbyError::Late { .. }
            | StandbyError::NoSession
            | StandbyError::Io { .. } => ErrorKind::Unavailable,
            _ => ErrorKind::Corrupt,
        }
    }
}
