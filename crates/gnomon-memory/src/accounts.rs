//! The accounts: every block is in exactly one state, and nothing is lost between them.
//!
//! ```text
//!   begin ──► populating ──► staged ⇄ reserved ──► assigned ◄── found at a guest
//!                  │            │         │            │
//!                  └────────────┴────┬────┴────────────┘
//!                                    ▼
//!                                 leaving ──► released
//! ```
//!
//! A block that was found again after a restart enters as staged (at the holder) or assigned (at a guest). What was
//! created is the sum of all states, in number and in bytes; [`Ledger::check`] counts anew.

use std::collections::{BTreeMap, HashMap};

use gnomon_terms::Bytes;

use crate::{
    block::BlockId,
    groups::{GroupName, PageKind},
    numa::NumaNode,
};

/// Where a block is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Its memory is being allocated.
    Populating,
    /// Allocated, zero, waiting.
    Staged,
    /// Taken for a request and not at a guest yet.
    Reserved,
    /// At the guest of this VM.
    Assigned(String),
    /// On its way back to the host.
    Leaving,
}

/// A number of blocks and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// How many.
    pub blocks: u64,
    /// How much.
    pub bytes: Bytes,
}

/// Blocks by state, of one group or of the host, since the daemon started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Accounts {
    /// Made, or found again.
    pub created: Tally,
    /// Being allocated.
    pub populating: Tally,
    /// Waiting.
    pub staged: Tally,
    /// Taken for a request.
    pub reserved: Tally,
    /// At guests.
    pub assigned: Tally,
    /// On their way back to the host.
    pub leaving: Tally,
    /// Back at the host.
    pub released: Tally,
}

/// A change of state that no block makes, or accounts that do not add up: a mistake of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Imbalance {
    /// No such change.
    #[error("block {id} cannot go from {from:?} to {to:?}")]
    NoSuchStep {
        /// Which block.
        id: BlockId,
        /// Where it is; `None` when it is nowhere.
        from: Option<State>,
        /// Where it should go; `None` when it should be released.
        to: Option<State>,
    },
    /// A sum is not what its parts say.
    #[error("the accounts of {whose} do not balance: {told:?} on the books, {counted:?} counted")]
    Sum {
        /// A group, or the host.
        whose: String,
        /// What the books say.
        told: Box<Accounts>,
        /// What there is.
        counted: Box<Accounts>,
    },
}

/// One block on the books.
#[derive(Clone, Debug)]
pub(crate) struct Entry<B> {
    pub(crate) group: GroupName,
    pub(crate) size: Bytes,
    pub(crate) pages: PageKind,
    pub(crate) state: State,
    /// The node it is on, as far as that is known; nothing on a host with one.
    pub(crate) node: Option<NumaNode>,
    /// What is kept for it; nothing before there is a block.
    pub(crate) block: Option<B>,
}

/// The books. `B` is what is kept for each block.
#[derive(Debug)]
pub(crate) struct Ledger<B> {
    entries: HashMap<BlockId, Entry<B>>,
    groups: BTreeMap<GroupName, Accounts>,
    host: Accounts,
}

impl Tally {
    pub(crate) fn add(&mut self, bytes: Bytes) {
        self.blocks += 1;
        self.bytes.0 += bytes.0;
    }

    fn remove(&mut self, bytes: Bytes) {
        self.blocks -= 1;
        self.bytes.0 -= bytes.0;
    }
}

impl Accounts {
    /// Memory that is idle or on its way to be: populating, staged and reserved.
    pub fn set_aside(&self) -> Bytes {
        Bytes(self.populating.bytes.0 + self.staged.bytes.0 + self.reserved.bytes.0)
    }

    /// Blocks that are anywhere but back at the host.
    pub fn living(&self) -> u64 {
        let states = [self.populating, self.staged, self.reserved, self.assigned, self.leaving];
        states.iter().map(|tally| tally.blocks).sum()
    }

    /// Whether what was created is the sum of all states.
    pub fn balance(&self) -> bool {
        let states =
            [self.populating, self.staged, self.reserved, self.assigned, self.leaving, self.released].into_iter();
        let sum = states.fold(Tally::default(), |sum, tally| Tally {
            blocks: sum.blocks + tally.blocks,
            bytes: Bytes(sum.bytes.0 + tally.bytes.0),
        });
        sum == self.created
    }

    fn of(&mut self, state: Option<&State>) -> &mut Tally {
        match state {
            Some(State::Populating) => &mut self.populating,
            Some(State::Staged) => &mut self.staged,
            Some(State::Reserved) => &mut self.reserved,
            Some(State::Assigned(_)) => &mut self.assigned,
            Some(State::Leaving) => &mut self.leaving,
            None => &mut self.released,
        }
    }
}

impl<B> Default for Ledger<B> {
    fn default() -> Ledger<B> {
        Ledger { entries: HashMap::new(), groups: BTreeMap::new(), host: Accounts::default() }
    }
}

impl<B> Ledger<B> {
    /// Enters a block: one that is made (populating), or one that was found again (staged or assigned).
    pub(crate) fn enter(&mut self, id: BlockId, entry: Entry<B>) -> Result<(), Imbalance> {
        let known = self.entries.get(&id).map(|known| known.state.clone());
        let enters = matches!(entry.state, State::Populating | State::Staged | State::Assigned(_));
        if known.is_some() || !enters {
            return Err(Imbalance::NoSuchStep { id, from: known, to: Some(entry.state) });
        }
        for accounts in [&mut self.host, self.groups.entry(entry.group.clone()).or_default()] {
            accounts.created.add(entry.size);
            accounts.of(Some(&entry.state)).add(entry.size);
        }
        self.entries.insert(id, entry);
        Ok(())
    }

    /// Passes a block to another state.
    pub(crate) fn pass(&mut self, id: BlockId, to: State) -> Result<(), Imbalance> {
        let refused = |from| Imbalance::NoSuchStep { id, from, to: Some(to.clone()) };
        let entry = self.entries.get_mut(&id).ok_or_else(|| refused(None))?;
        if !may_pass(&entry.state, &to) {
            return Err(refused(Some(entry.state.clone())));
        }
        for accounts in [&mut self.host, self.groups.entry(entry.group.clone()).or_default()] {
            accounts.of(Some(&entry.state)).remove(entry.size);
            accounts.of(Some(&to)).add(entry.size);
        }
        entry.state = to;
        Ok(())
    }

    /// Strikes a block out that is back at the host.
    pub(crate) fn release(&mut self, id: BlockId) -> Result<Entry<B>, Imbalance> {
        match self.entries.remove(&id) {
            Some(entry) if entry.state == State::Leaving => {
                for accounts in [&mut self.host, self.groups.entry(entry.group.clone()).or_default()] {
                    accounts.leaving.remove(entry.size);
                    accounts.released.add(entry.size);
                }
                Ok(entry)
            }
            Some(entry) => {
                let from = Some(entry.state.clone());
                self.entries.insert(id, entry);
                Err(Imbalance::NoSuchStep { id, from, to: None })
            }
            None => Err(Imbalance::NoSuchStep { id, from: None, to: None }),
        }
    }

    /// One block on the books.
    pub(crate) fn get(&self, id: BlockId) -> Option<&Entry<B>> {
        self.entries.get(&id)
    }

    /// Keeps something for a block, and notes where it is.
    pub(crate) fn keep(&mut self, id: BlockId, block: B, node: Option<NumaNode>) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.node = node;
            entry.block = Some(block);
        }
    }

    /// All blocks, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (BlockId, &Entry<B>)> {
        self.entries.iter().map(|(id, entry)| (*id, entry))
    }

    /// The accounts of the host.
    pub(crate) fn host(&self) -> Accounts {
        self.host
    }

    /// The accounts of a group: zeros when it never had a block.
    pub(crate) fn group(&self, group: &GroupName) -> Accounts {
        self.groups.get(group).copied().unwrap_or_default()
    }

    /// The accounts of all groups that have or had a block.
    pub(crate) fn groups(&self) -> impl Iterator<Item = (&GroupName, &Accounts)> {
        self.groups.iter()
    }

    /// Forgets the history of a group that has no block any more. The host's accounts keep it.
    pub(crate) fn forget(&mut self, group: &GroupName) {
        if self.groups.get(group).is_some_and(|accounts| accounts.living() == 0) {
            self.groups.remove(group);
        }
    }

    /// Counts anew and compares. Takes time in proportion to the number of blocks.
    pub(crate) fn check(&self) -> Result<(), Imbalance> {
        let mut counted: BTreeMap<&GroupName, Accounts> = BTreeMap::new();
        let mut all = Accounts::default();
        for entry in self.entries.values() {
            all.of(Some(&entry.state)).add(entry.size);
            counted.entry(&entry.group).or_default().of(Some(&entry.state)).add(entry.size);
        }
        compare("the host", &self.host, all)?;
        for (group, told) in &self.groups {
            compare(group.as_str(), told, counted.remove(group).unwrap_or_default())?;
        }
        match counted.into_iter().next() {
            Some((group, counted)) => compare(group.as_str(), &Accounts::default(), counted),
            None => Ok(()),
        }
    }
}

fn may_pass(from: &State, to: &State) -> bool {
    matches!(
        (from, to),
        (State::Populating | State::Reserved, State::Staged)
            | (State::Staged, State::Reserved)
            | (State::Reserved, State::Assigned(_))
            | (State::Populating | State::Staged | State::Reserved | State::Assigned(_), State::Leaving)
    )
}

/// What has left the books is told by them alone.
fn compare(whose: &str, told: &Accounts, mut counted: Accounts) -> Result<(), Imbalance> {
    counted.released = told.released;
    counted.created = told.created;
    match counted == *told && told.balance() {
        true => Ok(()),
        false => Err(Imbalance::Sum { whose: whose.to_owned(), told: Box::new(*told), counted: Box::new(counted) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(state: State) -> Entry<()> {
        let group = GroupName::new("web").expect("a name");
        Entry { group, size: Bytes(7), pages: PageKind::Small, state, node: None, block: None }
    }

    fn states() -> Vec<State> {
        vec![State::Populating, State::Staged, State::Reserved, State::Assigned("vm".into()), State::Leaving]
    }

    #[test]
    fn a_block_goes_only_where_it_may() {
        // Rows: from; columns: to, both in the order of `states`.
        let table = [
            [false, true, false, false, true],
            [false, false, true, false, true],
            [false, true, false, true, true],
            [false, false, false, false, true],
            [false, false, false, false, false],
        ];
        for (from, row) in states().iter().zip(table) {
            for (to, expected) in states().iter().zip(row) {
                assert_eq!(may_pass(from, to), expected, "{from:?} to {to:?}");
            }
        }
    }

    #[test]
    fn a_life_is_balanced_at_every_step() {
        let mut ledger = Ledger::default();
        let id = BlockId(1);
        ledger.enter(id, entry(State::Populating)).expect("entered");
        for to in [State::Staged, State::Reserved, State::Assigned("vm".into()), State::Leaving] {
            ledger.pass(id, to).expect("a step");
            ledger.check().expect("balanced");
            assert!(ledger.host().balance());
        }
        ledger.release(id).expect("released");
        ledger.check().expect("balanced");
        let accounts = ledger.host();
        assert_eq!((accounts.created, accounts.released), (Tally { blocks: 1, bytes: Bytes(7) }, accounts.created));
        assert_eq!(accounts.living(), 0);
    }

    #[test]
    fn a_block_is_entered_once_and_released_once() {
        let mut ledger = Ledger::default();
        ledger.enter(BlockId(1), entry(State::Staged)).expect("entered");
        assert!(ledger.enter(BlockId(1), entry(State::Staged)).is_err());
        assert!(ledger.enter(BlockId(2), entry(State::Reserved)).is_err());
        assert!(ledger.enter(BlockId(2), entry(State::Leaving)).is_err());
        assert!(ledger.release(BlockId(1)).is_err(), "it has not left");
        ledger.pass(BlockId(1), State::Leaving).expect("left");
        ledger.release(BlockId(1)).expect("released");
        assert!(ledger.release(BlockId(1)).is_err());
        assert!(ledger.pass(BlockId(1), State::Staged).is_err());
        ledger.check().expect("balanced");
    }

    #[test]
    fn a_group_is_forgotten_when_it_has_no_block() {
        let mut ledger = Ledger::default();
        let group = GroupName::new("web").expect("a name");
        ledger.enter(BlockId(1), entry(State::Staged)).expect("entered");
        ledger.forget(&group);
        assert_eq!(ledger.groups().count(), 1, "it has a block");
        ledger.pass(BlockId(1), State::Leaving).expect("left");
        ledger.release(BlockId(1)).expect("released");
        ledger.forget(&group);
        assert_eq!((ledger.groups().count(), ledger.host().released.blocks), (0, 1));
        ledger.check().expect("balanced");
    }

    #[test]
    fn books_that_lie_are_found_out() {
        let mut ledger = Ledger::default();
        ledger.enter(BlockId(1), entry(State::Staged)).expect("entered");
        ledger.host.staged.add(Bytes(1));
        assert!(matches!(ledger.check(), Err(Imbalance::Sum { .. })));
    }
}
