//! One guest, as all of its shadows have it in common: it stands once for those that are ready, and what it wrote is owed
//! to each.
//!
//! ```text
//!   shadow b   due ──► leads: copies, guest stands, last scan, marks, runs on ──► codes and sends its part
//!   shadow c   has been sent the one before, waits ───── captured for it, too ──► is woken, codes and sends its part
//!   shadow d   is still being sent one, or lost ────── what was written is owed ──► takes part when it is ready
//! ```
//! Whoever comes first when a checkpoint is due leads; nobody is waited for. So a shadow that is slow, late or gone costs
//! the guest and the other shadows nothing but the note of what it is owed. Checkpoints have numbers in common: one that a
//! shadow had no part in is left out in its session.
//!
//! What it costs: a scan, the devices and the copies once, however many shadows there are; the coding and what is
//! remembered of a shadow for each. Copies live until the last of those that took part has sent them, and each has one at
//! most: there are no more of them than shadows, and each is what was owed when the guest stood.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use gnomon_proto::frame::Mark;
use gnomon_qemu::{DirtyTracker, ScanCost, TrackError};
use gnomon_terms::{BytesPerSecond, Epoch, PageCount, PageNumber, PageSet};
use parking_lot::{Mutex, MutexGuard};

use super::{
    AHEAD, Acks, Hypervisor, MUCH, Marks, Pace, QUICK, ReplicateError, Resume, another_round, copies::Copies,
    ledger::Ledger, rhythm::Rhythm, state, track,
};

/// Room that is made ahead for the pages that are found when the guest stands: 16 MiB.
const AHEAD_OF_STANDING: PageCount = PageCount(4096);

/// A guest that is replicated to some shadows, each by a [`super::Replicator`].
pub struct Guest(Mutex<Inner>);

/// Names a shadow of a guest.
pub(super) type LegId = u32;

pub(super) struct Inner {
    hypervisor: Box<dyn Hypervisor>,
    pub tracker: Box<dyn DirtyTracker>,
    pub rhythm: Rhythm,
    /// The newest checkpoint that was captured, or that a shadow has.
    pub last: u64,
    legs: BTreeMap<LegId, Leg>,
    named: LegId,
    /// What the last scan reported.
    fresh: PageSet,
    /// Room for copies that nobody uses.
    spare: Vec<Copies>,
    /// It stands for good, or until this shadow's replicator lets it go on.
    frozen: Option<LegId>,
}

/// One shadow, as the others have to know it.
pub(super) struct Leg {
    pub ledger: Ledger,
    marks: Marks,
    acks: Option<Acks>,
    /// It has been sent all that it had a part in, and can have a part in the next.
    pub is_ready: bool,
    /// Captured by another one.
    inbox: Option<Result<Captured, ReplicateError>>,
    wake: Box<dyn Fn() + Send>,
}

/// A moment of the guest.
pub(super) struct Moment {
    pub checkpoint: u64,
    /// Since the one before.
    pub after: Duration,
    pub pause: Duration,
    /// Pages copied beside the running guest, and while it stood.
    pub running: PageCount,
    pub standing: PageCount,
    pub device: Vec<u8>,
    copies: Copies,
}

/// What was taken while the guest stood.
struct Taken {
    /// Pages that were copied then.
    standing: PageCount,
    pause: Duration,
    device: Vec<u8>,
    /// How far each shadow's standbys are to get.
    marks: Vec<(LegId, AllMarks)>,
}

/// Asks a tracker, in one of its ways.
type Scan = fn(&mut dyn DirtyTracker, &mut PageSet) -> Result<ScanCost, TrackError>;

/// How far the volumes had got for one shadow, or why that cannot be said.
type AllMarks = Result<Vec<Mark>, String>;

/// A moment, and one shadow's part in it.
pub(super) struct Captured {
    pub moment: Arc<Moment>,
    /// What it is owed.
    pub pages: PageSet,
    pub marks: Vec<Mark>,
    /// Whether its own replicator has captured it.
    pub leads: bool,
}

impl Guest {
    /// A guest without shadows.
    pub fn new(hypervisor: Box<dyn Hypervisor>, tracker: Box<dyn DirtyTracker>, pace: Pace) -> Arc<Guest> {
        Arc::new(Guest(Mutex::new(Inner {
            hypervisor,
            tracker,
            rhythm: Rhythm::new(pace),
            last: 0,
            legs: BTreeMap::new(),
            named: 0,
            fresh: PageSet::new(),
            spare: Vec::new(),
            frozen: None,
        })))
    }

    /// Does something to the guest while no checkpoint is being taken; `None`, and nothing done, when it stands for a
    /// switchover.
    pub fn undisturbed<T>(&self, deed: impl FnOnce() -> T) -> Option<T> {
        let inner = self.0.lock();
        inner.frozen.is_none().then(deed)
    }

    /// Whether it stands for a switchover, or was handed over.
    pub fn is_frozen(&self) -> bool {
        self.0.lock().frozen.is_some()
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock()
    }
}

impl Inner {
    // ---- shadows --------------------------------------------------------------------------------------------

    /// Another shadow, that has nothing.
    pub fn add(&mut self, marks: Marks) -> LegId {
        self.named += 1;
        let leg =
            Leg { ledger: Ledger::default(), marks, acks: None, is_ready: false, inbox: None, wake: Box::new(|| ()) };
        self.legs.insert(self.named, leg);
        self.named
    }

    pub fn remove(&mut self, id: LegId) {
        self.legs.remove(&id);
    }

    /// One that was added and not removed.
    pub fn leg(&mut self, id: LegId) -> &mut Leg {
        // A replicator removes its own when it is dropped, and not before.
        self.legs.get_mut(&id).unwrap_or_else(|| unreachable!("a replicator has a leg as long as it lives"))
    }

    /// A session with a shadow begins, which has this; `last` is the newest that it was sent.
    pub fn connect(&mut self, id: LegId, acks: Acks, has: Option<u64>, last: u64) -> Resume {
        let all = self.tracker.pages();
        let leg = self.leg(id);
        leg.acks = Some(acks);
        leg.ledger.resume(has, last, all)
    }

    /// A shadow has no session. What was captured for it is owed when the next one begins.
    pub fn disconnect(&mut self, id: LegId) {
        let leg = self.leg(id);
        (leg.acks, leg.is_ready, leg.inbox) = (None, false, None);
    }

    /// A shadow is told so when another one has captured the guest for it.
    pub fn on_captured(&mut self, id: LegId, wake: Box<dyn Fn() + Send>) {
        self.leg(id).wake = wake;
    }

    /// What another one has captured for this shadow.
    pub fn captured(&mut self, id: LegId) -> Option<Result<Captured, ReplicateError>> {
        self.leg(id).inbox.take()
    }

    /// Nobody else's copies any more: the room is used again.
    pub fn recycle(&mut self, moment: Arc<Moment>) {
        if self.spare.len() < self.legs.len()
            && let Some(moment) = Arc::into_inner(moment)
        {
            self.spare.push(moment.copies);
        }
    }

    // ---- rhythm ---------------------------------------------------------------------------------------------

    pub fn set_link(&mut self, link: Option<BytesPerSecond>) {
        self.rhythm.link = link;
    }

    // ---- a checkpoint ---------------------------------------------------------------------------------------

    /// Fails when another one has made it stand for a switchover.
    pub fn refuse_while_held(&self, id: LegId) -> Result<(), ReplicateError> {
        match self.frozen {
            Some(by) if by != id => Err(ReplicateError::Held),
            _ => Ok(()),
        }
    }

    /// What a shadow is owed, if that is more than `few` and is better sent beside the running guest: it counts as sent
    /// from here on. `before` is how much it was in the round before.
    pub fn take_much(
        &mut self,
        id: LegId,
        rounds: u32,
        before: Option<PageCount>,
        few: PageCount,
    ) -> Result<Option<PageSet>, ReplicateError> {
        if self.tracker.tier().needs_standing_guest() {
            return Ok(None);
        }
        let leg = self.leg(id);
        if leg.inbox.is_some() {
            return Ok(None);
        }
        self.scan(self.last + 1)?;
        let leg = self.leg(id);
        let much = another_round(rounds, leg.ledger.owed.count(), before, few);
        leg.is_ready &= !much;
        Ok(much.then(|| leg.ledger.take()))
    }

    /// Looks at what was written, and tells how much a shadow is owed now.
    pub fn look(&mut self, id: LegId) -> Result<PageCount, ReplicateError> {
        self.scan(self.last + 1)?;
        Ok(self.leg(id).ledger.owed.count())
    }

    /// All that a shadow is owed as of the last look, which counts as sent from here on, and for which checkpoint.
    pub fn take_owed(&mut self, id: LegId) -> (u64, PageSet) {
        (self.last + 1, self.leg(id).ledger.take())
    }

    /// Captures the guest for a shadow, and for those that are ready: they find it in their inboxes. The guest stands for
    /// some milliseconds within.
    pub fn capture(&mut self, leader: LegId) -> Result<Captured, ReplicateError> {
        let (checkpoint, began) = (self.last + 1, Instant::now());
        let after = self.rhythm.since_last(began);
        let joined = self.joined(leader);
        let mut copies = self.spare.pop().unwrap_or_default();
        copies.clear();
        let taken = match self.take(checkpoint, &joined, &mut copies) {
            Ok(taken) => taken,
            Err(error) => {
                self.spare.push(copies);
                return Err(error);
            }
        };
        self.last = checkpoint;
        self.rhythm.begin(began);
        let Taken { standing, pause, device, marks } = taken;
        let running = PageCount(copies.count().0 - standing.0);
        let moment = Arc::new(Moment { checkpoint, after, pause, running, standing, device, copies });
        self.hand_out(leader, moment, marks)
    }

    /// Who has a part in a checkpoint: the leader, and who could code and send it at once.
    fn joined(&self, leader: LegId) -> Vec<LegId> {
        self.legs.keys().copied().filter(|id| *id == leader || self.would_join(*id)).collect()
    }

    /// Whether a shadow has a part in the next checkpoint, whoever leads it.
    pub fn would_join(&self, id: LegId) -> bool {
        let stands = self.tracker.tier().needs_standing_guest();
        let joins = |leg: &Leg| leg.is_free() && (stands || leg.ledger.owed.count() <= MUCH);
        self.legs.get(&id).is_some_and(joins)
    }

    /// Copies what is owed to any of them, beside the running guest and then while it stands.
    fn take(&mut self, checkpoint: u64, joined: &[LegId], copies: &mut Copies) -> Result<Taken, ReplicateError> {
        self.copy_while_it_runs(checkpoint, joined, copies)?;
        copies.reserve(PageCount(self.fresh.count().0 + AHEAD_OF_STANDING.0));
        let copied_before = copies.count();
        self.stand(checkpoint)?;
        let copied = self.scan_standing(checkpoint).and_then(|()| self.copy(checkpoint, copies));
        let marks = joined.iter().map(|id| (*id, (self.leg(*id).marks)(checkpoint))).collect();
        let pause = self.hypervisor.go_on().map_err(|source| state(checkpoint, source))?;
        copied?;
        self.tracker.confirm().map_err(|source| track(checkpoint, source))?;
        let device = self.device(checkpoint)?;
        Ok(Taken { standing: PageCount(copies.count().0 - copied_before.0), pause, device, marks })
    }

    /// Copies what is owed, and then what was written meanwhile, until that is little, or no less. All of it stays owed.
    fn copy_while_it_runs(
        &mut self,
        checkpoint: u64,
        joined: &[LegId],
        copies: &mut Copies,
    ) -> Result<(), ReplicateError> {
        // What is owed from before was not reported by the scan to come.
        self.fresh.clear();
        for leg in joined.iter().filter_map(|id| self.legs.get(id)) {
            self.fresh.union(&leg.ledger.owed);
        }
        if self.tracker.tier().needs_standing_guest() || self.fresh.count().0 > MUCH.0 * joined.len() as u64 {
            return Ok(());
        }
        let (mut rounds, mut before) = (0, None);
        loop {
            self.copy(checkpoint, copies)?;
            self.fresh.clear();
            self.scan(checkpoint)?;
            let owed = self.fresh.count();
            if !another_round(rounds, owed, before, QUICK) {
                return Ok(());
            }
            rounds += 1;
            before = Some(owed);
        }
    }

    /// Gives each its part. One whose volumes could not say how far they had got has none.
    fn hand_out(
        &mut self,
        leader: LegId,
        moment: Arc<Moment>,
        marks: Vec<(LegId, AllMarks)>,
    ) -> Result<Captured, ReplicateError> {
        let checkpoint = moment.checkpoint;
        let mut lead = Err(ReplicateError::Held);
        for (id, marks) in marks {
            let (leg, leads) = (self.leg(id), id == leader);
            let part = marks
                .map(|marks| Captured { moment: Arc::clone(&moment), pages: leg.ledger.take(), marks, leads })
                .map_err(|why| ReplicateError::Volumes { checkpoint, why });
            leg.is_ready = false;
            if leads {
                lead = part;
                continue;
            }
            leg.inbox = Some(part);
            (leg.wake)();
        }
        lead
    }

    // ---- a switchover ---------------------------------------------------------------------------------------

    /// A shadow has no part in other checkpoints until it has sent one of its own again. What was captured for it before.
    pub fn withdraw(&mut self, id: LegId) -> Option<Result<Captured, ReplicateError>> {
        self.leg(id).is_ready = false;
        self.captured(id)
    }

    /// Makes the guest stand for a shadow until it is let go on, or for good. The checkpoint's number, the pages that the
    /// shadow is owed then, which count as sent, and the marks of its volumes.
    pub fn freeze(&mut self, id: LegId) -> Result<(u64, PageSet, Vec<Mark>), ReplicateError> {
        self.refuse_while_held(id)?;
        let checkpoint = self.last + 1;
        self.frozen = Some(id);
        self.stand(checkpoint)?;
        self.scan(checkpoint)?;
        let leg = self.leg(id);
        let marks = (leg.marks)(checkpoint).map_err(|why| ReplicateError::Volumes { checkpoint, why })?;
        let pages = leg.ledger.take();
        self.last = checkpoint;
        Ok((checkpoint, pages, marks))
    }

    /// Makes a guest run on that was made to stand for this shadow, or by nobody; how long it stood.
    pub fn go_on(&mut self, id: LegId) -> Result<Duration, ReplicateError> {
        self.refuse_while_held(id)?;
        let went = self.hypervisor.go_on().map_err(|source| state(self.last, source))?;
        self.frozen = None;
        Ok(went)
    }

    /// Leaves a guest standing for good.
    pub fn hand_over(&mut self, id: LegId) {
        self.frozen = Some(id);
        self.hypervisor.hand_over();
    }

    // ---- steps ----------------------------------------------------------------------------------------------

    /// The devices of the moment in which it stood last.
    pub fn device(&self, checkpoint: u64) -> Result<Vec<u8>, ReplicateError> {
        self.hypervisor.device().map_err(|source| state(checkpoint, source))
    }

    /// Copies pages as they are now.
    pub fn read(&self, checkpoint: u64, start: PageNumber, into: &mut [u8]) -> Result<(), ReplicateError> {
        self.tracker.read(start, into).map_err(|source| track(checkpoint, source))
    }

    fn stand(&mut self, checkpoint: u64) -> Result<(), ReplicateError> {
        self.hypervisor.stand().map_err(|source| state(checkpoint, source))
    }

    /// What was written since the last scan is owed to all, and added to what is fresh.
    fn scan(&mut self, checkpoint: u64) -> Result<(), ReplicateError> {
        self.take_in(checkpoint, |tracker, written| tracker.scan(written))
    }

    /// The same on the guest's time: it has to be confirmed.
    fn scan_standing(&mut self, checkpoint: u64) -> Result<(), ReplicateError> {
        self.take_in(checkpoint, |tracker, written| tracker.scan_unconfirmed(written))
    }

    fn take_in(&mut self, checkpoint: u64, scan: Scan) -> Result<(), ReplicateError> {
        let mut written = PageSet::new();
        let scanned = scan(&mut *self.tracker, &mut written);
        self.legs.values_mut().for_each(|leg| leg.ledger.owed.union(&written));
        self.fresh.union(&written);
        scanned.map(drop).map_err(|source| track(checkpoint, source))
    }

    /// Copies what is fresh.
    fn copy(&mut self, checkpoint: u64, copies: &mut Copies) -> Result<(), ReplicateError> {
        copies.take(&*self.tracker, &self.fresh).map_err(|source| track(checkpoint, source))
    }
}

impl Leg {
    /// Whether another checkpoint may be on its way to it, and could go there at once.
    fn is_free(&self) -> bool {
        let Some(heard) = self.acks.as_ref().map(Acks::heard) else { return false };
        let lives = !heard.gone && heard.refused.is_none();
        self.is_ready && lives && self.ledger.unsealed_after(heard.sealed) < AHEAD
    }
}

impl Captured {
    /// Its pages, in order.
    pub fn pages(&self) -> impl Iterator<Item = (PageNumber, &crate::page::Page)> {
        self.moment.copies.of(&self.pages)
    }
}

/// The checkpoint of a shadow that is of this engine's epoch.
pub(super) fn ours(has: Option<(Epoch, u64)>, epoch: Epoch) -> Option<u64> {
    has.filter(|(of, _)| *of == epoch).map(|(_, checkpoint)| checkpoint)
}
