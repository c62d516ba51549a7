//! `bench checkpoint`: how long a Linux guest stands for a checkpoint of the State Replication Engine, beside what QEMU
//! alone needs to write its devices down and go on; in turn, on the same guest (an example of gnomon-machine).

use std::{fs, process::Command};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{guest_image, setup, sh};

/// Checkpoints at each interval for each round that was asked for.
const A_ROUND: usize = 20;

/// The rows: one for each interval, in milliseconds, lower is better.
pub(super) fn run(rounds: usize) -> Result<Value> {
    setup::ensure()?;
    let image = sh::stage("guest", guest_image::build)?;
    let build = ["build", "--release", "--quiet", "--package", "gnomon-machine", "--example", "checkpoints"];
    sh::stage("build", || sh::run(sh::cargo().args(build)))?;
    let disk = std::env::temp_dir().join(format!("gnomon-checkpoint-{}.img", std::process::id()));
    let mut fill = Command::new(&image.program);
    let filled = sh::run_aside(fill.args(["fill", "--seed", "1", "--records", "4096", "--file"]).arg(&disk));
    let mut measure = Command::new(sh::target().join("release/examples/checkpoints"));
    measure.args([&image.kernel, &image.initrd, &disk]).arg((rounds * A_ROUND).to_string());
    let told = filled.and_then(|()| sh::capture(&mut measure));
    let _ = fs::remove_file(&disk);
    serde_json::from_str(&told?).context("what the measurement tells is no JSON")
}

/// A line for each row.
pub(super) fn words(rows: &Value) -> String {
    let lines = rows.as_array().into_iter().flatten().map(|row| {
        format!(
            "every {:<7} pause p50 {:>6} p95 {:>6} ms; bare p50 {:>6} p95 {:>6} ms; {} bytes a checkpoint\n",
            row["case"].as_str().unwrap_or_default(),
            row["gnomon_p50"],
            row["gnomon_p95"],
            row["bare_p50"],
            row["bare_p95"],
            row["bytes"]
        )
    });
    lines.collect()
}
