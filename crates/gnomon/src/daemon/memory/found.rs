//! What an earlier daemon has left: groups on record, blocks at the holder, blocks at guests.
//!
//! Nothing is on record but the groups. The holder's blocks are found by the staging area; a guest's are memfds that its
//! QEMU has open, and say by their names whose they were.

use std::{fs, io, sync::Arc, time::Duration};

use gnomon_cycle::staging::MOST_STEPS;
use gnomon_memory::{BlockId, NAME_PREFIX, blocks_of};
use gnomon_qemu::{Qemu, mapped_files};

use super::{Memory, group::Group, groups, numa};
use crate::{
    api::ApiError,
    daemon::{Daemon, records::GroupRecord, vms::VmHandle},
};

/// Brings back the groups that are on record. One that cannot be is told in the log and stays on record: guests run as
/// before.
pub(super) fn bring_back_groups(daemon: &Arc<Daemon>) -> Result<(), ApiError> {
    for record in daemon.memory.records.groups()? {
        let (name, step) = (record.name.clone(), daemon.memory.config.step);
        match Group::new(within(record, step), &daemon.memory.config, |vm| groups::most(daemon, vm)) {
            Ok(group) => drop(daemon.memory.groups.write().insert(name, Arc::new(group))),
            Err(error) => tracing::error!(group = name, %error, "a group on record cannot be brought back"),
        }
    }
    Ok(())
}

/// A group that looks no further ahead than can be planned for: steps may have become shorter since.
fn within(record: GroupRecord, step: Duration) -> GroupRecord {
    let most = step.as_secs().saturating_mul(MOST_STEPS as u64);
    let horizon_s = record.horizon_s.clamp(1, most.max(1));
    if horizon_s != record.horizon_s {
        let (group, asked) = (&record.name, record.horizon_s);
        tracing::warn!(group, asked, horizon_s, "steps are shorter than they were: it looks less far ahead");
    }
    GroupRecord { horizon_s, ..record }
}

/// Looks for what an earlier daemon has left staged, and at guests.
pub(super) fn bring_back_blocks(daemon: &Arc<Daemon>) -> Result<(), ApiError> {
    let memory = &daemon.memory;
    look_at_guests(daemon);
    if memory.socket.exists() || !memory.groups.read().is_empty() {
        memory.open_staging()?;
    }
    let all: Vec<Arc<Group>> = memory.groups.read().values().cloned().collect();
    all.iter().for_each(|group| numa::settle(daemon, group));
    all.iter().try_for_each(|group| memory.aim(group))
}

/// Looks at each QEMU once: one whose monitor did not answer when the daemon started is looked at when it does, and one that
/// cannot be looked at is looked at again.
pub(super) fn look_at_guests(daemon: &Daemon) {
    let (memory, running) = (&daemon.memory, daemon.vms.running());
    memory.looked_at.lock().retain(|pid| running.iter().any(|(_, qemu)| qemu.record().pid == *pid));
    for (name, qemu) in running {
        let pid = qemu.record().pid;
        if memory.looked_at.lock().contains(&pid) {
            continue;
        }
        // One that is on its way here has nothing of this host's, and is looked at when it has arrived.
        let Ok(vm) = daemon.vms.get(&name) else { continue };
        let Some(_turn) = memory.turns.glance(&name) else { continue };
        match look_at(daemon, &vm, &name, pid) {
            Ok(()) => drop(memory.looked_at.lock().insert(pid)),
            Err(error) => tracing::error!(vm = name, %error, "its staged memory cannot be looked for"),
        }
    }
}

fn look_at(daemon: &Daemon, vm: &VmHandle, name: &str, pid: i32) -> Result<(), ApiError> {
    let memory = &daemon.memory;
    memory.set_auto(name, || vm.record().follows);
    if let Some(group) = memory.group_of(name) {
        // How much it may have was not known while it did not run, or not answer.
        group.join(name, groups::most(daemon, name))?;
        numa::settle(daemon, &group);
    }
    // A QEMU that was started with a block keeps its descriptor, also when its guest has given the block back.
    let mapped = mapped_files(pid)?;
    let held = blocks_of(pid).map_err(|error| ApiError::of(error.kind(), &error))?;
    for block in held.into_iter().filter(|block| mapped.contains(&block.inode())) {
        let staging = memory.open_staging()?;
        let is_known = staging.assigned_to(name).iter().any(|(id, _)| *id == block.id());
        if !is_known {
            staging.assigned_again(name, block)?;
            // It may be of a change that an earlier daemon did not see the end of.
            memory.owes(name);
        }
    }
    Ok(())
}

impl Memory {
    /// Gives back to the host what is a VM's on the books and its QEMU has not: its monitor went silent before it was given a
    /// block, or a daemon did not see the end of a change. The caller has its turn, and a monitor that has just answered: what
    /// was asked of it before is done.
    pub(super) fn take_back_what_it_never_got(&self, vm: &str, qemu: &Qemu) {
        let assigned = self.staging().map(|staging| staging.assigned_to(vm)).unwrap_or_default();
        if assigned.is_empty() {
            return;
        }
        let names = match names_in(qemu.record().pid) {
            Ok(names) => names,
            Err(error) => return tracing::debug!(vm, %error, "what it has is not known"),
        };
        for (id, size) in assigned.into_iter().filter(|(id, _)| !is_held(&names, *id)) {
            tracing::info!(vm, block = id.0, %size, "it never got this block, or has closed it");
            self.returned(id);
        }
    }
}

/// What a process has mapped and open, a line each. What vanishes while we look is none of it; anything else that cannot be
/// looked at is an error, for what is not in here is taken for nobody's.
fn names_in(pid: i32) -> io::Result<String> {
    let mut names = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    if names.is_empty() {
        // It has ended, or is about to: that is for whoever waits for its end.
        return Err(io::ErrorKind::NotFound.into());
    }
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        match fs::read_link(entry?.path()) {
            Ok(to) => names = names + "\n" + &to.to_string_lossy(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(names)
}

/// Whether one of these names is a block's.
fn is_held(names: &str, block: BlockId) -> bool {
    let end = format!(":{} (deleted)", block.0);
    names.lines().any(|name| name.contains(NAME_PREFIX) && name.ends_with(&end))
}

#[cfg(test)]
mod tests {
    use gnomon_memory::{Block, GroupName, PageKind};
    use gnomon_terms::Bytes;

    use super::*;
    use crate::config::MemoryConfig;

    #[test]
    fn a_block_is_held_by_whoever_has_it_open_or_mapped() {
        let names = "7f31c0000000-7f31d0000000 rw-s 00000000 00:01 3082   /memfd:gnomon-block:shop:17 (deleted)\n\
                     7f3200000000-7f3210000000 rw-s 00000000 00:01 3083   /memfd:web-cold:3 (deleted)\n\
                     /memfd:gnomon-block:shop:4 (deleted)\nsocket:[5]\n/dev/kvm";
        for (block, held) in [(17, true), (4, true), (7, false), (3, false), (5, false), (41, false)] {
            assert_eq!(is_held(names, BlockId(block)), held, "{block}");
        }
    }

    #[test]
    fn a_block_is_seen_in_a_process_for_as_long_as_it_has_it() {
        let own = i32::try_from(std::process::id()).expect("a process");
        let (group, id) = (GroupName::new("shop").expect("a name"), BlockId(u64::MAX));
        let block = Block::create(&group, id, Bytes(128 << 20), PageKind::Small).expect("made");
        assert!(is_held(&names_in(own).expect("looked"), id));
        drop(block);
        assert!(!is_held(&names_in(own).expect("looked"), id));
        assert!(names_in(-1).is_err(), "of no process it is not known what it has");
    }

    #[test]
    fn a_group_outlives_a_change_of_the_steps_length() {
        let record = |horizon_s| GroupRecord {
            name: "shop".to_string(),
            members: vec!["web".to_string()],
            shadowing: true,
            horizon_s,
            budget: 1 << 30,
            reserve: 1 << 28,
            max_age_s: 3600,
            huge_pages: false,
            numa_node: None,
        };
        // (horizon, step, what is left of the horizon), in seconds
        for (horizon, step, left) in
            [(600, 1, 288), (600, 300, 600), (1, 300, 1), (u64::MAX, 3600, 288 * 3600), (0, 1, 1)]
        {
            let (step, config) = (Duration::from_secs(step), MemoryConfig::default());
            let record = within(record(horizon), step);
            assert_eq!(record.horizon_s, left, "{horizon} {step:?}");
            assert!(Group::new(record, &MemoryConfig { step, ..config }, |_| Bytes(1 << 30)).is_ok());
        }
    }
}
