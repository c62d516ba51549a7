//! Whose pages are tracked: a process, and the guest RAM within it.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use gnomon_terms::{Bytes, PAGE_SIZE, PageCount, PageNumber};
use rustix::io::Errno;

use super::{
    TrackError, TrackerTier,
    maps::{Window, covered, fine},
    part::Part,
};
use crate::ram::{GuestMemory, GuestRam};

/// A process and the guest's memory that it maps. Opened once: the files keep meaning this very process, whoever has its
/// number later.
#[derive(Debug)]
pub struct TrackTarget {
    pid: i32,
    /// In the order of their pages, without gaps.
    parts: Vec<Part>,
    /// Lists the process's mappings; empty once it has ended.
    maps: File,
}

impl TrackTarget {
    /// A QEMU and the memfd that is its guest's RAM. The caller has made sure that `pid` is that QEMU.
    pub fn new(pid: i32, ram: &GuestRam) -> Result<TrackTarget, TrackError> {
        TrackTarget::over(pid, vec![Part::of_ram(ram, PageNumber(0))?])
    }

    /// A QEMU and all of its guest's memory, in its numbering. The caller has made sure that `pid` is that QEMU.
    pub fn of_memory(pid: i32, memory: &GuestMemory) -> Result<TrackTarget, TrackError> {
        let (mut parts, mut next) = (Vec::new(), PageNumber(0));
        for ram in memory.parts() {
            let part = Part::of_ram(ram, next)?;
            next = part.pages.end();
            parts.push(part);
        }
        TrackTarget::over(pid, parts)
    }

    /// A QEMU that gnomon did not start and the addresses at which it has its guest's RAM (the monitor's `gpa2hva 0`
    /// tells): memory without a file. `address` and `size` are multiples of 4 KiB.
    pub fn at_address(pid: i32, address: u64, size: Bytes) -> Result<TrackTarget, TrackError> {
        TrackTarget::over(pid, vec![Part::at_address(pid, address, size)?])
    }

    fn over(pid: i32, parts: Vec<Part>) -> Result<TrackTarget, TrackError> {
        let path = PathBuf::from(format!("/proc/{pid}/maps"));
        let maps = File::open(&path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => TrackError::Gone { pid },
            _ => TrackError::file("open", &path, e),
        })?;
        let target = TrackTarget { pid, parts, maps };
        target.windows().map(|_| target)
    }

    /// The process.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// How many pages the RAM has.
    pub fn pages(&self) -> PageCount {
        PageCount(self.parts.last().map_or(0, |part| part.pages.end().0))
    }

    /// The same target once more.
    pub(super) fn again(&self) -> Result<TrackTarget, TrackError> {
        let maps = self.maps.try_clone();
        let maps = maps.map_err(|e| TrackError::file("keep open", Path::new("/proc/PID/maps"), e))?;
        let parts = self.parts.iter().map(Part::again).collect::<Result<_, _>>()?;
        Ok(TrackTarget { pid: self.pid, parts, maps })
    }

    /// The process's list of mappings, as it is now. Fails when the process has ended.
    pub(super) fn maps(&self) -> Result<String, TrackError> {
        let failed = |e| TrackError::file("read", &self.path("maps"), e);
        let mut text = Vec::new();
        let mut chunk = vec![0; 64 << 10];
        loop {
            match self.maps.read_at(&mut chunk, text.len() as u64) {
                Ok(0) => break,
                Ok(n) => text.extend_from_slice(&chunk[..n]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.raw_os_error() == Some(Errno::SRCH.raw_os_error()) => break,
                Err(e) => return Err(failed(e)),
            }
        }
        match text.is_empty() {
            true => Err(TrackError::Gone { pid: self.pid }),
            false => Ok(String::from_utf8_lossy(&text).into_owned()),
        }
    }

    /// Where the process has the RAM now: all of it, perhaps parts several times.
    pub(super) fn windows(&self) -> Result<Vec<Window>, TrackError> {
        let maps = self.maps()?;
        let found: Vec<Window> = self.parts.iter().flat_map(|part| part.windows(&maps)).collect();
        match covered(&found, self.pages().0) {
            mapped if mapped == self.pages().0 => Ok(found),
            mapped => Err(TrackError::NotMapped { pid: self.pid, mapped, pages: self.pages() }),
        }
    }

    /// Refuses RAM whose pages lose their marks: file pages mapped by more than 4 KiB (the kernel drops such an entry
    /// whole, with its mark, when it splits it), and for soft-dirty also pages that can be swapped out.
    pub(super) fn refuse_forgetful(&self, windows: &[Window], tier: TrackerTier) -> Result<(), TrackError> {
        let path = self.path("smaps");
        let smaps = fs::read(&path).map_err(|e| TrackError::file("read", &path, e))?;
        let fine = fine(&String::from_utf8_lossy(&smaps), windows);
        let pid = self.pid;
        if let Some(what) = fine.large {
            return Err(TrackError::LargePages { pid, tier, what });
        }
        if tier == TrackerTier::SoftDirty && !fine.locked && has_swap() {
            return Err(TrackError::Swappable { pid });
        }
        Ok(())
    }

    /// Takes the memory for one tracker, until this target is closed.
    pub(super) fn take(&self) -> Result<(), TrackError> {
        for part in &self.parts {
            match part.take() {
                Ok(true) => {}
                Ok(false) => return Err(TrackError::Taken { pid: self.pid }),
                Err(e) => return Err(TrackError::file("lock", &self.path("the RAM"), e)),
            }
        }
        Ok(())
    }

    /// A file of the process in `/proc`.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{name}", self.pid))
    }

    /// Copies memory as it is now.
    pub(super) fn read(&self, start: PageNumber, into: &mut [u8]) -> Result<(), TrackError> {
        self.check(start, into.len())?;
        let (mut at, mut rest) = (start, into);
        for part in self.parts.iter().filter(|part| part.pages.end() > start) {
            let there = (part.pages.end().0 - at.0).saturating_mul(PAGE_SIZE);
            let length = rest.len().min(usize::try_from(there).unwrap_or(usize::MAX));
            let (here, behind) = rest.split_at_mut(length);
            part.read(at, here).map_err(|source| match source.kind() {
                io::ErrorKind::UnexpectedEof => TrackError::Gone { pid: self.pid },
                _ => TrackError::Scan { pid: self.pid, source },
            })?;
            if behind.is_empty() {
                break;
            }
            (at, rest) = (part.pages.end(), behind);
        }
        Ok(())
    }

    /// The first page from this one on that is not a hole of a memfd, as far as that can be told.
    pub(super) fn data_from(&self, page: PageNumber) -> Result<Option<PageNumber>, TrackError> {
        for part in self.parts.iter().filter(|part| part.pages.end() > page) {
            let found = part.data_from(page.max(part.pages.start));
            if let Some(found) = found.map_err(|source| TrackError::Scan { pid: self.pid, source })? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// The offset of whole pages that the memory has.
    pub(super) fn check(&self, start: PageNumber, length: usize) -> Result<u64, TrackError> {
        let wanted = (length as u64).div_ceil(PAGE_SIZE);
        let whole = (length as u64).is_multiple_of(PAGE_SIZE);
        match start.0.checked_add(wanted) {
            Some(end) if whole && end <= self.pages().0 => Ok(start.0 * PAGE_SIZE),
            _ => Err(TrackError::OutOfRange { start, length, pages: self.pages() }),
        }
    }
}

/// Whether this host swaps. When it cannot be told, it may.
fn has_swap() -> bool {
    fs::read_to_string("/proc/swaps").map_or(true, |swaps| swaps.lines().count() > 1)
}
