//! `bench forecast --only volume`: what forecasts of reads are worth on recorded disks, and what they cost.
//!
//! An example of gnomon-cycle does the measuring; here it is built, run and told. Two boots of one machine are in the
//! checkout (recorded by the project); longer traces are looked for in `../shared/data/block`, or below where `--data`
//! says, and what is not there is said.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::sh;

/// Into how many pieces each trace is cut, to see how bad it gets where little is known.
const PIECES: &str = "4";

/// A row for each set of traces, allocation and pull rate. Training goes on for so many seconds of each trace.
pub(super) fn rows(seconds: u64, data: Option<&str>) -> Result<Value> {
    let build = ["build", "--release", "--quiet", "--package", "gnomon-cycle", "--example", "volume"];
    sh::stage("build", || sh::run_aside(sh::cargo().args(build)))?;
    let mut sets = vec![("boots", files(&sh::root().join("crates/gnomon-forecast/data"), "vm_boot")?)];
    let data = data.map_or_else(|| sh::root().join("../shared/data"), PathBuf::from).join("block");
    match data.is_dir() {
        true => sets.push(("disks", files(&data, "")?)),
        false => eprintln!("only the shipped traces: no others in {} (see --data)", data.display()),
    }
    let mut rows = Vec::new();
    let mut add = |name: &str, files: &[PathBuf], how: [&str; 2]| -> Result<()> {
        let measured = sh::stage(name, || measure(files, how))?;
        rows.extend(measured.as_array().into_iter().flatten().map(|row| named(name, row)));
        Ok(())
    };
    for (name, files) in &sets {
        add(name, files, ["--seconds", &seconds.to_string()])?;
    }
    // A boot is short enough as it is.
    if let Some((_, disks)) = sets.get(1) {
        add("pieces", disks, ["--pieces", PIECES])?;
    }
    Ok(Value::Array(rows))
}

/// Traces in a folder, in the order of their names; recorded boots are among them only when asked for by name.
fn files(folder: &Path, prefix: &str) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.retain(|file| {
        let name = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        is_trace(&name)
            && (name.starts_with(prefix) && !prefix.is_empty() || prefix.is_empty() && !name.contains("boot"))
    });
    files.sort();
    Ok(files)
}

fn is_trace(name: &str) -> bool {
    let name = name.strip_suffix(".zst").unwrap_or(name);
    [".csv", ".lis", ".vscsi"].iter().any(|ending| name.ends_with(ending))
}

fn measure(files: &[PathBuf], how: [&str; 2]) -> Result<Value> {
    let mut measure = Command::new("nice");
    measure.args(["-n", "15"]).arg(sh::target().join("release/examples/volume"));
    measure.args(how).args(files);
    serde_json::from_str(&sh::capture(&mut measure)?).context("what the measurement tells is no JSON")
}

/// A row of one set of traces.
fn named(set: &str, row: &Value) -> Value {
    let mut row = row.clone();
    let case = row["case"].as_str().unwrap_or_default();
    row["case"] = json!(format!("{set}, {case}"));
    row
}

/// The means of each case, and what training came to.
pub(super) fn words(rows: &Value) -> String {
    let mut text = String::new();
    for row in rows.as_array().into_iter().flatten() {
        let case = row["case"].as_str().unwrap_or_default();
        match row["peers"].as_object() {
            Some(peers) => {
                let peers: Vec<String> = peers.iter().map(|(name, mean)| format!("{name} {mean}")).collect();
                text.push_str(&format!("{case}: blend {}; {}\n", row["gnomon"], peers.join(", ")));
                if let Some(least) = row["least"].as_object().filter(|_| case.starts_with("pieces")) {
                    let least: Vec<String> = least.iter().map(|(name, gap)| format!("{name} {gap}")).collect();
                    text.push_str(&format!("{case}, the worst piece: {}\n", least.join(", ")));
                }
            }
            None => text.push_str(&format!("{case}: {}\n", row["traces"])),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traces_are_told_from_other_files() {
        for (name, expected) in
            [("a.csv.zst", true), ("b.vscsi", true), ("c.lis", true), ("phases.txt", false), ("README.md", false)]
        {
            assert_eq!(is_trace(name), expected, "{name}");
        }
        let shipped = files(&sh::root().join("crates/gnomon-forecast/data"), "vm_boot").unwrap();
        assert_eq!(shipped.len(), 2, "{shipped:?}");
    }

    #[test]
    fn rows_in_words() {
        let row = named("boots", &json!({"case": "half 1x", "gnomon": 0.75, "peers": {"decay": 0.5}}));
        assert_eq!(words(&json!([row])), "boots, half 1x: blend 0.75; decay 0.5\n");
        let training = json!([{"case": "training", "traces": {"a": 1}}]);
        assert_eq!(words(&training), "training: {\"a\":1}\n");
    }
}
