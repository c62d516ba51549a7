//! Frames: what two nodes say to each other, byte by byte.
//!
//! ```text
//!   Message ──encode──▶ Header (48 bytes) + body ──▶ a byte stream ──▶ Decoder ──▶ Message
//! ```
//!
//! Every frame has the same 48-byte [`Header`]; what follows it is the *body*, and for everything bulky the body
//! is exactly the payload, so that it is read into the buffer it stays in. A field that a kind does not use is
//! zero and is checked to be zero: there is one way to write each message, and whatever decodes encodes back to
//! the same bytes. `docs/protocol.md` is the same in prose; a test ties the two together.
//!
//! Nothing here trusts a peer: lengths are bounded per kind before anything is allocated, extents are checked
//! for overflow, and every violation is a typed [`FrameError`].

mod decode;
mod decoder;
mod encode;
mod error;
mod header;
mod kind;
mod message;
mod rules;

pub use decoder::Decoder;
pub use error::FrameError;
pub use header::{HEADER_LEN, Header, MAGIC, VERSION};
pub use kind::{
    Kind, MAX_ACCESSES, MAX_BODY, MAX_HASHES, MAX_MARKS, MAX_NAME, MAX_PAYLOAD, MAX_REASON, MAX_RPC, TOUCH_LEN,
};
pub use message::{Answer, Change, Content, Hello, Mark, Message, Settlement, Step, Stream, Touch};
