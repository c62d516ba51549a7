//! The disks of a guest, at the node of its shadow: a volume and a standby's receiver each.
//!
//! A turn is sealed on all of them, then the memory takes its checkpoint, then the turn is applied on all of them. What
//! fails before the memory has it is gone back from, so that disks and memory are of one moment at every takeover.

use std::{sync::Arc, time::Duration};

use gnomon_proto::frame::{Mark, Stream};
use gnomon_terms::{Bytes, Epoch};
use gnomon_volume::{
    standby::{self, Has, JOURNAL, Lineage, ReceiverParts, StandbyReceiver},
    wire::Wire,
};

use super::rpc::Disk;
use crate::{
    api::{ApiError, Kind},
    daemon::{
        Daemon,
        keeper::VolumeHandle,
        records::{ShadowRecord, StandingRecord},
    },
};

/// How long the writes of a checkpoint may take to arrive after it: they travel beside it.
const ARRIVE_WITHIN: Duration = Duration::from_secs(10);
/// A journal of a small volume need not be larger than two of all its content.
const JOURNAL_LEAST: Bytes = Bytes(4 << 20);

/// The disks of one shadow.
pub struct Copies {
    all: Vec<Copy>,
}

struct Copy {
    handle: Arc<VolumeHandle>,
    receiver: Arc<StandbyReceiver>,
}

impl Copies {
    /// Finds the volumes of a shadow, or makes them, so that a QEMU can open them. What one of them had sealed beyond
    /// the others, before a crash, is gone back from.
    pub fn open(daemon: &Daemon, record: &ShadowRecord, disks: &[Disk]) -> Result<Copies, ApiError> {
        let mut copies = Copies { all: Vec::new() };
        for (disk, stream) in disks.iter().zip(0..) {
            let handle = match daemon.keeper.get(&disk.name) {
                Ok(handle) => found(daemon, handle, record, disk)?,
                Err(error) if error.kind == Kind::NotFound => make(daemon, record, disk)?,
                Err(error) => return Err(error),
            };
            copies.all.push(Copy::open(handle, Stream(stream))?);
        }
        copies.settle()?;
        Ok(copies)
    }

    /// Finds the volumes of a shadow that is on record.
    pub fn of_record(daemon: &Daemon, record: &ShadowRecord) -> Result<Copies, ApiError> {
        let mut copies = Copies { all: Vec::new() };
        for (name, stream) in record.volumes.iter().zip(0..) {
            copies.all.push(Copy::open(daemon.keeper.get(name)?, Stream(stream))?);
        }
        copies.settle()?;
        Ok(copies)
    }

    fn settle(&self) -> Result<(), ApiError> {
        let least = self.sealed();
        for copy in self.all.iter().filter(|copy| copy.receiver.sealed() > least) {
            copy.receiver.go_back(least)?;
        }
        Ok(())
    }

    /// The turn that all of them have; `None` when one has none.
    pub fn sealed(&self) -> Option<u64> {
        self.all.iter().map(|copy| copy.receiver.sealed()).min().flatten()
    }

    /// Begins a session with a primary whose disks are so. Blocks for some syncs.
    pub fn begin(&self, id: &str, disks: &[Disk], wire: &Arc<dyn Wire>) -> Result<Vec<Has>, ApiError> {
        let lineage = Lineage::of(id);
        let each = self.all.iter().zip(disks);
        each.map(|(copy, disk)| {
            Ok(copy.receiver.begin(lineage, Epoch(disk.epoch), Bytes(disk.owed), Arc::clone(wire))?)
        })
        .collect()
    }

    /// Each receiver with its number in sessions.
    pub fn receivers(&self) -> impl Iterator<Item = (Stream, Arc<StandbyReceiver>)> + '_ {
        self.all.iter().zip(0..).map(|(copy, stream)| (Stream(stream), Arc::clone(&copy.receiver)))
    }

    /// The session is over.
    pub fn end(&self) {
        self.all.iter().for_each(|copy| copy.receiver.end());
    }

    /// Waits until the writes up to these marks are here.
    pub fn await_whole(&self, marks: &[Mark]) -> Result<(), ApiError> {
        check_marks(marks, self.all.len())?;
        for (mark, copy) in self.marked(marks) {
            copy.receiver.await_whole(mark.seq, ARRIVE_WITHIN)?;
        }
        Ok(())
    }

    /// Seals the turn of these marks on all of them, or on none.
    pub fn seal(&self, marks: &[Mark]) -> Result<(), ApiError> {
        let before = self.sealed();
        for (mark, copy) in self.marked(marks) {
            if let Err(error) = copy.receiver.seal(mark.seq) {
                self.go_back(before);
                return Err(error.into());
            }
        }
        Ok(())
    }

    /// What was sealed after this turn never happened. Ends the session.
    pub fn go_back(&self, to: Option<u64>) {
        for copy in self.all.iter().filter(|copy| copy.receiver.sealed() > to) {
            if let Err(error) = copy.receiver.go_back(to) {
                // The next start finds them at different turns, and settles that.
                tracing::error!(volume = copy.handle.record().name, %error, "a turn could not be gone back from");
            }
        }
    }

    /// The memory has the checkpoint: the turn is there for good.
    pub fn apply(&self, marks: &[Mark]) -> Result<(), ApiError> {
        for (mark, copy) in self.marked(marks) {
            copy.receiver.apply(mark.seq)?;
        }
        Ok(())
    }

    fn marked<'a>(&'a self, marks: &'a [Mark]) -> impl Iterator<Item = (&'a Mark, &'a Copy)> {
        marks.iter().filter_map(|mark| Some((mark, self.all.get(mark.stream.0 as usize)?)))
    }

    /// The volumes are at the turn they were sealed at, and nothing of the primary is taken any more. Can be called
    /// again.
    pub fn freeze(&self) -> Result<(), ApiError> {
        self.all.iter().try_for_each(|copy| copy.receiver.take_over().map(drop).map_err(ApiError::from))
    }

    /// This node is the writer from now on: on record, and in force. They were frozen before.
    pub fn claim(&self, daemon: &Daemon) -> Result<(), ApiError> {
        let changes: Vec<_> = self.all.iter().map(|copy| (&*copy.handle, ())).collect();
        daemon.keeper.update_all(&changes, |record, ()| {
            record.epoch += 1;
            record.standing = StandingRecord::Primary;
            record.move_id = None;
        })?;
        for copy in &self.all {
            copy.handle.volume.take_back(copy.handle.record().epoch())?;
            standby::forget(copy.handle.volume.path())?;
        }
        Ok(())
    }

    /// The shadow is not wanted any more: its volumes go.
    pub fn discard(&self, daemon: &Daemon) -> Result<(), ApiError> {
        self.end();
        self.all.iter().try_for_each(|copy| daemon.keeper.discard(&copy.handle))
    }
}

impl Copy {
    fn open(handle: Arc<VolumeHandle>, stream: Stream) -> Result<Copy, ApiError> {
        // The QEMU that waits looks at a disk when it opens it.
        handle.volume.await_return()?;
        let journal = Bytes(handle.volume.size().0 * 2).max(JOURNAL_LEAST).min(JOURNAL);
        let receiver = StandbyReceiver::open(ReceiverParts::of(&handle.volume, stream, Some(journal))?)?;
        Ok(Copy { handle, receiver })
    }
}

/// A checkpoint says how far each disk had got, all of them by the same turn.
fn check_marks(marks: &[Mark], disks: usize) -> Result<(), ApiError> {
    let mut streams: Vec<u32> = marks.iter().map(|mark| mark.stream.0).collect();
    streams.sort_unstable();
    let each_once = streams.iter().copied().eq(0..disks as u32);
    let same_turn = marks.windows(2).all(|pair| pair[0].seq == pair[1].seq);
    match each_once && same_turn {
        true => Ok(()),
        false => {
            Err(ApiError::new(Kind::Corrupt, format!("a checkpoint of {disks} disks has other marks: {marks:?}")))
        }
    }
}

/// A volume of this name is here: only that of the same protection is meant, or what an earlier switchover left.
fn found(
    daemon: &Daemon,
    handle: Arc<VolumeHandle>,
    shadow: &ShadowRecord,
    disk: &Disk,
) -> Result<Arc<VolumeHandle>, ApiError> {
    let record = handle.record();
    match &record.standing {
        _ if record.move_id.as_deref() == Some(&shadow.id) && record.size == disk.size => Ok(handle),
        StandingRecord::Released(to) if record.move_id.is_none() && *to == shadow.from => {
            daemon.keeper.discard(&handle)?;
            make(daemon, shadow, disk)
        }
        _ => {
            let node = &daemon.config.node;
            Err(ApiError::refused(format!("node {node} has another volume '{}' ({})", record.name, handle.role()))
                .then(format!("remove it there with `gnomon volume rm {}`, or rename one of them", record.name)))
        }
    }
}

fn make(daemon: &Daemon, shadow: &ShadowRecord, disk: &Disk) -> Result<Arc<VolumeHandle>, ApiError> {
    let keeper = &daemon.keeper;
    let path = keeper.place_for(&disk.name)?;
    // Refused, not unavailable: a primary would ask again for as long as it takes, and its operator would wait.
    keeper
        .check_space(disk.needed, &format!("node {}: the copy of volume '{}'", daemon.config.node, disk.name))
        .map_err(|error| ApiError { kind: Kind::Refused, ..error })?;
    let standing = StandingRecord::Fenced(shadow.from.clone());
    let mut draft = keeper.new_record(&disk.name, path, disk.size, disk.epoch, standing);
    draft.move_id = Some(shadow.id.clone());
    keeper.create_shadow(draft)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_marks_each_disk_once_and_at_one_turn() {
        let mark = |stream, seq| Mark { stream: Stream(stream), seq };
        let table = [
            ("no disks", vec![], 0, true),
            ("each once", vec![mark(1, 7), mark(0, 7)], 2, true),
            ("one is missing", vec![mark(0, 7)], 2, false),
            ("one twice", vec![mark(0, 7), mark(0, 7)], 2, false),
            ("one too many", vec![mark(0, 7), mark(1, 7)], 1, false),
            ("of two turns", vec![mark(0, 7), mark(1, 8)], 2, false),
        ];
        for (name, marks, disks, good) in table {
            assert_eq!(check_marks(&marks, disks).is_ok(), good, "{name}");
        }
    }
}
