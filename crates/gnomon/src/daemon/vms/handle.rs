//! A VM of this node, to whoever has something to do with it: what is on record of it, its QEMU, and what it must not be
//! asked for.

use std::sync::Arc;

use gnomon_qemu::{DiskSource, Qemu, virtio_mem};
use gnomon_terms::Bytes;
use parking_lot::Mutex;

use crate::{
    api::ApiError,
    daemon::records::{Records, VmRecord},
};

/// A VM of this node.
pub struct VmHandle {
    pub(super) record: Mutex<VmRecord>,
    pub(super) qemu: Mutex<Option<Arc<Qemu>>>,
}

impl VmHandle {
    /// A copy of its record.
    pub fn record(&self) -> VmRecord {
        self.record.lock().clone()
    }

    /// Changes its record; durable before this returns.
    pub(super) fn change(&self, records: &Records, deed: impl FnOnce(&mut VmRecord)) -> Result<(), ApiError> {
        let mut record = self.record.lock();
        let mut draft = record.clone();
        deed(&mut draft);
        records.put_vm(&draft)?;
        *record = draft;
        Ok(())
    }

    /// Its QEMU, while there is one.
    pub fn qemu(&self) -> Option<Arc<Qemu>> {
        self.qemu.lock().clone()
    }

    /// Whether its memory is to follow what its guest needs; durable before this returns.
    pub fn set_follows(&self, records: &Records, on: bool) -> Result<(), ApiError> {
        self.change(records, |record| record.follows = on)
    }

    /// Refuses to move a VM that QEMU could not take along: a server of its queues would have to note every page of the
    /// guest's memory that it writes for QEMU's migration, and ours does not.
    pub fn refuse_unless_movable(&self) -> Result<(), ApiError> {
        let qemu = self.qemu();
        let spec = qemu.as_ref().and_then(|qemu| qemu.record().spec.as_ref());
        let mut disks = spec.iter().flat_map(|spec| &spec.disks);
        match disks.find(|disk| matches!(disk.source, DiskSource::VhostUser { .. })) {
            None => Ok(()),
            Some(disk) => Err(ApiError::refused(format!(
                "VM '{}' has disk '{}' over vhost-user, which cannot be moved while it runs",
                self.record().name,
                disk.name
            ))
            .then("stop it and start it again with this disk over NBD (--disk VOLUME), or move its volume and start it there")),
        }
    }

    /// Refuses what carries a guest's memory elsewhere while its virtio-mem device has some: that is in none of the ways.
    /// DIMMs are.
    pub fn refuse_if_its_device_has_memory(&self) -> Result<(), ApiError> {
        let Some(qemu) = self.qemu() else { return Ok(()) };
        let has_device = qemu.record().spec.as_ref().is_some_and(|spec| spec.virtio_mem.is_some());
        let has = if has_device { virtio_mem(&qemu)?.actual } else { Bytes(0) };
        if has == Bytes(0) {
            return Ok(());
        }
        let name = self.record().name;
        Err(ApiError::refused(format!("VM '{name}' was given {has} by virtio-mem, which stay on this host"))
            .then(format!("ask for them back first: `gnomon vm memory {name} --shrink {}`", has.0)))
    }

    /// Whether it runs as far as is known, and its monitor did not answer when the daemon started.
    pub fn is_unreachable(&self) -> bool {
        let record = self.record.lock();
        self.qemu.lock().is_none() && record.qemu.is_some() && record.exit.is_none()
    }

    /// Ends a QEMU whose monitor does not answer; does nothing to any other.
    pub(super) fn kill_unreachable(&self) -> Result<(), ApiError> {
        match self.record().qemu.filter(|_| self.is_unreachable()) {
            Some(qemu) => {
                qemu.kill()?;
                self.ended("killed: its monitor did not answer", String::new());
                Ok(())
            }
            None => Ok(()),
        }
    }

    pub(super) fn uses(&self, disk: &str) -> bool {
        (self.qemu().is_some() || self.is_unreachable()) && self.record.lock().disks.iter().any(|used| used == disk)
    }

    pub(super) fn ended(&self, how: &str, words: String) {
        let mut record = self.record.lock();
        *self.qemu.lock() = None;
        // Of one that was ended on purpose it is known why.
        record.exit.get_or_insert_with(|| how.to_string());
        record.stderr = (!words.is_empty()).then_some(words);
    }
}
