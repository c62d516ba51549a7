//! How sessions fail, and why they end.

use std::{io, time::Duration};

use gnomon_proto::{
    Class,
    frame::{FrameError, Message},
};
use gnomon_terms::ErrorKind;

/// Why a session could not be made.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The operating system said no.
    #[error("{what} {addr}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// With whom.
        addr: String,
        /// What it said.
        source: io::Error,
    },
    /// The other side did not answer in time.
    #[error("{addr} did not finish the handshake within {after:?}: is `gnomon serve` running there?")]
    Timeout {
        /// With whom.
        addr: String,
        /// How long was waited.
        after: Duration,
    },
    /// The other side does not speak TLS.
    #[error("{addr} does not speak TLS 1.3: check the port, this must be a gnomon link")]
    NotTls {
        /// With whom.
        addr: String,
    },
    /// The other side's certificate was made by another authority.
    #[error(
        "the certificate of {addr} is not signed by this node's CA: make it with `gnomon node init` from the same CA"
    )]
    WrongCa {
        /// With whom.
        addr: String,
    },
    /// The other side's certificate is over, or not yet valid.
    #[error("the certificate of {addr} is {state}: renew it, and check both clocks")]
    Expired {
        /// With whom.
        addr: String,
        /// "expired" or "not yet valid".
        state: &'static str,
    },
    /// Somebody else answered.
    #[error("expected node '{expected}' at {addr}, but '{got}' answered: check the address")]
    WrongName {
        /// With whom.
        addr: String,
        /// Who was expected.
        expected: String,
        /// Who it was.
        got: String,
    },
    /// The other side did not accept this node's certificate.
    #[error("{addr} refused this node's certificate ({alert}): is it signed by that node's CA, and still valid?")]
    RefusedByPeer {
        /// With whom.
        addr: String,
        /// The TLS alert.
        alert: String,
    },
    /// The other side closed the door politely.
    #[error("{addr} declined the session: {reason}")]
    Declined {
        /// With whom.
        addr: String,
        /// Its reason.
        reason: String,
    },
    /// Any other violation of TLS.
    #[error("TLS with {addr}: {source}")]
    Tls {
        /// With whom.
        addr: String,
        /// What rustls found.
        source: rustls::Error,
    },
    /// The first frame was wrong.
    #[error("handshake with {addr}: {source}")]
    Frame {
        /// With whom.
        addr: String,
        /// What was wrong.
        source: FrameError,
    },
    /// The first frame was not the hello it must be.
    #[error("handshake with {addr}: {what}")]
    Hello {
        /// With whom.
        addr: String,
        /// What was wrong.
        what: &'static str,
    },
}

impl LinkError {
    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            LinkError::Io { .. } | LinkError::Timeout { .. } | LinkError::Declined { .. } => ErrorKind::Unavailable,
            LinkError::NotTls { .. }
            | LinkError::WrongCa { .. }
            | LinkError::Expired { .. }
            | LinkError::WrongName { .. }
            | LinkError::RefusedByPeer { .. } => ErrorKind::Refused,
            LinkError::Frame { source, .. } => source.kind(),
            LinkError::Tls { .. } | LinkError::Hello { .. } => ErrorKind::Corrupt,
        }
    }
}

/// Why a session ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    /// This side closed it.
    #[error("closed here: {0}")]
    Local(String),
    /// The other side closed it.
    #[error("closed by the peer: {0}")]
    Goodbye(String),
    /// Nothing was heard for too long.
    #[error("the peer has been silent for {silent:?}")]
    Dead {
        /// How long.
        silent: Duration,
    },
    /// A connection broke.
    #[error("the {class} connection broke: {what}")]
    Broken {
        /// Which.
        class: Class,
        /// What the operating system or TLS said.
        what: String,
    },
    /// The peer violated the protocol.
    #[error("the peer violated the protocol on its {class} connection: {error}")]
    Violation {
        /// Which.
        class: Class,
        /// How.
        error: FrameError,
    },
    /// The peer sent something in a connection where it does not belong.
    #[error("the peer sent a frame that does not belong there on its {class} connection")]
    OutOfPlace {
        /// Which.
        class: Class,
    },
}

impl CloseReason {
    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            CloseReason::Local(_) | CloseReason::Goodbye(_) => ErrorKind::Unavailable,
            CloseReason::Dead { .. } | CloseReason::Broken { .. } => ErrorKind::Unavailable,
            CloseReason::Violation { .. } | CloseReason::OutOfPlace { .. } => ErrorKind::Corrupt,
        }
    }
}

/// Why a message was not taken.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The session is over.
    #[error("the session is over: {0}")]
    Closed(CloseReason),
    /// The queue of its class is full (only from `try_send`); the message comes back.
    #[error("the {} queue is full", .0.class())]
    Full(Box<Message>),
    /// The message breaks a rule of its kind and would not be understood.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

impl SendError {
    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            SendError::Closed(reason) => reason.kind(),
            SendError::Full(_) => ErrorKind::Unavailable,
            SendError::Frame(error) => error.kind(),
        }
    }
}
