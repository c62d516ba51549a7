//! In which sizes memory is asked for, and the blocks that follow from it.
//!
//! A request is served by whole blocks: of 2.5 GiB, blocks of 2 GiB and 512 MiB. So what is counted is not requests but the
//! blocks each would best be served by, by size, in bytes, the latest weighing most. The start of a VM needs one block of its
//! exact size: such sizes are counted by themselves.

use std::collections::BTreeMap;

use gnomon_terms::Bytes;

/// The smallest block: what Linux on x86-64 brings online at once in a guest of less than 64 GiB.
///
/// Source: Linux, arch/x86/mm/init_64.c, `MIN_MEMORY_BLOCK_SIZE` and `probe_memory_block_size`.
pub const BLOCK: Bytes = Bytes(128 << 20);
/// Classes of blocks, each twice the one before: 128 MiB to 64 GiB.
pub const CLASSES: usize = 10;
/// Exact sizes of starts that are remembered; the one with the fewest makes room.
const WHOLES: usize = 16;
/// How much of a count is left after each step: half after half a day of 5-minute steps.
const KEPT: f64 = 1.0 - 1.0 / 208.0;
/// What is less than a byte has been forgotten.
const LEAST: f64 = 1.0;

/// What should be staged for a group: so many blocks of each size, the largest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// Sizes, each a class or the exact size of a start, falling; and how many of each, at least one.
    pub blocks: Vec<(Bytes, u32)>,
}

impl Target {
    /// All blocks together.
    pub fn bytes(&self) -> Bytes {
        Bytes(
            self.blocks
                .iter()
                .map(|(size, number)| size.0.saturating_mul(u64::from(*number)))
                .fold(0, u64::saturating_add),
        )
    }

    fn add(&mut self, size: u64, number: u64) {
        let Some(number) = u32::try_from(number).ok().filter(|number| *number > 0) else { return };
        match self.blocks.iter_mut().find(|(known, _)| known.0 == size) {
            Some((_, known)) => *known = known.saturating_add(number),
            None => self.blocks.push((Bytes(size), number)),
        }
        self.blocks.sort_by_key(|(size, _)| std::cmp::Reverse(*size));
    }
}

/// Bytes asked for by size of block, as far as they are remembered.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sizes {
    /// By class.
    classes: [f64; CLASSES],
    /// By exact size, of starts.
    wholes: BTreeMap<u64, f64>,
}

impl Sizes {
    /// Notes a request of so many bytes; a `whole` one is served by one block or not at all. Nothing is noted of none.
    pub fn note(&mut self, size: Bytes, whole: bool) {
        if whole {
            return self.note_whole(size.0);
        }
        let mut left = size.0.div_ceil(BLOCK.0);
        for class in (0..CLASSES).rev() {
            let number = left >> class;
            self.classes[class] += (number << class) as f64 * BLOCK.0 as f64;
            left -= number << class;
        }
    }

    fn note_whole(&mut self, size: u64) {
        if size == 0 {
            return;
        }
        if self.wholes.len() == WHOLES && !self.wholes.contains_key(&size) {
            let starts = |(size, bytes): (&u64, &f64)| bytes / *size as f64;
            let least = self.wholes.iter().min_by(|one, other| starts(*one).total_cmp(&starts(*other)));
            let least = least.map(|(size, _)| *size);
            least.map(|least| self.wholes.remove(&least));
        }
        *self.wholes.entry(size).or_default() += size as f64;
    }

    /// A step is over: what is remembered counts a little less.
    pub fn fade(&mut self) {
        self.weigh(KEPT);
    }

    /// Leaves so much of everything.
    pub fn weigh(&mut self, share: f64) {
        self.classes.iter_mut().for_each(|bytes| *bytes *= share);
        self.wholes.retain(|_, bytes| {
            *bytes *= share;
            *bytes >= LEAST
        });
    }

    /// Both together: a group's sizes are the sum of its members'.
    pub fn add(&mut self, other: &Sizes) {
        self.classes.iter_mut().zip(other.classes).for_each(|(sum, bytes)| *sum += bytes);
        for (size, bytes) in &other.wholes {
            *self.wholes.entry(*size).or_default() += bytes;
        }
    }

    /// Sizes of blocks with the share of bytes that was asked for in each, starts included, the largest first; without
    /// those that nobody asked for. All in the smallest when nothing is known.
    pub fn shares(&self) -> Vec<(Bytes, f64)> {
        let mut all: Vec<(Bytes, f64)> = self.wholes.iter().map(|(size, bytes)| (Bytes(*size), *bytes)).collect();
        all.extend((0..CLASSES).map(|class| (Bytes(BLOCK.0 << class), self.classes[class])));
        let sum: f64 = all.iter().map(|(_, bytes)| bytes).sum();
        all.retain(|(_, bytes)| *bytes >= LEAST);
        all.sort_by_key(|(size, _)| std::cmp::Reverse(*size));
        if all.is_empty() {
            return vec![(BLOCK, 1.0)];
        }
        all.into_iter().map(|(size, bytes)| (size, bytes / sum)).collect()
    }

    /// So many bytes as blocks, not more than `budget`.
    ///
    /// Each class gets its share in whole blocks, and one more when no more than half of the smallest block is lacking. What
    /// is over is the next smaller class's: smaller blocks serve what larger ones would have, the other way round they do
    /// not. A start's exact block
    /// serves nothing else: it is staged when at least half of it is expected, and what is over of it is not staged at all.
    pub fn blocks(&self, bytes: Bytes, budget: Bytes) -> Target {
        let mut target = Target::default();
        let mut left = budget.0 / BLOCK.0 * BLOCK.0;
        let mut take = |target: &mut Target, size: u64, wanted: f64, nearest: u64| -> f64 {
            let number = (((wanted + nearest as f64) / size as f64).max(0.0) as u64).min(left / size);
            left -= number * size;
            target.add(size, number);
            wanted - (number * size) as f64
        };
        let sum = (self.classes.iter().sum::<f64>() + self.wholes.values().sum::<f64>()).max(LEAST);
        for (size, asked) in self.wholes.iter().rev() {
            take(&mut target, *size, bytes.0 as f64 * asked / sum, size / 2);
        }
        let wholes = self.wholes.values().sum::<f64>() / sum;
        let known = self.classes.iter().sum::<f64>().max(LEAST);
        let mut over = 0.0;
        for class in (0..CLASSES).rev() {
            // Nothing known: all in the smallest.
            let share = if known <= LEAST { f64::from(u8::from(class == 0)) } else { self.classes[class] / known };
            if share > 0.0 || class == 0 {
                over =
                    take(&mut target, BLOCK.0 << class, over + bytes.0 as f64 * (1.0 - wholes) * share, BLOCK.0 / 2);
            }
        }
        target
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn target(blocks: &[(u64, u32)]) -> Target {
        Target { blocks: blocks.iter().map(|(mib, number)| (Bytes(mib * MIB), *number)).collect() }
    }

    fn sizes(asked: &[(u64, bool)]) -> Sizes {
        let mut sizes = Sizes::default();
        asked.iter().for_each(|(mib, whole)| sizes.note(Bytes(mib * MIB), *whole));
        sizes
    }

    #[test]
    fn blocks_are_of_the_sizes_that_were_asked_for() {
        // (requests in MiB, to stage, budget, blocks)
        let table = [
            (&[][..], 500, 4096, &[(128, 4)][..]),
            (&[], 60, 4096, &[]),
            (&[(512, false)], 500, 4096, &[(512, 1)]),
            (&[(512, false)], 1050, 4096, &[(512, 2)]),
            (&[(512, false)], 200, 4096, &[(128, 2)]),
            (&[(640, false), (640, false)], 1280, 4096, &[(512, 2), (128, 2)]),
            (&[(100, false), (1024, false)], 2304, 4096, &[(1024, 2), (128, 2)]),
            (&[(1024, false)], 4096, 1500, &[(1024, 1), (128, 3)]),
            (&[(129, false)], 1408, 4096, &[(256, 5), (128, 1)]),
            (&[(768, true)], 700, 4096, &[(768, 1)]),
            (&[(768, true)], 300, 4096, &[]),
            (&[(768, true), (256, false)], 1024, 4096, &[(768, 1), (256, 1)]),
            (&[(512, false)], 10_000, 0, &[]),
        ];
        for (asked, mib, budget, expected) in table {
            let blocks = sizes(asked).blocks(Bytes(mib * MIB), Bytes(budget * MIB));
            assert_eq!(blocks, target(expected), "{asked:?}, {mib} MiB within {budget}");
        }
    }

    #[test]
    fn what_is_asked_for_no_more_is_forgotten() {
        let mut sizes = sizes(&[(4096, true), (2048, false)]);
        (0..2000).for_each(|_| sizes.fade());
        (0..10).for_each(|_| sizes.note(Bytes(256 * MIB), false));
        assert_eq!(sizes.blocks(Bytes(1024 * MIB), Bytes(1 << 40)), target(&[(256, 4)]));
        (0..20_000).for_each(|_| sizes.fade());
        assert_eq!(sizes.shares(), [(BLOCK, 1.0)]);
    }

    #[test]
    fn no_more_than_so_many_exact_sizes_are_kept_and_never_the_rarest() {
        let mut sizes = Sizes::default();
        (0..9).for_each(|_| sizes.note(Bytes(1 << 30), true));
        sizes.note(Bytes((1 << 30) + 8192), true);
        assert_eq!(sizes.wholes.len(), 2, "what is a page more needs another block");
        (1..200).for_each(|n| sizes.note(Bytes(n * BLOCK.0), true));
        assert!(sizes.wholes.len() == WHOLES && sizes.wholes.contains_key(&(1 << 30)), "{:?}", sizes.wholes);
        sizes.note(Bytes(0), true);
        sizes.note(Bytes(0), false);
        sizes.note(Bytes(u64::MAX), true);
        sizes.note(Bytes(u64::MAX), false);
        assert!(sizes.blocks(Bytes(u64::MAX), Bytes(1 << 40)).bytes() <= Bytes(1 << 40));
    }

    proptest! {
        #[test]
        fn blocks_fit_the_budget_and_are_about_as_many_bytes_as_wanted(
            asked in prop::collection::vec(1u64..9000, 0..30), mib in 0u64..100_000, budget in 0u64..100_000
        ) {
            let asked: Vec<(u64, bool)> = asked.into_iter().map(|mib| (mib, false)).collect();
            let target = sizes(&asked).blocks(Bytes(mib * MIB), Bytes(budget * MIB));
            prop_assert!(target.bytes().0 <= budget * MIB);
            prop_assert!(target.blocks.iter().all(|(size, number)| size.0 % BLOCK.0 == 0 && *number > 0));
            if budget >= mib + (64 << 10) {
                prop_assert!(target.bytes().0.abs_diff(mib * MIB) <= BLOCK.0 / 2, "{mib}: {target:?}");
            }
        }
    }
}
