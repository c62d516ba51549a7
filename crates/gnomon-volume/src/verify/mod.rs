//! Comparing two copies of a volume while it is in use: which blocks differ that nothing explains?
//!
//! ```text
//!   asker                                              answerer
//!   hash 64 units ──HashRange──► hash the same ──Hashes──► differ? ─no─► compared
//!                                                            │yes: the unit's blocks, one by one
//!                                                            │yes: look at ours again
//!                                          settled: a difference · written meanwhile: once more, later
//! ```
//!
//! Only blocks that both sides *claim* are compared: those that are valid here and of which nothing is owed to the
//! other. What is left out is counted. A block that both claim has the same content on both sides: that is the
//! invariant of [`crate::outbox`], and what is checked here. A guest that writes meanwhile makes a block owed, or
//! leaves a mark in the outbox ([`Outbox::watch`](crate::outbox::Outbox::watch)) when all of it was carried between
//! two looks; such a block is looked at again, and counted as unsettled if it never rests.

mod differences;
mod here;
mod replies;
mod side;

use std::{
    collections::VecDeque,
    sync::mpsc::{Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant as Clock},
};

use gnomon_proto::frame::{Message, Stream};
use gnomon_terms::{BLOCK_SIZE, BlockIndex, Bytes, ErrorKind, Extent};

pub use self::{
    differences::{Differences, LISTED},
    here::compare_here,
    replies::{Replies, Reply},
    side::{Claim, Digest, QUESTION_BLOCKS, Side, UNCLAIMED, grains},
};
use crate::{
    disk::{DiskError, layered::UNIT_BLOCKS},
    wire::{Wire, WireClosed},
};

/// Questions under way, 64 MiB of the volume: on a busy link each stands behind a whole window of copies of its class,
/// 4 MiB of them, and that wait is shared by all of these.
const WINDOW: usize = 16;
/// How often a block that was written meanwhile is looked at again before it counts as unsettled.
const LOOKS: usize = 20;
/// Between two looks: several round trips, in which a write is carried over.
const PAUSE: Duration = Duration::from_millis(50);
/// How long an answer may take. Questions are background work, so they stand behind a whole window of copies: 4 MiB take
/// half a minute at 1 Mbit/s, and more urgent classes go first. A dead link is found out by the link itself.
const ANSWER_WITHIN: Duration = Duration::from_secs(600);
/// How often somebody who waits looks whether he is still wanted.
const GLANCE: Duration = Duration::from_millis(100);

/// Why two copies could not be compared.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// Somebody wished it to end.
    #[error("the comparison was cancelled")]
    Cancelled,
    /// Two comparisons of the same copy would hide writes from each other.
    #[error("this copy is being compared already: wait for that, or cancel it")]
    Busy,
    /// The session with the other side is over.
    #[error("the session with the other copy has ended: compare again when there is one")]
    Link(#[from] WireClosed),
    /// No answer came.
    #[error("the other side did not answer for {waited:?} about blocks {extent:?}: see its log, then compare again")]
    Silent {
        /// What was asked.
        extent: Extent,
        /// For how long.
        waited: Duration,
    },
    /// The other side cannot hash what it was asked for.
    #[error("the other side cannot read blocks {extent:?} of its copy: see its log")]
    Declined {
        /// What was asked.
        extent: Extent,
    },
    /// The answer is not one to the question.
    #[error(
        "the other side answered with {hashes} hashes from block {start} on where {expected} from block {} on were \
         asked for: do both nodes run the same version?",
        extent.start.0
    )]
    Foreign {
        /// What was asked.
        extent: Extent,
        /// Hashes that belong to it.
        expected: usize,
        /// First block of the answer.
        start: u64,
        /// Hashes that came.
        hashes: usize,
    },
    /// Our copy cannot be read.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

impl VerifyError {
    /// What the caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            VerifyError::Cancelled | VerifyError::Busy => ErrorKind::Refused,
            VerifyError::Link(_) | VerifyError::Silent { .. } | VerifyError::Declined { .. } => {
                ErrorKind::Unavailable
            }
            VerifyError::Foreign { .. } => ErrorKind::Corrupt,
            VerifyError::Disk(error) => error.kind(),
        }
    }
}

/// What came of a comparison. Sizes are whole blocks, except at the volume's end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compared {
    /// Where the copies differ.
    pub differences: Differences,
    /// Bytes that are the same on both sides.
    pub same: Bytes,
    /// Bytes that were left out: one of the sides does not claim them yet.
    pub lacking: Bytes,
    /// Bytes that were written each time they were looked at.
    pub unsettled: Bytes,
}

/// Our side of a comparison, and the way to the other.
pub struct Asker<'a> {
    /// Our copy.
    pub ours: Side,
    /// Where the answers arrive.
    pub replies: &'a Replies,
    /// Where the questions go.
    pub wire: &'a dyn Wire,
    /// The volume, as the session numbers it.
    pub stream: Stream,
}

/// A question under way.
struct Asked {
    extent: Extent,
    ours: Vec<Digest>,
    answer: Receiver<Reply>,
}

/// A comparison under way.
struct Work<'a> {
    asker: &'a Asker<'a>,
    /// Told the bytes gone through; answers whether to go on.
    watch: &'a mut dyn FnMut(Bytes) -> bool,
    /// The next block to go through.
    at: u64,
    /// Extents to ask about block by block.
    narrowed: VecDeque<Extent>,
    /// Blocks to look at again.
    again: Vec<Extent>,
    asked: VecDeque<Asked>,
    found: Compared,
}

impl Asker<'_> {
    /// Compares all that both sides claim. Blocks until it is done; `watch` is told the bytes gone through and says
    /// whether to go on.
    pub fn compare(&self, watch: &mut dyn FnMut(Bytes) -> bool) -> Result<Compared, VerifyError> {
        let _turn = self.replies.turn.try_lock().ok_or(VerifyError::Busy)?;
        let mut work = Work {
            asker: self,
            watch,
            at: 0,
            narrowed: VecDeque::new(),
            again: Vec::new(),
            asked: VecDeque::new(),
            found: Compared::default(),
        };
        let outcome = work.run();
        self.replies.end();
        outcome?;
        Ok(work.found)
    }

    fn ask(&self, extent: Extent) -> Result<Asked, VerifyError> {
        // Before the question: what is written after our look and told before the answer is seen as a change.
        let ours = grains(extent).map(|grain| self.ours.look(grain)).collect::<Result<_, _>>()?;
        let (id, answer) = self.replies.expect();
        self.wire.send(Message::HashRange { stream: self.stream, id, extent })?;
        Ok(Asked { extent, ours, answer })
    }
}

impl Work<'_> {
    fn run(&mut self) -> Result<(), VerifyError> {
        self.pass()?;
        for _ in 0..LOOKS {
            if self.again.is_empty() {
                break;
            }
            thread::sleep(PAUSE);
            self.narrowed.extend(self.again.drain(..));
            self.pass()?;
        }
        let left: u64 = self.again.iter().map(|block| self.bytes(*block)).sum();
        self.found.unsettled.0 += left;
        Ok(())
    }

    /// Asks and judges until nothing is left to ask.
    fn pass(&mut self) -> Result<(), VerifyError> {
        loop {
            while self.asked.len() < WINDOW {
                let Some(extent) = self.narrowed.pop_front().or_else(|| self.next_question()) else { break };
                let asked = self.asker.ask(extent)?;
                self.asked.push_back(asked);
            }
            let Some(asked) = self.asked.pop_front() else { return Ok(()) };
            let theirs = self.await_answer(&asked)?;
            for ((grain, ours), theirs) in grains(asked.extent).zip(&asked.ours).zip(&theirs) {
                self.judge(asked.extent, grain, ours, theirs)?;
            }
            self.glance()?;
        }
    }

    /// The next run of units of which all is claimed here, or a unit of which some is; what is not is counted.
    fn next_question(&mut self) -> Option<Extent> {
        while self.next_unit().is_some_and(|unit| self.asker.ours.claim(unit) == Claim::None) {
            self.found.lacking.0 += self.next_unit().map_or(0, |unit| self.bytes(unit));
            self.at += UNIT_BLOCKS;
        }
        let begin = self.at;
        while let Some(unit) = self.next_unit().filter(|unit| unit.end().0 - begin <= QUESTION_BLOCKS) {
            let is_whole = self.asker.ours.claim(unit) == Claim::All;
            if !is_whole && self.at > begin {
                break;
            }
            self.at = unit.end().0;
            if !is_whole {
                break;
            }
        }
        (self.at > begin).then(|| Extent::new(begin, self.at - begin))
    }

    fn next_unit(&self) -> Option<Extent> {
        let blocks = self.asker.ours.blocks();
        (self.at < blocks).then(|| Extent::new(self.at, UNIT_BLOCKS.min(blocks - self.at)))
    }

    fn await_answer(&mut self, asked: &Asked) -> Result<Vec<Digest>, VerifyError> {
        let begun = Clock::now();
        loop {
            match asked.answer.recv_timeout(GLANCE) {
                Ok(reply) => return reply.to(asked.extent),
                Err(RecvTimeoutError::Disconnected) => return Err(VerifyError::Link(WireClosed)),
                Err(RecvTimeoutError::Timeout) => self.glance()?,
            }
            let waited = begun.elapsed();
            if waited > ANSWER_WITHIN {
                return Err(VerifyError::Silent { extent: asked.extent, waited });
            }
        }
    }

    fn glance(&mut self) -> Result<(), VerifyError> {
        let done = Bytes((self.at * BLOCK_SIZE).min(self.asker.ours.size().0));
        if (self.watch)(done) { Ok(()) } else { Err(VerifyError::Cancelled) }
    }

    /// What two hashes of `grain` say, which is a unit of a long `question` or a block of a short one.
    fn judge(&mut self, question: Extent, grain: Extent, ours: &Digest, theirs: &Digest) -> Result<(), VerifyError> {
        let unclaimed = *ours == UNCLAIMED || *theirs == UNCLAIMED;
        if !unclaimed && ours == theirs {
            self.found.same.0 += self.bytes(grain);
        } else if question.len.0 > UNIT_BLOCKS {
            self.narrowed.push_back(grain);
        } else if unclaimed {
            self.found.lacking.0 += self.bytes(grain);
        } else if self.asker.ours.is_unchanged(grain, ours)? {
            let bytes = self.bytes(grain);
            self.found.differences.add(BlockIndex(grain.start.0), bytes);
        } else {
            self.again.push(grain);
        }
        Ok(())
    }

    fn bytes(&self, extent: Extent) -> u64 {
        extent.bytes().0.min(self.asker.ours.size().0 - extent.start.byte())
    }
}
