//! Whose pages are tracked: a process, and the guest RAM within it.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, AsRawFd},
        unix::fs::{FileExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

use gnomon_terms::{Bytes, PAGE_SIZE, PageCount, PageNumber};
use rustix::{
    fs::{FlockOperation, SeekFrom, flock, major, minor, seek},
    io::Errno,
};

use super::{
    TrackError, TrackerTier,
    maps::{RamAt, Window, covered, fine, windows},
};
use crate::ram::GuestRam;

/// A process and the guest RAM that it maps. Opened once: the files keep meaning this very process, whoever has its
/// number later.
#[derive(Debug)]
pub struct TrackTarget {
    pid: i32,
    ram_at: RamAt,
    pages: u64,
    /// Lists the process's mappings; empty once it has ended.
    maps: File,
    /// Where the RAM's bytes are read: its memfd, or the process's memory.
    content: File,
    /// Where in `content` the RAM begins.
    base: u64,
}

impl TrackTarget {
    /// A QEMU and the memfd that is its guest's RAM. The caller has made sure that `pid` is that QEMU.
    pub fn new(pid: i32, ram: &GuestRam) -> Result<TrackTarget, TrackError> {
        // Opened anew and not duplicated: a lock belongs to an open file, and the one we were given may be QEMU's too.
        let path = PathBuf::from(format!("/proc/self/fd/{}", ram.as_fd().as_raw_fd()));
        let content = File::open(&path).map_err(|e| TrackError::file("open", &path, e))?;
        let metadata = content.metadata().map_err(|e| TrackError::file("look at", &path, e))?;
        let device = (major(metadata.dev()), minor(metadata.dev()));
        let ram_at = RamAt::File { device, inode: metadata.ino() };
        TrackTarget::over(pid, ram_at, ram.size(), content, 0)
    }

    /// A QEMU that gnomon did not start and the addresses at which it has its guest's RAM (the monitor's `gpa2hva 0`
    /// tells): memory without a file. `address` and `size` are multiples of 4 KiB.
    pub fn at_address(pid: i32, address: u64, size: Bytes) -> Result<TrackTarget, TrackError> {
        let path = PathBuf::from(format!("/proc/{pid}/mem"));
        let content = File::open(&path).map_err(|e| TrackError::file("open", &path, e))?;
        TrackTarget::over(pid, RamAt::Address(address), size, content, address)
    }

    fn over(pid: i32, ram_at: RamAt, size: Bytes, content: File, base: u64) -> Result<TrackTarget, TrackError> {
        let path = PathBuf::from(format!("/proc/{pid}/maps"));
        let maps = File::open(&path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => TrackError::Gone { pid },
            _ => TrackError::file("open", &path, e),
        })?;
        let target = TrackTarget { pid, ram_at, pages: size.0 / PAGE_SIZE, maps, content, base };
        target.windows().map(|_| target)
    }

    /// The process.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// How many pages the RAM has.
    pub fn pages(&self) -> PageCount {
        PageCount(self.pages)
    }

    /// The same target once more.
    pub(super) fn again(&self) -> Result<TrackTarget, TrackError> {
        let twin =
            |file: &File, what: &str| file.try_clone().map_err(|e| TrackError::file("keep open", Path::new(what), e));
        let maps = twin(&self.maps, "/proc/PID/maps")?;
        let content = twin(&self.content, "the guest's RAM")?;
        Ok(TrackTarget { maps, content, ..*self })
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
        let found = windows(&self.maps()?, self.ram_at, self.pages);
        match covered(&found, self.pages) {
            mapped if mapped == self.pages => Ok(found),
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

    /// Takes the RAM for one tracker, until this target is closed. Memory without a file has no lock.
    pub(super) fn take(&self) -> Result<(), TrackError> {
        if let RamAt::Address(_) = self.ram_at {
            return Ok(());
        }
        match flock(&self.content, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(()),
            Err(Errno::WOULDBLOCK) => Err(TrackError::Taken { pid: self.pid }),
            Err(e) => Err(TrackError::file("lock", &self.path("the RAM"), e.into())),
        }
    }

    /// A file of the process in `/proc`.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{name}", self.pid))
    }

    /// Copies RAM as it is now.
    pub(super) fn read(&self, start: PageNumber, into: &mut [u8]) -> Result<(), TrackError> {
        let at = self.check(start, into.len())?;
        self.content.read_exact_at(into, self.base + at).map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => TrackError::Gone { pid: self.pid },
            _ => TrackError::Scan { pid: self.pid, source },
        })
    }

    /// The first page from this one on that is not a hole of the RAM's file. Of memory without a file, and of a file that
    /// cannot tell, it is that page itself.
    pub(super) fn data_from(&self, page: PageNumber) -> Result<Option<PageNumber>, TrackError> {
        if let RamAt::Address(_) = self.ram_at {
            return Ok(Some(page));
        }
        match seek(&self.content, SeekFrom::Data(page.0 * PAGE_SIZE)) {
            Ok(at) => Ok(Some(PageNumber(at / PAGE_SIZE))),
            Err(Errno::NXIO) => Ok(None),
            Err(Errno::INVAL) => Ok(Some(page)),
            Err(e) => Err(TrackError::Scan { pid: self.pid, source: e.into() }),
        }
    }

    /// The offset of whole pages that the RAM has.
    pub(super) fn check(&self, start: PageNumber, length: usize) -> Result<u64, TrackError> {
        let wanted = (length as u64).div_ceil(PAGE_SIZE);
        let whole = (length as u64).is_multiple_of(PAGE_SIZE);
        match start.0.checked_add(wanted) {
            Some(end) if whole && end <= self.pages => Ok(start.0 * PAGE_SIZE),
            _ => Err(TrackError::OutOfRange { start, length, pages: self.pages() }),
        }
    }
}

/// Whether this host swaps. When it cannot be told, it may.
fn has_swap() -> bool {
    fs::read_to_string("/proc/swaps").map_or(true, |swaps| swaps.lines().count() > 1)
}
