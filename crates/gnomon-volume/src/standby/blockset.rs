//! A set of blocks that costs what is in it: the blocks a guest wrote in one turn, on a disk of any size.
//!
//! Kept by stripes ([`crate::stripes`]): 256 bits for each stripe with a block in the set, some 60 bytes with the tree
//! around it. So a guest that writes one block in each stripe of a 1 TiB disk costs 60 MB, and a quiet one nothing; and
//! all of the set is handed on by moving a pointer, which a guest that stands has time for.

use std::collections::BTreeMap;

use gnomon_terms::Extent;

use crate::stripes::{STRIPE_BLOCKS, split};

const WORDS: usize = (STRIPE_BLOCKS / 64) as usize;

/// Blocks of one stripe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Bits([u64; WORDS]);

/// Blocks of a disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct BlockSet {
    /// No entry is empty.
    stripes: BTreeMap<u64, Bits>,
}

impl BlockSet {
    /// Puts blocks in.
    pub fn insert(&mut self, extent: Extent) {
        for piece in split(extent) {
            self.add(stripe_of(piece), Bits::of(piece));
        }
    }

    /// Puts blocks of one stripe in.
    pub fn add(&mut self, stripe: u64, bits: Bits) {
        if !bits.is_empty() {
            let here = self.stripes.entry(stripe).or_default();
            *here = here.or(bits);
        }
    }

    /// Puts all of `other` in.
    pub fn union(&mut self, other: BlockSet) {
        if self.is_empty() {
            *self = other;
            return;
        }
        for (stripe, bits) in other.stripes {
            self.add(stripe, bits);
        }
    }

    /// The blocks of a stripe.
    pub fn of(&self, stripe: u64) -> Bits {
        self.stripes.get(&stripe).copied().unwrap_or_default()
    }

    /// Takes out the blocks of a stripe.
    pub fn take(&mut self, stripe: u64) -> Bits {
        self.stripes.remove(&stripe).unwrap_or_default()
    }

    /// The first stripe after `stripe` with a block in the set, or else the first of all.
    pub fn after(&self, stripe: u64) -> Option<u64> {
        let later = self.stripes.range(stripe.saturating_add(1)..).next();
        later.or(self.stripes.first_key_value()).map(|(stripe, _)| *stripe)
    }

    /// The stripes with a block in the set, in order.
    pub fn stripes(&self) -> impl Iterator<Item = (u64, Bits)> {
        self.stripes.iter().map(|(stripe, bits)| (*stripe, *bits))
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.stripes.is_empty()
    }

    /// How many blocks are in it. Looks at every stripe.
    pub fn count(&self) -> u64 {
        self.stripes.values().map(|bits| bits.0.iter().map(|word| u64::from(word.count_ones())).sum::<u64>()).sum()
    }
}

impl Bits {
    /// The blocks of an extent within one stripe.
    pub fn of(piece: Extent) -> Bits {
        let mut bits = Bits::default();
        for block in piece.blocks() {
            let place = block.0 % STRIPE_BLOCKS;
            bits.0[(place / 64) as usize] |= 1 << (place % 64);
        }
        bits
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.0 == [0; WORDS]
    }

    /// Those of both.
    pub fn or(self, other: Bits) -> Bits {
        Bits(std::array::from_fn(|word| self.0[word] | other.0[word]))
    }

    /// Those that are in `other` too.
    pub fn and(self, other: Bits) -> Bits {
        Bits(std::array::from_fn(|word| self.0[word] & other.0[word]))
    }

    /// Those that are not in `other`.
    pub fn without(self, other: Bits) -> Bits {
        Bits(std::array::from_fn(|word| self.0[word] & !other.0[word]))
    }

    /// The blocks' numbers in the stripe's disk, in order.
    pub fn blocks(self, stripe: u64) -> impl Iterator<Item = u64> {
        let is_set = move |place: &u64| self.0[(place / 64) as usize] >> (place % 64) & 1 == 1;
        (0..STRIPE_BLOCKS).filter(is_set).map(move |place| stripe * STRIPE_BLOCKS + place)
    }

    /// The same as runs.
    pub fn runs(self, stripe: u64) -> Vec<Extent> {
        let mut runs: Vec<Extent> = Vec::new();
        for block in self.blocks(stripe) {
            match runs.last_mut() {
                Some(run) if run.end().0 == block => run.len.0 += 1,
                _ => runs.push(Extent::new(block, 1)),
            }
        }
        runs
    }
}

/// The stripe of an extent that lies within one.
pub(super) fn stripe_of(piece: Extent) -> u64 {
    piece.start.0 / STRIPE_BLOCKS
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn blocks(set: &BlockSet) -> BTreeSet<u64> {
        set.stripes().flat_map(|(stripe, bits)| bits.blocks(stripe)).collect()
    }

    #[test]
    fn runs_are_whole_and_end_at_stripes() {
        let mut set = BlockSet::default();
        set.insert(Extent::new(250, 10));
        set.insert(Extent::new(3, 1));
        let runs: Vec<Extent> = set.stripes().flat_map(|(stripe, bits)| bits.runs(stripe)).collect();
        assert_eq!(runs, [Extent::new(3, 1), Extent::new(250, 6), Extent::new(256, 4)]);
        assert_eq!((set.count(), set.after(0), set.after(1)), (11, Some(1), Some(0)));
        assert_eq!(set.take(0).runs(0), [Extent::new(3, 1), Extent::new(250, 6)]);
        assert_eq!((set.count(), set.after(1)), (4, Some(1)));
    }

    proptest! {
        #[test]
        fn it_is_a_set(
            ours in prop::collection::vec((0u64..2000, 0u64..300), 0..10),
            theirs in prop::collection::vec((0u64..2000, 0u64..300), 0..10),
        ) {
            let fill = |extents: &[(u64, u64)]| {
                let (mut set, mut model) = (BlockSet::default(), BTreeSet::new());
                for (start, len) in extents {
                    set.insert(Extent::new(*start, *len));
                    model.extend(*start..start + len);
                }
                (set, model)
            };
            let ((mut set, mut model), (other, more)) = (fill(&ours), fill(&theirs));
            prop_assert_eq!(blocks(&set), model.clone());
            for (stripe, bits) in other.stripes() {
                let here: BTreeSet<u64> = bits.without(set.of(stripe)).blocks(stripe).collect();
                let truth: BTreeSet<u64> = bits.blocks(stripe).filter(|block| !model.contains(block)).collect();
                prop_assert_eq!(here, truth);
            }
            set.union(other);
            model.extend(more);
            prop_assert_eq!(set.count(), model.len() as u64);
            prop_assert_eq!(blocks(&set), model);
        }
    }
}
