//! A run of blocks.

use crate::{BlockCount, BlockIndex, Bytes};

/// A run of 4 KiB blocks of one resource: `start .. start + len`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Extent {
    /// First block.
    pub start: BlockIndex,
    /// How many blocks; an extent of zero blocks is empty and touches nothing.
    pub len: BlockCount,
}

impl Extent {
    /// `len` blocks from `start`.
    pub const fn new(start: u64, len: u64) -> Extent {
        Extent { start: BlockIndex(start), len: BlockCount(len) }
    }

    /// The blocks that hold any of the bytes `at .. at + len`.
    pub fn touching(at: u64, len: u64) -> Extent {
        if len == 0 {
            return Extent { start: BlockIndex::of_byte(at), len: BlockCount(0) };
        }
        let first = BlockIndex::of_byte(at);
        let last = BlockIndex::of_byte(at + (len - 1));
        Extent { start: first, len: BlockCount(last.0 - first.0 + 1) }
    }

    /// The block after the last one.
    pub fn end(self) -> BlockIndex {
        self.start.plus(self.len)
    }

    /// True when the extent has no blocks.
    pub fn is_empty(self) -> bool {
        self.len.0 == 0
    }

    /// Its size.
    pub fn bytes(self) -> Bytes {
        self.len.bytes()
    }

    /// The blocks of the extent, in order.
    pub fn blocks(self) -> impl Iterator<Item = BlockIndex> {
        (self.start.0..self.end().0).map(BlockIndex)
    }

    /// What both extents have; empty when they do not meet.
    pub fn overlap(self, other: Extent) -> Extent {
        let start = self.start.max(other.start);
        let end = self.end().min(other.end());
        Extent { start, len: BlockCount(end.0.saturating_sub(start.0)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_touch_whole_blocks() {
        let table = [((0, 1), (0, 1)), ((4095, 2), (0, 2)), ((4096, 4096), (1, 1)), ((100, 0), (0, 0))];
        for ((at, len), (start, blocks)) in table {
            assert_eq!(Extent::touching(at, len), Extent::new(start, blocks), "{at}+{len}");
        }
    }

    #[test]
    fn overlap_is_what_both_have() {
        assert_eq!(Extent::new(0, 10).overlap(Extent::new(5, 10)), Extent::new(5, 5));
        assert!(Extent::new(0, 3).overlap(Extent::new(7, 2)).is_empty());
    }
}
