//! Which tiers this host has, and why not the others.

use std::fs;

use serde::Serialize;

use super::{TrackerTier, sys};

/// What the tiers depend on, as found on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TrackerFacts {
    /// The kernel tells written pages and protects them again in one call.
    pub pagemap_scan: bool,
    /// What stands in the way of a userfaultfd with write marks; `None`: nothing.
    pub userfaultfd: Option<String>,
    /// The kernel keeps soft-dirty bits.
    pub soft_dirty: bool,
    /// Calls can be made within a process of this processor.
    pub can_inject: bool,
    /// We may trace any process.
    pub may_trace_all: bool,
    /// `kernel.yama.ptrace_scope`; 0 where there is no such thing.
    pub ptrace_scope: u32,
    /// Memory files may be mapped by pages of 2 MiB, which makes the first tiers refuse a guest that has some.
    pub large_pages: bool,
}

/// What is to be said of one tier on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TierVerdict {
    /// Which.
    pub tier: TrackerTier,
    /// Whether guests can be tracked by it.
    pub available: bool,
    /// Why not, or with what reserve; may be empty.
    pub why: String,
}

impl TrackerFacts {
    /// Looks. What cannot be found out counts as absent.
    pub fn gather() -> TrackerFacts {
        let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse().ok();
        let shmem = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/shmem_enabled").unwrap_or_default();
        TrackerFacts {
            pagemap_scan: sys::has_pagemap_scan(),
            userfaultfd: sys::try_userfaultfd().err().map(|e| e.to_string()),
            soft_dirty: has_soft_dirty(),
            can_inject: cfg!(target_arch = "x86_64"),
            may_trace_all: fs::read_to_string("/proc/self/status").is_ok_and(|status| has_sys_ptrace(&status)),
            ptrace_scope: number("/proc/sys/kernel/yama/ptrace_scope").unwrap_or(0),
            large_pages: may_be_large(&shmem),
        }
    }

    /// What follows for each tier, best first. A pure function.
    pub fn verdicts(&self) -> Vec<TierVerdict> {
        TrackerTier::ALL
            .into_iter()
            .map(|tier| {
                let (available, why) = match tier {
                    TrackerTier::PagemapScan => self.pagemap_scan_verdict(),
                    TrackerTier::SoftDirty if self.soft_dirty => (true, String::new()),
                    TrackerTier::SoftDirty => (false, "the kernel was built without CONFIG_MEM_SOFT_DIRTY".into()),
                    TrackerTier::Compare => {
                        (true, "needs as much memory again, and reads all of it each time".into())
                    }
                };
                TierVerdict { tier, available, why }
            })
            .collect()
    }

    fn pagemap_scan_verdict(&self) -> (bool, String) {
        if !self.pagemap_scan {
            return (false, "the kernel has no PAGEMAP_SCAN: Linux 6.7 and newer have".into());
        }
        if let Some(why) = &self.userfaultfd {
            return (false, format!("the kernel gives no userfaultfd with write marks ({why}): CONFIG_USERFAULTFD"));
        }
        if !self.can_inject {
            return (false, "calls can be made within QEMU on 64-bit x86 only".into());
        }
        match (self.ptrace_scope, self.may_trace_all) {
            (3.., _) => {
                (false, "kernel.yama.ptrace_scope is 3: nobody may trace a process until the next boot".into())
            }
            (2, false) => (false, "kernel.yama.ptrace_scope is 2: run gnomon with CAP_SYS_PTRACE".into()),
            (1, false) => (true, "for guests this daemon starts: kernel.yama.ptrace_scope is 1".into()),
            _ if self.large_pages => (
                true,
                "not for guests with 2 MiB pages: /sys/kernel/mm/transparent_hugepage/shmem_enabled allows them"
                    .into(),
            ),
            _ => (true, String::new()),
        }
    }
}

/// Whether the effective capabilities in `/proc/self/status` have CAP_SYS_PTRACE.
fn has_sys_ptrace(status: &str) -> bool {
    const CAP_SYS_PTRACE: u64 = 1 << 19;
    let set = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    set.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).is_some_and(|set| set & CAP_SYS_PTRACE != 0)
}

/// Whether the chosen word (in brackets) lets memory files have large pages.
fn may_be_large(shmem_enabled: &str) -> bool {
    let chosen = shmem_enabled.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map(|(word, _)| word);
    !matches!(chosen, None | Some("never" | "deny"))
}

/// Bit 55 of a page's entry is set by the first write after the bits were cleared, and on a kernel that keeps them,
/// for every page that was ever written. We write one and look.
///
/// Source: Linux documentation, "Soft-Dirty PTEs".
pub(super) fn has_soft_dirty() -> bool {
    use std::os::unix::fs::FileExt;
    let written = Box::new(std::hint::black_box(1u8));
    let page = (&raw const *written).addr() as u64 / rustix::param::page_size() as u64;
    let mut entry = [0u8; 8];
    fs::File::open("/proc/self/pagemap").and_then(|map| map.read_exact_at(&mut entry, page * 8)).is_ok()
        && u64::from_ne_bytes(entry) >> 55 & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: TrackerFacts = TrackerFacts {
        pagemap_scan: true,
        userfaultfd: None,
        soft_dirty: true,
        can_inject: true,
        may_trace_all: true,
        ptrace_scope: 0,
        large_pages: false,
    };

    #[test]
    fn each_tier_says_why_it_is_not_there() {
        let table = [
            (ALL, [true, true, true], ""),
            (TrackerFacts { pagemap_scan: false, ..ALL }, [false, true, true], "6.7"),
            (TrackerFacts { userfaultfd: Some("no".into()), ..ALL }, [false, true, true], "CONFIG_USERFAULTFD"),
            (TrackerFacts { can_inject: false, ..ALL }, [false, true, true], "x86"),
            (TrackerFacts { ptrace_scope: 3, ..ALL }, [false, true, true], "is 3"),
            (TrackerFacts { ptrace_scope: 2, ..ALL }, [true, true, true], ""),
            (TrackerFacts { ptrace_scope: 2, may_trace_all: false, ..ALL }, [false, true, true], "CAP_SYS_PTRACE"),
            (TrackerFacts { ptrace_scope: 1, may_trace_all: false, ..ALL }, [true, true, true], "this daemon starts"),
            (TrackerFacts { large_pages: true, ..ALL }, [true, true, true], "2 MiB"),
            (TrackerFacts { soft_dirty: false, ..ALL }, [true, false, true], ""),
        ];
        for (facts, available, why) in table {
            let verdicts = facts.verdicts();
            assert_eq!(verdicts.iter().map(|v| v.available).collect::<Vec<_>>(), available, "{facts:?}");
            assert!(verdicts[0].why.contains(why), "{why}: {verdicts:?}");
            assert!(verdicts.iter().all(|v| v.available || !v.why.is_empty()), "{verdicts:?}");
        }
    }

    #[test]
    fn settings_of_the_kernel_are_read() {
        assert!(has_sys_ptrace("Name:\tx\nCapEff:\t000001ffffffffff\n"));
        assert!(!has_sys_ptrace("CapEff:\t0000000000000400\n"));
        assert!(!has_sys_ptrace(""));
        let table =
            [("always [madvise] never", true), ("always within_size advise [never] deny force", false), ("", false)];
        for (text, large) in table {
            assert_eq!(may_be_large(text), large, "{text}");
        }
    }
}
