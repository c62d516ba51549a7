//! What can go wrong with memory that is added to a guest or taken from it.

use std::time::Duration;

use gnomon_terms::{Bytes, ErrorKind};

use super::{DimmAnswer, GUEST_BLOCK};
use crate::qmp::{CloseReason, QmpError};

/// Why a guest's memory did not change as asked.
#[derive(Debug, thiserror::Error)]
pub enum MemoryDeviceError {
    /// QEMU takes no such name.
    #[error("'{id}' is no name for a DIMM: use a letter, then letters, digits, '-', '.' and '_', 64 at most")]
    BadId {
        /// The name, or its beginning.
        id: String,
    },
    /// No guest takes a DIMM of this size.
    #[error("a DIMM of {} bytes: it must be a multiple of {} MiB and not zero", size.0, GUEST_BLOCK >> 20)]
    BadSize {
        /// What was asked for.
        size: Bytes,
    },
    /// The guest was started without room for DIMMs.
    #[error("the guest was started without room for more memory ({said}); start it with max_memory")]
    NotPrepared {
        /// QEMU's words.
        said: String,
    },
    /// All slots are taken.
    #[error("no slot is free for DIMM '{id}' ({said}); remove one, or start the guest with more memory_slots")]
    NoSlot {
        /// Which DIMM.
        id: String,
        /// QEMU's words.
        said: String,
    },
    /// The guest would have more than it may.
    #[error("no address is free for DIMM '{id}' ({said}); remove one, or start the guest with more max_memory")]
    NoSpace {
        /// Which DIMM.
        id: String,
        /// QEMU's words.
        said: String,
    },
    /// There is one of that name.
    #[error("the guest has a DIMM '{id}' already; give each its own name")]
    Exists {
        /// Its name.
        id: String,
    },
    /// There is none of that name.
    #[error("the guest has no {what} '{id}'")]
    NotThere {
        /// What was looked for.
        what: &'static str,
        /// Its name.
        id: String,
    },
    /// QEMU cannot use the memory: no descriptor of memory, of another size, or the host is out of it.
    #[error("QEMU cannot use the memory for DIMM '{id}': {source}")]
    Backend {
        /// Which DIMM.
        id: String,
        /// What QEMU said.
        #[source]
        source: QmpError,
    },
    /// The guest said no. The DIMM stays plugged, unused; [`crate::remove_dimm`] asks for it back.
    #[error("the guest does not take DIMM '{id}': {answer}; remove it")]
    Declined {
        /// Which DIMM.
        id: String,
        /// What the guest said.
        answer: DimmAnswer,
    },
    /// The guest keeps it. The DIMM stays whole and may be asked for again.
    #[error("the guest does not let go of DIMM '{id}': {answer}; ask again when it uses less memory")]
    Kept {
        /// Which DIMM.
        id: String,
        /// What the guest said.
        answer: DimmAnswer,
    },
    /// The guest said nothing while we waited. It may still do as asked, at any time.
    #[error(
        "the guest did not answer within {after:?} about DIMM '{id}'; does its system take memory while it runs?"
    )]
    NoAnswer {
        /// Which DIMM.
        id: String,
        /// How long we waited.
        after: Duration,
    },
    /// The guest has not taken or given all that was asked for. It goes on at it.
    #[error(
        "the guest has {} of the {} bytes that were asked for after {after:?}; it goes on, or uses them",
        actual.0, requested.0
    )]
    PartWay {
        /// What it should have.
        requested: Bytes,
        /// What it has.
        actual: Bytes,
        /// How long we waited.
        after: Duration,
    },
    /// QEMU ended, or the connection to it, while the guest's answer was awaited.
    #[error("no answer will come from the guest: {reason}")]
    Ended {
        /// Why the connection is over.
        reason: CloseReason,
    },
    /// What QEMU has open could not be looked at.
    #[error("cannot look at what QEMU has open: {source}")]
    Look {
        /// Why not.
        #[from]
        source: crate::ram::RamError,
    },
    /// The monitor did not do as asked.
    #[error(transparent)]
    Qmp(#[from] QmpError),
}

impl MemoryDeviceError {
    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        use MemoryDeviceError as E;
        match self {
            E::BadId { .. } | E::BadSize { .. } | E::NotPrepared { .. } | E::NoSlot { .. } | E::NoSpace { .. } => {
                ErrorKind::Refused
            }
            E::Exists { .. } | E::NotThere { .. } | E::Declined { .. } => ErrorKind::Refused,
            E::Kept { .. } | E::NoAnswer { .. } | E::PartWay { .. } | E::Ended { .. } => ErrorKind::Unavailable,
            E::Look { source } => source.kind(),
            E::Backend { source, .. } | E::Qmp(source) => source.kind(),
        }
    }

    /// Whether the DIMM is, or may be, in QEMU after this error of adding it: then its memory still is the guest's. A
    /// monitor that went silent or away says nothing of its QEMU, which may have done as asked or do it yet.
    pub fn stays(&self) -> bool {
        use MemoryDeviceError as E;
        match self {
            E::Declined { .. } | E::NoAnswer { .. } | E::Kept { .. } | E::PartWay { .. } | E::Ended { .. } => true,
            E::Backend { source, .. } | E::Qmp(source) => !matches!(source, QmpError::Refused { .. }),
            E::BadId { .. } | E::BadSize { .. } | E::NotPrepared { .. } | E::NoSlot { .. } | E::NoSpace { .. } => {
                false
            }
            E::Exists { .. } | E::NotThere { .. } | E::Look { .. } => false,
        }
    }

    /// What QEMU's refusal to plug a DIMM means, from its words: it has one error class for all of them.
    pub(super) fn of_plugging(id: &str, error: QmpError) -> MemoryDeviceError {
        let QmpError::Refused { desc, .. } = &error else { return error.into() };
        let (id, said) = (id.to_string(), desc.clone());
        let says = |words: &[&str]| words.iter().any(|words| desc.contains(words));
        if says(&["no slots w", "not prepared for memory devices"]) {
            MemoryDeviceError::NotPrepared { said }
        } else if says(&["no free slots", "no free memory slots"]) {
            MemoryDeviceError::NoSlot { id, said }
        } else if says(&["not enough space", "could not find position"]) {
            MemoryDeviceError::NoSpace { id, said }
        } else if says(&["Duplicate device ID", "duplicate ID", "duplicate property"]) {
            MemoryDeviceError::Exists { id }
        } else {
            error.into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The words of QEMU 7.2 and 10.0; what is not among them stays QEMU's own story.
    #[test]
    fn a_refusal_is_told_apart_by_its_words() {
        type Is = fn(&MemoryDeviceError) -> bool;
        let table: [(&str, Is); 8] = [
            ("no slots where allocated, please specify the 'slots' option", |e| {
                matches!(e, MemoryDeviceError::NotPrepared { .. })
            }),
            ("no slots were allocated, please specify the 'slots' option", |e| {
                matches!(e, MemoryDeviceError::NotPrepared { .. })
            }),
            ("the configuration is not prepared for memory devices (e.g., for memory hotplug), consider", |e| {
                matches!(e, MemoryDeviceError::NotPrepared { .. })
            }),
            ("no free slots available", |e| matches!(e, MemoryDeviceError::NoSlot { .. })),
            ("a used vhost backend has no free memory slots left", |e| matches!(e, MemoryDeviceError::NoSlot { .. })),
            ("not enough space, currently 0x0 in use of total space for memory devices 0x0", |e| {
                matches!(e, MemoryDeviceError::NoSpace { .. })
            }),
            ("Duplicate device ID 'd1'", |e| matches!(e, MemoryDeviceError::Exists { .. })),
            ("something else", |e| matches!(e, MemoryDeviceError::Qmp(QmpError::Refused { .. }))),
        ];
        for (desc, is) in table {
            let refused =
                QmpError::Refused { command: "device_add".into(), class: "GenericError".into(), desc: desc.into() };
            let error = MemoryDeviceError::of_plugging("d1", refused);
            assert!(is(&error), "{desc}: {error:?}");
        }
    }

    /// What is given back to the host while a guest has it is lost to the guest: only what QEMU has refused is certainly not
    /// in it.
    #[test]
    fn what_may_be_in_qemu_stays_the_guests() {
        let command = || "device_add".to_string();
        let refused = || QmpError::Refused { command: command(), class: "GenericError".into(), desc: "no".into() };
        let late = || QmpError::Timeout { command: command(), after: Duration::from_secs(1) };
        let closed = || QmpError::Closed { command: command(), reason: CloseReason::Ended };
        let backend = |source| MemoryDeviceError::Backend { id: "d1".into(), source };
        let table = [
            (MemoryDeviceError::Qmp(refused()), false),
            (MemoryDeviceError::Qmp(late()), true),
            (MemoryDeviceError::Qmp(closed()), true),
            (backend(refused()), false),
            (backend(late()), true),
            (backend(closed()), true),
            (MemoryDeviceError::Ended { reason: CloseReason::Ended }, true),
            (MemoryDeviceError::NoAnswer { id: "d1".into(), after: Duration::from_secs(1) }, true),
            (MemoryDeviceError::Declined { id: "d1".into(), answer: DimmAnswer::Declined(1) }, true),
            (MemoryDeviceError::NoSlot { id: "d1".into(), said: String::new() }, false),
            (MemoryDeviceError::Exists { id: "d1".into() }, false),
        ];
        for (error, stays) in table {
            assert_eq!(error.stays(), stays, "{error:?}");
        }
    }
}
