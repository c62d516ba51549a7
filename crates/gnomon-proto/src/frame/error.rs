//! Why bytes are not a frame, or a message cannot become one.

use gnomon_terms::ErrorKind;

use super::Kind;

/// Why bytes are not a frame, or a message cannot become one. After a decoding error the stream has lost its
/// place: the connection must be closed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The stream does not start with a frame.
    #[error("bytes {got:02x?} do not start a frame: the peer is not a gnomon, or the stream lost its place")]
    BadMagic {
        /// What was there instead.
        got: [u8; 4],
    },
    /// The peer speaks another version.
    #[error("the peer speaks protocol version {got}, this node {}: bring both to the same release", super::VERSION)]
    BadVersion {
        /// The peer's version.
        got: u8,
    },
    /// The header's checksum is wrong.
    #[error("a frame header fails its check (says {said:08x}, is {is:08x}): the stream is damaged")]
    BadCheck {
        /// What the header says.
        said: u32,
        /// What its bytes give.
        is: u32,
    },
    /// A kind of frame this version does not know.
    #[error("frame kind {code} is not known to protocol version {version}", version = super::VERSION)]
    UnknownKind {
        /// Its number.
        code: u8,
    },
    /// A body that is longer than its kind allows.
    #[error("a {kind} frame of {len} bytes is over the limit of {max}")]
    TooLong {
        /// Kind of frame.
        kind: Kind,
        /// Length of its body.
        len: u64,
        /// The longest allowed.
        max: usize,
    },
    /// A field that contradicts the rules of its kind.
    #[error("a {kind} frame is malformed: {what}")]
    Malformed {
        /// Kind of frame.
        kind: Kind,
        /// Which rule is broken.
        what: &'static str,
    },
    /// The stream ended inside a frame.
    #[error("the stream ended inside a frame: {have} bytes of {need}")]
    Truncated {
        /// Bytes that arrived.
        have: usize,
        /// Bytes the frame has (or its header, while that is incomplete).
        need: usize,
    },
}

impl FrameError {
    /// What a caller can do about it. A message that is too long to send was refused; everything else is damage.
    pub fn kind(&self) -> ErrorKind {
        match self {
            FrameError::BadVersion { .. } | FrameError::TooLong { .. } => ErrorKind::Refused,
            _ => ErrorKind::Corrupt,
        }
    }
}
