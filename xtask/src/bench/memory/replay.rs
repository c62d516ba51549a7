//! `bench memory --only replay|overhead`: the planner of gnomon-cycle over recorded demand, and what it and its signals cost.
//!
//! Examples of gnomon-cycle and gnomon-qemu do the measuring; here they are built, run and told. The traces are not in the checkout: they
//! are looked for in `../shared/data/memory`, or below where `--data` says, and what is not there is said.

use std::{path::PathBuf, process::Command};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{args::Args, sh};

/// Rows of the traces that are there, with `--quick` of pools of 20 alone; none where there are none.
pub(super) fn rows(args: &Args) -> Result<Value> {
    let data = args.text("data").map_or_else(|| sh::root().join("../shared/data"), PathBuf::from).join("memory");
    if !data.is_dir() {
        eprintln!("replay: the traces are not there (looked in {}): name their folder with --data", data.display());
        return Ok(Value::Array(Vec::new()));
    }
    let mut words = vec!["replay".to_owned(), data.display().to_string()];
    words.extend(args.has("quick").then(|| "quick".to_owned()));
    measure(&words)
}

/// What planning costs for 100 and for 1,000 simulated VMs, and what it costs to see where a guest uses its memory.
pub(super) fn overhead(_: &Args) -> Result<Value> {
    let mut rows = measure(&["overhead".to_owned()])?;
    let looks = told_by("gnomon-qemu", "looks", &[])?;
    rows.as_array_mut().into_iter().for_each(|rows| rows.extend(looks.as_array().into_iter().flatten().cloned()));
    Ok(rows)
}

fn measure(words: &[String]) -> Result<Value> {
    told_by("gnomon-cycle", "memory", words)
}

/// What an example of a package measures.
fn told_by(package: &str, example: &str, words: &[String]) -> Result<Value> {
    let build = ["build", "--release", "--quiet", "--package", package, "--example", example];
    sh::stage("build", || sh::run_aside(sh::cargo().args(build)))?;
    let mut measure = Command::new("nice");
    measure.args(["-n", "15"]).arg(sh::target().join("release/examples").join(example)).args(words);
    let told = sh::stage(words.first().map_or(example, |word| word), || sh::capture(&mut measure))?;
    serde_json::from_str(&told).context("what the measurement tells is no JSON")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn traces_that_are_not_there_are_no_rows() {
        let typed = ["--data".to_owned(), "/nowhere/at/all".to_owned()];
        let args = Args::parse(&typed, &["quick"], &["data"]).unwrap();
        assert_eq!(rows(&args).unwrap(), json!([]));
    }
}
