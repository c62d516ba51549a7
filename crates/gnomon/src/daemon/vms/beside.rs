//! A second QEMU of one VM, beside the one that runs it: a copy that something is tried on, or the one that takes over.
//!
//! ```text
//!   launch_beside ──► waits, on record ──┬── succeed ──► it is the VM's QEMU; the one before is ended
//!                                        └── end_beside ──► gone, without a trace
//! ```
//!
//! It is on record before anything is done with it. After a crash of the daemon the QEMUs themselves are asked: a
//! successor that runs has taken over, and any other is ended, and the guest made to run where it was. Only one of the
//! two can be running, because the successor is made to run after the other has lost its disks.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use gnomon_qemu::{DiskSource, Launch, Qemu, QemuBinary, RamLoan, Resolved, Role, VmSpec, end_leftover};
use gnomon_volume::disk::ForkDisk;

use super::{VmHandle, Vms};
use crate::{
    api::ApiError,
    daemon::records::{BesideRecord, NamesRecord, ProgramRecord, VmRecord},
};

/// How long a guest may take to run again after a crash of the daemon in the midst of a takeover.
const RESUME: Duration = Duration::from_secs(30);

/// Copies of a guest's disks, by volume.
pub type Forks = Vec<(String, Arc<ForkDisk>)>;

/// What a second QEMU is for.
pub enum Purpose {
    /// It takes the VM over: it has the VM's own disks.
    Successor,
    /// Something is tried on it: it has copies of the disks, by volume.
    Trial(Forks),
}

/// What has become of a change of QEMU that a crash of the daemon cut off.
pub(super) enum Settled {
    /// The VM's own QEMU has the guest. It may stand in the midst of a switch.
    Own {
        /// Whether it does.
        is_interrupted: bool,
    },
    /// The other one had taken over, and is the VM's own now.
    Taken(Arc<Qemu>),
}

/// A second QEMU. It has to be ended or to succeed: dropping it only forgets it here, and the next start ends it.
pub struct Beside {
    /// The process; it waits for a state.
    pub qemu: Arc<Qemu>,
    record: BesideRecord,
    dir: PathBuf,
}

impl Vms {
    /// Starts a QEMU beside the one of `vm`, for the same guest as it is made up now, by another program or under other
    /// names, and on memory that is there. Blocks for some 60 ms.
    pub fn launch_beside(
        &self,
        vm: &VmHandle,
        (program, names): (&QemuBinary, &NamesRecord),
        (resolved, memory): (&Resolved, RamLoan<'_>),
        purpose: Purpose,
    ) -> Result<Beside, ApiError> {
        let record = vm.record();
        let Some(spec) = record.qemu.as_ref().and_then(|qemu| qemu.spec.clone()) else {
            return Err(ApiError::refused(format!("VM '{}' was adopted: its devices are not known", record.name))
                .then("restart it with `gnomon vm run`"));
        };
        let token = self.records.next_token()?;
        let dir = self.dir.join(&record.name).join(token.to_string());
        let is_successor = matches!(purpose, Purpose::Successor);
        let spec = VmSpec { machine: names.machine.clone(), cpu_model: names.cpu.clone(), ..spec };
        let spec = self.localized_in(&dir, spec, token);
        fs::create_dir_all(&dir)?;
        let launched = self.lend_all(&spec, &record, token, purpose).and_then(|()| {
            let launch = Launch {
                qemu: &program.path,
                host_args: &program.host_args(),
                spec: &spec,
                resolved,
                dir: &dir,
                role: Role::IncomingPaused,
                ram: Some(memory),
            };
            let qemu = Arc::new(Qemu::launch(&launch)?);
            let program =
                ProgramRecord { path: program.path.clone(), data_dirs: program.data_dirs.clone(), names: None };
            let beside = BesideRecord { qemu: qemu.record().clone(), token, program, is_successor };
            vm.change(&self.records, |record| record.beside = Some(beside.clone()))?;
            Ok((qemu, beside))
        });
        match launched {
            Ok((qemu, record)) => Ok(Beside { qemu, record, dir }),
            Err(error) => {
                // It may have come up, and not got on record.
                end_leftover(&dir)?;
                self.forget_beside(&record.disks, token, &dir);
                Err(error)
            }
        }
    }

    fn lend_all(&self, spec: &VmSpec, record: &VmRecord, token: u64, purpose: Purpose) -> Result<(), ApiError> {
        match purpose {
            Purpose::Successor => {
                let next = VmRecord { token, ..record.clone() };
                spec.disks.iter().try_for_each(|disk| self.lend(disk, &next))
            }
            Purpose::Trial(forks) => forks
                .into_iter()
                .try_for_each(|(volume, fork)| self.keeper.lend_fork(&volume, token, &record.name, fork)),
        }
    }

    /// Ends a second QEMU: it is as if it had not been.
    pub fn end_beside(&self, vm: &VmHandle, beside: Beside) -> Result<(), ApiError> {
        beside.qemu.kill()?;
        vm.change(&self.records, |record| record.beside = None)?;
        self.forget_beside(&vm.record().disks, beside.record.token, &beside.dir);
        Ok(())
    }

    /// The second QEMU runs the guest now: it becomes the VM's own, and the one before is ended.
    pub fn succeed(self: &Arc<Vms>, vm: &Arc<VmHandle>, beside: Beside) -> Result<(), ApiError> {
        let (before, old_token) = (vm.qemu(), vm.record().token);
        vm.change(&self.records, |record| {
            record.before = self.program_of(record);
            record.program = Some(beside.record.program.clone());
            record.qemu = Some(beside.record.qemu.clone());
            record.token = beside.record.token;
            record.beside = None;
        })?;
        *vm.qemu.lock() = Some(Arc::clone(&beside.qemu));
        self.watch(vm, &beside.qemu);
        self.plug_in(vm);
        if let Some(before) = before {
            before.kill()?;
            self.forget_lane(&vm.record(), &before, old_token);
        }
        Ok(())
    }

    /// After a restart of the daemon: what has become of the second QEMU of a record? It is not in the record any more
    /// that this returns, which is durable. A successor has its disks by now, so that it can answer.
    pub(super) fn settle_beside(&self, mut record: VmRecord) -> Result<(VmRecord, Settled), ApiError> {
        let Some(beside) = record.beside.take() else {
            return Ok((record, Settled::Own { is_interrupted: false }));
        };
        let successor = Qemu::adopt(beside.qemu.clone()).ok().filter(|qemu| beside.is_successor && runs(qemu));
        let settled = match successor {
            Some(successor) => {
                tracing::info!(vm = record.name, "its new QEMU had taken over");
                record.before = self.program_of(&record);
                if let Some(own) = record.qemu.replace(beside.qemu) {
                    own.kill()?;
                }
                record.program = Some(beside.program);
                record.token = beside.token;
                Settled::Taken(Arc::new(successor))
            }
            None => {
                // Both map the same memory: the other one runs on only when this one is gone.
                beside.qemu.kill()?;
                let dir = beside.qemu.qmp.parent().map(Path::to_path_buf).unwrap_or_default();
                self.forget_beside(&record.disks, beside.token, &dir);
                Settled::Own { is_interrupted: beside.is_successor }
            }
        };
        self.records.put_vm(&record)?;
        Ok((record, settled))
    }

    /// Has a guest made to run, when its disks are served, if it stands because its change of QEMU was cut off.
    pub(super) fn note_interrupted(&self, name: &str, own: &Qemu, is_interrupted: bool) {
        if is_interrupted && !runs(own) {
            tracing::warn!(vm = name, pid = own.record().pid, "its change of QEMU was cut off");
            self.interrupted.lock().push(name.to_string());
        }
    }

    /// Makes the guests run on whose change of QEMU was cut off by a crash of the daemon. Once their disks are served:
    /// QEMU opens them anew for that, and waits for them.
    pub fn resume_interrupted(&self) {
        for name in std::mem::take(&mut *self.interrupted.lock()) {
            let Some(qemu) = self.get(&name).ok().and_then(|vm| vm.qemu()) else { continue };
            match qemu.qmp().cont_after_migration(RESUME) {
                Ok(()) => tracing::info!(vm = name, "it runs on in its old QEMU"),
                Err(error) => {
                    tracing::error!(vm = name, %error, "it could not be made to run: try `cont` on its monitor")
                }
            }
        }
    }

    /// What a VM runs by: the program of its last update, or this host's own; and its names there.
    pub fn program_of(&self, record: &VmRecord) -> Option<ProgramRecord> {
        let own = || {
            let host = self.host().ok()?;
            let (path, data_dirs) = (host.qemu.path.clone(), host.qemu.data_dirs.clone());
            Some(ProgramRecord { path, data_dirs, names: None })
        };
        let program = record.program.clone().or_else(own)?;
        Some(ProgramRecord { names: record.names(), ..program })
    }

    fn forget_beside(&self, disks: &[String], token: u64, dir: &Path) {
        for disk in disks {
            self.keeper.take_back(disk, token);
        }
        // Sockets and logs of a process that is gone.
        let _ = fs::remove_dir_all(dir);
    }

    /// What the QEMU before leaves behind. The first one's folder is that of the VM, and stays.
    fn forget_lane(&self, record: &VmRecord, before: &Qemu, token: u64) {
        for disk in &record.disks {
            self.keeper.take_back(disk, token);
        }
        let dir = before.record().qmp.parent().map(Path::to_path_buf).unwrap_or_default();
        if dir != self.dir.join(&record.name) {
            let _ = fs::remove_dir_all(dir);
        }
    }
}

impl VmHandle {
    /// Refuses a change of QEMU for a guest whose disks are not fenced by exports.
    pub fn refuse_unless_updatable(&self) -> Result<(), ApiError> {
        let record = self.record();
        let disks = record.qemu.iter().flat_map(|qemu| qemu.spec.iter()).flat_map(|spec| &spec.disks);
        for disk in disks {
            if matches!(disk.source, DiskSource::VhostUser { .. }) {
                return Err(ApiError::refused(format!(
                    "VM '{}' has disk '{}' over vhost-user, whose writes into its memory cannot be followed",
                    record.name, disk.name
                ))
                .then("stop it and start it again with this disk over NBD (--disk VOLUME)"));
            }
        }
        Ok(())
    }
}

fn runs(qemu: &Qemu) -> bool {
    qemu.qmp().query_status().is_ok_and(|status| status.running)
}
