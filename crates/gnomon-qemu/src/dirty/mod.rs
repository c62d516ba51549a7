//! Which pages of a guest's RAM were written: trackers, in tiers, behind one trait.
//!
//! ```text
//!   TrackTarget ── track ──► the best tracker of this host ── scan ──► PageSet: written since the last scan
//!   (process, RAM)            1 pagemap-scan  exact, O(pages mapped) in the kernel, beside the running guest
//!                             2 soft-dirty    exact, O(RAM) in page tables, guest standing
//!                             3 compare       exact, O(RAM) in bytes and twice the memory, beside the running guest
//! ```
//!
//! **What a scan promises.** The first reports every page. Each later one reports at least every page whose content
//! may differ from what [`DirtyTracker::read`] could have returned between the scan before and this one. So: scan,
//! then read what was reported *through the tracker*, and whatever happens to a page after that is in the next scan.
//! Pages that were written with what they held, or not written at all, may be reported too (false positives); a
//! written page is never left out. After an error everything is reported again.
//!
//! **What the first two tiers do not see.** They see writes through QEMU's own page tables: by the guest (TCG, KVM),
//! by QEMU and its threads, by the kernel on its behalf (vhost-net, buffered reads). They do not see what *another*
//! process writes to the same memfd (vhost-user backends, this one), what a device writes to pages pinned for it
//! (VFIO; a disk opened with `cache.direct=on` whose read is in flight during a scan: it ends after the page was
//! protected again), nor that a balloon gave pages back. Comparing sees all of that.
//!
//! One tracker for a process at a time: a scan takes the marks away from any other. A lock on the RAM's file says so.

mod compare;
mod error;
mod guest;
mod inject;
mod live;
pub(crate) mod maps;
mod pagemap;
mod part;
mod probe;
mod register;
mod selftest;
mod soft;
pub(crate) mod sys;
mod target;

use std::{fmt, time::Duration};

use gnomon_terms::{PageCount, PageNumber, PageRun, PageSet};
use serde::{Deserialize, Serialize};

pub use compare::CompareTracker;
pub use error::TrackError;
pub use guest::boot_sector;
pub use inject::InjectError;
pub use pagemap::PagemapTracker;
pub use probe::{TierVerdict, TrackerFacts};
pub use selftest::{SelfTest, SelfTestError, TierTest, self_test};
pub use soft::SoftDirtyTracker;
pub use target::TrackTarget;

/// Tells which pages of one guest's RAM were written. See the module for what a scan promises.
pub trait DirtyTracker: Send + fmt::Debug {
    /// Which way it goes about it.
    fn tier(&self) -> TrackerTier;

    /// How many pages the RAM has; constant.
    fn pages(&self) -> PageCount;

    /// Adds to `dirty` the pages written since the last scan, and forgets them. What an earlier scan put into `dirty`
    /// stays. The guest may run, unless [`TrackerTier::needs_standing_guest`]. Blocks for the time that
    /// [`ScanCost::took`] tells. When it fails, pages may have been added, and the next scan reports every page.
    fn scan(&mut self, dirty: &mut PageSet) -> Result<ScanCost, TrackError>;

    /// A scan on the time of a guest that stands: it counts once [`DirtyTracker::confirm`] has said so, which may be asked
    /// when the guest runs again.
    fn scan_unconfirmed(&mut self, dirty: &mut PageSet) -> Result<ScanCost, TrackError> {
        self.scan(dirty)
    }

    /// Whether the scans since the last time have looked at the RAM: the process lives, and has it where they looked.
    /// After an error they do not count, and the next scan reports every page.
    fn confirm(&mut self) -> Result<(), TrackError> {
        Ok(())
    }

    /// Copies RAM from page `start` on: whole pages, as many as `into` holds. While the guest runs a page may be torn;
    /// then the next scan reports it.
    fn read(&self, start: PageNumber, into: &mut [u8]) -> Result<(), TrackError>;
}

/// The ways to find out which pages were written, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TrackerTier {
    /// The kernel marks written pages, tells and clears the marks in one step.
    PagemapScan,
    /// The kernel marks written pages; telling and clearing are two steps.
    SoftDirty,
    /// A copy of the RAM is kept and compared.
    Compare,
}

/// What a scan has cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScanCost {
    /// Time.
    pub took: Duration,
    /// Pages it reported, false positives included.
    pub reported: PageCount,
}

impl TrackerTier {
    /// All of them, best first.
    pub const ALL: [TrackerTier; 3] = [TrackerTier::PagemapScan, TrackerTier::SoftDirty, TrackerTier::Compare];

    /// Whether a scan is right only while the guest stands. Then an epoch has one scan, after the guest was stopped,
    /// and no pre-pass.
    pub fn needs_standing_guest(self) -> bool {
        self == TrackerTier::SoftDirty
    }

    /// Starts tracking in this way.
    pub fn start(self, target: &TrackTarget) -> Result<Box<dyn DirtyTracker>, TrackError> {
        Ok(match self {
            TrackerTier::PagemapScan => Box::new(PagemapTracker::start(target)?),
            TrackerTier::SoftDirty => Box::new(SoftDirtyTracker::start(target)?),
            TrackerTier::Compare => Box::new(CompareTracker::start(target)?),
        })
    }
}

impl fmt::Display for TrackerTier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TrackerTier::PagemapScan => "pagemap-scan",
            TrackerTier::SoftDirty => "soft-dirty",
            TrackerTier::Compare => "compare",
        })
    }
}

/// How many pages a scan reports that has passed like this. One that fails in the middle has taken marks away that it did
/// not tell, so the next one reports `all`.
fn told(
    passed: Result<u64, TrackError>,
    all: &mut bool,
    pages: PageCount,
    dirty: &mut PageSet,
) -> Result<PageCount, TrackError> {
    let all = std::mem::replace(all, passed.is_err());
    let reported = PageCount(passed?);
    if !all {
        return Ok(reported);
    }
    dirty.insert(PageRun { start: PageNumber(0), len: pages });
    Ok(pages)
}

/// A tracker, and which better tiers could not be had for this guest, and why.
#[derive(Debug)]
pub struct Tracking {
    /// The tracker.
    pub tracker: Box<dyn DirtyTracker>,
    /// The tiers above it.
    pub passed: Vec<(TrackerTier, TrackError)>,
}

/// Starts the best tracker that can be had for this guest. Blocks as the tiers do: about a millisecond for the first,
/// and up to two seconds for a QEMU that hangs in the kernel.
pub fn track(target: &TrackTarget) -> Result<Tracking, TrackError> {
    let mut passed = Vec::new();
    for tier in TrackerTier::ALL {
        match tier.start(target) {
            Ok(tracker) => return Ok(Tracking { tracker, passed }),
            Err(error) if error.ends_the_search() => return Err(error),
            Err(error) => passed.push((tier, error)),
        }
    }
    // The last tier needs nothing but memory to read, so its reason is the reason.
    Err(passed.pop().map_or(TrackError::Gone { pid: target.pid() }, |(_, error)| error))
}
