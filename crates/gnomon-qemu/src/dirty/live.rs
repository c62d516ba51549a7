//! Which parts of a guest's RAM have ever been there: a scan need not look at the others.
//!
//! A scan walks page tables, 3 ns a page, and its guest may stand meanwhile: 6 ms for 8 GiB. Newer kernels fill those
//! tables in for all of the RAM at the first scan. A part of a memory file that is a hole is zeros, as it was at the
//! scan before; and that it is still a hole is told by one call for all neighbours that are.

use std::ops::Range;

use gnomon_terms::{PageCount, PageNumber, PageRun};

/// Pages of a part, 16 MiB: walked in 12 µs, so that one touched page costs no more than a few calls.
const PART: u64 = 4096;

/// The parts of one guest's RAM. One that was there once stays: its pages may be given back and come again between two
/// scans.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Live {
    parts: Vec<bool>,
}

impl Live {
    /// So many pages, of which none is known to be there.
    pub(super) fn new(pages: PageCount) -> Live {
        Live { parts: vec![false; pages.0.div_ceil(PART) as usize] }
    }

    /// Takes in what has come to be there. `data` tells the first page from the given one on that is there, if there is
    /// one; it is asked once for each row of parts that are not, and once for each part that has become.
    pub(super) fn refresh<E>(
        &mut self,
        mut data: impl FnMut(PageNumber) -> Result<Option<PageNumber>, E>,
    ) -> Result<(), E> {
        let mut from = 0;
        while let Some(absent) = self.next(from, false) {
            let Some(there) = data(PageNumber(absent as u64 * PART))? else { return Ok(()) };
            let part = (there.0 / PART) as usize;
            if let Some(live) = self.parts.get_mut(part) {
                *live = true;
            }
            from = part.max(absent) + 1;
        }
        Ok(())
    }

    /// The pages within `pages` that have to be looked at, in order, in as few runs as there are.
    pub(super) fn runs(&self, pages: PageRun) -> Vec<PageRun> {
        let mut runs = Vec::new();
        let mut from = (pages.start.0 / PART) as usize;
        while let Some(first) = self.next(from, true).filter(|first| *first as u64 * PART < pages.end().0) {
            let end = self.next(first, false).unwrap_or(self.parts.len());
            let run = clip(first as u64 * PART..end as u64 * PART, &pages);
            runs.push(PageRun::new(run.start, run.end - run.start));
            from = end;
        }
        runs
    }

    /// The first part from this one on that is there, or is not.
    fn next(&self, from: usize, live: bool) -> Option<usize> {
        let found = self.parts.get(from..)?.iter().position(|part| *part == live)?;
        Some(from + found)
    }
}

fn clip(run: Range<u64>, pages: &PageRun) -> Range<u64> {
    run.start.max(pages.start.0)..run.end.min(pages.end().0)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;

    /// How often it was asked when so many pages are there, and what is to be looked at then.
    fn looked(live: &mut Live, there: &[u64], within: PageRun) -> (usize, Vec<PageRun>) {
        let mut asked = 0;
        let answered: Result<(), Infallible> = live.refresh(|from| {
            asked += 1;
            Ok(there.iter().copied().filter(|page| *page >= from.0).min().map(PageNumber))
        });
        answered.expect("it cannot fail");
        (asked, live.runs(within))
    }

    #[test]
    fn only_what_is_there_is_looked_at_and_holes_cost_a_call_each() {
        let (all, ram) = (PageRun::new(0, 10 * PART - 7), PageCount(10 * PART - 7));
        let mut live = Live::new(ram);
        assert_eq!(looked(&mut live, &[], all), (1, vec![]), "nothing is there");
        let some = [PART + 1, 2 * PART, 9 * PART];
        let runs = vec![PageRun::new(PART, 2 * PART), PageRun::new(9 * PART, PART - 7)];
        assert_eq!(looked(&mut live, &some, all), (3, runs.clone()), "each part that has become asks once");
        assert_eq!(looked(&mut live, &some, all), (2, runs.clone()), "each hole asks once");
        assert_eq!(looked(&mut live, &[], all), (1, runs), "what was there once is looked at for ever");
        let within = PageRun::new(2 * PART + 5, PART);
        assert_eq!(live.runs(within), vec![PageRun::new(2 * PART + 5, PART - 5)]);
    }

    #[test]
    fn an_answer_beyond_the_ram_ends_the_look() {
        let mut live = Live::new(PageCount(2 * PART));
        assert_eq!(looked(&mut live, &[5 * PART], PageRun::new(0, 2 * PART)), (1, vec![]));
    }

    proptest! {
        #[test]
        fn every_page_that_is_there_is_looked_at(
            before in prop::collection::vec(0..20 * PART, 0..9),
            now in prop::collection::vec(0..20 * PART, 0..9),
            start in 0..10 * PART,
            len in 1..10 * PART,
        ) {
            let mut live = Live::new(PageCount(20 * PART));
            let within = PageRun::new(start, len);
            looked(&mut live, &before, within);
            let (_, runs) = looked(&mut live, &now, within);
            for page in now.iter().chain(&before).filter(|page| within.pages().any(|p| p.0 == **page)) {
                prop_assert!(runs.iter().any(|run| run.start.0 <= *page && *page < run.end().0), "{page}");
            }
            prop_assert!(runs.iter().all(|run| run.len.0 > 0 && run.start >= within.start && run.end() <= within.end()));
        }
    }
}
