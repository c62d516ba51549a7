//! A VM that starts: in its trust group, from memory that is staged if there is a block of just its size.

use std::{os::fd::AsFd, sync::Arc, time::Instant};

use gnomon_memory::{Block, Request};
use gnomon_qemu::GuestRam;
use gnomon_terms::Bytes;

use super::{Turn, group::Served, groups};
use crate::{
    api::{
        ApiError,
        types::{RunVm, VmView},
    },
    daemon::Daemon,
};

/// Starts a VM.
pub fn run(daemon: &Arc<Daemon>, request: &RunVm) -> Result<VmView, ApiError> {
    let begun = Instant::now();
    let memory = &daemon.memory;
    if let Some(group) = &request.group {
        // Before anything is begun: there may be no such group.
        memory.group(group)?;
    }
    let _turn = Turn::take(memory, &request.name)?;
    if daemon.vms.is_free(&request.name) {
        memory.ended(&request.name);
    }
    let mut staged = None;
    let started = daemon.vms.run(request, |size| {
        let group = request.group.as_deref()?;
        // It is a member from its first byte on: what it is begun with is of the group.
        groups::join(daemon, group, &request.name).ok()?;
        let mut reserved =
            memory.take(&request.name, Request { bytes: size, whole: true, slots: 1, step: Bytes(1) })?;
        let block = memory.assign(&mut reserved, &request.name)?;
        staged = Some(Arc::clone(&block));
        ram_of(&block)
    });
    match (&started, &staged) {
        (Ok(view), _) => {
            if let Some(group) = memory.group_of(&request.name) {
                group.join(&request.name, groups::most(daemon, &request.name))?;
                let size = Bytes(view.memory);
                let hit = staged.as_ref().map_or(Bytes(0), |block| block.size());
                group.note(&Served { vm: &request.name, size, whole: true, hit, took: begun.elapsed() });
            }
        }
        (Err(_), Some(block)) => memory.returned(block.id()),
        (Err(_), None) => {}
    }
    started
}

fn ram_of(block: &Block) -> Option<GuestRam> {
    let owned = block.as_fd().try_clone_to_owned().ok()?;
    GuestRam::of_memfd(owned).map_err(|error| tracing::error!(%error, "a staged block is no memory for a guest")).ok()
}
