//! What can be wrong with a migration stream.

use std::io;

use gnomon_terms::ErrorKind;

/// Why a stream could not be read.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// It is something else.
    #[error("this is no migration stream of QEMU: it begins with {magic:02x?} and has version {version}")]
    NoStream {
        /// Its first bytes.
        magic: [u8; 4],
        /// The version it tells; 0 when the magic number is wrong already.
        version: u32,
    },
    /// It ends too early.
    #[error("the stream is cut short: it ends at byte {at}, within {within}")]
    CutShort {
        /// Its length.
        at: u64,
        /// What was being read.
        within: &'static str,
    },
    /// Something that this reader does not know: a newer QEMU, a capability that gnomon does not use, or nonsense.
    #[error("byte {at} of the stream: {what} is not known here")]
    Unknown {
        /// Where.
        at: u64,
        /// What.
        what: String,
    },
    /// More than there can be.
    #[error("byte {at} of the stream: {what} is {value}, at most {most} is taken")]
    TooMuch {
        /// Where.
        at: u64,
        /// Of what.
        what: &'static str,
        /// How much.
        value: u64,
        /// The limit.
        most: u64,
    },
    /// Not a word where one should be.
    #[error("byte {at} of the stream: {what} is no text")]
    NoText {
        /// Where it ends.
        at: u64,
        /// What it should be.
        what: &'static str,
    },
    /// A section does not end where it should.
    #[error("byte {at} of the stream: section {section} does not end here")]
    NoFooter {
        /// Where.
        at: u64,
        /// Which section.
        section: u32,
    },
    /// The list of RAM blocks, or a page, makes no sense.
    #[error("byte {at} of the stream: RAM block '{block}': {what}")]
    BadRam {
        /// Where.
        at: u64,
        /// Which block; may be empty.
        block: String,
        /// What is wrong.
        what: &'static str,
    },
    /// The description of the devices cannot be read.
    #[error("the stream's description of its devices cannot be read: {source}")]
    BadDescription {
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The description does not fit the devices.
    #[error("byte {at} of the stream: {what} is not where the stream's own description has it")]
    NotAsDescribed {
        /// Where.
        at: u64,
        /// What.
        what: String,
    },
    /// It could not be read from where it comes from.
    #[error("the stream cannot be read: {source}")]
    Read {
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
}

impl StreamError {
    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            StreamError::Read { .. } => ErrorKind::Unavailable,
            StreamError::TooMuch { .. } | StreamError::Unknown { .. } => ErrorKind::Refused,
            StreamError::NoStream { .. }
            | StreamError::CutShort { .. }
            | StreamError::NoText { .. }
            | StreamError::NoFooter { .. }
            | StreamError::BadRam { .. }
            | StreamError::BadDescription { .. }
            | StreamError::NotAsDescribed { .. } => ErrorKind::Corrupt,
        }
    }
}
