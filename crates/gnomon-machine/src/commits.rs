//! Which checkpoint counts as committed for a guest with several shadows: the newest that every shadow has that is waited
//! for.
//!
//! ```text
//!              join(n): it has a part in checkpoint n      sealed(≥ n)
//!   nobody ───────────────────────────────────────► waited ───────────► heir ──┐
//!      ▲                                              │ doubt                  │ doubt: from here on it is not named
//!      └──────── leave: it was struck off, on record ─┴────────────────────────┘
//! ```
//! What the guest sends after checkpoint n waits for a shadow that had its first part in n; what it sent before is in n. So
//! a shadow that has sealed n has all that has left since, and may be named as an heir. One that is to be waited for no
//! more is in doubt first: it is named no more, and still waited for, until whoever names heirs has struck it off.

use std::collections::BTreeMap;

/// The shadows that are waited for, by name.
#[derive(Debug, Default)]
pub struct Commits {
    waited: BTreeMap<String, Part>,
}

/// What is known of one.
#[derive(Clone, Copy, Debug)]
struct Part {
    /// The first checkpoint it had a part in.
    from: u64,
    /// The newest that it has said to have since.
    sealed: Option<u64>,
    in_doubt: bool,
}

impl Commits {
    /// A shadow is waited for that was so before this daemon began: nothing is known of what it has.
    pub fn expect(&mut self, shadow: &str) {
        self.join(shadow, 0);
    }

    /// The guest stands for a checkpoint that a shadow has a part in. Does nothing if it is waited for already.
    pub fn join(&mut self, shadow: &str, checkpoint: u64) {
        let part = Part { from: checkpoint, sealed: None, in_doubt: false };
        self.waited.entry(shadow.to_string()).or_insert(part);
    }

    /// A shadow has said that it has this checkpoint. Whether it has all that has left, or may leave, without it: it may be
    /// named as an heir.
    pub fn sealed(&mut self, shadow: &str, checkpoint: u64) -> bool {
        let Some(part) = self.waited.get_mut(shadow) else { return false };
        part.sealed = part.sealed.max(Some(checkpoint));
        part.sealed >= Some(part.from) && !part.in_doubt
    }

    /// A shadow is about to be struck off. It is waited for until it [leaves](Commits::leave).
    pub fn doubt(&mut self, shadow: &str) {
        if let Some(part) = self.waited.get_mut(shadow) {
            part.in_doubt = true;
        }
    }

    /// A shadow was struck off, and is waited for no more.
    pub fn leave(&mut self, shadow: &str) {
        self.waited.remove(shadow);
    }

    /// Checkpoints are numbered anew: what was sealed counts no more.
    pub fn begin_anew(&mut self) {
        self.waited.values_mut().for_each(|part| (part.from, part.sealed) = (0, None));
    }

    /// Whether a shadow is waited for.
    pub fn waits_for(&self, shadow: &str) -> bool {
        self.waited.contains_key(shadow)
    }

    /// Whether another one than this is waited for, and not in doubt.
    pub fn has_others(&self, shadow: &str) -> bool {
        self.waited.iter().any(|(other, part)| other != shadow && !part.in_doubt)
    }

    /// The newest checkpoint that all have; `None` when nobody is waited for.
    pub fn committed(&self) -> Option<u64> {
        self.waited.values().map(|part| part.sealed.unwrap_or(0).max(part.from)).min()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_slowest_of_those_that_are_waited_for_decides() {
        let mut commits = Commits::default();
        assert_eq!(commits.committed(), None);
        commits.join("b", 3);
        assert_eq!(commits.committed(), Some(3), "what was sent before is in it");
        assert!(!commits.sealed("b", 2), "it may have been sent before it was waited for");
        assert!(commits.sealed("b", 5));
        commits.join("c", 7);
        commits.join("b", 7);
        assert!(commits.sealed("b", 9) && !commits.sealed("c", 6));
        assert_eq!(commits.committed(), Some(7));
        commits.doubt("c");
        assert!(!commits.sealed("c", 8), "it is about to be struck off");
        assert_eq!((commits.committed(), commits.has_others("b")), (Some(8), false));
        commits.leave("c");
        assert_eq!((commits.committed(), commits.waits_for("c")), (Some(9), false));
        assert!(!commits.sealed("c", 10));
        commits.begin_anew();
        assert_eq!(commits.committed(), Some(0));
    }

    #[derive(Clone, Debug)]
    enum Event {
        /// The guest stands for the next checkpoint; these shadows have a part in it, and ask to be waited for.
        Stands([bool; 3]),
        /// A shadow has sealed the newest that it had a part in.
        Seals(usize),
        StruckOff(usize),
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            3 => any::<[bool; 3]>().prop_map(Event::Stands),
            4 => (0usize..3).prop_map(Event::Seals),
            1 => (0usize..3).prop_map(Event::StruckOff),
        ]
    }

    proptest! {
        /// Whoever may be named as an heir has the state of all that has left.
        #[test]
        fn an_heir_lacks_nothing_that_has_left(events in prop::collection::vec(event(), 0..60)) {
            const NAMES: [&str; 3] = ["b", "c", "d"];
            let mut commits = Commits::default();
            // Its newest checkpoint, the newest that it has a part in, and whether it is named.
            let mut shadows = [(0u64, 0u64, false); 3];
            // What was sent before this checkpoint has left.
            let (mut newest, mut left) = (0, 0);
            for event in events {
                match event {
                    Event::Stands(parts) => {
                        newest += 1;
                        for (name, shadow) in parts.iter().zip(NAMES.iter().zip(&mut shadows)).filter(|(part, _)| **part).map(|(_, both)| both) {
                            shadow.1 = newest;
                            commits.join(name, newest);
                        }
                    }
                    Event::Seals(one) => {
                        shadows[one].0 = shadows[one].1;
                        shadows[one].2 |= commits.sealed(NAMES[one], shadows[one].0);
                    }
                    Event::StruckOff(one) => {
                        commits.doubt(NAMES[one]);
                        shadows[one].2 = false;
                        commits.leave(NAMES[one]);
                    }
                }
                left = left.max(commits.committed().unwrap_or(newest + 1));
                for (name, (has, _, named)) in NAMES.iter().zip(&shadows) {
                    prop_assert!(!named || *has >= left.min(newest), "{name} has {has}, and all before {left} has left");
                }
            }
        }
    }
}
