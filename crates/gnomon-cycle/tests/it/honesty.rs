//! What learned models may not do: know the future, gain from noise, or give other numbers for the same seed.
//!
//! On two boots of one machine that the project recorded.

use std::io::Read;

use gnomon_cycle::replay::{Allocation, ReplayOptions, ReplayResult, replay_knowing, replay_some};
use gnomon_forecast::sequence::{
    About, Cell, Corpus, Dice, Knowledge, Model, Network, Plan, Recording, Trainer, path_of, shipped,
};
use gnomon_forecast::trace::{Format, Trace};
use gnomon_forecast::{BlockMap, Chance, Ensemble, Geometry, Predictor, UnitIndex};
use gnomon_terms::{Access, BlockCount, Extent, Instant, Op, ResourceId};

const BOOTS: [&[u8]; 2] = [
    include_bytes!("../../../gnomon-forecast/data/vm_boot_1.csv.zst"),
    include_bytes!("../../../gnomon-forecast/data/vm_boot_2.csv.zst"),
];

fn boot(number: usize) -> Trace {
    let mut text = Vec::new();
    zstd::Decoder::new(BOOTS[number]).unwrap().read_to_end(&mut text).unwrap();
    Trace::decode(Format::Csv, &text).unwrap()
}

fn geometry(trace: &Trace) -> Geometry {
    let end = trace.accesses.iter().map(|access| access.extent.end().0).max().unwrap();
    Geometry::new(BlockCount(end), 16).unwrap()
}

/// A small network of the first half of a trace, after `change` was made to what it learns from.
fn model(trace: &Trace, change: impl FnOnce(&mut Corpus)) -> (Model, Corpus) {
    let path = path_of(geometry(trace), &trace.accesses[..trace.accesses.len() / 2]);
    let mut corpus = Corpus::of(&[path], 32, 0.2);
    change(&mut corpus);
    let plan = Plan { hidden: 8, lanes: 2, stretch: 16, most_epochs: 3, ..Plan::new(Cell::Gru, 3) };
    let mut trainer = Trainer::new(plan, &corpus);
    while !trainer.advance(&corpus, 64).over {}
    let (network, vocabulary) = (trainer.best().clone(), corpus.vocabulary.clone());
    (Model { network, vocabulary, blocks_per_unit: 16, about: About::default() }, corpus)
}

fn replayed(trace: &Trace, knowledge: &Knowledge) -> Vec<ReplayResult> {
    let options = ReplayOptions { allocation: Allocation::Half, rate: 4.0, ..ReplayOptions::default() };
    replay_knowing(trace, &options, knowledge, &mut || 0).unwrap()
}

fn of<'a>(results: &'a [ReplayResult], name: &str) -> &'a ReplayResult {
    results.iter().find(|result| result.predictor == name).unwrap()
}

#[test]
fn a_model_of_shuffled_reads_is_worth_silence() {
    let trace = boot(1);
    let (model, corpus) = model(&trace, |corpus| {
        Dice(1).shuffle(&mut corpus.training);
        Dice(2).shuffle(&mut corpus.held_out);
    });
    let loss = gnomon_forecast::sequence::judge(&model.network, &corpus.held_out).0;
    assert!(loss > corpus.plain_loss() * 0.95, "{loss} nats of {}", corpus.plain_loss());
    let without = replayed(&trace, &Knowledge::default());
    let with = replayed(&trace, &Knowledge { model: Some(model), ..Knowledge::default() });
    let blends = (of(&without, "blend"), of(&with, "blend"));
    let weight = blends.1.experts.iter().find(|expert| expert.expert == "gru").unwrap().weight;
    assert!(weight < 0.05, "it has earned {weight}");
    assert_eq!((blends.0.stalled_pct, blends.0.bytes_wasted), (blends.1.stalled_pct, blends.1.bytes_wasted));
}

#[test]
fn the_same_seed_gives_the_same_numbers() {
    let told = || {
        let (model, _) = model(&boot(0), |_| {});
        let bytes = model.encode();
        (bytes, replayed(&boot(1), &Knowledge { model: Some(model), learns: true, ..Knowledge::default() }))
    };
    let (one, other) = (told(), told());
    assert!(one.0 == other.0, "two trainings differ");
    assert_eq!(one.1, other.1);
}

/// What a blend that knows all it can says after `prefix`: its forecasts, order and chances.
fn said(prefix: &[Access], geometry: Geometry) -> (Vec<Chance>, Vec<UnitIndex>, Vec<u32>) {
    let (model, _) = model(&boot(0), |_| {});
    let recordings = vec![Recording::of(&path_of(geometry, &boot(0).accesses))];
    let knowledge = Knowledge { model: Some(model), recordings, learns: true, ..Knowledge::default() };
    let all = BlockMap::full(geometry.blocks());
    let mut blend = Ensemble::knowing(geometry, &all, knowledge);
    let (mut chances, mut order) = (Vec::new(), Vec::new());
    for access in prefix {
        blend.observe(access);
        blend.react(access, &mut chances);
    }
    let now = prefix[prefix.len() - 1].at;
    blend.rank(now, &all, &mut order);
    let probabilities = (0..geometry.units()).map(|unit| blend.probability(now, UnitIndex(unit)).to_bits());
    (chances, order, probabilities.collect())
}

/// Half of a boot is told to two blends, and then another future to each: what they say is the same up to there, and
/// not any more afterwards.
#[test]
fn nothing_is_known_before_it_happens() {
    let trace = boot(1);
    let geometry = geometry(&trace);
    let (head, tail) = trace.accesses.split_at(trace.accesses.len() / 2);
    let other: Vec<Access> = head.iter().chain(tail.iter().rev()).copied().collect();
    let at = |accesses: &[Access], len: usize| said(&accesses[..len], geometry);
    assert_eq!(at(&trace.accesses, head.len()), at(&other, head.len()));
    assert_ne!(at(&trace.accesses, head.len() + 100).0, at(&other, head.len() + 100).0);
}

#[test]
fn a_boot_that_was_recorded_before_is_foretold() {
    let (first, second) = (boot(0), boot(1));
    let recordings = vec![Recording::of(&path_of(geometry(&first), &first.accesses))];
    let results = replayed(&second, &Knowledge { recordings, ..Knowledge::default() });
    let (recorded, blend) = (of(&results, "recorded"), of(&results, "blend"));
    assert!(recorded.gap_closed > 0.5, "{recorded:?}");
    assert!(blend.gap_closed > 0.5, "{blend:?}");
}

#[test]
fn hostile_weights_change_no_move() {
    let trace = boot(1);
    let (good, _) = model(&trace, |_| {});
    let shape = good.network.shape();
    for value in [f32::NAN, f32::INFINITY, f32::MAX, -f32::MAX] {
        let network = Network::of(shape, vec![value; shape.weights()]).unwrap();
        let hostile = Knowledge { model: Some(Model { network, ..good.clone() }), ..Knowledge::default() };
        let (with, without) = (replayed(&trace, &hostile), replayed(&trace, &Knowledge::default()));
        assert_eq!(of(&with, "blend").stalled_pct, of(&without, "blend").stalled_pct, "{value}");
    }
}

/// Reads of one unit each, 10 ms apart.
fn reads(unit: impl Fn(u64) -> u64) -> Trace {
    let access = |nth: u64| Access {
        at: Instant::from_micros(nth * 10_000),
        resource: ResourceId(0),
        extent: Extent::new(unit(nth) * 16, 16),
        op: Op::Read,
    };
    Trace { accesses: (0..6000).map(access).collect() }
}

/// The shipped network was not trained on any of these; it may gain nothing, and must not cost anything but noise.
#[test]
fn the_shipped_network_harms_no_recording_that_it_has_not_seen() {
    let scattered = |nth: u64| nth.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48;
    let mixed = move |nth: u64| match nth % 3 {
        0 => nth,
        1 => 40_000 + nth * 7 % 20_000,
        _ => scattered(nth) % 500,
    };
    let held_out = [("boot", boot(1)), ("scattered", reads(scattered)), ("mixed", reads(mixed))];
    let network = Knowledge { model: Some(shipped()), ..Knowledge::default() };
    for ((name, trace), allocation, rate) in held_out.iter().flat_map(|trace| {
        let cases = [
            (Allocation::Half, 1.0),
            (Allocation::Half, 4.0),
            (Allocation::Touched, 1.0),
            (Allocation::Touched, 4.0),
        ];
        cases.map(|(allocation, rate)| (trace, allocation, rate))
    }) {
        let options = ReplayOptions { allocation, rate, ..ReplayOptions::default() };
        let stalled = |knowledge: &Knowledge| {
            let results = replay_some(trace, &options, knowledge, &["sequential", "blend"], &mut || 0).unwrap();
            of(&results, "blend").stalled_pct
        };
        let (with, without) = (stalled(&network), stalled(&Knowledge::default()));
        // Two reads of a short recording, half a percent of a longer one.
        let noise = (200.0 / (trace.accesses.len() as f64 / 2.0)).max(0.5);
        assert!(with <= without + noise, "{name}, {allocation:?} {rate}: {with} % stalled, {without} % without it");
    }
}
