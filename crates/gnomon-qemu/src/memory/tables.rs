//! Fills QEMU's page tables for memory that is allocated, beside the running guest.
//!
//! QEMU could do it (`prealloc=on`), and would do nothing else meanwhile: it populates under its big lock, and each answer
//! of a disk or a card waits for that, 0.3 to 0.8 s for 1 GiB. A byte that is read through `/proc/PID/mem` is a page fault in
//! that process which takes no lock of QEMU's, and for a read the kernel fills in the neighbours that are there as well.
//!
//! Nothing is ever written, so whoever uses the memory meanwhile may: a guest that boots from it, and a tracker of written
//! pages, for which a page that is only there now is none that was written. Of memory that somebody has punched in the
//! meantime one page in sixteen is allocated again.
//!
//! Source: proc_pid_mem(5); Linux `mm/memory.c`, `do_fault_around`: 64 KiB around the fault, shared memory writable.

use std::{
    fs::{self, File},
    io,
    iter::once,
    os::{fd::BorrowedFd, unix::fs::FileExt},
};

use gnomon_terms::{Bytes, PAGE_SIZE};
use rustix::fs::{fstat, major, minor};

use crate::{
    Qemu,
    dirty::maps::{RamAt, Window, windows},
};

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

/// Page tables of a QEMU for some memory of its. Holds neither the memory nor the process.
#[derive(Debug)]
pub struct PageTables {
    process: File,
    windows: Vec<Window>,
}

impl PageTables {
    /// Finds where a QEMU has the first `size` bytes of `memory`, a memfd. A QEMU that does not have it has no such tables,
    /// and nothing is to be filled; one that has ended is an error.
    pub fn of(qemu: &Qemu, memory: BorrowedFd<'_>, size: Bytes) -> io::Result<PageTables> {
        PageTables::of_process(qemu.record().pid, memory, size)
    }

    pub(super) fn of_process(pid: i32, memory: BorrowedFd<'_>, size: Bytes) -> io::Result<PageTables> {
        let stat = fstat(memory)?;
        let ram = RamAt::File { device: (major(stat.st_dev), minor(stat.st_dev)), inode: stat.st_ino };
        let maps = fs::read(format!("/proc/{pid}/maps"))?;
        // It is this process for as long as it is open, whoever gets its number.
        let process = File::open(format!("/proc/{pid}/mem"))?;
        Ok(PageTables { process, windows: windows(&String::from_utf8_lossy(&maps), ram, size.0 / PAGE_SIZE) })
    }

    /// Has 31 of 32 pages mapped of those that are allocated. Blocks for some 200 ms a GiB, in steps of 64 KiB that hold up nobody; an
    /// error when the process has ended. May be called again.
    pub fn fill(&self) -> io::Result<()> {
        for window in &self.windows {
            let last = window.at.end - 1;
            let faults = window.at.clone().step_by(AROUND as usize).chain(once(last));
            for address in faults.filter(|address| !is_left_out(*address)) {
                self.process.read_exact_at(&mut [0], address)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        os::fd::AsFd,
        sync::atomic::{AtomicBool, Ordering},
        thread,
    };

    use super::*;
    use crate::ram::GuestRam;

    fn ours(ram: &GuestRam) -> PageTables {
        let pid = i32::try_from(std::process::id()).expect("a process");
        PageTables::of_process(pid, ram.as_fd(), ram.size()).expect("we live")
    }

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
        ours(&ram).fill().expect("nobody has it, and nothing is to be done");
        let view = ram.map().expect("mapped");
        let before = mapped("tables-test");
        ours(&ram).fill().expect("filled");
        // The kernel leaves out a page that somebody has locked just then.
        assert!(before < 1 << 10 && mapped("tables-test") > 7 << 10, "{before} {}", mapped("tables-test"));
        drop(view);
    }

    fn raw(ram: &GuestRam) -> i32 {
        std::os::fd::AsRawFd::as_raw_fd(&ram.as_fd())
    }

    #[test]
    fn what_is_written_meanwhile_stays() {
        let ram = GuestRam::create("tables-written", Bytes(8 << 20)).expect("memory");
        let writer = ram.map_writable().expect("mapped");
        let tables = ours(&ram);
        let done = AtomicBool::new(false);
        let words = (0..ram.size().0).step_by(8);
        thread::scope(|scope| {
            let fills = scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    tables.fill().expect("filled");
                }
            });
            words.clone().for_each(|at| writer.write_at(at, &at.to_le_bytes()).expect("written"));
            done.store(true, Ordering::Relaxed);
            fills.join().expect("it filled");
        });
        let mut read = [0; 8];
        for at in words {
            writer.view().read_at(at, &mut read).expect("read");
            assert_eq!(u64::from_le_bytes(read), at);
        }
    }

    #[test]
    fn a_process_that_is_none_is_an_error() {
        let ram = GuestRam::create("tables-none", Bytes(1 << 20)).expect("memory");
        assert!(PageTables::of_process(-1, ram.as_fd(), ram.size()).is_err());
    }
}
