//! Blocks on NUMA nodes, on a host that has two: `cargo xtask numa` makes one.

use std::{
    fs,
    process::{Command, Stdio},
    ptr,
    sync::Arc,
};

use gnomon_memory::{
    Block, BlockId, Gauge, GroupLimits, HostLimits, NumaMemory, NumaNode, Opening, POPULATE_STEP, PageKind,
    ProcGauge, Request, Staging, node_of_process, numa_nodes,
};
use gnomon_terms::Bytes;
use rustix::{
    mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap},
    process::Pid,
    thread::{CpuSet, sched_setaffinity},
};

use crate::{
    host::{TestHost, group_limits, wait_for, web},
    huge::Reservation,
};

/// The first two nodes of this host; nothing where it has one.
fn two() -> Option<[NumaNode; 2]> {
    match numa_nodes()[..] {
        [first, second, ..] => Some([first, second]),
        _ => {
            eprintln!("not tested: this takes a host with two NUMA nodes");
            None
        }
    }
}

fn mib(count: u64) -> Bytes {
    Bytes(count << 20)
}

fn memory_of(node: NumaNode) -> NumaMemory {
    let memory = ProcGauge.read().expect("read");
    *memory.nodes.iter().find(|of| of.node == node).expect("it is there")
}

/// A block that is staged on a node by hand.
fn block_on(node: NumaNode, id: u64, size: Bytes, pages: PageKind) -> Block {
    let block = Block::create(&web(), BlockId(id), size, pages).expect("made");
    block.populate(Some(node), POPULATE_STEP, &mut || true).expect("populated");
    block
}

/// How many pages of a block are on a node, as the kernel counts those of a mapping. Source: proc_pid_numa_maps(5).
fn pages_on(node: NumaNode, block: &Block) -> u64 {
    let (size, protection) = (block.size().0 as usize, ProtFlags::READ);
    // SAFETY: a new mapping at an address of the kernel's choice, which nobody but the kernel reads through.
    let base = unsafe { mmap(ptr::null_mut(), size, protection, MapFlags::SHARED, block, 0) }.expect("mapped");
    // SAFETY: the range is the mapping's; its pages are there and only become visible in it.
    unsafe { madvise(base, size, Advice::LinuxPopulateRead) }.expect("seen");
    let maps = fs::read_to_string("/proc/self/numa_maps").expect("read");
    // SAFETY: the mapping is ours, and nothing points into it.
    unsafe { munmap(base, size) }.expect("unmapped");
    // The space after a memfd's name is told as an escape.
    let file = format!("file=/memfd:gnomon-block:{}:{}\\040", block.group(), block.id());
    let line = maps.lines().find(|line| line.contains(&file)).expect("it has a line");
    let count = line.split(' ').find_map(|word| word.strip_prefix(&format!("N{node}=")));
    count.map_or(0, |count| count.parse().expect("a number"))
}

/// The staging area of a host with this floor, whose group `web` wishes for a node.
fn open(host: &TestHost, floor: Bytes, node: Option<NumaNode>) -> Arc<Staging> {
    let opening = Opening::new(host.command(), HostLimits { floor, ..host.limits });
    Staging::open(opening.group(web(), GroupLimits { node, ..group_limits() })).expect("opened")
}

/// Has so many blocks of 16 MiB staged, and waits until they are.
fn stage(staging: &Staging, count: u32) {
    staging.set_target(&web(), &[(mib(16), count)]).expect("a target");
    assert!(staging.wait_until(crate::host::PATIENCE, |accounts| accounts.host.staged.blocks == u64::from(count)));
}

#[test]
fn a_block_is_allocated_on_the_node_that_it_prefers() {
    let Some(nodes) = two() else { return };
    for (id, (node, other)) in [(nodes[0], nodes[1]), (nodes[1], nodes[0])].into_iter().enumerate() {
        let block = block_on(node, 9_100 + id as u64, mib(16), PageKind::Small);
        assert_eq!((pages_on(node, &block), pages_on(other, &block)), (4096, 0));
        assert_eq!(block.node(), Some(node));
    }
}

#[test]
fn a_block_of_large_pages_is_taken_from_those_of_its_node() {
    let Some([_, node]) = two() else { return };
    // The kernel spreads what is reserved over the nodes.
    let reservation = Reservation::of(4 * numa_nodes().len() as u64);
    let Some(_reservation) = reservation.filter(|_| memory_of(node).huge_free == mib(8)) else {
        eprintln!("not tested: this takes a host with room for 8 MiB of large pages on each node");
        return;
    };
    let block = block_on(node, 9_200, mib(6), PageKind::Huge);
    assert_eq!((pages_on(node, &block), block.node()), (3, Some(node)));
    assert_eq!(memory_of(node).huge_free, mib(2));
}

#[test]
fn what_is_staged_on_a_node_is_found_there_by_the_next_daemon() {
    let Some(nodes) = two() else { return };
    for node in nodes {
        let mut host = TestHost::closed();
        let staging = open(&host, Bytes(0), Some(node));
        stage(&staging, 3);
        assert_eq!(staging.by_node(&web()), [(node, mib(48))]);
        host.kill_later(staging.holder_pid().expect("there is one"));
        drop(staging);
        let staging = open(&host, Bytes(0), Some(node));
        assert_eq!(staging.by_node(&web()), [(node, mib(48))], "found again");
        let blocks = staging.take(&web(), request(48)).expect("decided").reserved;
        assert!(blocks.blocks().all(|block| pages_on(node, block) == 4096), "{node}");
        drop(blocks);
        staging.remove_group(&web()).expect("removed");
        staging.check().expect("balanced");
    }
}

#[test]
fn a_guest_is_served_from_its_node_and_then_from_the_other() {
    let Some([first, second]) = two() else { return };
    let mut host = TestHost::closed();
    let staging = open(&host, Bytes(0), None);
    staging.set_home(&web(), Some(first)).expect("known");
    stage(&staging, 2);
    staging.set_home(&web(), Some(second)).expect("known");
    stage(&staging, 4);
    host.kill_later(staging.holder_pid().expect("there is one"));
    assert_eq!(staging.by_node(&web()), [(first, mib(32)), (second, mib(32))]);
    staging.set_target(&web(), &[]).expect("no more");
    let taken = staging.take_near(&web(), request(48), Some(second)).expect("decided").reserved;
    let nodes: Vec<Option<NumaNode>> = taken.blocks().map(|block| block.node()).collect();
    assert_eq!(nodes, [Some(second), Some(second), Some(first)]);
    let blocks = taken.assign("vm").expect("assigned");
    assert_eq!(staging.stats(&web()).expect("known").far, mib(16));
    blocks.iter().for_each(|block| staging.returned(block.id()).expect("returned"));
    staging.remove_group(&web()).expect("removed");
    staging.check().expect("balanced");
}

#[test]
fn a_node_that_becomes_full_gets_back_what_is_staged_there() {
    let Some([first, second]) = two() else { return };
    let mut host = TestHost::closed();
    // A floor of 64 MiB each where both have 512, and 64 more at which staging stops.
    let staging = open(&host, mib(128), Some(second));
    stage(&staging, 4);
    host.kill_later(staging.holder_pid().expect("there is one"));
    assert_eq!(staging.by_node(&web()), [(second, mib(64))]);
    // Somebody takes what is there but for 32 MiB.
    let Some(others) = (memory_of(second).available.0 >> 20).checked_sub(32).filter(|others| *others < 1024) else {
        eprintln!("not tested: this takes nodes with less than a GiB");
        return;
    };
    let others = block_on(second, 9_300, mib(others), PageKind::Small);
    let evicted = || staging.stats(&web()).expect("known").evicted_by_floor.blocks;
    wait_for(|| (evicted() > 0 && memory_of(second).available >= mib(64)).then_some(()));
    // What is wanted is staged on the other node: it has room.
    assert!(staging.wait_until(crate::host::PATIENCE, |accounts| accounts.host.staged.blocks == 4));
    let staged: Vec<(NumaNode, Bytes)> = staging.by_node(&web());
    assert_eq!(staged[0], (first, mib(16 * evicted())), "{staged:?}");
    drop(others);
    staging.remove_group(&web()).expect("removed");
    staging.check().expect("balanced");
}

#[test]
fn a_process_that_is_bound_to_a_nodes_processors_runs_on_that_node() {
    let Some(nodes) = two() else { return };
    let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().expect("started");
    let pid = Pid::from_child(&child);
    assert_eq!(node_of_process(pid.as_raw_nonzero().get()), None, "it may run everywhere");
    for node in nodes {
        let list = fs::read_to_string(format!("/sys/devices/system/node/node{node}/cpulist")).expect("read");
        let first = list.trim().split(['-', ',']).next().expect("a list").parse().expect("a processor");
        let mut cpus = CpuSet::new();
        cpus.set(first);
        sched_setaffinity(Some(pid), &cpus).expect("bound");
        assert_eq!(node_of_process(pid.as_raw_nonzero().get()), Some(node));
    }
    drop(child.stdin.take());
    child.wait().expect("it ends with its input");
}

fn request(count: u64) -> Request {
    Request { bytes: mib(count), whole: false, slots: 256, step: Bytes(1) }
}
