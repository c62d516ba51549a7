//! One group's shelves: what waits there by size, and what is wanted.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use gnomon_terms::{Bytes, Instant};

use super::allowance::Allowance;
use crate::{block::BlockId, fit::Stock, groups::GroupLimits, numa::NumaNode, stats::Recorder};

/// A group that has a pool.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) limits: GroupLimits,
    pub(super) shelves: BTreeMap<Bytes, Shelf>,
    pub(super) allowance: Allowance,
    pub(super) recorder: Recorder,
    /// The node where its guests run.
    pub(super) home: Option<NumaNode>,
    /// Whether it has a target yet. Until then nothing is too much: what was found again waits for the planner.
    has_target: bool,
    /// When something was asked for that was not there. Whatever is wanted is of interest again then.
    missed_at: Instant,
}

/// The blocks of one size.
#[derive(Debug)]
pub(super) struct Shelf {
    /// How many the target wants.
    pub(super) want: u32,
    /// How many are being populated.
    pub(super) populating: u32,
    /// What waits, oldest first.
    waiting: VecDeque<Waiting>,
    /// When the target last wanted more than before.
    wanted_at: Instant,
    /// When a block was last taken for a request.
    used_at: Instant,
    /// Since when there are more than wanted.
    surplus_since: Option<Instant>,
}

/// A block on a shelf.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    pub(super) id: BlockId,
    /// Since when it is staged.
    pub(super) since: Instant,
    /// Where it is.
    pub(super) node: Option<NumaNode>,
}

impl Group {
    pub(super) fn new(now: Instant, limits: GroupLimits) -> Group {
        Group {
            limits,
            shelves: BTreeMap::new(),
            allowance: Allowance::full(now, limits.budget),
            recorder: Recorder::new(now),
            home: None,
            has_target: false,
            missed_at: now,
        }
    }

    /// The shelf of a size.
    pub(super) fn shelf(&mut self, now: Instant, size: Bytes) -> &mut Shelf {
        self.shelves.entry(size).or_insert_with(|| Shelf::new(now))
    }

    /// Sets what is wanted. Sizes that are not named are not wanted.
    pub(super) fn set_target(&mut self, now: Instant, wanted: &BTreeMap<Bytes, u32>) {
        self.has_target = true;
        for (size, shelf) in &mut self.shelves {
            shelf.set_want(now, wanted.get(size).copied().unwrap_or(0));
        }
        for (size, want) in wanted {
            self.shelf(now, *size).set_want(now, *want);
        }
        self.sweep();
    }

    /// The nodes where its blocks are best, the best first.
    pub(super) fn wanted_nodes(&self) -> impl Iterator<Item = NumaNode> + use<> {
        self.limits.node.into_iter().chain(self.home)
    }

    /// What waits of blocks that are meant, largest first.
    pub(super) fn stock(&self, meant: impl Fn(&Waiting) -> bool) -> Vec<Stock> {
        let count = |shelf: &Shelf| shelf.waiting.iter().filter(|block| meant(block)).count() as u32;
        let rows = self.shelves.iter().rev().map(|(size, shelf)| (*size, count(shelf)));
        rows.filter(|(_, count)| *count > 0).collect()
    }

    /// Takes blocks of a size that are meant, oldest first, for a request.
    pub(super) fn take(&mut self, now: Instant, stock: Stock, meant: impl Fn(&Waiting) -> bool) -> Vec<BlockId> {
        let Some(shelf) = self.shelves.get_mut(&stock.0) else { return Vec::new() };
        shelf.used_at = now;
        let blocks = shelf.waiting.iter().filter(|block| meant(block)).take(stock.1 as usize);
        let taken: Vec<BlockId> = blocks.map(|block| block.id).collect();
        shelf.waiting.retain(|block| !taken.contains(&block.id));
        taken
    }

    /// Something was asked for that is not there.
    pub(super) fn missed(&mut self, now: Instant) {
        self.missed_at = now;
    }

    /// The shelf on which nothing was of use for too long, if it has a block.
    pub(super) fn aged(&self, now: Instant) -> Option<Bytes> {
        let aged = self.shelves.iter().filter(|(_, shelf)| !shelf.waiting.is_empty() && self.is_stale(now, shelf));
        aged.map(|(size, _)| *size).next()
    }

    /// The shelf that has had more than wanted for longer than blocks linger. Notes since when.
    pub(super) fn surplus(&mut self, now: Instant, linger: Duration) -> Option<Bytes> {
        let (mut found, has_target) = (None, self.has_target);
        for (size, shelf) in &mut self.shelves {
            let since = match has_target && shelf.count() > shelf.want {
                true => *shelf.surplus_since.get_or_insert(now),
                false => {
                    shelf.surplus_since = None;
                    continue;
                }
            };
            if !shelf.waiting.is_empty() && now.since(since) >= linger {
                found = found.or(Some(*size));
            }
        }
        found
    }

    /// Sizes of which there are fewer than wanted, each with the share that there is and when it was last taken from.
    pub(super) fn lacking(&self, now: Instant) -> impl Iterator<Item = (Bytes, f64, Instant)> {
        let lacking =
            self.shelves.iter().filter(move |(_, shelf)| shelf.count() < shelf.want && !self.is_stale(now, shelf));
        lacking.map(|(size, shelf)| (*size, f64::from(shelf.count()) / f64::from(shelf.want), shelf.used_at))
    }

    /// Shelves with a block on a node (on any, when none is named), each with the time since which its oldest one was of
    /// no use.
    pub(super) fn oldest(&self, on: Option<NumaNode>) -> impl Iterator<Item = (Bytes, Instant)> {
        let oldest = move |shelf: &Shelf| Some(shelf.waiting.get(shelf.oldest(on)?)?.since.max(shelf.used_at));
        self.shelves.iter().filter_map(move |(size, shelf)| Some((*size, oldest(shelf)?)))
    }

    /// Takes the oldest block on a node (on any, when none is named) off a shelf, to be given back to the host.
    pub(super) fn evict(&mut self, size: Bytes, on: Option<NumaNode>) -> Option<Waiting> {
        let shelf = self.shelves.get_mut(&size)?;
        let evicted = shelf.oldest(on).and_then(|at| shelf.waiting.remove(at));
        self.sweep();
        evicted
    }

    /// Takes a certain block off its shelf.
    pub(super) fn remove(&mut self, size: Bytes, id: BlockId) {
        if let Some(shelf) = self.shelves.get_mut(&size) {
            shelf.waiting.retain(|block| block.id != id);
        }
        self.sweep();
    }

    /// A population of this size has ended, one way or the other.
    pub(super) fn is_populated(&mut self, size: Bytes) {
        if let Some(shelf) = self.shelves.get_mut(&size) {
            shelf.populating = shelf.populating.saturating_sub(1);
        }
        self.sweep();
    }

    /// All that waits.
    pub(super) fn waiting(&self) -> impl Iterator<Item = BlockId> {
        self.shelves.values().flat_map(|shelf| shelf.waiting.iter().map(|block| block.id))
    }

    /// What waits on each node, as far as that is known.
    pub(super) fn by_node(&self) -> impl Iterator<Item = (NumaNode, Bytes)> {
        let known = |size: Bytes| move |block: &Waiting| Some((block.node?, size));
        self.shelves.iter().flat_map(move |(size, shelf)| shelf.waiting.iter().filter_map(known(*size)))
    }

    fn is_stale(&self, now: Instant, shelf: &Shelf) -> bool {
        now.since(shelf.used_at.max(shelf.wanted_at).max(self.missed_at)) > self.limits.max_age
    }

    /// Shelves that are empty and not wanted take no room.
    fn sweep(&mut self) {
        self.shelves.retain(|_, shelf| shelf.want > 0 || shelf.count() > 0);
    }
}

impl Shelf {
    fn new(now: Instant) -> Shelf {
        Shelf {
            want: 0,
            populating: 0,
            waiting: VecDeque::new(),
            wanted_at: now,
            used_at: Instant::ORIGIN,
            surplus_since: None,
        }
    }

    fn set_want(&mut self, now: Instant, want: u32) {
        if want > self.want {
            self.wanted_at = now;
        }
        self.want = want;
    }

    /// What there is or will be.
    fn count(&self) -> u32 {
        self.populating.saturating_add(self.waiting.len() as u32)
    }

    /// The place of the oldest block on a node; on any, when none is named.
    fn oldest(&self, on: Option<NumaNode>) -> Option<usize> {
        self.waiting.iter().position(|block| on.is_none() || block.node == on)
    }

    /// Puts a block where it belongs by its age.
    pub(super) fn put(&mut self, block: Waiting) {
        let at = self.waiting.partition_point(|other| (other.since, other.id) < (block.since, block.id));
        self.waiting.insert(at, block);
    }
}
