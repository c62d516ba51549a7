//! Which write belongs to which turn, and what of it has been sent: the primary's book of a standby.
//!
//! ```text
//!            write              sent              all sent        Turn sent            Turned
//!   nothing ──────► open: unsent ───► open: sent
//!                     │ close(n)        │ close(n)
//!                     ▼                 ▼
//!                   n: unsent ───────► n: sent ─────────────────► n ended ──────────► forgotten, acknowledged
//!                     │ written again: its content is copied first
//!                     │ too many copies: n is void, and what it lacks goes to the open turn
//! ```
//! Turns are sent one after the other, so at most one that has not ended has anything sent.
//!
//! Invariant: for a block that is unsent in a closed turn, the content as of that turn's end is the turn's copy of it, or,
//! if it has none, what is on the disk.

use std::collections::{BTreeMap, VecDeque};

use gnomon_terms::Extent;

use super::blockset::{Bits, BlockSet, stripe_of};

/// Turns that may be waiting to be sealed. Checkpoints are two at a time; the rest is room for those that were given up.
const TURNS: usize = 16;

/// The content of a block at the end of a turn.
pub(super) type Copy = Box<[u8]>;

/// The book.
pub(super) struct Ledger {
    /// Oldest first; the last one is open.
    turns: VecDeque<Turn>,
    /// The newest turn that was closed.
    newest: u64,
    /// Bytes of copies.
    copied: u64,
    limit: u64,
}

#[derive(Default)]
struct Turn {
    /// Zero while it is open.
    number: u64,
    unsent: BlockSet,
    sent: BlockSet,
    copies: BTreeMap<u64, Copy>,
    /// Its end has been sent.
    ended: bool,
    /// What it lacks has gone to a later one.
    void: bool,
}

/// What the sender does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Send what is unsent in this stripe.
    Stripe(u64),
    /// Send the end of this turn.
    End {
        /// Which.
        turn: u64,
        /// Whether it can be sealed.
        whole: bool,
    },
}

/// What is to be sent of a stripe.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Taken {
    /// Which blocks.
    pub runs: Vec<Extent>,
    /// The content of those that were written since their turn.
    pub copies: BTreeMap<u64, Copy>,
}

/// Why a turn could not be closed, or was not one that can be sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BadTurn {
    /// Its number is not above those before.
    NotNewer {
        /// The newest one.
        newest: u64,
    },
    /// Too many wait.
    TooMany,
    /// It was never sent, or is void.
    NeverSent,
}

impl Ledger {
    /// Nothing is written yet; turns are numbered above `newest`, and `limit` bytes of copies are kept.
    pub fn new(newest: u64, limit: u64) -> Ledger {
        Ledger { turns: VecDeque::from([Turn::default()]), newest, copied: 0, limit }
    }

    /// The blocks of `extent`, which is about to be written, whose content a closed turn still needs.
    pub fn needed(&self, extent: Extent) -> Vec<u64> {
        let closed: Vec<&Turn> = self.closed().filter(|turn| !turn.unsent.is_empty()).collect();
        if closed.is_empty() {
            return Vec::new();
        }
        let is_needed = |block: &u64| holder(closed.iter().copied(), *block).is_some();
        extent.blocks().map(|block| block.0).filter(is_needed).collect()
    }

    /// Keeps the content of a block for the turn that needs it. False if there was no room: the turns on their way are
    /// void now.
    pub fn keep(&mut self, block: u64, content: Copy) -> bool {
        let (len, has_room) = (content.len() as u64, self.copied + content.len() as u64 <= self.limit);
        let closed = self.turns.iter_mut().rev().skip(1);
        match holder_mut(closed, block) {
            // Given up by another writer meanwhile.
            None => true,
            Some(turn) if has_room => {
                turn.copies.insert(block, content);
                self.copied += len;
                true
            }
            Some(_) => {
                self.give_up();
                false
            }
        }
    }

    /// `extent` is about to be written, and what was needed of it has been kept.
    pub fn write(&mut self, extent: Extent) {
        self.open().unsent.insert(extent);
    }

    /// What was written so far belongs to turn `number` or one before, what is written from now on to a later one.
    pub fn close(&mut self, number: u64) -> Result<(), BadTurn> {
        if number <= self.newest {
            return Err(BadTurn::NotNewer { newest: self.newest });
        }
        if self.turns.len() > TURNS {
            return Err(BadTurn::TooMany);
        }
        self.newest = number;
        self.open().number = number;
        self.turns.push_back(Turn::default());
        Ok(())
    }

    /// What the sender does next.
    pub fn next(&self) -> Option<Step> {
        let turn = self.turns.iter().find(|turn| !turn.ended)?;
        match turn.unsent.first() {
            Some(stripe) => Some(Step::Stripe(stripe)),
            None if turn.number > 0 => Some(Step::End { turn: turn.number, whole: !turn.void }),
            None => None,
        }
    }

    /// Takes what is to be sent of a stripe, for the turn that is being sent. The stripe is locked until it was read.
    pub fn take(&mut self, stripe: u64) -> Taken {
        let Some(turn) = self.turns.iter_mut().find(|turn| !turn.ended) else { return Taken::default() };
        let bits = turn.unsent.take(stripe);
        turn.sent.add(stripe, bits);
        let mut taken = Taken { runs: bits.runs(stripe), copies: BTreeMap::new() };
        for block in bits.blocks(stripe) {
            if let Some(copy) = turn.copies.remove(&block) {
                self.copied -= copy.len() as u64;
                taken.copies.insert(block, copy);
            }
        }
        taken
    }

    /// The end of a turn is sent now.
    pub fn end(&mut self, number: u64) {
        if let Some(turn) = self.turns.iter_mut().find(|turn| turn.number == number) {
            turn.ended = true;
        }
    }

    /// The standby has sealed a turn: what it has by that. Blocks that were written since are among it; see
    /// [`Ledger::settled`].
    pub fn seal(&mut self, number: u64) -> Result<BlockSet, BadTurn> {
        let is_it = |turn: &Turn| turn.number == number && turn.ended && !turn.void;
        if !self.closed().any(is_it) {
            return Err(BadTurn::NeverSent);
        }
        let mut had = BlockSet::default();
        while self.turns.front().is_some_and(|turn| turn.number != 0 && turn.number <= number) {
            had.union(self.turns.pop_front().unwrap_or_default().sent);
        }
        Ok(had)
    }

    /// The runs in a stripe of a sealed set that no later turn has anything of. The stripe is locked.
    pub fn settled(&self, had: &BlockSet, stripe: u64) -> Vec<Extent> {
        let later = self.turns.iter().map(|turn| turn.unsent.of(stripe).or(turn.sent.of(stripe)));
        later.fold(had.of(stripe), |rest, bits| rest.without(bits)).runs(stripe)
    }

    /// Nothing can be kept any more for the turns on their way: they are void, and what they lack goes to the open one.
    pub fn give_up(&mut self) {
        let (mut unsent, mut sent) = (BlockSet::default(), BlockSet::default());
        for turn in self.turns.iter_mut().filter(|turn| turn.number > 0 && !turn.ended) {
            turn.void = true;
            unsent.union(std::mem::take(&mut turn.unsent));
            sent.union(std::mem::take(&mut turn.sent));
            turn.copies.clear();
        }
        self.copied = 0;
        self.open().unsent.union(unsent);
        self.open().sent.union(sent);
    }

    /// Blocks that are to be sent.
    pub fn unsent(&self) -> u64 {
        self.turns.iter().map(|turn| turn.unsent.count()).sum()
    }

    /// Bytes that are kept for turns on their way.
    pub fn copied(&self) -> u64 {
        self.copied
    }

    fn closed(&self) -> impl DoubleEndedIterator<Item = &Turn> {
        self.turns.iter().take(self.turns.len() - 1)
    }

    fn open(&mut self) -> &mut Turn {
        if self.turns.back().is_none_or(|turn| turn.number > 0) {
            self.turns.push_back(Turn::default());
        }
        let last = self.turns.len() - 1;
        &mut self.turns[last]
    }
}

/// The newest of some closed turns, oldest first, that a block is unsent in, unless it has a copy of it.
fn holder<'a>(mut closed: impl DoubleEndedIterator<Item = &'a Turn>, block: u64) -> Option<&'a Turn> {
    closed.rfind(|turn| turn.has(block)).filter(|turn| !turn.copies.contains_key(&block))
}

/// The same of turns given newest first.
fn holder_mut<'a>(mut closed: impl Iterator<Item = &'a mut Turn>, block: u64) -> Option<&'a mut Turn> {
    closed.find(|turn| turn.has(block)).filter(|turn| !turn.copies.contains_key(&block))
}

impl Turn {
    fn has(&self, block: u64) -> bool {
        let extent = Extent::new(block, 1);
        !self.unsent.of(stripe_of(extent)).and(Bits::of(extent)).is_empty()
    }
}

/// The pieces of a run that is read at once: blocks with a copy one by one, the others together.
pub(super) fn pieces(run: Extent, copies: &BTreeMap<u64, Copy>) -> Vec<Extent> {
    let mut pieces: Vec<Extent> = Vec::new();
    for block in run.blocks() {
        let is_copied = copies.contains_key(&block.0);
        match pieces.last_mut() {
            Some(last) if !is_copied && !copies.contains_key(&last.start.0) => last.len.0 += 1,
            _ => pieces.push(Extent::new(block.0, 1)),
        }
    }
    pieces
}
