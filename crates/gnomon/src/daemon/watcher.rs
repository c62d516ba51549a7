//! The thread that turns one volume's loop: it watches all the time, and plans while a move is on.
//!
//! ```text
//!   tap ──drain──► counts, recorders ──► cycle ──poll_move──► plane
//!                                          ▲
//!   commands (begin a shadow, switch, look) ┘
//! ```
//! The thread owns the cycle and the plane; others reach them by commands, which run between two turns.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use gnomon_cycle::{Cycle, CycleConfig, GapPoint, turn};
use gnomon_forecast::{BlockMap, sequence::Experience};
use gnomon_terms::{Access, Event, Extent, Move, Op, Plane, Routes};
use gnomon_volume::{plane::VolumePlane, tap::Tap, volume::Volume};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{mpsc as queue, oneshot};

use super::{moving::story::Story, teacher::Learning};
use crate::api::{ApiError, types::AccessCounts};

/// How long the thread sleeps when nothing is told: facts and full batches wake it at once, so this only bounds how
/// late a trickle of accesses is learned from, and how late metadata is written.
const NAP: Duration = Duration::from_millis(20);

/// Batches of accesses that a recorder may be behind. One that is slower loses batches, and is told so by the count.
const RECORDER_QUEUE: usize = 64;

/// What runs between two turns.
type Command = Box<dyn FnOnce(&mut Cycle, &mut VolumePlane) + Send>;

/// A handle on a volume's loop.
pub struct Watcher {
    commands: mpsc::Sender<Command>,
    tap: Arc<Tap>,
    shared: Arc<Shared>,
}

/// A volume's accesses as they happen, in batches. Dropping it ends the recording.
pub struct Recording {
    batches: queue::Receiver<Vec<Access>>,
    lost: Arc<AtomicU64>,
}

/// The loop's end of a [`Recording`].
struct Recorder {
    batches: queue::Sender<Vec<Access>>,
    lost: Arc<AtomicU64>,
}

/// What the thread shares with onlookers.
#[derive(Default)]
struct Shared {
    counts: Mutex<AccessCounts>,
    recorders: Mutex<Vec<Recorder>>,
    story: Mutex<Option<Story>>,
    gap: Mutex<Vec<GapPoint>>,
}

impl Watcher {
    /// Starts the loop of `volume` with what was learned `before`. It ends when the handle is dropped.
    pub fn start(volume: &Volume, learning: &Learning, before: Experience) -> Result<Watcher, ApiError> {
        let allocated = allocated_map(volume)?;
        let mut config = CycleConfig::new(volume.resource(), allocated);
        config.forecast = learning.forecast(before);
        let mut cycle = Cycle::new(config)?;
        let pupil = learning.pupil(volume.resource());
        let mut plane =
            Watched { plane: VolumePlane::new(volume.resource(), Arc::clone(volume.tap())), shared: Arc::default() };
        let (commands, inbox) = mpsc::channel::<Command>();
        let (tap, shared) = (Arc::clone(volume.tap()), Arc::clone(&plane.shared));
        let own_tap = Arc::clone(&tap);
        thread::spawn(move || {
            let mut events = Vec::new();
            loop {
                own_tap.wait(NAP);
                // Before the commands, so that whoever asks hears of everything that was noted before the question;
                // and after them, so that what they ask for begins at once.
                turn(&mut cycle, &mut plane, own_tap.now(), &mut events);
                if let Some(pupil) = &pupil {
                    pupil.attend(&mut cycle);
                }
                match obey(&inbox, &mut cycle, &mut plane.plane) {
                    Obeyed::Nothing => {}
                    Obeyed::Some => turn(&mut cycle, &mut plane, own_tap.now(), &mut events),
                    Obeyed::TheEnd => return,
                }
            }
        });
        Ok(Watcher { commands, tap, shared })
    }

    /// Runs `deed` between two turns, and returns what it returns.
    pub async fn run<T: Send + 'static>(
        &self,
        deed: impl FnOnce(&mut Cycle, &mut VolumePlane) -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let (tell, told) = oneshot::channel();
        let command: Command = Box::new(move |cycle, plane| {
            // Whoever asked may have given up waiting; the deed is done all the same.
            let _ = tell.send(deed(cycle, plane));
        });
        let gone = || ApiError::unavailable("the volume's loop has ended: the daemon is stopping");
        self.commands.send(command).map_err(|_| gone())?;
        self.tap.wake();
        told.await.map_err(|_| gone())
    }

    /// What the guest has done since the daemon started.
    pub fn counts(&self) -> AccessCounts {
        AccessCounts { lost: self.tap.dropped(), ..*self.shared.counts.lock() }
    }

    /// What is recorded of the move under way; `None` while there is none.
    pub fn story(&self) -> MutexGuard<'_, Option<Story>> {
        self.shared.story.lock()
    }

    /// What the last move that ended was worth over time; nothing while there was none since the daemon started.
    pub fn gap(&self) -> Vec<GapPoint> {
        self.shared.gap.lock().clone()
    }

    /// A move has ended, and this is what it was worth.
    pub fn keep_gap(&self, over_time: Vec<GapPoint>) {
        *self.shared.gap.lock() = over_time;
    }

    /// From now on accesses are also recorded, until the recording is dropped.
    pub fn record(&self) -> Recording {
        let (recorder, recording) = recording();
        let mut recorders = self.shared.recorders.lock();
        // The loop notices who left when there is something to tell; an idle volume must not gather them either.
        recorders.retain(|recorder| !recorder.batches.is_closed());
        recorders.push(recorder);
        recording
    }
}

/// Both ends of a recording.
fn recording() -> (Recorder, Recording) {
    let (sender, batches) = queue::channel(RECORDER_QUEUE);
    let lost = Arc::new(AtomicU64::new(0));
    (Recorder { batches: sender, lost: Arc::clone(&lost) }, Recording { batches, lost })
}

impl Recorder {
    /// Hands a batch on, or counts it as lost when the recording is behind. False when nobody records any more.
    fn tell(&self, batch: &[Access]) -> bool {
        match self.batches.try_send(batch.to_vec()) {
            Ok(()) => true,
            Err(queue::error::TrySendError::Full(batch)) => {
                self.lost.fetch_add(batch.len() as u64, Ordering::Relaxed);
                true
            }
            Err(queue::error::TrySendError::Closed(_)) => false,
        }
    }
}

impl Recording {
    /// The next accesses; `None` when the volume is gone.
    pub async fn next(&mut self) -> Option<Vec<Access>> {
        self.batches.recv().await
    }

    /// How many accesses were lost since this was asked last, because the recording was behind.
    pub fn take_lost(&self) -> u64 {
        self.lost.swap(0, Ordering::Relaxed)
    }
}

/// What came of looking for commands.
enum Obeyed {
    Nothing,
    Some,
    TheEnd,
}

/// Runs the commands that have come.
fn obey(inbox: &mpsc::Receiver<Command>, cycle: &mut Cycle, plane: &mut VolumePlane) -> Obeyed {
    let mut obeyed = Obeyed::Nothing;
    loop {
        match inbox.try_recv() {
            Ok(command) => {
                command(cycle, plane);
                obeyed = Obeyed::Some;
            }
            Err(mpsc::TryRecvError::Empty) => return obeyed,
            Err(mpsc::TryRecvError::Disconnected) => return Obeyed::TheEnd,
        }
    }
}

/// A plane whose events are counted and recorded in passing.
struct Watched {
    plane: VolumePlane,
    shared: Arc<Shared>,
}

impl Plane for Watched {
    fn drain(&mut self, into: &mut Vec<Event>) {
        self.plane.drain(into);
        if into.is_empty() {
            return;
        }
        self.shared.counts.lock().note(into);
        if let Some(story) = &mut *self.shared.story.lock() {
            into.iter().for_each(|event| story.note(event));
        }
        let mut recorders = self.shared.recorders.lock();
        if !recorders.is_empty() {
            let batch: Vec<Access> = into.iter().filter_map(access_of).collect();
            recorders.retain(|recorder| batch.is_empty() || recorder.tell(&batch));
        }
    }

    fn begin(&mut self, mv: Move) {
        self.plane.begin(mv);
    }

    fn adopt(&mut self, routes: Arc<Routes>) {
        self.plane.adopt(routes);
    }
}

fn access_of(event: &Event) -> Option<Access> {
    match event {
        Event::Accessed(access) => Some(*access),
        _ => None,
    }
}

impl AccessCounts {
    /// All accesses that were told.
    pub fn total(&self) -> u64 {
        self.reads + self.writes + self.discards
    }

    /// Adds what a batch of events says.
    fn note(&mut self, events: &[Event]) {
        for access in events.iter().filter_map(access_of) {
            let bytes = access.extent.bytes().0;
            match access.op {
                Op::Read => (self.reads, self.read_bytes) = (self.reads + 1, self.read_bytes + bytes),
                Op::Write => (self.writes, self.written_bytes) = (self.writes + 1, self.written_bytes + bytes),
                Op::Discard => self.discards += 1,
            }
        }
    }
}

/// The blocks of a volume that hold something, as the loop wants them.
fn allocated_map(volume: &Volume) -> Result<BlockMap, ApiError> {
    let mut map = BlockMap::empty(volume.blocks());
    for extent in volume.allocated()? {
        map.insert(extent.overlap(Extent::new(0, volume.blocks().0)));
    }
    Ok(map)
}

#[cfg(test)]
mod tests {
    use gnomon_terms::{Instant, ResourceId};

    use super::*;

    #[tokio::test]
    async fn a_recording_that_is_behind_is_told_what_it_lost() {
        let (recorder, mut recording) = recording();
        let access = Access { at: Instant::ORIGIN, resource: ResourceId(0), extent: Extent::new(0, 1), op: Op::Read };
        (0..RECORDER_QUEUE + 2).for_each(|_| assert!(recorder.tell(&[access; 3])));
        assert_eq!((recording.next().await, recording.take_lost()), (Some(vec![access; 3]), 6));
        assert_eq!(recording.take_lost(), 0, "told once");
        drop(recording);
        assert!(!recorder.tell(&[access]), "nobody records any more");
    }
}
