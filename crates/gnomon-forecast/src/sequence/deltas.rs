//! Which step follows which: a table from the last one or two deltas to the next, followed as far as it is sure.
//!
//! Of order one it is the *delta bigram*, most of what a network over deltas learns; of order two it knows two-step
//! patterns, and falls back to order one where it has seen nothing. Bounded: 8,192 rows of 20 bytes for each order; a
//! row is taken over only after its own contents have lost their credit, so a guest that reads at random can make the
//! tables worthless for its own volume and nothing else.
//!
//! Source: the Markov prefetcher of Joseph and Grunwald (1997), over deltas as in Nesbit and Smith's global history
//! buffer (2004).

use gnomon_terms::{Bytes, Instant};

use super::experience::{Experience, Tables};
use super::expert::{Foreseen, SequenceExpert};
use super::vocabulary::delta;
use crate::UnitIndex;

/// Rows for each order; a power of two.
const ROWS: usize = 1 << 13;
/// Next deltas kept in a row.
const WIDTH: usize = 3;
/// Steps that a forecast follows at most.
const DEPTH: usize = 4;
/// Numbers of a row as it is kept: its place, its tag, what follows, and the credits in one.
pub(super) const KEPT_ROW: usize = 3 + WIDTH;
/// Below this sureness (of all steps together) a forecast is not made.
const LEAST: f32 = 0.15;

/// How many deltas back are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The last one.
    One,
    /// The last two, and the last one where these are new.
    Two,
}

/// What followed one context.
#[derive(Clone, Copy, Debug)]
struct Row {
    tag: u32,
    next: [i32; WIDTH],
    credit: [u8; WIDTH],
}

const EMPTY: Row = Row { tag: 0, next: [0; WIDTH], credit: [0; WIDTH] };

impl Row {
    fn note(&mut self, next: i32) {
        if let Some(at) = (0..WIDTH).find(|at| self.next[*at] == next && self.credit[*at] > 0) {
            if self.credit[at] == u8::MAX {
                self.credit.iter_mut().for_each(|credit| *credit /= 2);
            }
            self.credit[at] += 1;
            return;
        }
        let weakest = (0..WIDTH).min_by_key(|at| self.credit[*at]).unwrap_or(0);
        match self.credit[weakest] {
            0 | 1 => (self.next[weakest], self.credit[weakest]) = (next, 1),
            _ => self.credit[weakest] -= 1,
        }
    }

    /// The commonest next delta, and its share of what is remembered; one imagined exception keeps the share of a
    /// single sighting at a half.
    fn likeliest(&self) -> Option<(i32, f32)> {
        let at = (0..WIDTH).max_by_key(|at| (self.credit[*at], WIDTH - at))?;
        let all: u32 = self.credit.iter().map(|credit| u32::from(*credit)).sum();
        (self.credit[at] > 0).then(|| (self.next[at], f32::from(self.credit[at]) / (all + 1) as f32))
    }
}

/// The tables.
#[derive(Clone, Debug)]
pub struct DeltaExpert {
    order: Order,
    /// One table for each order.
    tables: Vec<Vec<Row>>,
    last: Option<UnitIndex>,
    /// The last two deltas, the latest first.
    steps: [i32; 2],
}

impl DeltaExpert {
    /// Nothing seen yet.
    pub fn new(order: Order) -> DeltaExpert {
        let tables = vec![vec![EMPTY; ROWS]; if order == Order::One { 1 } else { 2 }];
        DeltaExpert { order, tables, last: None, steps: [0; 2] }
    }

    /// With the rows that another of this order has kept.
    pub fn knowing(order: Order, tables: &Tables) -> DeltaExpert {
        let mut expert = DeltaExpert::new(order);
        for [place, tag, next @ .., credits] in tables.deltas.iter().copied() {
            let (table, at) = (place as usize / ROWS, place as usize % ROWS);
            let [credit @ .., _] = credits.to_le_bytes();
            if let Some(table) = expert.tables.get_mut(table) {
                table[at] = Row { tag: tag.cast_unsigned(), next, credit };
            }
        }
        expert
    }

    fn note(&mut self, next: i32) {
        for (order, table) in self.tables.iter_mut().enumerate() {
            let (tag, at) = place(order, self.steps);
            let row = &mut table[at];
            if row.tag != tag {
                row.credit.iter_mut().for_each(|credit| *credit = credit.saturating_sub(1));
                if row.credit.iter().any(|credit| *credit > 0) {
                    continue;
                }
                *row = Row { tag, ..EMPTY };
            }
            row.note(next);
        }
    }

    /// What follows these steps, by the highest order that knows.
    fn next(&self, steps: [i32; 2]) -> Option<(i32, f32)> {
        self.tables.iter().enumerate().rev().find_map(|(order, table)| {
            let (tag, at) = place(order, steps);
            Some(&table[at]).filter(|row| row.tag == tag).and_then(Row::likeliest)
        })
    }
}

impl SequenceExpert for DeltaExpert {
    fn name(&self) -> &'static str {
        match self.order {
            Order::One => "delta-bigram",
            Order::Two => "delta-markov",
        }
    }

    fn read(&mut self, _: Instant, unit: UnitIndex) {
        let Some(last) = self.last.replace(unit) else { return };
        let step = delta(last, unit).unwrap_or(0);
        if self.steps[0] != 0 && step != 0 {
            self.note(step);
        }
        self.steps = [step, self.steps[0]];
    }

    fn foresee(&mut self, out: &mut Vec<Foreseen>) {
        let (Some(mut unit), mut steps, mut sureness) = (self.last, self.steps, 1.0) else { return };
        for _ in 0..DEPTH {
            let Some((step, share)) = self.next(steps) else { return };
            sureness *= share;
            let Some(next) = unit.0.checked_add_signed(step).filter(|_| sureness >= LEAST) else { return };
            unit = UnitIndex(next);
            out.push(Foreseen { unit, sureness });
            steps = [step, steps[0]];
        }
    }

    fn keep(&self, into: &mut Experience) {
        let all = self.tables.iter().flatten().zip(0..);
        let known = all.filter(|(row, _)| row.credit.iter().any(|credit| *credit > 0));
        into.tables.deltas = known.map(|(row, place)| kept(row, place)).collect();
    }

    fn bytes(&self) -> Bytes {
        Bytes((self.tables.len() * ROWS * size_of::<Row>()) as u64)
    }
}

/// A row as it is kept.
fn kept(row: &Row, place: i32) -> [i32; KEPT_ROW] {
    let ([a, b, c], [x, y, z]) = (row.credit, row.next);
    [place, row.tag.cast_signed(), x, y, z, i32::from_le_bytes([a, b, c, 0])]
}

/// Whether rows are as they are kept: each at a place of its own.
pub(super) fn is_kept(rows: &[[i32; KEPT_ROW]]) -> bool {
    let in_order = rows.windows(2).all(|pair| pair[0][0] < pair[1][0]);
    in_order && rows.iter().all(|row| (0..2 * ROWS as i32).contains(&row[0]))
}

/// The tag and the row of a context: the latest delta, and for order two the one before.
fn place(order: usize, steps: [i32; 2]) -> (u32, usize) {
    let before = if order == 0 { 0 } else { steps[1] as u32 };
    let hash = ((u64::from(before) << 32) | u64::from(steps[0] as u32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    // The tag is never 0, which is that of an empty row.
    ((hash >> 8) as u32 | 1, (hash >> (64 - ROWS.trailing_zeros())) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(order: Order, path: &[u32]) -> Vec<u32> {
        let mut expert = DeltaExpert::new(order);
        path.iter().for_each(|unit| expert.read(Instant::ORIGIN, UnitIndex(*unit)));
        let mut out = Vec::new();
        expert.foresee(&mut out);
        assert!(out.iter().all(|found| (0.0..=1.0).contains(&found.sureness)));
        out.iter().map(|found| found.unit.0).collect()
    }

    #[test]
    fn a_stride_goes_on_and_a_new_step_is_followed_by_nothing() {
        let stride: Vec<u32> = (0..20).map(|n| n * 7).collect();
        assert_eq!(after(Order::One, &stride)[..3], [140, 147, 154]);
        let strange: Vec<u32> = stride.into_iter().chain([500]).collect();
        assert_eq!(after(Order::One, &strange), [0; 0]);
        assert_eq!(after(Order::One, &[1, 2]), [0; 0]);
    }

    #[test]
    fn order_two_knows_what_order_one_confuses() {
        // +1 is followed by +1 and by +5 in turn; the step before tells which.
        let mut at = 100;
        let path: Vec<u32> = (0..60)
            .map(|n| {
                at += [1, 1, 5][n % 3];
                at
            })
            .collect();
        let last = path[59];
        assert_eq!(after(Order::Two, &path)[..3], [last + 1, last + 2, last + 7]);
        assert_ne!(after(Order::One, &path).get(..3), Some(&[last + 1, last + 2, last + 7][..]));
    }

    #[test]
    fn the_tables_are_bounded_and_ends_are_no_harm() {
        assert_eq!(size_of::<Row>(), 20);
        let expert = DeltaExpert::new(Order::Two);
        assert_eq!(expert.bytes(), Bytes(2 * 8192 * 20));
        assert_eq!(after(Order::Two, &[u32::MAX - 3, u32::MAX - 2, u32::MAX - 1, u32::MAX]), [0; 0]);
        after(Order::Two, &[0, u32::MAX, 0, u32::MAX, 0, u32::MAX]);
    }
}
