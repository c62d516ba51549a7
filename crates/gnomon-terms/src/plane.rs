//! The plug where thinking meets carrying.

use std::sync::Arc;

use crate::{Access, Extent, Move, Outcome, Place, ResourceId};

/// What a plane tells the loop. Closed: a new kind of fact is a new variant here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A guest touched an extent.
    Accessed(Access),
    /// A guest's read had to wait because `extent` was not at its place: a missed prediction. The plane fetches
    /// it by itself ([`crate::Priority::Demand`]) and says [`Event::Covered`] when it is there.
    Stalled(Access),
    /// `extent` has become valid at `place` by other means than a move (the guest wrote it there, or a demand).
    Covered {
        /// What the extent belongs to.
        resource: ResourceId,
        /// Which blocks.
        extent: Extent,
        /// Where.
        place: Place,
    },
    /// The copy of `extent` at `place` is out of date: the guest wrote the original.
    Outdated {
        /// What the extent belongs to.
        resource: ResourceId,
        /// Which blocks.
        extent: Extent,
        /// Where.
        place: Place,
    },
    /// A move has ended.
    Settled(Outcome),
}

/// Where each extent is best served from: a standing snapshot that the data path reads with one atomic load.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Routes {
    /// Extents that have a copy elsewhere worth reading, in address order, without overlap.
    pub copies: Vec<(Extent, Place)>,
}

/// A data plane: volume, machine, mirror, memory, or simulated. Never blocks, never asks why.
pub trait Plane {
    /// Appends what happened since the last call, oldest first. Never blocks.
    fn drain(&mut self, into: &mut Vec<Event>);

    /// Starts a move. Never blocks; the end is told by [`Event::Settled`].
    fn begin(&mut self, mv: Move);

    /// Takes over a new snapshot of routes.
    fn adopt(&mut self, routes: Arc<Routes>);
}
