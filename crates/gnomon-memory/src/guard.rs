//! The guard: how much may be staged now, and how much must be given back. Pure.
//!
//! ```text
//!  available memory:   0 ───────── floor ───────── floor + margin ─────────────► total
//!                        give back   │     hold          │      stage what is above
//!  pressure:           calm: as above │ uneasy: never stage │ pressed: give back, whatever is available
//! ```
//!
//! What is staged is not available any more, so staging lowers what the guard sees, and the margin between "stop" and
//! "give back" keeps the two from following each other. Memory that somebody waited for is the sign of a host in
//! reclaim, and staging that took part in it would be worse than none.
//!
//! Large pages were taken from the host when they were reserved: what is staged of them takes nothing from anybody, and
//! giving it back would give nothing to anybody.
//!
//! On a host with several nodes each of them has a floor of its own, its share of the host's: a node that is full makes
//! its kernel reclaim there, however much is available elsewhere.

use gnomon_terms::Bytes;

use std::collections::BTreeMap;

use crate::{
    host::{HostMemory, Pressure},
    numa::{NumaMemory, NumaNode},
};

/// The least distance between stopping and giving back: 64 MiB, four steps of a population.
const LEAST_MARGIN: u64 = 64 << 20;

/// The share of all memory that it is otherwise: a sixty-fourth, 1.5 %.
const MARGIN_SHARE: u64 = 64;

/// Some task waited for memory in this share of ten seconds: 1 % is above the noise of a host that is well (it shows
/// zeros), and far below what anybody feels.
const UNEASY: f64 = 1.0;

/// Some task waited in this share: work on the host is slowed down noticeably.
const PRESSED_SOME: f64 = 10.0;

/// All tasks waited in this share: nothing ran at all meanwhile.
const PRESSED_FULL: f64 = 2.0;

/// While the host is pressed, this part of what is staged goes at each look: after a few looks of a second nearly all
/// has gone, and a short squeeze does not cost everything.
const PRESSED_PART: u64 = 4;

/// What the guard says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// For pages of 4 KiB.
    pub small: Ruling,
    /// How much may be staged of pages of 2 MiB: what is reserved and free.
    pub huge: Bytes,
    /// For each node, by number; empty on a host with one.
    pub nodes: Vec<NumaVerdict>,
}

/// What the guard says of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NumaVerdict {
    /// Which.
    pub node: NumaNode,
    /// For pages of 4 KiB there. Who waits for memory is told of the host only.
    pub small: Ruling,
    /// Large pages that are free there.
    pub huge: Bytes,
}

/// What is staged of pages of 4 KiB.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Staged {
    /// On the host.
    pub all: Bytes,
    /// On each node, as far as that is known.
    pub nodes: BTreeMap<NumaNode, Bytes>,
}

/// What may be done with pages of 4 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ruling {
    /// This much may be staged, and not more.
    Stage(Bytes),
    /// Nothing may be staged; what is staged may stay.
    Hold,
    /// This much must be given back at once, or all if there is less.
    GiveBack(Bytes),
}

impl Verdict {
    /// What is to be done while the host's memory is not known: nothing.
    pub const UNKNOWN: Verdict = Verdict { small: Ruling::Hold, huge: Bytes(0), nodes: Vec::new() };
}

/// Judges. `floor` is what must stay available, `staged` what could be given back (4 KiB pages only).
pub fn judge(memory: &HostMemory, floor: Bytes, staged: &Staged) -> Verdict {
    let nodes = memory.nodes.iter().map(|node| judge_node(node, memory.total, floor, staged)).collect();
    let small = rule(memory.total, memory.available, memory.pressure, floor, staged.all);
    Verdict { small, huge: memory.huge_free, nodes }
}

/// A node, by its share of the host's floor.
fn judge_node(memory: &NumaMemory, host: Bytes, floor: Bytes, staged: &Staged) -> NumaVerdict {
    let share = u128::from(floor.0) * u128::from(memory.total.0) / u128::from(host.0.max(1));
    // A floor above all of the node's memory is as high as all of it.
    let floor = Bytes(u64::try_from(share).unwrap_or(u64::MAX).min(memory.total.0));
    let own = staged.nodes.get(&memory.node).copied().unwrap_or_default();
    let small = rule(memory.total, memory.available, None, floor, own);
    NumaVerdict { node: memory.node, small, huge: memory.huge_free }
}

/// What may be done on a host, or on a node, with this much memory and this much of it available.
fn rule(total: Bytes, available: Bytes, pressure: Option<Pressure>, floor: Bytes, staged: Bytes) -> Ruling {
    let margin = (total.0 / MARGIN_SHARE).max(LEAST_MARGIN);
    let stop = floor.0.saturating_add(margin);
    let lacking = match available < floor {
        true => stop - available.0,
        false => 0,
    };
    let squeezed = if pressure.is_some_and(is_pressed) { staged.0.div_ceil(PRESSED_PART) } else { 0 };
    match lacking.max(squeezed).min(staged.0) {
        0 if lacking > 0 || pressure.is_some_and(is_uneasy) => Ruling::Hold,
        0 if available.0 > stop => Ruling::Stage(Bytes(available.0 - stop)),
        0 => Ruling::Hold,
        back => Ruling::GiveBack(Bytes(back)),
    }
}

impl From<Bytes> for Staged {
    /// So much, on nobody knows which nodes.
    fn from(all: Bytes) -> Staged {
        Staged { all, nodes: BTreeMap::new() }
    }
}

fn is_uneasy(pressure: Pressure) -> bool {
    pressure.some >= UNEASY || is_pressed(pressure)
}

fn is_pressed(pressure: Pressure) -> bool {
    pressure.some >= PRESSED_SOME || pressure.full >= PRESSED_FULL
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    /// A host with 8 GiB (so the margin is 128 MiB) and `available` MiB of it.
    fn host(available: u64, some: f64, full: f64) -> HostMemory {
        HostMemory {
            total: Bytes(8192 * MIB),
            available: Bytes(available * MIB),
            pressure: Some(Pressure { some, full }),
            ..HostMemory::default()
        }
    }

    #[test]
    fn the_guard_looks_at_what_is_available_and_at_pressure() {
        let (stage, back) =
            (|mib: u64| Ruling::Stage(Bytes(mib * MIB)), |mib: u64| Ruling::GiveBack(Bytes(mib * MIB)));
        // Floor 1000 MiB; (available, some, full), staged, ruling.
        let table = [
            ((5000, 0.0, 0.0), 0, stage(3872)),
            ((1129, 0.0, 0.0), 400, stage(1)),
            ((1128, 0.0, 0.0), 400, Ruling::Hold),
            ((1000, 0.0, 0.0), 400, Ruling::Hold),
            ((999, 0.0, 0.0), 400, back(129)),
            ((900, 0.0, 0.0), 400, back(228)),
            ((0, 0.0, 0.0), 400, back(400)),
            ((0, 0.0, 0.0), 0, Ruling::Hold),
            ((5000, 0.9, 0.0), 400, stage(3872)),
            ((5000, 1.0, 0.0), 400, Ruling::Hold),
            ((5000, 10.0, 0.0), 400, back(100)),
            ((5000, 1.0, 2.0), 400, back(100)),
            ((5000, 0.0, 2.0), 0, Ruling::Hold),
            ((900, 10.0, 5.0), 400, back(228)),
            ((999, 10.0, 5.0), 4000, back(1000)),
        ];
        for ((available, some, full), staged, expected) in table {
            let verdict = judge(&host(available, some, full), Bytes(1000 * MIB), &Bytes(staged * MIB).into());
            assert_eq!(verdict.small, expected, "{available} MiB, {some} {full}, {staged} staged");
        }
    }

    #[test]
    fn a_kernel_that_counts_no_pressure_is_judged_by_what_is_available() {
        let memory = HostMemory { pressure: None, ..host(5000, 0.0, 0.0) };
        let verdict = judge(&memory, Bytes(1000 * MIB), &Staged::default());
        assert_eq!(verdict.small, Ruling::Stage(Bytes(3872 * MIB)));
    }

    #[test]
    fn reserved_large_pages_are_nobody_elses() {
        let memory = HostMemory { huge_free: Bytes(6 * MIB), ..host(0, 50.0, 50.0) };
        assert_eq!(judge(&memory, Bytes(1000 * MIB), &Staged::default()).huge, Bytes(6 * MIB));
    }

    #[test]
    fn each_node_keeps_its_share_of_the_floor() {
        // 6 and 2 of 8 GiB, with a floor of 1000 MiB for the host: 750 and 250 for the nodes, and margins of 96 and 64.
        let node = |n, total, available| NumaMemory {
            node: NumaNode(n),
            total: Bytes(total * MIB),
            available: Bytes(available * MIB),
            huge_free: Bytes(u64::from(n)),
        };
        let table = [
            ((2000, 1000), [Ruling::Stage(Bytes(1154 * MIB)), Ruling::Stage(Bytes(686 * MIB))]),
            ((800, 300), [Ruling::Hold, Ruling::Hold]),
            ((4000, 249), [Ruling::Stage(Bytes(3154 * MIB)), Ruling::GiveBack(Bytes(65 * MIB))]),
            ((4000, 0), [Ruling::Stage(Bytes(3154 * MIB)), Ruling::GiveBack(Bytes(100 * MIB))]),
            ((0, 1000), [Ruling::Hold, Ruling::Stage(Bytes(686 * MIB))]),
        ];
        let staged = Staged { all: Bytes(100 * MIB), nodes: BTreeMap::from([(NumaNode(1), Bytes(100 * MIB))]) };
        for ((first, second), expected) in table {
            let nodes = vec![node(0, 6144, first), node(1, 2048, second)];
            let memory = HostMemory { nodes, ..host(5000, 0.0, 0.0) };
            let verdict = judge(&memory, Bytes(1000 * MIB), &staged);
            assert_eq!([verdict.nodes[0].small, verdict.nodes[1].small], expected, "{first} {second}");
            assert_eq!([verdict.nodes[0].huge, verdict.nodes[1].huge], [Bytes(0), Bytes(1)]);
        }
    }

    proptest! {
        #[test]
        fn no_node_is_pushed_below_its_floor(
            available in any::<u64>(), total in any::<u64>(), host in any::<u64>(), floor in any::<u64>(),
            staged in any::<u64>()
        ) {
            let (total, available) = (Bytes(total), Bytes(available));
            let node = NumaMemory { node: NumaNode(3), total, available, huge_free: Bytes(0) };
            let staged = Staged { all: Bytes(staged), nodes: BTreeMap::from([(NumaNode(3), Bytes(staged))]) };
            match judge_node(&node, Bytes(host), Bytes(floor), &staged).small {
                Ruling::Stage(more) => prop_assert!(more.0 < available.0),
                Ruling::Hold => {}
                Ruling::GiveBack(back) => prop_assert!(back.0 > 0 && back <= staged.all),
            }
        }

        #[test]
        fn whoever_does_what_the_guard_says_stays_above_the_floor(
            available in any::<u64>(), total in any::<u64>(), floor in any::<u64>(), staged in any::<u64>(),
            pressure in proptest::option::of((0.0..=100.0, 0.0..=100.0))
        ) {
            let pressure = pressure.map(|(some, full)| Pressure { some, full });
            let (total, available_now) = (Bytes(total), Bytes(available));
            let memory = HostMemory { total, available: available_now, pressure, ..HostMemory::default() };
            match judge(&memory, Bytes(floor), &Bytes(staged).into()).small {
                Ruling::Stage(more) => prop_assert!(available - more.0 > floor),
                Ruling::Hold => {}
                Ruling::GiveBack(back) => {
                    prop_assert!(back.0 > 0 && back.0 <= staged);
                    let after = available.saturating_add(back.0);
                    prop_assert!(after >= floor || back.0 == staged);
                }
            }
        }
    }
}
