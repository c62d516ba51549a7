//! What the planner of staged memory is worth on recorded traces, and what it costs: `memory replay|overhead FOLDER [quick]`.
//!
//! Prints rows in the form of all benchmarks, as JSON. `cargo xtask bench memory` builds and runs it.

#[path = "../../../gnomon-forecast/examples/series/demands.rs"]
mod demands;
mod knob;
mod life;
mod overhead;
#[path = "../../../gnomon-forecast/examples/series/parallel.rs"]
mod parallel;
mod replay;

use std::{path::Path, process::ExitCode};

use anyhow::{Result, bail};
use serde_json::Value;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match run(&words) {
        Ok(rows) => {
            println!("{rows}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("memory: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[String]) -> Result<Value> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let rows = match words[..] {
        ["replay", folder] => replay::run(Path::new(folder), false)?,
        ["replay", folder, "quick"] => replay::run(Path::new(folder), true)?,
        ["overhead"] => overhead::run(),
        _ => bail!("say replay and the folder of the traces (and quick), or overhead"),
    };
    Ok(Value::Array(rows))
}

/// To four digits behind the point.
fn round(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}
