//! What can go wrong between us and the agent in a guest.

use std::{io, path::PathBuf, time::Duration};

use gnomon_terms::ErrorKind;

use super::AnswerError;

/// Why a guest's agent did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum GuestAgentError {
    /// The guest was started without a port for one.
    #[error("VM '{vm}' has no port for an agent in its guest")]
    NoPort {
        /// Which VM.
        vm: String,
    },
    /// QEMU's side of the port could not be reached.
    #[error("the port of the guest's agent at {} cannot be reached: {source}; does this QEMU run?", path.display())]
    Connect {
        /// The port's socket.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// Nobody answered in time.
    #[error(
        "the agent in the guest did not answer '{asked}' within {after:?}: is qemu-guest-agent running there, and does no \
         other program hold its port?"
    )]
    Silent {
        /// What it was asked.
        asked: &'static str,
        /// How long we waited.
        after: Duration,
    },
    /// QEMU ended, or closed the port.
    #[error("the port of the guest's agent closed before '{asked}' was answered")]
    Closed {
        /// What it was asked.
        asked: &'static str,
    },
    /// The socket failed.
    #[error("the socket of the guest's agent failed at '{asked}': {source}")]
    Socket {
        /// What it was asked.
        asked: &'static str,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// It understood and said no.
    #[error("the agent in the guest refused '{asked}': {desc}")]
    Refused {
        /// What it was asked.
        asked: &'static str,
        /// QEMU's class of the error.
        class: String,
        /// Its words, printable.
        desc: String,
    },
    /// It said something that is no answer.
    #[error("the agent in the guest answered '{asked}' with {source}")]
    Garbled {
        /// What it was asked.
        asked: &'static str,
        /// What was wrong with it.
        #[source]
        source: AnswerError,
    },
    /// The command is longer than any that is sent.
    #[error("the command for the guest has {length} bytes, and {most} is the most")]
    TooLong {
        /// Its length in bytes.
        length: usize,
        /// The longest.
        most: usize,
    },
}

impl GuestAgentError {
    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            GuestAgentError::NoPort { .. } | GuestAgentError::Refused { .. } | GuestAgentError::TooLong { .. } => {
                ErrorKind::Refused
            }
            GuestAgentError::Garbled { .. } => ErrorKind::Corrupt,
            GuestAgentError::Connect { .. }
            | GuestAgentError::Silent { .. }
            | GuestAgentError::Closed { .. }
            | GuestAgentError::Socket { .. } => ErrorKind::Unavailable,
        }
    }
}
