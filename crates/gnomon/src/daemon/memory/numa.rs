//! On which NUMA node VMs run, and so where what is staged for them is best. On a host with one node nothing is asked.

use gnomon_memory::{NumaNode, node_of_process, numa_nodes};
use gnomon_qemu::Qemu;

use super::group::Group;
use crate::{api::ApiError, daemon::Daemon};

/// The node that a VM is bound to, now; `None` when it may run on several.
pub(super) fn of(qemu: &Qemu) -> Option<NumaNode> {
    node_of_process(qemu.record().pid)
}

/// Has blocks of a group staged where its members run from now on, as far as they run on one node. Who may run everywhere
/// has no say in it. Nothing is opened for it: who opens the staging area settles then.
pub(super) fn settle(daemon: &Daemon, group: &Group) {
    let Some(staging) = daemon.memory.staging() else { return };
    let members = group.record().members;
    let running = members.iter().filter_map(|vm| daemon.vms.get(vm).ok()?.qemu());
    let home = common(running.filter_map(|qemu| of(&qemu)));
    if let Err(error) = staging.set_home(&group.name, home) {
        tracing::debug!(group = %group.name, %error, "it was removed meanwhile");
    }
}

/// Refuses a wish for a node that this host has not.
pub(super) fn check(wish: Option<u32>) -> Result<(), ApiError> {
    let nodes = numa_nodes();
    match wish {
        Some(wish) if !nodes.contains(&NumaNode(wish)) => {
            let nodes: Vec<String> = nodes.iter().map(NumaNode::to_string).collect();
            let has = if nodes.is_empty() { "none that is told of".to_string() } else { nodes.join(", ") };
            Err(ApiError::refused(format!("there is no NUMA node {wish} with memory for this daemon: it has {has}"))
                .then("choose one of those, or leave it open"))
        }
        _ => Ok(()),
    }
}

/// The node that all name; `None` when nobody does, or not the same.
fn common(mut told: impl Iterator<Item = NumaNode>) -> Option<NumaNode> {
    let first = told.next()?;
    told.all(|node| node == first).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_at_home_where_all_that_are_bound_run() {
        let table: [(&[u32], Option<u32>); 4] = [(&[], None), (&[1], Some(1)), (&[1, 1], Some(1)), (&[1, 0], None)];
        for (told, expected) in table {
            assert_eq!(common(told.iter().copied().map(NumaNode)), expected.map(NumaNode), "{told:?}");
        }
    }

    #[test]
    fn a_node_that_is_not_there_cannot_be_wished_for() {
        let error = check(Some(1023)).expect_err("no host of a test has so many");
        assert!(error.to_string().contains("no NUMA node 1023"), "{error}");
        assert!(check(None).is_ok());
        numa_nodes().iter().for_each(|node| check(Some(node.0)).expect("it is there"));
    }
}
