//! Small traces of which the outcome is known exactly.

use gnomon_cycle::PREDICTORS;
use gnomon_cycle::replay::{Allocation, MoveStory, ReplayOptions, ReplayResult, replay, replay_move};
use gnomon_forecast::BlockMap;
use gnomon_forecast::trace::Trace;
use gnomon_terms::{Access, BlockCount, Bytes, BytesPerSecond, Extent, Instant, Op, ResourceId};

fn access(second: u64, op: Op, unit: u64) -> Access {
    let at = Instant::from_micros(second * 1_000_000);
    Access { at, resource: ResourceId(0), extent: Extent::new(unit * 16, 16), op }
}

fn of<'a>(results: &'a [ReplayResult], name: &str) -> &'a ReplayResult {
    results.iter().find(|result| result.predictor == name).unwrap()
}

/// 100 units are read downwards four times over: one unit a second, and the link carries one a second.
fn downwards() -> Trace {
    let reads = (0..400).map(|second| access(second, Op::Read, 99 - second % 100));
    Trace { accesses: reads.collect() }
}

fn told(trace: &Trace, budget_percent: f64) -> Vec<ReplayResult> {
    let options = ReplayOptions { budget_percent, allocation: Allocation::Touched, ..ReplayOptions::default() };
    let mut nanos = 0;
    let mut clock = || {
        nanos += 1_000;
        nanos
    };
    replay(trace, &options, &mut clock).unwrap()
}

#[test]
fn reading_downwards_is_known_exactly() {
    let results = told(&downwards(), 10.0);
    // Nothing pulled: of the 200 reads after the switch the 100 first ones stall.
    assert_eq!(of(&results, "silence").stalled_pct, 50.0);
    assert_eq!(of(&results, "silence").bytes_wasted, Bytes(0));
    // Ten units ahead at the start and one a second: the oracle and the renewal estimate are always in time.
    assert_eq!(of(&results, "oracle").stalled_pct, 0.0);
    assert_eq!(of(&results, "next-read").stalled_pct, 0.0);
    assert_eq!((of(&results, "oracle").gap_closed, of(&results, "next-read").gap_closed), (1.0, 1.0));
    // Upwards from unit 0 with ten ahead meets the reader coming down at unit 54: 45 units were read before.
    let sequential = of(&results, "sequential");
    assert!((22.0..=23.0).contains(&sequential.stalled_pct), "{sequential:?}");
    assert_eq!((sequential.gap_closed, sequential.bytes_wasted), (0.0, Bytes(0)));
    assert_eq!(of(&results, "oracle").ns_per_access, 0.0);
    assert_eq!(of(&results, "sequential").ns_per_access, 1_000.0 / 400.0);
}

#[test]
fn a_budget_of_everything_stalls_nothing_and_closes_the_gap() {
    for result in told(&downwards(), 100.0).iter().filter(|result| result.predictor != "silence") {
        assert_eq!((result.stalled_pct, result.gap_closed), (0.0, 1.0), "{result:?}");
    }
}

#[test]
fn what_is_overwritten_first_never_stalls() {
    let mut accesses: Vec<Access> = (0..50).map(|second| access(second, Op::Read, second)).collect();
    for second in 50..75 {
        accesses.push(access(2 * second, Op::Write, 120 - second));
        accesses.push(access(2 * second + 1, Op::Read, 120 - second));
    }
    let results = told(&Trace { accesses }, 0.0);
    assert!(results.iter().all(|result| result.stalled_pct == 0.0), "{results:?}");
    // The oracle has nothing to go for, so it goes by address like the others, and all of it is for nothing.
    assert!(of(&results, "oracle").bytes_wasted > Bytes(0));
}

#[test]
fn an_empty_trace_is_no_trouble() {
    let results = told(&Trace::default(), 10.0);
    assert_eq!(results.len(), PREDICTORS.len() + 1);
    assert!(results.iter().all(|result| result.stalled_pct == 0.0 && result.gap_closed == 1.0));
}

#[test]
fn half_of_the_span_costs_more_than_what_is_touched() {
    let accesses = (0..100).map(|second| access(second, Op::Read, (second * 37) % 1000));
    let trace = Trace { accesses: accesses.collect() };
    let stalled = |allocation| {
        let options = ReplayOptions { budget_percent: 0.0, rate: 8.0, allocation, ..ReplayOptions::default() };
        of(&replay(&trace, &options, &mut || 0).unwrap(), "sequential").stalled_pct
    };
    assert!(stalled(Allocation::Half) > stalled(Allocation::Touched));
}

#[test]
fn a_move_is_told_again_in_another_order() {
    let future: Vec<Access> = (1..=10).map(|second| access(second, Op::Read, 10 - second)).collect();
    let all = BlockMap::full(BlockCount(160));
    let story = MoveStory {
        history: &[],
        future: &future,
        allocated: &all,
        lacking: &all,
        rate: BytesPerSecond(65_536),
        blocks_per_unit: 16,
    };
    let stalled = |name| replay_move(&story, name).unwrap().stalled;
    // The link starts with the first access, so that one always waits.
    assert_eq!((stalled("silence"), stalled("sequential"), stalled("oracle")), (10, 5, 1));
    assert!(replay_move(&story, "clairvoyance").is_err());
}
