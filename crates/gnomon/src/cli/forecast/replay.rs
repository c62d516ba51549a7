//! `gnomon forecast replay`: what each predictor would have been worth on one recording.

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use gnomon_cycle::{
    GapPoint,
    replay::{Allocation, ReplayOptions, ReplayResult, replay_knowing},
};
use gnomon_forecast::{ExpertScore, sequence::Knowledge};
use gnomon_terms::{Bytes, BytesPerSecond};
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

use super::{
    super::{Context, Ended, output::table},
    knowledge::{self, KnowledgeArgs},
    plot,
};
use crate::{api::ApiError, trace};

/// `gnomon forecast replay`
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A recording, in any format that `gnomon trace convert` reads; compressed when it ends in .zst
    #[arg(value_name = "TRACE", required_unless_present = "named")]
    trace: Option<PathBuf>,
    /// The recording, by its name
    #[arg(long = "trace", id = "named", value_name = "TRACE", conflicts_with = "trace")]
    named: Option<PathBuf>,
    #[command(flatten)]
    knowledge: KnowledgeArgs,
    /// What is copied before the switch, as a share of what is allocated
    #[arg(long, default_value = "10%", value_parser = percent)]
    budget: f64,
    /// The link's rate after it, as a multiple of the trace's own mean read rate
    #[arg(long, default_value = "1x", value_parser = multiple)]
    pull: f64,
    /// Which blocks hold something: half of the address span, or only what the trace touches
    #[arg(long, value_enum, default_value = "half")]
    allocated: Allocated,
    /// Draw cost against gain, calibration, and the gap over time as SVG
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Allocated {
    Half,
    Touched,
}

#[derive(Debug, Serialize)]
struct Replayed {
    trace: String,
    pull: String,
    budget_pct: f64,
    allocated: &'static str,
    results: Vec<Row>,
    /// What the experts of the blend were worth, acted on or not.
    experts: Vec<Expert>,
    /// How far the chances of these forecasts were off in the mean, 0 to 1.
    calibration_error: Option<f64>,
    /// How much of the gap the blend had closed, over the reads after the switch: 288 points at most.
    gap_over_time: Vec<Gap>,
    /// The model was trained on what comes after the switch here: its results prove nothing.
    model_saw_the_future: bool,
}

#[derive(Debug, Serialize)]
struct Row {
    predictor: &'static str,
    stalled_pct: f64,
    gap_closed: f64,
    bytes_wasted: u64,
    ns_per_access: f64,
}

/// A moment after the switch.
#[derive(Debug, Serialize)]
struct Gap {
    reads: u64,
    seconds: f64,
    /// None while address order and the oracle are the same.
    gap_closed: Option<f64>,
}

/// A score as it is shown.
#[derive(Debug, Serialize)]
pub(super) struct Expert {
    expert: &'static str,
    weight: f32,
    forecasts: u64,
    precision: f32,
    coverage: f32,
    lead_s: f32,
    bytes_wasted: u64,
    state_bytes: u64,
}

/// `gnomon forecast replay`
pub(super) fn run(args: &Args, context: &Context) -> Ended {
    let allocation = match args.allocated {
        Allocated::Half => Allocation::Half,
        Allocated::Touched => Allocation::Touched,
    };
    let options =
        ReplayOptions { budget_percent: args.budget, rate: args.pull, allocation, ..ReplayOptions::default() };
    let file = args.trace.as_ref().or(args.named.as_ref());
    let file = file.ok_or_else(|| ApiError::usage("which recording? Name its file"))?;
    let known = args.knowledge.load()?;
    let results = replay_knowing(&trace::load(file)?, &options, &known, &mut thought).map_err(ApiError::from)?;
    if let Some(file) = &args.plot {
        std::fs::write(file, picture(&results)).map_err(ApiError::from)?;
    }
    let told = tell(file, &options, &known, &results)?;
    context.output.result(&told, words);
    Ok(())
}

/// What would have happened to a recorded guest in a move: the dry run of `move`.
pub fn dry_run(file: &Path, bandwidth: Option<BytesPerSecond>, context: &Context) -> Ended {
    let recorded = trace::load(file)?;
    let own = gnomon_cycle::replay::mean_read_rate(&recorded.accesses);
    let rate = bandwidth.map_or(1.0, |limit| if own > 0.0 { limit.0 as f64 / own } else { 1.0 });
    let (options, known) = (ReplayOptions { rate, ..ReplayOptions::default() }, Knowledge::default());
    let results = replay_knowing(&recorded, &options, &known, &mut thought).map_err(ApiError::from)?;
    let told = tell(file, &options, &known, &results)?;
    context.output.result(&told, words);
    Ok(())
}

fn picture(results: &[ReplayResult]) -> String {
    let point = |result: &ReplayResult| (result.predictor, result.ns_per_access, result.gap_closed);
    let points: Vec<plot::Point> = results.iter().map(point).collect();
    let drawn = results.iter().filter(|result| plot::is_drawn(result.predictor));
    let lines: Vec<plot::Line> = drawn.map(|result| plot::of_move(result.predictor, &result.over_time)).collect();
    let chances = blend(results).map(|blend| blend.reliability).unwrap_or_default();
    plot::replayed(&points, &plot::Calibration::from(&chances), &lines)
}

fn blend(results: &[ReplayResult]) -> Option<&ReplayResult> {
    results.iter().find(|result| result.predictor == "blend")
}

fn tell(
    file: &Path,
    options: &ReplayOptions,
    known: &Knowledge,
    results: &[ReplayResult],
) -> Result<Replayed, ApiError> {
    let blend = blend(results);
    Ok(Replayed {
        trace: file.display().to_string(),
        pull: rate_word(options.rate),
        budget_pct: options.budget_percent,
        allocated: match options.allocation {
            Allocation::Half => "half",
            Allocation::Touched => "touched",
        },
        experts: blend.into_iter().flat_map(|blend| &blend.experts).map(expert).collect(),
        model_saw_the_future: knowledge::saw_the_future(known, file)?,
        calibration_error: blend.and_then(|blend| blend.reliability.error()),
        gap_over_time: blend.into_iter().flat_map(|blend| &blend.over_time).map(gap).collect(),
        results: results.iter().map(row).collect(),
    })
}

fn gap(point: &GapPoint) -> Gap {
    Gap { reads: point.reads, seconds: point.since.as_secs_f64(), gap_closed: point.closed() }
}

/// Processor time that this thread has used, in nanoseconds: what a predictor costs does not depend on who else is at
/// work.
pub(super) fn thought() -> u64 {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    // Both are positive, and nanoseconds of processor time fit for centuries.
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// A multiple as people write it: `4x`, `0.5x`; at most two decimals.
fn rate_word(rate: f64) -> String {
    format!("{}x", (rate * 100.0).round() / 100.0)
}

fn row(result: &ReplayResult) -> Row {
    Row {
        predictor: result.predictor,
        stalled_pct: result.stalled_pct,
        gap_closed: result.gap_closed,
        bytes_wasted: result.bytes_wasted.0,
        ns_per_access: result.ns_per_access,
    }
}

pub(super) fn expert(score: &ExpertScore) -> Expert {
    Expert {
        expert: score.expert,
        weight: score.weight,
        forecasts: score.ended,
        precision: score.precision,
        coverage: score.coverage,
        lead_s: score.lead.as_secs_f32(),
        bytes_wasted: score.wasted.0,
        state_bytes: score.state.0,
    }
}

fn words(told: &Replayed) -> String {
    let rows: Vec<[String; 5]> = told
        .results
        .iter()
        .map(|row| {
            [
                row.predictor.to_string(),
                format!("{:.2} %", row.stalled_pct),
                format!("{:.3}", row.gap_closed),
                Bytes(row.bytes_wasted).to_string(),
                format!("{:.0} ns", row.ns_per_access),
            ]
        })
        .collect();
    let head = format!(
        "{}: {} % of {} copied before the switch, link at {} of the guest's mean read rate",
        told.trace,
        told.budget_pct,
        if told.allocated == "half" { "half of the address span" } else { "what is touched" },
        told.pull
    );
    let table = table(["PREDICTOR", "STALLED", "GAP CLOSED", "WASTED", "COST/ACCESS"], &rows);
    let warning = match told.model_saw_the_future {
        true => {
            "\n\nThe model was trained on this recording's second half: what it gains here proves nothing \
                 (train with --head 50%)."
        }
        false => "",
    };
    format!("{head}\n{table}\n\n{}{warning}", experts(&told.experts))
}

fn experts(experts: &[Expert]) -> String {
    let row = |expert: &Expert| {
        [
            expert.expert.to_string(),
            format!("{:.3}", expert.weight),
            expert.forecasts.to_string(),
            format!("{:.2}", expert.precision),
            format!("{:.2}", expert.coverage),
            format!("{:.2} s", expert.lead_s),
            Bytes(expert.bytes_wasted).to_string(),
        ]
    };
    let rows: Vec<[String; 7]> = experts.iter().map(row).collect();
    table(["EXPERT OF THE BLEND", "WEIGHT", "FORECASTS", "PRECISION", "COVERAGE", "LEAD", "WRONG"], &rows)
}

pub(super) fn percent(text: &str) -> Result<f64, String> {
    let number: Option<f64> = text.trim().trim_end_matches('%').trim().parse().ok();
    number.filter(|n| (0.0..=100.0).contains(n)).ok_or_else(|| format!("'{text}' is not a share: write 10%"))
}

fn multiple(text: &str) -> Result<f64, String> {
    let number: Option<f64> = text.trim().trim_end_matches('x').trim().parse().ok();
    number.filter(|n| *n > 0.0 && n.is_finite()).ok_or_else(|| format!("'{text}' is not a multiple: write 1x or 4x"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_told_as_it_is_typed() {
        for word in ["1x", "4x", "0.5x", "2.25x"] {
            assert_eq!(multiple(word).map(rate_word), Ok(word.to_string()));
        }
        assert_eq!(rate_word(1.0 / 3.0), "0.33x");
    }

    #[test]
    fn shares_and_multiples_are_read() {
        assert_eq!(
            (percent("10%"), percent("2.5"), multiple("4x"), multiple("0.5")),
            (Ok(10.0), Ok(2.5), Ok(4.0), Ok(0.5))
        );
        assert!(percent("110%").is_err() && percent("ten").is_err() && multiple("0x").is_err());
    }
}
