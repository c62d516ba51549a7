//! The signals: what a VM's memory is, as the host sees it and as its guest says.
//!
//! What the host sees is the allocation of the files behind the guest's memory, which costs two microseconds a VM and
//! nobody can lie about; what the guest says is the agent's last report, which is there already.

use gnomon_cycle::staging::{Said, Seen, demand};
use gnomon_qemu::{Qemu, dimms};
use gnomon_terms::Bytes;

use crate::{
    api::types::AgentView,
    daemon::{Daemon, vms::VmHandle},
};

/// What the host has really given of the memory that a VM began with; `None` when it cannot be looked at.
pub fn backed(vm: &VmHandle) -> Option<Bytes> {
    vm.qemu()?.open_ram().ok()??.allocated().ok()
}

/// What a VM needs now; `None` when it does not run.
pub(super) fn of(daemon: &Daemon, name: &str) -> Option<Bytes> {
    let vm = daemon.vms.get(name).ok()?;
    let qemu = vm.qemu()?;
    let said = daemon.vitals.agent(name).filter(|_| daemon.vitals.beats(name)).map(|view| said(&view));
    Some(demand(&Seen { given: given(&qemu)?, allocated: backed(&vm) }, said.as_ref()))
}

/// What a guest has: what it was started with, and what was added.
pub(super) fn given(qemu: &Qemu) -> Option<Bytes> {
    let boot = qemu.record().resolved.as_ref()?.memory;
    let grows = qemu.record().spec.as_ref().is_some_and(|spec| spec.max_memory.is_some());
    let added = if grows { dimms(qemu).ok()?.iter().map(|dimm| dimm.size.0).sum() } else { 0 };
    Some(Bytes(boot.saturating_add(added)))
}

/// A guest's report in the planner's words.
pub(super) fn said(view: &AgentView) -> Said {
    Said {
        total: Bytes(view.memory_total),
        available: Bytes(view.memory_available),
        free: Bytes(view.memory_free),
        waiting: view.pressure.map(|pressure| (pressure.memory * 100.0) as u32),
    }
}
