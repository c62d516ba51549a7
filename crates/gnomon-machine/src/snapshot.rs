//! A guest as it is at one moment, copied while it runs: RAM of its own, the state of its devices, and whatever else has
//! to be of that moment (its disks).
//!
//! ```text
//!   runs ── pass ── pass ── … ──► stands: devices, the last pages, disks ──► runs on
//!           all     what was         a few milliseconds
//!           pages   written since
//! ```

use std::time::Duration;

use gnomon_qemu::{
    CaptureOptions, DirtyTracker, GuestMemory, Qemu, RamError, RamWriter, Resolved, StateBlob, StateError,
    TrackError, capture,
};
use gnomon_terms::{Bytes, ErrorKind, PAGE_SIZE, PageCount, PageNumber, PageRun, PageSet};

use crate::page::is_zero;

/// How long the guest may take to run again.
const RESUME: Duration = Duration::from_secs(30);
/// Passes over what was written meanwhile. A guest that writes as fast as it is copied does not become less.
const PASSES: usize = 4;
/// Pages that may be left for the pause: 4 MiB, a millisecond of copying.
const FEW: PageCount = PageCount(1024);
/// Pages read at once.
const CHUNK: u64 = 256;

/// A guest at one moment.
#[derive(Debug)]
pub struct Snapshot<T> {
    /// Its memory, in memory of its own.
    pub memory: GuestMemory,
    /// What it was made of at that moment.
    pub made_of: Resolved,
    /// Its devices.
    pub blob: StateBlob,
    /// What the caller made of the same moment.
    pub at_rest: T,
    /// How long the guest stood.
    pub pause: Duration,
    /// How much of its RAM was copied while it stood.
    pub copied_standing: Bytes,
}

/// Why there is no snapshot. The guest runs on as before.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// There is no memory for the copy.
    #[error("there is no memory for a copy of the guest's RAM")]
    Ram(#[from] RamError),
    /// Its writes cannot be followed.
    #[error("the guest's RAM could not be copied while it runs")]
    Track(#[from] TrackError),
    /// Its devices could not be captured.
    #[error("the guest's devices could not be captured")]
    State(#[from] StateError),
    /// What the caller wanted of the moment failed.
    #[error("the guest's disks could not be held: {why}")]
    AtRest {
        /// Why.
        why: String,
    },
}

impl SnapshotError {
    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            SnapshotError::Ram(error) => error.kind(),
            SnapshotError::Track(error) => error.kind(),
            SnapshotError::State(error) => error.kind(),
            SnapshotError::AtRest { .. } => ErrorKind::Unavailable,
        }
    }
}

/// Copies the guest of `qemu`, whose makeup is `made_of`. `at_rest` runs while it stands, with its disks at rest. Takes as
/// long as its memory takes to copy; the guest stands for some milliseconds of it, if `tracker` follows a guest that runs.
pub fn snapshot<T>(
    qemu: &Qemu,
    made_of: Resolved,
    tracker: &mut dyn DirtyTracker,
    at_rest: impl FnOnce() -> Result<T, String>,
) -> Result<Snapshot<T>, SnapshotError> {
    let memory = GuestMemory::create(&format!("copy of {}", qemu.record().name), &made_of)?;
    let copy = memory.map_writable()?;
    let mut written = PageSet::new();
    if !tracker.tier().needs_standing_guest() {
        passes(tracker, &copy, &mut written)?;
    }
    let frozen = capture(qemu, &CaptureOptions::of(&made_of))?;
    tracker.scan(&mut written)?;
    let copied_standing = copy_pages(tracker, &written, &copy)?;
    let at_rest = at_rest().map_err(|why| SnapshotError::AtRest { why })?;
    let done = frozen.resume(RESUME)?;
    drop(copy);
    Ok(Snapshot { memory, made_of, blob: done.blob, at_rest, pause: done.pause, copied_standing })
}

/// Copies while the guest runs; leaves in `written` what a copy may be older than.
fn passes(tracker: &mut dyn DirtyTracker, copy: &RamWriter, written: &mut PageSet) -> Result<(), SnapshotError> {
    for _ in 0..PASSES {
        written.clear();
        tracker.scan(written)?;
        if written.count() <= FEW {
            return Ok(());
        }
        copy_pages(tracker, written, copy)?;
    }
    written.clear();
    Ok(())
}

/// Copies pages; says how much that was. Pages that are zero on both sides stay unallocated.
fn copy_pages(tracker: &dyn DirtyTracker, pages: &PageSet, copy: &RamWriter) -> Result<Bytes, SnapshotError> {
    let mut chunk = vec![0u8; (CHUNK * PAGE_SIZE) as usize];
    let mut copied = Bytes(0);
    for run in pages.runs() {
        for piece in pieces(*run) {
            let bytes = &mut chunk[..piece.bytes().0 as usize];
            tracker.read(piece.start, bytes)?;
            for (page, content) in piece.pages().zip(bytes.as_chunks().0) {
                if !is_zero(content) || !is_zero_there(copy, page)? {
                    copy.write_page(page, content)?;
                }
            }
            copied.0 += piece.bytes().0;
        }
    }
    Ok(copied)
}

fn is_zero_there(copy: &RamWriter, page: PageNumber) -> Result<bool, RamError> {
    copy.view().page_is(page, &crate::page::ZERO_PAGE)
}

/// Cuts a run into pieces of at most [`CHUNK`] pages.
fn pieces(run: PageRun) -> impl Iterator<Item = PageRun> {
    (run.start.0..run.end().0)
        .step_by(CHUNK as usize)
        .map(move |start| PageRun::new(start, (run.end().0 - start).min(CHUNK)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_a_run() {
        for (run, lens) in [
            (PageRun::new(7, 0), vec![]),
            (PageRun::new(7, 3), vec![3]),
            (PageRun::new(7, 256), vec![256]),
            (PageRun::new(7, 600), vec![256, 256, 88]),
        ] {
            let cut: Vec<PageRun> = pieces(run).collect();
            assert_eq!(cut.iter().map(|piece| piece.len.0).collect::<Vec<_>>(), lens);
            assert!(cut.windows(2).all(|pair| pair[0].end() == pair[1].start));
        }
    }
}
