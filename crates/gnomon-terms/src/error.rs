//! The three ways an operation can fail, as every front must tell them apart.

/// What a caller can do about an error. Every error enum of the project has `fn kind(&self) -> ErrorKind`;
/// each front (NBD errno, HTTP status, exit code) translates the kind in one table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// Asked for something that must not or cannot be done as asked. Asking again will not help.
    Refused,
    /// A part that is needed does not answer or is full. Asking again later may help.
    Unavailable,
    /// Bytes that should be trustworthy are not. Nothing was changed because of them.
    Corrupt,
}

impl ErrorKind {
    /// The exit code of a command that ends with this error: 1 failed, 3 refused for safety.
    pub fn exit_code(self) -> u8 {
        match self {
            ErrorKind::Refused => 3,
            ErrorKind::Unavailable | ErrorKind::Corrupt => 1,
        }
    }
}
