//! Units that are read close to each other again and again, with others in between: sporadic associations.
//!
//! ```text
//!   read ──► sightings (when was this unit read: three times) ──full row──► candidates ──full──► mined
//!                                                                                                 │
//!            two candidates all of whose sightings are within REACH reads of each other ──────────┘──► partners
//! ```
//! What is read once is unknown and what is read often is cached by the guest; associations live in between. Bounded:
//! 4,096 rows of sightings, 256 candidates, 8,192 rows of partners, 230 KiB; mining costs at most 256 × [`WITHIN`]
//! comparisons, once for 768 reads or more.
//!
//! Source: Yang, Karimi, Sæmundsson, Wildani and Vigfusson, "MITHRIL: mining sporadic associations for cache
//! prefetching" (SoCC 2017): the recording and mining tables, with one support instead of a range of them.

use gnomon_terms::{Bytes, Instant};

use super::experience::{Experience, Tables};
use super::expert::{Foreseen, SequenceExpert};
use crate::UnitIndex;

/// Sightings that make a candidate.
const SUPPORT: usize = 3;
/// How many reads apart associated units are at most: what is further apart cannot be told from chance.
const REACH: u32 = 16;
/// Rows of sightings, and of partners; powers of two.
const SIGHTED: usize = 1 << 12;
const KNOWN: usize = 1 << 13;
/// Candidates that are mined together.
const CANDIDATES: usize = 256;
/// Candidates that one is compared with.
const WITHIN: usize = 32;
/// Partners of one unit.
const WIDTH: usize = 2;
/// Numbers of a row of partners as it is kept: the unit, its partners, and the credits in one.
pub(super) const KEPT_ROW: usize = 2 + WIDTH;
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Sightings {
    unit: u32,
    count: u8,
    at: [u32; SUPPORT],
}

#[derive(Clone, Copy, Debug)]
struct Partners {
    unit: u32,
    with: [u32; WIDTH],
    credit: [u8; WIDTH],
}

/// The tables.
#[derive(Clone, Debug)]
pub struct AssociationExpert {
    sightings: Vec<Sightings>,
    candidates: Vec<(u32, [u32; SUPPORT])>,
    partners: Vec<Partners>,
    /// Reads so far: the clock of this expert. Wraps after 4 billion, which costs one mining.
    reads: u32,
    last: UnitIndex,
}

impl Default for AssociationExpert {
    fn default() -> AssociationExpert {
        AssociationExpert {
            sightings: vec![Sightings { unit: NONE, count: 0, at: [0; SUPPORT] }; SIGHTED],
            candidates: Vec::with_capacity(CANDIDATES),
            partners: vec![Partners { unit: NONE, with: [NONE; WIDTH], credit: [0; WIDTH] }; KNOWN],
            reads: 0,
            last: UnitIndex(NONE),
        }
    }
}

impl AssociationExpert {
    /// With the partners that another has kept.
    pub fn knowing(tables: &Tables) -> AssociationExpert {
        let mut expert = AssociationExpert::default();
        for [unit, one, other, credits] in tables.partners.iter().copied() {
            let [a, b, ..] = credits.to_le_bytes();
            let (unit, with) = (unit.cast_unsigned(), [one, other].map(i32::cast_unsigned));
            expert.partners[slot(unit, KNOWN)] = Partners { unit, with, credit: [a, b] };
        }
        expert
    }

    fn mine(&mut self) {
        let mut candidates = std::mem::take(&mut self.candidates);
        candidates.sort_unstable_by_key(|(unit, at)| (at[0], *unit));
        for (nth, (unit, at)) in candidates.iter().enumerate() {
            let later = candidates[nth + 1..].iter().take(WITHIN).take_while(|(_, other)| close(at[0], other[0]));
            // Of many the nearest: the others would only push each other out.
            let near = later.filter(|(_, times)| at.iter().zip(times).all(|(a, b)| close(*a, *b))).take(WIDTH);
            for (other, _) in near {
                associate(&mut self.partners, *unit, *other);
            }
        }
        candidates.clear();
        self.candidates = candidates;
    }
}

impl SequenceExpert for AssociationExpert {
    fn name(&self) -> &'static str {
        "association"
    }

    fn read(&mut self, _: Instant, unit: UnitIndex) {
        self.last = unit;
        self.reads = self.reads.wrapping_add(1);
        let row = &mut self.sightings[slot(unit.0, SIGHTED)];
        if row.unit != unit.0 {
            (row.unit, row.count) = (unit.0, 0);
        }
        row.at[usize::from(row.count)] = self.reads;
        row.count += 1;
        if usize::from(row.count) == SUPPORT {
            self.candidates.push((unit.0, row.at));
            row.count = 0;
        }
        if self.candidates.len() == CANDIDATES {
            self.mine();
        }
    }

    fn foresee(&mut self, out: &mut Vec<Foreseen>) {
        let row = &self.partners[slot(self.last.0, KNOWN)];
        if row.unit != self.last.0 {
            return;
        }
        let known = row.with.iter().zip(row.credit).filter(|(with, credit)| **with != NONE && *credit > 0);
        // Mined once it is as likely true as not; each further time halves the doubt.
        out.extend(known.map(|(unit, credit)| Foreseen {
            unit: UnitIndex(*unit),
            sureness: 1.0 - 0.5f32.powi(i32::from(credit.min(6))),
        }));
    }

    fn keep(&self, into: &mut Experience) {
        let known =
            self.partners.iter().filter(|row| row.unit != NONE && row.credit.iter().any(|credit| *credit > 0));
        into.tables.partners = known.map(kept).collect();
    }

    fn bytes(&self) -> Bytes {
        let bytes = SIGHTED * size_of::<Sightings>()
            + CANDIDATES * size_of::<(u32, [u32; SUPPORT])>()
            + KNOWN * size_of::<Partners>();
        Bytes(bytes as u64)
    }
}

/// A row as it is kept.
fn kept(row: &Partners) -> [i32; KEPT_ROW] {
    let ([one, other], [a, b]) = (row.with.map(u32::cast_signed), row.credit);
    [row.unit.cast_signed(), one, other, i32::from_le_bytes([a, b, 0, 0])]
}

/// Whether rows are as they are kept: of one unit each, in the order of the table.
pub(super) fn is_kept(rows: &[[i32; KEPT_ROW]]) -> bool {
    let slots: Vec<usize> = rows.iter().map(|row| slot(row[0].cast_unsigned(), KNOWN)).collect();
    rows.len() <= KNOWN && slots.is_sorted_by(|one, other| one < other) && rows.iter().all(|row| row[0] != -1)
}

fn close(a: u32, b: u32) -> bool {
    a.abs_diff(b) <= REACH
}

/// Notes that `with` is read near `unit`. A place that is taken loses credit first.
fn associate(partners: &mut [Partners], unit: u32, with: u32) {
    let row = &mut partners[slot(unit, KNOWN)];
    if row.unit != unit {
        row.credit.iter_mut().for_each(|credit| *credit = credit.saturating_sub(1));
        if row.credit.iter().any(|credit| *credit > 0) {
            return;
        }
        *row = Partners { unit, with: [NONE; WIDTH], credit: [0; WIDTH] };
    }
    let at = (0..WIDTH).find(|at| row.with[*at] == with);
    match at.or_else(|| (0..WIDTH).find(|at| row.credit[*at] == 0)) {
        Some(at) => (row.with[at], row.credit[at]) = (with, row.credit[at].saturating_add(1)),
        None => row.credit.iter_mut().for_each(|credit| *credit = credit.saturating_sub(1)),
    }
}

/// Fibonacci hashing, as in the successors' table.
fn slot(unit: u32, rows: usize) -> usize {
    (unit.wrapping_mul(0x9e37_79b9) >> (32 - rows.trailing_zeros())) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sequence::dice::Dice;

    #[test]
    fn what_is_read_together_now_and_then_is_found() {
        let (mut expert, mut dice) = (AssociationExpert::default(), Dice(3));
        // A hundred pairs, each read every 400 reads or so with a stranger in between.
        for round in 0..12u32 {
            for pair in 0..100 {
                for unit in [10_000 + pair * 50, dice.below(1 << 30) as u32, 900_000 + pair * 31, round << 20] {
                    expert.read(Instant::ORIGIN, UnitIndex(unit));
                }
            }
        }
        let foretold = (0..100).filter(|pair| {
            let mut out = Vec::new();
            expert.read(Instant::ORIGIN, UnitIndex(10_000 + pair * 50));
            expert.foresee(&mut out);
            out.iter().any(|found| found.unit == UnitIndex(900_000 + pair * 31))
        });
        let foretold = foretold.count();
        assert!(foretold >= 60, "{foretold} of 100");
    }

    #[test]
    fn strangers_are_not_associated_and_memory_is_bounded() {
        let (mut expert, mut dice) = (AssociationExpert::default(), Dice(3));
        let mut out = Vec::new();
        for _ in 0..50_000 {
            expert.read(Instant::ORIGIN, UnitIndex(dice.roll() as u32));
            expert.foresee(&mut out);
        }
        assert!(out.len() < 50, "{} forecasts of what cannot be foretold", out.len());
        assert!(expert.candidates.capacity() == CANDIDATES && expert.bytes().0 < 256 << 10);
    }
}
