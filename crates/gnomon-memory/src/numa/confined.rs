//! On which node threads run that may not run everywhere. Pure.

use super::NumaNode;

/// What a thread may use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Allowed {
    /// The processors it may run on.
    pub(super) cpus: Vec<u32>,
    /// The nodes it may have memory of.
    pub(super) nodes: Vec<NumaNode>,
}

/// The node of a process. Each thread that is bound to one says which; those that may run everywhere say nothing, for who
/// binds a guest's processors often leaves the rest of its QEMU alone. `None` when nobody says anything, or not the same.
pub(super) fn confined(threads: &[Allowed], nodes: &[(NumaNode, Vec<u32>)]) -> Option<NumaNode> {
    let mut told = threads.iter().filter_map(|thread| node_of(thread, nodes));
    let first = told.next()?;
    told.all(|node| node == first).then_some(first)
}

/// The only node on whose processors a thread may run, or else the only one of which it may have memory.
fn node_of(thread: &Allowed, nodes: &[(NumaNode, Vec<u32>)]) -> Option<NumaNode> {
    let runs = nodes.iter().filter(|(_, cpus)| cpus.iter().any(|cpu| thread.cpus.contains(cpu)));
    only(runs.map(|(node, _)| *node)).or_else(|| only(thread.nodes.iter().copied()))
}

fn only(mut nodes: impl Iterator<Item = NumaNode>) -> Option<NumaNode> {
    let first = nodes.next()?;
    nodes.next().is_none().then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_that_are_bound_say_where_their_process_runs() {
        let nodes = [(NumaNode(0), vec![0, 1]), (NumaNode(1), vec![2, 3]), (NumaNode(2), vec![])];
        // The processors and the nodes that a thread may use.
        type Row<'a> = (&'a [u32], &'a [u32]);
        let all: Row = (&[0, 1, 2, 3], &[0, 1, 2]);
        let table: [(&[Row], Option<u32>); 9] = [
            (&[], None),
            (&[all], None),
            (&[(&[2, 3], &[0, 1, 2])], Some(1)),
            (&[(&[3], &[0, 1, 2]), all], Some(1)),
            (&[(&[3], &[0, 1, 2]), (&[2], &[0, 1, 2])], Some(1)),
            (&[(&[3], &[0, 1, 2]), (&[0], &[0, 1, 2])], None),
            // Memory of one node only, whatever it runs on.
            (&[(&[0, 1, 2, 3], &[2])], Some(2)),
            // Where it runs counts more.
            (&[(&[1], &[2])], Some(0)),
            // Processors that no node has.
            (&[(&[9], &[0, 1])], None),
        ];
        for (threads, expected) in table {
            let allowed = |(cpus, mems): &Row| Allowed {
                cpus: cpus.to_vec(),
                nodes: mems.iter().copied().map(NumaNode).collect(),
            };
            let told = confined(&threads.iter().map(allowed).collect::<Vec<_>>(), &nodes);
            assert_eq!(told, expected.map(NumaNode), "{threads:?}");
        }
    }
}
