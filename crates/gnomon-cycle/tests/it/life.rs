//! The life of a shadow: primed, switched, drained, or given up.

use std::collections::HashSet;
use std::time::Duration;

use gnomon_cycle::{Cycle, CycleConfig, CycleError, Forecast, turn};
use gnomon_forecast::BlockMap;
use gnomon_terms::{
    BlockCount, Bytes, BytesPerSecond, Event, Extent, Instant, Op, Outcome, Place, Priority, Settled, Verb,
};

use crate::plane::{RESOURCE, SHADOW, TestPlane};

const UNIT: u64 = 16;

fn at(millis: u64) -> Instant {
    Instant::from_micros(millis * 1000)
}

fn all(units: u64) -> BlockMap {
    BlockMap::full(BlockCount(units * UNIT))
}

fn cycle(units: u64, forecast: Forecast) -> Cycle {
    let mut config = CycleConfig::new(RESOURCE, all(units));
    config.forecast = forecast;
    Cycle::new(config).unwrap()
}

/// A cycle with a shadow that lacks everything, and its plane.
fn begun(units: u64, forecast: Forecast) -> (Cycle, TestPlane) {
    let mut cycle = cycle(units, forecast);
    cycle.begin_shadow(SHADOW, all(units)).unwrap();
    (cycle, TestPlane::new((units * UNIT) as usize))
}

fn done(cycle: &mut Cycle, now: Instant, settled: Settled) -> Option<Extent> {
    let mv = cycle.poll_move()?;
    let outcome = Outcome { id: mv.id, settled, carried: mv.extent.bytes(), took: Duration::ZERO };
    cycle.handle(now, Event::Settled(outcome));
    Some(mv.extent)
}

#[test]
fn the_window_bounds_what_is_on_its_way() {
    let (mut cycle, _) = begun(40, Forecast::Named("sequential"));
    for (window, moves) in [(0, 0), (1, 1), (3 * 65536, 2), (10 * 65536 + 1, 7), (65536, 0)] {
        cycle.set_window(Bytes(window));
        let polled = std::iter::from_fn(|| cycle.poll_move()).count();
        assert_eq!(polled, moves, "window {window}");
    }
    assert_eq!(cycle.in_flight(), Bytes(10 * 65536));
}

#[test]
fn a_move_is_the_hull_of_what_a_unit_lacks() {
    let mut cycle = cycle(4, Forecast::Blend);
    let mut lacking = BlockMap::empty(BlockCount(4 * UNIT));
    for extent in [Extent::new(3, 1), Extent::new(9, 2), Extent::new(60, 4)] {
        lacking.insert(extent);
    }
    cycle.begin_shadow(SHADOW, lacking).unwrap();
    assert_eq!(cycle.lacking(), BlockCount(7));
    let extents: Vec<_> = std::iter::from_fn(|| done(&mut cycle, at(1), Settled::Done)).collect();
    assert_eq!(extents, [Extent::new(3, 8), Extent::new(60, 4)]);
    assert!(cycle.is_whole());
}

#[test]
fn a_failed_move_is_asked_again_after_a_rest() {
    let (mut cycle, _) = begun(1, Forecast::Blend);
    assert_eq!(done(&mut cycle, at(0), Settled::Failed), Some(Extent::new(0, 16)));
    cycle.advance(at(99));
    assert_eq!(done(&mut cycle, at(99), Settled::Failed), None);
    cycle.advance(at(200));
    assert_eq!(done(&mut cycle, at(200), Settled::Needless), Some(Extent::new(0, 16)));
    assert!(cycle.is_whole());
}

#[test]
fn a_failed_move_does_not_wait_for_a_unit_that_was_written() {
    let (mut cycle, _) = begun(2, Forecast::Named("sequential"));
    assert_eq!(done(&mut cycle, at(0), Settled::Done), Some(Extent::new(0, 16)));
    cycle.handle(at(0), Event::Outdated { resource: RESOURCE, extent: Extent::new(4, 1), place: SHADOW });
    assert_eq!(done(&mut cycle, at(10), Settled::Failed), Some(Extent::new(16, 16)));
    cycle.advance(at(110));
    assert_eq!(done(&mut cycle, at(110), Settled::Done), Some(Extent::new(16, 16)));
    assert_eq!(done(&mut cycle, at(999), Settled::Done), None);
    cycle.advance(at(1000));
    assert_eq!(done(&mut cycle, at(1000), Settled::Done), Some(Extent::new(4, 1)));
    assert!(cycle.is_whole());
}

/// The link is down, and the guest writes the same units over and over while the mirror covers them: each is asked
/// for once when the link is back.
#[test]
fn what_came_and_went_a_thousand_times_is_asked_for_once() {
    let mut cycle = cycle(3, Forecast::Blend);
    cycle.begin_shadow(SHADOW, BlockMap::empty(BlockCount(3 * UNIT))).unwrap();
    cycle.set_window(Bytes(0));
    for round in 0..1000 {
        let extent = Extent::new(round % 3 * UNIT, 2);
        cycle.handle(at(round), Event::Outdated { resource: RESOURCE, extent, place: SHADOW });
        if round < 997 {
            cycle.handle(at(round), Event::Covered { resource: RESOURCE, extent, place: SHADOW });
        }
    }
    cycle.set_window(Bytes(1 << 20));
    cycle.advance(at(10_000));
    let mut extents: Vec<_> = std::iter::from_fn(|| cycle.poll_move()).map(|mv| mv.extent).collect();
    extents.sort_unstable();
    assert_eq!(extents, [Extent::new(0, 2), Extent::new(16, 2), Extent::new(32, 2)]);
}

/// A write of a gibibyte into a hole is one run, not a quarter of a million blocks.
#[test]
fn a_huge_write_to_a_hole_is_lacking_as_a_whole() {
    let size = BlockCount(1 << 20);
    let mut cycle = Cycle::new(CycleConfig::new(RESOURCE, BlockMap::empty(size))).unwrap();
    cycle.begin_shadow(SHADOW, BlockMap::empty(size)).unwrap();
    let write = |start, len| gnomon_terms::Access {
        at: at(1),
        resource: RESOURCE,
        extent: Extent::new(start, len),
        op: Op::Write,
    };
    cycle.handle(at(1), Event::Accessed(write(1000, 8)));
    cycle.handle(at(1), Event::Accessed(write(5, 1 << 18)));
    assert_eq!((cycle.lacking(), cycle.allocated().count()), (BlockCount(1 << 18), BlockCount(1 << 18)));
    cycle.handle(at(2), Event::Covered { resource: RESOURCE, extent: Extent::new(0, 1 << 20), place: SHADOW });
    cycle.handle(at(3), Event::Accessed(write(0, 1 << 19)));
    assert_eq!(cycle.lacking(), BlockCount(0), "what is covered is allocated");
}

#[test]
fn a_write_at_the_source_while_the_copy_flies_is_not_lost() {
    let (mut cycle, _) = begun(1, Forecast::Blend);
    let mv = cycle.poll_move().unwrap();
    let extent = Extent::new(2, 3);
    cycle.handle(at(1), Event::Outdated { resource: RESOURCE, extent, place: SHADOW });
    let outcome = Outcome { id: mv.id, settled: Settled::Done, carried: Bytes(65536), took: Duration::ZERO };
    cycle.handle(at(2), Event::Settled(outcome));
    assert_eq!(cycle.lacking(), BlockCount(3));
    cycle.advance(at(5000));
    assert_eq!(cycle.poll_move().unwrap().extent, extent);
}

#[test]
fn a_write_to_a_hole_is_lacking_before_the_switch_and_covered_after() {
    let mut config = CycleConfig::new(RESOURCE, BlockMap::empty(BlockCount(64)));
    config.forecast = Forecast::Blend;
    let mut cycle = Cycle::new(config).unwrap();
    cycle.begin_shadow(SHADOW, BlockMap::empty(BlockCount(64))).unwrap();
    assert!(cycle.is_whole());
    let access =
        |start| gnomon_terms::Access { at: at(1), resource: RESOURCE, extent: Extent::new(start, 2), op: Op::Write };
    cycle.handle(at(1), Event::Accessed(access(5)));
    assert_eq!((cycle.lacking(), cycle.is_whole()), (BlockCount(2), false));
    cycle.switched(at(2));
    cycle.handle(at(3), Event::Accessed(access(40)));
    assert_eq!(cycle.lacking(), BlockCount(2));
    cycle.handle(at(3), Event::Covered { resource: RESOURCE, extent: Extent::new(5, 2), place: SHADOW });
    assert!(cycle.is_whole());
    assert_eq!(cycle.allocated().count(), BlockCount(4));
}

#[test]
fn reactive_moves_come_first_and_only_after_the_switch() {
    let (mut cycle, mut plane) = begun(200, Forecast::Blend);
    cycle.set_window(Bytes(65536));
    let mut events = Vec::new();
    let mut read = |cycle: &mut Cycle, plane: &mut TestPlane, millis, unit| {
        plane.guest(at(millis), Op::Read, Extent::new(unit * UNIT, UNIT));
        turn(cycle, plane, at(millis), &mut events);
        plane.carry(1);
    };
    (0..40).for_each(|n| read(&mut cycle, &mut plane, n * 30, 100 + n));
    assert!(plane.begun.iter().all(|mv| mv.priority == Priority::Background));
    plane.switched = true;
    cycle.switched(at(1300));
    (0..40).for_each(|n| read(&mut cycle, &mut plane, 1300 + n * 30, 145 + n));
    let prefetched = plane.begun.iter().filter(|mv| mv.priority == Priority::Prefetch);
    let units: HashSet<u64> = prefetched.map(|mv| mv.extent.start.0 / UNIT).collect();
    assert!(units.len() > 10 && units.iter().all(|unit| *unit > 145), "{units:?}");
    let score = cycle.score();
    assert_eq!((score.hits + score.misses, score.misses), (40, plane.stalls()));
    assert!(score.hits > 20, "{score}");
}

#[test]
fn spares_keep_to_their_budget_and_the_better_copies_stay() {
    let (mut cycle, mut plane) = begun(64, Forecast::Named("next-read"));
    let mut events = Vec::new();
    cycle.set_space_budget(Some(Bytes(16 * 65536)));
    for n in 0..400u64 {
        // First the low units are read, then, for good, high ones.
        let unit = if n < 100 { n % 16 } else { 40 + n % 10 };
        let now = at(n * 1000);
        plane.guest(now, Op::Read, Extent::new(unit * UNIT, UNIT));
        turn(&mut cycle, &mut plane, now, &mut events);
        plane.carry(usize::MAX);
        let held = plane.shadow.iter().filter(|block| block.is_some()).count() as u64;
        assert!(held <= 16 * UNIT, "{held} blocks held");
    }
    // The order is computed anew after some thousand accesses, or when the budget is set.
    cycle.set_space_budget(Some(Bytes(16 * 65536)));
    for n in 400..440u64 {
        turn(&mut cycle, &mut plane, at(n * 1000), &mut events);
        plane.carry(usize::MAX);
    }
    let held: Vec<u64> = (40..50).filter(|unit| plane.shadow[(unit * UNIT) as usize].is_some()).collect();
    assert_eq!(held, (40..50).collect::<Vec<_>>());
    assert!(plane.begun.iter().any(|mv| mv.verb == Verb::Drop));
    assert!(cycle.score().dropped > 0);
    let before = plane.begun.len();
    (440..480).for_each(|n| turn(&mut cycle, &mut plane, at(n * 1000), &mut events));
    assert_eq!(plane.begun.len(), before, "copies push each other out");
}

#[test]
fn a_smaller_budget_gives_space_back() {
    let (mut cycle, mut plane) = begun(32, Forecast::Blend);
    let mut events = Vec::new();
    for n in 0..60u64 {
        if n == 20 {
            assert!(cycle.is_whole());
            cycle.set_space_budget(Some(Bytes(8 * 65536)));
        }
        turn(&mut cycle, &mut plane, at(n * 1500), &mut events);
        plane.carry(usize::MAX);
    }
    let held = plane.shadow.iter().filter(|block| block.is_some()).count() as u64;
    assert_eq!(held, 8 * UNIT);
}

#[test]
fn the_stall_that_is_expected_falls_as_copies_arrive() {
    let (mut cycle, _) = begun(8, Forecast::Blend);
    for unit in [0, 1, 0, 1, 7] {
        let extent = Extent::new(unit * UNIT, 1);
        let access = gnomon_terms::Access { at: at(10), resource: RESOURCE, extent, op: Op::Read };
        cycle.handle(at(10), Event::Accessed(access));
    }
    let stalling = |cycle: &Cycle| {
        let (second, rate) = (Duration::from_secs(1), BytesPerSecond(1 << 20));
        cycle.expected_stall(at(20), second, rate, Duration::from_millis(1)).reads_stalling
    };
    assert_eq!(stalling(&cycle), 3);
    cycle.handle(at(11), Event::Covered { resource: RESOURCE, extent: Extent::new(0, 20), place: SHADOW });
    assert_eq!(stalling(&cycle), 1);
    cycle.handle(at(11), Event::Covered { resource: RESOURCE, extent: Extent::new(0, 128), place: SHADOW });
    assert_eq!(stalling(&cycle), 0);
}

#[test]
fn units_are_told_and_only_the_changed_ones_again() {
    let (mut cycle, _) = begun(4, Forecast::Blend);
    assert_eq!(cycle.changed_units(3).len(), 3);
    assert_eq!(cycle.changed_units(usize::MAX).len(), 1);
    cycle.handle(at(1), Event::Covered { resource: RESOURCE, extent: Extent::new(20, 5), place: SHADOW });
    let changed = cycle.changed_units(usize::MAX);
    assert_eq!(changed.len(), 1);
    assert_eq!(
        (changed[0].extent, changed[0].covered, changed[0].place),
        (Extent::new(16, 16), BlockCount(5), SHADOW)
    );
    assert!(cycle.units().all(|unit| (0.0..=1.0).contains(&unit.probability)));
    assert_eq!(cycle.units().map(|unit| unit.covered.0).sum::<u64>(), 5);
}

#[test]
fn a_cancelled_shadow_leaves_nothing_behind() {
    let (mut cycle, _) = begun(4, Forecast::Blend);
    let old = cycle.poll_move().unwrap();
    assert_eq!(cycle.begin_shadow(SHADOW, all(4)), Err(CycleError::ShadowExists(SHADOW)));
    cycle.end_shadow();
    assert_eq!((cycle.poll_move(), cycle.lacking(), cycle.is_whole()), (None, BlockCount(0), false));
    cycle.begin_shadow(Place(2), all(4)).unwrap();
    let outcome = Outcome { id: old.id, settled: Settled::Done, carried: Bytes(65536), took: Duration::ZERO };
    cycle.handle(at(1), Event::Settled(outcome));
    assert_eq!(cycle.lacking(), BlockCount(64));
    assert_ne!(cycle.poll_move().unwrap().id, old.id);
}

#[test]
fn what_does_not_fit_is_refused() {
    let mut config = CycleConfig::new(RESOURCE, all(1));
    config.size = BlockCount(17);
    assert!(matches!(Cycle::new(config), Err(CycleError::MapSize { given: 16, expected: 17 })));
    let mut config = CycleConfig::new(RESOURCE, all(1));
    config.forecast = Forecast::Named("clairvoyance");
    assert!(matches!(Cycle::new(config), Err(CycleError::UnknownPredictor("clairvoyance"))));
    let mut cycle = cycle(1, Forecast::Blend);
    assert!(matches!(cycle.begin_shadow(SHADOW, all(2)), Err(CycleError::MapSize { given: 32, expected: 16 })));
}

#[test]
fn hostile_extents_do_not_panic() {
    let (mut cycle, _) = begun(4, Forecast::Blend);
    cycle.switched(at(0));
    for (start, len) in [(0, u64::MAX), (u64::MAX, u64::MAX), (63, 2), (64, 1)] {
        let extent = Extent::new(start, len);
        for op in [Op::Read, Op::Write, Op::Discard] {
            let access = gnomon_terms::Access { at: at(1), resource: RESOURCE, extent, op };
            cycle.handle(at(1), Event::Accessed(access));
            cycle.handle(at(1), Event::Stalled(access));
        }
        cycle.handle(at(1), Event::Outdated { resource: RESOURCE, extent, place: SHADOW });
        cycle.handle(at(1), Event::Covered { resource: RESOURCE, extent, place: SHADOW });
    }
    assert!(cycle.lacking().0 <= 64);
}

#[test]
fn a_drop_that_is_under_way_at_the_switch_loses_nothing() {
    for settled in [Settled::Done, Settled::Failed] {
        let (mut cycle, _) = begun(2, Forecast::Blend);
        while done(&mut cycle, at(1), Settled::Done).is_some() {}
        cycle.set_space_budget(Some(Bytes(65536)));
        let drop = cycle.poll_move().unwrap();
        assert_eq!((drop.verb, cycle.poll_move()), (Verb::Drop, None));
        cycle.switched(at(2));
        let outcome = Outcome { id: drop.id, settled, carried: Bytes(0), took: Duration::ZERO };
        cycle.handle(at(3), Event::Settled(outcome));
        cycle.advance(at(5000));
        let again = done(&mut cycle, at(5000), Settled::Done);
        assert_eq!(again, (settled == Settled::Done).then_some(drop.extent));
        assert!(cycle.is_whole());
    }
}
