//! Trust groups by name, and the limits of what is staged for them.
//!
//! A trust group is a set of VMs that may use one pool. Memory of one group is never seen by another: a block is made
//! for a group, goes to a VM of that group, and goes from there to the host.

use std::{fmt, str::FromStr, sync::Arc, time::Duration};

use gnomon_terms::{Bytes, BytesPerSecond, ErrorKind};

use crate::numa::NumaNode;

/// The longest name of a group. It is part of a memfd's name, of which the kernel takes 249 bytes.
const LONGEST_NAME: usize = 64;

/// The name of a trust group: 1 to 64 of `a`–`z`, `A`–`Z`, `0`–`9`, `-`, `_` and `.`, the first no punctuation. Cheap to
/// clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupName(Arc<str>);

/// What is no name of a group.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{text}' is no name of a group: take 1 to {LONGEST_NAME} letters, digits, '-', '_' or '.', and begin with a letter \
     or a digit"
)]
pub struct BadGroupName {
    /// What was given: its beginning, when it is long.
    pub text: String,
}

/// The pages that a block is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PageKind {
    /// 4 KiB, as the host has them for everybody.
    #[default]
    Small,
    /// 2 MiB, from the pages that the host has reserved for this (`vm.nr_hugepages`).
    Huge,
}

/// Limits of one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupLimits {
    /// The most that is staged, being populated or reserved for it at once.
    pub budget: Bytes,
    /// A size that nobody has asked for during this time is not kept staged.
    pub max_age: Duration,
    /// The most that is staged for it on average, whatever is asked for: a guest that asks and returns in a loop costs
    /// no more than this. A budget's worth may be staged at once.
    pub refill: BytesPerSecond,
    /// What its blocks are made of.
    pub pages: PageKind,
    /// The node that its blocks are to be on, as long as that has room; left open, the one where its guests run.
    pub node: Option<NumaNode>,
}

/// Limits of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostLimits {
    /// The most that is staged, being populated or reserved for all groups together.
    pub budget: Bytes,
    /// Memory that must stay available on the host: staging stops above it, and gives back below it.
    pub floor: Bytes,
    /// A block that no target wants any more is kept for this time: targets that go up and down cost nothing.
    pub linger: Duration,
}

impl GroupName {
    /// Checks a name.
    pub fn new(text: &str) -> Result<GroupName, BadGroupName> {
        let letter = |c: u8| c.is_ascii_alphanumeric();
        let fits = (1..=LONGEST_NAME).contains(&text.len())
            && text.bytes().next().is_some_and(letter)
            && text.bytes().all(|c| letter(c) || matches!(c, b'-' | b'_' | b'.'));
        match fits {
            true => Ok(GroupName(Arc::from(text))),
            false => Err(BadGroupName { text: text.chars().take(LONGEST_NAME).collect() }),
        }
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl BadGroupName {
    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Refused
    }
}

impl FromStr for GroupName {
    type Err = BadGroupName;

    fn from_str(text: &str) -> Result<GroupName, BadGroupName> {
        GroupName::new(text)
    }
}

impl fmt::Display for GroupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl PageKind {
    /// Bytes in one page.
    pub fn size(self) -> Bytes {
        match self {
            PageKind::Small => Bytes(4 << 10),
            PageKind::Huge => Bytes(2 << 20),
        }
    }
}

impl Default for GroupLimits {
    /// 2 GiB, an hour, 64 MiB a second (a twentieth of what one processor populates), 4 KiB pages, no node.
    fn default() -> GroupLimits {
        GroupLimits {
            budget: Bytes(2 << 30),
            max_age: Duration::from_secs(3600),
            refill: BytesPerSecond(64 << 20),
            pages: PageKind::Small,
            node: None,
        }
    }
}

impl Default for HostLimits {
    /// 8 GiB staged at most, 2 GiB left available, half a minute of lingering.
    fn default() -> HostLimits {
        HostLimits { budget: Bytes(8 << 30), floor: Bytes(2 << 30), linger: Duration::from_secs(30) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_letters_digits_and_a_little_punctuation() {
        for good in ["web", "0", "Team-A_2.eu", &"x".repeat(64)] {
            assert_eq!(GroupName::new(good).expect("a name").as_str(), good);
        }
        for bad in ["", "-web", ".", "a:b", "a/b", "a b", "naïve", "a\n", &"x".repeat(65)] {
            assert!(GroupName::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_name_that_is_none_is_told_shortly() {
        let error = GroupName::new(&"ü".repeat(10_000)).expect_err("no name");
        assert!(error.to_string().len() < 400);
        assert_eq!(error.kind(), ErrorKind::Refused);
    }
}
