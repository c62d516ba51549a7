//! The disks of a protected guest, at its primary: each is followed by a standby at the node of each shadow. This is what
//! one shadow has of them; their standings are the same for all.
//!
//! ```text
//!   Primary ──begin──► Shadowed ──give──► Fenced ──release──► Released         (switchover)
//!      ▲                  │  ▲               │
//!      └───────end────────┘  └───take_back───┴──lose──► Lost                   (the shadow took over)
//! ```
//! One counter numbers the turns of all of them. A turn is joined to a checkpoint by the marks in its Seal.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use gnomon_proto::frame::{Mark, Stream};
use gnomon_terms::Bytes;
use gnomon_volume::standby::{Has, SenderParts, SenderPhase, StandbySender};
use parking_lot::Mutex;

use super::rpc::Disk;
use crate::{
    api::ApiError,
    daemon::{
        Daemon,
        keeper::{Keeper, VolumeHandle},
        moving::{self, hub::Hub},
        records::{ProtectRecord, StandingRecord, VolumeRecord},
    },
};

/// The disks of one guest, as one of its shadows follows them.
pub struct Volumes {
    /// The node of that shadow.
    node: String,
    handles: Vec<Arc<VolumeHandle>>,
    /// Those of the session.
    senders: Mutex<Vec<Arc<StandbySender>>>,
    /// The newest turn that was marked.
    turn: AtomicU64,
}

impl Volumes {
    /// Those of a protection.
    pub fn of(daemon: &Daemon, record: &ProtectRecord) -> Result<Arc<Volumes>, ApiError> {
        let handles = record.volumes.iter().map(|name| daemon.keeper.get(name)).collect::<Result<_, _>>()?;
        let node = record.to.clone();
        Ok(Arc::new(Volumes { node, handles, senders: Mutex::default(), turn: AtomicU64::new(0) }))
    }

    /// Refuses those that are moved, or are not this node's to write.
    pub fn refuse_unless_free(&self) -> Result<(), ApiError> {
        self.handles.iter().try_for_each(|handle| moving::refuse_unless_free(handle))
    }

    // ---- standings ------------------------------------------------------------------------------------------

    /// Their writes are noted for a new shadow from now on.
    pub fn begin(&self, keeper: &Keeper, id: &str) -> Result<(), ApiError> {
        for handle in &self.handles {
            // What an earlier one lacked says nothing of this.
            handle.volume.end_standby(&self.node)?;
            handle.volume.begin_standby(&self.node)?;
            keeper.update(handle, |record| {
                record.standing = StandingRecord::Shadowed;
                record.move_id = Some(id.to_string());
            })?;
        }
        Ok(())
    }

    /// Their writes are noted for a shadow that is on record.
    pub fn resume(&self) -> Result<(), ApiError> {
        for handle in &self.handles {
            if handle.volume.outbox().is_some() {
                // Of the time when a VM had one shadow, or of a crash in the midst of its end.
                handle.volume.end_shadow()?;
            }
            handle.volume.begin_standby(&self.node)?;
        }
        Ok(())
    }

    /// They are as if they had never had a standby for this shadow; when it was the last one, as if they had had none.
    pub fn end(&self, keeper: &Keeper, is_last: bool) -> Result<(), ApiError> {
        for handle in &self.handles {
            if !is_last {
                handle.volume.end_standby(&self.node)?;
                continue;
            }
            handle.volume.end_shadow()?;
            keeper.update(handle, |record| {
                record.standing = StandingRecord::Primary;
                record.move_id = None;
            })?;
        }
        Ok(())
    }

    /// The guest is given to the node of the shadow: nothing is written here any more.
    pub fn give(&self, keeper: &Keeper, to: &str) -> Result<(), ApiError> {
        self.leave(keeper, |record| record.standing = StandingRecord::Fenced(to.to_string()), to)
    }

    /// The guest goes on here after all: what the standbys have counts no more, that of any shadow. Those at `nodes` are
    /// kept on.
    pub fn take_back(&self, keeper: &Keeper, nodes: &[String]) -> Result<(), ApiError> {
        for handle in &self.handles {
            let epoch = handle.record().epoch().next();
            handle.volume.take_back(epoch)?;
            nodes.iter().try_for_each(|node| handle.volume.begin_standby(node).map(drop))?;
            keeper.update(handle, |record| (record.epoch, record.standing) = (epoch.0, StandingRecord::Shadowed))?;
        }
        Ok(())
    }

    /// The guest lives at the node of the shadow: what is here is of no more use.
    pub fn release(&self, keeper: &Keeper, to: &str) -> Result<(), ApiError> {
        self.over(keeper, || StandingRecord::Released(to.to_string()), to)
    }

    /// The shadow took over without this node: what was written here since its last checkpoint is lost.
    pub fn lose(&self, keeper: &Keeper, to: &str) -> Result<(), ApiError> {
        self.over(keeper, || StandingRecord::Lost(to.to_string()), to)
    }

    fn over(&self, keeper: &Keeper, standing: impl Fn() -> StandingRecord, to: &str) -> Result<(), ApiError> {
        self.leave(keeper, |record| (record.standing, record.move_id) = (standing(), None), to)?;
        self.handles.iter().try_for_each(|handle| Ok(handle.volume.leave()?))
    }

    /// On record first; a volume that has left already stays at its epoch.
    fn leave(&self, keeper: &Keeper, deed: impl Fn(&mut VolumeRecord), to: &str) -> Result<(), ApiError> {
        let changes: Vec<_> = self.handles.iter().map(|handle| (&**handle, ())).collect();
        keeper.update_all(&changes, |record, ()| {
            if record.standing == StandingRecord::Shadowed {
                record.epoch += 1;
            }
            deed(record);
        })?;
        self.handles.iter().try_for_each(|handle| Ok(handle.volume.fence(handle.record().epoch(), to)?))
    }

    // ---- a session ------------------------------------------------------------------------------------------

    /// As the node of the shadow has to know them.
    pub fn told(&self) -> Result<Vec<Disk>, ApiError> {
        self.handles.iter().map(|handle| told(handle, &self.node)).collect()
    }

    /// A session has begun in which the standbys have this.
    pub fn connect(&self, hub: &Hub, has: &[Has]) -> Result<(), ApiError> {
        if has.len() != self.handles.len() {
            let (said, here) = (has.len(), self.handles.len());
            return Err(ApiError::internal(format!("the shadow has {said} disks, and the guest has {here}")));
        }
        let newest = has.iter().filter_map(|has| has.sealed).max().unwrap_or(0);
        self.turn.fetch_max(newest, Ordering::Relaxed);
        let mut senders = self.senders.lock();
        for ((handle, has), stream) in self.handles.iter().zip(has).zip(0..) {
            let (stream, epoch) = (Stream(stream), handle.record().epoch());
            let parts = SenderParts::of(&handle.volume, &self.node, stream, epoch, hub.wire())?;
            let sender = StandbySender::start(parts, has);
            let engine = Arc::clone(&sender);
            hub.serve(stream, Arc::new(move |message| engine.handle(message)));
            senders.push(sender);
        }
        Ok(())
    }

    /// The session is closed. Blocks until nothing of it is under way.
    pub fn disconnect(&self) {
        for sender in std::mem::take(&mut *self.senders.lock()) {
            sender.stop();
        }
    }

    /// Waits until all standbys are in step, at most `patience`; whether they are.
    pub fn await_in_step(&self, patience: Duration) -> Result<bool, ApiError> {
        let until = Instant::now() + patience;
        for sender in self.senders.lock().clone() {
            if !sender.await_in_step(until.saturating_duration_since(Instant::now()))? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The guest stands: what was written so far belongs to its checkpoint.
    pub fn mark(&self) -> Result<Vec<Mark>, String> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) + 1;
        let senders = self.senders.lock();
        senders.iter().map(|sender| sender.mark(turn).map_err(|error| error.to_string())).collect()
    }

    /// Whether a standby is not followed any more in this session.
    pub fn is_broken(&self) -> bool {
        self.senders.lock().iter().any(|sender| sender.phase() == SenderPhase::Ended)
    }

    /// What the standbys lack.
    pub fn owed(&self) -> Bytes {
        Bytes(self.senders.lock().iter().map(|sender| sender.state().owed.bytes().0).sum())
    }

    /// Their size.
    pub fn size(&self) -> Bytes {
        Bytes(self.handles.iter().map(|handle| handle.volume.size().0).sum())
    }
}

fn told(handle: &VolumeHandle, node: &str) -> Result<Disk, ApiError> {
    let record = handle.record();
    let allocated = handle.volume.allocated()?;
    let owed = handle.volume.standby(node).map_or(0, |standby| standby.outbox.owed().bytes().0);
    Ok(Disk {
        name: record.name,
        size: record.size,
        needed: allocated.iter().map(|extent| extent.bytes().0).sum(),
        owed,
        epoch: record.epoch,
    })
}
