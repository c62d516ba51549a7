//! The handover of a volume's epoch: how exactly one node is the writer, whatever is lost or killed.
//!
//! ```text
//!        giver (writer at e)                                taker (passive)
//!   Idle ──begin──► Asked            ──Prepare──►            Idle
//!                     │              ◄─Prepared─  Preparing ◄─┘ · writes down "prepared" · ► Prepared
//!                   Ready
//!    the caller fences its writes, knows what the taker lacks: decide
//!                   Deciding · writes down "given"  ◄── the commit point
//!                   Given            ──Commit──►            Taking · writes down "taken" · ► Taken (writer at e+1)
//!                   Done             ◄─Committed─
//!   Idle, Asked, Ready ──give_up──► Off  ──Abort──►          Off
//! ```
//!
//! Two-phase commit with the giver as coordinator. The giver's durable "given" decides; before it the giver is the
//! writer and may take everything back, after it never writes again. The taker writes only once it has "taken" on
//! record. A prepared taker that hears nothing stays passive and asks (`Prepared` again); a giver without a "given"
//! on record answers `Abort`, one with it answers `Commit`. So at every moment there is one writer or none.
//!
//! The machines do no I/O. Whoever drives them writes a record down when [`Giver::poll_record`] or
//! [`Taker::poll_record`] asks for it, says `recorded`, and sends what `poll_transmit` gives. After a crash they are
//! made anew from the records.
//!
//! Source: J. Gray, "Notes on Data Base Operating Systems", 1978, section 5.8.3.3 (two-phase commit).

use gnomon_terms::{Epoch, ErrorKind};
use serde::{Deserialize, Serialize};

use crate::frame::Step;

/// Which blocks the taker lacks, by count and check of the bitmap that goes with the commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Lacking {
    /// Bits set.
    pub count: u64,
    /// [`crate::bitmap::Bitmap::check`] of it.
    pub check: u64,
}

/// What a giver must find again after a crash. No record: it is the writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Given {
    /// The epoch that was given.
    pub epoch: EpochNumber,
    /// What the taker lacks.
    pub lacking: Lacking,
}

/// An epoch as records hold it.
pub type EpochNumber = u64;

/// What a taker must find again after a crash. No record: it knows of no handover.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TakerRecord {
    /// It has promised to take over at this epoch, and stays passive until it is told what came of it.
    Prepared(EpochNumber),
    /// It is the writer.
    Taken(EpochNumber),
}

/// A call that the state of a handover does not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a handover that is {is} cannot be {asked}")]
pub struct OutOfTurn {
    /// Where it is.
    pub is: &'static str,
    /// What was asked.
    pub asked: &'static str,
}

impl OutOfTurn {
    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Refused
    }
}

/// Where a giver is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum GiverState {
    /// Nothing has been said.
    Idle,
    /// The taker has been asked.
    Asked,
    /// The taker is prepared.
    Ready,
    /// "Given" is being written down; this node no longer writes.
    Deciding,
    /// "Given" is on record; the taker may not know it yet.
    Given,
    /// The taker is the writer and has said so.
    Done,
    /// Called off: this node is the writer.
    Off,
}

/// The side that is the writer and gives it up.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Giver {
    epoch: Epoch,
    state: GiverState,
    lacking: Option<Lacking>,
    say: Option<Step>,
}

impl Giver {
    /// A handover to the epoch after `current`.
    pub fn new(current: Epoch) -> Giver {
        Giver { epoch: current.next(), state: GiverState::Idle, lacking: None, say: None }
    }

    /// The handover that a record tells of.
    pub fn resume(record: Given) -> Giver {
        let mut giver =
            Giver { epoch: Epoch(record.epoch), state: GiverState::Given, lacking: Some(record.lacking), say: None };
        giver.connected();
        giver
    }

    /// The epoch of the writer to come.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Where it is.
    pub fn state(&self) -> GiverState {
        self.state
    }

    /// True while this node may write at the old epoch.
    pub fn may_write(&self) -> bool {
        matches!(self.state, GiverState::Idle | GiverState::Asked | GiverState::Ready | GiverState::Off)
    }

    /// Asks the taker whether it can.
    pub fn begin(&mut self) -> Result<(), OutOfTurn> {
        self.expect(GiverState::Idle, "begun")?;
        self.state = GiverState::Asked;
        self.say = Some(Step::Prepare);
        Ok(())
    }

    /// Decides: the caller has fenced its own writes and knows what the taker lacks. Next comes the record.
    pub fn decide(&mut self, lacking: Lacking) -> Result<(), OutOfTurn> {
        self.expect(GiverState::Ready, "decided")?;
        self.state = GiverState::Deciding;
        self.lacking = Some(lacking);
        Ok(())
    }

    /// What has to be durable before anything else is said.
    pub fn poll_record(&self) -> Option<Given> {
        match (self.state, self.lacking) {
            (GiverState::Deciding, Some(lacking)) => Some(Given { epoch: self.epoch.0, lacking }),
            _ => None,
        }
    }

    /// The record is durable.
    pub fn recorded(&mut self) {
        if self.state == GiverState::Deciding {
            self.state = GiverState::Given;
            self.connected();
        }
    }

    /// Calls it off. Possible until it is decided.
    pub fn give_up(&mut self) -> Result<(), OutOfTurn> {
        if !self.may_write() {
            return Err(OutOfTurn { is: self.state.name(), asked: "called off" });
        }
        self.state = GiverState::Off;
        self.say = Some(Step::Abort);
        Ok(())
    }

    /// A new connection, or time to say it again.
    pub fn connected(&mut self) {
        self.say = match (self.state, self.lacking) {
            (GiverState::Asked, _) => Some(Step::Prepare),
            (GiverState::Given, Some(Lacking { count, check })) => Some(Step::Commit { lacking: count, check }),
            (GiverState::Off, _) => Some(Step::Abort),
            _ => self.say,
        };
    }

    /// The taker said `step` about `epoch`. Steps of other epochs, and out of turn, change nothing.
    pub fn hear(&mut self, epoch: Epoch, step: Step) {
        if epoch != self.epoch {
            return;
        }
        match (self.state, step) {
            (GiverState::Asked, Step::Prepared) => self.state = GiverState::Ready,
            (GiverState::Asked | GiverState::Ready, Step::Aborted) => self.state = GiverState::Off,
            // It asks what came of it: without a decision nothing did, and whoever begins again may use the epoch.
            (GiverState::Idle, Step::Prepared) => self.say = Some(Step::Abort),
            (GiverState::Given | GiverState::Off, Step::Prepared) => self.connected(),
            (GiverState::Given, Step::Committed) => self.state = GiverState::Done,
            _ => {}
        }
    }

    /// What to say next.
    pub fn poll_transmit(&mut self) -> Option<Step> {
        self.say.take()
    }

    fn expect(&self, state: GiverState, asked: &'static str) -> Result<(), OutOfTurn> {
        match self.state == state {
            true => Ok(()),
            false => Err(OutOfTurn { is: self.state.name(), asked }),
        }
    }
}

impl GiverState {
    /// Its name, for messages.
    pub fn name(self) -> &'static str {
        match self {
            GiverState::Idle => "not begun",
            GiverState::Asked => "waiting for the other node",
            GiverState::Ready => "prepared",
            GiverState::Deciding | GiverState::Given => "decided",
            GiverState::Done => "over",
            GiverState::Off => "called off",
        }
    }
}

/// Where a taker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TakerState {
    /// It knows of no handover.
    Idle,
    /// "Prepared" is being written down.
    Preparing,
    /// "Prepared" is on record: passive, whatever happens, until it is told.
    Prepared,
    /// "Taken" is being written down.
    Taking,
    /// This node is the writer.
    Taken,
}

/// The side that becomes the writer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Taker {
    epoch: Epoch,
    state: TakerState,
    say: Option<Step>,
}

impl Taker {
    /// Nothing is known of a handover; epochs up to `current` are over.
    pub fn new(current: Epoch) -> Taker {
        Taker { epoch: current, state: TakerState::Idle, say: None }
    }

    /// What a record tells of.
    pub fn resume(record: TakerRecord) -> Taker {
        match record {
            TakerRecord::Prepared(epoch) => {
                Taker { epoch: Epoch(epoch), state: TakerState::Prepared, say: Some(Step::Prepared) }
            }
            TakerRecord::Taken(epoch) => {
                Taker { epoch: Epoch(epoch), state: TakerState::Taken, say: Some(Step::Committed) }
            }
        }
    }

    /// The epoch it is about.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Where it is.
    pub fn state(&self) -> TakerState {
        self.state
    }

    /// True once this node is the writer at [`Taker::epoch`].
    pub fn may_write(&self) -> bool {
        self.state == TakerState::Taken
    }

    /// The giver said `step` about `epoch`. `have` is the bitmap that has arrived for this epoch, if any: a commit
    /// counts only with the very bitmap it speaks of; without it the giver is asked again.
    pub fn hear(&mut self, epoch: Epoch, step: Step, have: Option<Lacking>) {
        match (self.state, step) {
            (TakerState::Idle, Step::Prepare) if epoch > self.epoch => {
                (self.epoch, self.state) = (epoch, TakerState::Preparing);
            }
            (TakerState::Prepared, Step::Prepare) if epoch > self.epoch => {
                // The giver has begun anew, so nothing came of the old one.
                (self.epoch, self.state) = (epoch, TakerState::Preparing);
            }
            (TakerState::Prepared, Step::Prepare) if epoch == self.epoch => self.say = Some(Step::Prepared),
            (TakerState::Prepared, Step::Commit { lacking, check }) if epoch == self.epoch => {
                self.take(epoch, have == Some(Lacking { count: lacking, check }));
            }
            // An old abort ended the promise of a handover that was begun again. The giver has decided all the same,
            // and a decision needs no promise.
            (TakerState::Idle, Step::Commit { lacking, check }) if epoch > self.epoch => {
                self.take(epoch, have == Some(Lacking { count: lacking, check }));
            }
            (TakerState::Preparing, Step::Commit { lacking, check }) if epoch >= self.epoch => {
                self.take(epoch, have == Some(Lacking { count: lacking, check }));
            }
            (TakerState::Taken, Step::Commit { .. }) if epoch == self.epoch => self.say = Some(Step::Committed),
            _ => {}
        }
    }

    /// The giver has decided: takes over with the right bitmap, and asks for it otherwise.
    fn take(&mut self, epoch: Epoch, right: bool) {
        match right {
            true => (self.epoch, self.state) = (epoch, TakerState::Taking),
            false => self.say = Some(Step::Prepared),
        }
    }

    /// The giver called the handover to `epoch` off. True when that ends a promise: the record may go.
    pub fn hear_abort(&mut self, epoch: Epoch) -> bool {
        let ends = epoch == self.epoch && matches!(self.state, TakerState::Prepared | TakerState::Preparing);
        if ends {
            self.state = TakerState::Idle;
            // The epoch may be offered again: it was never anybody's.
            self.epoch = Epoch(epoch.0.saturating_sub(1));
            self.say = None;
        }
        ends
    }

    /// What has to be durable before anything else is said.
    pub fn poll_record(&self) -> Option<TakerRecord> {
        match self.state {
            TakerState::Preparing => Some(TakerRecord::Prepared(self.epoch.0)),
            TakerState::Taking => Some(TakerRecord::Taken(self.epoch.0)),
            _ => None,
        }
    }

    /// The record is durable.
    pub fn recorded(&mut self) {
        match self.state {
            TakerState::Preparing => (self.state, self.say) = (TakerState::Prepared, Some(Step::Prepared)),
            TakerState::Taking => (self.state, self.say) = (TakerState::Taken, Some(Step::Committed)),
            _ => {}
        }
    }

    /// What to say next, about [`Taker::epoch`].
    pub fn poll_transmit(&mut self) -> Option<Step> {
        self.say.take()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashSet};

    use super::*;

    const LACKING: Lacking = Lacking { count: 3, check: 7 };

    /// Two nodes, what they have on record, and everything that is under way between them.
    #[derive(Clone, PartialEq, Eq, Hash)]
    struct World {
        giver: Giver,
        giver_record: Option<Given>,
        taker: Taker,
        taker_record: Option<TakerRecord>,
        /// Messages under way: any may be lost, delivered twice, or in another order.
        to_taker: BTreeSet<(Epoch, Step)>,
        to_giver: BTreeSet<(Epoch, Step)>,
        /// Whether the bitmap of the commit has arrived in this life of the taker.
        bitmap: bool,
        crashes: u8,
        tries: u8,
    }

    impl World {
        fn new() -> World {
            World {
                giver: Giver::new(Epoch(1)),
                giver_record: None,
                taker: Taker::new(Epoch(1)),
                taker_record: None,
                to_taker: BTreeSet::new(),
                to_giver: BTreeSet::new(),
                bitmap: false,
                crashes: 2,
                tries: 2,
            }
        }

        /// Everything that can happen next.
        fn successors(&self) -> Vec<World> {
            let mut next = Vec::new();
            let mut add = |deed: &dyn Fn(&mut World) -> bool| {
                let mut world = self.clone();
                if deed(&mut world) {
                    next.push(world);
                }
            };
            add(&|w| w.giver.begin().is_ok());
            add(&|w| w.giver.decide(LACKING).is_ok());
            add(&|w| w.giver.give_up().is_ok());
            add(&|w| {
                w.giver.connected();
                true
            });
            add(&|w| w.giver.poll_transmit().is_some_and(|step| w.to_taker.insert((w.giver.epoch(), step))));
            add(&|w| w.taker.poll_transmit().is_some_and(|step| w.to_giver.insert((w.taker.epoch(), step))));
            add(&|w| {
                let record = w.giver.poll_record();
                w.giver_record = record.or(w.giver_record);
                w.giver.recorded();
                record.is_some()
            });
            add(&|w| {
                let record = w.taker.poll_record();
                w.taker_record = record.or(w.taker_record);
                w.taker.recorded();
                record.is_some()
            });
            add(&|w| !std::mem::replace(&mut w.bitmap, true));
            for (epoch, step) in &self.to_taker {
                add(&|w| {
                    let have = w.bitmap.then_some(LACKING);
                    if *step == Step::Abort {
                        if w.taker.hear_abort(*epoch) {
                            w.taker_record = None;
                        }
                    } else {
                        w.taker.hear(*epoch, *step, have);
                    }
                    true
                });
                add(&|w| w.to_taker.remove(&(*epoch, *step)));
            }
            for (epoch, step) in &self.to_giver {
                add(&|w| {
                    w.giver.hear(*epoch, *step);
                    true
                });
                add(&|w| w.to_giver.remove(&(*epoch, *step)));
            }
            add(&|w| w.crash_giver());
            add(&|w| w.crash_taker());
            add(&|w| w.begin_again());
            next
        }

        fn crash_giver(&mut self) -> bool {
            if self.crashes == 0 {
                return false;
            }
            self.crashes -= 1;
            self.giver = self.giver_record.map_or(Giver::new(Epoch(1)), Giver::resume);
            true
        }

        fn crash_taker(&mut self) -> bool {
            if self.crashes == 0 {
                return false;
            }
            self.crashes -= 1;
            self.bitmap = false;
            self.taker = self.taker_record.map_or(Taker::new(Epoch(1)), Taker::resume);
            true
        }

        /// After it was called off, the giver tries once more, at the same epoch.
        fn begin_again(&mut self) -> bool {
            if self.tries == 0 || self.giver.state() != GiverState::Off {
                return false;
            }
            self.tries -= 1;
            self.giver = Giver::new(Epoch(1));
            true
        }

        fn one_writer(&self) -> bool {
            !(self.giver.may_write() && (self.taker.may_write() || self.taker_record == Some(TakerRecord::Taken(2))))
        }
    }

    /// Walks everything that can happen, and holds each state to the promises.
    fn explore(check: impl Fn(&World, &World)) -> Vec<World> {
        let (mut seen, mut queue) = (HashSet::new(), vec![World::new()]);
        while let Some(world) = queue.pop() {
            if !seen.insert(world.clone()) {
                continue;
            }
            for next in world.successors() {
                check(&world, &next);
                if !seen.contains(&next) {
                    queue.push(next);
                }
            }
        }
        seen.into_iter().collect()
    }

    #[test]
    fn one_writer_at_most_and_a_commit_is_final() {
        let all = explore(|before, after| {
            assert!(after.one_writer(), "two writers");
            if before.giver_record.is_some() {
                assert!(after.giver_record == before.giver_record && !after.giver.may_write(), "taken back");
            }
            if before.taker_record == Some(TakerRecord::Taken(2)) {
                assert!(after.taker_record == before.taker_record, "the writer forgot that it is");
            }
        });
        assert!(all.len() > 10_000, "{} states are no exploration", all.len());
        let ends: HashSet<(bool, bool)> = all.iter().map(|w| (w.giver.may_write(), w.taker.may_write())).collect();
        assert!(ends.contains(&(true, false)) && ends.contains(&(false, true)), "both ends are reached");
    }

    /// From whatever state: when nothing is lost any more and both sides talk, there is a writer.
    #[test]
    fn whatever_happened_it_comes_to_an_end() {
        for mut world in explore(|_, _| {}).into_iter().step_by(37) {
            world.bitmap = true;
            for _ in 0..20 {
                world.giver.connected();
                if let Some(record) = world.giver.poll_record() {
                    world.giver_record = Some(record);
                    world.giver.recorded();
                }
                if let Some(step) = world.giver.poll_transmit() {
                    let epoch = world.giver.epoch();
                    match step {
                        Step::Abort => _ = world.taker.hear_abort(epoch),
                        step => world.taker.hear(epoch, step, Some(LACKING)),
                    }
                }
                world.taker.recorded();
                if let Some(step) = world.taker.poll_transmit() {
                    world.giver.hear(world.taker.epoch(), step);
                }
            }
            assert!(world.giver.may_write() != world.taker.may_write(), "nobody, or both, may write");
        }
    }

    #[test]
    fn a_commit_with_another_bitmap_is_asked_again() {
        let mut taker = Taker::resume(TakerRecord::Prepared(2));
        taker.poll_transmit();
        taker.hear(Epoch(2), Step::Commit { lacking: 3, check: 7 }, Some(Lacking { count: 3, check: 8 }));
        assert_eq!((taker.state(), taker.poll_transmit()), (TakerState::Prepared, Some(Step::Prepared)));
    }

    #[test]
    fn what_is_decided_cannot_be_called_off() {
        let mut giver = Giver::resume(Given { epoch: 2, lacking: LACKING });
        assert!(giver.give_up().is_err() && giver.begin().is_err() && giver.decide(LACKING).is_err());
        assert_eq!(giver.poll_transmit(), Some(Step::Commit { lacking: 3, check: 7 }));
    }
}
