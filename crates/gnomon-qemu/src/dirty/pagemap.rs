//! The first tier: the kernel marks written pages, and tells and clears the marks in one step.
//!
//! Pages are write-protected through a userfaultfd in asynchronous mode that was registered within QEMU
//! ([`super::register`]). The first write to a page clears its protection, without a message to anybody; a scan from
//! our process walks QEMU's page tables, reports what is not protected, and protects it again under the lock of that
//! page table. Under KVM the protection reaches the second-level tables by the kernel's own notifier, so a guest's
//! write there is caught as well.
//!
//! A page that QEMU has not touched has no entry. Where the table exists it counts as written; where even that is
//! absent, older kernels do not report it until it is touched, which for shared memory makes it an unprotected page, and
//! newer ones (seen with 6.18) make the table. Either way a write is reported. What has never been there is not looked
//! at ([`super::live`]).

use std::{fs::File, time::Instant};

use gnomon_terms::{PAGE_SIZE, PageCount, PageNumber, PageRun, PageSet};

use super::{
    DirtyTracker, ScanCost, TrackError, TrackTarget, TrackerTier,
    live::Live,
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
    live: Live,
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
        let live = Live::new(target.pages());
        let tracker = PagemapTracker { target, pagemap, windows, live, answer, all: true };
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

    /// One pass over all that is there. What was reported is in `dirty` also when a later call fails.
    fn pass(&mut self, dirty: &mut PageSet) -> Result<u64, TrackError> {
        self.live.refresh(|from| self.target.data_from(from))?;
        let mut reported = 0;
        for window in &self.windows {
            for run in self.live.runs(window.run()) {
                reported += pass_over(&self.target, &self.pagemap, window, run, &mut self.answer, dirty)?;
            }
        }
        Ok(reported)
    }
}

/// One pass over pages of a window.
fn pass_over(
    target: &TrackTarget,
    pagemap: &File,
    window: &Window,
    pages: PageRun,
    answer: &mut [Region],
    dirty: &mut PageSet,
) -> Result<u64, TrackError> {
    let at = window.address_of(pages.start)..window.address_of(pages.end());
    let (mut from, mut reported) = (at.start, 0);
    while from < at.end {
        let (count, end) = scan_and_protect(pagemap, from..at.end, answer)
            .map_err(|source| TrackError::Scan { pid: target.pid(), source })?;
        for run in answer[..count].iter().filter_map(|region| run_of(window, region)) {
            reported += run.len.0;
            dirty.insert(run);
        }
        if end <= from {
            break;
        }
        from = end;
    }
    Ok(reported)
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
        let cost = self.scan_unconfirmed(dirty)?;
        self.confirm().map(|()| cost)
    }

    fn scan_unconfirmed(&mut self, dirty: &mut PageSet) -> Result<ScanCost, TrackError> {
        let started = Instant::now();
        let passed = self.pass(dirty);
        let reported = told(passed, &mut self.all, self.target.pages(), dirty)?;
        Ok(ScanCost { took: started.elapsed(), reported })
    }

    /// An ended process has no pages to report and a new mapping is not registered: neither is "nothing written".
    fn confirm(&mut self) -> Result<(), TrackError> {
        let found = self.target.windows();
        self.all |= !found.as_ref().is_ok_and(|found| *found == self.windows);
        match found? == self.windows {
            true => Ok(()),
            false => Err(TrackError::Remapped { pid: self.target.pid() }),
        }
    }

    fn read(&self, start: PageNumber, into: &mut [u8]) -> Result<(), TrackError> {
        self.target.read(start, into)
    }
}
