//! What an earlier daemon has left: groups on record, blocks at the holder, blocks at guests.
//!
//! Nothing is on record but the groups. The holder's blocks are found by the staging area; a guest's are memfds that its
//! QEMU has open, and say by their names whose they were.

use std::sync::Arc;

use gnomon_memory::blocks_of;

use super::{Memory, Turn, group::Group, groups};
use crate::{
    api::ApiError,
    daemon::{Daemon, records::GroupRecord},
};

/// Brings back what is on record, and looks for the rest. What cannot be brought back is told in the log: guests run as
/// before.
pub(super) fn bring_back(daemon: &Arc<Daemon>) -> Result<(), ApiError> {
    let memory = &daemon.memory;
    for record in memory.records.groups()? {
        bring_back_group(daemon, record);
    }
    let left = memory.socket.exists() || !memory.groups.read().is_empty();
    look_at_guests(daemon)?;
    if left {
        memory.open_staging()?;
    }
    let all: Vec<Arc<Group>> = memory.groups.read().values().cloned().collect();
    all.iter().try_for_each(|group| memory.aim(group))
}

fn bring_back_group(daemon: &Arc<Daemon>, record: GroupRecord) {
    let name = record.name.clone();
    match Group::new(record, &daemon.memory.config, |vm| groups::most(daemon, vm)) {
        Ok(group) => drop(daemon.memory.groups.write().insert(name, Arc::new(group))),
        Err(error) => tracing::error!(group = name, %error, "a group on record cannot be brought back"),
    }
}

/// Looks at each QEMU once: one whose monitor did not answer when the daemon started is looked at when it does.
pub(super) fn look_at_guests(daemon: &Daemon) -> Result<(), ApiError> {
    let (memory, running) = (&daemon.memory, daemon.vms.running());
    memory.looked_at.lock().retain(|pid| running.iter().any(|(_, qemu)| qemu.record().pid == *pid));
    for (name, qemu) in running {
        let Ok(_turn) = Turn::take(memory, &name) else { continue };
        if memory.looked_at.lock().insert(qemu.record().pid) {
            memory.set_auto(&name, daemon.vms.get(&name)?.record().follows);
            find_blocks(memory, &name, qemu.record().pid)?;
        }
    }
    Ok(())
}

fn find_blocks(memory: &Memory, vm: &str, pid: i32) -> Result<(), ApiError> {
    let blocks = match blocks_of(pid) {
        Ok(blocks) => blocks,
        Err(error) => {
            tracing::warn!(vm, %error, "its staged memory cannot be looked for");
            return Ok(());
        }
    };
    for block in blocks {
        let id = block.id();
        if !memory.at_guests.lock().contains_key(&id) {
            let block = memory.open_staging()?.assigned_again(vm, block)?;
            memory.at_guests.lock().insert(id, block);
        }
    }
    Ok(())
}
