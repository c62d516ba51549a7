//! Which pages the shadow does not have, or may not have.
//!
//! ```text
//!          scan              sent               Seal sent             Sealed
//!   dirty ──────► owed ──────────────► going ──────────────► unsealed ────────► forgotten
//!                  ▲                     │                       │
//!                  └─────────────────────┴───────────────────────┘  the session is lost
//! ```
//! A page is in here until the shadow has said that it has applied the checkpoint with it.

use std::collections::VecDeque;

use gnomon_terms::{PageCount, PageRun, PageSet};

/// The pages of one guest that its shadow is not known to have.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// To be sent.
    pub owed: PageSet,
    /// Sent for the checkpoint that is being made.
    going: PageSet,
    /// Sent with checkpoints that the shadow has not answered for, oldest first.
    unsealed: VecDeque<(u64, PageSet)>,
    /// The newest checkpoint the shadow is known to have.
    sealed: Option<u64>,
}

/// How a session begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resume {
    /// The shadow has a checkpoint of this engine's: what changed since is owed.
    Continues,
    /// The shadow has nothing to build on: everything is owed. It had better be told to begin anew
    /// ([`crate::shadow::Shadow::start_over`]), or it has to stage all of the guest's memory.
    StartsOver,
}

impl Ledger {
    /// All that is owed; it counts as sent from here on. What is written from now on is owed anew.
    pub fn take(&mut self) -> PageSet {
        let pages = std::mem::take(&mut self.owed);
        self.going.union(&pages);
        pages
    }

    /// These were taken, and not all of them could be read: they are owed as before.
    pub fn give_back(&mut self, pages: &PageSet) {
        self.owed.union(pages);
    }

    /// The checkpoint that is being made is complete.
    pub fn close(&mut self, checkpoint: u64) {
        self.unsealed.push_back((checkpoint, std::mem::take(&mut self.going)));
    }

    /// The shadow has this checkpoint.
    pub fn sealed(&mut self, checkpoint: u64) {
        self.unsealed.retain(|(number, _)| *number > checkpoint);
        self.sealed = self.sealed.max(Some(checkpoint));
    }

    /// How many checkpoints are on their way.
    pub fn unsealed(&self) -> usize {
        self.unsealed.len()
    }

    /// How many will be on their way once it is heard that this one was sealed.
    pub fn unsealed_after(&self, sealed: Option<u64>) -> usize {
        self.unsealed.iter().filter(|(number, _)| Some(*number) > sealed).count()
    }

    /// What has to be sealed so that fewer than this many are on their way; `None` when they are.
    pub fn in_the_way(&self, ahead: usize) -> Option<u64> {
        let too_many = (self.unsealed.len() + 1).checked_sub(ahead)?;
        self.unsealed.get(too_many.checked_sub(1)?).map(|(number, _)| *number)
    }

    /// The newest checkpoint the shadow is known to have.
    pub fn newest_sealed(&self) -> Option<u64> {
        self.sealed
    }

    /// The session is over: the shadow has dropped what it had not applied.
    pub fn lose(&mut self) {
        self.owed.union(&std::mem::take(&mut self.going));
        for (_, pages) in self.unsealed.drain(..) {
            self.owed.union(&pages);
        }
    }

    /// A session begins with a shadow that has checkpoint `has`; `last` is the newest one that was sent. What was on
    /// its way is settled by this.
    pub fn resume(&mut self, has: Option<u64>, last: u64, all: PageCount) -> Resume {
        let resume = how_to_resume(self.sealed, has, last);
        if let (Resume::Continues, Some(checkpoint)) = (resume, has) {
            self.sealed(checkpoint);
        }
        self.lose();
        if resume == Resume::StartsOver {
            self.sealed = None;
            self.owed.insert(PageRun::new(0, all.0));
        }
        resume
    }
}

/// A shadow with an older checkpoint than it had said to have, or with a newer one than was ever sent, is another one,
/// or has forgotten.
fn how_to_resume(sealed: Option<u64>, has: Option<u64>, last: u64) -> Resume {
    match has {
        Some(has) if has <= last && sealed.is_none_or(|sealed| sealed <= has) => Resume::Continues,
        _ => Resume::StartsOver,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_shadow_has_decides_how_a_session_begins() {
        use Resume::{Continues, StartsOver};
        let table = [
            ("the first session", None, None, 0, StartsOver),
            ("it never sealed any", None, None, 1, StartsOver),
            ("its answer was lost", None, Some(1), 1, Continues),
            ("as it said", Some(7), Some(7), 9, Continues),
            ("later answers were lost", Some(7), Some(9), 9, Continues),
            ("it has forgotten", Some(7), Some(6), 9, StartsOver),
            ("it has forgotten all", Some(7), None, 9, StartsOver),
            ("of another engine", Some(7), Some(12), 9, StartsOver),
            ("this engine is new", None, Some(12), 0, StartsOver),
        ];
        for (name, sealed, has, last, expected) in table {
            assert_eq!(how_to_resume(sealed, has, last), expected, "{name}");
        }
    }

    #[test]
    fn a_lost_session_owes_all_that_is_not_sealed() {
        let mut ledger = Ledger::default();
        for checkpoint in 1..=3 {
            ledger.owed.insert(PageRun::new(checkpoint * 10, 1));
            ledger.take();
            ledger.close(checkpoint);
        }
        ledger.sealed(1);
        ledger.owed.insert(PageRun::new(40, 1));
        ledger.take();
        assert_eq!((ledger.unsealed(), ledger.owed.count()), (2, PageCount(0)));
        assert_eq!((ledger.unsealed_after(Some(2)), ledger.unsealed_after(None)), (1, 2));
        assert_eq!((ledger.in_the_way(3), ledger.in_the_way(2), ledger.in_the_way(1)), (None, Some(2), Some(3)));
        assert_eq!(ledger.resume(Some(2), 3, PageCount(100)), Resume::Continues);
        let owed: Vec<u64> = ledger.owed.pages().map(|page| page.0).collect();
        assert_eq!((owed, ledger.unsealed()), (vec![30, 40], 0));
        assert_eq!(ledger.resume(None, 3, PageCount(100)), Resume::StartsOver);
        assert_eq!(ledger.owed.count(), PageCount(100));
    }
}
