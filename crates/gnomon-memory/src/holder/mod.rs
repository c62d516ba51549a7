//! The holder: a process that keeps staged blocks while the daemon is away.
//!
//! ```text
//!   daemon ──Keep(block, descriptor)──► holder          a block is whole: it is kept, then it is staged
//!   daemon ──Forget(block)────────────► holder          a block is assigned or given back: forgotten first
//!   daemon killed                       holder keeps
//!   daemon again ── /proc/HOLDER/fd ──► what is there is staged again, without a word said
//! ```
//!
//! Invariant: *what the holder has has never been seen by a guest.* A block leaves it before a QEMU is given it, and
//! nothing that was at a guest goes there. So what a restarted daemon finds there is zero, and can be given to anybody of
//! its group. A holder that does not answer is ended, for only then it is certain that it has a block no more.
//!
//! The holder is a session of its own and outlives the daemon as QEMU does. It ends by itself: when it holds nothing
//! and nobody is connected for a minute, or when no daemon has come for a quarter of an hour (staged memory that nobody
//! uses is a loss to the host), or when it is told to. Memory that nobody but a dead holder had is back at the host.
//!
//! One daemon at a time: a second is told that the holder is busy, and may not use it.
//!
//! Source: unix(7) (`SCM_RIGHTS`, `SO_PEERCRED`, `SOCK_SEQPACKET`), pidfd_open(2).

mod client;
mod error;
mod link;
mod message;
mod server;
mod start;

pub(crate) use client::Holder;
pub use error::HolderError;
pub use server::{Patience, hold};
pub use start::HolderCommand;
