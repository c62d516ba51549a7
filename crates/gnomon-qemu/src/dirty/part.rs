//! One piece of a guest's memory within its process: what it began with, or a DIMM.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd},
        unix::fs::{FileExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

use gnomon_terms::{Bytes, PAGE_SIZE, PageNumber, PageRun};
use rustix::{
    fs::{FlockOperation, SeekFrom, flock, major, minor, seek},
    io::Errno,
};

use super::{
    TrackError,
    maps::{RamAt, Window, windows},
};
use crate::ram::GuestRam;

/// Memory that has its pages in a row.
#[derive(Debug)]
pub(super) struct Part {
    ram_at: RamAt,
    /// Its pages in the numbering of all the guest's memory.
    pub(super) pages: PageRun,
    /// Where its bytes are read: its memfd, or the process's memory.
    content: File,
    /// Where in `content` it begins.
    base: u64,
}

impl Part {
    /// A memfd whose first page is called so.
    pub(super) fn of_ram(ram: &GuestRam, first: PageNumber) -> Result<Part, TrackError> {
        // Opened anew and not duplicated: a lock belongs to an open file, and the one we were given may be QEMU's too.
        let path = PathBuf::from(format!("/proc/self/fd/{}", ram.as_fd().as_raw_fd()));
        let content = File::open(&path).map_err(|e| TrackError::file("open", &path, e))?;
        let metadata = content.metadata().map_err(|e| TrackError::file("look at", &path, e))?;
        let device = (major(metadata.dev()), minor(metadata.dev()));
        let ram_at = RamAt::File { device, inode: metadata.ino() };
        Ok(Part { ram_at, pages: PageRun { start: first, len: ram.pages() }, content, base: 0 })
    }

    /// Memory of a process that has no file.
    pub(super) fn at_address(pid: i32, address: u64, size: Bytes) -> Result<Part, TrackError> {
        let path = PathBuf::from(format!("/proc/{pid}/mem"));
        let content = File::open(&path).map_err(|e| TrackError::file("open", &path, e))?;
        Ok(Part {
            ram_at: RamAt::Address(address),
            pages: PageRun::new(0, size.0 / PAGE_SIZE),
            content,
            base: address,
        })
    }

    /// The same part once more.
    pub(super) fn again(&self) -> Result<Part, TrackError> {
        let content = self.content.try_clone();
        let content = content.map_err(|e| TrackError::file("keep open", Path::new("the guest's RAM"), e))?;
        Ok(Part { content, ..*self })
    }

    /// Where the process has it, by its mappings.
    pub(super) fn windows(&self, maps: &str) -> impl Iterator<Item = Window> {
        let first = self.pages.start;
        windows(maps, self.ram_at, self.pages.len.0).into_iter().map(move |window| window.behind(first))
    }

    /// Takes it for one tracker, until it is closed; false when another has it. Memory without a file has no lock.
    pub(super) fn take(&self) -> io::Result<bool> {
        if let RamAt::Address(_) = self.ram_at {
            return Ok(true);
        }
        match flock(&self.content, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(true),
            Err(Errno::WOULDBLOCK) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// Copies pages that it has.
    pub(super) fn read(&self, start: PageNumber, into: &mut [u8]) -> io::Result<()> {
        self.content.read_exact_at(into, self.base + (start.0 - self.pages.start.0) * PAGE_SIZE)
    }

    /// The first page from this one of its own on that is not a hole of its file; `None` when the rest is one. Of memory
    /// without a file, and of a file that cannot tell, it is that page itself.
    pub(super) fn data_from(&self, page: PageNumber) -> io::Result<Option<PageNumber>> {
        if let RamAt::Address(_) = self.ram_at {
            return Ok(Some(page));
        }
        let first = self.pages.start.0;
        match seek(&self.content, SeekFrom::Data((page.0 - first) * PAGE_SIZE)) {
            Ok(at) => Ok(Some(PageNumber(first + at / PAGE_SIZE))),
            Err(Errno::NXIO) => Ok(None),
            Err(Errno::INVAL) => Ok(Some(page)),
            Err(e) => Err(e.into()),
        }
    }
}
