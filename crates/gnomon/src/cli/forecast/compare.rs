//! `gnomon forecast compare`: several recordings, every predictor, in one table of the share of the gap that each
//! closes, at two pull rates and for two allocations.

use std::path::PathBuf;

use gnomon_cycle::{
    GapPoint,
    replay::{Allocation, ReplayOptions, ReplayResult, replay_knowing},
};
use gnomon_forecast::{Reliability, sequence::Knowledge};
use serde::Serialize;

use super::{
    super::{Context, Ended},
    knowledge::{KnowledgeArgs, saw_the_future},
    plot,
    replay::{Expert, expert, thought},
};
use crate::{api::ApiError, trace};

/// The cases: allocation and rate, as they are called and as they are replayed.
const CASES: [(&str, Allocation, f64); 4] = [
    ("half 1x", Allocation::Half, 1.0),
    ("half 4x", Allocation::Half, 4.0),
    ("touched 1x", Allocation::Touched, 1.0),
    ("touched 4x", Allocation::Touched, 4.0),
];

/// `gnomon forecast compare`
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Recordings, in any format that `gnomon trace convert` reads
    #[arg(required = true)]
    traces: Vec<PathBuf>,
    #[command(flatten)]
    knowledge: KnowledgeArgs,
    /// Draw the means, cost against gain, calibration, and the gap over time as SVG
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Compared {
    traces: Vec<String>,
    /// Those whose second half the model was trained on: its results there prove nothing.
    model_saw_the_future: Vec<String>,
    cases: Vec<Case>,
}

/// One allocation at one rate.
#[derive(Debug, Serialize)]
pub(super) struct Case {
    pub(super) case: &'static str,
    pub(super) rows: Vec<Row>,
    /// The experts of the blend, for each recording.
    pub(super) experts: Vec<Vec<Expert>>,
    /// The gap over time for each predictor that closes any, in the mean of all recordings.
    #[serde(skip)]
    pub(super) lines: Vec<plot::Line>,
}

/// One predictor.
#[derive(Debug, Default, Serialize)]
pub(super) struct Row {
    pub(super) predictor: &'static str,
    /// For each recording; 0 is address order, 1 the oracle.
    pub(super) gap_closed: Vec<f64>,
    pub(super) mean: f64,
    pub(super) stalled_pct: Vec<f64>,
    pub(super) bytes_wasted: Vec<u64>,
    pub(super) ns_per_access: Vec<f64>,
}

/// `gnomon forecast compare`
pub(super) fn run(args: &Args, context: &Context) -> Ended {
    let knowledge = args.knowledge.load()?;
    let (mut cases, mut reliability) = (Vec::new(), Reliability::default());
    for (case, allocation, rate) in CASES {
        let options = ReplayOptions { allocation, rate, ..ReplayOptions::default() };
        let (case, chances) = replay_all(case, &args.traces, &options, &knowledge)?;
        (reliability, _) = (reliability.and(&chances), cases.push(case));
    }
    if let Some(file) = &args.plot {
        let drawn = plot::compared(&cases, &points(&cases), &plot::Calibration::from(&reliability));
        std::fs::write(file, drawn).map_err(ApiError::from)?;
    }
    let name = |file: &PathBuf| file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let mut told =
        Compared { traces: args.traces.iter().map(name).collect(), model_saw_the_future: Vec::new(), cases };
    for file in &args.traces {
        if saw_the_future(&knowledge, file)? {
            told.model_saw_the_future.push(name(file));
        }
    }
    context.output.result(&told, words);
    Ok(())
}

fn replay_all(
    case: &'static str,
    files: &[PathBuf],
    options: &ReplayOptions,
    knowledge: &Knowledge,
) -> Result<(Case, Reliability), ApiError> {
    let mut runs: Vec<Vec<ReplayResult>> = Vec::new();
    for file in files {
        runs.push(replay_knowing(&trace::load(file)?, options, knowledge, &mut thought)?);
    }
    // Every recording is replayed with the same predictors, in the same order.
    let names: Vec<&'static str> = runs[0].iter().map(|result| result.predictor).collect();
    let rows = names.iter().enumerate().map(|(at, name)| row(name, runs.iter().map(|run| &run[at]))).collect();
    let drawn = names.iter().enumerate().filter(|(_, name)| plot::is_drawn(name));
    let lines = drawn.map(|(at, name)| plot::mean(name, runs.iter().map(move |run| over_time(&run[at])))).collect();
    let blends = runs.iter().map(|run| run.iter().find(|result| result.predictor == "blend"));
    let chances = blends.clone().flatten().fold(Reliability::default(), |all, blend| all.and(&blend.reliability));
    let experts = blends.map(|blend| blend.into_iter().flat_map(|blend| &blend.experts).map(expert).collect());
    Ok((Case { case, rows, experts: experts.collect(), lines }, chances))
}

fn over_time(result: &ReplayResult) -> &[GapPoint] {
    &result.over_time
}

/// What each predictor costs and gains, in the mean over all recordings and cases.
fn points(cases: &[Case]) -> Vec<plot::Point> {
    let mean = |of: &mut dyn Iterator<Item = f64>| {
        let (sum, count) = of.fold((0.0, 0), |(sum, count), one| (sum + one, count + 1));
        sum / f64::from(count.max(1))
    };
    let of_all = |at: usize| cases.iter().filter_map(move |case| case.rows.get(at));
    let point = |(at, row): (usize, &Row)| {
        let nanos = mean(&mut of_all(at).flat_map(|row| row.ns_per_access.iter().copied()));
        (row.predictor, nanos, mean(&mut of_all(at).map(|row| row.mean)))
    };
    cases.first().into_iter().flat_map(|case| case.rows.iter().enumerate().map(point)).collect()
}

fn row<'a>(predictor: &'static str, results: impl Iterator<Item = &'a ReplayResult>) -> Row {
    let results: Vec<&ReplayResult> = results.collect();
    let gap_closed: Vec<f64> = results.iter().map(|result| result.gap_closed).collect();
    Row {
        predictor,
        mean: gap_closed.iter().sum::<f64>() / gap_closed.len().max(1) as f64,
        gap_closed,
        stalled_pct: results.iter().map(|result| result.stalled_pct).collect(),
        bytes_wasted: results.iter().map(|result| result.bytes_wasted.0).collect(),
        ns_per_access: results.iter().map(|result| result.ns_per_access).collect(),
    }
}

fn words(told: &Compared) -> String {
    let mut text = format!("share of the gap closed; recordings: {}\n", told.traces.join(", "));
    if !told.model_saw_the_future.is_empty() {
        let seen = told.model_saw_the_future.join(", ");
        text.push_str(&format!(
            "the model was trained on the second half of {seen}: what it gains there proves nothing\n"
        ));
    }
    for case in &told.cases {
        text.push_str(&format!("\n{:<14}{:>8}  each recording\n", case.case, "mean"));
        for row in &case.rows {
            let each: String = row.gap_closed.iter().map(|gap| format!("{gap:>8.3}")).collect();
            text.push_str(&format!("{:<14}{:>8.3}{each}\n", row.predictor, row.mean));
        }
    }
    text.trim_end().to_string()
}
