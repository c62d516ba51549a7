//! What can go wrong with the state of devices.

use std::{io, time::Duration};

use gnomon_terms::{Bytes, ErrorKind};

use crate::{qmp::QmpError, stream::StreamError};

/// Why the state of a guest's devices could not be captured or loaded.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The monitor did not do as asked.
    #[error(transparent)]
    Qmp(#[from] QmpError),
    /// The blob is no state of devices, or is damaged. It was not given to QEMU.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// Some of its RAM is QEMU's own or a private copy, so devices alone are of no use.
    #[error(
        "the RAM block '{id}' is not shared, and only the devices of a guest on shared RAM can be captured; start it with ram = \"shared\""
    )]
    RamNotShared {
        /// Its name; empty when QEMU tells none.
        id: String,
    },
    /// The guest has memory that it did not begin with, which is not carried with its RAM. The guest runs on.
    #[error("the guest has '{id}', memory that was added while it ran and is not carried; remove it first")]
    RamAdded {
        /// What was added.
        id: String,
    },
    /// The guest has given memory back since it began to be carried. It runs on.
    #[error("the guest has given '{id}' back since its memory began to be carried; begin again")]
    RamGivenBack {
        /// What it has not any more.
        id: String,
    },
    /// The guest stands because of an earlier migration or capture, and QEMU makes no other before it has run.
    #[error("the guest stands after an earlier migration; make it run (`cont` on its monitor), then try again")]
    Migrated,
    /// The devices need more than that, or QEMU has sent RAM along. The guest runs on.
    #[error(
        "the devices' state is larger than {} bytes; is all of the guest's RAM shared (hot-added memory too)?", limit.0
    )]
    TooLarge {
        /// The limit.
        limit: Bytes,
    },
    /// QEMU gave up. The guest runs on.
    #[error("the devices' state could not be captured: {why}")]
    Failed {
        /// In QEMU's words.
        why: String,
    },
    /// The state is of another machine type. It was not given to QEMU.
    #[error("the state is of a machine '{state}', and this one is '{here}'; start QEMU with that machine type")]
    OtherMachine {
        /// Of the state.
        state: String,
        /// Of the QEMU.
        here: String,
    },
    /// The state goes with other RAM. It was not given to QEMU.
    #[error("the state goes with a RAM block '{id}' of {here} bytes in this QEMU; it has {}", told(*state))]
    OtherRam {
        /// The block's name here.
        id: String,
        /// Bytes of such a block in the state; `None` when it has none, or its pages are in the state.
        state: Option<u64>,
        /// Bytes of it here.
        here: u64,
    },
    /// QEMU did not take the state, and has ended or is of no use any more. Nobody else was disturbed.
    #[error("QEMU did not take the state: {said}")]
    NotTaken {
        /// The last lines it wrote, or its answer.
        said: String,
    },
    /// QEMU has ended in the midst of it.
    #[error("QEMU is gone in the midst of it: {said}")]
    Gone {
        /// The last lines it wrote, or what became of the connection.
        said: String,
    },
    /// The guest was to run again, and does not. Its state is whole: `cont` on its monitor, or a look at what it says.
    #[error("the guest still stands: {why}; try `cont` on its monitor")]
    StillStands {
        /// What QEMU says.
        why: String,
    },
    /// Not within the time allowed.
    #[error("QEMU did not {what} within {after:?}")]
    Timeout {
        /// What was waited for.
        what: &'static str,
        /// How long.
        after: Duration,
    },
    /// The memory for the blob could not be used.
    #[error("cannot {deed} the memory for the devices' state: {source}")]
    Blob {
        /// What was tried.
        deed: &'static str,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
}

impl StateError {
    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            StateError::Qmp(e) => e.kind(),
            StateError::Stream(e) => e.kind(),
            StateError::RamNotShared { .. }
            | StateError::RamAdded { .. }
            | StateError::RamGivenBack { .. }
            | StateError::Migrated
            | StateError::TooLarge { .. }
            | StateError::OtherMachine { .. }
            | StateError::OtherRam { .. }
            | StateError::NotTaken { .. } => ErrorKind::Refused,
            StateError::Failed { .. }
            | StateError::Gone { .. }
            | StateError::StillStands { .. }
            | StateError::Timeout { .. }
            | StateError::Blob { .. } => ErrorKind::Unavailable,
        }
    }

    pub(super) fn blob(deed: &'static str, source: impl Into<io::Error>) -> StateError {
        StateError::Blob { deed, source: source.into() }
    }
}

fn told(size: Option<u64>) -> String {
    size.map_or_else(|| "none of that name left out".to_string(), |size| format!("{size}"))
}
