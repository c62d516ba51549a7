//! Blocks that were taken for a request and are not at a guest yet.

use std::{fmt, mem, sync::Arc};

use gnomon_terms::Bytes;

use super::{StagingError, shared::Shared};
use crate::block::{Block, BlockId};

/// What a request got.
#[derive(Debug)]
pub struct Taken {
    /// The blocks. Empty when nothing fits.
    pub reserved: Reserved,
    /// How much that is.
    pub hit: Bytes,
    /// How much of the request is left for the standard path.
    pub missing: Bytes,
}

/// Blocks that belong to one request. Dropped without being assigned, they go back to the pool, and to the host when
/// their group was removed meanwhile.
pub struct Reserved {
    shared: Arc<Shared>,
    blocks: Vec<(BlockId, Arc<Block>)>,
}

impl Reserved {
    pub(super) fn new(shared: Arc<Shared>, blocks: Vec<(BlockId, Arc<Block>)>) -> Reserved {
        Reserved { shared, blocks }
    }

    /// The blocks, largest first. No guest may see them before they are assigned.
    pub fn blocks(&self) -> impl ExactSizeIterator<Item = &Arc<Block>> {
        self.blocks.iter().map(|(_, block)| block)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Makes them a VM's: they are on the books as its own, the holder has forgotten them, and QEMU may be given their
    /// descriptors. From here on a block can only go back to the host, whether the guest took it or not: see
    /// [`super::Staging::returned`] and [`super::Staging::vm_ended`].
    ///
    /// After an error none of them is assigned, and all are back at the host. Blocks for some 50 µs for each, and longer
    /// when the holder does not answer.
    pub fn assign(mut self, vm: &str) -> Result<Vec<Arc<Block>>, StagingError> {
        let blocks = mem::take(&mut self.blocks);
        let ids: Vec<BlockId> = blocks.iter().map(|(id, _)| *id).collect();
        // The books first: what is a guest's is never handed to a new holder.
        self.shared.change(|books| ids.iter().try_for_each(|id| books.pool.assign(*id, vm)))?;
        let forgotten = ids.iter().try_for_each(|id| self.shared.forget(*id));
        if let Err(error) = forgotten {
            self.shared.change(|books| ids.iter().try_for_each(|id| books.pool.returned(*id)))?;
            self.shared.let_go(&ids)?;
            return Err(error);
        }
        Ok(blocks.into_iter().map(|(_, block)| block).collect())
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if !self.blocks.is_empty() {
            self.shared.put_back(self.blocks.iter().map(|(id, _)| *id));
        }
    }
}

impl fmt::Debug for Reserved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.blocks()).finish()
    }
}
