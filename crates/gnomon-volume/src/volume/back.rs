//! The way back of a volume that drains: the destination gives up writing, the source is the writer again.
//!
//! ```text
//!   destination                                         source
//!   Draining ──hold──► held (Fenced at e)               Fenced ──await_return──► readable, for the QEMU that waits
//!      ▲                 │  owed is sent and empty         ▲                          │
//!      └──────go_on──────┤                                 └───────end_return─────────┤
//!                    give_back ► Fenced at e+1                              take_back ► Primary at e+1
//!
//!   Draining ──doubt──► Unconfirmed ──confirm──► Draining, or ──surrender──► Fenced, or ──outlive──► Primary
//! ```
//! As in the rest of this module, nothing is decided here: gnomon-proto's handover does, in the other direction.

use std::{sync::Arc, time::Duration};

use gnomon_proto::frame::Content;
use gnomon_terms::{BlockCount, Epoch, Extent};

use super::{Engine, Volume, VolumeError};
use crate::{
    disk::{
        Disk, DiskError, FileDisk, Role,
        layered::{FlushTicket, Peer},
    },
    mover::read_content,
};

impl Volume {
    // ---- at the destination ---------------------------------------------------------------------------------

    /// Writes are refused from now on, at the epoch of today, while a handover back is decided. False when writes
    /// that wait for blocks of the source did not end `within` this time: then nothing has changed.
    pub fn hold(&self, within: Duration) -> Result<bool, VolumeError> {
        let (epoch, role) = self.disk.state();
        let Role::Draining(layered) = role else { return Err(self.wrong_role(&role, "handing it back")) };
        let to = layered.peer.name();
        Ok(self.disk.become_role_within(within, epoch, Role::Fenced { to })?)
    }

    /// It was not handed back: this host is the writer as before.
    pub fn go_on(&self) -> Result<(), VolumeError> {
        let (epoch, role) = self.disk.state();
        match role {
            Role::Fenced { .. } => self.activate(epoch),
            Role::Draining(_) => Ok(()),
            other => Err(self.wrong_role(&other, "letting it write again")),
        }
    }

    /// It is on record that the volume was handed back at `epoch`.
    pub fn give_back(&self, epoch: Epoch, to: &str) -> Result<(), VolumeError> {
        self.fence(epoch, to)
    }

    /// What was written here and is not durable at the source: it lacks it, or has it in memory only. Becomes zero some
    /// time after [`Volume::flush_at_source`] when nobody writes any more.
    pub fn at_risk(&self) -> BlockCount {
        self.shadow().map_or(BlockCount(0), |shadow| shadow.at_risk())
    }

    /// Asks the source to make durable what was written here up to now. Never blocks. Does nothing for a volume that is
    /// no destination.
    pub fn flush_at_source(&self) {
        if let Some(shadow) = self.shadow() {
            shadow.ask_flush();
        }
    }

    /// The source's host may have rebooted since it was last heard: what it had in memory only is owed again. Called
    /// before the session with it is attached. Does nothing for a volume that is no destination.
    pub fn distrust_source(&self) {
        if let Some(shadow) = self.shadow() {
            shadow.distrust_peer();
        }
    }

    /// The copy here is of no more use: its engine ends. The file stays; whoever owns the volume removes it.
    pub fn leave(&self) -> Result<(), VolumeError> {
        let (_, role) = self.disk.state();
        match role {
            Role::Fenced { .. } => self.end_engine(),
            other => Err(self.wrong_role(&other, "leaving it")),
        }
    }

    /// This host comes back after it was away, and its source may have rolled the move back meanwhile: writes wait
    /// until it has said that it has not. Does nothing for a volume that does not drain.
    pub fn doubt(&self) -> Result<(), VolumeError> {
        match self.disk.state() {
            (epoch, Role::Draining(disk)) => Ok(self.disk.become_role(epoch, Role::Unconfirmed(disk))?),
            _ => Ok(()),
        }
    }

    /// The source has said that this host is still the writer. Does nothing for a volume that was not in doubt.
    pub fn confirm(&self) -> Result<(), VolumeError> {
        match self.disk.state() {
            (epoch, Role::Unconfirmed(disk)) => Ok(self.disk.become_role(epoch, Role::Draining(disk))?),
            _ => Ok(()),
        }
    }

    /// The source is gone for good, and the volume, which is whole and recorded as primary at `epoch`, an ordinary one.
    /// Writes that waited for the source's word go on.
    pub fn outlive(&self, epoch: Epoch) -> Result<(), VolumeError> {
        let (_, role) = self.disk.state();
        if !matches!(role, Role::Draining(_) | Role::Unconfirmed(_)) {
            return Err(self.wrong_role(&role, "confirming it without its source"));
        }
        self.disk.become_role(epoch, Role::Primary)?;
        self.end_engine()
    }

    /// The source has rolled the move back without this host: it never writes again. Whoever waits here for blocks of
    /// the source is told that none will come.
    pub fn surrender(&self, to: &str) -> Result<(), VolumeError> {
        let (epoch, role) = self.disk.state();
        if !matches!(role, Role::Draining(_) | Role::Unconfirmed(_)) {
            return Err(self.wrong_role(&role, "giving it up"));
        }
        if let Some(shadow) = self.shadow() {
            // First, or a write that waits for a block would hold the fence up for as long as its patience lasts.
            shadow.stop();
        }
        self.fence(epoch, to)?;
        self.end_engine()
    }

    // ---- at the source --------------------------------------------------------------------------------------

    /// Lets a QEMU that waits for its guest read the mirrored copy: it looks at the partition table when it opens a
    /// disk. Writes are refused as before.
    pub fn await_return(&self) -> Result<(), VolumeError> {
        match self.disk.state() {
            (epoch, Role::Fenced { to }) => {
                let copy = MirroredCopy { local: Arc::clone(self.local()), to };
                Ok(self.disk.become_role(epoch, Role::Shadow(Arc::new(copy)))?)
            }
            _ => Ok(()),
        }
    }

    /// The guest does not come: reads are refused again.
    pub fn end_return(&self) -> Result<(), VolumeError> {
        match self.disk.state() {
            (epoch, Role::Shadow(peer)) => self.fence(epoch, &peer.name()),
            _ => Ok(()),
        }
    }

    /// This host is the writer again, at a newer epoch; that is on record, or will be before anybody is told. What
    /// was mirrored is durable when this returns.
    pub fn take_back(&self, epoch: Epoch) -> Result<(), VolumeError> {
        let (current, role) = self.disk.state();
        match role {
            Role::Fenced { .. } | Role::Shadow(_) => {
                self.local().flush()?;
                self.disk.become_role(epoch, Role::Primary)?;
                *self.engine.lock() = Engine::default();
                self.remove_owed()
            }
            Role::Primary if current == epoch => Ok(()),
            other => Err(self.wrong_role(&other, "taking it back")),
        }
    }
}

/// The copy that a fenced source keeps whole, for the reads of a QEMU that opens it.
struct MirroredCopy {
    local: Arc<FileDisk>,
    to: String,
}

impl Peer for MirroredCopy {
    fn name(&self) -> String {
        self.to.clone()
    }

    fn fetch(&self, extent: Extent) -> Result<Arc<Content>, DiskError> {
        read_content(&*self.local, extent).map(Arc::new)
    }

    fn stalled(&self, _extent: Extent) {}

    fn offer(&self, _extent: Extent) {}

    fn ask_flush(&self) -> FlushTicket {
        FlushTicket(0)
    }

    fn wait_flush(&self, _ticket: FlushTicket) -> Result<(), DiskError> {
        Ok(())
    }
}
