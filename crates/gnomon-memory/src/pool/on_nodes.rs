//! The pool of a host with two nodes, by hand.

use std::time::Duration;

use gnomon_terms::{Bytes, Instant};

use super::{
    Chore, Pool,
    tests::{PLENTY, limits, name, units},
};
use crate::{
    block::BlockId,
    fit::Request,
    groups::{GroupLimits, HostLimits, PageKind},
    guard::{NumaVerdict, Ruling, Staged, Verdict},
    numa::NumaNode,
};

const NODES: [NumaNode; 2] = [NumaNode(0), NumaNode(1)];

/// A verdict over a host with two nodes, and what may be staged on each.
pub(super) fn on_nodes(first: Ruling, second: Ruling) -> Verdict {
    let node = |node, small| NumaVerdict { node, small, huge: Bytes(0) };
    Verdict { nodes: vec![node(NODES[0], first), node(NODES[1], second)], ..PLENTY }
}

fn room(count: u64) -> Ruling {
    Ruling::Stage(units(count))
}

fn pool(limits: GroupLimits) -> Pool<()> {
    let host = HostLimits { budget: units(64), floor: Bytes(0), linger: Duration::from_secs(30) };
    let mut pool = Pool::new(host, 1, 10_000);
    pool.add_group(Instant::ORIGIN, name("web"), limits).expect("added");
    pool
}

/// Stages what is wanted while there is room for it; the nodes that were chosen.
fn stage(pool: &mut Pool<()>, count: u32, verdict: &Verdict) -> Vec<Option<NumaNode>> {
    pool.set_target(Instant::ORIGIN, &name("web"), &[(units(1), count)]).expect("a target");
    let mut chosen = Vec::new();
    while let Chore::Stage { id, node, .. } = pool.chore(Instant::ORIGIN, verdict).expect("a chore") {
        pool.populated(Instant::ORIGIN, id, (), node, Duration::ZERO).expect("populated");
        chosen.push(node);
    }
    chosen
}

fn take(pool: &mut Pool<()>, count: u64, near: Option<NumaNode>) -> Vec<BlockId> {
    let request = Request { bytes: units(count), whole: false, slots: 9, step: Bytes(1) };
    let grant = pool.take(Instant::ORIGIN, &name("web"), request, near).expect("decided");
    grant.blocks.into_iter().map(|(id, ())| id).collect()
}

#[test]
fn blocks_go_to_the_wish_then_to_where_guests_run_then_to_where_room_is() {
    let (first, second) = (Some(NODES[0]), Some(NODES[1]));
    let table = [
        (None, None, on_nodes(room(9), room(5)), first),
        (None, None, on_nodes(room(5), room(9)), second),
        (None, second, on_nodes(room(9), room(5)), second),
        (first, second, on_nodes(room(5), room(9)), first),
        (first, second, on_nodes(Ruling::Hold, room(9)), second),
        (None, second, PLENTY, None),
    ];
    for (wish, home, verdict, expected) in table {
        let mut pool = pool(GroupLimits { node: wish, ..limits() });
        pool.set_home(&name("web"), home).expect("known");
        assert_eq!(stage(&mut pool, 1, &verdict), [expected], "{wish:?} {home:?} {verdict:?}");
    }
    let mut pool = pool(limits());
    assert_eq!(stage(&mut pool, 1, &on_nodes(Ruling::Hold, Ruling::Hold)), [], "no node is pushed below its floor");
}

#[test]
fn a_guest_gets_what_is_on_its_node_first_and_the_rest_before_going_without() {
    let mut pool = pool(limits());
    stage(&mut pool, 2, &on_nodes(room(9), Ruling::Hold));
    stage(&mut pool, 4, &on_nodes(Ruling::Hold, room(9)));
    assert_eq!(pool.small_staged(), Staged { all: units(4), nodes: NODES.map(|node| (node, units(2))).into() });
    assert_eq!(take(&mut pool, 1, Some(NODES[1])), [BlockId(3)]);
    pool.set_home(&name("web"), Some(NODES[1])).expect("known");
    assert_eq!(take(&mut pool, 2, None), [BlockId(4), BlockId(1)], "where its group's run, and then elsewhere");
    let stats = pool.stats(Instant::ORIGIN, &name("web")).expect("known");
    assert_eq!((stats.hit, stats.far, stats.missed), (units(3), units(1), Bytes(0)));
    assert_eq!(pool.by_node(&name("web")), [(NODES[0], units(1))].into());
    assert_eq!(pool.put_back(Instant::ORIGIN, BlockId(4)), Ok(true));
    assert_eq!(take(&mut pool, 1, Some(NODES[1])), [BlockId(4)], "what is put back is where it was");
}

#[test]
fn a_node_that_is_short_gets_back_what_is_there_and_the_other_keeps_its_own() {
    let mut pool = pool(limits());
    stage(&mut pool, 2, &on_nodes(room(9), Ruling::Hold));
    stage(&mut pool, 4, &on_nodes(Ruling::Hold, room(9)));
    let short = on_nodes(Ruling::Hold, Ruling::GiveBack(units(1)));
    for expected in [3, 4] {
        let chore = pool.chore(Instant::ORIGIN, &short).expect("a chore");
        assert!(matches!(chore, Chore::LetGo { id, .. } if id == BlockId(expected)), "{chore:?}");
    }
    assert_eq!(pool.chore(Instant::ORIGIN, &short), Ok(Chore::Rest), "the other node is well");
    let again = stage(&mut pool, 4, &on_nodes(room(9), Ruling::GiveBack(units(1))));
    assert_eq!(again, [Some(NODES[0]); 2], "which has room for more");
}

#[test]
fn a_population_stops_when_its_own_node_is_in_need() {
    let verdict = on_nodes(room(9), Ruling::Hold);
    for (node, may) in [(Some(NODES[0]), true), (Some(NODES[1]), false), (None, true)] {
        for (pages, may) in [(PageKind::Small, may), (PageKind::Huge, true)] {
            let mut pool = pool(limits());
            let told = pool.may_go_on(Instant::ORIGIN, &name("web"), (pages, node), &verdict);
            assert_eq!(told, may, "{node:?} {pages:?}");
        }
    }
}
