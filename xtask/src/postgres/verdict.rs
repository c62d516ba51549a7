//! The judge: what the client was told, held against what the database has.
//!
//! Each client numbers its transactions from one, and begins the next when it was told of the last. So of each client the
//! database must have every number that it was told of, each once, and at most one more, whose answer did not come.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

/// A transaction that a client was told of as committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    /// Which client.
    pub client: u32,
    /// Which of its transactions, from one.
    pub number: u64,
    /// When it was told, in microseconds since 1970.
    pub at_us: u64,
    /// How long it had waited for that, in microseconds.
    pub took_us: u64,
}

/// A row of the database: `(client, number)`.
pub type Row = (u32, u64);

/// What came of a run. All four lists are empty when nothing went wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Acknowledged, and not in the database.
    pub lost: Vec<Row>,
    /// In the database more than once.
    pub twice: Vec<Row>,
    /// In the database, and the client has gone on to a later one without having been told of it: the client's log has
    /// holes, or the transaction was done by nobody.
    pub unheard: Vec<Row>,
    /// Told of more than once.
    pub repeated: Vec<Row>,
    /// How many were acknowledged.
    pub acknowledged: usize,
}

impl Verdict {
    /// Whether the database has what the clients were told, and nothing else.
    pub fn is_good(&self) -> bool {
        let wrong = [&self.lost, &self.twice, &self.unheard, &self.repeated];
        self.acknowledged > 0 && wrong.iter().all(|list| list.is_empty())
    }
}

/// Holds the client's log against the database.
pub fn judge(acks: &[Ack], rows: &[Row]) -> Verdict {
    let told = counted(acks.iter().map(|ack| (ack.client, ack.number)));
    let found = counted(rows.iter().copied());
    let last =
        |client: u32| told.range((client, 0)..=(client, u64::MAX)).next_back().map_or(0, |(&(_, last), _)| last);
    let several =
        |counts: &BTreeMap<Row, usize>| counts.iter().filter(|(_, times)| **times > 1).map(|(row, _)| *row).collect();
    Verdict {
        lost: told.keys().filter(|row| !found.contains_key(row)).copied().collect(),
        twice: several(&found),
        unheard: found.keys().filter(|row| !told.contains_key(row) && row.1 != last(row.0) + 1).copied().collect(),
        repeated: several(&told),
        acknowledged: told.len(),
    }
}

fn counted(rows: impl Iterator<Item = Row>) -> BTreeMap<Row, usize> {
    let mut counts = BTreeMap::new();
    rows.for_each(|row| *counts.entry(row).or_default() += 1);
    counts
}

/// The longest time in which no client was told of anything, of those times that overlap `from..to`; microseconds.
pub fn silence(acks: &[Ack], from: u64, to: u64) -> u64 {
    let mut times: Vec<u64> = acks.iter().map(|ack| ack.at_us).collect();
    times.sort_unstable();
    let overlapping = times.windows(2).filter(|pair| pair[1] >= from && pair[0] <= to);
    overlapping.map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
}

/// Answers a second within `from..to`, which is in microseconds.
pub fn rate(acks: &[Ack], from: u64, to: u64) -> f64 {
    let within = acks.iter().filter(|ack| (from..to).contains(&ack.at_us)).count();
    within as f64 / (to.saturating_sub(from).max(1) as f64 / 1e6)
}

/// Reads pgbench's log of transactions: `client number took script seconds microseconds`. What it calls failed or skipped
/// was not acknowledged.
///
/// Source: PostgreSQL 15, documentation of pgbench, "Per-Transaction Logging".
pub fn acks(log: &str) -> Result<Vec<Ack>> {
    let committed = log.lines().filter(|line| line.split(' ').nth(2).is_some_and(|took| took.parse::<u64>().is_ok()));
    committed.map(|line| ack(line).with_context(|| format!("not a line of pgbench's log: {line}"))).collect()
}

fn ack(line: &str) -> Option<Ack> {
    let mut words = line.split(' ');
    let client = words.next()?.parse().ok()?;
    let number = words.next()?.parse().ok()?;
    let took_us = words.next()?.parse().ok()?;
    let seconds: u64 = words.nth(1)?.parse().ok()?;
    let micros: u64 = words.next()?.parse().ok()?;
    Some(Ack { client, number, at_us: seconds.checked_mul(1_000_000)?.checked_add(micros)?, took_us })
}

/// Reads rows as the database copies them out: `client`, a tab, `number`.
pub fn rows(table: &str) -> Result<Vec<Row>> {
    let row = |line: &str| -> Option<Row> {
        let (client, number) = line.split_once('\t')?;
        Some((client.parse().ok()?, number.parse().ok()?))
    };
    table.lines().map(|line| row(line).with_context(|| format!("not a row: {line}"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(rows: &[Row]) -> Vec<Ack> {
        rows.iter().map(|&(client, number)| Ack { client, number, at_us: 0, took_us: 0 }).collect()
    }

    #[test]
    fn what_was_acknowledged_is_there_once() {
        // (told, found, lost, twice, unheard, good)
        type Rows = &'static [Row];
        let table: &[(Rows, Rows, Rows, Rows, Rows, bool)] = &[
            (&[(0, 1), (0, 2)], &[(0, 1), (0, 2)], &[], &[], &[], true),
            // each client may wait for one answer
            (&[(0, 1), (1, 1)], &[(0, 1), (0, 2), (1, 2), (1, 1)], &[], &[], &[], true),
            (&[(0, 1)], &[(0, 1), (7, 1)], &[], &[], &[], true),
            (&[(0, 1), (0, 2)], &[(0, 1)], &[(0, 2)], &[], &[], false),
            (&[(0, 1), (0, 2), (1, 1)], &[(1, 1)], &[(0, 1), (0, 2)], &[], &[], false),
            (&[(0, 1)], &[(0, 1), (0, 1)], &[], &[(0, 1)], &[], false),
            // done twice, though nobody was told
            (&[(0, 1)], &[(0, 1), (0, 2), (0, 2)], &[], &[(0, 2)], &[], false),
            (&[(0, 1), (0, 3)], &[(0, 1), (0, 2), (0, 3)], &[], &[], &[(0, 2)], false),
            (&[(0, 1)], &[(0, 1), (0, 3)], &[], &[], &[(0, 3)], false),
            // nothing was tried
            (&[], &[], &[], &[], &[], false),
        ];
        for (acks, rows, lost, twice, unheard, good) in table {
            let verdict = judge(&told(acks), rows);
            assert_eq!(
                (&verdict.lost[..], &verdict.twice[..], &verdict.unheard[..]),
                (*lost, *twice, *unheard),
                "{acks:?} {rows:?}"
            );
            assert_eq!(verdict.is_good(), *good, "{verdict:?}");
        }
    }

    #[test]
    fn a_number_that_was_told_twice_shows() {
        let verdict = judge(&told(&[(0, 1), (0, 1)]), &[(0, 1)]);
        assert_eq!((verdict.repeated.as_slice(), verdict.is_good()), (&[(0, 1)][..], false));
    }

    #[test]
    fn silence_is_the_longest_that_touches_the_time() {
        let acks: Vec<Ack> =
            [10, 0, 12, 40, 41, 90].iter().map(|&at_us| Ack { client: 0, number: 1, at_us, took_us: 0 }).collect();
        let table = [((13, 20), 28), ((0, 5), 10), ((12, 41), 49), ((11, 11), 2), ((95, 99), 0), ((0, 99), 49)];
        for ((from, to), expected) in table {
            assert_eq!(silence(&acks, from, to), expected, "{from}..{to}");
        }
        assert_eq!(silence(&[], 0, 9), 0);
        assert_eq!(rate(&acks, 0, 1_000_000), 6.0);
        assert_eq!(rate(&acks, 5, 5), 0.0);
    }

    #[test]
    fn logs_are_read() {
        let log = "3 1 323422 0 1795269365 729208\n2 1 failed 0 1795269365 746069\n2 2 skipped 0 1795269365 746070\n";
        assert_eq!(
            acks(log).unwrap(),
            [Ack { client: 3, number: 1, at_us: 1_795_269_365_729_208, took_us: 323_422 }]
        );
        assert!(acks("3 x 323422 0 1795269365 729208").is_err() && acks("3 1 323422").is_err());
        assert_eq!(rows("3\t1\n0\t12\n").unwrap(), [(3, 1), (0, 12)]);
        assert!(rows("3 1").is_err());
    }
}
