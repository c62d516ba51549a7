//! Which staged blocks serve a request: pure arithmetic over sizes.
//!
//! A block is a DIMM of its own in the guest and takes a slot there, so few and large ones are best, and never more
//! than what was asked for. Largest first is the best that can be done when each size divides the next larger one
//! (as 128 MiB × 2ᵏ do). Sizes that were staged for the start of some VM may be odd ones, and the largest first may
//! then leave a gap that others would have filled: so the choice is also made with the largest sizes left out, and the
//! best of these choices is taken. One that no guest could take as a DIMM is for a start alone.

use gnomon_terms::Bytes;

/// The most distinct sizes that a choice is tried from. A pool has about ten; the bound keeps a decision short whatever
/// a planner asks for.
const STARTS: usize = 16;

/// A request for memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// How much.
    pub bytes: Bytes,
    /// All of it in one block of exactly this size, or nothing: the RAM that a VM starts with.
    pub whole: bool,
    /// The most blocks that can be taken: the guest's free DIMM slots.
    pub slots: u32,
    /// Otherwise it is served by sizes that are multiples of this: a guest takes no DIMM of another.
    pub step: Bytes,
}

/// Sizes in stock: how large, and how many.
pub type Stock = (Bytes, u32);

/// What a choice takes of the stock.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// Sizes, largest first, and how many of each (at least one).
    pub taken: Vec<Stock>,
    /// How much that is.
    pub hit: Bytes,
    /// How much of the request is left.
    pub missing: Bytes,
}

/// Chooses from a stock that is sorted by size, largest first.
pub fn choose(request: Request, stock: &[Stock]) -> Choice {
    debug_assert!(stock.is_sorted_by(|a, b| a.0 > b.0), "sizes are sorted and distinct");
    if request.whole {
        return choose_whole(request, stock);
    }
    let fits = |(size, _): &&Stock| *size <= request.bytes && size.0.checked_rem(request.step.0) == Some(0);
    let fitting: Vec<Stock> = stock.iter().filter(fits).copied().collect();
    let starts = (0..fitting.len().clamp(1, STARTS)).map(|start| choose_largest_first(request, &fitting[start..]));
    // Of two that cover as much, the one with fewer blocks; of two such, the one that began with larger ones.
    starts
        .reduce(|best, next| {
            let better = (next.hit, blocks(&best)) > (best.hit, blocks(&next));
            if better { next } else { best }
        })
        .unwrap_or_default()
}

fn choose_whole(request: Request, stock: &[Stock]) -> Choice {
    let exact = stock.iter().any(|(size, count)| *size == request.bytes && *count > 0);
    match exact && request.slots > 0 && request.bytes.0 > 0 {
        true => Choice { taken: vec![(request.bytes, 1)], hit: request.bytes, missing: Bytes(0) },
        false => Choice { missing: request.bytes, ..Choice::default() },
    }
}

fn choose_largest_first(request: Request, stock: &[Stock]) -> Choice {
    let (mut left, mut slots, mut taken) = (request.bytes.0, request.slots, Vec::new());
    for &(size, count) in stock {
        let fit = left.checked_div(size.0).unwrap_or(0).min(u64::from(count.min(slots))) as u32;
        if fit > 0 {
            taken.push((size, fit));
            left -= size.0 * u64::from(fit);
            slots -= fit;
        }
    }
    Choice { taken, hit: Bytes(request.bytes.0 - left), missing: Bytes(left) }
}

fn blocks(choice: &Choice) -> u32 {
    choice.taken.iter().map(|(_, count)| count).sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const UNIT: u64 = 128 << 20;

    fn stock(rows: &[(u64, u32)]) -> Vec<Stock> {
        rows.iter().map(|(units, count)| (Bytes(units * UNIT), *count)).collect()
    }

    /// The most units that any selection can serve.
    fn best(units: u64, slots: u32, stock: &[(u64, u32)]) -> u64 {
        let Some(((size, count), rest)) = stock.split_first() else { return 0 };
        let most = (units / size).min(u64::from(*count)).min(u64::from(slots));
        (0..=most).map(|n| n * size + best(units - n * size, slots - n as u32, rest)).max().unwrap_or(0)
    }

    /// Found by a guest that was offered the memory that another had been started with.
    #[test]
    fn what_is_no_dimm_is_left_where_it_is() {
        let odd = Bytes(2 * UNIT + 8192);
        let stock = [(odd, 3), (Bytes(UNIT), 1)];
        let request = Request { bytes: Bytes(4 * UNIT), whole: false, slots: 9, step: Bytes(UNIT) };
        let choice = choose(request, &stock);
        assert_eq!((choice.taken, choice.missing), (vec![(Bytes(UNIT), 1)], Bytes(3 * UNIT)));
        let start = choose(Request { bytes: odd, whole: true, ..request }, &stock);
        assert_eq!(start.taken, [(odd, 1)]);
    }

    #[test]
    fn blocks_are_chosen_by_size() {
        // (request, slots), stock, taken, missing; all in units of 128 MiB.
        type Row<'a> = ((u64, u32), &'a [(u64, u32)], &'a [(u64, u32)], u64);
        let table: [Row; 12] = [
            ((4, 9), &[(8, 1), (4, 2), (1, 9)], &[(4, 1)], 0),
            ((5, 9), &[(8, 1), (4, 2), (1, 9)], &[(4, 1), (1, 1)], 0),
            ((7, 9), &[(4, 1), (2, 0), (1, 2)], &[(4, 1), (1, 2)], 1),
            ((7, 2), &[(4, 1), (1, 9)], &[(4, 1), (1, 1)], 2),
            ((3, 9), &[(8, 1), (4, 1)], &[], 3),
            ((3, 9), &[], &[], 3),
            ((3, 0), &[(1, 9)], &[], 3),
            ((0, 9), &[(1, 9)], &[], 0),
            // An odd size would leave a gap.
            ((4, 9), &[(3, 1), (2, 2)], &[(2, 2)], 0),
            // And is taken where it leaves none, or a smaller one.
            ((5, 9), &[(3, 1), (2, 2)], &[(3, 1), (2, 1)], 0),
            ((4, 1), &[(3, 1), (2, 2)], &[(3, 1)], 1),
            // As much with fewer blocks.
            ((4, 9), &[(4, 1), (2, 2), (1, 4)], &[(4, 1)], 0),
        ];
        for ((units, slots), shelves, taken, missing) in table {
            let request = Request { bytes: Bytes(units * UNIT), whole: false, slots, step: Bytes(1) };
            let choice = choose(request, &stock(shelves));
            let expected =
                Choice { taken: stock(taken), hit: Bytes((units - missing) * UNIT), missing: Bytes(missing * UNIT) };
            assert_eq!(choice, expected, "{units} units, {slots} slots of {shelves:?}");
        }
    }

    #[test]
    fn the_start_of_a_vm_takes_one_block_of_its_size_or_none() {
        let shelves = stock(&[(8, 1), (4, 2), (2, 0)]);
        for (units, slots, hit) in
            [(4, 1, true), (8, 1, true), (2, 1, false), (3, 1, false), (4, 0, false), (0, 1, false)]
        {
            let choice = choose(Request { bytes: Bytes(units * UNIT), whole: true, slots, step: Bytes(1) }, &shelves);
            assert_eq!(choice.hit.0 > 0, hit, "{units}");
            assert_eq!(choice.hit.0 + choice.missing.0, units * UNIT);
        }
    }

    proptest! {
        #[test]
        fn sizes_that_divide_each_other_are_used_as_well_as_can_be(
            units in 0u64..70, slots in 0u32..8, counts in proptest::collection::vec(0u32..4, 5)
        ) {
            let rows: Vec<(u64, u32)> = counts.iter().enumerate().map(|(k, n)| (1 << (4 - k), *n)).collect();
            let request = Request { bytes: Bytes(units * UNIT), whole: false, slots, step: Bytes(1) };
            prop_assert_eq!(choose(request, &stock(&rows)).hit, Bytes(best(units, slots, &rows) * UNIT));
        }

        #[test]
        fn no_choice_takes_more_than_there_is_or_was_asked_for(
            bytes in any::<u64>(), slots in any::<u32>(), whole in any::<bool>(),
            rows in proptest::collection::btree_map(any::<u64>(), any::<u32>(), 0..20)
        ) {
            let rows: Vec<Stock> = rows.into_iter().rev().map(|(size, count)| (Bytes(size), count)).collect();
            let choice = choose(Request { bytes: Bytes(bytes), whole, slots, step: Bytes(1) }, &rows);
            prop_assert_eq!(u128::from(choice.hit.0) + u128::from(choice.missing.0), u128::from(bytes));
            prop_assert!(blocks(&choice) <= slots);
            for (size, count) in choice.taken {
                prop_assert!(count > 0 && rows.iter().any(|row| row.0 == size && row.1 >= count));
            }
        }
    }
}
