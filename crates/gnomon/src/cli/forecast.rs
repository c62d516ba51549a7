//! `gnomon forecast`: what the predictors would have been worth.

use std::path::{Path, PathBuf};

use clap::{Subcommand, ValueEnum};
use gnomon_cycle::replay::{Allocation, ReplayOptions, ReplayResult, replay};
use gnomon_terms::{Bytes, BytesPerSecond};
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

use super::{Context, Ended, output::table};
use crate::{api::ApiError, trace};

/// `gnomon forecast`
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Replay a recording through the real loop and compare every predictor with address order and the oracle
    #[command(after_help = "Examples:\n  gnomon forecast replay --trace web.csv.zst\n  \
                            gnomon forecast replay --trace disk.vscsi --budget 10% --pull 4x --allocated touched --json\n\n\
                            stalled: share of the reads after the switch that would have waited.\n\
                            gap closed: 0 is address order, 1 is the oracle, which has seen the future.")]
    Replay(ReplayArgs),
}

/// `gnomon forecast replay`
#[derive(Debug, clap::Args)]
pub struct ReplayArgs {
    /// A recording: CSV, vscsiStats or ARC; compressed when it ends in .zst
    #[arg(long)]
    trace: PathBuf,
    /// What is copied before the switch, as a share of what is allocated
    #[arg(long, default_value = "10%", value_parser = percent)]
    budget: f64,
    /// The link's rate after it, as a multiple of the trace's own mean read rate
    #[arg(long, default_value = "1x", value_parser = multiple)]
    pull: f64,
    /// Which blocks hold something: half of the address span, or only what the trace touches
    #[arg(long, value_enum, default_value = "half")]
    allocated: Allocated,
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
}

#[derive(Debug, Serialize)]
struct Row {
    predictor: &'static str,
    stalled_pct: f64,
    gap_closed: f64,
    bytes_wasted: u64,
    ns_per_access: f64,
}

pub(super) fn run(command: Command, context: &Context) -> Ended {
    let Command::Replay(args) = command;
    let allocation = match args.allocated {
        Allocated::Half => Allocation::Half,
        Allocated::Touched => Allocation::Touched,
    };
    let options =
        ReplayOptions { budget_percent: args.budget, rate: args.pull, allocation, ..ReplayOptions::default() };
    let told = tell(&args.trace, &options)?;
    context.output.result(&told, words);
    Ok(())
}

/// What would have happened to a recorded guest in a move: the dry run of `move`.
pub fn dry_run(file: &Path, bandwidth: Option<BytesPerSecond>, context: &Context) -> Ended {
    let recorded = trace::load(file)?;
    let own = gnomon_cycle::replay::mean_read_rate(&recorded.accesses);
    let rate = bandwidth.map_or(1.0, |limit| if own > 0.0 { limit.0 as f64 / own } else { 1.0 });
    let told = tell(file, &ReplayOptions { rate, ..ReplayOptions::default() })?;
    context.output.result(&told, words);
    Ok(())
}

fn tell(file: &Path, options: &ReplayOptions) -> Result<Replayed, ApiError> {
    let recorded = trace::load(file)?;
    let results = replay(&recorded, options, &mut thought)?;
    Ok(Replayed {
        trace: file.display().to_string(),
        pull: rate_word(options.rate),
        budget_pct: options.budget_percent,
        allocated: match options.allocation {
            Allocation::Half => "half",
            Allocation::Touched => "touched",
        },
        results: results.iter().map(row).collect(),
    })
}

/// Processor time that this thread has used, in nanoseconds: what a predictor costs does not depend on who else is at
/// work.
fn thought() -> u64 {
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
    format!("{head}\n{}", table(["PREDICTOR", "STALLED", "GAP CLOSED", "WASTED", "COST/ACCESS"], &rows))
}

fn percent(text: &str) -> Result<f64, String> {
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
