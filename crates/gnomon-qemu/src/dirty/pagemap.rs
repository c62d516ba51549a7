//! The first tier: the kernel marks written pages, and tells and clears the marks in one step.
//!
//! Pages are write-protected through a userfaultfd in asynchronous mode that was registered within QEMU
//! ([`super::register`]). The first write to a page clears its protection, without a message to anybody; a scan from
//! our process walks QEMU's page tables, reports what is not protected, and protects it again under the lock of that
//! page table. Under KVM the protection reaches the second-level tables by the kernel's own notifier, so a guest's
//! write there is caught as well.
//!
//! A page that QEMU has not touched has no entry. Where the table exists it counts as written; where even that is
//! absent it is not reported until it is touched, which for shared memory makes it an unprotected page. Either way a
//! write is reported.

use std::{fs::File, time::Instant};

use gnomon_terms::{PAGE_SIZE, PageCount, PageNumber, PageRun, PageSet};

use super::{
    DirtyTracker, ScanCost, TrackError, TrackTarget, TrackerTier,
    maps::Window,
    register::register,
    sys::{Region, has_pagemap_scan, is_registered, scan_and_protect},
    told,
};

/// How many runs of pages one call tells: 96 KiB of answer, enough for most epochs in one call.
const REGIONS: usize = 4096;

/// Asks the kernel which pages were written.
#[derive(Debug)]
pub struct PagemapTracker {
    target: TrackTarget,
    pagemap: File,
    windows: Vec<Window>,
    /// Where the kernel answers; kept from scan to scan.
    answer: Vec<Region>,
    /// The next scan reports every page.
    all: bool,
}

impl PagemapTracker {
    /// Starts. If the process is not registered yet it is now: one of its threads is stopped for that, for well under
    /// a millisecond. A process that an earlier daemon registered is taken over as it is.
    pub fn start(target: &TrackTarget) -> Result<PagemapTracker, TrackError> {
        if !has_pagemap_scan() {
            let why = "its kernel has no PAGEMAP_SCAN (Linux 6.7 and newer have)".to_string();
            return Err(TrackError::NoTier { tier: TrackerTier::PagemapScan, why });
        }
        let target = target.again()?;
        let windows = target.windows()?;
        target.refuse_forgetful(&windows, TrackerTier::PagemapScan)?;
        target.take()?;
        let path = target.path("pagemap");
        let pagemap = File::open(&path).map_err(|e| TrackError::file("open", &path, e))?;
        let answer = vec![Region::default(); REGIONS];
        let tracker = PagemapTracker { target, pagemap, windows, answer, all: true };
        if !tracker.is_registered()? {
            register(tracker.target.pid(), &tracker.target.maps()?, &tracker.windows)?;
        }
        match tracker.is_registered()? {
            true => Ok(tracker),
            // Between the look at the mappings and the calls they have changed.
            false => Err(TrackError::Remapped { pid: tracker.target.pid() }),
        }
    }

    fn is_registered(&self) -> Result<bool, TrackError> {
        for window in &self.windows {
            let looked = is_registered(&self.pagemap, window.at.clone());
            if !looked.map_err(|source| TrackError::Scan { pid: self.target.pid(), source })? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// One pass over all windows. What was reported is in `dirty` also when a later call fails.
    fn pass(&mut self, dirty: &mut PageSet) -> Result<u64, TrackError> {
        let pid = self.target.pid();
        let mut reported = 0;
        for window in &self.windows {
            let mut from = window.at.start;
            while from < window.at.end {
                let (count, end) = scan_and_protect(&self.pagemap, from..window.at.end, &mut self.answer)
                    .map_err(|source| TrackError::Scan { pid, source })?;
                for run in self.answer[..count].iter().filter_map(|region| run_of(window, region)) {
                    reported += run.len.0;
                    dirty.insert(run);
                }
                if end <= from {
                    break;
                }
                from = end;
            }
        }
        // An ended process has no pages to report and a new mapping is not registered: neither is "nothing written".
        match self.target.windows()? == self.windows {
            true => Ok(reported),
            false => Err(TrackError::Remapped { pid }),
        }
    }
}

/// The pages of a region the kernel told, as far as they are the window's.
fn run_of(window: &Window, region: &Region) -> Option<PageRun> {
    let (start, end) = (region.start.max(window.at.start), region.end.min(window.at.end));
    let len = end.checked_sub(start)? / PAGE_SIZE;
    (len > 0).then(|| PageRun { start: window.page_at(start), len: PageCount(len) })
}

impl DirtyTracker for PagemapTracker {
    fn tier(&self) -> TrackerTier {
        TrackerTier::PagemapScan
    }

    fn pages(&self) -> PageCount {
        self.target.pages()
    }

    fn scan(&mut self, dirty: &mut PageSet) -> Result<ScanCost, TrackError> {
        let started = Instant::now();
        let passed = self.pass(dirty);
        let reported = told(passed, &mut self.all, self.target.pages(), dirty)?;
        Ok(ScanCost { took: started.elapsed(), reported })
    }

    fn read(&self, start: PageNumber, into: &mut [u8]) -> Result<(), TrackError> {
        self.target.read(start, into)
    }
}
