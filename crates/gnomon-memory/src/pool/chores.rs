//! What is to be done next: give a block back, stage one, or rest.
//!
//! In this order, because what the host needs comes before what a group may have, and both before what would be nice:
//!
//! 1. The guard wants memory back: the block that was of no use for longest, of any group; on a node that is short, of
//!    what is there.
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
    guard::{Ruling, Staged, Verdict},
    numa::NumaNode,
    placement::place,
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
    Stage { id: BlockId, group: GroupName, size: Bytes, pages: PageKind, node: Option<NumaNode> },
    /// Nothing to do.
    Rest,
}

/// Which block is to go: the oldest of a group's size, on a node when one is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Going {
    pub(super) group: GroupName,
    pub(super) size: Bytes,
    pub(super) on: Option<NumaNode>,
    pub(super) why: Why,
}

/// What is to be staged next.
struct Coming {
    /// The share of what is wanted that is there, and when it was of use last.
    share: f64,
    used: Instant,
    group: GroupName,
    size: Bytes,
    node: Option<NumaNode>,
}

impl<B: Clone> Pool<B> {
    /// The next chore.
    pub(crate) fn chore(&mut self, now: Instant, verdict: &Verdict) -> Result<Chore, Imbalance> {
        if matches!(verdict.small, Ruling::GiveBack(_)) {
            self.hold_off(now);
        }
        if let Some(going) = self.outgoing(now, verdict)
            && let Some(id) = self.evict(now, &going)?
        {
            return Ok(Chore::LetGo { id, why: going.why });
        }
        match self.incoming(now, verdict) {
            Some(coming) => self.begin(now, coming),
            None => Ok(Chore::Rest),
        }
    }

    /// The host is in need: nothing is staged for a while.
    pub(crate) fn hold_off(&mut self, now: Instant) {
        self.held_off_until = now.after(HOLD_OFF);
    }

    /// Whether a population may go on. When the host or the node is in need, no other is begun for a while.
    pub(crate) fn may_go_on(
        &mut self,
        now: Instant,
        group: &GroupName,
        (pages, node): (PageKind, Option<NumaNode>),
        verdict: &Verdict,
    ) -> bool {
        let own = verdict.nodes.iter().filter(|of| Some(of.node) == node).map(|of| of.small);
        let mut rulings = own.chain([verdict.small]);
        let calm = pages == PageKind::Huge || rulings.all(|ruling| matches!(ruling, Ruling::Stage(_)));
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
        node: Option<NumaNode>,
        took: Duration,
    ) -> Result<bool, Imbalance> {
        let (name, size) = self.populating(id)?;
        self.ledger.keep(id, block, node);
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
    pub(crate) fn small_staged(&self) -> Staged {
        let mut staged = Staged::default();
        for (name, group) in self.groups.iter().filter(|(_, group)| group.limits.pages == PageKind::Small) {
            staged.all.0 += self.ledger.group(name).staged.bytes.0;
            group.by_node().for_each(|(node, size)| staged.nodes.entry(node).or_default().0 += size.0);
        }
        staged
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
    fn outgoing(&mut self, now: Instant, verdict: &Verdict) -> Option<Going> {
        let is_short = |small| matches!(small, Ruling::GiveBack(_));
        let host = is_short(verdict.small).then_some(None);
        let nodes = verdict.nodes.iter().filter(|of| is_short(of.small)).map(|of| Some(of.node));
        let is_small = |_: &GroupName, group: &Group| group.limits.pages == PageKind::Small;
        let floor = host.into_iter().chain(nodes).find_map(|on| self.least_useful(on, Why::Floor, is_small));
        let over_all = self.is_host_over_budget();
        let over = || self.least_useful(None, Why::Budget, |name, _| over_all || self.is_over_budget(name));
        floor.or_else(over).or_else(|| self.unwanted(now))
    }

    fn unwanted(&mut self, now: Instant) -> Option<Going> {
        let linger = self.host.linger;
        let going = |name: &GroupName, size, why| Going { group: name.clone(), size, on: None, why };
        let aged = self.groups.iter().find_map(|(name, group)| Some(going(name, group.aged(now)?, Why::Age)));
        // All groups are asked, because being asked is how they note since when they have too much.
        let surplus = self
            .groups
            .iter_mut()
            .filter_map(|(name, group)| group.surplus(now, linger).map(|size| going(name, size, Why::Target)));
        let surplus = surplus.reduce(|first, _| first);
        aged.or(surplus)
    }

    /// The block that was of no use for longest, among groups that are meant, on a node when one is named.
    fn least_useful(
        &self,
        on: Option<NumaNode>,
        why: Why,
        meant: impl Fn(&GroupName, &Group) -> bool,
    ) -> Option<Going> {
        let all = self.groups.iter().filter(|(name, group)| meant(name, group));
        let all = all.flat_map(|(name, group)| group.oldest(on).map(move |(size, since)| (since, name, size)));
        all.min().map(|(_, name, size)| Going { group: name.clone(), size, on, why })
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
    fn incoming(&mut self, now: Instant, verdict: &Verdict) -> Option<Coming> {
        if now < self.held_off_until || self.ledger.host().living() >= self.most_blocks {
            return None;
        }
        let room = self.host.budget.0.saturating_sub(self.ledger.host().set_aside().0);
        let mut best: Option<Coming> = None;
        for (name, group) in &mut self.groups {
            let room = room.min(group.limits.budget.0.saturating_sub(self.ledger.group(name).set_aside().0));
            let allowed = group.allowance.left(now, group.limits.refill, group.limits.budget).0;
            let ruled = match (group.limits.pages, verdict.small) {
                (PageKind::Small, Ruling::Stage(most)) => most.0,
                (PageKind::Small, _) => 0,
                (PageKind::Huge, _) => verdict.huge.0,
            };
            let (most, pages) = (room.min(allowed).min(ruled), group.limits.pages);
            for (size, share, used) in group.lacking(now).filter(|(size, ..)| size.0 <= most) {
                let Some(spot) = place(size, pages, group.wanted_nodes(), verdict) else { continue };
                let coming = Coming { share, used, group: name.clone(), size, node: spot.node() };
                if best.as_ref().is_none_or(|best| coming.comes_before(best)) {
                    best = Some(coming);
                }
            }
        }
        best
    }

    fn begin(&mut self, now: Instant, coming: Coming) -> Result<Chore, Imbalance> {
        let Coming { group: name, size, node, .. } = coming;
        let Some(group) = self.groups.get_mut(&name) else { return Ok(Chore::Rest) };
        let (id, pages) = (BlockId(self.next_id), group.limits.pages);
        let entry = Entry { group: name.clone(), size, pages, state: State::Populating, node, block: None };
        self.ledger.enter(id, entry)?;
        self.next_id = self.next_id.wrapping_add(1);
        group.allowance.pay(size);
        group.shelf(now, size).populating += 1;
        Ok(Chore::Stage { id, group: name, size, pages, node })
    }
}

impl Coming {
    fn comes_before(&self, other: &Coming) -> bool {
        (self.share, other.used, other.size) < (other.share, self.used, self.size)
    }
}
