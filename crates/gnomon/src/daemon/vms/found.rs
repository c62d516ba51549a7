//! VMs found again when the daemon starts: those on record, and processes that an earlier daemon did not get there.
//!
//! ```text
//!   on record ──┬── its process answers ──────────► watched, its disks served
//!               ├── it runs and does not answer ──► its disks served; asked until it answers or ends
//!               └── it has ended ─────────────────► told by its record
//!   not on record: nobody was told that it runs; ended
//! ```

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use gnomon_qemu::{ProcessError, Qemu, QemuRecord, end_leftover};

use super::{VmHandle, Vms};
use crate::{api::ApiError, daemon::records::VmRecord};

/// How long to wait before a monitor that did not answer is asked again. QEMU's monitor speaks to one client at a time,
/// and nobody is told when that one leaves.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// How long a monitor may take to greet when the daemon starts: other guests wait for their disks meanwhile.
const GREETS_WITHIN: Duration = Duration::from_secs(2);

impl Vms {
    /// Finds every VM on record again, and ends what is not.
    pub(super) fn find_again(self: &Arc<Vms>) -> Result<(), ApiError> {
        let records = self.records.vms()?;
        let known: Vec<PathBuf> = records.iter().flat_map(folders_of).collect();
        for dir in folders_in(&self.dir) {
            self.end_unless_known(&dir, &known);
        }
        records.into_iter().try_for_each(|record| self.bring_back(record))
    }

    fn end_unless_known(&self, dir: &Path, known: &[PathBuf]) {
        if known.iter().any(|folder| folder == dir) {
            return;
        }
        match end_leftover(dir) {
            Ok(None) => {}
            Ok(Some(pid)) => tracing::warn!(pid, dir = %dir.display(), "a QEMU that nobody knew of was ended"),
            Err(error) => tracing::error!(%error, "a QEMU that nobody knows of"),
        }
    }

    fn bring_back(self: &Arc<Vms>, mut record: VmRecord) -> Result<(), ApiError> {
        let (own, lost) = match record.qemu.clone().map(|qemu| Qemu::adopt_within(qemu, GREETS_WITHIN)) {
            None => (None, None),
            Some(Ok(qemu)) => (Some(qemu), None),
            Some(Err(error)) => (None, Some(error)),
        };
        let is_beside = record.beside.is_some();
        let own = self.settle_beside(&mut record, own)?;
        // After a takeover the one that was lost is no more the VM's own.
        let lost = lost.filter(|_| own.is_none());
        let runs = own.is_some() || matches!(&lost, Some(error) if !matches!(error, ProcessError::Gone { .. }));
        if let (Some(error), false) = (&lost, runs) {
            tracing::warn!(vm = record.name, %error, "its QEMU ended while the daemon was away");
            record.qemu = None;
            record.exit = Some(format!("it ended while the daemon was away: {error}"));
        }
        if lost.is_some() || is_beside {
            self.records.put_vm(&record)?;
        }
        if runs {
            self.serve_disks(&record);
        }
        if let Some(qemu) = &own {
            tracing::info!(vm = record.name, pid = qemu.record().pid, "adopted again");
        }
        let vm = self.show(record, own.map(Arc::new));
        if let (Some(error), true) = (lost, runs) {
            tracing::error!(vm = vm.record().name, %error, "it runs, and its monitor does not answer: is another client connected to it?");
            self.ask_again(vm);
        }
        Ok(())
    }

    fn serve_disks(&self, record: &VmRecord) {
        let spec = record.qemu.as_ref().and_then(|qemu| qemu.spec.as_ref());
        for disk in spec.iter().flat_map(|spec| &spec.disks) {
            if let Err(error) = self.lend(disk, record) {
                tracing::error!(vm = record.name, disk = disk.name, %error, "its disk cannot be served");
            }
        }
    }

    /// Asks a monitor until it answers or its process has ended, on a thread of its own.
    fn ask_again(self: &Arc<Vms>, vm: Arc<VmHandle>) {
        let (vms, vm) = (Arc::downgrade(self), Arc::downgrade(&vm));
        thread::spawn(move || {
            loop {
                thread::sleep(ASK_AGAIN);
                let (Some(vms), Some(vm)) = (vms.upgrade(), vm.upgrade()) else { return };
                let Some(record) = vm.record().qemu.filter(|_| vm.is_unreachable()) else { return };
                if vms.has_answered(&vm, record) {
                    return;
                }
            }
        });
    }

    /// Whether it is known by now what has become of a VM's QEMU.
    fn has_answered(self: &Arc<Vms>, vm: &Arc<VmHandle>, record: QemuRecord) -> bool {
        let name = vm.record().name;
        match Qemu::adopt(record) {
            Ok(qemu) => {
                tracing::info!(vm = name, pid = qemu.record().pid, "its monitor answers again");
                let qemu = Arc::new(qemu);
                *vm.qemu.lock() = Some(Arc::clone(&qemu));
                self.watch(vm, &qemu);
                true
            }
            Err(error @ ProcessError::Gone { .. }) => {
                tracing::warn!(vm = name, %error, "its QEMU has ended");
                vm.ended(&error.to_string(), String::new());
                self.take_disks_back(&vm.record());
                true
            }
            Err(_) => false,
        }
    }
}

/// The folders of a VM's QEMUs on record.
fn folders_of(record: &VmRecord) -> Vec<PathBuf> {
    let beside = record.beside.as_ref().map(|beside| &beside.qemu);
    let folder = |qemu: &QemuRecord| qemu.qmp.parent().map(Path::to_path_buf);
    record.qemu.iter().chain(beside).filter_map(folder).collect()
}

/// Every folder that a QEMU may have been started in: a VM's own, and one for each that was beside it.
fn folders_in(dir: &Path) -> Vec<PathBuf> {
    let below = |dir: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
    };
    below(dir).into_iter().flat_map(|own| [below(&own), vec![own]].concat()).collect()
}
