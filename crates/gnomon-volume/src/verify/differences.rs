//! Where two copies differ: extents, as many as a person can use, and how much there is in all.

use std::collections::BTreeMap;

use gnomon_terms::{BlockIndex, Bytes, Extent};

/// Extents that are listed. A volume that differs in more places is better copied anew than looked at.
pub const LISTED: usize = 1000;

/// Differing extents, merged where they touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Differences {
    /// First block to the block after the last.
    listed: BTreeMap<u64, u64>,
    bytes: Bytes,
    unlisted: Bytes,
}

impl Differences {
    /// A block differs; `bytes` of it are on the volume. Each block is added once.
    pub fn add(&mut self, block: BlockIndex, bytes: u64) {
        self.bytes.0 += bytes;
        let before = self.listed.range(..=block.0).next_back().map(|(start, end)| (*start, *end));
        let start = before.filter(|(_, end)| *end == block.0).map_or(block.0, |(start, _)| start);
        let end = self.listed.remove(&(block.0 + 1)).unwrap_or(block.0 + 1);
        if start < block.0 || end > block.0 + 1 || self.listed.len() < LISTED {
            self.listed.insert(start, end);
        } else {
            self.unlisted.0 += bytes;
        }
    }

    /// The listed extents, in address order, at most [`LISTED`].
    pub fn extents(&self) -> Vec<Extent> {
        self.listed.iter().map(|(start, end)| Extent::new(*start, end - start)).collect()
    }

    /// Bytes that differ, listed or not.
    pub fn bytes(&self) -> Bytes {
        self.bytes
    }

    /// Bytes that differ and are in no listed extent.
    pub fn unlisted(&self) -> Bytes {
        self.unlisted
    }

    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        self.bytes == Bytes(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_that_touch_are_one_extent_in_any_order() {
        let table: [(&[u64], &[Extent]); 4] = [
            (&[], &[]),
            (&[7, 8, 9], &[Extent::new(7, 3)]),
            (&[9, 7, 8, 3], &[Extent::new(3, 1), Extent::new(7, 3)]),
            (&[5, 3, 4, 6, 1], &[Extent::new(1, 1), Extent::new(3, 4)]),
        ];
        for (blocks, extents) in table {
            let mut found = Differences::default();
            blocks.iter().for_each(|block| found.add(BlockIndex(*block), 4096));
            assert_eq!((found.extents().as_slice(), found.bytes().0), (extents, blocks.len() as u64 * 4096));
        }
    }

    #[test]
    fn the_list_is_bounded_and_the_rest_is_counted() {
        let mut found = Differences::default();
        let places = LISTED as u64 + 10;
        (0..places).for_each(|place| found.add(BlockIndex(place * 2), 4096));
        assert_eq!((found.extents().len(), found.unlisted().0, found.bytes().0), (LISTED, 40960, places * 4096));
        found.add(BlockIndex(1), 4096);
        assert_eq!((found.extents()[0], found.unlisted().0), (Extent::new(0, 3), 40960));
    }
}
