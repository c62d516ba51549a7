//! The pool: who owns the blocks, and what is to be done next. Pure: time is an argument, nothing blocks.
//!
//! One pool holds the groups of a host. It answers two questions: *what serves this request* ([`Pool::take`]: a look at
//! the shelves, no system call), and *what is the next chore* ([`Pool::chore`]: give a block back, stage one, or rest).
//! The chore is the difference between what is wanted and what there is; after it was done the question is asked anew,
//! so nothing is planned ahead and nothing has to be replayed.

mod allowance;
mod chores;
mod group;
#[cfg(test)]
mod lives;
#[cfg(test)]
mod on_nodes;
#[cfg(test)]
mod tests;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use gnomon_terms::{Bytes, Instant};

use crate::{
    accounts::{Entry, Imbalance, Ledger, State},
    block::BlockId,
    fit::{self, Request},
    groups::{GroupLimits, GroupName, HostLimits},
    numa::NumaNode,
    stats::GroupStats,
};
use chores::Going;
use group::{Group, Waiting};

pub(crate) use chores::Chore;

/// Sizes that a target may name. A planner wants about ten; beyond this something is wrong with it.
pub const MOST_SIZES: usize = 64;

/// What a request was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Grant<B> {
    /// The blocks, largest first, and what is kept for each.
    pub(crate) blocks: Vec<(BlockId, B)>,
    pub(crate) hit: Bytes,
    pub(crate) missing: Bytes,
}

/// What the pool does not do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// There is a group of this name.
    #[error("there is a group '{group}' already: change its limits, or remove it first")]
    GroupExists {
        /// Which.
        group: GroupName,
    },
    /// There is no group of this name.
    #[error("there is no group '{group}': add it first")]
    NoGroup {
        /// Which.
        group: GroupName,
    },
    /// A target names too many sizes.
    #[error("a target of {count} sizes for group '{group}': {MOST_SIZES} is the most")]
    TooManySizes {
        /// For which group.
        group: GroupName,
        /// How many.
        count: usize,
    },
    /// A target names a size that no block of the group can have.
    #[error("a target of blocks of {} bytes for group '{group}', whose pages have {}", size.0, page.0)]
    BadSize {
        /// For which group.
        group: GroupName,
        /// The size.
        size: Bytes,
        /// The size of the group's pages.
        page: Bytes,
    },
    /// The pages of a group cannot change while it has blocks of the others.
    #[error("group '{group}' cannot have other pages: remove it and add it again")]
    OtherPages {
        /// Which.
        group: GroupName,
    },
    /// The books do not allow it.
    #[error(transparent)]
    Imbalance(#[from] Imbalance),
}

/// The state owner. `B` is what is kept for each block, cheap to clone.
#[derive(Debug)]
pub(crate) struct Pool<B> {
    host: HostLimits,
    groups: BTreeMap<GroupName, Group>,
    ledger: Ledger<B>,
    /// Blocks that are at no guest and since when they are staged: what is put back keeps its age.
    since: HashMap<BlockId, Instant>,
    next_id: u64,
    /// The most blocks that may be anywhere but back at the host.
    most_blocks: u64,
    /// Nothing is staged before this, because the host was in need.
    held_off_until: Instant,
}

impl<B: Clone> Pool<B> {
    /// An empty pool. Ids begin at `first_id`. When there are `most_blocks`, guests' own among them, no more are staged.
    pub(crate) fn new(host: HostLimits, first_id: u64, most_blocks: u64) -> Pool<B> {
        Pool {
            host,
            groups: BTreeMap::new(),
            ledger: Ledger::default(),
            since: HashMap::new(),
            next_id: first_id,
            most_blocks,
            held_off_until: Instant::ORIGIN,
        }
    }

    /// Adds a group. It has no target yet.
    pub(crate) fn add_group(&mut self, now: Instant, name: GroupName, limits: GroupLimits) -> Result<(), PoolError> {
        if self.groups.contains_key(&name) {
            return Err(PoolError::GroupExists { group: name });
        }
        self.groups.insert(name, Group::new(now, limits));
        Ok(())
    }

    /// Changes the limits of a group. What is over a smaller budget goes as chores.
    pub(crate) fn set_group_limits(&mut self, name: &GroupName, limits: GroupLimits) -> Result<(), PoolError> {
        let group = self.group_mut(name)?;
        if group.limits.pages != limits.pages {
            return Err(PoolError::OtherPages { group: name.clone() });
        }
        group.limits = limits;
        Ok(())
    }

    /// Changes the limits of the host. What is over a smaller budget goes as chores.
    pub(crate) fn set_host_limits(&mut self, host: HostLimits) {
        self.host = host;
    }

    /// The limits of the host.
    pub(crate) fn limits(&self) -> HostLimits {
        self.host
    }

    /// Removes a group. Returns its staged blocks, which are leaving now. Reserved ones are leaving when they are put
    /// back, assigned ones when their guests let them go.
    pub(crate) fn remove_group(&mut self, name: &GroupName) -> Result<Vec<BlockId>, PoolError> {
        let group = self.groups.remove(name).ok_or_else(|| PoolError::NoGroup { group: name.clone() })?;
        let staged: Vec<BlockId> = group.waiting().collect();
        staged.iter().try_for_each(|id| self.leaves(*id))?;
        self.ledger.forget(name);
        Ok(staged)
    }

    /// Sets what is to be staged for a group, by size. Counts of a size named twice are added.
    pub(crate) fn set_target(
        &mut self,
        now: Instant,
        name: &GroupName,
        target: &[(Bytes, u32)],
    ) -> Result<(), PoolError> {
        let group = self.group_mut(name)?;
        if target.len() > MOST_SIZES {
            return Err(PoolError::TooManySizes { group: name.clone(), count: target.len() });
        }
        let (page, mut wanted) = (group.limits.pages.size(), BTreeMap::new());
        for (size, count) in target {
            if !crate::block::is_size(*size, group.limits.pages) {
                return Err(PoolError::BadSize { group: name.clone(), size: *size, page });
            }
            let sum: &mut u32 = wanted.entry(*size).or_default();
            *sum = sum.saturating_add(*count);
        }
        group.set_target(now, &wanted);
        Ok(())
    }

    /// Says where a group's guests run: its blocks go there when there is room, and serve requests first.
    pub(crate) fn set_home(&mut self, name: &GroupName, node: Option<NumaNode>) -> Result<(), PoolError> {
        self.group_mut(name)?.home = node;
        Ok(())
    }

    /// Takes what serves a request best off the shelves: for a guest that runs on the node `near`, or where its group's do.
    pub(crate) fn take(
        &mut self,
        now: Instant,
        name: &GroupName,
        request: Request,
        near: Option<NumaNode>,
    ) -> Result<Grant<B>, PoolError> {
        let group = self.group_mut(name)?;
        let near = near.or_else(|| group.wanted_nodes().next());
        let is_near = |block: &Waiting| near.is_none() || block.node == near;
        let is_far = |block: &Waiting| !is_near(block);
        let choice = fit::choose_near(request, &group.stock(is_near), &group.stock(is_far));
        let mut taken: Vec<BlockId> = Vec::new();
        choice.near.iter().for_each(|stock| taken.extend(group.take(now, *stock, is_near)));
        choice.far.iter().for_each(|stock| taken.extend(group.take(now, *stock, is_far)));
        if choice.missing.0 > 0 {
            group.missed(now);
        }
        group.recorder.request(now, choice.hit, choice.missing);
        group.recorder.far(Bytes(choice.far.iter().map(|(size, count)| size.0 * u64::from(*count)).sum()));
        for id in &taken {
            self.ledger.pass(*id, State::Reserved)?;
        }
        self.level(now, name);
        // Largest first, and of equals those that are near.
        taken.sort_by_key(|id| Reverse(self.ledger.get(*id).map(|entry| entry.size)));
        let kept = |id: BlockId| Some((id, self.ledger.get(id)?.block.clone()?));
        let blocks = taken.into_iter().filter_map(kept).collect();
        Ok(Grant { blocks, hit: choice.hit, missing: choice.missing })
    }

    /// What is staged for a group on each node, as far as that is known.
    pub(crate) fn by_node(&self, name: &GroupName) -> BTreeMap<NumaNode, Bytes> {
        let mut nodes: BTreeMap<NumaNode, Bytes> = BTreeMap::new();
        let blocks = self.groups.get(name).into_iter().flat_map(Group::by_node);
        blocks.for_each(|(node, size)| nodes.entry(node).or_default().0 += size.0);
        nodes
    }

    /// How long a decision took.
    pub(crate) fn decided(&mut self, name: &GroupName, took: Duration) {
        if let Some(group) = self.groups.get_mut(name) {
            group.recorder.decided(took);
        }
    }

    /// Puts a reserved block back. False when its group is gone: it is leaving then.
    pub(crate) fn put_back(&mut self, now: Instant, id: BlockId) -> Result<bool, Imbalance> {
        let since = self.since.get(&id).copied().unwrap_or(now);
        self.shelve(now, id, since)
    }

    /// A reserved block goes to a guest.
    pub(crate) fn assign(&mut self, id: BlockId, vm: &str) -> Result<(), Imbalance> {
        self.ledger.pass(id, State::Assigned(vm.to_owned()))?;
        self.since.remove(&id);
        Ok(())
    }

    /// A staged block was found again. False when its group does not take it (there is none, or its pages differ): it
    /// is leaving then.
    pub(crate) fn found_staged(&mut self, now: Instant, id: BlockId, entry: Entry<B>) -> Result<bool, Imbalance> {
        self.ledger.enter(id, Entry { state: State::Populating, ..entry })?;
        self.shelve(now, id, now)
    }

    /// A block was found again that is not fully allocated: it is leaving.
    pub(crate) fn found_broken(&mut self, id: BlockId, entry: Entry<B>) -> Result<(), Imbalance> {
        self.ledger.enter(id, Entry { state: State::Populating, ..entry })?;
        self.leaves(id)
    }

    /// A block was found at a guest. One that was taken for a staged one never will be given to another.
    pub(crate) fn found_assigned(
        &mut self,
        now: Instant,
        id: BlockId,
        vm: &str,
        entry: Entry<B>,
    ) -> Result<(), Imbalance> {
        if self.ledger.get(id).is_some_and(|known| known.state == State::Staged) {
            if let Some(group) = self.groups.get_mut(&entry.group) {
                group.remove(entry.size, id);
            }
            self.ledger.pass(id, State::Reserved)?;
            self.level(now, &entry.group);
            return self.assign(id, vm);
        }
        self.ledger.enter(id, Entry { state: State::Assigned(vm.to_owned()), ..entry })
    }

    /// A guest let a block go: it is leaving now.
    pub(crate) fn returned(&mut self, id: BlockId) -> Result<(), Imbalance> {
        let told = self.ledger.get(id).map(|entry| (entry.state.clone(), entry.group.clone(), entry.size));
        match told {
            Some((State::Assigned(_), name, size)) => {
                self.leaves(id)?;
                if let Some(group) = self.groups.get_mut(&name) {
                    group.recorder.returned(size);
                }
                Ok(())
            }
            told => Err(Imbalance::NoSuchStep { id, from: told.map(|told| told.0), to: Some(State::Leaving) }),
        }
    }

    /// A VM has ended: the blocks that were assigned to it, which are leaving now.
    pub(crate) fn ended(&mut self, vm: &str) -> Result<Vec<BlockId>, Imbalance> {
        let assigned = |entry: &Entry<B>| matches!(&entry.state, State::Assigned(to) if to == vm);
        let ids: Vec<BlockId> = self.ledger.iter().filter(|(_, entry)| assigned(entry)).map(|(id, _)| id).collect();
        ids.iter().try_for_each(|id| self.leaves(*id))?;
        Ok(ids)
    }

    /// A leaving block is back at the host.
    pub(crate) fn released(&mut self, id: BlockId) -> Result<(), Imbalance> {
        let entry = self.ledger.release(id)?;
        if !self.groups.contains_key(&entry.group) {
            self.ledger.forget(&entry.group);
        }
        Ok(())
    }

    /// What is kept for a block.
    pub(crate) fn block(&self, id: BlockId) -> Option<B> {
        self.ledger.get(id)?.block.clone()
    }

    /// The blocks that no guest has seen and that may yet be given to one.
    pub(crate) fn unseen(&self) -> Vec<BlockId> {
        self.ledger.iter().filter(|(_, entry)| is_unseen(entry)).map(|(id, _)| id).collect()
    }

    /// What is kept for such a block; `None` when it is none.
    pub(crate) fn if_unseen(&self, id: BlockId) -> Option<B> {
        self.ledger.get(id).filter(|entry| is_unseen(entry))?.block.clone()
    }

    /// Whether there is nothing to look after.
    pub(crate) fn is_idle(&self) -> bool {
        self.groups.is_empty() && self.ledger.host().set_aside() == Bytes(0)
    }

    /// The books.
    pub(crate) fn ledger(&self) -> &Ledger<B> {
        &self.ledger
    }

    /// The names of the groups and their limits.
    pub(crate) fn group_limits(&self) -> impl Iterator<Item = (&GroupName, &GroupLimits)> {
        self.groups.iter().map(|(name, group)| (name, &group.limits))
    }

    /// What staging was worth for a group.
    pub(crate) fn stats(&self, now: Instant, name: &GroupName) -> Result<GroupStats, PoolError> {
        let group = self.groups.get(name).ok_or_else(|| PoolError::NoGroup { group: name.clone() })?;
        Ok(group.recorder.view(now))
    }

    fn group_mut(&mut self, name: &GroupName) -> Result<&mut Group, PoolError> {
        self.groups.get_mut(name).ok_or_else(|| PoolError::NoGroup { group: name.clone() })
    }

    /// Puts a block on its shelf. False when there is no group that takes it: it is leaving then.
    fn shelve(&mut self, now: Instant, id: BlockId, since: Instant) -> Result<bool, Imbalance> {
        let unknown = Imbalance::NoSuchStep { id, from: None, to: Some(State::Staged) };
        let entry = self.ledger.get(id).ok_or(unknown)?;
        let (name, size, pages, node) = (entry.group.clone(), entry.size, entry.pages, entry.node);
        // A group that was removed and added again may have other pages.
        let Some(group) = self.groups.get_mut(&name).filter(|group| group.limits.pages == pages) else {
            return self.leaves(id).map(|()| false);
        };
        self.ledger.pass(id, State::Staged)?;
        self.since.insert(id, since);
        group.shelf(now, size).put(Waiting { id, since, node });
        self.level(now, &name);
        Ok(true)
    }

    fn leaves(&mut self, id: BlockId) -> Result<(), Imbalance> {
        self.ledger.pass(id, State::Leaving)?;
        self.since.remove(&id);
        Ok(())
    }

    /// Notes how much of a group is staged now.
    fn level(&mut self, now: Instant, name: &GroupName) {
        let staged = self.ledger.group(name).staged.bytes;
        if let Some(group) = self.groups.get_mut(name) {
            group.recorder.level(now, staged);
        }
    }

    /// A block goes without having served anybody.
    fn evict(&mut self, now: Instant, going: &Going) -> Result<Option<BlockId>, Imbalance> {
        let Some(group) = self.groups.get_mut(&going.group) else { return Ok(None) };
        let Some(block) = group.evict(going.size, going.on) else { return Ok(None) };
        group.recorder.evicted(going.size, going.why);
        self.leaves(block.id)?;
        self.level(now, &going.group);
        Ok(Some(block.id))
    }
}

fn is_unseen<B>(entry: &Entry<B>) -> bool {
    matches!(entry.state, State::Staged | State::Reserved)
}
