//! `bench forecast`: what forecasts are worth on recorded traces, and what they cost: a part for each kind of forecast.

pub(super) mod series;
mod volume;

use std::process::ExitCode;

use serde_json::{Value, json};

use super::machine;
use crate::{
    Ended,
    args::{Args, Misuse},
};

/// The part that is about what is read next on a disk. The others are [`series::PARTS`].
const VOLUME: &str = "volume";

/// `cargo xtask bench forecast`: the part that is named, or all of them.
pub(super) fn run(args: &Args) -> Ended {
    let all: Vec<&str> = [VOLUME].into_iter().chain(series::PARTS).collect();
    let parts: Vec<&str> =
        all.iter().copied().filter(|part| args.text("only").is_none_or(|only| only == *part)).collect();
    if parts.is_empty() {
        return Err(Misuse(format!("which part of it? There are: {}", all.join(", "))).into());
    }
    let seconds = args.number("rounds", super::ROUNDS)?.max(1) as u64 * 6;
    let mut rows = Vec::new();
    for part in parts {
        let (measured, words): (Value, fn(&Value) -> String) = match part {
            VOLUME => (volume::rows(seconds, args.text("data"))?, volume::words),
            other => (series::rows(other, args.text("data"))?, series::words),
        };
        if !args.has("json") {
            print!("{}", words(&measured));
        }
        rows.extend(measured.as_array().into_iter().flatten().cloned());
    }
    if args.has("json") {
        println!("{}", json!({ "bench": "forecast", "machine": machine("none")?, "rows": rows }));
    }
    Ok(ExitCode::SUCCESS)
}
