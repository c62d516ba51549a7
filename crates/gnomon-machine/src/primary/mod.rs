//! The primary's side of a shadow: checkpoint after checkpoint of a running guest, said so that little is carried.
//!
//! ```text
//!   guest runs                           stands                        runs
//!   ────────────────────────────────────┐        ┌────────────────────────────────────────────►
//!   scan, send, scan …  scan, copy, scan│ devices│ code and send the copies · devices · Seal     … Sealed
//!   (while it is much)  (while it       │ scan   │
//!                        shrinks)       │ copy   │
//! ```
//! Coding takes ten times as long as copying, and a guest writes meanwhile: so the last passes beside the running guest
//! copy only, which leaves little for the one in which it stands. The link is never waited for while it stands. What a scan reports is owed until the shadow has sealed it
//! (`ledger`), whatever happens in between: a lost session costs bytes, and no page.
//!
//! [`Replicator`] is one struct with one owner, blocks, and has no thread of its own. The thread that reads the link
//! tells it what the shadow answers through [`Acks`].
//!
//! Source: B. Cully et al., "Remus: High Availability via Asynchronous Virtual Machine Replication", NSDI 2008.

mod acks;
mod beside;
mod copies;
mod error;
mod hypervisor;
mod ledger;
mod rhythm;
mod sender;
mod told;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use gnomon_proto::frame::{Mark, Stream};
use gnomon_qemu::{DirtyTracker, StateError, TrackError};
use gnomon_terms::{Bytes, BytesPerSecond, Epoch, PageCount, PageRun, PageSet};

pub use acks::Acks;
pub use error::ReplicateError;
pub use hypervisor::{Hypervisor, QemuHypervisor};
pub use ledger::Resume;
pub use rhythm::Pace;
pub use told::{Codings, Told};

use crate::{
    page::{Page, ZERO_PAGE},
    wire::{Wire, WireClosed},
};
use copies::Copies;
use ledger::Ledger;
use rhythm::Rhythm;
use sender::Sender;

/// More pages than this, 32 MiB, are coded and sent beside the running guest: so much is spent on copies.
const MUCH: PageCount = PageCount(8192);

/// Pages that are left for the standing guest: copying 256 KiB takes it 50 µs, less than another look at which pages
/// were written.
const QUICK: PageCount = PageCount(64);

/// Room that is made ahead for the pages that are found when the guest stands: 16 MiB.
const AHEAD_OF_STANDING: PageCount = PageCount(4096);

/// Passes of either kind beside the running guest, at most. Each leaves what was written meanwhile.
const ROUNDS: u32 = 8;

/// Pages read at once beside the running guest: 256 KiB.
const AT_ONCE: u64 = 64;

/// Checkpoints that may be on their way: one is being applied while the next one is sent.
const AHEAD: usize = 2;

/// Links slower than this are helped by zstd: it packs pages faster than this on one core.
const PACK_BELOW: BytesPerSecond = BytesPerSecond(200_000_000);

/// What is said of a guest that is to be replicated.
pub struct Setup {
    /// Names the guest on the link.
    pub stream: Stream,
    /// The epoch of its host.
    pub epoch: Epoch,
    /// How much memory may be spent on remembering what the shadow has: what deltas and duplicates are found with.
    pub memory: Bytes,
    /// How often it is checkpointed.
    pub pace: Pace,
    /// How fast the link is, if that is known.
    pub link: Option<BytesPerSecond>,
    /// How long the shadow may be silent before a checkpoint is not begun.
    pub patience: Duration,
}

/// How far the volumes of a guest have got, asked while it stands for the checkpoint of this number; or why that cannot
/// be said. What it has sent until now is of that checkpoint, too.
pub type Marks = Box<dyn FnMut(u64) -> Result<Vec<Mark>, String> + Send>;

/// Replicates one guest.
pub struct Replicator {
    hypervisor: Box<dyn Hypervisor>,
    tracker: Box<dyn DirtyTracker>,
    marks: Marks,
    ledger: Ledger,
    sender: Sender,
    session: Option<Session>,
    /// The newest checkpoint that was sent whole.
    last: u64,
    epoch: Epoch,
    rhythm: Rhythm,
    patience: Duration,
    copies: Copies,
    /// What the last scan reported.
    fresh: PageSet,
    buffer: Vec<u8>,
}

struct Session {
    wire: Arc<dyn Wire>,
    acks: Acks,
}

impl Replicator {
    /// A guest that is not replicated yet: [`Replicator::connect`] begins.
    pub fn new(
        setup: Setup,
        hypervisor: Box<dyn Hypervisor>,
        tracker: Box<dyn DirtyTracker>,
        marks: Marks,
    ) -> Replicator {
        let mut replicator = Replicator {
            hypervisor,
            tracker,
            marks,
            ledger: Ledger::default(),
            sender: Sender::new(setup.stream, setup.epoch, setup.memory),
            session: None,
            last: 0,
            epoch: setup.epoch,
            rhythm: Rhythm::new(setup.pace),
            patience: setup.patience,
            copies: Copies::default(),
            fresh: PageSet::new(),
            buffer: Vec::new(),
        };
        replicator.set_link(setup.link);
        replicator
    }

    /// Begins a session with a shadow that has checkpoint `has` ([`crate::shadow::Shadow::has`]). What the shadow
    /// answers is to be told to the [`Acks`] that are returned, until the next session. A session before is over.
    pub fn connect(&mut self, wire: Arc<dyn Wire>, has: Option<(Epoch, u64)>) -> (Acks, Resume) {
        self.disconnect();
        let ours = has.filter(|(epoch, _)| *epoch == self.epoch).map(|(_, checkpoint)| checkpoint);
        let resume = self.ledger.resume(ours, self.last, self.tracker.pages());
        // Numbers go on from what the shadow has seen, whoever sent it.
        self.last = self.last.max(has.map_or(0, |(_, checkpoint)| checkpoint));
        let acks = Acks::default();
        self.session = Some(Session { wire, acks: acks.clone() });
        (acks, resume)
    }

    /// Ends the session. What was on its way is settled when the next one begins, by what the shadow has then.
    pub fn disconnect(&mut self) {
        self.session = None;
        self.sender.clear();
    }

    /// Whether there is a session.
    pub fn is_connected(&self) -> bool {
        self.session.is_some()
    }

    /// The newest checkpoint the shadow is known to have: what would be gone on from if this host died now.
    pub fn sealed(&self) -> Option<u64> {
        let heard = self.session.as_ref().and_then(|session| session.acks.heard().sealed);
        self.ledger.newest_sealed().max(heard.filter(|sealed| *sealed <= self.last))
    }

    /// The number that the next checkpoint will have.
    pub fn upcoming(&self) -> u64 {
        self.last + 1
    }

    /// How long to wait until the next checkpoint is due.
    pub fn due_in(&self) -> Duration {
        self.rhythm.due_in(Instant::now())
    }

    /// Another pace, from the next checkpoint on.
    pub fn set_pace(&mut self, pace: Pace) {
        self.rhythm.set_pace(pace);
    }

    /// The link is so fast; decides on packing and, with an adaptive pace, on the interval.
    pub fn set_link(&mut self, link: Option<BytesPerSecond>) {
        self.rhythm.link = link;
        self.sender.packs = link.is_some_and(|rate| rate < PACK_BELOW);
    }

    /// Takes a checkpoint, now, and sends it. The guest stands for some milliseconds within. Returns when all is sent;
    /// that the shadow has it is known later ([`Replicator::await_sealed`], or the next checkpoint). Blocks while the
    /// link is full, and up to the patience while the shadow is behind.
    pub fn checkpoint(&mut self) -> Result<Told, ReplicateError> {
        let done = self.attempt();
        self.settled(done)
    }

    /// Takes the last checkpoint and leaves the guest standing. When this returns `Ok`, the shadow has sealed it: the
    /// guest can go on there ([`Replicator::hand_over`]), or here ([`Replicator::go_on`]). After an error it runs.
    pub fn freeze(&mut self) -> Result<Told, ReplicateError> {
        let frozen = self.attempt_to_freeze();
        if frozen.is_err() {
            // The first error is the cause; a guest that does not go on is the worse news.
            self.go_on()?;
        }
        self.settled(frozen)
    }

    /// Makes a guest that was frozen run on here; how long it stood.
    pub fn go_on(&mut self) -> Result<Duration, ReplicateError> {
        let checkpoint = self.last;
        self.hypervisor.go_on().map_err(|source| ReplicateError::State { checkpoint, source })
    }

    /// Leaves a guest that was frozen standing here for good. It must be fenced, and go on elsewhere.
    pub fn hand_over(mut self) {
        self.hypervisor.hand_over();
    }

    /// Waits until the shadow has sealed a checkpoint that was sent.
    pub fn await_sealed(&mut self, checkpoint: u64) -> Result<(), ReplicateError> {
        let patience = self.patience;
        let done = self.hear(patience, |sealed| sealed >= Some(checkpoint)).and_then(|()| {
            let (unsealed, after) = (self.ledger.unsealed(), patience);
            match self.ledger.newest_sealed() >= Some(checkpoint) {
                true => Ok(()),
                false => Err(ReplicateError::Behind { unsealed, after }),
            }
        });
        self.settled(done)
    }

    fn attempt(&mut self) -> Result<Told, ReplicateError> {
        self.make_way()?;
        let began = Instant::now();
        let mut told = self.begin(began);
        self.while_it_is_more_than(MUCH, &mut told)?;
        self.copy_while_it_runs(&mut told)?;
        let marks = self.while_it_stands(&mut told)?;
        self.send_copies(told.checkpoint)?;
        self.finish(&mut told, marks)?;
        told.took = began.elapsed();
        self.rhythm.observe(&told, began);
        Ok(told)
    }

    /// The same without haste after the guest stands: it does not go on here.
    fn attempt_to_freeze(&mut self) -> Result<Told, ReplicateError> {
        self.make_way()?;
        let began = Instant::now();
        let mut told = self.begin(began);
        // What is sent before it stands is not sent while it does.
        self.while_it_is_more_than(QUICK, &mut told)?;
        told.stood_at = Some(Instant::now());
        self.stand(told.checkpoint)?;
        self.scan(told.checkpoint)?;
        told.standing = self.ledger.owed.count();
        let marks = self.mark(told.checkpoint)?;
        self.send_owed(told.checkpoint)?;
        self.finish(&mut told, marks)?;
        self.await_sealed(told.checkpoint)?;
        told.took = began.elapsed();
        Ok(told)
    }

    /// A session that an error has ended is given up.
    fn settled<T>(&mut self, done: Result<T, ReplicateError>) -> Result<T, ReplicateError> {
        if done.as_ref().is_err_and(ReplicateError::ends_the_session) {
            self.disconnect();
        }
        done
    }

    /// Waits until no more than [`AHEAD`] checkpoints will be on their way with the next one.
    fn make_way(&mut self) -> Result<(), ReplicateError> {
        let patience = self.patience;
        // The newest that has to be sealed for that; numbers rise by one.
        let needed = (self.last + 1).checked_sub(AHEAD as u64).filter(|needed| *needed > 0);
        let is_behind = self.ledger.unsealed() >= AHEAD;
        self.hear(patience, |sealed| !is_behind || sealed >= needed)?;
        match self.ledger.unsealed() {
            unsealed if unsealed >= AHEAD => Err(ReplicateError::Behind { unsealed, after: patience }),
            _ => Ok(()),
        }
    }

    /// Takes in what the shadow has answered, after waiting for `enough` of it.
    fn hear(&mut self, patience: Duration, enough: impl Fn(Option<u64>) -> bool) -> Result<(), ReplicateError> {
        let acks = self.session()?.acks.clone();
        let heard = acks.wait(patience, |heard| heard.gone || heard.refused.is_some() || enough(heard.sealed));
        match (heard.refused, heard.sealed) {
            (_, Some(claimed)) if claimed > self.last => {
                return Err(ReplicateError::NeverSent { claimed, last: self.last });
            }
            (_, Some(sealed)) => self.ledger.sealed(sealed),
            (_, None) => {}
        }
        match heard.refused {
            Some(checkpoint) => Err(ReplicateError::Refused { checkpoint }),
            None if heard.gone => Err(WireClosed.into()),
            None => Ok(()),
        }
    }

    fn begin(&self, now: Instant) -> Told {
        Told { checkpoint: self.last + 1, after: self.rhythm.since_last(now), ..Told::default() }
    }

    /// Codes and sends pages beside the running guest until so few are left, or no fewer.
    fn while_it_is_more_than(&mut self, few: PageCount, told: &mut Told) -> Result<(), ReplicateError> {
        if self.tracker.tier().needs_standing_guest() {
            return Ok(());
        }
        let mut before = None;
        loop {
            self.scan(told.checkpoint)?;
            let owed = self.ledger.owed.count();
            if !another_round(told.rounds, owed, before, few) {
                return Ok(());
            }
            self.send_owed(told.checkpoint)?;
            told.rounds += 1;
            told.running = PageCount(told.running.0 + owed.0);
            before = Some(owed);
        }
    }

    /// Copies what is owed, and then what was written meanwhile, until that is little, or no less. All of it stays owed.
    fn copy_while_it_runs(&mut self, told: &mut Told) -> Result<(), ReplicateError> {
        self.copies.clear();
        if self.tracker.tier().needs_standing_guest() || self.ledger.owed.count() > MUCH {
            // What is owed from before was not reported by the scan to come.
            self.fresh.clone_from(&self.ledger.owed);
            return Ok(());
        }
        let (mut rounds, mut before) = (0, None);
        self.fresh.clone_from(&self.ledger.owed);
        loop {
            self.copy(told.checkpoint)?;
            told.running = PageCount(told.running.0 + self.fresh.count().0);
            self.fresh.clear();
            self.scan(told.checkpoint)?;
            let owed = self.fresh.count();
            if !another_round(rounds, owed, before, QUICK) {
                return Ok(());
            }
            rounds += 1;
            before = Some(owed);
        }
    }

    /// The guest stands for the time of this call. What was reported and not copied is copied then.
    fn while_it_stands(&mut self, told: &mut Told) -> Result<Vec<Mark>, ReplicateError> {
        self.copies.reserve(PageCount(self.fresh.count().0 + AHEAD_OF_STANDING.0));
        let copied_before = self.copies.count();
        self.stand(told.checkpoint)?;
        let copied = self.scan(told.checkpoint).and_then(|()| self.copy(told.checkpoint));
        let marks = self.mark(told.checkpoint);
        told.pause = self.hypervisor.go_on().map_err(|e| state(told.checkpoint, e))?;
        copied?;
        told.standing = PageCount(self.copies.count().0 - copied_before.0);
        marks
    }

    fn mark(&mut self, checkpoint: u64) -> Result<Vec<Mark>, ReplicateError> {
        (self.marks)(checkpoint).map_err(|why| ReplicateError::Volumes { checkpoint, why })
    }

    fn stand(&mut self, checkpoint: u64) -> Result<(), ReplicateError> {
        self.hypervisor.stand().map_err(|source| state(checkpoint, source))
    }

    /// What was written since the last scan is owed, and added to what is fresh.
    fn scan(&mut self, checkpoint: u64) -> Result<(), ReplicateError> {
        let mut written = PageSet::new();
        let scanned = self.tracker.scan(&mut written);
        self.ledger.owed.union(&written);
        self.fresh.union(&written);
        scanned.map(drop).map_err(|source| track(checkpoint, source))
    }

    /// Copies what is fresh.
    fn copy(&mut self, checkpoint: u64) -> Result<(), ReplicateError> {
        self.copies.take(&*self.tracker, &self.fresh).map_err(|source| track(checkpoint, source))
    }

    /// Sends what is owed as it is now. It is owed until all of it was read.
    fn send_owed(&mut self, checkpoint: u64) -> Result<(), ReplicateError> {
        let wire = self.session()?.wire.clone();
        let pages = self.ledger.owed.clone();
        let read = pages.runs().iter().try_for_each(|run| self.send_run(checkpoint, *run, &*wire));
        self.sender.flush(checkpoint, &*wire)?;
        read?;
        self.ledger.take();
        Ok(())
    }

    fn send_run(&mut self, checkpoint: u64, run: PageRun, wire: &dyn Wire) -> Result<(), ReplicateError> {
        for start in (run.start.0..run.end().0).step_by(AT_ONCE as usize) {
            let piece = PageRun::new(start, AT_ONCE.min(run.end().0 - start));
            self.tracker
                .read(piece.start, room(&mut self.buffer, piece.len))
                .map_err(|source| track(checkpoint, source))?;
            for (page, content) in piece.pages().zip(pages_of(&self.buffer)) {
                self.sender.page(checkpoint, page, content, wire)?;
            }
        }
        Ok(())
    }

    /// Sends the copies: they are of all that is owed.
    fn send_copies(&mut self, checkpoint: u64) -> Result<(), ReplicateError> {
        let wire = self.session()?.wire.clone();
        let owed = self.ledger.take();
        debug_assert!(owed.pages().eq(self.copies.pages().map(|(page, _)| page)), "all that is owed was copied");
        for (page, content) in self.copies.pages() {
            self.sender.page(checkpoint, page, content, &*wire)?;
        }
        Ok(self.sender.flush(checkpoint, &*wire)?)
    }

    /// Sends the devices and the seal.
    fn finish(&mut self, told: &mut Told, marks: Vec<Mark>) -> Result<(), ReplicateError> {
        let device = self.hypervisor.device().map_err(|source| state(told.checkpoint, source))?;
        let wire = self.session()?.wire.clone();
        self.sender.device(told.checkpoint, device, &*wire)?;
        // From here on it may be sealed, and its number is used.
        self.last = told.checkpoint;
        self.ledger.close(told.checkpoint);
        self.sender.seal(told.checkpoint, marks, &*wire)?;
        let spent = self.sender.spent();
        told.codings = spent.codings;
        (told.bytes, told.device) = (Bytes(spent.bytes), Bytes(spent.device));
        told.unsealed = self.ledger.unsealed();
        Ok(())
    }

    fn session(&self) -> Result<&Session, WireClosed> {
        self.session.as_ref().ok_or(WireClosed)
    }
}

/// Whether to take so many pages beside the running guest, after `before` in the round before: if they are more than
/// `few`, and if that makes them fewer.
fn another_round(rounds: u32, owed: PageCount, before: Option<PageCount>, few: PageCount) -> bool {
    rounds < ROUNDS && owed > few && before.is_none_or(|before| owed.0 < before.0 / 4 * 3)
}

/// Room for so many pages at the beginning of a buffer that only grows.
fn room(buffer: &mut Vec<u8>, pages: PageCount) -> &mut [u8] {
    let length = pages.bytes().0 as usize;
    if buffer.len() < length {
        buffer.resize(length, 0);
    }
    &mut buffer[..length]
}

/// Whole pages.
fn pages_of(bytes: &[u8]) -> &[Page] {
    bytes.as_chunks::<{ ZERO_PAGE.len() }>().0
}

fn state(checkpoint: u64, source: StateError) -> ReplicateError {
    ReplicateError::State { checkpoint, source }
}

fn track(checkpoint: u64, source: TrackError) -> ReplicateError {
    ReplicateError::Track { checkpoint, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_go_on_while_they_help() {
        let table = [
            ("few pages are left for later", 0, 512, None, false),
            ("many are sent before", 0, 513, None, true),
            ("all of the memory, then what was written meanwhile", 1, 9_000, Some(65_536), true),
            ("as many as before", 2, 9_000, Some(9_000), false),
            ("hardly fewer", 2, 8_000, Some(9_000), false),
            ("never for ever", 8, 1_000, Some(9_000), false),
        ];
        for (name, rounds, owed, before, expected) in table {
            let before = before.map(PageCount);
            assert_eq!(another_round(rounds, PageCount(owed), before, PageCount(512)), expected, "{name}");
        }
    }
}
