//! The NBD front: fixed newstyle over unix sockets, TCP and TLS, for unmodified clients.
//!
//! ```text
//! listener ─▶ connection thread: haggle (options) ─▶ transmission: receive many requests at once ─▶ serve ─▶ replies
//!                                                                            └─ would wait ─▶ helper threads ─┘
//! ```
//!
//! Reads that need no waiting are served by the connection's own thread straight into the reply buffer, and the
//! replies of all requests received together leave together. What must wait (for another host, for the device, for
//! durability) goes to helper threads of the same connection and is answered out of order.
//!
//! `option_bytes`, `options` and `wire` are pure; `server`, `handshake`, `connection` and `stream` are the rim.

mod connection;
mod handshake;
mod inbox;
mod option_bytes;
mod options;
mod reply;
mod server;
mod slow;
mod spin;
mod stream;
pub mod wire;

pub use option_bytes::{HandshakeError, OPTION_LIMIT, OptionFrame, greeting};
pub use options::{BASE_ALLOCATION, CONTEXTS, Contexts, GNOMON_SHADOW, Haggle, Next, Terms, TlsState};
pub use server::{NbdAddress, NbdLimits, NbdServer, TlsMode};
