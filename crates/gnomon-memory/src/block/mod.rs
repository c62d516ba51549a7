//! A block: memory of a fixed size that waits for a guest, as a memfd.
//!
//! ```text
//!  create ──► empty ──populate, step by step──► whole (allocated, zero) ──► a guest's DIMM
//!                └─────────── given up ──────────────┴────── release ─────────┴──► punched, closed
//! ```
//!
//! A block that was at a guest is never used again: a QEMU that kept a descriptor of it would see what the next guest
//! writes. Its memory goes back to the host ([`Block::release`]), and the next block is a new memfd, which the kernel
//! hands out zeroed. So no page passes from one guest to another but through the kernel.
//!
//! A block has no record but its name, `gnomon-block:GROUP:ID`, which every process can read in `/proc/PID/fd`. It is
//! sealed against changing its size: a mapping of ours can never fault.
//!
//! Source: memfd_create(2), madvise(2) (`MADV_POPULATE_WRITE`, Linux 5.14), fallocate(2) (`FALLOC_FL_PUNCH_HOLE`),
//! proc_pid_fd(5); Documentation/admin-guide/mm/hugetlbpage.rst.

mod error;
mod found;
mod mapping;

use std::{
    fmt,
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::MetadataExt,
    },
};

use gnomon_terms::Bytes;
use rustix::{
    fd::OwnedFd,
    fs::{FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, ftruncate, memfd_create},
    io::Errno,
};

use crate::{
    groups::{GroupName, PageKind},
    numa::NumaNode,
};
use mapping::Mapping;

pub use error::BlockError;
pub use found::blocks_of;
pub(crate) use found::open_fd;

/// What the name of every block's memfd begins with.
pub const NAME_PREFIX: &str = "gnomon-block:";

/// Bytes that are populated between two questions whether to go on: about 16 ms on an idle processor (1 s for a GiB of
/// 4 KiB pages was measured), so that a host in need waits no longer for us to stop.
pub const POPULATE_STEP: Bytes = Bytes(16 << 20);

/// The largest block: more than any host has for one guest's DIMM, and small enough that sums of sizes never overflow,
/// whatever a process calls a block.
pub const LARGEST_BLOCK: Bytes = Bytes(1 << 40);

/// Seals of a block: its size stays, and so do the seals (nobody can forbid writing).
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);

/// Pages that are looked at for a block's node: a block is whole on one node, or the node was full from some page on.
const SAMPLES: usize = 32;

/// Where the host says how many of its pages of 2 MiB are free.
const FREE_HUGE_PAGES: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";

/// Which block. Unique among the blocks of one boot of a host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockId(pub u64);

/// A block. Dropping it closes our descriptor; the memory lasts for as long as anybody has it open or mapped.
#[derive(Debug)]
pub struct Block {
    file: File,
    group: GroupName,
    id: BlockId,
    size: Bytes,
    pages: PageKind,
    inode: u64,
}

/// How a population ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Populated {
    /// All of it is allocated.
    Whole,
    /// It was told not to go on. What was allocated until then still is.
    GivenUp,
}

impl Block {
    /// Makes an empty block: nothing of it is allocated. `size` is a multiple of the page size, not zero and not above
    /// [`LARGEST_BLOCK`]. Refused
    /// with [`BlockError::NoHugePages`] when the host cannot have such pages at all; whether it has enough of them is
    /// seen when it is populated.
    pub fn create(group: &GroupName, id: BlockId, size: Bytes, pages: PageKind) -> Result<Block, BlockError> {
        if !is_size(size, pages) {
            return Err(BlockError::BadSize { size, page: pages.size() });
        }
        let failed = |what, e: Errno| BlockError::Kernel { what, size, source: e.into() };
        let memfd = memfd(&format!("{NAME_PREFIX}{group}:{id}"), pages).map_err(|e| match pages {
            PageKind::Small => failed("make", e),
            PageKind::Huge => no_huge_pages(size),
        })?;
        ftruncate(&memfd, size.0).map_err(|e| failed("size", e))?;
        fcntl_add_seals(&memfd, SEALS).map_err(|e| failed("seal", e))?;
        let file = File::from(memfd);
        let inode = file.metadata().map_err(|source| BlockError::Kernel { what: "look at", size, source })?.ino();
        Ok(Block { file, group: group.clone(), id, size, pages, inode })
    }

    /// Allocates all of it, `step` bytes at a time (rounded up to pages), on the node `near` as far as that has pages free.
    /// `go_on` is asked before each step. Blocks for about a second per GiB of 4 KiB pages, and for one step after `go_on`
    /// has said no. A block of 4 KiB pages keeps to its node: a page that its guest gives back and takes again is from there.
    ///
    /// Refused with [`BlockError::NoHugePages`] when the host has not enough of them free. After an error the block is
    /// to be released.
    pub fn populate(
        &self,
        near: Option<NumaNode>,
        step: Bytes,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Populated, BlockError> {
        let page = self.pages.size().0;
        let step = step.0.clamp(page, self.size.0).next_multiple_of(page);
        let mapping = Mapping::over(self.file.as_fd(), self.size).map_err(|e| self.refusal("map", e))?;
        // Of large pages the policy is the mapping's, and goes with it.
        if let Some(node) = near
            && let Err(error) = mapping.prefer(node)
        {
            tracing::info!(%node, %error, "a block is staged wherever the kernel has it");
        }
        let mut at = 0;
        while at < self.size.0 {
            if !go_on() {
                return Ok(Populated::GivenUp);
            }
            let length = step.min(self.size.0 - at);
            mapping.populate(at, length).map_err(|e| self.refusal("populate", e))?;
            at += length;
        }
        Ok(Populated::Whole)
    }

    /// The node that it is on, by a sample of its pages: more than half of them are there. `None` when they are spread, or
    /// the kernel does not say. Only of a whole block: what is not allocated yet is when it is looked at. Takes some 50 µs.
    pub fn node(&self) -> Option<NumaNode> {
        let mapping = Mapping::over(self.file.as_fd(), self.size).ok()?;
        let size = usize::try_from(self.size.0).ok()?;
        let offsets = (0..SAMPLES).map(|n| size / SAMPLES * n);
        let nodes: Vec<NumaNode> = offsets.map(|at| mapping.node_at(at)).collect::<io::Result<_>>().ok()?;
        let count = |node: NumaNode| nodes.iter().filter(|other| **other == node).count();
        nodes.iter().copied().find(|node| count(*node) > SAMPLES / 2)
    }

    /// A kernel that has too few large pages says so with the one or the other error number.
    fn refusal(&self, what: &'static str, e: Errno) -> BlockError {
        match (self.pages, e) {
            (PageKind::Huge, Errno::NOMEM | Errno::FAULT | Errno::NOSPC) => no_huge_pages(self.size),
            _ => BlockError::Kernel { what, size: self.size, source: e.into() },
        }
    }

    /// The group that it was made for.
    pub fn group(&self) -> &GroupName {
        &self.group
    }

    /// Which block.
    pub fn id(&self) -> BlockId {
        self.id
    }

    /// Its size.
    pub fn size(&self) -> Bytes {
        self.size
    }

    /// What it is made of.
    pub fn pages(&self) -> PageKind {
        self.pages
    }

    /// Its inode: the same in every process that has it open.
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// Bytes that are allocated. One system call.
    pub fn allocated(&self) -> io::Result<Bytes> {
        self.file.metadata().map(|metadata| Bytes(metadata.blocks().saturating_mul(512)))
    }

    /// Whether all of it is allocated. One system call.
    pub fn is_whole(&self) -> bool {
        self.allocated().is_ok_and(|allocated| allocated >= self.size)
    }

    /// Gives its memory back to the host at once, whoever else has it open or mapped: what they read from then on is
    /// zeros, and what they write allocates anew. Blocks for about 0.2 s per GiB.
    pub fn release(&self) -> Result<(), BlockError> {
        let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&self.file, mode, 0, self.size.0).map_err(|e| BlockError::Kernel {
            what: "give back",
            size: self.size,
            source: e.into(),
        })
    }
}

impl AsFd for Block {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl fmt::Display for BlockId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

pub(crate) fn is_size(size: Bytes, pages: PageKind) -> bool {
    size.0 > 0 && size <= LARGEST_BLOCK && size.0.is_multiple_of(pages.size().0)
}

/// A memfd that cannot be executed, where the kernel knows that flag (6.3 and newer, some insist on it).
fn memfd(name: &str, pages: PageKind) -> Result<OwnedFd, Errno> {
    let flags = MemfdFlags::CLOEXEC
        | MemfdFlags::ALLOW_SEALING
        | match pages {
            PageKind::Small => MemfdFlags::empty(),
            PageKind::Huge => MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB,
        };
    match memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => memfd_create(name, flags),
        made => made,
    }
}

fn no_huge_pages(size: Bytes) -> BlockError {
    let free = fs::read_to_string(FREE_HUGE_PAGES).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    BlockError::NoHugePages { needed: size.0.div_ceil(PageKind::Huge.size().0), free }
}

#[cfg(test)]
mod tests;
