//! What `/proc/PID/maps` and `/proc/PID/smaps` say of a guest's RAM. Pure.
//!
//! Source: proc_pid_maps(5), proc_pid_smaps(5).

use std::{collections::HashSet, ops::Range};

use gnomon_terms::{PAGE_SIZE, PageCount, PageNumber, PageRun};

/// Which mappings of a process are the guest's RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RamAt {
    /// Those that share this file.
    File {
        /// Major and minor number of its file system.
        device: (u32, u32),
        /// Its inode.
        inode: u64,
    },
    /// Those at these addresses: memory that QEMU got from nowhere.
    Address(u64),
}

/// Addresses of a process at which pages of the RAM are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    /// The addresses.
    pub(crate) at: Range<u64>,
    /// The page of the RAM at the first of them.
    pub(crate) first: PageNumber,
}

/// A line of `maps`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mapping<'a> {
    /// The addresses.
    pub(super) at: Range<u64>,
    /// `r-xp` and the like.
    pub(super) access: &'a str,
    /// Where in the file it begins, in bytes.
    offset: u64,
    device: (u32, u32),
    inode: u64,
    /// The file's path, or a word in brackets, or nothing.
    pub(super) path: &'a str,
}

impl Window {
    /// How many pages.
    pub(crate) fn pages(&self) -> u64 {
        (self.at.end - self.at.start) / PAGE_SIZE
    }

    /// The same, of memory whose first page is called so.
    pub(super) fn behind(self, first: PageNumber) -> Window {
        Window { first: PageNumber(first.0 + self.first.0), ..self }
    }

    /// Its pages.
    pub(crate) fn run(&self) -> PageRun {
        PageRun { start: self.first, len: PageCount(self.pages()) }
    }

    /// Where one of its pages is, or the end of its last.
    pub(super) fn address_of(&self, page: PageNumber) -> u64 {
        self.at.start + (page.0 - self.first.0) * PAGE_SIZE
    }

    /// The page at an address that is within it.
    pub(crate) fn page_at(&self, address: u64) -> PageNumber {
        PageNumber(self.first.0 + (address - self.at.start) / PAGE_SIZE)
    }
}

/// The mappings of a process, in order. Lines that are not understood are left out.
pub(super) fn mappings(maps: &str) -> impl Iterator<Item = Mapping<'_>> {
    maps.lines().filter_map(parse)
}

/// `7f31c0000000-7f31d0000000 rw-s 00000000 00:01 3082   /memfd:ram (deleted)`
fn parse(line: &str) -> Option<Mapping<'_>> {
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    let mut words = line.splitn(6, ' ');
    let (start, end) = words.next()?.split_once('-')?;
    let access = words.next()?;
    let offset = hex(words.next()?)?;
    let (major, minor) = words.next()?.split_once(':')?;
    let device = (u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?);
    let inode = words.next()?.parse().ok()?;
    let at = hex(start)?..hex(end)?;
    let path = words.next().unwrap_or_default().trim_start();
    (at.start < at.end).then_some(Mapping { at, access, offset, device, inode, path })
}

/// The inodes of all files that a process has mapped.
pub(crate) fn files(maps: &str) -> HashSet<u64> {
    mappings(maps).map(|mapping| mapping.inode).filter(|inode| *inode != 0).collect()
}

/// The inode of the shared file whose first byte a process has at this address; `None` when there is none.
pub(crate) fn file_at(maps: &str, address: u64) -> Option<u64> {
    let there = mappings(maps).find(|mapping| mapping.at.contains(&address))?;
    let begins = there.offset == 0 && there.at.start == address;
    (begins && there.access.ends_with('s')).then_some(there.inode)
}

/// Where the first `pages` pages of the RAM are. Neighbours are one: a mapping may be split by advice on a part of it.
pub(crate) fn windows(maps: &str, ram: RamAt, pages: u64) -> Vec<Window> {
    let mut found: Vec<Window> = Vec::new();
    for window in mappings(maps).filter_map(|mapping| window_of(&mapping, ram, pages)) {
        match found.last_mut() {
            Some(last) if last.at.end == window.at.start && last.page_at(last.at.end) == window.first => {
                last.at.end = window.at.end;
            }
            _ => found.push(window),
        }
    }
    found
}

fn window_of(mapping: &Mapping<'_>, ram: RamAt, pages: u64) -> Option<Window> {
    let (base, first) = match ram {
        // A private mapping of the file is a fork's: what is written there is not in the file.
        RamAt::File { device, inode } => {
            let shared = mapping.access.ends_with('s') && (mapping.device, mapping.inode) == (device, inode);
            (shared.then_some(mapping.at.start)?, mapping.offset / PAGE_SIZE)
        }
        RamAt::Address(address) => {
            let base = mapping.at.start.max(address);
            (base, (base - address) / PAGE_SIZE)
        }
    };
    let room = pages.checked_sub(first)?.checked_mul(PAGE_SIZE)?;
    let at = base..mapping.at.end.min(base.checked_add(room)?);
    (at.start < at.end).then_some(Window { at, first: PageNumber(first) })
}

/// How many of the first `pages` pages have a window.
pub(crate) fn covered(windows: &[Window], pages: u64) -> u64 {
    let mut ranges: Vec<(u64, u64)> = windows.iter().map(|w| (w.first.0, w.first.0 + w.pages())).collect();
    ranges.sort_unstable();
    let (mut covered, mut behind) = (0, 0);
    for (start, end) in ranges {
        let (start, end) = (start.max(behind), end.min(pages));
        covered += end.saturating_sub(start);
        behind = behind.max(end);
    }
    covered
}

/// What `smaps` says of mappings that meet the windows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Fine {
    /// The line that says that file pages are mapped by more than 4 KiB, if one does.
    pub(super) large: Option<String>,
    /// Whether all of it is locked in memory.
    pub(super) locked: bool,
}

/// Looks at the details of the windows' mappings.
pub(super) fn fine(smaps: &str, windows: &[Window]) -> Fine {
    let mut fine = Fine { large: None, locked: true };
    let mut ours = false;
    for line in smaps.lines() {
        if let Some(mapping) = parse(line) {
            ours = windows.iter().any(|w| w.at.start < mapping.at.end && mapping.at.start < w.at.end);
        } else if ours {
            look(line, &mut fine);
        }
    }
    fine
}

fn look(line: &str, fine: &mut Fine) {
    let Some((name, value)) = line.split_once(':') else { return };
    let value = value.trim();
    let large = match name {
        "KernelPageSize" => value != "4 kB",
        "ShmemPmdMapped" | "FilePmdMapped" => value != "0 kB",
        _ => false,
    };
    if large {
        fine.large = Some(format!("{name}: {value}"));
    }
    if name == "VmFlags" {
        fine.locked &= value.split(' ').any(|flag| flag == "lo");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
55d0c0a00000-55d0c0b00000 r-xp 00100000 fd:01 3082                       /usr/bin/qemu system
7f0000000000-7f0000004000 rw-s 00000000 00:01 3082                       /memfd:ram (deleted)
7f0000004000-7f0000006000 rw-s 00004000 00:01 3082                       /memfd:ram (deleted)
7f0000100000-7f0000102000 rw-p 00000000 00:01 3082                       /memfd:ram (deleted)
7f0000200000-7f0000202000 rw-s 00001000 00:01 3082                       /memfd:ram (deleted)
7f0000300000-7f0000309000 rw-p 00000000 00:00 0 
no mapping at all
7f0000400000-7f0000400000 rw-s 00000000 00:01 3082
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
";

    const FILE: RamAt = RamAt::File { device: (0, 1), inode: 3082 };

    fn window(at: Range<u64>, first: u64) -> Window {
        Window { at, first: PageNumber(first) }
    }

    #[test]
    fn ram_is_where_its_file_is_shared() {
        let all = [window(0x7f0000000000..0x7f0000006000, 0), window(0x7f0000200000..0x7f0000202000, 1)];
        assert_eq!(windows(MAPS, FILE, 6), all);
        // What is mapped beyond the end of the RAM is none of it.
        assert_eq!(
            windows(MAPS, FILE, 2),
            [window(0x7f0000000000..0x7f0000002000, 0), window(0x7f0000200000..0x7f0000201000, 1)]
        );
        assert_eq!(windows(MAPS, RamAt::File { device: (0, 2), inode: 3082 }, 6), []);
        assert_eq!(windows("", FILE, 6), []);
    }

    #[test]
    fn ram_of_no_file_is_where_it_is_told() {
        let at = |address, pages| windows(MAPS, RamAt::Address(address), pages);
        assert_eq!(at(0x7f0000300000, 9), [window(0x7f0000300000..0x7f0000309000, 0)]);
        assert_eq!(at(0x7f0000301000, 2), [window(0x7f0000301000..0x7f0000303000, 0)]);
        assert_eq!(covered(&at(0x7f0000308000, 2), 2), 1);
    }

    #[test]
    fn pages_are_covered_once_however_often_they_are_mapped() {
        let table: [(&[Window], u64); 4] = [
            (&[], 0),
            (&[window(0..0x6000, 0), window(0x9000..0xb000, 1)], 6),
            (&[window(0..0x1000, 5), window(0x9000..0xb000, 0)], 3),
            (&[window(0..0xf000, 0)], 6),
        ];
        for (windows, count) in table {
            assert_eq!(covered(windows, 6), count, "{windows:?}");
        }
    }

    #[test]
    fn large_and_locked_pages_are_seen_where_they_matter() {
        let smaps = |size: &str, mapped: &str, flags: &str| {
            format!(
                "1000-2000 rw-p 00000000 00:00 0\nKernelPageSize: 2048 kB\nShmemPmdMapped: 2048 kB\nVmFlags: rd\n\
                 2000-4000 rw-s 00000000 00:01 7 /memfd:ram (deleted)\nKernelPageSize:  {size}\n\
                 ShmemPmdMapped:  {mapped}\nVmFlags: rd wr {flags}\n"
            )
        };
        let table = [
            (("4 kB", "0 kB", "sh lo"), (None, true)),
            (("4 kB", "0 kB", "sh"), (None, false)),
            (("2048 kB", "0 kB", "ht"), (Some("KernelPageSize: 2048 kB"), false)),
            (("4 kB", "2048 kB", "sh"), (Some("ShmemPmdMapped: 2048 kB"), false)),
        ];
        for ((size, mapped, flags), (large, locked)) in table {
            let found = fine(&smaps(size, mapped, flags), &[window(0x2000..0x4000, 0)]);
            assert_eq!(found, Fine { large: large.map(str::to_string), locked });
        }
    }
}
