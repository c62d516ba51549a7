//! On which node a new block goes. Pure.
//!
//! In this order: the node that the group's user wished for, the one on which its guests run, the one with most room. A
//! node without room is passed over, rather than nothing staged: what is staged on another node is reached later by about
//! a tenth of a microsecond an access, and what is not staged costs the guest four of them for each page of 4 KiB when it
//! touches it (a GiB took a second), and would be had from the other node as well, because this one is full.

use std::cmp::Reverse;

use gnomon_terms::Bytes;

use crate::{
    groups::PageKind,
    guard::{NumaVerdict, Ruling, Verdict},
    numa::NumaNode,
};

/// Where a block may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spot {
    /// Wherever the kernel puts it.
    Anywhere,
    /// On this node.
    On(NumaNode),
}

/// Chooses for a block of `size`; `wanted` is in order of preference. `None` when it may be nowhere: small pages would push
/// some node below its floor. Large ones are reserved already, so the kernel may spread a block of them.
pub(crate) fn place(
    size: Bytes,
    pages: PageKind,
    wanted: impl IntoIterator<Item = NumaNode>,
    verdict: &Verdict,
) -> Option<Spot> {
    if verdict.nodes.is_empty() {
        return Some(Spot::Anywhere);
    }
    let rooms = verdict.nodes.iter().map(|of| (room(of, pages), Reverse(of.node)));
    let fitting: Vec<(Bytes, Reverse<NumaNode>)> = rooms.filter(|(room, _)| *room >= size).collect();
    let wanted = wanted.into_iter().find(|node| fitting.iter().any(|(_, of)| of.0 == *node));
    let roomiest = || fitting.iter().max().map(|(_, node)| node.0);
    match wanted.or_else(roomiest) {
        Some(node) => Some(Spot::On(node)),
        None => (pages == PageKind::Huge).then_some(Spot::Anywhere),
    }
}

fn room(of: &NumaVerdict, pages: PageKind) -> Bytes {
    match (pages, of.small) {
        (PageKind::Huge, _) => of.huge,
        (PageKind::Small, Ruling::Stage(most)) => most,
        (PageKind::Small, _) => Bytes(0),
    }
}

impl Spot {
    /// The node, where one was chosen.
    pub(crate) fn node(self) -> Option<NumaNode> {
        match self {
            Spot::Anywhere => None,
            Spot::On(node) => Some(node),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_goes_where_it_is_wanted_and_else_where_most_room_is() {
        let stage = |bytes| Ruling::Stage(Bytes(bytes));
        let back = Ruling::GiveBack(Bytes(1));
        let on = |node| Some(Spot::On(NumaNode(node)));
        let small = PageKind::Small;
        // What the nodes have for small pages and for large ones; what is wanted; the pages, of a block of 10; where it goes.
        type Row<'a> = (&'a [(Ruling, u64)], &'a [u32], PageKind, Option<Spot>);
        let table: [Row; 11] = [
            (&[], &[1], small, Some(Spot::Anywhere)),
            (&[(stage(50), 0), (stage(20), 0)], &[], small, on(0)),
            (&[(stage(20), 0), (stage(50), 0)], &[], small, on(1)),
            (&[(stage(20), 0), (stage(20), 0)], &[], small, on(0)),
            (&[(stage(50), 0), (stage(20), 0)], &[1], small, on(1)),
            (&[(stage(50), 0), (stage(20), 0)], &[7, 1, 0], small, on(1)),
            (&[(stage(50), 0), (stage(9), 0)], &[1], small, on(0)),
            (&[(stage(9), 0), (stage(9), 90)], &[1], small, None),
            (&[(Ruling::Hold, 0), (back, 0)], &[1], small, None),
            (&[(stage(50), 0), (back, 10)], &[0], PageKind::Huge, on(1)),
            (&[(stage(50), 5), (stage(50), 5)], &[0], PageKind::Huge, Some(Spot::Anywhere)),
        ];
        for (nodes, wanted, pages, expected) in table {
            let nodes = nodes.iter().zip(0..);
            let nodes =
                nodes.map(|((small, huge), n)| NumaVerdict { node: NumaNode(n), small: *small, huge: Bytes(*huge) });
            let verdict = Verdict { small: Ruling::Hold, huge: Bytes(0), nodes: nodes.collect() };
            let placed = place(Bytes(10), pages, wanted.iter().copied().map(NumaNode), &verdict);
            assert_eq!(placed, expected, "{verdict:?} {wanted:?} {pages:?}");
        }
    }
}
