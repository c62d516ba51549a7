//! Moves: what the loop asks a plane to do, and what became of it.

use std::time::Duration;

use crate::{Bytes, Extent, Instant, MoveId, Place, ResourceId};

/// How a move competes for the link. Smaller goes first: `Demand < Prefetch < Background`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Priority {
    /// A guest is waiting for it. Never asked for by the loop; a plane does it by itself and reports it.
    Demand,
    /// Expected within the horizon.
    Prefetch,
    /// Has to be there in the end.
    Background,
}

/// What is to be done with an extent at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verb {
    /// Make a valid copy there.
    Copy,
    /// Give the copy there up: it is no longer expected to be of use. Only allowed while the copy is a spare.
    Drop,
}

/// What the planner asks a plane to do. It says what, where, by when; never why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// Names the move when it settles.
    pub id: MoveId,
    /// What the extent belongs to.
    pub resource: ResourceId,
    /// Which blocks.
    pub extent: Extent,
    /// Where the copy should be, or no longer be.
    pub to: Place,
    /// Copy or drop.
    pub verb: Verb,
    /// How it competes with other moves.
    pub priority: Priority,
    /// When it stops being of use; `Instant` at the end of the range for background moves.
    pub due: Instant,
}

/// How a move ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// The place has (or no longer has) the extent.
    Done,
    /// Nothing had to be carried: the place had it already, or the guest replaced it meanwhile.
    Needless,
    /// It could not be carried. The loop asks again when it still wants it.
    Failed,
}

/// What became of a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Which move.
    pub id: MoveId,
    /// How it ended.
    pub settled: Settled,
    /// Bytes that crossed the link for it.
    pub carried: Bytes,
    /// From `begin` to the acknowledgement.
    pub took: Duration,
}
