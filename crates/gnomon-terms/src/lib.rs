//! The field's nouns. Nothing here acts.
//!
//! Every other crate speaks in these words: units that cannot be mixed up ([`Bytes`], [`BlockIndex`],
//! [`BlockCount`]), time as a value ([`Instant`]), what a guest did ([`Access`]), what the loop asks for
//! ([`Move`]), what became of it ([`Outcome`]), and the one plug where thinking meets carrying ([`Plane`]).
//!
//! Invariant: no clock, thread, socket, file or global (checked by `cargo xtask tidy`).

mod access;
mod error;
mod extent;
mod ids;
mod moves;
mod pages;
mod plane;
mod time;
mod units;

pub use access::{Access, Op};
pub use error::ErrorKind;
pub use extent::Extent;
pub use ids::{Epoch, MoveId, Place, ResourceId};
pub use moves::{Move, Outcome, Priority, Settled, Verb};
pub use pages::{PageRun, PageSet};
pub use plane::{Event, Plane, Routes};
pub use time::Instant;
pub use units::{
    BLOCK_SIZE, BlockCount, BlockIndex, Bytes, BytesPerSecond, PAGE_SIZE, PageCount, PageNumber, ParseUnitError,
};
