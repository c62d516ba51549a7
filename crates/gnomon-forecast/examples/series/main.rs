//! What models of series and of places are worth on recorded traces: `series memory|traffic|location|speed FOLDER`.
//!
//! Prints rows in the form of all benchmarks, as JSON. `cargo xtask bench forecast --only memory` builds and runs it.

mod data;
mod demands;
mod location;
mod memory;
mod parallel;
mod speed;
mod traffic;

use std::{path::Path, process::ExitCode};

use anyhow::{Result, bail};
use serde_json::{Value, json};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match run(&words) {
        Ok(rows) => {
            println!("{rows}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("series: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[String]) -> Result<Value> {
    let [what, folder] = words else { bail!("say memory, traffic, location or speed, and the folder of the traces") };
    let folder = Path::new(folder);
    let rows = match what.as_str() {
        "memory" => memory::run(&folder.join("memory"))?,
        "traffic" => traffic::run(&folder.join("mirror/geant"))?,
        "location" => location::run(&folder.join("mirror/foursquare"))?,
        "speed" => speed::run(folder)?,
        other => bail!("there is no '{other}': say memory, traffic, location or speed"),
    };
    Ok(Value::Array(rows))
}

/// A row: the blend, its peers, and how it stands to the best of those that do not know the future.
fn row(case: String, unit: &str, higher_is_better: bool, all: &[(String, Option<f64>)]) -> Value {
    let ours = all.iter().find(|(name, _)| name == "blend").and_then(|(_, value)| *value);
    let peers = all.iter().filter(|(name, _)| name != "blend");
    let known = peers.clone().filter(|(name, _)| name != "oracle").filter_map(|(_, value)| *value);
    let best = if higher_is_better { known.reduce(f64::max) } else { known.reduce(f64::min) };
    let ratio = ours.zip(best).filter(|(ours, best)| *ours > 0.0 && *best > 0.0);
    let ratio = ratio.map(|(ours, best)| if higher_is_better { ours / best } else { best / ours });
    json!({
        "case": case, "unit": unit, "better": if higher_is_better { "higher" } else { "lower" },
        "gnomon": ours.map(round), "ratio_vs_best": ratio.map(round),
        "peers": peers.map(|(name, value)| (name.clone(), json!(value.map(round)))).collect::<serde_json::Map<_, _>>(),
    })
}

/// To four digits behind the point.
fn round(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}
