//! VMs found again when the daemon starts: those on record, and processes that an earlier daemon did not get there.
//!
//! ```text
//!   offer_again   their disks, before anybody is asked: a QEMU that waits for one may not answer its monitor
//!   (the daemon opens its doors)
//!   find_again    on record ──┬── its process answers ──────────► watched
//!                             ├── it runs and does not answer ──► asked until it answers or ends
//!                             └── it has ended ─────────────────► told by its record
//!                 not on record: nobody was told that it runs; ended
//! ```
//! A VM whose change of QEMU was cut off is settled first: its own QEMU gets its disks back only when it is known that
//! the other one does not run.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use gnomon_qemu::{ProcessError, Qemu, QemuRecord, end_leftover};

use super::{VmHandle, Vms, beside::Settled};
use crate::{api::ApiError, daemon::records::VmRecord};

/// How long to wait before a monitor that did not answer is asked again. QEMU's monitor speaks to one client at a time,
/// and nobody is told when that one leaves.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// How long a monitor may take to greet when the daemon starts: other guests wait for their disks meanwhile.
const GREETS_WITHIN: Duration = Duration::from_secs(2);

impl Vms {
    /// Offers the disks of every VM on record. Called before anybody can ask for them.
    pub(super) fn offer_again(&self) -> Result<(), ApiError> {
        for record in self.records.vms()? {
            match &record.beside {
                None => self.serve_disks(record.qemu.as_ref(), &record),
                // It may have taken over. If it has not, nothing is written through its exports before it is ended.
                Some(beside) if beside.is_successor => {
                    self.serve_disks(Some(&beside.qemu), &VmRecord { token: beside.token, ..record.clone() });
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// Finds every VM on record again, and ends what is not. Blocks for two seconds for each that does not answer.
    pub fn find_again(self: &Arc<Vms>) -> Result<(), ApiError> {
        let records = self.records.vms()?;
        let mut known: Vec<PathBuf> = records.iter().flat_map(folders_of).collect();
        // Those that wait for the guests of other nodes are looked after elsewhere.
        known.extend(self.reserved.read().keys().map(|name| self.dir.join(name)));
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

    fn bring_back(self: &Arc<Vms>, record: VmRecord) -> Result<(), ApiError> {
        if record.beside.is_none() {
            return self.adopt_own(record, false);
        }
        match self.settle_beside(record)? {
            (record, Settled::Taken(qemu)) => {
                let vm = self.show(record, Some(qemu));
                self.plug_in(&vm);
                Ok(())
            }
            (record, Settled::Own { is_interrupted }) => {
                self.serve_disks(record.qemu.as_ref(), &record);
                self.adopt_own(record, is_interrupted)
            }
        }
    }

    /// Finds a VM's own QEMU. When its change of QEMU was cut off it may stand, and has to be made to run.
    fn adopt_own(self: &Arc<Vms>, mut record: VmRecord, is_interrupted: bool) -> Result<(), ApiError> {
        let Some(qemu) = record.qemu.clone() else {
            self.show(record, None);
            return Ok(());
        };
        match Qemu::adopt_within(qemu, GREETS_WITHIN) {
            Ok(qemu) => {
                tracing::info!(vm = record.name, pid = qemu.record().pid, "adopted again");
                self.note_interrupted(&record.name, &qemu, is_interrupted);
                let vm = self.show(record, Some(Arc::new(qemu)));
                self.plug_in_again(&vm);
            }
            Err(error @ ProcessError::Gone { .. }) => {
                tracing::warn!(vm = record.name, %error, "its QEMU ended while the daemon was away");
                self.take_disks_back(&record);
                record.qemu = None;
                record.exit = Some(format!("it ended while the daemon was away: {error}"));
                self.records.put_vm(&record)?;
                self.show(record, None);
            }
            Err(error) => {
                let vm = record.name.clone();
                tracing::error!(vm, %error, "it runs, and its monitor does not answer: has it another client?");
                let vm = self.show(record, None);
                self.plug_in_again(&vm);
                self.ask_again(vm, is_interrupted);
            }
        }
        Ok(())
    }

    fn serve_disks(&self, qemu: Option<&QemuRecord>, record: &VmRecord) {
        let spec = qemu.and_then(|qemu| qemu.spec.as_ref());
        for disk in spec.iter().flat_map(|spec| &spec.disks) {
            if let Err(error) = self.lend(disk, record) {
                tracing::error!(vm = record.name, disk = disk.name, %error, "its disk cannot be served");
            }
        }
    }

    /// Asks a monitor until it answers or its process has ended, on a thread of its own.
    fn ask_again(self: &Arc<Vms>, vm: Arc<VmHandle>, is_interrupted: bool) {
        let (vms, vm) = (Arc::downgrade(self), Arc::downgrade(&vm));
        thread::spawn(move || {
            loop {
                thread::sleep(ASK_AGAIN);
                let (Some(vms), Some(vm)) = (vms.upgrade(), vm.upgrade()) else { return };
                let Some(record) = vm.record().qemu.filter(|_| vm.is_unreachable()) else { return };
                if vms.has_answered(&vm, record, is_interrupted) {
                    return vms.resume_interrupted();
                }
            }
        });
    }

    /// Whether it is known by now what has become of a VM's QEMU.
    fn has_answered(self: &Arc<Vms>, vm: &Arc<VmHandle>, record: QemuRecord, is_interrupted: bool) -> bool {
        let name = vm.record().name;
        match Qemu::adopt(record) {
            Ok(qemu) => {
                tracing::info!(vm = name, pid = qemu.record().pid, "its monitor answers again");
                self.note_interrupted(&name, &qemu, is_interrupted);
                let qemu = Arc::new(qemu);
                *vm.qemu.lock() = Some(Arc::clone(&qemu));
                self.watch(vm, &qemu);
                true
            }
            Err(error @ ProcessError::Gone { .. }) => {
                tracing::warn!(vm = name, %error, "its QEMU has ended");
                self.gate(&name).unplug();
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
