//! Which pages of memory are in QEMU's page tables: those that the guest has touched, or QEMU for it.
//!
//! ```text
//!   /proc/PID/maps ──► where QEMU has the memory ──► PAGEMAP_SCAN (Linux 6.7 and newer) ──► runs of pages
//!                                                └─► /proc/PID/pagemap, 8 bytes a page ──┘
//! ```
//! A look changes nothing in the process: no page is protected and no mark is cleared, so whoever follows what the guest
//! writes is not disturbed, and it works while somebody does. What it tells is that a page was touched at some time; when,
//! and how often, only a tracker of writes knows.
//!
//! Memory whose page tables were filled ahead of the guest ([`super::Filling::Mapped`]) is present as a whole, but for one page in
//! [`LEFT_OUT_OF`], which were left out on purpose: of it, those are looked at, and each stands for so many.
//!
//! Under KVM a page that the guest touches comes into QEMU's page tables first, so this sees it too. What nobody told but the
//! kernel knows is not used: `Referenced` in `/proc/PID/smaps` is of a whole mapping, is not told of what a guest under KVM
//! touches, and has to be cleared to mean anything, which takes from the host what it evicts by.
//!
//! Source: Linux documentation, "Examining Process Page Tables"; proc_pid_pagemap(5).

use std::{
    fs::{self, File},
    io,
    ops::Range,
    os::{fd::AsFd, unix::fs::FileExt},
    time::Duration,
};

use gnomon_terms::{Bytes, ErrorKind, PAGE_SIZE, PageCount, PageRun};
use rustix::{
    fs::{fstat, major, minor},
    time::{ClockId, clock_gettime},
};

use super::tables::{AROUND, HUGE, is_left_out};
use crate::{
    dirty::{
        maps::{RamAt, Window, covered, windows},
        sys::{Region, has_pagemap_scan, scan_present},
    },
    ram::GuestRam,
};

/// Of memory that was filled one page in so many is left out.
pub const LEFT_OUT_OF: u32 = (HUGE / AROUND) as u32;
/// Runs that one call tells: 24 KiB of answer.
const REGIONS: usize = 1024;
/// Entries that are read at once: 32 KiB, of 16 MiB of memory.
const ENTRIES: usize = 4096;
/// QEMU maps its guest's memory once. A process that has it mapped more often than this is not looked at: it could have us
/// walk for as long as it likes.
const MOST_TIMES: u64 = 4;
/// Of an entry: the page is in the page tables.
const PRESENT: u64 = 1 << 63;

/// Which pages are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All of them.
    All,
    /// Those that filling leaves out, each of which [stands for](Part::stands_for) some others. Of memory that was not filled they are as good a sample.
    LeftOut,
}

/// What a look has cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Looked {
    /// How much memory was asked about.
    pub memory: Bytes,
    /// The processor's time.
    pub took: Duration,
}

/// A QEMU's page tables could not be looked at.
#[derive(Debug, thiserror::Error)]
#[error("cannot see which of its memory process {pid} uses: {source}; does it run, and is it ours to look into?")]
pub struct PresenceError {
    /// Which process.
    pub pid: i32,
    /// The operating system's reason.
    #[source]
    pub source: io::Error,
}

impl PresenceError {
    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Unavailable
    }
}

impl Part {
    /// For how many pages one stands that is looked at.
    pub fn stands_for(self) -> u32 {
        match self {
            Part::All => 1,
            Part::LeftOut => LEFT_OUT_OF,
        }
    }
}

/// Tells each run of `memory`'s pages that process `pid` has in its page tables, in order within a mapping; a page that it has
/// mapped twice may be told twice. Blocks for some milliseconds a GiB. An error when it does not have all of that memory
/// mapped, or five times and more.
pub fn present(
    pid: i32,
    memory: &GuestRam,
    part: Part,
    mut each: impl FnMut(PageRun),
) -> Result<Looked, PresenceError> {
    let begun = spent();
    let looked = look(pid, memory, part, has_pagemap_scan(), &mut each);
    looked.map_err(|source| PresenceError { pid, source })?;
    Ok(Looked { memory: memory.size(), took: spent().saturating_sub(begun) })
}

/// Processor time of this thread.
fn spent() -> Duration {
    clock_gettime(ClockId::ThreadCPUTime).try_into().unwrap_or_default()
}

fn look(pid: i32, memory: &GuestRam, part: Part, by_scan: bool, each: &mut dyn FnMut(PageRun)) -> io::Result<()> {
    let (stat, pages) = (fstat(memory.as_fd())?, memory.pages().0);
    let ram_at = RamAt::File { device: (major(stat.st_dev), minor(stat.st_dev)), inode: stat.st_ino };
    let maps = fs::read(format!("/proc/{pid}/maps"))?;
    let found = windows(&String::from_utf8_lossy(&maps), ram_at, pages);
    if covered(&found, pages) < pages {
        return Err(io::Error::new(io::ErrorKind::NotFound, "it has not mapped all of it"));
    }
    if found.iter().map(Window::pages).sum::<u64>() > pages.saturating_mul(MOST_TIMES) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it has mapped it too often"));
    }
    let mut walk = Walk { pagemap: File::open(format!("/proc/{pid}/pagemap"))?, by_scan, regions: Vec::new() };
    for window in &found {
        let mut tell = |at: Range<u64>| each(run_of(window, &at));
        match part {
            Part::All => walk.over(window.at.clone(), &mut tell)?,
            Part::LeftOut => left_out(window.at.clone()).try_for_each(|at| walk.over(at, &mut tell))?,
        }
    }
    Ok(())
}

/// The addresses of these that filling leaves out.
fn left_out(at: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let first = at.start - at.start % HUGE;
    let starts = (first..at.end).step_by(HUGE as usize).map(|huge| huge + HUGE - AROUND);
    let pieces = starts.map(move |start| start.max(at.start)..(start + AROUND).min(at.end));
    pieces.filter(|piece| piece.start < piece.end && is_left_out(piece.start))
}

fn run_of(window: &Window, at: &Range<u64>) -> PageRun {
    PageRun { start: window.page_at(at.start), len: PageCount((at.end - at.start) / PAGE_SIZE) }
}

/// A walk over a process's page tables.
struct Walk {
    pagemap: File,
    by_scan: bool,
    /// Where the kernel answers.
    regions: Vec<Region>,
}

impl Walk {
    fn over(&mut self, at: Range<u64>, tell: &mut dyn FnMut(Range<u64>)) -> io::Result<()> {
        match self.by_scan {
            true => self.scan(at, tell),
            false => self.read(at, tell),
        }
    }

    fn scan(&mut self, at: Range<u64>, tell: &mut dyn FnMut(Range<u64>)) -> io::Result<()> {
        self.regions.resize(REGIONS, Region::default());
        let mut from = at.start;
        while from < at.end {
            let (count, end) = scan_present(&self.pagemap, from..at.end, &mut self.regions)?;
            // A large page is told as a whole.
            let clipped = self.regions[..count].iter().map(|told| told.start.max(from)..told.end.min(at.end));
            clipped.filter(|told| told.start < told.end).for_each(&mut *tell);
            if end <= from {
                break;
            }
            from = end;
        }
        Ok(())
    }

    /// As older kernels tell it.
    fn read(&mut self, at: Range<u64>, tell: &mut dyn FnMut(Range<u64>)) -> io::Result<()> {
        let mut bytes = vec![0; ENTRIES * size_of::<u64>()];
        for from in at.clone().step_by(ENTRIES * PAGE_SIZE as usize) {
            let pages = ((at.end - from) / PAGE_SIZE).min(ENTRIES as u64) as usize;
            let bytes = &mut bytes[..pages * size_of::<u64>()];
            self.pagemap.read_exact_at(bytes, from / PAGE_SIZE * size_of::<u64>() as u64)?;
            let there = |entry: &[u8; 8]| u64::from_ne_bytes(*entry) & PRESENT != 0;
            let mut page = from;
            for run in bytes.as_chunks().0.chunk_by(|one, other| there(one) == there(other)) {
                let end = page + run.len() as u64 * PAGE_SIZE;
                if there(&run[0]) {
                    tell(page..end);
                }
                page = end;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use gnomon_terms::PageSet;

    use super::super::PageTables;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn own_pid() -> i32 {
        i32::try_from(std::process::id()).expect("a process")
    }

    fn seen(ram: &GuestRam, part: Part, by_scan: bool) -> PageSet {
        let mut pages = PageSet::new();
        look(own_pid(), ram, part, by_scan, &mut |run| pages.insert(run)).expect("looked");
        pages
    }

    #[test]
    fn pages_that_were_touched_are_told_both_ways_and_no_others() {
        let ram = GuestRam::create("presence-test", Bytes(32 * MIB)).expect("memory");
        let view = ram.map_writable().expect("mapped");
        let ways: &[bool] = if has_pagemap_scan() { &[true, false] } else { &[false] };
        ways.iter().for_each(|way| assert!(seen(&ram, Part::All, *way).is_empty()));
        for page in [0, 1, 5, 4095, 4096, 8191] {
            view.write_at(page * PAGE_SIZE, &[1]).expect("within");
        }
        let touched = [PageRun::new(0, 2), PageRun::new(5, 1), PageRun::new(4095, 2), PageRun::new(8191, 1)];
        for by_scan in ways {
            assert_eq!(seen(&ram, Part::All, *by_scan).runs(), touched, "{by_scan}");
        }
        let looked = present(own_pid(), &ram, Part::All, |run| assert!(touched.contains(&run))).expect("looked");
        assert_eq!(looked.memory, ram.size());
    }

    #[test]
    fn what_filling_leaves_out_is_seen_when_it_is_touched() {
        let ram = GuestRam::create("presence-filled", Bytes(32 * MIB)).expect("memory");
        let view = ram.map_writable().expect("mapped");
        let file = File::options().write(true).open(format!("/proc/self/fd/{}", raw(&ram))).expect("opened");
        file.write_all_at(&vec![7; 32 << 20], 0).expect("allocated");
        PageTables::of_process(own_pid(), ram.as_fd(), ram.size()).and_then(|tables| tables.fill()).expect("filled");
        let seen = |part| seen(&ram, part, has_pagemap_scan());
        let all = seen(Part::All).count().0;
        assert!(all > 7000 && all <= 8192 / 32 * 31, "{all} of 8192 pages");
        assert!(seen(Part::LeftOut).is_empty());
        (0..8192).filter(|page| !(100..8000).contains(page)).for_each(|page| {
            view.write_at(page * PAGE_SIZE, &[1]).expect("within");
        });
        // Where a mapping begins within 2 MiB is the kernel's to say: at most one sample more or less at either end.
        let sample = seen(Part::LeftOut);
        assert!(sample.count().0 > 0 && sample.pages().all(|page| !(100..8000).contains(&page.0)), "{sample:?}");
    }

    fn raw(ram: &GuestRam) -> i32 {
        std::os::fd::AsRawFd::as_raw_fd(&ram.as_fd())
    }

    #[test]
    fn one_page_in_thirty_two_is_left_out_wherever_the_memory_begins() {
        for (start, bytes) in [(0, 64 * MIB), (0x7f00_0000_1000, 64 * MIB), (0x7f00_001f_5000, 64 * MIB), (0, 4096)] {
            let pieces: Vec<Range<u64>> = left_out(start..start + bytes).collect();
            let pages: u64 = pieces.iter().map(|piece| (piece.end - piece.start) / PAGE_SIZE).sum();
            let wanted = bytes / PAGE_SIZE / u64::from(LEFT_OUT_OF);
            assert!(pages.abs_diff(wanted) <= AROUND / PAGE_SIZE, "{start:x}: {pages}");
            assert!(pieces.iter().flat_map(|piece| piece.clone().step_by(4096)).all(is_left_out));
        }
    }

    #[test]
    fn who_maps_its_memory_again_and_again_is_not_looked_at() {
        let ram = GuestRam::create("presence-often", Bytes(MIB)).expect("memory");
        let mut views: Vec<_> = (0..5).map(|_| ram.map().expect("mapped")).collect();
        let looked = || present(own_pid(), &ram, Part::All, |run| panic!("{run:?}"));
        assert!(looked().expect_err("five times").to_string().contains("too often"));
        views.pop();
        assert_eq!(looked().expect("four times").memory, ram.size());
    }

    #[test]
    fn memory_that_nobody_has_mapped_is_an_error() {
        let ram = GuestRam::create("presence-none", Bytes(MIB)).expect("memory");
        for pid in [own_pid(), -1] {
            let error = present(pid, &ram, Part::All, |run| panic!("{run:?}")).expect_err("not mapped");
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        }
    }
}
