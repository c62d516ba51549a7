//! Memory populated ahead, as the staging area does it.

use std::{
    os::fd::AsFd,
    ptr,
    time::{Duration, Instant},
};

use gnomon_qemu::GuestRam;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};

use super::Fallible;

/// Allocates and zeroes all of it; says how long that took.
pub(super) fn populate(memory: &GuestRam) -> Fallible<Duration> {
    let (begun, length) = (Instant::now(), usize::try_from(memory.size().0)?);
    // SAFETY: a new mapping at an address of the kernel's choice, of a memfd that is sealed and of this length; nothing
    // refers to it, and it is unmapped before this returns.
    unsafe {
        let at =
            mmap(ptr::null_mut(), length, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, memory.as_fd(), 0)?;
        let populated = madvise(at, length, Advice::LinuxPopulateWrite);
        munmap(at, length)?;
        populated?;
    }
    Ok(begun.elapsed())
}
