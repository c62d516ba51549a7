//! A checkpoint on its way into a shadow: staged, then applied whole or not at all.
//!
//! ```text
//!            batch            seal
//!   Empty ─────────► Staged ────────► applied, with what undoes it
//!     ▲                 │ the session ends, a batch is damaged, there is no room
//!     └──── dropped ◄───┘
//! ```
//! The shadow's memory is always that of a checkpoint: pages go there when their checkpoint is complete. A record may
//! speak of other pages (`Same`) or of what was there (`Delta`): that is the staged content, or else the memory's.

use std::collections::BTreeMap;

use gnomon_terms::{Bytes, PageCount, PageNumber};

use crate::{
    page::{
        Coding, Page, ZERO_PAGE,
        batch::{BatchError, Reader},
        delta::{self, DeltaError},
    },
    ram::Ram,
};

/// Why a batch was not staged. The checkpoint it belongs to is lost: drop the stage, and begin from what is applied.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StageError {
    /// The batch cannot be read.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// A delta cannot be applied.
    #[error("page {page} of a batch")]
    Delta {
        /// Which page.
        page: u64,
        /// Why.
        #[source]
        source: DeltaError,
    },
    /// The checkpoint changes more pages than this host keeps aside.
    #[error(
        "a checkpoint changes more than {limit} of memory: give the shadow's node a larger stage, or a shorter interval"
    )]
    Full {
        /// How much may be staged.
        limit: Bytes,
    },
    /// The seal does not fit what was staged.
    #[error("a checkpoint of {said} records was sealed, and {staged} had arrived")]
    Torn {
        /// What the seal said.
        said: u64,
        /// What had been staged.
        staged: u64,
    },
}

impl StageError {
    /// What the caller can do about it.
    pub fn kind(&self) -> gnomon_terms::ErrorKind {
        match self {
            StageError::Full { .. } => gnomon_terms::ErrorKind::Unavailable,
            _ => gnomon_terms::ErrorKind::Corrupt,
        }
    }
}

/// The pages of a checkpoint that is not complete.
pub struct Stage {
    pages: BTreeMap<u64, Box<Page>>,
    records: u64,
    limit: PageCount,
}

/// What a checkpoint replaced.
#[derive(Default)]
pub struct Undo {
    pages: Vec<(PageNumber, Box<Page>)>,
}

impl Stage {
    /// Nothing yet; up to `limit` pages are kept.
    pub fn new(limit: PageCount) -> Stage {
        Stage { pages: BTreeMap::new(), records: 0, limit }
    }

    /// Takes a batch in.
    pub fn take(&mut self, body: &[u8], ram: &dyn Ram) -> Result<(), StageError> {
        for record in Reader::new(body, ram.pages()) {
            let (page, coding) = record?;
            let content = self.resolve(page, coding, ram)?;
            if self.pages.len() as u64 >= self.limit.0 && !self.pages.contains_key(&page.0) {
                return Err(StageError::Full { limit: self.limit.bytes() });
            }
            self.pages.insert(page.0, content);
            self.records += 1;
        }
        Ok(())
    }

    /// Takes a batch in and applies it at once, without a way back: for memory that is of no checkpoint yet.
    pub fn pass(&mut self, body: &[u8], ram: &dyn Ram) -> Result<(), StageError> {
        for record in Reader::new(body, ram.pages()) {
            let (page, coding) = record?;
            ram.write(page, &*self.resolve(page, coding, ram)?);
            self.records += 1;
        }
        Ok(())
    }

    /// How many pages it changes.
    pub fn pages(&self) -> PageCount {
        PageCount(self.pages.len() as u64)
    }

    /// The checkpoint is complete, in so many records: applies it. An error changes nothing.
    pub fn apply(self, records: u64, ram: &dyn Ram) -> Result<Undo, StageError> {
        if records != self.records {
            return Err(StageError::Torn { said: records, staged: self.records });
        }
        let mut undo = Undo::default();
        for page in self.pages.keys().copied().map(PageNumber) {
            let mut old = Box::new(ZERO_PAGE);
            ram.read(page, &mut old);
            undo.pages.push((page, old));
        }
        for (page, content) in &self.pages {
            ram.write(PageNumber(*page), content);
        }
        Ok(undo)
    }

    fn resolve(&self, page: PageNumber, coding: Coding<'_>, ram: &dyn Ram) -> Result<Box<Page>, StageError> {
        Ok(match coding {
            Coding::Zero => Box::new(ZERO_PAGE),
            Coding::Raw(content) => Box::new(*content),
            Coding::Same(other) => self.look(other, ram),
            Coding::Delta(bytes) => {
                let mut content = self.look(page, ram);
                delta::apply(bytes, &mut content).map_err(|source| StageError::Delta { page: page.0, source })?;
                content
            }
        })
    }

    /// A page as it will be when what is staged has been applied.
    fn look(&self, page: PageNumber, ram: &dyn Ram) -> Box<Page> {
        self.pages.get(&page.0).cloned().unwrap_or_else(|| {
            let mut content = Box::new(ZERO_PAGE);
            ram.read(page, &mut content);
            content
        })
    }
}

impl Undo {
    /// Puts the memory back to what it was before the checkpoint. Only while nothing has been applied since.
    pub fn revert(self, ram: &dyn Ram) {
        for (page, content) in self.pages {
            ram.write(page, &content);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        page::{Said, SentPages, batch::Writer},
        ram::tests::PlainRam,
    };

    const PAGES: usize = 24;

    fn content(seed: u8) -> Page {
        std::array::from_fn(|at| seed.wrapping_mul(3) ^ (at % 249) as u8)
    }

    /// Codes the pages `dirty` of `primary` in batches.
    fn batches(sent: &mut SentPages, primary: &PlainRam, dirty: &[u64]) -> (Vec<Vec<u8>>, u64) {
        let (mut writer, mut out, mut records) = (Writer::default(), Vec::new(), 0);
        for (at, page) in dirty.iter().enumerate() {
            let mut now = ZERO_PAGE;
            primary.read(PageNumber(*page), &mut now);
            if let Said::Record(coding) = sent.say(PageNumber(*page), &now) {
                writer.push(PageNumber(*page), coding);
            }
            // Small batches, so that codings reach across them.
            if at % 3 == 2 {
                let (body, count) = writer.take();
                out.push(body);
                records += u64::from(count);
            }
        }
        let (body, count) = writer.take();
        out.push(body);
        (out, records + u64::from(count))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whatever changes between checkpoints, and wherever the stream is cut, the shadow's memory is that of the
        /// last checkpoint that was complete; and undone, of the one before.
        #[test]
        fn the_shadow_is_always_a_checkpoint(
            checkpoints in prop::collection::vec(
                (prop::collection::btree_map(0..PAGES as u64, 0u8..5, 0..12), any::<bool>()), 1..12),
        ) {
            let (primary, shadow) = (PlainRam::new(PAGES), PlainRam::new(PAGES));
            let mut sent = SentPages::new(Bytes(8 * 4096));
            let mut owed: std::collections::BTreeSet<u64> = Default::default();
            for (changes, is_cut) in checkpoints {
                for (page, seed) in &changes {
                    primary.write(PageNumber(*page), &content(*seed));
                    owed.insert(*page);
                }
                let before = shadow.0.lock().unwrap().clone();
                let dirty: Vec<u64> = owed.iter().copied().collect();
                let (bodies, records) = batches(&mut sent, &primary, &dirty);
                let mut stage = Stage::new(PageCount(PAGES as u64));
                if is_cut {
                    for body in &bodies[..bodies.len() / 2] {
                        stage.take(body, &shadow).unwrap();
                    }
                    drop(stage);
                    sent.clear();
                    prop_assert!(*shadow.0.lock().unwrap() == before);
                    continue;
                }
                for body in &bodies {
                    stage.take(body, &shadow).unwrap();
                }
                prop_assert!(*shadow.0.lock().unwrap() == before, "staged is not applied");
                let undo = stage.apply(records, &shadow).unwrap();
                owed.clear();
                let after = primary.0.lock().unwrap().clone();
                prop_assert!(*shadow.0.lock().unwrap() == after);
                if changes.len() % 2 == 1 {
                    undo.revert(&shadow);
                    prop_assert!(*shadow.0.lock().unwrap() == before);
                    *shadow.0.lock().unwrap() = after;
                }
            }
        }

        #[test]
        fn any_bytes_are_staged_or_refused(body in prop::collection::vec(any::<u8>(), 0..300)) {
            let shadow = PlainRam::new(PAGES);
            let mut stage = Stage::new(PageCount(4));
            let _ = stage.take(&body, &shadow);
            prop_assert!(stage.pages() <= PageCount(4));
            prop_assert!(shadow.0.lock().unwrap().iter().all(|page| *page == ZERO_PAGE));
        }
    }

    #[test]
    fn a_torn_checkpoint_changes_nothing() {
        let (primary, shadow) = (PlainRam::new(PAGES), PlainRam::new(PAGES));
        for page in 0..6 {
            primary.write(PageNumber(page), &content(page as u8 + 1));
        }
        let (bodies, records) = batches(&mut SentPages::new(Bytes(1 << 20)), &primary, &[0, 1, 2, 3, 4, 5]);
        let mut stage = Stage::new(PageCount(100));
        stage.take(&bodies[0], &shadow).unwrap();
        let error = stage.apply(records, &shadow).err().expect("it is torn");
        assert!(matches!(error, StageError::Torn { said: 6, staged: 3 }), "{error}");
        assert!(shadow.0.lock().unwrap().iter().all(|page| *page == ZERO_PAGE));
    }

    #[test]
    fn a_stage_has_its_limit() {
        let (primary, shadow) = (PlainRam::new(PAGES), PlainRam::new(PAGES));
        let (bodies, _) = batches(&mut SentPages::new(Bytes(1 << 20)), &primary, &[0, 1, 2]);
        let mut stage = Stage::new(PageCount(2));
        let error = stage.take(&bodies[0], &shadow).expect_err("three pages, and room for two");
        assert!(matches!(error, StageError::Full { limit: Bytes(8192) }), "{error}");
    }
}
