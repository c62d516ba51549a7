//! Fills QEMU's page tables for memory that is allocated, beside the running guest.
//!
//! QEMU could do it (`prealloc=on`), and would do nothing else meanwhile: it populates under its big lock, and each answer
//! of a disk or a card waits for that, 0.3 to 0.8 s for 1 GiB. A byte that is read through `/proc/PID/mem` is a page fault in
//! that process which takes no lock of QEMU's, and for a read the kernel fills in the neighbours that are there as well.
//!
//! Source: proc_pid_mem(5); Linux `mm/memory.c`, `do_fault_around`: 64 KiB around the fault, shared memory writable.

use std::{
    fs::{self, File},
    io,
    iter::once,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::FileExt,
    },
};

use gnomon_terms::{Bytes, PAGE_SIZE};
use rustix::fs::{fstat, major, minor};

use crate::dirty::maps::{RamAt, windows};

/// What one fault fills, at multiples of itself: `fault_around_bytes`, which nobody changes. Where it is less, the guest's
/// own touches fill the rest.
pub(super) const AROUND: u64 = 64 << 10;

/// Of each 2 MiB the last 64 KiB are left to the guest: that it has touched them is seen in the page tables ([`super::present`]),
/// and tells of the rest. It costs the guest three faults in a hundred of those that it is spared.
pub(super) const HUGE: u64 = 2 << 20;

/// Whether an address is left out.
pub(super) fn is_left_out(address: u64) -> bool {
    address % HUGE >= HUGE - AROUND
}

/// Has process `pid` map 31 of 32 pages that are allocated of the `size` bytes of `memory`, wherever it has it. Blocks for some
/// 200 ms a GiB. A process that does not have it, or none, is an error or nothing at all.
pub(super) fn fill(pid: i32, memory: BorrowedFd<'_>, size: Bytes) -> io::Result<()> {
    let stat = fstat(memory.as_fd())?;
    let device = (major(stat.st_dev), minor(stat.st_dev));
    let maps = fs::read(format!("/proc/{pid}/maps"))?;
    let process = File::open(format!("/proc/{pid}/mem"))?;
    let found =
        windows(&String::from_utf8_lossy(&maps), RamAt::File { device, inode: stat.st_ino }, size.0 / PAGE_SIZE);
    for window in found {
        let last = window.at.end - 1;
        let faults = window.at.step_by(AROUND as usize).chain(once(last));
        for address in faults.filter(|address| !is_left_out(*address)) {
            process.read_exact_at(&mut [0], address)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ram::GuestRam;

    /// KiB of a memfd's name that this process has in its page tables.
    fn mapped(name: &str) -> u64 {
        let smaps = fs::read_to_string("/proc/self/smaps").expect("ours");
        let of_it = smaps.lines().skip_while(|line| !line.contains(name));
        let rss = of_it.skip(1).find_map(|line| line.strip_prefix("Rss:")?.strip_suffix("kB"));
        rss.expect("it is mapped").trim().parse().expect("a number")
    }

    #[test]
    fn pages_that_are_there_get_mapped_where_somebody_has_the_memory() {
        let ram = GuestRam::create("tables-test", Bytes(8 << 20)).expect("memory");
        let file = File::options().write(true).open(format!("/proc/self/fd/{}", raw(&ram))).expect("opened");
        file.write_all_at(&vec![7; 8 << 20], 0).expect("allocated");
        let pid = i32::try_from(std::process::id()).expect("a process");
        fill(pid, ram.as_fd(), ram.size()).expect("nobody has it, and nothing is to be done");
        let view = ram.map().expect("mapped");
        let before = mapped("tables-test");
        fill(pid, ram.as_fd(), ram.size()).expect("filled");
        // The kernel leaves out a page that somebody has locked just then.
        assert!(before < 1 << 10 && mapped("tables-test") > 7 << 10, "{before} {}", mapped("tables-test"));
        drop(view);
    }

    fn raw(ram: &GuestRam) -> i32 {
        std::os::fd::AsRawFd::as_raw_fd(&ram.as_fd())
    }

    #[test]
    fn a_process_that_is_none_is_an_error() {
        let ram = GuestRam::create("tables-none", Bytes(1 << 20)).expect("memory");
        assert!(fill(-1, ram.as_fd(), ram.size()).is_err());
    }
}
