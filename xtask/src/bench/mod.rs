//! Benchmarks: cases × contenders, measured in interleaved rounds on one machine, told as medians with their spread.
//!
//! Each round visits every case and in it every contender, beginning with another one each time, so that a drift of
//! the machine falls on all alike.

mod checkpoint;
mod forecast;
mod interceptor;
mod memory;
mod nbd;
mod plot;
mod qmp;
mod switchover;
mod table;
mod vhost;
mod wire;

use std::{fs, process::ExitCode};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::{
    Ended,
    args::{Args, Misuse},
    postgres, sh,
};
pub use table::median;

/// Enough for a median that one bad round does not move.
const ROUNDS: usize = 5;

/// The same for what is over in milliseconds, and hangs on what else the machine does in them.
const SWITCHES: usize = 10;

/// Something to be measured.
pub struct Case {
    /// Its name in the table.
    pub name: String,
    /// The unit of a sample.
    pub unit: &'static str,
    /// Which samples are the good ones.
    pub better: Better,
}

/// The direction of a measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    /// Of rates.
    Higher,
    /// Of times.
    Lower,
}

/// All samples of one case, by contender in the order they were given.
pub struct Row {
    /// What was measured.
    pub case: Case,
    /// `(contender, samples)`; the first is gnomon.
    pub samples: Vec<(&'static str, Vec<f64>)>,
}

/// `cargo xtask bench NAME`
pub fn run(args: &Args) -> Ended {
    let name = args.words.first().map(String::as_str);
    let rounds = args.number("rounds", if name == Some("switchover") { SWITCHES } else { ROUNDS })?.max(1);
    match name {
        Some("checkpoint") => return tell(args, "checkpoint", &checkpoint::run(rounds, args)?, checkpoint::words),
        Some("wire") => return tell(args, "wire", &wire::run(rounds)?, wire::words),
        Some("postgres") => return postgres::bench(args),
        Some("forecast") => return forecast::run(args),
        Some("memory") => return memory::run(args),
        _ => {}
    }
    let rows = match name {
        Some("nbd") => nbd::run(rounds)?,
        Some("interceptor") => interceptor::run(rounds)?,
        Some("vhost") => vhost::run(rounds)?,
        Some("switchover") => switchover::run(rounds, args)?,
        _ => {
            let all = "nbd, vhost, interceptor, checkpoint, switchover, wire, forecast, memory, postgres";
            return Err(Misuse(format!("which benchmark? There are: {all}")).into());
        }
    };
    if let Some(file) = args.text("plot") {
        fs::write(file, plot::bars(&rows)).with_context(|| format!("cannot write {file}"))?;
    }
    match args.has("json") {
        true => println!("{}", table::json(name.unwrap_or_default(), &machine(accel(name))?, &rows)),
        false => print!("{}", table::words(&rows)),
    }
    Ok(ExitCode::SUCCESS)
}

/// What is measured by a program of its own has rows of its own.
fn tell(args: &Args, name: &str, rows: &Value, words: fn(&Value) -> String) -> Ended {
    match args.has("json") {
        true => println!("{}", json!({ "bench": name, "machine": machine("tcg")?, "rows": rows })),
        false => print!("{}", words(rows)),
    }
    Ok(ExitCode::SUCCESS)
}

/// Numbers with commas between them, of an option.
fn list(args: &Args, name: &str, default: &[u64]) -> Result<Vec<u64>, Misuse> {
    let Some(text) = args.text(name) else { return Ok(default.to_vec()) };
    let numbers: Result<Vec<u64>, _> = text.split(',').map(str::parse).collect();
    numbers.map_err(|_| Misuse(format!("--{name} {text}: write numbers with commas between them")))
}

/// Measures all cases with all contenders.
pub fn interleave(
    cases: Vec<Case>,
    contenders: &[&'static str],
    rounds: usize,
    mut measure: impl FnMut(&Case, usize) -> Result<f64>,
) -> Result<Vec<Row>> {
    let empty = |case| Row { case, samples: contenders.iter().map(|name| (*name, Vec::new())).collect() };
    let mut rows: Vec<Row> = cases.into_iter().map(empty).collect();
    for round in 0..rounds {
        for row in &mut rows {
            for turn in 0..contenders.len() {
                let who = (round + turn) % contenders.len();
                let sample = measure(&row.case, who)?;
                eprintln!(
                    "round {}/{rounds}  {:<20} {:<10} {sample:>12.1} {}",
                    round + 1,
                    row.case.name,
                    contenders[who],
                    row.case.unit
                );
                row.samples[who].1.push(sample);
            }
        }
    }
    Ok(rows)
}

/// What runs the guest of a benchmark.
fn accel(name: Option<&str>) -> &'static str {
    match name {
        Some("vhost" | "switchover") => "tcg",
        _ => "none (no guest in this benchmark)",
    }
}

/// What the numbers were measured on, and how many threads wanted to run in the last minute.
pub fn machine(accel: &str) -> Result<Value> {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map(|(_, name)| name);
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let memory = memory.lines().next().and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let date = sh::capture(std::process::Command::new("date").args(["-u", "+%Y-%m-%d"]))?;
    Ok(json!({
        "cpu": cpu.unwrap_or("unknown"),
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "mem": format!("{} GiB", memory.unwrap_or(0) >> 20),
        "kernel": kernel.trim(),
        "date": date.trim(),
        "load": load.split_whitespace().next().unwrap_or("unknown"),
        "accel": accel,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_are_interleaved_and_begin_with_another_each_time() {
        let case = || Case { name: "c".to_owned(), unit: "x", better: Better::Higher };
        let mut order = Vec::new();
        let rows = interleave(vec![case(), case()], &["a", "b", "c"], 3, |_, who| {
            order.push(who);
            Ok(who as f64)
        })
        .unwrap();
        assert_eq!(order, [0, 1, 2, 0, 1, 2, 1, 2, 0, 1, 2, 0, 2, 0, 1, 2, 0, 1]);
        assert!(rows.iter().all(|row| row.samples[1] == ("b", vec![1.0; 3])));
    }
}
