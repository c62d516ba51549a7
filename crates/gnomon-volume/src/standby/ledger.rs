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
    /// The stripe that was taken last: the others come first, however often it is written.
    last: u64,
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
    Stripe {
        /// Which.
        stripe: u64,
        /// Whether a turn ends with it: what is of the open turn may be written again.
        is_due: bool,
    },
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
        Ledger { turns: VecDeque::from([Turn::default()]), newest, copied: 0, limit, last: 0 }
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
        match turn.unsent.after(self.last) {
            Some(stripe) => Some(Step::Stripe { stripe, is_due: turn.number > 0 }),
            None if turn.number > 0 => Some(Step::End { turn: turn.number, whole: !turn.void }),
            None => None,
        }
    }

    /// Takes what is to be sent of a stripe, for the turn that is being sent. The stripe is locked until it was read.
    pub fn take(&mut self, stripe: u64) -> Taken {
        let Some(turn) = self.turns.iter_mut().find(|turn| !turn.ended) else { return Taken::default() };
        self.last = stripe;
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
        let on_their_way = self.turns.iter_mut().filter(|turn| turn.number > 0 && !turn.ended);
        // One whose end is all that is left has everything; but not one after a void one.
        for turn in on_their_way.skip_while(|turn| turn.unsent.is_empty()) {
            turn.void = true;
            unsent.union(std::mem::take(&mut turn.unsent));
            sent.union(std::mem::take(&mut turn.sent));
            turn.copies.clear();
        }
        // Copies are of blocks that are unsent.
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PLENTY: u64 = 1 << 20;

    fn copy(value: u8) -> Copy {
        Box::new([value])
    }

    /// Writes a block whose content on the disk is `old`; whether a copy was asked for.
    fn write(ledger: &mut Ledger, block: u64, old: u8) -> bool {
        let extent = Extent::new(block, 1);
        let needed = ledger.needed(extent);
        needed.iter().all(|block| ledger.keep(*block, copy(old)));
        ledger.write(extent);
        !needed.is_empty()
    }

    fn blocks(taken: &Taken) -> Vec<u64> {
        taken.runs.iter().flat_map(|run| run.blocks()).map(|block| block.0).collect()
    }

    #[test]
    fn a_block_is_copied_once_for_the_turn_that_needs_it() {
        let mut ledger = Ledger::new(0, PLENTY);
        assert!(!write(&mut ledger, 5, 0), "nothing needs it yet");
        ledger.close(1).unwrap();
        assert!(write(&mut ledger, 5, 1));
        assert!(!write(&mut ledger, 5, 2), "turn 1 has its copy, turn 2 is open");
        ledger.close(2).unwrap();
        assert!(write(&mut ledger, 5, 3), "turn 2 needs what it had");
        let (first, second) = (ledger.take(0), {
            ledger.end(1);
            ledger.take(0)
        });
        assert_eq!((first.copies[&5][0], second.copies[&5][0]), (1, 3));
        assert_eq!(ledger.copied(), 0);
        assert_eq!(ledger.next(), Some(Step::End { turn: 2, whole: true }));
    }

    #[test]
    fn what_was_sent_is_not_needed() {
        let mut ledger = Ledger::new(0, PLENTY);
        write(&mut ledger, 5, 0);
        ledger.close(1).unwrap();
        assert_eq!(blocks(&ledger.take(0)), [5]);
        assert!(!write(&mut ledger, 5, 1));
    }

    #[test]
    fn a_sealed_turn_settles_what_nothing_newer_is_known_of() {
        let mut ledger = Ledger::new(0, PLENTY);
        for block in [1, 2, 3] {
            write(&mut ledger, block, 0);
        }
        ledger.close(1).unwrap();
        ledger.take(0);
        ledger.end(1);
        write(&mut ledger, 2, 1);
        ledger.close(2).unwrap();
        ledger.take(0);
        write(&mut ledger, 3, 1);
        let had = ledger.seal(1).unwrap();
        let settled: Vec<u64> = ledger.settled(&had, 0).iter().map(|run| run.start.0).collect();
        assert_eq!(settled, [1], "2 is on its way anew, 3 is yet to be sent");
    }

    #[test]
    fn too_many_copies_make_the_turns_on_their_way_void() {
        let mut ledger = Ledger::new(0, 1);
        write(&mut ledger, 1, 0);
        write(&mut ledger, 2, 0);
        ledger.close(1).unwrap();
        ledger.take(0);
        write(&mut ledger, 3, 0);
        ledger.close(2).unwrap();
        ledger.end(1);
        write(&mut ledger, 4, 0);
        ledger.close(3).unwrap();
        write(&mut ledger, 3, 0);
        write(&mut ledger, 4, 0);
        assert_eq!(ledger.next(), Some(Step::End { turn: 2, whole: false }));
        ledger.end(2);
        assert_eq!(ledger.next(), Some(Step::End { turn: 3, whole: false }));
        ledger.end(3);
        assert_eq!(blocks(&ledger.take(0)), [3, 4], "they are of the open turn now");
        assert_eq!(ledger.seal(2), Err(BadTurn::NeverSent));
        ledger.close(4).unwrap();
        ledger.end(4);
        assert_eq!(blocks(&Taken { runs: ledger.seal(4).unwrap().of(0).runs(0), ..Taken::default() }), [1, 2, 3, 4]);
    }

    #[test]
    fn turns_are_numbered_upwards_and_not_without_end() {
        let mut ledger = Ledger::new(7, PLENTY);
        assert_eq!(ledger.close(7), Err(BadTurn::NotNewer { newest: 7 }));
        let closed = (8..).take_while(|turn| ledger.close(*turn).is_ok()).count();
        assert_eq!((closed, ledger.close(99)), (TURNS, Err(BadTurn::TooMany)));
        assert_eq!(ledger.seal(8), Err(BadTurn::NeverSent), "its end was not sent");
    }

    #[test]
    fn a_stripe_that_is_written_all_the_time_does_not_hold_the_others_up() {
        let mut ledger = Ledger::new(0, PLENTY);
        write(&mut ledger, 5, 0);
        write(&mut ledger, 5000, 0);
        let mut order = Vec::new();
        for _ in 0..2 {
            let Some(Step::Stripe { stripe, is_due: false }) = ledger.next() else { panic!("something is unsent") };
            ledger.take(stripe);
            order.push(stripe);
            write(&mut ledger, 5000, 0);
        }
        order.sort_unstable();
        assert_eq!(order, [0, 5000 / 256]);
    }

    #[test]
    fn pieces_are_of_the_disk_or_of_a_copy() {
        let copies = BTreeMap::from([(4, copy(0)), (5, copy(0))]);
        let cut = pieces(Extent::new(2, 6), &copies);
        assert_eq!(cut, [Extent::new(2, 2), Extent::new(4, 1), Extent::new(5, 1), Extent::new(6, 2)]);
    }

    #[derive(Clone, Debug)]
    enum Deed {
        Write(u64),
        Close,
        Send,
        Seal,
    }

    fn deeds() -> impl Strategy<Value = Vec<Deed>> {
        let deed = prop_oneof![
            5 => (0u64..24).prop_map(|block| Deed::Write(block * 40)),
            1 => Just(Deed::Close),
            4 => Just(Deed::Send),
            1 => Just(Deed::Seal),
        ];
        prop::collection::vec(deed, 0..200)
    }

    proptest! {
        /// Whatever the order of things: at each whole turn the standby has the disk as it was at its mark, and what is
        /// neither owed nor acknowledged is the same on both sides.
        #[test]
        fn a_whole_turn_is_the_disk_at_its_mark(deeds in deeds(), limit in prop_oneof![Just(PLENTY), 0u64..4]) {
            let mut ledger = Ledger::new(0, limit);
            let (mut disk, mut standby) = (vec![0u8; 1000], vec![0u8; 1000]);
            let mut owed = vec![false; 1000];
            let (mut marks, mut ended, mut value) = (BTreeMap::new(), BTreeMap::new(), 0u8);
            for deed in deeds {
                match deed {
                    Deed::Write(block) => {
                        write(&mut ledger, block, disk[block as usize]);
                        value = value.wrapping_add(1);
                        disk[block as usize] = value;
                        owed[block as usize] = true;
                    }
                    Deed::Close => {
                        let turn = marks.len() as u64 + 1;
                        if ledger.close(turn).is_ok() {
                            marks.insert(turn, disk.clone());
                        }
                    }
                    Deed::Send => match ledger.next() {
                        None => {}
                        Some(Step::Stripe { stripe, .. }) => {
                            let taken = ledger.take(stripe);
                            for block in blocks(&taken) {
                                let copied = taken.copies.get(&block).map(|copy| copy[0]);
                                standby[block as usize] = copied.unwrap_or(disk[block as usize]);
                            }
                        }
                        Some(Step::End { turn, whole }) => {
                            ledger.end(turn);
                            if whole {
                                prop_assert!(standby == marks[&turn], "turn {}", turn);
                                ended.insert(turn, standby.clone());
                            }
                        }
                    },
                    Deed::Seal => {
                        let Some((turn, sealed)) = ended.pop_last() else { continue };
                        ended.clear();
                        let had = ledger.seal(turn).expect("it was sent whole");
                        for (stripe, _) in had.stripes() {
                            for run in ledger.settled(&had, stripe) {
                                run.blocks().for_each(|block| owed[block.0 as usize] = false);
                            }
                        }
                        for block in 0..disk.len() {
                            prop_assert!(owed[block] || sealed[block] == disk[block], "block {}", block);
                        }
                    }
                }
                prop_assert!(ledger.copied() <= limit);
            }
        }
    }
}
