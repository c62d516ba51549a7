//! What a guest did.

use crate::{Extent, Instant, ResourceId};

/// What kind of touch it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// The guest waits for the data.
    Read,
    /// The guest replaced the data: what was there before is of no use to a shadow.
    Write,
    /// The guest gave the data up (trim, write-zeroes): nothing needs to be carried.
    Discard,
}

/// A guest touched an extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// When the request arrived.
    pub at: Instant,
    /// What it belongs to.
    pub resource: ResourceId,
    /// Which blocks.
    pub extent: Extent,
    /// What was done.
    pub op: Op,
}
