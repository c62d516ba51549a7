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
//! tells it what the shadow answers through [`Acks`]. A guest with several shadows has a replicator, and a thread, for each:
//! they share a [`Guest`], which stands once for all of them that are ready.
//!
//! Source: B. Cully et al., "Remus: High Availability via Asynchronous Virtual Machine Replication", NSDI 2008.

mod acks;
mod beside;
mod copies;
mod error;
mod guest;
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
pub use guest::Guest;
pub use hypervisor::{Hypervisor, QemuHypervisor};
pub use ledger::Resume;
pub use rhythm::Pace;
pub use told::{Codings, Told};

use crate::{
    page::{Page, ZERO_PAGE},
    wire::{Wire, WireClosed},
};
use guest::{Captured, LegId, ours};
use sender::Sender;

/// More pages than this, 32 MiB, are coded and sent beside the running guest: so much is spent on copies.
const MUCH: PageCount = PageCount(8192);

/// Pages that are left for the standing guest: copying 256 KiB takes it 50 µs, less than another look at which pages
/// were written.
const QUICK: PageCount = PageCount(64);

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

/// Replicates one guest to one shadow.
pub struct Replicator {
    guest: Arc<Guest>,
    /// Its name there.
    leg: LegId,
    sender: Sender,
    session: Option<Session>,
    /// The newest checkpoint that was sent whole, or that the shadow had when a session began.
    last: u64,
    epoch: Epoch,
    patience: Duration,
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
        let guest = Guest::new(hypervisor, tracker, setup.pace);
        Replicator::of(&guest, setup, marks)
    }

    /// Replicates a guest to another shadow, beside those it has. Its pace is the guest's, whatever `setup` says.
    pub fn of(guest: &Arc<Guest>, setup: Setup, marks: Marks) -> Replicator {
        let leg = guest.lock().add(marks);
        let mut replicator = Replicator {
            guest: Arc::clone(guest),
            leg,
            sender: Sender::new(setup.stream, setup.epoch, setup.memory),
            session: None,
            last: 0,
            epoch: setup.epoch,
            patience: setup.patience,
            buffer: Vec::new(),
        };
        replicator.set_link(setup.link);
        replicator
    }

    /// The guest, for replicators to its other shadows. It is let go of with the last of them.
    pub fn guest(&self) -> &Arc<Guest> {
        &self.guest
    }

    /// The epoch that it says.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// From now on `wake` is called when a checkpoint for another shadow was one for this, too:
    /// [`Replicator::checkpoint`] sends it. Called while the guest is locked: it may do no more than wake somebody.
    pub fn on_captured(&self, wake: impl Fn() + Send + 'static) {
        self.guest.lock().on_captured(self.leg, Box::new(wake));
    }

    /// Begins a session with a shadow that has checkpoint `has` ([`crate::shadow::Shadow::has`]). What the shadow
    /// answers is to be told to the [`Acks`] that are returned, until the next session. A session before is over.
    pub fn connect(&mut self, wire: Arc<dyn Wire>, has: Option<(Epoch, u64)>) -> (Acks, Resume) {
        self.disconnect();
        let acks = Acks::default();
        let mut guest = self.guest.lock();
        let resume = guest.connect(self.leg, acks.clone(), ours(has, self.epoch), self.last);
        // Numbers go on from what the shadow has seen, whoever sent it.
        let newest = has.map_or(0, |(_, checkpoint)| checkpoint);
        self.last = self.last.max(newest);
        guest.last = guest.last.max(newest);
        drop(guest);
        self.session = Some(Session { wire, acks: acks.clone() });
        (acks, resume)
    }

    /// Ends the session. What was on its way is settled when the next one begins, by what the shadow has then.
    pub fn disconnect(&mut self) {
        self.session = None;
        self.guest.lock().disconnect(self.leg);
        self.sender.clear();
    }

    /// Whether there is a session.
    pub fn is_connected(&self) -> bool {
        self.session.is_some()
    }

    /// The newest checkpoint the shadow is known to have: what would be gone on from if this host died now.
    pub fn sealed(&self) -> Option<u64> {
        let heard = self.session.as_ref().and_then(|session| session.acks.heard().sealed);
        let known = self.guest.lock().leg(self.leg).ledger.newest_sealed();
        known.max(heard.filter(|sealed| *sealed <= self.last))
    }

    /// The number that the next checkpoint will have, if none is taken for another shadow before.
    pub fn upcoming(&self) -> u64 {
        self.guest.lock().last + 1
    }

    /// How long to wait until the next checkpoint is due.
    pub fn due_in(&self) -> Duration {
        self.guest.lock().rhythm.due_in(Instant::now())
    }

    /// Whether there is nothing to do before that: the next checkpoint is one for this shadow, whoever leads it. Not so
    /// when one has been captured that is to be sent, or when this shadow is owed too much or was never sent one.
    pub fn may_wait(&self) -> bool {
        self.guest.lock().would_join(self.leg)
    }

    /// Another pace, from the next checkpoint on, of the guest and so for all of its shadows.
    pub fn set_pace(&mut self, pace: Pace) {
        self.guest.lock().rhythm.set_pace(pace);
    }

    /// The link is so fast; decides on packing and, with an adaptive pace, on the interval.
    pub fn set_link(&mut self, link: Option<BytesPerSecond>) {
        self.guest.lock().set_link(link);
        self.sender.packs = link.is_some_and(|rate| rate < PACK_BELOW);
    }

    /// Takes a checkpoint, now, and sends it; one that was captured with another shadow's is sent instead. The guest stands
    /// for some milliseconds within. Returns when all is sent; that the shadow has it is known later
    /// ([`Replicator::await_sealed`], or the next checkpoint). Blocks while the link is full, and up to the patience while
    /// the shadow is behind.
    pub fn checkpoint(&mut self) -> Result<Told, ReplicateError> {
        let done = self.attempt();
        self.settled(done)
    }

    /// Takes the last checkpoint and leaves the guest standing. When this returns `Ok`, the shadow has sealed it: the
    /// guest can go on there ([`Replicator::hand_over`]), or here ([`Replicator::go_on`]). Until then its other shadows get
    /// none ([`ReplicateError::Held`]). After an error it runs.
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
        self.guest.lock().go_on(self.leg)
    }

    /// Leaves a guest that was frozen standing here for good. It must be fenced, and go on elsewhere.
    pub fn hand_over(self) {
        self.guest.lock().hand_over(self.leg);
    }

    /// Waits until the shadow has sealed a checkpoint that was sent.
    pub fn await_sealed(&mut self, checkpoint: u64) -> Result<(), ReplicateError> {
        let patience = self.patience;
        let done =
            self.hear(patience, Some(checkpoint)).and_then(|(unsealed, sealed)| match sealed >= Some(checkpoint) {
                true => Ok(()),
                false => Err(ReplicateError::Behind { unsealed, after: patience }),
            });
        self.settled(done)
    }

    fn attempt(&mut self) -> Result<Told, ReplicateError> {
        let began = Instant::now();
        self.make_way()?;
        let mut told = Told::default();
        let captured = self.capture(&mut told)?;
        self.send(captured, &mut told)?;
        told.took = began.elapsed();
        Ok(told)
    }

    /// The same without haste after the guest stands: it does not go on here.
    fn attempt_to_freeze(&mut self) -> Result<Told, ReplicateError> {
        let began = Instant::now();
        let before = self.guest.lock().withdraw(self.leg);
        if let Some(captured) = before {
            self.send(captured?, &mut Told::default())?;
            self.guest.lock().leg(self.leg).is_ready = false;
        }
        self.make_way()?;
        let mut told = Told { after: self.guest.lock().rhythm.since_last(began), ..Told::default() };
        // What is sent before it stands is not sent while it does.
        self.send_while_more_than(QUICK, &mut told)?;
        told.stood_at = Some(Instant::now());
        let (checkpoint, pages, marks) = self.guest.lock().freeze(self.leg)?;
        (told.checkpoint, told.standing) = (checkpoint, pages.count());
        self.send_live(checkpoint, &pages)?;
        let device = self.guest.lock().device(checkpoint)?;
        self.finish(&mut told, device, marks)?;
        self.await_sealed(checkpoint)?;
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
        let (patience, needed) = (self.patience, self.guest.lock().leg(self.leg).ledger.in_the_way(AHEAD));
        match self.hear(patience, needed)? {
            (unsealed, _) if unsealed >= AHEAD => Err(ReplicateError::Behind { unsealed, after: patience }),
            _ => Ok(()),
        }
    }

    /// Takes in what the shadow has answered, after waiting until it has sealed this one, if any. How many checkpoints are
    /// on their way then, and the newest that is sealed.
    fn hear(&mut self, patience: Duration, wanted: Option<u64>) -> Result<(usize, Option<u64>), ReplicateError> {
        let acks = self.session()?.acks.clone();
        let heard = acks.wait(patience, |heard| heard.gone || heard.refused.is_some() || heard.sealed >= wanted);
        let mut guest = self.guest.lock();
        let ledger = &mut guest.leg(self.leg).ledger;
        match (heard.refused, heard.sealed) {
            (_, Some(claimed)) if claimed > self.last => {
                return Err(ReplicateError::NeverSent { claimed, last: self.last });
            }
            (_, Some(sealed)) => ledger.sealed(sealed),
            (_, None) => {}
        }
        match heard.refused {
            Some(checkpoint) => Err(ReplicateError::Refused { checkpoint }),
            None if heard.gone => Err(WireClosed.into()),
            None => Ok((ledger.unsealed(), ledger.newest_sealed())),
        }
    }

    /// The next checkpoint of this shadow: captured with another's meanwhile, or captured now.
    fn capture(&mut self, told: &mut Told) -> Result<Captured, ReplicateError> {
        self.send_while_more_than(MUCH, told)?;
        let mut guest = self.guest.lock();
        guest.refuse_while_held(self.leg)?;
        match guest.captured(self.leg) {
            Some(captured) => captured,
            None => guest.capture(self.leg),
        }
    }

    /// Codes and sends pages beside the running guest until so few are left, or no fewer, or a checkpoint was captured.
    fn send_while_more_than(&mut self, few: PageCount, told: &mut Told) -> Result<(), ReplicateError> {
        let mut before = None;
        loop {
            let mut guest = self.guest.lock();
            guest.refuse_while_held(self.leg)?;
            let label = guest.last + 1;
            let much = guest.take_much(self.leg, told.rounds, before, few)?;
            drop(guest);
            let Some(pages) = much else { return Ok(()) };
            self.send_live(label, &pages)?;
            told.rounds += 1;
            told.running = PageCount(told.running.0 + pages.count().0);
            before = Some(pages.count());
        }
    }

    /// Sends pages that were taken, as they are now. Unless all of them were read they are owed again.
    fn send_live(&mut self, checkpoint: u64, pages: &PageSet) -> Result<(), ReplicateError> {
        let wire = self.session()?.wire.clone();
        let read = pages.runs().iter().try_for_each(|run| self.send_run(checkpoint, *run, &*wire));
        if read.is_err() {
            self.guest.lock().leg(self.leg).ledger.give_back(pages);
        }
        self.sender.flush(checkpoint, &*wire)?;
        read
    }

    fn send_run(&mut self, checkpoint: u64, run: PageRun, wire: &dyn Wire) -> Result<(), ReplicateError> {
        for start in (run.start.0..run.end().0).step_by(AT_ONCE as usize) {
            let piece = PageRun::new(start, AT_ONCE.min(run.end().0 - start));
            self.guest.lock().read(checkpoint, piece.start, room(&mut self.buffer, piece.len))?;
            for (page, content) in piece.pages().zip(pages_of(&self.buffer)) {
                self.sender.page(checkpoint, page, content, wire)?;
            }
        }
        Ok(())
    }

    /// Codes and sends this shadow's part of a checkpoint.
    fn send(&mut self, captured: Captured, told: &mut Told) -> Result<(), ReplicateError> {
        let wire = self.session()?.wire.clone();
        let moment = &captured.moment;
        let checkpoint = moment.checkpoint;
        (told.checkpoint, told.after, told.pause) = (checkpoint, moment.after, moment.pause);
        (told.running.0, told.standing) = (told.running.0 + moment.running.0, moment.standing);
        for (page, content) in captured.pages() {
            self.sender.page(checkpoint, page, content, &*wire)?;
        }
        self.sender.flush(checkpoint, &*wire)?;
        self.finish(told, moment.device.clone(), captured.marks)?;
        let mut guest = self.guest.lock();
        if captured.leads && guest.leg(self.leg).ledger.newest_sealed().is_some() {
            // The first copy says nothing of the next.
            guest.rhythm.observe(told);
        }
        guest.leg(self.leg).is_ready = true;
        guest.recycle(captured.moment);
        Ok(())
    }

    /// Sends the devices and the seal.
    fn finish(&mut self, told: &mut Told, device: Vec<u8>, marks: Vec<Mark>) -> Result<(), ReplicateError> {
        let wire = self.session()?.wire.clone();
        self.sender.device(told.checkpoint, device, &*wire)?;
        // From here on it may be sealed.
        self.last = told.checkpoint;
        self.guest.lock().leg(self.leg).ledger.close(told.checkpoint);
        self.sender.seal(told.checkpoint, marks, &*wire)?;
        let spent = self.sender.spent();
        told.codings = spent.codings;
        (told.bytes, told.device) = (Bytes(spent.bytes), Bytes(spent.device));
        told.unsealed = self.guest.lock().leg(self.leg).ledger.unsealed();
        Ok(())
    }

    fn session(&self) -> Result<&Session, WireClosed> {
        self.session.as_ref().ok_or(WireClosed)
    }
}

impl Drop for Replicator {
    fn drop(&mut self) {
        self.guest.lock().remove(self.leg);
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
