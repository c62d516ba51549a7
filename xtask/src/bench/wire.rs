//! `bench wire`: bytes that are sent for a page that a guest has written, beside raw pages, QEMU's XBZRLE and zstd.
//!
//! Guests with a real load (nginx under ab, PostgreSQL under pgbench, both idle) are made to stand every 100 ms; each
//! coder is told the same pages (an example of gnomon-machine). The measurement counts bytes, so a busy machine changes
//! only what the guests get done.

use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use crate::{kernel, load_image, setup, sh};

/// What the guest does.
const LOADS: [&str; 3] = ["idle", "web", "database"];
/// Checkpoints for each round that was asked for: four seconds.
const A_ROUND: usize = 40;
/// Ours, as on a link that is slower than the compressor, and as on a faster one.
const OURS: [&str; 2] = ["gnomon", "gnomon-unpacked"];

/// The rows: one for each load; bytes a page, lower is better.
pub(super) fn run(rounds: usize) -> Result<Value> {
    setup::ensure()?;
    let initrd = sh::stage("a guest with a load", load_image::ensure)?;
    let kernel = kernel::ensure()?;
    let build = ["build", "--release", "--quiet", "--package", "gnomon-machine", "--example", "wire"];
    sh::stage("build", || sh::run_aside(sh::cargo().args(build)))?;
    let rows: Result<Vec<Value>> = LOADS
        .iter()
        .map(|load| {
            let mut measure = Command::new(sh::target().join("release/examples/wire"));
            measure.arg(&kernel.image).arg(&initrd).args([load, &(rounds * A_ROUND).to_string()[..]]);
            let told = sh::stage(load, || sh::capture(&mut measure))?;
            row(&serde_json::from_str(&told).context("what the measurement tells is no JSON")?)
        })
        .collect();
    Ok(Value::Array(rows?))
}

/// One load, in the form of all benchmarks.
fn row(told: &Value) -> Result<Value> {
    let bytes = told["bytes_per_page"].as_object().context("the measurement lacks bytes_per_page")?;
    let number =
        |name: &str| bytes.get(name).and_then(Value::as_f64).with_context(|| format!("{name} was not measured"));
    let peers: Map<String, Value> = bytes
        .iter()
        .filter(|(name, _)| !OURS.contains(&&name[..]))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    let best = peers.values().filter_map(Value::as_f64).reduce(f64::min).context("nobody to compare with")?;
    let [ours, unpacked] = [number(OURS[0])?, number(OURS[1])?];
    Ok(json!({
        "case": told["load"], "unit": "bytes/page", "better": "lower", "n": told["n"], "pages": told["pages"],
        "gnomon": ours, "gnomon_unpacked": unpacked, "peers": peers,
        "ratio_vs_best": times(best, ours), "ratio_vs_best_unpacked": times(best, unpacked),
        "us_per_page": told["us_per_page"],
    }))
}

/// How often one is in the other, to a hundredth; 0 when it cannot be said.
fn times(peer: f64, ours: f64) -> f64 {
    if ours > 0.0 { (peer / ours * 100.0).round() / 100.0 } else { 0.0 }
}

/// A line for each load.
pub(super) fn words(rows: &Value) -> String {
    let lines = rows.as_array().into_iter().flatten().map(|row| {
        let peers = row["peers"].as_object().into_iter().flatten().map(|(name, bytes)| format!("{name} {bytes}"));
        format!(
            "{:<9} gnomon {} ({} unpacked); {} bytes/page; gnomon is {} ({}) of the best peer\n",
            row["case"].as_str().unwrap_or_default(),
            row["gnomon"],
            row["gnomon_unpacked"],
            peers.collect::<Vec<_>>().join(", "),
            row["ratio_vs_best"],
            row["ratio_vs_best_unpacked"],
        )
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn above_one_fewer_bytes_than_the_best_are_sent() {
        let bytes =
            json!({"gnomon": 100.0, "gnomon-unpacked": 400.0, "raw": 4104.0, "xbzrle": 500.0, "zstd-1": 200.0});
        let told = json!({"load": "web", "n": 9, "pages": 7, "bytes_per_page": bytes, "us_per_page": {}});
        let row = row(&told).unwrap();
        assert_eq!((&row["ratio_vs_best"], &row["ratio_vs_best_unpacked"]), (&json!(2.0), &json!(0.5)));
        assert!(row["peers"].get("gnomon").is_none() && row["peers"]["xbzrle"] == 500.0);
        assert!(words(&json!([row])).contains("gnomon is 2.0 (0.5) of the best peer"));
    }

    #[test]
    fn what_was_not_measured_is_said() {
        let told = json!({"load": "web", "bytes_per_page": {"raw": 4104.0}});
        assert!(row(&told).unwrap_err().to_string().contains("gnomon was not measured"));
    }
}
