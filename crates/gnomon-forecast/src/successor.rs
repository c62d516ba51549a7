//! What followed last time: a first-order successor table over units, the reactive predictor for reads that are
//! scattered but repeat.
//!
//! Each read of unit `v` is noted as a successor of the last three other units read; a forecast follows the
//! strongest successor four steps deep and names the other successors of the first step. The table is bounded:
//! 32,768 rows of 24 bytes, 768 KiB; a row is taken over by another unit only after its own has lost its credit.

use gnomon_terms::{Access, Instant, Op};
use std::time::Duration;

use crate::predictor::DEFAULT_HORIZON;
use crate::{BlockMap, Chance, Geometry, Predictor, UnitIndex};

/// Rows of the table; a power of two.
const ROWS: usize = 1 << 15;
/// Successors kept of one unit.
const WIDTH: usize = 4;
/// How many units back a read counts as a successor.
const WINDOW: usize = 3;
/// How many steps a forecast follows.
pub const DEPTH: usize = 4;
/// No unit: unit numbers stay below it ([`Geometry::new`]).
const NONE: u32 = u32::MAX;

/// The successors of one unit, each with its credit.
#[derive(Clone, Copy, Debug)]
struct Row {
    unit: u32,
    next: [u32; WIDTH],
    credit: [u8; WIDTH],
}

const EMPTY: Row = Row { unit: NONE, next: [NONE; WIDTH], credit: [0; WIDTH] };

impl Row {
    fn note(&mut self, next: u32) {
        if let Some(at) = self.next.iter().position(|n| *n == next) {
            self.credit[at] = self.credit[at].saturating_add(1);
            return;
        }
        let weakest = (0..WIDTH).min_by_key(|at| self.credit[*at]).expect("a row has four places");
        match self.credit[weakest] {
            0 | 1 => (self.next[weakest], self.credit[weakest]) = (next, 1),
            _ => self.credit[weakest] -= 1,
        }
    }

    fn strongest(&self) -> Option<(u32, u8)> {
        let at = (0..WIDTH).max_by_key(|at| (self.credit[*at], WIDTH - at)).expect("a row has four places");
        (self.credit[at] > 0).then_some((self.next[at], self.credit[at]))
    }
}

/// A unit that followed before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Follower {
    /// Which unit.
    pub unit: UnitIndex,
    /// How often it was seen to follow, saturating.
    pub credit: u8,
    /// How many steps away it is, 1 to [`DEPTH`].
    pub depth: u8,
}

/// The table, without an opinion on how good it is.
#[derive(Clone, Debug)]
pub struct Successors {
    rows: Vec<Row>,
    recent: [u32; WINDOW],
}

impl Default for Successors {
    fn default() -> Successors {
        Successors { rows: vec![EMPTY; ROWS], recent: [NONE; WINDOW] }
    }
}

impl Successors {
    /// Notes that `unit` was read; reading the same unit again is one read.
    pub fn read(&mut self, unit: UnitIndex) {
        if self.recent[0] == unit.0 {
            return;
        }
        for before in self.recent {
            if before != NONE && before != unit.0 {
                self.note(before, unit.0);
            }
        }
        self.recent.rotate_right(1);
        self.recent[0] = unit.0;
    }

    /// Appends what followed `unit` before, nearest first.
    pub fn followers(&self, unit: UnitIndex, out: &mut Vec<Follower>) {
        let Some(row) = self.row(unit.0) else { return };
        for (next, credit) in row.next.into_iter().zip(row.credit).filter(|(_, credit)| *credit > 0) {
            out.push(Follower { unit: UnitIndex(next), credit, depth: 1 });
        }
        let mut at = row.strongest();
        for depth in 2..=DEPTH as u8 {
            at = at.and_then(|(unit, _)| self.row(unit)).and_then(Row::strongest);
            let Some((next, credit)) = at else { return };
            out.push(Follower { unit: UnitIndex(next), credit, depth });
        }
    }

    fn note(&mut self, before: u32, next: u32) {
        let row = &mut self.rows[slot(before)];
        if row.unit != before {
            // The row is another unit's: it loses credit each time we want it, and is ours once it has none.
            row.credit.iter_mut().for_each(|c| *c = c.saturating_sub(1));
            if row.credit.iter().any(|c| *c > 0) {
                return;
            }
            *row = Row { unit: before, ..EMPTY };
        }
        row.note(next);
    }

    fn row(&self, unit: u32) -> Option<&Row> {
        Some(&self.rows[slot(unit)]).filter(|row| row.unit == unit)
    }
}

/// Spreads unit numbers over the rows (Fibonacci hashing: the golden ratio of 2^32, highest bits).
fn slot(unit: u32) -> usize {
    (unit.wrapping_mul(0x9E37_79B9) >> (32 - ROWS.trailing_zeros())) as usize
}

/// Expects what followed last time.
#[derive(Clone, Debug)]
pub struct SuccessorPredictor {
    geometry: Geometry,
    table: Successors,
    horizon: Duration,
    found: Vec<Follower>,
}

impl SuccessorPredictor {
    /// For a resource cut as `geometry` says.
    pub fn new(geometry: Geometry) -> SuccessorPredictor {
        SuccessorPredictor { geometry, table: Successors::default(), horizon: DEFAULT_HORIZON, found: Vec::new() }
    }
}

impl Predictor for SuccessorPredictor {
    fn name(&self) -> &'static str {
        "successor"
    }

    fn observe(&mut self, access: &Access) {
        if access.op == Op::Read {
            self.geometry.units_of(access.extent).for_each(|unit| self.table.read(unit));
        }
    }

    fn rank(&mut self, _: Instant, _: &BlockMap, _: &mut Vec<UnitIndex>) {}

    fn react(&mut self, access: &Access, out: &mut Vec<Chance>) {
        if access.op != Op::Read {
            return;
        }
        let due = access.at.after(self.horizon);
        for unit in self.geometry.units_of(access.extent) {
            self.found.clear();
            self.table.followers(unit, &mut self.found);
            out.extend(self.found.iter().map(|f| {
                let credit = f32::from(f.credit);
                Chance { unit: f.unit, probability: credit / (credit + 1.0) / f32::from(f.depth), due }
            }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_followed_is_expected_again() {
        let mut table = Successors::default();
        for unit in [5, 900, 31, 7, 5, 900, 31, 7] {
            table.read(UnitIndex(unit));
        }
        let mut out = Vec::new();
        table.followers(UnitIndex(5), &mut out);
        let first = out.iter().find(|f| f.unit == UnitIndex(900)).unwrap();
        assert_eq!((first.credit, first.depth), (2, 1));
        assert!(out.iter().any(|f| f.unit == UnitIndex(31)));
        assert!(out.iter().all(|f| f.unit != UnitIndex(5) || f.depth > 1));
        out.clear();
        table.followers(UnitIndex(6), &mut out);
        assert!(out.is_empty());
    }

    #[test]
    fn the_table_is_bounded() {
        assert_eq!(size_of::<Row>(), 24);
        let mut table = Successors::default();
        (0..200_000).for_each(|unit| table.read(UnitIndex(unit)));
        assert_eq!(table.rows.len(), ROWS);
    }
}
