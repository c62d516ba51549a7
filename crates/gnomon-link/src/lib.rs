//! Turns protocol frames into sessions between nodes: mutual TLS, one connection per class, pacing, back-pressure.
//!
//! ```text
//!   Listener ──accept──▶             ┌─ queue ─▶ pace ─▶ TLS ──▶  one connection per class
//!                        Session ────┤                            (pulse control demand mirror ram
//!   connect  ──────────▶             └─ queue ◀──────── TLS ◀──   prefetch background)
//! ```
//!
//! What travels is said by `gnomon-proto`; who may speak by the certificates of [`pki`]; when by [`Pacer`].

mod dial;
mod error;
mod gate;
mod identity;
mod listener;
mod pace;
pub mod pki;
mod pump;
mod session;
mod tls;

pub use dial::{connect, connect_with};
pub use error::{CloseReason, LinkError, SendError};
pub use identity::Identity;
pub use listener::Listener;
pub use pace::Pacer;
pub use session::{Options, Session, SessionSender};
