//! Which staged blocks serve a request: pure arithmetic over sizes.
//!
//! A block is a DIMM of its own in the guest and takes a slot there, so few and large ones are best, and never more
//! than what was asked for. Largest first is the best that can be done when each size divides the next larger one
//! (as 128 MiB × 2ᵏ do). Sizes that were staged for the start of some VM may be odd ones, and the largest first may
//! then leave a gap that others would have filled: so the choice is also made with the largest sizes left out, and the
//! best of these choices is taken. One that no guest could take as a DIMM is for a start alone.
//!
//! On a host with several nodes the guest's own come first ([`choose_near`]), and others before going without: memory of
//! another node is slower by some share of each access, and memory that is not there has to be allocated and zeroed while
//! the guest waits.

use std::{cmp::Reverse, collections::BTreeMap};

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
            let better = (next.hit, blocks(&best.taken)) > (best.hit, blocks(&next.taken));
            if better { next } else { best }
        })
        .unwrap_or_default()
}

/// What a choice takes of two stocks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sided {
    /// Of the stock on the guest's node: sizes and how many of each.
    pub near: Vec<Stock>,
    /// Of what is elsewhere.
    pub far: Vec<Stock>,
    /// How much that is together.
    pub hit: Bytes,
    /// How much of the request is left.
    pub missing: Bytes,
}

/// Chooses from two stocks, each sorted by size, largest first: as much as can be had, of that as much as can be had near,
/// and that in few blocks. Compares what serves best wherever it is with what serves best near and is then filled up.
pub fn choose_near(request: Request, near: &[Stock], far: &[Stock]) -> Sided {
    if far.is_empty() {
        // As always on a host with one node.
        return split(choose(request, near), near);
    }
    let everywhere = split(choose(request, &merged(near, far)), near);
    let own = choose(request, near);
    let rest = Request { bytes: own.missing, slots: request.slots.saturating_sub(blocks(&own.taken)), ..request };
    let others = match request.whole && own.hit.0 > 0 {
        true => Choice::default(),
        false => choose(rest, far),
    };
    let hit = Bytes(own.hit.0 + others.hit.0);
    let filled_up = Sided { near: own.taken, far: others.taken, hit, missing: Bytes(request.bytes.0 - hit.0) };
    let worth = |of: &Sided| (of.hit, total(&of.near), Reverse(blocks(&of.near) + blocks(&of.far)));
    if worth(&filled_up) > worth(&everywhere) { filled_up } else { everywhere }
}

/// Both stocks as one.
fn merged(near: &[Stock], far: &[Stock]) -> Vec<Stock> {
    let mut all: BTreeMap<Bytes, u32> = BTreeMap::new();
    near.iter().chain(far).for_each(|(size, count)| {
        let sum = all.entry(*size).or_default();
        *sum = sum.saturating_add(*count);
    });
    all.into_iter().rev().collect()
}

/// What a choice of both takes of each: of a size, what is near first.
fn split(choice: Choice, near: &[Stock]) -> Sided {
    let mut sided = Sided { hit: choice.hit, missing: choice.missing, ..Sided::default() };
    for (size, count) in choice.taken {
        let own = near.iter().find(|stock| stock.0 == size).map_or(0, |stock| stock.1.min(count));
        sided.near.extend((own > 0).then_some((size, own)));
        sided.far.extend((own < count).then_some((size, count - own)));
    }
    sided
}

fn total(stock: &[Stock]) -> u128 {
    stock.iter().map(|(size, count)| u128::from(size.0) * u128::from(*count)).sum()
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

fn blocks(stock: &[Stock]) -> u32 {
    stock.iter().map(|(_, count)| count).sum()
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

    #[test]
    fn the_guests_own_node_comes_first_and_others_before_going_without() {
        // (request, slots), near, far, taken near, taken far, missing; in units.
        type Row<'a> = ((u64, u32), &'a [(u64, u32)], &'a [(u64, u32)], &'a [(u64, u32)], &'a [(u64, u32)], u64);
        let table: [Row; 8] = [
            ((4, 9), &[(4, 1)], &[(4, 1)], &[(4, 1)], &[], 0),
            // Two of its own rather than one of another.
            ((4, 9), &[(2, 2)], &[(4, 1)], &[(2, 2)], &[], 0),
            // Not when it has no slots for them.
            ((4, 1), &[(2, 2)], &[(4, 1)], &[], &[(4, 1)], 0),
            ((4, 9), &[(2, 1)], &[(2, 1), (1, 2)], &[(2, 1)], &[(2, 1)], 0),
            ((4, 9), &[], &[(4, 1)], &[], &[(4, 1)], 0),
            // What is near would be in the way of serving all of it.
            ((4, 9), &[(3, 1)], &[(4, 1)], &[], &[(4, 1)], 0),
            ((8, 9), &[(1, 1)], &[(4, 1)], &[(1, 1)], &[(4, 1)], 3),
            ((4, 0), &[(4, 1)], &[(4, 1)], &[], &[], 4),
        ];
        for ((units, slots), near, far, own, others, missing) in table {
            let request = Request { bytes: Bytes(units * UNIT), whole: false, slots, step: Bytes(1) };
            let expected = Sided {
                near: stock(own),
                far: stock(others),
                hit: Bytes((units - missing) * UNIT),
                missing: Bytes(missing * UNIT),
            };
            assert_eq!(choose_near(request, &stock(near), &stock(far)), expected, "{units} of {near:?}, {far:?}");
        }
        for (near, far, own, others) in [(1, 1, 1, 0), (0, 1, 0, 1), (0, 0, 0, 0)] {
            let request = Request { bytes: Bytes(UNIT), whole: true, slots: 1, step: Bytes(1) };
            let sided = choose_near(request, &stock(&[(1, near)]), &stock(&[(1, far)]));
            assert_eq!((blocks(&sided.near), blocks(&sided.far)), (own, others), "one block, or nothing");
        }
    }

    proptest! {
        #[test]
        fn a_node_of_its_own_never_costs_a_hit(
            bytes in 0u64..99, slots in 0u32..9, whole in any::<bool>(),
            near in proptest::collection::btree_map(1u64..33, 0u32..4, 0..6),
            far in proptest::collection::btree_map(1u64..33, 0u32..4, 0..6)
        ) {
            let rows = |map: std::collections::BTreeMap<u64, u32>| -> Vec<Stock> {
                map.into_iter().rev().map(|(size, count)| (Bytes(size), count)).collect()
            };
            let (near, far) = (rows(near), rows(far));
            let request = Request { bytes: Bytes(bytes), whole, slots, step: Bytes(1) };
            let sided = choose_near(request, &near, &far);
            prop_assert!(sided.hit >= choose(request, &merged(&near, &far)).hit);
            prop_assert_eq!(sided.hit.0 + sided.missing.0, bytes);
            prop_assert_eq!(u128::from(sided.hit.0), total(&sided.near) + total(&sided.far));
            prop_assert!(blocks(&sided.near) + blocks(&sided.far) <= slots);
            for (taken, stock) in [(&sided.near, &near), (&sided.far, &far)] {
                for (size, count) in taken {
                    prop_assert!(*count > 0 && stock.iter().any(|row| row.0 == *size && row.1 >= *count));
                }
            }
        }

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
            prop_assert!(blocks(&choice.taken) <= slots);
            for (size, count) in choice.taken {
                prop_assert!(count > 0 && rows.iter().any(|row| row.0 == size && row.1 >= count));
            }
        }
    }
}
