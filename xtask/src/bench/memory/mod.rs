//! `bench memory`: what staged memory is worth: recorded demand through the planner, what planning costs, what a real
//! guest waits, and whether a database in one sees anything of it.

mod debian;
mod guests;
mod replay;
mod spans;

use std::process::ExitCode;

use serde_json::{Value, json};

use super::{forecast, machine};
use crate::{
    Ended,
    args::{Args, Misuse},
};

/// A part by its name: what measures it, and what tells it to a person.
type Part = (&'static str, fn(&Args) -> anyhow::Result<Value>, fn(&Value) -> String);

/// All parts, in the order in which they are run.
const PARTS: [Part; 4] = [
    ("replay", replay::rows, forecast::series::words),
    ("overhead", replay::overhead, forecast::series::words),
    ("guests", guests::rows, guests::words),
    ("debian", debian::rows, spans::words),
];

/// `cargo xtask bench memory`: the part that is named, or all of them.
pub(super) fn run(args: &Args) -> Ended {
    let only = args.text("only");
    let parts: Vec<Part> = PARTS.into_iter().filter(|(name, ..)| only.is_none_or(|only| only == *name)).collect();
    if parts.is_empty() {
        let all = PARTS.map(|(name, ..)| name).join(", ");
        return Err(Misuse(format!("which part of it? There are: {all}")).into());
    }
    let mut rows = Vec::new();
    for (_, measure, words) in parts {
        let measured = measure(args)?;
        if !args.has("json") {
            print!("{}", words(&measured));
        }
        rows.extend(measured.as_array().into_iter().flatten().cloned());
    }
    if args.has("json") {
        println!("{}", json!({ "bench": "memory", "machine": machine("tcg")?, "rows": rows }));
    }
    Ok(ExitCode::SUCCESS)
}
