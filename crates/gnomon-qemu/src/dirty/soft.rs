//! The second tier: the kernel's soft-dirty bits.
//!
//! Bit 55 of a page's entry in `/proc/PID/pagemap` is set by the first write after the bits were cleared, and the bits
//! of a whole process are cleared at once by writing `4` to its `clear_refs`. Reading and clearing are two steps, and
//! a write between them would be lost: the guest has to stand while this scans. The bit goes with the page's entry
//! when the page is swapped out, so RAM that may be is refused, and an entry that has gone since the last scan counts
//! as written.
//!
//! Source: Linux documentation, "Soft-Dirty PTEs" and "pagemap".

use std::{fs::File, io::Write, os::unix::fs::FileExt, time::Instant};

use gnomon_terms::{PAGE_SIZE, PageCount, PageNumber, PageRun, PageSet};

use super::{
    DirtyTracker, ScanCost, TrackError, TrackTarget, TrackerTier, maps::Window, probe::has_soft_dirty, told,
};

/// Bytes of an entry.
const ENTRY: u64 = 8;
/// How many entries are read at once: 64 KiB of them, for 32 MiB of RAM.
const CHUNK: u64 = 8192;
/// What clears the soft-dirty bits, and nothing else.
const CLEAR_SOFT_DIRTY: &[u8] = b"4";

/// Reads soft-dirty bits.
#[derive(Debug)]
pub struct SoftDirtyTracker {
    target: TrackTarget,
    pagemap: File,
    /// Clears the bits of the process when `4` is written to it.
    clear: File,
    windows: Vec<Window>,
    /// For each window, which of its pages had an entry at the last scan.
    present: Vec<Vec<bool>>,
    /// The next scan reports every page.
    all: bool,
}

impl SoftDirtyTracker {
    /// Starts. Nothing of the process is changed before the first scan.
    pub fn start(target: &TrackTarget) -> Result<SoftDirtyTracker, TrackError> {
        if !has_soft_dirty() {
            let why = "its kernel was built without CONFIG_MEM_SOFT_DIRTY".to_string();
            return Err(TrackError::NoTier { tier: TrackerTier::SoftDirty, why });
        }
        let target = target.again()?;
        let windows = target.windows()?;
        target.refuse_forgetful(&windows, TrackerTier::SoftDirty)?;
        target.take()?;
        let path = target.path("pagemap");
        let pagemap = File::open(&path).map_err(|e| TrackError::file("open", &path, e))?;
        let present = windows.iter().map(|window| vec![false; window.pages() as usize]).collect();
        let path = target.path("clear_refs");
        let clear = File::options().write(true).open(&path).map_err(|e| TrackError::file("open", &path, e))?;
        Ok(SoftDirtyTracker { target, pagemap, clear, windows, present, all: true })
    }

    fn pass(&mut self, dirty: &mut PageSet) -> Result<u64, TrackError> {
        let mut reported = 0;
        for (window, present) in self.windows.iter().zip(&mut self.present) {
            reported += look(&self.pagemap, window, present, dirty)
                .map_err(|source| TrackError::Scan { pid: self.target.pid(), source })?;
        }
        self.clear
            .write_all(CLEAR_SOFT_DIRTY)
            .map_err(|source| TrackError::Scan { pid: self.target.pid(), source })?;
        match self.target.windows()? == self.windows {
            true => Ok(reported),
            false => Err(TrackError::Remapped { pid: self.target.pid() }),
        }
    }
}

/// Reads the entries of a window.
fn look(pagemap: &File, window: &Window, present: &mut [bool], dirty: &mut PageSet) -> std::io::Result<u64> {
    let mut bytes = vec![0; (CHUNK * ENTRY) as usize];
    let mut reported = 0;
    for (index, present) in present.chunks_mut(CHUNK as usize).enumerate() {
        let done = index as u64 * CHUNK;
        let bytes = &mut bytes[..present.len() * ENTRY as usize];
        pagemap.read_exact_at(bytes, (window.at.start / PAGE_SIZE + done) * ENTRY)?;
        let (entries, _) = bytes.as_chunks::<{ ENTRY as usize }>();
        for (page, (entry, present)) in (window.first.0 + done..).zip(entries.iter().zip(present)) {
            if judge(u64::from_ne_bytes(*entry), present) {
                dirty.insert(PageRun::new(page, 1));
                reported += 1;
            }
        }
    }
    Ok(reported)
}

/// Whether a page's entry says that it was written. Remembers whether there is one.
fn judge(entry: u64, present: &mut bool) -> bool {
    const SOFT_DIRTY: u64 = 1 << 55;
    const PRESENT: u64 = 1 << 63;
    let was_present = std::mem::replace(present, entry & PRESENT != 0);
    entry & SOFT_DIRTY != 0 || was_present && !*present
}

impl DirtyTracker for SoftDirtyTracker {
    fn tier(&self) -> TrackerTier {
        TrackerTier::SoftDirty
    }

    fn pages(&self) -> PageCount {
        self.target.pages()
    }

    /// The guest must stand: see the module.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_written_when_its_bit_says_so_or_its_entry_has_gone() {
        const HERE: u64 = 1 << 63;
        const DIRTY: u64 = 1 << 55;
        let table = [
            ((0, false), (false, false)),
            ((HERE, false), (false, true)),
            ((HERE | DIRTY, false), (true, true)),
            ((HERE, true), (false, true)),
            ((0, true), (true, false)),
            ((DIRTY, false), (true, false)),
        ];
        for ((entry, was), (written, is)) in table {
            let mut present = was;
            assert_eq!((judge(entry, &mut present), present), (written, is), "{entry:#x} {was}");
        }
    }
}
