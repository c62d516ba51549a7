//! The third tier: a copy of the RAM is kept and compared.
//!
//! It needs nothing of the kernel and sees every change, whoever made it. It costs as much memory again (as far as
//! the RAM is not zero) and reads all of the RAM in each scan.
//!
//! Its `read` answers from the kept copy, and must: a page that is changed and changed back between a scan and a copy
//! of the caller's own would not differ at the next scan, and the caller would keep the wrong content.

use std::time::Instant;

use gnomon_terms::{PAGE_SIZE, PageCount, PageNumber, PageRun, PageSet};

use super::{DirtyTracker, ScanCost, TrackError, TrackTarget, TrackerTier, told};

/// How much is read at once: fits in the second-level cache beside the part of the copy it is compared with.
const CHUNK: usize = 256 << 10;

/// Compares the guest's RAM with a copy of it.
pub struct CompareTracker {
    target: TrackTarget,
    /// The RAM as the last scan found it; zero before the first. Zero pages take no memory until they are written.
    kept: Vec<u8>,
    /// The next scan reports every page.
    all: bool,
}

impl CompareTracker {
    /// Starts. Nothing is read before the first scan.
    pub fn start(target: &TrackTarget) -> Result<CompareTracker, TrackError> {
        let target = target.again()?;
        let size = usize::try_from(target.pages().bytes().0).map_err(|_| TrackError::NoTier {
            tier: TrackerTier::Compare,
            why: "the RAM is larger than what a process of this host can hold".into(),
        })?;
        Ok(CompareTracker { target, kept: vec![0; size], all: true })
    }

    fn compare(&mut self, dirty: &mut PageSet) -> Result<u64, TrackError> {
        let mut now = vec![0; CHUNK];
        let mut reported = 0;
        for (index, kept) in self.kept.chunks_mut(CHUNK).enumerate() {
            let now = &mut now[..kept.len()];
            let first = (index * CHUNK) as u64 / PAGE_SIZE;
            self.target.read(PageNumber(first), now)?;
            if now != kept {
                reported += renew(kept, now, first, dirty);
            }
        }
        Ok(reported)
    }
}

/// Puts what differs into the kept copy and says which pages that were.
fn renew(kept: &mut [u8], now: &[u8], first: u64, dirty: &mut PageSet) -> u64 {
    let pages = kept.chunks_mut(PAGE_SIZE as usize).zip(now.chunks(PAGE_SIZE as usize));
    let mut reported = 0;
    for (page, (kept, now)) in (first..).zip(pages) {
        if kept != now {
            kept.copy_from_slice(now);
            dirty.insert(PageRun::new(page, 1));
            reported += 1;
        }
    }
    reported
}

impl DirtyTracker for CompareTracker {
    fn tier(&self) -> TrackerTier {
        TrackerTier::Compare
    }

    fn pages(&self) -> PageCount {
        self.target.pages()
    }

    fn scan(&mut self, dirty: &mut PageSet) -> Result<ScanCost, TrackError> {
        let started = Instant::now();
        // A memfd outlives its process: what is in it then is nobody's state.
        let compared = self.target.windows().and_then(|_| self.compare(dirty));
        // A scan that ends in the middle has told of all it put into the copy; only the promise is made good here.
        let reported = told(compared, &mut self.all, self.target.pages(), dirty)?;
        Ok(ScanCost { took: started.elapsed(), reported })
    }

    fn read(&self, start: PageNumber, into: &mut [u8]) -> Result<(), TrackError> {
        let at = self.target.check(start, into.len())? as usize;
        into.copy_from_slice(&self.kept[at..at + into.len()]);
        Ok(())
    }
}

impl std::fmt::Debug for CompareTracker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Not the copy.
        f.debug_struct("CompareTracker").field("target", &self.target).field("all", &self.all).finish()
    }
}
