//! Measures the forecasts of the volume plane, for `cargo xtask bench forecast --only volume`, which runs it:
//! `volume [--seconds N] [--plain|--networks|--pieces N] FILE...` prints JSON. `--seconds`: of training for each file;
//! `--plain`: no networks; `--networks`: nothing else; `--pieces`: each file cut into so many, and each of them replayed with
//! what a new volume begins with: how bad it gets where little is known.
//!
//! Each file is replayed at two pull rates and for two allocations, with every predictor alone, with the blend, and with
//! blends that have a network: a GRU and an LSTM trained on the file's own first half (what was there before the
//! switch), one that begins with nothing and learns while the guest runs, the shipped network, and for files called `vm_boot_N` the boot
//! before it. No network sees anything of the second half but as it happens.

use std::{collections::BTreeMap, env, fs, io::Read, time::Duration};

use gnomon_cycle::{
    PREDICTORS,
    replay::{Allocation, ReplayOptions, ReplayResult, replay_some},
};
use gnomon_forecast::{
    DEFAULT_BLOCKS_PER_UNIT, Geometry,
    sequence::{About, Cell, Corpus, Knowledge, Model, Plan, Recording, Trainer, path_of, shipped},
    trace::{Format, Trace},
};
use gnomon_terms::{Access, BlockCount};
use serde_json::{Map, Value, json};

type Failure = Box<dyn std::error::Error>;

const CASES: [(&str, Allocation, f64); 4] = [
    ("half 1x", Allocation::Half, 1.0),
    ("half 4x", Allocation::Half, 4.0),
    ("touched 1x", Allocation::Touched, 1.0),
    ("touched 4x", Allocation::Touched, 4.0),
];

/// The blend with the network that new volumes begin with.
const SHIPPED: &str = "blend+shipped";

/// A recording and what can be known of it before its second half.
struct Subject {
    name: String,
    trace: Trace,
    /// What a blend is told, and the name of the result.
    knowing: Vec<(&'static str, Knowledge)>,
    training: Vec<Value>,
}

fn main() -> Result<(), Failure> {
    let (mut files, mut seconds, mut plain, mut others, mut pieces) = (Vec::new(), 30, false, true, None);
    let mut arguments = env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--plain" => plain = true,
            "--networks" => others = false,
            "--pieces" => pieces = Some(arguments.next().ok_or("--pieces needs a number")?.parse()?),
            "--seconds" => seconds = arguments.next().ok_or("--seconds needs a number")?.parse()?,
            file => files.push(file.to_owned()),
        }
    }
    let mut subjects = Vec::new();
    for file in &files {
        match pieces {
            Some(count) => subjects.extend(cut(file, count)?),
            None => {
                eprintln!("{file}: training");
                subjects.push(subject(file, Duration::from_secs(seconds), plain)?);
            }
        }
    }
    others &= pieces.is_none();
    let mut rows = Vec::new();
    for (case, allocation, rate) in CASES {
        eprintln!("{case}: replaying");
        let options = ReplayOptions { allocation, rate, ..ReplayOptions::default() };
        rows.push(row(case, &subjects, &options, others)?);
    }
    let training: Map<String, Value> = subjects.iter().map(|s| (s.name.clone(), json!(s.training))).collect();
    rows.push(json!({ "case": "training", "unit": "nats/token on the tail of the first half", "traces": training }));
    println!("{}", Value::Array(rows));
    Ok(())
}

/// Pieces of one recording, as of guests of which nothing is known.
fn cut(file: &str, count: usize) -> Result<Vec<Subject>, Failure> {
    let trace = load(file)?;
    let each = trace.accesses.len().div_ceil(count.max(1)).max(1);
    let piece = |(number, accesses): (usize, &[Access])| Subject {
        name: format!("{}/{}", name_of(file), number + 1),
        trace: Trace { accesses: accesses.to_vec() },
        knowing: vec![(SHIPPED, Knowledge { model: Some(shipped()), ..Knowledge::default() })],
        training: Vec::new(),
    };
    Ok(trace.accesses.chunks(each).enumerate().map(piece).collect())
}

fn name_of(file: &str) -> String {
    file.rsplit('/').next().unwrap_or(file).split('.').next().unwrap_or(file).to_owned()
}

fn subject(file: &str, most: Duration, plain: bool) -> Result<Subject, Failure> {
    let trace = load(file)?;
    let path = path_of(geometry(&trace)?, &trace.accesses[..trace.accesses.len() / 2]);
    let corpus = Corpus::of(&[path], 128, 0.2);
    let (mut knowing, mut training) = (Vec::new(), Vec::new());
    let cells = [("blend+gru", Cell::Gru), ("blend+lstm", Cell::Lstm)];
    for (name, cell) in cells.into_iter().filter(|_| !plain) {
        let (model, told) = train(&corpus, cell, most / 2);
        knowing.push((name, Knowledge { model: Some(model), ..Knowledge::default() }));
        training.push(told);
    }
    if !plain {
        knowing.push(("blend+learning", Knowledge { learns: true, ..Knowledge::default() }));
    }
    knowing.push((SHIPPED, Knowledge { model: Some(shipped()), ..Knowledge::default() }));
    if let Some(earlier) = earlier_boot(file) {
        let boot = load(&earlier)?;
        let recordings = vec![Recording::of(&path_of(geometry(&boot)?, &boot.accesses))];
        knowing.push(("blend+recorded", Knowledge { recordings, ..Knowledge::default() }));
    }
    Ok(Subject { name: name_of(file), trace, knowing, training })
}

/// Trains to its end or until so much processor time is used.
fn train(corpus: &Corpus, cell: Cell, most: Duration) -> (Model, Value) {
    let (mut trainer, begun) = (Trainer::new(Plan::new(cell, 1), corpus), thought());
    let mut updates = 0;
    let spent = || Duration::from_nanos(thought() - begun);
    while !trainer.advance(corpus, 16).over && spent() < most {
        updates += 16;
    }
    let plan = trainer.plan();
    let tokens = (updates * plan.lanes * plan.stretch) as f64;
    let best = trainer.best_epoch();
    let told = json!({
        "model": cell.name(), "tokens": corpus.training.len(), "epochs": trainer.curve().len(),
        "loss": best.map(|epoch| epoch.held_out), "plain_loss": corpus.plain_loss(),
        "right": best.map(|epoch| epoch.right), "tokens_per_cpu_s": tokens / spent().as_secs_f64(),
        "weights_bytes": trainer.best().bytes(),
    });
    let (network, vocabulary) = (trainer.best().clone(), corpus.vocabulary.clone());
    let blocks_per_unit = DEFAULT_BLOCKS_PER_UNIT;
    (Model { network, vocabulary, blocks_per_unit, about: About::default() }, told)
}

/// All subjects in one case.
fn row(case: &str, subjects: &[Subject], options: &ReplayOptions, others: bool) -> Result<Value, Failure> {
    let mut gaps: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    let (mut traces, mut experts) = (Map::new(), Map::new());
    for subject in subjects {
        let results = replay_all(subject, options, others)?;
        results.iter().for_each(|(name, result)| gaps.entry(name).or_default().push(result.gap_closed));
        let told: Map<String, Value> = results.iter().map(|(name, r)| ((*name).to_owned(), numbers(r))).collect();
        traces.insert(subject.name.clone(), Value::Object(told));
        let told = results.iter().filter(|(name, _)| name.starts_with("blend"));
        let told: Map<String, Value> = told.map(|(name, result)| ((*name).to_owned(), scores(result))).collect();
        experts.insert(subject.name.clone(), Value::Object(told));
    }
    let mean = |of: &[f64]| (of.iter().sum::<f64>() / of.len().max(1) as f64 * 1000.0).round() / 1000.0;
    let peers: Map<String, Value> = gaps
        .iter()
        .filter(|(name, of)| **name != "blend" && of.len() == subjects.len())
        .map(|(name, of)| ((*name).to_owned(), json!(mean(of))))
        .collect();
    let least = |of: &Vec<f64>| of.iter().copied().fold(1.0, f64::min);
    let least: Map<String, Value> = gaps
        .iter()
        .filter(|(name, _)| name.starts_with("blend"))
        .map(|(name, of)| ((*name).to_owned(), json!(least(of))))
        .collect();
    Ok(json!({
        "least": least, "case": case, "unit": "share of the gap closed", "better": "higher", "gnomon": gaps.get("blend").map(|of| mean(of)),
        "peers": peers, "traces": traces, "experts": experts,
    }))
}

fn replay_all(
    subject: &Subject,
    options: &ReplayOptions,
    others: bool,
) -> Result<Vec<(&'static str, ReplayResult)>, Failure> {
    let mut all = Vec::new();
    let names = if others { &PREDICTORS[..] } else { &["sequential", "blend"] };
    let plain = replay_some(&subject.trace, options, &Knowledge::default(), names, &mut thought)?;
    all.extend(plain.into_iter().map(|result| (result.predictor, result)));
    for (name, knowledge) in &subject.knowing {
        let alone = match (&knowledge.model, knowledge.recordings.is_empty()) {
            // There is another network of its cell.
            _ if *name == SHIPPED => "",
            (Some(model), _) => model.network.shape().cell.name(),
            (None, false) => "recorded",
            (None, true) => "",
        };
        let mut names = vec!["sequential", "blend"];
        names.extend(Some(alone).filter(|name| !name.is_empty()));
        let results = replay_some(&subject.trace, options, knowledge, &names, &mut thought)?;
        for result in results.into_iter().filter(|r| r.predictor == "blend" || r.predictor == alone) {
            all.push((if result.predictor == "blend" { name } else { alone }, result));
        }
    }
    Ok(all)
}

fn numbers(result: &ReplayResult) -> Value {
    let round = |value: f64| (value * 1000.0).round() / 1000.0;
    json!({
        "gap": round(result.gap_closed), "stalled_pct": round(result.stalled_pct),
        "wasted_mib": result.bytes_wasted.0 >> 20, "ns_per_access": result.ns_per_access.round(),
    })
}

fn scores(result: &ReplayResult) -> Value {
    let round = |value: f32| (f64::from(value) * 1000.0).round() / 1000.0;
    let one = |score: &gnomon_forecast::ExpertScore| {
        json!({
            "expert": score.expert, "weight": round(score.weight), "forecasts": score.ended,
            "precision": round(score.precision), "coverage": round(score.coverage),
            "lead_s": round(score.lead.as_secs_f32()), "wrong_mib": score.wasted.0 >> 20, "state_bytes": score.state.0,
        })
    };
    Value::Array(result.experts.iter().map(one).collect())
}

/// The recording of the boot before this one, if there is one beside it.
fn earlier_boot(file: &str) -> Option<String> {
    let (head, tail) = file.split_once("vm_boot_")?;
    let (number, ending) = tail.split_once('.')?;
    let earlier = format!("{head}vm_boot_{}.{ending}", number.parse::<u32>().ok()?.checked_sub(1)?);
    fs::exists(&earlier).unwrap_or(false).then_some(earlier)
}

fn geometry(trace: &Trace) -> Result<Geometry, Failure> {
    let end = trace.accesses.iter().map(|access| access.extent.end().0).max().unwrap_or(0).max(1);
    Ok(Geometry::new(BlockCount(end), DEFAULT_BLOCKS_PER_UNIT)?)
}

/// Processor time of this thread in nanoseconds: what a predictor costs does not depend on who else is at work.
fn thought() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

fn load(file: &str) -> Result<Trace, Failure> {
    let format = Format::of_name(file).ok_or("a trace's name ends in its format (and .zst)")?;
    let open = fs::File::open(file)?;
    let mut bytes = Vec::new();
    match file.ends_with(".zst") {
        true => zstd::Decoder::new(open)?.read_to_end(&mut bytes)?,
        false => (&open).read_to_end(&mut bytes)?,
    };
    Ok(Trace::decode(format, &bytes)?)
}
