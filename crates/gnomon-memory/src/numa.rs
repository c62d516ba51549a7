//! NUMA nodes: what memory each of them has, and on which of them a process runs.
//!
//! A processor reaches the memory of its own node sooner than that of another, and gets more of it at once: a guest is
//! best served from the node where it runs. On a host with one node there is nothing to choose, and nothing is told here.
//!
//! Source: Documentation/ABI/stable/sysfs-devices-node; Documentation/admin-guide/mm/numaperf.rst; proc_pid_status(5).

mod confined;

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use gnomon_terms::Bytes;

use crate::{
    groups::PageKind,
    host::{GaugeError, field, read},
};
use confined::{Allowed, confined};

/// Where the kernel tells of its nodes.
const NODES: &str = "/sys/devices/system/node";

/// Nodes are numbered below this. Source: Linux, NODES_SHIFT is 10 at most.
pub(crate) const MOST_NODES: u32 = 1024;

/// Processors are numbered below this. Source: Linux, NR_CPUS is 8192 at most.
const MOST_CPUS: u32 = 8192;

/// Threads of a process that are looked at: a QEMU has one for each processor of its guest and some tens beside.
const MOST_THREADS: usize = 1024;

/// A NUMA node of the host, by the kernel's number: below 1024.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NumaNode(pub u32);

/// The memory of a node at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NumaMemory {
    /// Which.
    pub node: NumaNode,
    /// All of it that the kernel can use.
    pub total: Bytes,
    /// What can be allocated there without pushing out what is in use: what is free, and half of what the kernel keeps
    /// for files, of which it says of no node how much could go.
    pub available: Bytes,
    /// Free pages of 2 MiB.
    pub huge_free: Bytes,
}

/// The nodes that have memory of which this process may have some, by number; one on most hosts and in a cpuset of one,
/// and none where the kernel does not say.
pub fn numa_nodes() -> Vec<NumaNode> {
    let told = read(&Path::new(NODES).join("has_memory")).ok();
    let own = read(Path::new("/proc/thread-self/status")).ok().and_then(|status| allowed(&status));
    usable(&told.unwrap_or_default(), own.as_ref())
}

/// Of the nodes in a list those that are allowed; all where it is not known what is.
fn usable(list: &str, own: Option<&Allowed>) -> Vec<NumaNode> {
    let nodes = numbers(list.trim(), MOST_NODES).unwrap_or_default().into_iter().map(NumaNode);
    nodes.filter(|node| own.is_none_or(|own| own.nodes.contains(node))).collect()
}

/// The node on which a process runs, when its threads may run on one node only, or may only have memory there. `None` when
/// they may run on several, on a host with one node, and when the process is gone. Reads two files a thread.
pub fn node_of_process(pid: i32) -> Option<NumaNode> {
    let nodes = numa_nodes();
    if nodes.len() < 2 {
        return None;
    }
    let cpus = |node: &NumaNode| numbers(read(&folder(*node).join("cpulist")).ok()?.trim(), MOST_CPUS);
    let nodes: Vec<(NumaNode, Vec<u32>)> = nodes.into_iter().filter_map(|node| Some((node, cpus(&node)?))).collect();
    let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten().take(MOST_THREADS);
    let allowed = threads.filter_map(|thread| allowed(&read(&thread.path().join("status")).ok()?));
    confined(&allowed.collect::<Vec<_>>(), &nodes)
}

/// The memory of each node; empty on a host with one.
pub(crate) fn memory_of_nodes() -> Result<Vec<NumaMemory>, GaugeError> {
    let nodes = numa_nodes();
    if nodes.len() < 2 {
        return Ok(Vec::new());
    }
    nodes.into_iter().map(memory_of).collect()
}

fn memory_of(node: NumaNode) -> Result<NumaMemory, GaugeError> {
    let path = folder(node).join("meminfo");
    let memory = parse_meminfo(node, &read(&path)?).map_err(|field| GaugeError::Strange { path, field })?;
    // A kernel without large pages has no such file.
    let free = fs::read_to_string(folder(node).join("hugepages/hugepages-2048kB/free_hugepages"));
    let free: u64 = free.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    Ok(NumaMemory { huge_free: Bytes(free.saturating_mul(PageKind::Huge.size().0)), ..memory })
}

fn folder(node: NumaNode) -> PathBuf {
    Path::new(NODES).join(format!("node{node}"))
}

/// Reads the text of a node's `meminfo`, whose lines begin with `Node N`. Says which field is missing or strange.
fn parse_meminfo(node: NumaNode, text: &str) -> Result<NumaMemory, &'static str> {
    let own = format!("Node {node} ");
    let plain: String =
        text.lines().filter_map(|line| line.strip_prefix(&own)).flat_map(|line| [line, "\n"]).collect();
    let kib = |name: &'static str| {
        let value = field(&plain, name).flatten().and_then(|value| value.checked_mul(1024));
        value.filter(|bytes| *bytes < 1 << 60).ok_or(name)
    };
    let files = kib("Active(file)")? + kib("Inactive(file)")? + kib("SReclaimable")?;
    let (total, available) = (Bytes(kib("MemTotal")?), Bytes(kib("MemFree")? + files / 2));
    Ok(NumaMemory { node, total, available, huge_free: Bytes(0) })
}

/// What a thread may use, from the text of its `status`.
fn allowed(status: &str) -> Option<Allowed> {
    let list = |name: &str, most| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        numbers(line.trim(), most)
    };
    Some(Allowed {
        cpus: list("Cpus_allowed_list", MOST_CPUS)?,
        nodes: list("Mems_allowed_list", MOST_NODES)?.into_iter().map(NumaNode).collect(),
    })
}

/// Reads `0-3,8`: numbers below `most`, in the order they are told. `None` when it is something else.
fn numbers(text: &str, most: u32) -> Option<Vec<u32>> {
    let mut numbers = Vec::new();
    for range in text.split(',').filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        if first > last || last >= most || numbers.len() > most as usize {
            return None;
        }
        numbers.extend(first..=last);
    }
    Some(numbers)
}

impl fmt::Display for NumaNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SEEN: &str = "\
Node 1 MemTotal:        1000 kB\nNode 1 MemFree:          300 kB\nNode 1 Active(file):      80 kB\n\
Node 1 Inactive(file):    60 kB\nNode 1 SReclaimable:      60 kB\nNode 1 HugePages_Free:      0\n";

    #[test]
    fn a_nodes_meminfo_is_read() {
        let kib = |count: u64| Bytes(count << 10);
        let expected =
            NumaMemory { node: NumaNode(1), total: kib(1000), available: kib(300 + 100), huge_free: Bytes(0) };
        assert_eq!(parse_meminfo(NumaNode(1), SEEN), Ok(expected));
    }

    #[test]
    fn a_nodes_meminfo_that_is_not_understood_is_told() {
        assert_eq!(parse_meminfo(NumaNode(0), SEEN), Err("Active(file)"), "it is of another node");
        for name in ["MemTotal", "MemFree", "Active(file)", "Inactive(file)", "SReclaimable"] {
            assert_eq!(parse_meminfo(NumaNode(1), &SEEN.replace(name, "Other")), Err(name));
            let huge = SEEN.replace(&format!("{name}:"), &format!("{name}: 99999999999999999"));
            assert_eq!(parse_meminfo(NumaNode(1), &huge), Err(name));
        }
    }

    #[test]
    fn lists_of_numbers_are_read() {
        let table: [(&str, Option<&[u32]>); 9] = [
            ("0", Some(&[0])),
            ("0-2,7", Some(&[0, 1, 2, 7])),
            ("", Some(&[])),
            ("8", None),
            ("0-4294967295", None),
            ("3-1", None),
            ("-1", None),
            ("1-", None),
            ("x", None),
        ];
        for (text, expected) in table {
            assert_eq!(numbers(text, 8).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn nodes_that_a_cpuset_withholds_are_none_of_ours() {
        let own = |nodes: &[u32]| Allowed { cpus: vec![0], nodes: nodes.iter().copied().map(NumaNode).collect() };
        let table: [(&str, Option<Allowed>, &[u32]); 5] = [
            ("0-1\n", None, &[0, 1]),
            ("0-1\n", Some(own(&[0, 1, 2])), &[0, 1]),
            ("0-1\n", Some(own(&[1])), &[1]),
            ("0,2\n", Some(own(&[1])), &[]),
            ("?", None, &[]),
        ];
        for (list, own, expected) in table {
            let usable: Vec<u32> = usable(list, own.as_ref()).iter().map(|node| node.0).collect();
            assert_eq!(usable, expected, "{list} {own:?}");
        }
    }

    #[test]
    fn what_a_thread_may_use_is_read() {
        let status = "Name:\tqemu\nCpus_allowed:\t3\nCpus_allowed_list:\t0-1\nMems_allowed_list:\t0\n";
        let expected = Allowed { cpus: vec![0, 1], nodes: vec![NumaNode(0)] };
        assert_eq!(allowed(status), Some(expected));
        assert_eq!(allowed("Cpus_allowed_list:\t0-1\n"), None);
    }

    #[test]
    fn this_host_tells_of_its_nodes_or_has_one() {
        let (nodes, memory) = (numa_nodes(), memory_of_nodes().expect("read"));
        assert_eq!(memory.len(), if nodes.len() < 2 { 0 } else { nodes.len() });
        assert!(memory.iter().all(|node| node.available.0 > 0 && node.available <= node.total), "{memory:?}");
        assert_eq!(node_of_process(i32::MAX), None, "no such process");
    }

    proptest! {
        #[test]
        fn no_text_makes_the_readers_panic(text in "(Node 1 |Mem|Cpus_allowed_list:|[A-Za-z_:()= 0-9.,\n-]){0,60}") {
            let _ = (parse_meminfo(NumaNode(1), &text), numbers(&text, MOST_CPUS), allowed(&text));
        }
    }
}
