//! A mapping of a block, made to allocate its pages, on a node, and to see on which they are: no pointer into it leaves
//! this file.
//!
//! Source: mbind(2), get_mempolicy(2); Documentation/admin-guide/mm/numa_memory_policy.rst ("Shared Policy": a policy of a
//! memfd's mapping is the memfd's own, and stays when the mapping goes). No crate here wraps these two.

use std::{io, os::fd::BorrowedFd, ptr, ptr::NonNull};

use gnomon_terms::Bytes;
use rustix::{
    io::Errno,
    mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap},
};

use crate::numa::{MOST_NODES, NumaNode};

/// Asks get_mempolicy(2) for the node of an address. Source: linux/mempolicy.h, `MPOL_F_NODE | MPOL_F_ADDR`.
const NODE_OF_ADDRESS: libc::c_ulong = 1 | 2;

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

    /// Has its pages allocated on a node from now on, or on others when that has none: of pages of 4 KiB whoever maps the memfd,
    /// and whenever; of large ones through this mapping.
    /// Not so that others are never taken (`MPOL_BIND`): a node that becomes full meanwhile would have the kernel end some
    /// process there, with memory free elsewhere.
    pub(super) fn prefer(&self, node: NumaNode) -> io::Result<()> {
        let mut mask = [0u64; MOST_NODES as usize / 64];
        let word = mask.get_mut(node.0 as usize / 64).ok_or(io::ErrorKind::InvalidInput)?;
        *word = 1 << (node.0 % 64);
        // The kernel takes one bit less than it is told of.
        let bits = libc::c_ulong::from(MOST_NODES) + 1;
        let (base, mode) = (self.base.as_ptr(), libc::MPOL_PREFERRED);
        // SAFETY: the range is the mapping; the mask has as many bits as is said, and is only read.
        let done = unsafe { libc::syscall(libc::SYS_mbind, base, self.size, mode, mask.as_ptr(), bits, 0) };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// The node of the page at an offset, which is allocated first if it is not yet.
    pub(super) fn node_at(&self, at: usize) -> io::Result<NumaNode> {
        if at >= self.size {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let (mut node, no_mask) = (0 as libc::c_int, ptr::null_mut::<u64>());
        // SAFETY: the address is within the mapping, which the kernel only looks at; it writes one number, to `node`.
        let done = unsafe {
            let address = self.base.as_ptr().add(at);
            libc::syscall(libc::SYS_get_mempolicy, &raw mut node, no_mask, 0, address, NODE_OF_ADDRESS)
        };
        match u32::try_from(node) {
            Ok(node) if done == 0 => Ok(NumaNode(node)),
            _ => Err(io::Error::last_os_error()),
        }
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
