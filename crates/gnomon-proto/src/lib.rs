//! How copies agree: frames, classes, bitmaps, the phases of a move and the two-phase handover of a volume.
//!
//! Sans-io: these machines take bytes, inputs and the time as arguments and return bytes, records and deadlines.
//! They decide who may write; carrying is done by the link, keeping by the store, waiting by whoever drives them.
//!
//! Invariant: no clock, thread, socket, file, random source or global (checked by `cargo xtask tidy`).

mod class;
mod name;

pub mod bitmap;
pub mod frame;
pub mod guard;
pub mod handover;
pub mod phase;

pub use class::Class;
pub use name::is_node_name;
pub use phase::{Phase, PhaseEvent};
