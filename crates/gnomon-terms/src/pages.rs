//! Sets of guest pages.

use crate::{Bytes, PageCount, PageNumber};

/// A run of 4 KiB pages of one guest's RAM: `start .. start + len`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PageRun {
    /// First page.
    pub start: PageNumber,
    /// How many pages.
    pub len: PageCount,
}

impl PageRun {
    /// `len` pages from `start`.
    pub const fn new(start: u64, len: u64) -> PageRun {
        PageRun { start: PageNumber(start), len: PageCount(len) }
    }

    /// The page after the last one.
    pub fn end(self) -> PageNumber {
        PageNumber(self.start.0.saturating_add(self.len.0))
    }

    /// Its size.
    pub fn bytes(self) -> Bytes {
        self.len.bytes()
    }

    /// The pages of the run, in order.
    pub fn pages(self) -> impl Iterator<Item = PageNumber> {
        (self.start.0..self.end().0).map(PageNumber)
    }
}

/// A set of pages, kept as runs in order that neither overlap nor touch: it costs what is in it, whatever the size of
/// the guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageSet {
    runs: Vec<PageRun>,
}

impl PageSet {
    /// No pages.
    pub fn new() -> PageSet {
        PageSet::default()
    }

    /// Takes all pages out and keeps the room.
    pub fn clear(&mut self) {
        self.runs.clear();
    }

    /// Puts a run in. Cheap in ascending order; else it moves what lies behind.
    pub fn insert(&mut self, run: PageRun) {
        if run.len.0 == 0 {
            return;
        }
        // Runs from `first` on end at or behind the new one's start, runs before `last` start within or at its end.
        let first = self.runs.partition_point(|old| old.end() < run.start);
        let last = self.runs.partition_point(|old| old.start <= run.end());
        let met = &self.runs[first..last.max(first)];
        let start = met.first().map_or(run.start, |old| old.start.min(run.start));
        let end = met.last().map_or(run.end(), |old| old.end().max(run.end()));
        let whole = PageRun::new(start.0, end.0 - start.0);
        match met.len() {
            0 => self.runs.insert(first, whole),
            _ => {
                self.runs[first] = whole;
                self.runs.drain(first + 1..last);
            }
        }
    }

    /// Puts all pages of another set in, in one pass over both.
    pub fn union(&mut self, other: &PageSet) {
        let mine = std::mem::take(&mut self.runs);
        self.runs.reserve(mine.len() + other.runs.len());
        let (mut mine, mut theirs) = (mine.into_iter().peekable(), other.runs.iter().copied().peekable());
        loop {
            let next = match (mine.peek(), theirs.peek()) {
                (Some(a), Some(b)) if a.start <= b.start => mine.next(),
                (_, Some(_)) => theirs.next(),
                (_, None) => mine.next(),
            };
            let Some(run) = next else { break };
            self.insert(run);
        }
    }

    /// Whether a page is in it.
    pub fn contains(&self, page: PageNumber) -> bool {
        let at = self.runs.partition_point(|run| run.end() <= page);
        self.runs.get(at).is_some_and(|run| run.start <= page)
    }

    /// The runs, in order.
    pub fn runs(&self) -> &[PageRun] {
        &self.runs
    }

    /// The pages, in order.
    pub fn pages(&self) -> impl Iterator<Item = PageNumber> {
        self.runs.iter().flat_map(|run| run.pages())
    }

    /// How many pages.
    pub fn count(&self) -> PageCount {
        PageCount(self.runs.iter().map(|run| run.len.0).sum())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }
}

impl FromIterator<PageRun> for PageSet {
    fn from_iter<I: IntoIterator<Item = PageRun>>(runs: I) -> PageSet {
        let mut set = PageSet::new();
        runs.into_iter().for_each(|run| set.insert(run));
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(runs: &[(u64, u64)]) -> PageSet {
        runs.iter().map(|&(start, len)| PageRun::new(start, len)).collect()
    }

    #[test]
    fn runs_that_meet_become_one() {
        type Runs = &'static [(u64, u64)];
        let table: [(Runs, Runs); 8] = [
            (&[(1, 2), (3, 1)], &[(1, 3)]),
            (&[(5, 1), (1, 1)], &[(1, 1), (5, 1)]),
            (&[(1, 1), (3, 1), (2, 1)], &[(1, 3)]),
            (&[(1, 1), (3, 1), (5, 1), (0, 9)], &[(0, 9)]),
            (&[(0, 9), (3, 1)], &[(0, 9)]),
            (&[(4, 2), (2, 3)], &[(2, 4)]),
            (&[(4, 0)], &[]),
            (&[(1, 1), (9, 1), (3, 2), (8, 1)], &[(1, 1), (3, 2), (8, 2)]),
        ];
        for (put, runs) in table {
            let runs: Vec<PageRun> = runs.iter().map(|&(start, len)| PageRun::new(start, len)).collect();
            assert_eq!(set(put).runs(), runs, "{put:?}");
        }
    }

    /// Any order, any overlap: the same pages as a set of single pages has.
    #[test]
    fn it_holds_what_was_put_in() {
        let mut seed = 1u64;
        let mut chance = |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % below
        };
        for _ in 0..200 {
            let puts: Vec<(u64, u64)> = (0..12).map(|_| (chance(64), chance(9))).collect();
            let (left, right) = puts.split_at(6);
            let mut both = set(left);
            both.union(&set(right));
            assert_eq!(both, set(&puts), "{puts:?}");
            let model: std::collections::BTreeSet<u64> = puts.iter().flat_map(|&(s, l)| s..s + l).collect();
            assert_eq!(
                both.pages().map(|page| page.0).collect::<Vec<_>>(),
                model.iter().copied().collect::<Vec<_>>()
            );
            assert_eq!(both.count().0, model.len() as u64);
            assert!((0..80).all(|page| both.contains(PageNumber(page)) == model.contains(&page)), "{puts:?}");
        }
    }
}
