//! How much memory a VM needs, from what the host sees and what its guest says.
//!
//! ```text
//!   backing files (fstat) ──► allocated: what it has ever touched and not given back; the host's own, nobody can lie
//!   agent (meminfo)       ──► total − available: what it needs now; the guest's word, believed up to what is allocated
//!   agent (PSI)           ──► it waits for memory: it needs all it has
//! ```
//! A guest that lies moves its own demand between nothing and what the host has really allocated for it, and nothing else.
//!
//! Source: Linux, Documentation/filesystems/proc.rst (`MemAvailable`), Documentation/accounting/psi.rst.

use gnomon_terms::Bytes;

/// From this share of ten seconds in which something waited for memory, in hundredths of a percent, a guest counts as short:
/// a tenth. Reading its programs in makes a guest wait for some hundredths without being short of anything.
pub const SHORT: u32 = 1000;

/// What the host sees of a VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// What it was given: what it was started with, and what was added.
    pub given: Bytes,
    /// What is allocated in its backing files; `None` when they cannot be looked at.
    pub allocated: Option<Bytes>,
}

/// What a guest says of its memory. Not trusted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// All that its kernel manages.
    pub total: Bytes,
    /// What it could give to programs without swapping.
    pub available: Bytes,
    /// What nothing uses.
    pub free: Bytes,
    /// The share of the last ten seconds in which something waited for memory, in hundredths of a percent; `None` when its
    /// kernel does not say.
    pub waiting: Option<u32>,
}

/// What the VM needs: never more than it was given. Without a word from its guest, what is allocated; without that too, all.
pub fn demand(seen: &Seen, said: Option<&Said>) -> Bytes {
    let most = seen.allocated.unwrap_or(seen.given).min(seen.given);
    let Some(said) = said else { return most };
    if said.waiting.is_some_and(|waiting| waiting >= SHORT) {
        return seen.given;
    }
    Bytes(said.total.0.saturating_sub(said.available.0)).min(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn what_a_vm_needs() {
        let said = |total, available, waiting| {
            let [total, available] = [total, available].map(|mib| Bytes(mib * MIB));
            Some(Said { total, available, free: available, waiting })
        };
        // (given, allocated, said, needed), in MiB
        let table = [
            (1024, Some(700), said(980, 400, Some(0)), 580),
            (1024, Some(700), said(980, 400, None), 580),
            (1024, Some(700), None, 700),
            (1024, None, None, 1024),
            (1024, None, said(980, 400, Some(0)), 580),
            // Short of memory: all it has.
            (1024, Some(700), said(980, 400, Some(1000)), 1024),
            // Lies: within what is allocated, or nothing.
            (1024, Some(700), said(u64::MAX / MIB, 0, Some(0)), 700),
            (1024, Some(700), said(0, 9999, Some(0)), 0),
            (1024, Some(4096), None, 1024),
        ];
        for (given, allocated, said, needed) in table {
            let seen = Seen { given: Bytes(given * MIB), allocated: allocated.map(|mib: u64| Bytes(mib * MIB)) };
            assert_eq!(demand(&seen, said.as_ref()), Bytes(needed * MIB), "{seen:?} {said:?}");
        }
    }
}
