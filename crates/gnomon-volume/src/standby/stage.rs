//! What a standby's journal holds that is not in the volume: writes in order, and where turns end among them.
//!
//! The same book is kept while frames arrive and while the journal is read after a restart, so both agree on what counts:
//! the writes up to the end of the newest sealed turn. It does nothing but count.

use std::collections::VecDeque;

use super::journal::{Found, Say};

/// Writes that may be staged. Each costs 40 bytes here and at least as many in the log: 40 MB for a log of zeroes.
const WRITES: usize = 1 << 20;

/// A write that is in the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Write {
    /// First byte of the disk.
    pub at: u64,
    /// How many bytes.
    pub len: u32,
    /// Where in the log its bytes are; `None`: it is all zero.
    pub body: Option<u64>,
}

/// The end of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct End {
    turn: u64,
    whole: bool,
    sealed: bool,
    /// How many writes there were before it, ever.
    writes: u64,
    /// Where its record ends in the log.
    pos: u64,
}

/// The book.
#[derive(Debug, Default)]
pub(super) struct Stage {
    writes: VecDeque<Write>,
    /// Writes that have left it.
    left: u64,
    ends: VecDeque<End>,
    /// The turn the volume is at, and where in the log what it lacks begins.
    applied: Option<(u64, u64)>,
}

/// Why something is not staged, or not sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotStaged {
    /// Too many writes.
    Full,
    /// The turn is not above those before.
    OutOfTurn {
        /// The newest.
        newest: u64,
    },
    /// The turn is not known, or not whole.
    NotWhole,
}

impl Stage {
    /// Nothing is staged over a volume that is at this turn; its log begins at `pos`.
    pub fn over(applied: Option<u64>, pos: u64) -> Stage {
        Stage { applied: applied.map(|turn| (turn, pos)), ..Stage::default() }
    }

    /// Takes a record in.
    pub fn take(&mut self, found: Found) -> Result<(), NotStaged> {
        match found.say {
            Say::Data { at, len } => self.write(Write { at, len, body: Some(found.body) }),
            Say::Zero { at, len } => self.write(Write { at, len, body: None }),
            Say::Turn { turn, whole } => self.end(turn, whole, found.end),
            // A seal of what is in the volume by now, for the log begins within the turn after; or one that was said
            // again, because it could not be made durable at first.
            Say::Seal { turn } if Some(turn) <= self.sealed() => Ok(()),
            Say::Seal { turn } => self.seal(turn),
        }
    }

    fn write(&mut self, write: Write) -> Result<(), NotStaged> {
        if self.writes.len() >= WRITES {
            return Err(NotStaged::Full);
        }
        self.writes.push_back(write);
        Ok(())
    }

    fn end(&mut self, turn: u64, whole: bool, pos: u64) -> Result<(), NotStaged> {
        if turn <= self.newest() {
            return Err(NotStaged::OutOfTurn { newest: self.newest() });
        }
        let writes = self.left + self.writes.len() as u64;
        self.ends.push_back(End { turn, whole, sealed: false, writes, pos });
        Ok(())
    }

    /// Whether a turn may be sealed.
    pub fn check(&self, turn: u64) -> Result<(), NotStaged> {
        match self.sealed() {
            Some(newest) if turn <= newest => Err(NotStaged::OutOfTurn { newest }),
            _ => self.is_whole(turn).filter(|whole| *whole).map(drop).ok_or(NotStaged::NotWhole),
        }
    }

    /// A turn, and all before it, counts.
    pub fn seal(&mut self, turn: u64) -> Result<(), NotStaged> {
        self.check(turn)?;
        self.ends.iter_mut().filter(|end| end.turn == turn).for_each(|end| end.sealed = true);
        Ok(())
    }

    /// Whether a turn that has ended here is whole; `None` if it has not ended, or is in the volume.
    pub fn is_whole(&self, turn: u64) -> Option<bool> {
        self.ends.iter().find(|end| end.turn == turn).map(|end| end.whole)
    }

    /// The newest turn that counts.
    pub fn sealed(&self) -> Option<u64> {
        self.ends.iter().rev().find(|end| end.sealed).map(|end| end.turn).or(self.applied())
    }

    /// The turn the volume is at.
    pub fn applied(&self) -> Option<u64> {
        self.applied.map(|(turn, _)| turn)
    }

    /// Where in the log what the volume lacks begins.
    pub fn applied_to(&self) -> Option<u64> {
        self.applied.map(|(_, pos)| pos)
    }

    /// The newest turn that has ended, or is in the volume; zero if there is none.
    pub fn newest(&self) -> u64 {
        self.ends.back().map(|end| end.turn).or(self.applied()).unwrap_or(0)
    }

    /// The writes of a turn that has ended here and of those before it, in order.
    pub fn writes_to(&self, turn: u64) -> impl Iterator<Item = Write> {
        let count = self.ends.iter().find(|end| end.turn == turn).map_or(0, |end| end.writes - self.left);
        self.writes.iter().take(count as usize).copied()
    }

    /// They are in the volume.
    pub fn apply(&mut self, turn: u64) {
        let Some(end) = self.ends.iter().find(|end| end.turn == turn).copied() else { return };
        self.writes.drain(..(end.writes - self.left) as usize);
        self.left = end.writes;
        self.ends.retain(|other| other.turn > turn);
        self.applied = Some((turn, end.pos));
    }

    /// What came after a turn never happened. False, and nothing has changed, if it is neither sealed nor in the volume.
    pub fn go_back(&mut self, turn: u64) -> bool {
        let sealed = self.ends.iter().find(|end| end.turn == turn && end.sealed).map(|end| end.writes);
        let Some(writes) = sealed.or((self.applied() == Some(turn)).then_some(self.left)) else { return false };
        self.ends.retain(|end| end.turn <= turn);
        self.writes.truncate((writes - self.left) as usize);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Records as they stand in a log, each ten bytes long.
    fn fed(says: &[Say]) -> (Stage, Vec<Result<(), NotStaged>>) {
        let mut stage = Stage::over(Some(1), 0);
        let take = |(at, say): (usize, &Say)| {
            let pos = at as u64 * 10;
            stage.take(Found { say: *say, body: pos + 5, end: pos + 10 })
        };
        let results = says.iter().enumerate().map(take).collect();
        (stage, results)
    }

    fn places(stage: &Stage, turn: u64) -> Vec<u64> {
        stage.writes_to(turn).map(|write| write.at).collect()
    }

    const fn data(at: u64) -> Say {
        Say::Data { at, len: 4 }
    }

    const fn turn(turn: u64) -> Say {
        Say::Turn { turn, whole: true }
    }

    #[test]
    fn writes_between_the_end_of_a_turn_and_its_seal_are_of_the_next() {
        let (mut stage, results) =
            fed(&[data(1), Say::Zero { at: 2, len: 9 }, turn(2), data(3), Say::Seal { turn: 2 }]);
        assert!(results.iter().all(Result::is_ok));
        assert_eq!((stage.sealed(), stage.applied(), stage.newest()), (Some(2), Some(1), 2));
        assert_eq!(places(&stage, 2), [1, 2]);
        stage.apply(2);
        assert_eq!((stage.applied(), stage.applied_to()), (Some(2), Some(30)));
        stage.take(Found { say: turn(3), body: 0, end: 60 }).unwrap();
        assert_eq!(places(&stage, 3), [3]);
        assert!(stage.go_back(2));
        assert_eq!((stage.newest(), stage.writes.len()), (2, 0));
    }

    #[test]
    fn turns_are_in_order_and_whole() {
        let void = Say::Turn { turn: 3, whole: false };
        let table: [(&str, &[Say], Result<(), NotStaged>); 7] = [
            ("of the volume", &[turn(1)], Err(NotStaged::OutOfTurn { newest: 1 })),
            ("twice", &[turn(2), turn(2)], Err(NotStaged::OutOfTurn { newest: 2 })),
            ("left out", &[turn(5)], Ok(())),
            ("sealed before it ended", &[data(1), Say::Seal { turn: 2 }], Err(NotStaged::NotWhole)),
            ("void", &[void, Say::Seal { turn: 3 }], Err(NotStaged::NotWhole)),
            ("void, and the next", &[void, turn(4), Say::Seal { turn: 4 }], Ok(())),
            ("sealed again", &[turn(2), Say::Seal { turn: 2 }, Say::Seal { turn: 2 }], Ok(())),
        ];
        for (name, says, expected) in table {
            assert_eq!(fed(says).1.last(), Some(&expected), "{name}");
        }
    }

    #[test]
    fn only_a_sealed_turn_is_gone_back_to() {
        let says =
            [data(1), turn(2), Say::Seal { turn: 2 }, data(3), turn(3), data(4), turn(4), Say::Seal { turn: 4 }];
        for (to, is_there, left) in
            [(1, true, vec![]), (2, true, vec![1]), (3, false, vec![1, 3, 4]), (4, true, vec![1, 3, 4])]
        {
            let mut stage = fed(&says).0;
            assert_eq!(stage.go_back(to), is_there, "{to}");
            let all = stage.newest();
            assert_eq!(places(&stage, all), left, "{to}");
        }
    }
}
