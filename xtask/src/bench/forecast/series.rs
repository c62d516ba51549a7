//! `bench forecast --only memory|traffic|location|speed`: what models of series and of places are worth on recorded traces.
//!
//! An example of gnomon-forecast does the measuring; here it is built, run and told. The traces are not in the checkout:
//! they are looked for in `../shared/data`, or where `--data` says, and what is not there is said.

use std::{path::PathBuf, process::Command};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::sh;

/// What can be asked for.
pub(super) const PARTS: [&str; 4] = ["memory", "traffic", "location", SPEED];
/// The part that needs no trace: what models cost.
const SPEED: &str = "speed";

/// The rows of one of [`PARTS`]; none where its traces are not there.
pub(super) fn rows(part: &str, data: Option<&str>) -> Result<Value> {
    let data = data.map_or_else(|| sh::root().join("../shared/data"), PathBuf::from);
    if part != SPEED && !data.is_dir() {
        eprintln!("{part}: the traces are not there (looked in {}): name their folder with --data", data.display());
        return Ok(Value::Array(Vec::new()));
    }
    let build = ["build", "--release", "--quiet", "--package", "gnomon-forecast", "--example", "series"];
    sh::stage("build", || sh::run_aside(sh::cargo().args(build)))?;
    let mut measure = Command::new("nice");
    measure.args(["-n", "15"]).arg(sh::target().join("release/examples/series")).arg(part).arg(&data);
    let told = sh::stage(part, || sh::capture(&mut measure))?;
    serde_json::from_str(&told).context("what the measurement tells is no JSON")
}

/// A line for each row, and one for each expert.
pub(in crate::bench) fn words(rows: &Value) -> String {
    let mut text = String::new();
    for row in rows.as_array().into_iter().flatten() {
        text.push_str(row["case"].as_str().unwrap_or_default());
        match row.get("unit") {
            Some(unit) => {
                let peers = row["peers"].as_object().into_iter().flatten();
                let peers: Vec<String> = peers.map(|(name, value)| format!("{name} {}", number(value))).collect();
                let unit = unit.as_str().unwrap_or_default();
                text.push_str(&format!(": gnomon {} {unit}; {}\n", number(&row["gnomon"]), peers.join(", ")));
            }
            None => text.push_str(&format!(": {}\n", rest(row))),
        }
        for expert in row["experts"].as_array().into_iter().flatten() {
            text.push_str(&format!("  {}\n", rest(expert)));
        }
    }
    text
}

fn number(value: &Value) -> String {
    value.as_f64().map_or_else(|| "-".to_owned(), |value| format!("{value:.3}"))
}

/// All fields of a row that has no form of its own.
fn rest(row: &Value) -> String {
    let fields = row.as_object().into_iter().flatten().filter(|(name, _)| !["case", "experts"].contains(&&name[..]));
    fields.map(|(name, value)| format!("{name} {value}")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rows_in_words() {
        let rows = json!([
            {"case": "a, 5 % idle", "unit": "% hit", "gnomon": 77.5, "peers": {"static": 66.0, "seasonal": null}},
            {"case": "a, experts", "pools": 5, "experts": [{"name": "last", "weight": 0.25}]},
        ]);
        let words = words(&rows);
        assert!(words.contains("a, 5 % idle: gnomon 77.500 % hit; seasonal -, static 66.000\n"), "{words}");
        assert!(words.contains("a, experts: pools 5\n  name \"last\", weight 0.25\n"), "{words}");
    }

    #[test]
    fn traces_that_are_not_there_are_no_rows() {
        assert_eq!(rows("memory", Some("/nowhere/at/all")).unwrap(), json!([]));
    }
}
