//! What can go wrong between us and a monitor.

use std::{io, path::PathBuf, time::Duration};

use gnomon_terms::ErrorKind;

/// Why a monitor connection is over. Told to every waiter and subscriber.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    /// The other side closed the socket: QEMU has ended, or another program closed its end.
    #[error("QEMU closed the connection")]
    Ended,
    /// The last handle on our side was dropped.
    #[error("the connection was closed on our side")]
    ByUs,
    /// A line was longer than any that QEMU sends.
    #[error("a line exceeded {limit} bytes")]
    LineTooLong {
        /// The limit, in bytes.
        limit: usize,
    },
    /// A line was not a QMP message.
    #[error("it sent something that is not QMP: {what}")]
    Garbled {
        /// What was wrong, and the beginning of the line.
        what: String,
    },
    /// The socket failed.
    #[error("the socket failed: {what}")]
    Socket {
        /// The operating system's words.
        what: String,
    },
}

impl CloseReason {
    pub(super) fn socket(error: &io::Error) -> CloseReason {
        match error.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => CloseReason::Ended,
            _ => CloseReason::Socket { what: error.to_string() },
        }
    }
}

/// Why a monitor command did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// The socket could not be reached.
    #[error("cannot connect to the QEMU monitor at {}: {source}; is this QEMU running?", path.display())]
    Connect {
        /// Which socket.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// Connected, but nobody greeted us. QEMU serves one monitor client at a time.
    #[error("the QEMU monitor did not greet within {after:?}; is another program connected to it?")]
    NoGreeting {
        /// How long we waited.
        after: Duration,
    },
    /// No reply within the time allowed. The command may still take effect.
    #[error("QEMU did not answer '{command}' within {after:?}")]
    Timeout {
        /// Which command.
        command: String,
        /// How long we waited.
        after: Duration,
    },
    /// The connection ended before the reply came. The command may have taken effect.
    #[error("no answer to '{command}': {reason}")]
    Closed {
        /// Which command.
        command: String,
        /// Why the connection is over.
        reason: CloseReason,
    },
    /// QEMU understood and said no.
    #[error("QEMU refused '{command}': {desc}")]
    Refused {
        /// Which command.
        command: String,
        /// QEMU's error class, `GenericError` for most.
        class: String,
        /// QEMU's own words.
        desc: String,
    },
    /// QEMU answered with something this client cannot read.
    #[error("QEMU answered '{command}' with something unexpected: {what}")]
    Unexpected {
        /// Which command.
        command: String,
        /// What was wrong with the answer.
        what: String,
    },
}

impl QmpError {
    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            QmpError::Refused { .. } => ErrorKind::Refused,
            QmpError::Unexpected { .. } => ErrorKind::Corrupt,
            QmpError::Closed { reason: CloseReason::LineTooLong { .. } | CloseReason::Garbled { .. }, .. } => {
                ErrorKind::Corrupt
            }
            QmpError::Connect { .. }
            | QmpError::NoGreeting { .. }
            | QmpError::Timeout { .. }
            | QmpError::Closed { .. } => ErrorKind::Unavailable,
        }
    }
}
