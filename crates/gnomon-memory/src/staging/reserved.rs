//! Blocks that were taken for a request and are not at a guest yet.

use std::{collections::VecDeque, fmt, sync::Arc};

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
    blocks: VecDeque<(BlockId, Arc<Block>)>,
}

impl Reserved {
    pub(super) fn new(shared: Arc<Shared>, blocks: Vec<(BlockId, Arc<Block>)>) -> Reserved {
        Reserved { shared, blocks: blocks.into() }
    }

    /// The blocks, largest first. No guest may see them before they are assigned.
    pub fn blocks(&self) -> impl ExactSizeIterator<Item = &Arc<Block>> {
        self.blocks.iter().map(|(_, block)| block)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Makes the largest of them a VM's: it is on the books as its own, the holder has forgotten it, and QEMU may be given
    /// its descriptor. From here on the block can only go back to the host, whether the guest took it or not: see
    /// [`super::Staging::returned`] and [`super::Staging::vm_ended`]. `None` when there is none left.
    ///
    /// After an error the block is not assigned and never will be. Blocks for some 50 µs, and longer when the holder does
    /// not answer.
    pub fn assign_next(&mut self, vm: &str) -> Result<Option<Arc<Block>>, StagingError> {
        let Some((id, block)) = self.blocks.pop_front() else { return Ok(None) };
        // The books first: what is a guest's is never handed to a new holder.
        self.shared.change(|books| books.pool.assign(id, vm))?;
        match self.shared.forget(id) {
            Ok(()) => Ok(Some(block)),
            Err(error) => self.shared.give_back(id).and(Err(error)),
        }
    }

    /// Makes all of them a VM's, as [`Reserved::assign_next`] does for each. After an error none of them is.
    pub fn assign(mut self, vm: &str) -> Result<Vec<Arc<Block>>, StagingError> {
        let mut assigned: Vec<Arc<Block>> = Vec::new();
        loop {
            match self.assign_next(vm) {
                Ok(Some(block)) => assigned.push(block),
                Ok(None) => return Ok(assigned),
                Err(error) => {
                    assigned.iter().try_for_each(|block| self.shared.give_back(block.id()))?;
                    return Err(error);
                }
            }
        }
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
