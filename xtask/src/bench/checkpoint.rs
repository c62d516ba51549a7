//! `bench checkpoint`: what checkpoints of the State Replication Engine cost a Linux guest: how long it stands, beside what
//! QEMU alone needs to write its devices down and go on; how much slower it works; and guests of several sizes that write
//! as much. In turn, on the same guest (an example of gnomon-machine).

use std::{fs, process::Command};

use anyhow::{Context, Result};
use serde_json::Value;

use super::list;
use crate::{args::Args, guest_image, setup, sh};

/// MiB of the guests of several sizes. What they do not touch is not there: the largest one and its shadow take as much of
/// the host as the smallest.
const SIZES: [u64; 4] = [256, 1024, 4096, 8192];

/// The rows; lower is better in each.
pub(super) fn run(rounds: usize, args: &Args) -> Result<Value> {
    let sizes: Vec<String> = list(args, "ram", &SIZES)?.iter().map(u64::to_string).collect();
    setup::ensure()?;
    let image = sh::stage("guest", guest_image::build)?;
    let build = ["build", "--release", "--quiet", "--package", "gnomon-machine", "--example", "checkpoints"];
    sh::stage("build", || sh::run_aside(sh::cargo().args(build)))?;
    let disk = std::env::temp_dir().join(format!("gnomon-checkpoint-{}.img", std::process::id()));
    let mut fill = Command::new(&image.program);
    let filled = sh::run_aside(fill.args(["fill", "--seed", "1", "--records", "4096", "--file"]).arg(&disk));
    let mut measure = Command::new(sh::target().join("release/examples/checkpoints"));
    measure.args([&image.kernel, &image.initrd, &disk]).arg(rounds.to_string()).args(sizes);
    let told = filled.and_then(|()| sh::capture(&mut measure));
    let _ = fs::remove_file(&disk);
    serde_json::from_str(&told?).context("what the measurement tells is no JSON")
}

/// A line for each row.
pub(super) fn words(rows: &Value) -> String {
    rows.as_array().into_iter().flatten().map(line).collect()
}

fn line(row: &Value) -> String {
    let case = row["case"].as_str().unwrap_or_default();
    let number = |name: &str| row[name].as_f64().unwrap_or_default();
    match row["kind"].as_str() {
        Some("slowdown") => format!(
            "{case:<13} slower by {:>6.1} % with checkpoints, {:>6.1} % with bare captures\n",
            number("gnomon"),
            number("bare")
        ),
        _ => format!(
            "{case:<13} pause p50 {:>6.2} p95 {:>6.2} ms; bare p50 {:>6.2} p95 {:>6.2} ms; {} pages, {} bytes a checkpoint\n",
            number("gnomon_p50"),
            number("gnomon_p95"),
            number("bare_p50"),
            number("bare_p95"),
            number("pages_running") + number("pages_standing"),
            number("bytes")
        ),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_kind_has_its_line() {
        let rows = json!([
            {"case": "every 50 ms", "kind": "pause", "gnomon_p50": 5.5, "pages_running": 40, "pages_standing": 2},
            {"case": "every 50 ms", "kind": "slowdown", "gnomon": 7.5, "bare": 6.5},
        ]);
        let told = words(&rows);
        assert!(
            told.contains("pause p50   5.50") && told.contains("42 pages") && told.contains("slower by    7.5 %"),
            "{told}"
        );
    }
}
