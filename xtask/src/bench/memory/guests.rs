//! What a Linux guest waits for memory: from the request until it has it, and the first touch of all its pages; and what a
//! guest waits that boots with it. Staged memory with its page tables filled, beside: staged without (`unmapped`), memory that
//! is allocated as the guest touches it (`cold`), and memory that QEMU allocates when it is asked for (`prealloc`). All in turn
//! on one guest, by an example of gnomon-qemu. Cases of staging tell how long that takes, for which nobody waits.

use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{
    args::Args,
    bench::{Better, Case, Row, table},
    guest_image, setup, sh,
};

/// As many that the 95th percentile is a sample and not the worst.
const ROUNDS: usize = 20;

/// The ways, as the example calls them; the first is gnomon's.
const WAYS: [&str; 4] = ["gnomon", "unmapped", "cold", "prealloc"];

/// The rows; lower is better in each.
pub(super) fn rows(args: &Args) -> Result<Value> {
    let rounds = args.number("rounds", ROUNDS)?.max(1);
    setup::ensure()?;
    let image = sh::stage("guest", guest_image::build)?;
    let build = ["build", "--release", "--quiet", "--package", "gnomon-qemu", "--example", "guests"];
    sh::stage("build", || sh::run_aside(sh::cargo().args(build)))?;
    let mut measure = Command::new(sh::target().join("release/examples/guests"));
    measure.args([&image.kernel, &image.initrd]).arg(rounds.to_string());
    let told = sh::capture(measure.stderr(std::process::Stdio::inherit()))?;
    let told: Value = serde_json::from_str(&told).context("what the measurement tells is no JSON")?;
    let rows: Vec<Row> = told.as_array().into_iter().flatten().map(row).collect();
    Ok(table::json("memory", &Value::Null, &rows)["rows"].take())
}

fn row(told: &Value) -> Row {
    let name = told["case"].as_str().unwrap_or_default().to_owned();
    let samples =
        |way: &str| told["samples"][way].as_array().into_iter().flatten().filter_map(Value::as_f64).collect();
    let samples: Vec<(&str, Vec<f64>)> = WAYS.into_iter().map(|way| (way, samples(way))).collect();
    Row {
        case: Case { name, unit: "ms", better: Better::Lower },
        samples: samples.into_iter().filter(|(_, samples)| !samples.is_empty()).collect(),
    }
}

/// A line for each case: medians, with the 95th percentile behind the stroke.
pub(super) fn words(rows: &Value) -> String {
    rows.as_array().into_iter().flatten().map(line).collect()
}

fn line(row: &Value) -> String {
    let median = |way: &str| row["peers"][way].as_f64().or_else(|| row["gnomon"].as_f64().filter(|_| way == WAYS[0]));
    let told = |way: &&str| {
        let p95 = row["p95"][way].as_f64().unwrap_or_default();
        median(way).map(|median| format!("{way} {median:.0}/{p95:.0}"))
    };
    let ways: Vec<String> = WAYS.iter().filter_map(told).collect();
    let case = row["case"].as_str().unwrap_or_default();
    format!("{case:<24} {} ms (p50/p95, n {})\n", ways.join("  "), row["n"])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn samples_become_rows_and_lines() {
        let told = json!([
            { "case": "128 MiB usable", "samples": { "gnomon": [80.0, 82.0, 84.0], "cold": [13.0], "unmapped": [], "prealloc": [200.0] } },
            { "case": "128 MiB staging, ahead", "samples": { "gnomon": [150.0], "cold": [] } },
        ]);
        let rows: Vec<Row> = told.as_array().expect("rows").iter().map(row).collect();
        let told = table::json("memory", &Value::Null, &rows)["rows"].take();
        assert_eq!(told[0]["gnomon"], 82.0);
        let text = words(&told);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].ends_with("gnomon 82/84  cold 13/13  prealloc 200/200 ms (p50/p95, n 3)"), "{text}");
        assert!(lines[1].ends_with("ahead   gnomon 150/150 ms (p50/p95, n 1)"), "{text}");
    }
}
