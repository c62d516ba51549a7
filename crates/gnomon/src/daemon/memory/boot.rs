//! A VM that starts: in its trust group, from memory that is staged if there is a block of just its size.
//!
//! A start that is refused changes nothing: the VM joins its group when it runs, the block that was taken for it goes back
//! to the host, and disks that had begun with what others of the group have learned know nothing again. Its QEMU's page
//! tables are filled while its firmware runs, so that the guest does not do it one fault at a time.

use std::{os::fd::AsFd, sync::Arc, thread, time::Instant};

use gnomon_memory::{Block, Request};
use gnomon_qemu::{GuestRam, PageTables};
use gnomon_terms::Bytes;

use super::{
    Memory,
    group::{Group, Served},
    groups,
};
use crate::{
    api::{
        ApiError,
        types::{RunVm, VmView},
    },
    daemon::{
        Daemon,
        cold_start::{self, Begun},
    },
};

/// Starts a VM, in the group that it asks for or is in.
pub fn run(daemon: &Arc<Daemon>, request: &RunVm) -> Result<VmView, ApiError> {
    let begun = Instant::now();
    let (memory, name) = (&daemon.memory, &request.name);
    let group = match &request.group {
        // Before anything is begun: there may be no such group.
        Some(group) => Some(memory.group(group)?),
        None => memory.group_of(name),
    };
    let _turn = memory.turns.take(name)?;
    if memory.is_over(daemon, name) {
        memory.ended(name);
    }
    let (mut staged, mut taught) = (None, Begun::default());
    let started = daemon.vms.run(request, |size| {
        // Of one that runs already nothing is taken: it is about to be refused.
        let group = group.as_ref().filter(|_| daemon.vms.is_free(name))?;
        let disks: Vec<String> = request.disks.iter().map(|disk| disk.volume.clone()).collect();
        taught = cold_start::begin(daemon, &group.record().members, name, &disks);
        let (block, ram) = memory.ram_for(group, name, size)?;
        staged = Some(block);
        Some(ram)
    });
    match &started {
        Ok(_) => taught.keep(&daemon.keeper),
        Err(_) => taught.undo(&daemon.keeper),
    }
    match (&started, staged) {
        (Ok(view), staged) => {
            if let Some(block) = &staged {
                map(daemon, name, block);
            }
            if let Some(group) = &group {
                runs(daemon, group, view, staged.as_deref(), begun);
            }
        }
        (Err(_), Some(block)) => memory.returned(block.id()),
        (Err(_), None) => {}
    }
    started
}

/// It runs, whatever else fails: it is a member from now on, and its start was a request.
fn runs(daemon: &Arc<Daemon>, group: &Group, view: &VmView, staged: Option<&Block>, begun: Instant) {
    if let Err(error) = groups::enter(daemon, group, &view.name) {
        tracing::error!(vm = view.name, group = %group.name, %error, "it runs, and is not in its group");
        return;
    }
    let hit = staged.map_or(Bytes(0), Block::size);
    let (size, whole) = (Bytes(view.memory), !group.is_huge());
    group.note(&Served { vm: &view.name, size, whole, hit, took: begun.elapsed() });
}

/// Has its QEMU map what is staged, beside the guest that boots. It is a help: what is not mapped is as the guest touches it.
fn map(daemon: &Daemon, vm: &str, block: &Block) {
    let Some(qemu) = daemon.vms.get(vm).ok().and_then(|vm| vm.qemu()) else { return };
    let (tables, vm) = (PageTables::of(&qemu, block.as_fd(), block.size()), vm.to_string());
    // It has neither the block nor the QEMU: whoever ends them waits for nothing here.
    thread::spawn(move || {
        if let Err(error) = tables.and_then(|tables| tables.fill()) {
            tracing::warn!(vm, %error, "its memory is mapped as the guest touches it");
        }
    });
}

impl Memory {
    /// A staged block of just this size as memory for a VM that starts. `None` when there is none, and of a group with 2 MiB
    /// pages: what carries a guest's memory elsewhere, or tries something on a copy of it, goes by pages of 4 KiB.
    fn ram_for(&self, group: &Group, vm: &str, size: Bytes) -> Option<(Arc<Block>, GuestRam)> {
        if group.is_huge() {
            return None;
        }
        let mut reserved = self.take_of(group, vm, Request { bytes: size, whole: true, slots: 1, step: Bytes(1) })?;
        let block = self.assign(&mut reserved, vm)?;
        let ram = block.as_fd().try_clone_to_owned().ok().map(GuestRam::of_memfd);
        match ram {
            Some(Ok(ram)) => Some((block, ram)),
            told => {
                tracing::error!(vm, ?told, "a staged block is no memory for a guest");
                self.returned(block.id());
                None
            }
        }
    }
}
