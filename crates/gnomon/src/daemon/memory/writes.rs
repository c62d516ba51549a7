//! What a VM writes, noted in passing: a tracker that tells the VM's heat what it reports to whoever carries the VM.
//!
//! It costs a scan that the guest stands for a copy of its runs and nothing else: they are counted when the guest runs again.

use std::sync::Arc;

use gnomon_cycle::staging::Heat;
use gnomon_qemu::{DirtyTracker, ScanCost, TrackError, TrackerTier};
use gnomon_terms::{PageCount, PageNumber, PageSet};
use parking_lot::Mutex;

/// Such a tracker.
#[derive(Debug)]
pub(super) struct Noted {
    tracker: Box<dyn DirtyTracker>,
    heat: Arc<Mutex<Heat>>,
    /// Of the last scan that the guest stood for.
    uncounted: PageSet,
}

impl Noted {
    /// Notes what `tracker` reports from now on.
    pub(super) fn new(tracker: Box<dyn DirtyTracker>, heat: Arc<Mutex<Heat>>) -> Noted {
        Noted { tracker, heat, uncounted: PageSet::new() }
    }

    /// A report of all pages says that nothing is known: the first is one.
    fn count(&self, written: &PageSet) {
        if written.count() < self.tracker.pages() {
            let mut heat = self.heat.lock();
            written.runs().iter().for_each(|run| heat.note(*run, 1));
        }
    }
}

/// Has a scan report into an empty set, shows what it has, and puts in what was there.
fn apart<T>(dirty: &mut PageSet, scan: impl FnOnce(&mut PageSet) -> T, show: impl FnOnce(&PageSet)) -> T {
    let before = std::mem::take(dirty);
    let scanned = scan(dirty);
    show(dirty);
    if !before.is_empty() {
        dirty.union(&before);
    }
    scanned
}

impl DirtyTracker for Noted {
    fn tier(&self) -> TrackerTier {
        self.tracker.tier()
    }

    fn pages(&self) -> PageCount {
        self.tracker.pages()
    }

    fn scan(&mut self, dirty: &mut PageSet) -> Result<ScanCost, TrackError> {
        let mut fresh = PageSet::new();
        let scanned = apart(dirty, |dirty| self.tracker.scan(dirty), |written| fresh.clone_from(written));
        self.count(&fresh);
        scanned
    }

    fn scan_unconfirmed(&mut self, dirty: &mut PageSet) -> Result<ScanCost, TrackError> {
        let Noted { tracker, uncounted, .. } = self;
        apart(dirty, |dirty| tracker.scan_unconfirmed(dirty), |written| uncounted.clone_from(written))
    }

    fn confirm(&mut self) -> Result<(), TrackError> {
        let confirmed = self.tracker.confirm();
        let written = std::mem::take(&mut self.uncounted);
        self.count(&written);
        confirmed
    }

    fn read(&self, start: PageNumber, into: &mut [u8]) -> Result<(), TrackError> {
        self.tracker.read(start, into)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use gnomon_terms::PageRun;

    use super::*;

    const PAGES: PageCount = PageCount(6400);

    /// Reports all pages, then the first hundred.
    #[derive(Debug, Default)]
    struct Script {
        scans: u64,
    }

    impl DirtyTracker for Script {
        fn tier(&self) -> TrackerTier {
            TrackerTier::Compare
        }

        fn pages(&self) -> PageCount {
            PAGES
        }

        fn scan(&mut self, dirty: &mut PageSet) -> Result<ScanCost, TrackError> {
            self.scans += 1;
            let reported = if self.scans == 1 { PAGES } else { PageCount(100) };
            dirty.insert(PageRun::new(0, reported.0));
            Ok(ScanCost { took: Duration::ZERO, reported })
        }

        fn read(&self, _: PageNumber, _: &mut [u8]) -> Result<(), TrackError> {
            Ok(())
        }
    }

    #[test]
    fn writes_are_counted_once_and_reported_as_they_are() {
        let heat = Arc::new(Mutex::new(Heat::new(PAGES)));
        let mut noted = Noted::new(Box::new(Script::default()), Arc::clone(&heat));
        let touches = || (heat.lock().mean() * PAGES.0 as f64).round();
        let mut dirty = PageSet::new();
        noted.scan(&mut dirty).expect("scanned");
        assert_eq!((touches(), dirty.count()), (0.0, PAGES));
        let mut dirty = PageSet::from_iter([PageRun::new(50, 100)]);
        noted.scan(&mut dirty).expect("scanned");
        assert_eq!((touches(), dirty.runs()), (100.0, &[PageRun::new(0, 150)][..]));
        noted.scan_unconfirmed(&mut dirty).expect("scanned");
        assert_eq!(touches(), 100.0, "the guest stands");
        noted.confirm().expect("it lives");
        noted.confirm().expect("it lives");
        assert_eq!(touches(), 200.0);
    }
}
