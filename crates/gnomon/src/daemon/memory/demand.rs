//! The signals: what a VM's memory is, as the host sees it and as its guest says.
//!
//! What the host sees is the allocation of the files behind the guest's memory, which costs two microseconds a VM and
//! nobody can lie about; what the guest says is the agent's last report, which is there already.

use std::sync::Arc;

use gnomon_cycle::staging::{Said, Seen, demand};
use gnomon_qemu::{Qemu, added_memory};
use gnomon_terms::Bytes;

use crate::{
    api::types::AgentView,
    daemon::{Daemon, vms::VmHandle},
};

/// What the host has really given of the memory that a VM began with; `None` when it cannot be looked at.
pub fn backed(vm: &VmHandle) -> Option<Bytes> {
    vm.qemu()?.open_ram().ok()??.allocated().ok()
}

/// What a VM needs now, to which so many bytes were [`added`]; `None` when it does not run.
pub(super) fn of(daemon: &Daemon, name: &str, added: u64) -> Option<Bytes> {
    let vm = daemon.vms.get(name).ok()?;
    let qemu = vm.qemu()?;
    let said = daemon.vitals.agent(name).filter(|_| daemon.vitals.beats(name)).map(|view| said(&view));
    // What was added counts as allocated: blocks are, and what else was added was asked for a moment ago.
    let allocated = backed(&vm).map(|bytes| Bytes(bytes.0.saturating_add(added)));
    Some(demand(&Seen { given: with(&qemu, added)?, allocated }, said.as_ref()))
}

/// What a guest has: what it was started with, and what was added.
pub(super) fn with(qemu: &Qemu, added: u64) -> Option<Bytes> {
    Some(Bytes(qemu.record().resolved.as_ref()?.memory.saturating_add(added)))
}

/// What was added to a guest; its QEMU is asked if there is room for more than it began with.
pub(super) fn added(qemu: &Arc<Qemu>) -> Option<u64> {
    match qemu.record().spec.as_ref()?.max_memory {
        Some(_) => added_memory(qemu).ok().map(|bytes| bytes.0),
        None => Some(0),
    }
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
