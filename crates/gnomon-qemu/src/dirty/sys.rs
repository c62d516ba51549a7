//! The `PAGEMAP_SCAN` call of Linux 6.7, and the first words with a userfaultfd: all that is unsafe about them.
//!
//! Source: Linux `include/uapi/linux/fs.h` and documentation, "Examining Process Page Tables".

use std::{ffi::c_void, fs::File, io, ops::Range};

use rustix::{
    io::Errno,
    ioctl::{Ioctl, IoctlOutput, Opcode, opcode},
    mm::UserfaultfdFlags,
};

use super::register;

/// Protect what is reported, in the same step.
const WP_MATCHING: u64 = 1;
/// Fail (EPERM) on a mapping that is not registered for it, instead of passing it by.
const CHECK_WPASYNC: u64 = 2;
/// The page was written since it was protected.
const PAGE_IS_WRITTEN: u64 = 2;
/// The page is in the process's page tables.
const PAGE_IS_PRESENT: u64 = 8;

/// Addresses of pages that are as was asked for, as the kernel tells them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Region {
    pub(crate) start: u64,
    pub(crate) end: u64,
    categories: u64,
}

/// `struct pm_scan_arg`.
#[repr(C)]
#[derive(Default)]
struct ScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// The call with its argument. The regions it points to are borrowed for as long as it lives.
struct Scan<'a> {
    arg: ScanArg,
    _regions: &'a mut [Region],
}

// SAFETY: the opcode is that of a call which reads and writes a `ScanArg` and writes at most `vec_len` regions at
// `vec`; both are set from one mutably borrowed slice, which lives as long as the call. The call touches no other
// memory of ours: the protection it changes is that of the process whose pagemap it is, and it changes no content.
unsafe impl Ioctl for Scan<'_> {
    type Output = (usize, u64);
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        opcode::read_write::<ScanArg>(b'f', 16)
    }

    fn as_ptr(&mut self) -> *mut c_void {
        (&raw mut self.arg).cast()
    }

    unsafe fn output_from_ptr(output: IoctlOutput, arg: *mut c_void) -> rustix::io::Result<(usize, u64)> {
        let told = usize::try_from(output).map_err(|_| Errno::RANGE)?;
        // SAFETY: the caller gives the pointer that `as_ptr` gave, whose owner is still there.
        Ok((told, unsafe { (*arg.cast::<ScanArg>()).walk_end }))
    }
}

/// Tells which pages at these addresses were written and protects them again, each page in one step: a write before
/// it is told now, a write after it is told by the next call. The processors have dropped their old translations when
/// it returns. Pages up to the returned address were looked at; it is short of `at.end` when `regions` is full.
///
/// `regions` must not be empty. EPERM when a mapping there is not registered.
pub(super) fn scan_and_protect(pagemap: &File, at: Range<u64>, regions: &mut [Region]) -> io::Result<(usize, u64)> {
    scan(pagemap, at, regions, WP_MATCHING | CHECK_WPASYNC, PAGE_IS_WRITTEN)
}

/// Tells which pages at these addresses are in the process's page tables; the rest as [`scan_and_protect`]. Changes nothing,
/// and needs no registration.
pub(crate) fn scan_present(pagemap: &File, at: Range<u64>, regions: &mut [Region]) -> io::Result<(usize, u64)> {
    scan(pagemap, at, regions, 0, PAGE_IS_PRESENT)
}

/// Whether every mapping at these addresses is registered. Changes nothing.
pub(super) fn is_registered(pagemap: &File, at: Range<u64>) -> io::Result<bool> {
    // A first written page ends the look early, so the walk goes on behind it: a mapping may come after it.
    let mut regions = [Region::default(); 64];
    let mut from = at.start;
    while from < at.end {
        match scan(pagemap, from..at.end, &mut regions, CHECK_WPASYNC, PAGE_IS_WRITTEN) {
            Ok((_, end)) if end > from => from = end,
            Ok(_) => break,
            Err(e) if e.raw_os_error() == Some(Errno::PERM.raw_os_error()) => return Ok(false),
            Err(e) => return Err(e),
        }
    }
    Ok(true)
}

/// Whether the kernel knows the call: we ask about an empty range of our own memory.
pub(crate) fn has_pagemap_scan() -> bool {
    File::open("/proc/self/pagemap").is_ok_and(|pagemap| scan(&pagemap, 0..0, &mut [], 0, 0).is_ok())
}

/// `mask`: what a page that is told has to be.
fn scan(pagemap: &File, at: Range<u64>, regions: &mut [Region], flags: u64, mask: u64) -> io::Result<(usize, u64)> {
    let arg = ScanArg {
        size: size_of::<ScanArg>() as u64,
        flags,
        start: at.start,
        end: at.end,
        vec: if regions.is_empty() { 0 } else { regions.as_mut_ptr().addr() as u64 },
        vec_len: regions.len() as u64,
        category_mask: mask,
        return_mask: mask,
        ..ScanArg::default()
    };
    // SAFETY: on a pagemap file the opcode has only this meaning; an older kernel refuses it.
    unsafe { rustix::ioctl::ioctl(pagemap, Scan { arg, _regions: regions }) }.map_err(io::Error::from)
}

/// The argument of the call that opens a userfaultfd's protocol: `struct uffdio_api`.
#[repr(C)]
struct Handshake {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// Whether this kernel lets a process ask for what we ask for within QEMU. Tried on a userfaultfd of our own, which
/// watches nothing and is closed at once.
pub(super) fn try_userfaultfd() -> io::Result<()> {
    const HANDSHAKE: Opcode = opcode::read_write::<Handshake>(0xaa, 0x3f);
    let flags = UserfaultfdFlags::from_bits_retain(register::UFFD_FLAGS as u32);
    // SAFETY: a userfaultfd without a registered range changes nothing about our memory.
    let fd = unsafe { rustix::mm::userfaultfd(flags) }?;
    let mut handshake = Handshake { api: register::UFFD_API, features: register::FEATURES, ioctls: 0 };
    // SAFETY: the opcode is that of a call which reads and writes a `Handshake`.
    let call = unsafe { rustix::ioctl::Updater::<HANDSHAKE, Handshake>::new(&mut handshake) };
    // SAFETY: on a userfaultfd the opcode has only this meaning.
    unsafe { rustix::ioctl::ioctl(&fd, call) }.map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_call_has_the_number_and_size_the_kernel_gives_it() {
        // _IOWR('f', 16, 96 bytes)
        assert_eq!((size_of::<ScanArg>(), size_of::<Region>()), (96, 24));
        assert_eq!(opcode::read_write::<ScanArg>(b'f', 16), 0xC060_6610);
    }
}
