//! A set of blocks: one bit for each, and how many bits are set.
//!
//! What is allocated, what a place holds and what it lacks are all sets of blocks of one resource. A quarter of a
//! million blocks (1 GiB) take 32 KiB.

use gnomon_terms::{BlockCount, BlockIndex, Extent};

/// A set of blocks of one resource. Extents that reach past the end are cut there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockMap {
    words: Vec<u64>,
    size: u64,
    count: u64,
}

impl BlockMap {
    /// The empty set over a resource of `size` blocks.
    pub fn empty(size: BlockCount) -> BlockMap {
        BlockMap { words: vec![0; size.0.div_ceil(64) as usize], size: size.0, count: 0 }
    }

    /// All blocks of a resource of `size` blocks.
    pub fn full(size: BlockCount) -> BlockMap {
        let mut map = BlockMap::empty(size);
        map.insert(Extent::new(0, size.0));
        map
    }

    /// Blocks of the resource.
    pub fn size(&self) -> BlockCount {
        BlockCount(self.size)
    }

    /// Blocks in the set. O(1).
    pub fn count(&self) -> BlockCount {
        BlockCount(self.count)
    }

    /// True when no block is in the set. O(1).
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// True when `block` is in the set; a block past the end never is.
    pub fn contains(&self, block: BlockIndex) -> bool {
        block.0 < self.size && self.words[(block.0 / 64) as usize] >> (block.0 % 64) & 1 == 1
    }

    /// How many blocks of `extent` are in the set.
    pub fn count_in(&self, extent: Extent) -> BlockCount {
        BlockCount(self.pieces(extent).map(|(word, mask)| u64::from((self.words[word] & mask).count_ones())).sum())
    }

    /// True when every block of `extent` (cut at the end) is in the set.
    pub fn contains_all(&self, extent: Extent) -> bool {
        self.pieces(extent).all(|(word, mask)| self.words[word] & mask == mask)
    }

    /// True when some block of `extent` is in the set.
    pub fn contains_any(&self, extent: Extent) -> bool {
        self.pieces(extent).any(|(word, mask)| self.words[word] & mask != 0)
    }

    /// Adds `extent`; how many blocks are new.
    pub fn insert(&mut self, extent: Extent) -> BlockCount {
        let mut added = 0;
        for (word, mask) in self.pieces(extent) {
            added += u64::from((mask & !self.words[word]).count_ones());
            self.words[word] |= mask;
        }
        self.count += added;
        BlockCount(added)
    }

    /// Takes `extent` out; how many blocks were in.
    pub fn remove(&mut self, extent: Extent) -> BlockCount {
        let mut removed = 0;
        for (word, mask) in self.pieces(extent) {
            removed += u64::from((mask & self.words[word]).count_ones());
            self.words[word] &= !mask;
        }
        self.count -= removed;
        BlockCount(removed)
    }

    /// The first block in the set at or after `from`.
    pub fn next_from(&self, from: BlockIndex) -> Option<BlockIndex> {
        self.scan(from, 0)
    }

    /// The first run of blocks in the set at or after `from`.
    pub fn next_run(&self, from: BlockIndex) -> Option<Extent> {
        let start = self.scan(from, 0)?;
        let end = self.scan(start, u64::MAX).map_or(self.size, |b| b.0.min(self.size));
        Some(Extent::new(start.0, end - start.0))
    }

    /// The runs of blocks in the set, in order.
    pub fn runs(&self) -> impl Iterator<Item = Extent> {
        let mut from = BlockIndex(0);
        std::iter::from_fn(move || {
            let run = self.next_run(from)?;
            from = run.end();
            Some(run)
        })
    }

    /// The runs of blocks of `extent` (cut at the end) that are not in the set, in order.
    pub fn gaps(&self, extent: Extent) -> impl Iterator<Item = Extent> {
        let end = extent.start.0.saturating_add(extent.len.0).min(self.size);
        let mut from = extent.start;
        std::iter::from_fn(move || {
            let start = self.scan(from, u64::MAX).filter(|block| block.0 < end)?;
            from = BlockIndex(self.scan(start, 0).map_or(end, |block| block.0.min(end)));
            Some(Extent::new(start.0, from.0 - start.0))
        })
    }

    /// The smallest extent that holds every block of `extent` that is in the set; empty when there is none.
    pub fn hull(&self, extent: Extent) -> Extent {
        let end = extent.start.0.saturating_add(extent.len.0).min(self.size);
        let Some(first) = self.next_from(extent.start).filter(|b| b.0 < end) else {
            return Extent { start: extent.start, len: BlockCount(0) };
        };
        let last = (first.0..end).rev().find(|b| self.contains(BlockIndex(*b))).unwrap_or(first.0);
        Extent::new(first.0, last - first.0 + 1)
    }

    /// First block at or after `from` whose bit differs from those of `flip`, which is all zeros or all ones.
    fn scan(&self, from: BlockIndex, flip: u64) -> Option<BlockIndex> {
        if from.0 >= self.size {
            return None;
        }
        let first = (from.0 / 64) as usize;
        let mut bits = (self.words[first] ^ flip) & (u64::MAX << (from.0 % 64));
        let mut word = first;
        while bits == 0 {
            word += 1;
            bits = self.words.get(word)? ^ flip;
        }
        let block = word as u64 * 64 + u64::from(bits.trailing_zeros());
        (block < self.size).then_some(BlockIndex(block))
    }

    /// The words and masks that make up `extent`, cut at the end.
    fn pieces(&self, extent: Extent) -> impl Iterator<Item = (usize, u64)> + use<> {
        let start = extent.start.0.min(self.size);
        let end = extent.start.0.saturating_add(extent.len.0).min(self.size);
        let words = if start < end { start / 64..end.div_ceil(64) } else { 0..0 };
        words.map(move |word| {
            let low = start.max(word * 64) - word * 64;
            let high = end.min(word * 64 + 64) - word * 64;
            let mask = (u64::MAX >> (64 - (high - low))) << low;
            (word as usize, mask)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn runs_come_in_order() {
        let mut map = BlockMap::empty(BlockCount(200));
        map.insert(Extent::new(3, 5));
        map.insert(Extent::new(60, 70));
        map.insert(Extent::new(190, 500));
        let runs: Vec<_> = map.runs().collect();
        assert_eq!(runs, [Extent::new(3, 5), Extent::new(60, 70), Extent::new(190, 10)]);
        assert_eq!(map.hull(Extent::new(0, 64)), Extent::new(3, 61));
        assert!(map.hull(Extent::new(8, 50)).is_empty());
        assert_eq!(map.next_from(BlockIndex(u64::MAX)), None);
    }

    proptest! {
        #[test]
        fn agrees_with_a_set(ops in prop::collection::vec((any::<bool>(), 0u64..300, 0u64..200), 0..40)) {
            let mut map = BlockMap::empty(BlockCount(257));
            let mut set = BTreeSet::new();
            for (add, start, len) in ops {
                let blocks = (start..start + len).filter(|b| *b < 257);
                let before = set.len() as u64;
                if add {
                    set.extend(blocks);
                    prop_assert_eq!(map.insert(Extent::new(start, len)).0, set.len() as u64 - before);
                } else {
                    blocks.for_each(|b| { set.remove(&b); });
                    prop_assert_eq!(map.remove(Extent::new(start, len)).0, before - set.len() as u64);
                }
                prop_assert_eq!(map.count().0, set.len() as u64);
                let extent = Extent::new(start, len);
                let inside = set.range(start..start + len).count() as u64;
                prop_assert_eq!(map.count_in(extent).0, inside);
                prop_assert_eq!(map.contains_any(extent), inside > 0);
                let gaps: Vec<u64> = map.gaps(extent).flat_map(|r| r.start.0..r.end().0).collect();
                let outside: Vec<u64> = (start..start + len).filter(|b| *b < 257 && !set.contains(b)).collect();
                prop_assert_eq!(gaps, outside);
                prop_assert!(map.gaps(extent).zip(map.gaps(extent).skip(1)).all(|(a, b)| a.end() < b.start));
                let hull = map.hull(extent);
                prop_assert_eq!(hull.is_empty(), inside == 0);
                prop_assert_eq!(map.count_in(hull).0, inside);
            }
            let blocks: Vec<u64> = map.runs().flat_map(|r| r.start.0..r.end().0).collect();
            prop_assert_eq!(blocks, set.into_iter().collect::<Vec<_>>());
        }
    }
}
