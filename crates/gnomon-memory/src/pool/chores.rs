//! What is to be done next: give a block back, stage one, or rest.
//!
//! In this order, because what the host needs comes before what a group may have, and both before what would be nice:
//!
//! 1. The guard wants memory back: the block that was of no use for longest, of any group.
//! 2. A budget is exceeded: the same, of that group or of all.
//! 3. Nobody asked for a size for longer than its group's age: its oldest block.
//! 4. More than wanted for longer than blocks linger: the oldest of that size.
//! 5. Less than wanted: one block of the size of which the smallest share is there, if everybody's limits allow it.

use std::time::Duration;

use gnomon_terms::{Bytes, Instant};

use super::{Pool, group::Group};
use crate::{
    accounts::{Entry, Imbalance, State},
    block::BlockId,
    groups::{GroupName, PageKind},
    guard::{Ruling, Verdict},
    stats::Why,
};

/// After the host was in need nothing is staged for this time: what was given back is not taken again at once, and the
/// averages of ten seconds by which pressure is told have passed.
const HOLD_OFF: Duration = Duration::from_secs(15);

/// A chore for the worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Chore {
    /// Give this block back to the host; it is leaving.
    LetGo { id: BlockId, why: Why },
    /// Make and populate this block; it is on the books as populating.
    Stage { id: BlockId, group: GroupName, size: Bytes, pages: PageKind },
    /// Nothing to do.
    Rest,
}

impl<B: Clone> Pool<B> {
    /// The next chore.
    pub(crate) fn chore(&mut self, now: Instant, verdict: Verdict) -> Result<Chore, Imbalance> {
        if matches!(verdict.small, Ruling::GiveBack(_)) {
            self.hold_off(now);
        }
        if let Some((name, size, why)) = self.outgoing(now, verdict)
            && let Some(id) = self.evict(now, &name, size, why)?
        {
            return Ok(Chore::LetGo { id, why });
        }
        match self.incoming(now, verdict) {
            Some((name, size)) => self.begin(now, name, size),
            None => Ok(Chore::Rest),
        }
    }

    /// The host is in need: nothing is staged for a while.
    pub(crate) fn hold_off(&mut self, now: Instant) {
        self.held_off_until = now.after(HOLD_OFF);
    }

    /// Whether a population may go on. When the host is in need, no other is begun for a while.
    pub(crate) fn may_go_on(&mut self, now: Instant, group: &GroupName, pages: PageKind, verdict: Verdict) -> bool {
        let calm = pages == PageKind::Huge || matches!(verdict.small, Ruling::Stage(_));
        if !calm {
            self.hold_off(now);
        }
        calm && self.groups.contains_key(group) && !self.is_over_budget(group) && !self.is_host_over_budget()
    }

    /// A population came to its end, and the block is kept. False when its group is gone: it is leaving then.
    pub(crate) fn populated(
        &mut self,
        now: Instant,
        id: BlockId,
        block: B,
        took: Duration,
    ) -> Result<bool, Imbalance> {
        let (name, size) = self.populating(id)?;
        self.ledger.keep(id, block);
        if let Some(group) = self.groups.get_mut(&name) {
            group.recorder.staged(size, took);
            group.is_populated(size);
        }
        self.shelve(now, id, now)
    }

    /// A population was given up, or failed: the block is leaving.
    pub(crate) fn given_up(&mut self, id: BlockId) -> Result<(), Imbalance> {
        let (name, size) = self.populating(id)?;
        self.leaves(id)?;
        if let Some(group) = self.groups.get_mut(&name) {
            group.recorder.given_up(size);
            group.is_populated(size);
        }
        Ok(())
    }

    /// 4 KiB pages that wait: what the guard can have back.
    pub(crate) fn small_staged(&self) -> Bytes {
        let small = self.groups.iter().filter(|(_, group)| group.limits.pages == PageKind::Small);
        Bytes(small.map(|(name, _)| self.ledger.group(name).staged.bytes.0).sum())
    }

    fn populating(&self, id: BlockId) -> Result<(GroupName, Bytes), Imbalance> {
        let entry = self.ledger.get(id);
        match entry.filter(|entry| entry.state == State::Populating) {
            Some(entry) => Ok((entry.group.clone(), entry.size)),
            None => {
                let from = entry.map(|entry| entry.state.clone());
                Err(Imbalance::NoSuchStep { id, from, to: Some(State::Staged) })
            }
        }
    }

    /// What is to go, and why.
    fn outgoing(&mut self, now: Instant, verdict: Verdict) -> Option<(GroupName, Bytes, Why)> {
        let told = |why| move |(name, size)| (name, size, why);
        if matches!(verdict.small, Ruling::GiveBack(_)) {
            let small = self.least_useful(|_, group| group.limits.pages == PageKind::Small);
            if let Some(found) = small {
                return Some(told(Why::Floor)(found));
            }
        }
        let over_all = self.is_host_over_budget();
        let over = self.least_useful(|name, _| over_all || self.is_over_budget(name));
        over.map(told(Why::Budget)).or_else(|| self.unwanted(now))
    }

    fn unwanted(&mut self, now: Instant) -> Option<(GroupName, Bytes, Why)> {
        let linger = self.host.linger;
        let aged = self.groups.iter().find_map(|(name, group)| Some((name.clone(), group.aged(now)?, Why::Age)));
        // All groups are asked, because being asked is how they note since when they have too much.
        let surplus = self
            .groups
            .iter_mut()
            .filter_map(|(name, group)| group.surplus(now, linger).map(|size| (name.clone(), size, Why::Target)));
        let surplus = surplus.reduce(|first, _| first);
        aged.or(surplus)
    }

    /// The group and size of the block that was of no use for longest, among groups that are meant.
    fn least_useful(&self, meant: impl Fn(&GroupName, &Group) -> bool) -> Option<(GroupName, Bytes)> {
        let all = self.groups.iter().filter(|(name, group)| meant(name, group));
        let all = all.flat_map(|(name, group)| group.oldest().map(move |(size, since)| (since, name, size)));
        all.min().map(|(_, name, size)| (name.clone(), size))
    }

    fn is_host_over_budget(&self) -> bool {
        self.ledger.host().set_aside() > self.host.budget
    }

    fn is_over_budget(&self, name: &GroupName) -> bool {
        let budget = self.groups.get(name).map_or(Bytes(0), |group| group.limits.budget);
        self.ledger.group(name).set_aside() > budget
    }

    /// What is to be staged: of all sizes that lack and may be had, the one of which the smallest share is there; of
    /// equals the one that was of use last, then the larger.
    fn incoming(&mut self, now: Instant, verdict: Verdict) -> Option<(GroupName, Bytes)> {
        if now < self.held_off_until || self.ledger.host().living() >= self.most_blocks {
            return None;
        }
        let room = self.host.budget.0.saturating_sub(self.ledger.host().set_aside().0);
        let mut best: Option<(f64, Instant, GroupName, Bytes)> = None;
        for (name, group) in &mut self.groups {
            let room = room.min(group.limits.budget.0.saturating_sub(self.ledger.group(name).set_aside().0));
            let allowed = group.allowance.left(now, group.limits.refill, group.limits.budget).0;
            let ruled = match (group.limits.pages, verdict.small) {
                (PageKind::Small, Ruling::Stage(most)) => most.0,
                (PageKind::Small, _) => 0,
                (PageKind::Huge, _) => verdict.huge.0,
            };
            let most = room.min(allowed).min(ruled);
            for (size, share, used) in group.lacking(now).filter(|(size, ..)| size.0 <= most) {
                let better = best
                    .as_ref()
                    .is_none_or(|(other, at, _, other_size)| (share, at, *other_size) < (*other, &used, size));
                if better {
                    best = Some((share, used, name.clone(), size));
                }
            }
        }
        best.map(|(_, _, name, size)| (name, size))
    }

    fn begin(&mut self, now: Instant, name: GroupName, size: Bytes) -> Result<Chore, Imbalance> {
        let Some(group) = self.groups.get_mut(&name) else { return Ok(Chore::Rest) };
        let (id, pages) = (BlockId(self.next_id), group.limits.pages);
        let entry = Entry { group: name.clone(), size, pages, state: State::Populating, block: None };
        self.ledger.enter(id, entry)?;
        self.next_id = self.next_id.wrapping_add(1);
        group.allowance.pay(size);
        group.shelf(now, size).populating += 1;
        Ok(Chore::Stage { id, group: name, size, pages })
    }
}
