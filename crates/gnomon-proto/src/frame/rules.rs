//! The rules both directions keep: what may be encoded is exactly what will decode.

use gnomon_terms::{BLOCK_SIZE, Extent};

use super::{FrameError, Kind, MAX_NAME};
use crate::Class;

/// The block after the last a volume can have: a byte offset must fit into 64 bits.
const END_OF_BLOCKS: u64 = u64::MAX / BLOCK_SIZE;

/// A broken rule of `kind`.
pub(super) fn malformed(kind: Kind, what: &'static str) -> FrameError {
    FrameError::Malformed { kind, what }
}

/// `what` holds, or the frame is malformed.
pub(super) fn ensure(holds: bool, kind: Kind, what: &'static str) -> Result<(), FrameError> {
    if holds { Ok(()) } else { Err(malformed(kind, what)) }
}

/// An extent of at least one block that ends within 64 bits of bytes and is counted in 32.
pub(super) fn extent(kind: Kind, extent: Extent) -> Result<(u64, u32), FrameError> {
    let count = u32::try_from(extent.len.0).map_err(|_| malformed(kind, "more than 2^32 blocks"))?;
    ensure(count > 0, kind, "an extent of no blocks")?;
    let end = extent.start.0.checked_add(extent.len.0);
    ensure(end.is_some_and(|end| end <= END_OF_BLOCKS), kind, "an extent past the end of any volume")?;
    Ok((extent.start.0, count))
}

/// Data for `count` blocks is that many blocks; only the last may be cut, by the end of the volume.
pub(super) fn block_data(kind: Kind, count: u32, len: usize) -> Result<(), FrameError> {
    let full = u64::from(count) * BLOCK_SIZE;
    let len = len as u64;
    ensure(len <= full && len + BLOCK_SIZE > full, kind, "data that is not as long as its extent")
}

/// A run of bytes of at least one byte that ends within 64 bits.
pub(super) fn byte_run(kind: Kind, at: u64, len: u32) -> Result<(), FrameError> {
    ensure(len > 0, kind, "a write of no bytes")?;
    ensure(at.checked_add(u64::from(len)).is_some(), kind, "a write past the end of any volume")
}

/// A class in which blocks may travel.
pub(super) fn bulk_class(kind: Kind, class: Class) -> Result<Class, FrameError> {
    ensure(class != Class::Pulse, kind, "blocks in the pulse class")?;
    Ok(class)
}

/// A node name that can stand in a certificate: as a DNS name, lower case.
pub(super) fn node_name(kind: Kind, name: &str) -> Result<(), FrameError> {
    ensure(crate::is_node_name(name), kind, "a node name that is no DNS name")?;
    ensure(name.len() <= MAX_NAME, kind, "a node name over 253 bytes")
}
