//! What a loop says of itself is what it does, and being asked changes nothing.

use gnomon_cycle::{Cycle, CycleConfig, Outlook};
use gnomon_forecast::BlockMap;
use gnomon_terms::{Access, BlockCount, Event, Extent, Instant, Op, Priority};

use crate::plane::{RESOURCE, SHADOW};

const UNIT: u64 = 16;
const UNITS: u64 = 600;

fn at(second: u64) -> Instant {
    Instant::from_micros(second * 1_000_000)
}

/// A guest that reads its last units again and again and the others once, 1,500 times.
fn watched() -> Cycle {
    let mut cycle = Cycle::new(CycleConfig::new(RESOURCE, BlockMap::full(BlockCount(UNITS * UNIT)))).unwrap();
    for second in 0..1500u64 {
        let unit = if second.is_multiple_of(4) { second / 4 } else { 580 + second % 20 };
        let extent = Extent::new(unit * UNIT, 16);
        cycle
            .handle(at(second), Event::Accessed(Access { at: at(second), resource: RESOURCE, extent, op: Op::Read }));
    }
    cycle
}

fn first(outlook: &Outlook) -> Vec<u64> {
    outlook.first.iter().map(|reason| u64::from(reason.unit.0)).collect()
}

#[test]
fn what_is_said_to_go_first_goes_first() {
    let mut cycle = watched();
    let foreseen = cycle.outlook(12);
    assert_eq!((foreseen.accesses, foreseen.reads.len(), foreseen.shadow), (1500, 12, None));
    assert_eq!(foreseen.reads[0], (Extent::new(599 * UNIT, 16), std::time::Duration::ZERO), "the latest first");
    cycle.begin_shadow(SHADOW, BlockMap::full(BlockCount(UNITS * UNIT))).unwrap();
    let planned = cycle.outlook(12);
    assert_eq!(first(&planned), first(&foreseen), "a move begins as it was foreseen");
    cycle.set_window(BlockCount(12 * UNIT).bytes());
    let moved: Vec<u64> = std::iter::from_fn(|| cycle.poll_move())
        .inspect(|mv| assert_eq!(mv.priority, Priority::Background))
        .map(|mv| mv.extent.start.0 / UNIT)
        .collect();
    assert_eq!(moved, first(&planned));
    let then = cycle.outlook(12);
    assert!(first(&then).iter().all(|unit| !moved.contains(unit)), "what is on its way is not ahead: {then:?}");
    assert_eq!(then.shadow.map(|shadow| shadow.in_flight), Some(BlockCount(12 * UNIT).bytes()));
}

#[test]
fn being_asked_changes_nothing() {
    let moves = |asked: bool| {
        let mut cycle = watched();
        let ask = |cycle: &Cycle| asked.then(|| (cycle.outlook(256), cycle.outlook(0)));
        ask(&cycle);
        cycle.begin_shadow(SHADOW, BlockMap::full(BlockCount(UNITS * UNIT))).unwrap();
        cycle.switched(at(1500));
        ask(&cycle);
        cycle.set_window(BlockCount(UNITS * UNIT).bytes());
        std::iter::from_fn(|| cycle.poll_move()).map(|mv| mv.extent).collect::<Vec<_>>()
    };
    let plain = moves(false);
    assert!(plain.len() as u64 == UNITS && moves(true) == plain);
}
