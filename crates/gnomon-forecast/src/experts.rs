//! The experts of the background clock: each looks at one side of a unit's past and sorts units into classes.
//!
//! An expert says nothing about how likely a class is to be read; that is counted ([`crate::calibration`]). So an
//! expert whose idea is wrong way round for a guest (recency is, where the guest's own page cache absorbs re-reads)
//! is still of use: its classes are simply found to be cold.

use crate::history::{Past, Tick};

/// The background experts, in the order of their weights.
pub const EXPERTS: [&str; N] = ["sequential", "frequency", "decay", "next-read", "age", "region"];
/// How many there are.
pub const N: usize = 6;
/// The expert that tells no unit from another: address order.
pub const SEQUENTIAL: usize = 0;
/// Classes of one expert at most.
pub const CLASSES: usize = 160;

/// What the experts look at: a unit's past (none if never touched), and how much of its region was touched.
#[derive(Clone, Copy, Debug)]
pub struct Sight<'a> {
    /// What was seen of the unit.
    pub past: Option<&'a Past>,
    /// Touched units among the 64 units of its region.
    pub touched: u8,
    /// The time at which it is looked at.
    pub now: Tick,
}

/// The class into which each expert puts a unit, each below [`CLASSES`].
pub fn classes(sight: Sight<'_>) -> [u8; N] {
    let region = region_class(sight);
    let Some(past) = sight.past else { return [0, 0, 0, 0, 0, region] };
    if past.reads == 0 {
        // Written, never read: how long ago is all there is to tell.
        let age = log2(sight.now.since(past.last_write)).min(27) as u8 / 2;
        return [0, 1, 1, 1 + age, 1 + age, region];
    }
    let written_since = u8::from(past.last_write > past.last_read);
    let age = log2(sight.now.since(past.last_read)).min(29) as u8;
    let frequency = 2 + 2 * (log2(u32::from(past.reads)).min(12) as u8) + written_since;
    let heat = (past.heat_at(sight.now).max(1e-4).log2() + 14.0).clamp(0.0, 30.0) as u8;
    [
        0,
        frequency,
        2 + 2 * heat + written_since,
        next_read_class(past, sight.now, written_since),
        16 + 2 * age + written_since,
        region,
    ]
}

/// The age against the mean interval, both in powers of two, and whether a write came since.
fn next_read_class(past: &Past, now: Tick, written_since: u8) -> u8 {
    let age = log2(now.since(past.last_read)).clamp(4, 20) as i32;
    let phase = if past.reads < 2 {
        0
    } else {
        let interval = log2(past.interval.max(1.0) as u32) as i32;
        (interval - age).clamp(-2, 2) + 3
    };
    // 15 written-only classes come first; then 2 × 6 phases for each third of the ages.
    let third = ((age - 4) / 2).min(8) as u8;
    16 + (third * 6 + phase as u8) * 2 + written_since
}

/// How full the region is, apart for units that were touched and those that were not.
fn region_class(sight: Sight<'_>) -> u8 {
    let fill = match sight.touched {
        0 => 0,
        t => 1 + log2(u32::from(t)).min(6) as u8,
    };
    fill + if sight.past.is_some() { 8 } else { 0 }
}

/// Whole part of the binary logarithm of `n + 1`.
fn log2(n: u32) -> u32 {
    31 - n.saturating_add(1).leading_zeros()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_within_the_table_for_every_past() {
        let ticks = [0, 1, 2, 1000, u32::MAX].map(Tick);
        for (last_read, last_write, now) in
            ticks.iter().flat_map(|a| ticks.map(|b| (*a, b))).flat_map(|(a, b)| ticks.map(|c| (a, b, c)))
        {
            for (reads, interval, heat) in [(0, 0.0, 0.0), (1, 0.0, 1.0), (2, 1e9, 2.0), (u16::MAX, 4e9, 1e30)] {
                let past = Past { last_read, last_write, interval, heat, reads, writes: 3 };
                let found = classes(Sight { past: Some(&past), touched: 64, now });
                assert!(found.iter().all(|class| usize::from(*class) < CLASSES), "{past:?} {found:?}");
            }
        }
    }

    #[test]
    fn each_expert_sees_its_side() {
        let past = |reads, last_read, last_write| Past {
            reads,
            last_read: Tick(last_read),
            last_write: Tick(last_write),
            interval: 100.0,
            heat: 1.0,
            writes: 1,
        };
        let seen = |past: &Past| classes(Sight { past: Some(past), touched: 5, now: Tick(2000) });
        let (often, rare, old, written) =
            (seen(&past(40, 1900, 0)), seen(&past(2, 1900, 0)), seen(&past(40, 10, 0)), seen(&past(40, 1900, 1950)));
        assert!(often[1] > rare[1]);
        assert!(often[2] > old[2] || often[4] < old[4]);
        assert_ne!(often[3], old[3]);
        assert_ne!(often, written);
        let untouched = |touched| classes(Sight { past: None, touched, now: Tick(2000) });
        assert!(untouched(40)[5] > untouched(1)[5] && untouched(1)[5] > untouched(0)[5]);
        assert_eq!(untouched(3)[..5], [0; 5]);
    }
}
