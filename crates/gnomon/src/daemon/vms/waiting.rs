//! QEMUs that wait for the guest of another node, whose shadow this node keeps; and VMs that were lost to their shadow.
//!
//! ```text
//!   reserve ──► launch_waiting ──┬── take_in ──► a VM of this node
//!                                └── forget_waiting, unreserve ──► gone
//! ```
//! A name that is reserved is nobody's VM here: whoever asks for it is told where its guest runs.

use std::{path::Path, sync::Arc};

use gnomon_memory::{Gauge, ProcGauge};
use gnomon_qemu::{Launch, ProcessError, Qemu, QemuRecord, RamLoan, Resolved, Role, RunState, VmPaths, VmSpec};
use gnomon_terms::Bytes;

use super::{VmHandle, Vms};
use crate::{
    api::{ApiError, types::VmView},
    daemon::{cards::Cards, records::VmRecord},
};

/// A name that is nobody's VM here.
pub(super) struct Reserved {
    /// Where its guest runs.
    node: String,
    /// Whether it is about to move here.
    is_landing: bool,
}

/// Memory that is left to the host beside a shadow.
const SPARE_MEMORY: u64 = 64 << 20;

impl Vms {
    /// VM `name` runs at `node`, and only its shadow is here.
    pub fn reserve(&self, name: &str, node: &str) {
        self.reserve_for(name, node, false);
    }

    /// VM `name` runs at `node`, and is about to move here.
    pub fn reserve_landing(&self, name: &str, node: &str) {
        self.reserve_for(name, node, true);
    }

    fn reserve_for(&self, name: &str, node: &str, is_landing: bool) {
        self.reserved.write().insert(name.to_string(), Reserved { node: node.to_string(), is_landing });
    }

    /// The name is free again.
    pub fn unreserve(&self, name: &str) {
        self.reserved.write().remove(name);
    }

    /// Refuses what would be done to a VM of which only the shadow is here.
    pub(super) fn refuse_if_reserved(&self, name: &str) -> Result<(), ApiError> {
        match self.reserved.read().get(name) {
            None => Ok(()),
            Some(Reserved { node, is_landing: true }) => {
                Err(ApiError::refused(format!("VM '{name}' is on its way here from node {node}"))
                    .then(format!("see `gnomon job ls` at node {node}")))
            }
            Some(Reserved { node, .. }) => {
                Err(ApiError::refused(format!("VM '{name}' runs at node {node}: only its shadow is here"))
                    .then(format!("ask node {node}; when it is dead: `gnomon vm failover {name}`")))
            }
        }
    }

    /// Refuses a guest for which there is no memory here, or whose machine this host's QEMU does not know.
    pub fn refuse_unless_it_fits(&self, resolved: &Resolved) -> Result<(), ApiError> {
        let free = ProcGauge.read().ok().map(|memory| memory.available.0);
        if free.is_some_and(|free| resolved.whole_memory().saturating_add(SPARE_MEMORY) > free) {
            return Err(ApiError::refused(format!(
                "the guest has {} of memory, and {} are free here",
                Bytes(resolved.whole_memory()),
                Bytes(free.unwrap_or_default())
            ))
            .then("choose a node with more memory"));
        }
        let host = self.host()?;
        match host.machines.iter().any(|machine| machine.name == resolved.machine) {
            true => Ok(()),
            false => Err(ApiError::refused(format!(
                "QEMU {} here does not know the guest's machine type {}",
                host.qemu.version, resolved.machine
            ))
            .then("install a QEMU here that does, and restart the daemon")),
        }
    }

    /// Starts a QEMU that waits for a guest on memory that is there, with its disks lent under `token`. It is no VM of
    /// this node. Blocks for some 60 ms.
    pub fn launch_waiting(
        &self,
        spec: VmSpec,
        resolved: Resolved,
        token: u64,
        ram: RamLoan<'_>,
    ) -> Result<Qemu, ApiError> {
        Cards::check(&spec.nics)?;
        let dir = self.dir.join(&spec.name);
        std::fs::create_dir_all(&dir)?;
        let spec = self.localized(spec, token);
        // Another QEMU may have waited before, with the same token.
        for disk in spec.disks.iter().filter(|disk| !self.keeper.is_lent(&disk.name, token)) {
            self.keeper.lend(&disk.name, token, &spec.name)?;
        }
        let host = self.host()?;
        let launch = Launch {
            qemu: &host.qemu.path,
            host_args: &[],
            spec: &spec,
            resolved: &resolved,
            dir: &dir,
            role: Role::IncomingPaused,
            ram: Some(ram),
        };
        Ok(Qemu::launch(&launch)?)
    }

    /// What a QEMU that waited leaves behind.
    pub fn forget_waiting(&self, name: &str, disks: &[String], token: u64) {
        for disk in disks {
            self.keeper.take_back(disk, token);
        }
        // Sockets and logs of a process that is gone.
        let _ = std::fs::remove_dir_all(self.dir.join(name));
    }

    /// The guest that `qemu` waited for runs in it: it is a VM of this node, on record before this returns.
    pub fn take_in(self: &Arc<Vms>, record: VmRecord, qemu: Arc<Qemu>) -> Result<Arc<VmHandle>, ApiError> {
        self.records.put_vm(&record)?;
        let vm = self.show(record, Some(qemu));
        self.plug_in(&vm);
        Ok(vm)
    }

    /// Whether the guest for which a QEMU with this token waited is a VM of this node by now.
    pub fn has_taken_in(&self, name: &str, token: u64) -> bool {
        self.all.read().get(name).is_some_and(|vm| vm.record().token == token)
    }

    /// A QEMU of this name that nobody looks after and that has loaded its guest.
    pub fn find_loaded(&self, name: &str) -> Option<Qemu> {
        let qemu = Qemu::adopt_dir(&self.dir.join(name)).ok()?;
        qemu.qmp().query_status().is_ok_and(|status| status.state != RunState::Inmigrate).then_some(qemu)
    }

    /// A QEMU of this name that nobody looks after, and the state of its guest; `None` when there is none. Fails when it
    /// lives and does not answer.
    pub fn find_waiting(&self, name: &str) -> Result<Option<(Qemu, RunState)>, ApiError> {
        match Qemu::adopt_dir(&self.dir.join(name)) {
            Ok(qemu) => {
                let state = qemu.qmp().query_status()?.state;
                Ok(Some((qemu, state)))
            }
            Err(error @ (ProcessError::Qmp(_) | ProcessError::NoMonitor { .. } | ProcessError::Watch { .. })) => {
                Err(error.into())
            }
            // It has ended, or had not come up.
            Err(_) => Ok(None),
        }
    }

    /// Another node runs the guest of this VM by now: its QEMU here is killed, its disks are taken from it, and its
    /// record says so until the VM is forgotten. Blocks until the process is gone.
    pub fn lose(&self, name: &str, why: &str) -> Result<(), ApiError> {
        let vm = self.get(name)?;
        self.gate(name).fence();
        self.take_disks_back(&vm.record());
        // Before its end is noticed; that it has a QEMU stays on record until it has none.
        vm.change(&self.records, |record| record.exit = Some(why.to_string()))?;
        if let Some(qemu) = vm.qemu() {
            qemu.kill()?;
        }
        vm.kill_unreachable()?;
        *vm.qemu.lock() = None;
        vm.change(&self.records, |record| record.qemu = None)
    }

    /// Takes the disks of a VM from its QEMU, and pulls its cables: when this returns, none of its requests touches its
    /// disks any more, and none of its frames leaves.
    pub fn fence(&self, vm: &VmHandle) {
        self.gate(&vm.record().name).fence();
        self.take_disks_back(&vm.record());
    }

    /// Gives them back to it, those that it does not have.
    pub fn unfence(&self, vm: &VmHandle) -> Result<(), ApiError> {
        self.gate(&vm.record().name).unfence();
        self.plug_in(vm);
        let (record, qemu) = (vm.record(), vm.qemu());
        let disks = qemu.iter().flat_map(|qemu| qemu.record().spec.iter()).flat_map(|spec| &spec.disks);
        let taken = disks.into_iter().filter(|disk| !self.keeper.is_lent(&disk.name, record.token));
        taken.into_iter().try_for_each(|disk| self.lend(disk, &record))
    }

    /// A VM of which only a QEMU is here that waits.
    pub fn waiting_view(&self, name: &str, disks: &[String], qemu: Option<QemuRecord>) -> VmView {
        let resolved = qemu.as_ref().and_then(|qemu| qemu.resolved.as_ref());
        let spec = qemu.as_ref().and_then(|qemu| qemu.spec.as_ref());
        let paths = VmPaths::new(qemu.as_ref().and_then(|qemu| qemu.qmp.parent()).unwrap_or(Path::new("")));
        VmView {
            name: name.to_string(),
            pid: qemu.as_ref().map(|qemu| qemu.pid.unsigned_abs()),
            memory: resolved.map_or(0, |resolved| resolved.memory),
            accel: resolved.map(super::accel_word).unwrap_or_default(),
            disks: disks.to_vec(),
            ports: spec.map(|spec| spec.ports.iter().map(super::port_view).collect()).unwrap_or_default(),
            version: qemu.as_ref().map(|qemu| qemu.version.to_string()).unwrap_or_default(),
            console: spec.map(|_| paths.console().display().to_string()),
            qmp: qemu.as_ref().map(|qemu| qemu.qmp.display().to_string()).unwrap_or_default(),
            ..VmView::default()
        }
    }
}
