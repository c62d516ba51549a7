//! A mapping of a block, made to allocate its pages and for nothing else: no pointer into it leaves this file.

use std::{os::fd::BorrowedFd, ptr, ptr::NonNull};

use gnomon_terms::Bytes;
use rustix::{
    io::Errno,
    mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap},
};

/// A shared, writable mapping of all of a memfd.
#[derive(Debug)]
pub(super) struct Mapping {
    base: NonNull<u8>,
    size: usize,
}

impl Mapping {
    /// Maps `size` bytes.
    pub(super) fn over(memfd: BorrowedFd<'_>, size: Bytes) -> Result<Mapping, Errno> {
        let size = usize::try_from(size.0).map_err(|_| Errno::NOMEM)?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice replaces nothing.
        let base = unsafe { mmap(ptr::null_mut(), size, protection, MapFlags::SHARED, memfd, 0) }?;
        let base = NonNull::new(base.cast::<u8>()).ok_or(Errno::INVAL)?;
        Ok(Mapping { base, size })
    }

    /// Allocates the pages of a range, as a write to each would, without touching what is in them.
    pub(super) fn populate(&self, at: u64, length: u64) -> Result<(), Errno> {
        let (Ok(at), Ok(length)) = (usize::try_from(at), usize::try_from(length)) else { return Err(Errno::INVAL) };
        if at.checked_add(length).is_none_or(|end| end > self.size) {
            return Err(Errno::INVAL);
        }
        loop {
            // SAFETY: the range is within the mapping, and populating it changes no content.
            match unsafe { madvise(self.base.as_ptr().add(at).cast(), length, Advice::LinuxPopulateWrite) } {
                // A signal came, or the kernel was busy with a page: what is there already is passed over quickly.
                Err(Errno::INTR | Errno::AGAIN) => continue,
                done => return done,
            }
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and of this size. Unmapping what was mapped cannot fail.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.size) };
    }
}
