//! QMP, the monitor protocol of QEMU: JSON lines over a unix socket, with file descriptors beside them.
//!
//! ```text
//!  caller ── execute(id) ──► socket ──► QEMU
//!    ▲                                   │
//!    └── waiter[id] ◄── reader thread ◄──┤ return | error
//!        subscribers ◄── reader thread ◄─┘ event
//! ```
//!
//! One reader thread per connection matches replies to waiters by id and hands every event to every subscriber.
//! What the other side sends is not trusted: a line has a limit, a reply nobody waits for is dropped, and whatever
//! cannot be understood closes the connection and tells all waiters why.
//!
//! QEMU serves one client per monitor socket: a second one is accepted by the kernel and waits, without a greeting,
//! until the first one leaves.
//!
//! Source: QEMU documentation, "QEMU Machine Protocol Specification".

mod client;
mod commands;
mod error;
mod events;
mod line;
mod types;

pub use client::Qmp;
pub(crate) use client::{GREETING_TIMEOUT, dial};
pub use error::{CloseReason, QmpError};
pub use events::{EventError, EventStream, QmpEvent};
pub use types::{MachineInfo, MemoryBackend, MigrationProgress, MigrationStatus, RunState, VmStatus};
