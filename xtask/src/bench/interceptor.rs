//! `bench interceptor`: what a move that is under way costs the guest of its volume.
//!
//! Two daemons with a paced link between them; fio reads and writes a volume of the first through its NBD socket, in
//! turns at rest and while a move of that volume primes. Each measurement has a move of its own, which is cancelled
//! after it: that leaves the volume as it was. `gnomon` in a row is the latency while moving, its peer the one at rest,
//! so a ratio of 1.0 says that the move is not felt.

use std::{
    collections::HashMap,
    fs,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use serde_json::Value;

use super::{Better, Case, Row, interleave};
use crate::{
    demo::{
        self,
        nodes::{Node, Nodes},
    },
    setup, sh,
};

const SIZE_MIB: u64 = 1024;

/// 400 Mbit/s, as in the demo. Priming 1 GiB takes 21 s at least, and a measurement less than five.
const RATE: u64 = 50_000_000;
const DELAY: Duration = Duration::from_millis(1);

/// Of one measurement: some 40,000 samples at depth 1, so that 400 lie above the 99th percentile.
const SECONDS: &str = "2";

/// How long a move may take to begin, or to end when it is cancelled.
const PATIENCE: Duration = Duration::from_secs(60);

const VOLUME: &str = "bench";
const CONTENDERS: &[&str] = &["gnomon", "at rest"];
const MOVING: usize = 0;

/// A case's name, what fio is told, and which percentile of what it tells.
const CASES: &[(&str, Load, Percentile)] = &[
    ("4k randread qd1 p50", ("randread", "1"), "50.000000"),
    ("4k randread qd1 p99", ("randread", "1"), "99.000000"),
    ("4k randread qd16 p50", ("randread", "16"), "50.000000"),
    ("4k randread qd16 p99", ("randread", "16"), "99.000000"),
    ("4k randwrite qd1 p50", ("randwrite", "1"), "50.000000"),
    ("4k randwrite qd1 p99", ("randwrite", "1"), "99.000000"),
];

/// Kind and depth.
type Load = (&'static str, &'static str);
/// As fio names it.
type Percentile = &'static str;

/// Runs the benchmark.
pub(super) fn run(rounds: usize) -> Result<Vec<Row>> {
    setup::ensure()?;
    sh::stage("build", demo::build)?;
    let folder = std::env::temp_dir().join(format!("gn-intercept-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    let measured = measure(&folder, rounds);
    let _ = fs::remove_dir_all(&folder);
    measured
}

fn measure(folder: &Path, rounds: usize) -> Result<Vec<Row>> {
    let nodes = sh::stage("two nodes and a link", || Nodes::start(folder, RATE, DELAY))?;
    let uri = sh::stage("a volume on node a", || import(&nodes.a, folder))?;
    let cases =
        CASES.iter().map(|&(name, ..)| Case { name: name.to_owned(), unit: "us", better: Better::Lower }).collect();
    // One run of fio tells all percentiles: the case that comes later takes what an earlier one of its round left.
    let mut left: HashMap<(Load, usize), Value> = HashMap::new();
    interleave(cases, CONTENDERS, rounds, |case, who| {
        let (_, load, percentile) = CASES.iter().find(|(name, ..)| *name == case.name).context("no such case")?;
        let told = match left.remove(&(*load, who)) {
            Some(told) => told,
            None => {
                let told = if who == MOVING { while_moving(&nodes.a, &uri, load) } else { fio(&uri, load) }?;
                left.insert((*load, who), told.clone());
                told
            }
        };
        micros(&told, percentile).with_context(|| format!("fio tells no percentile {percentile}: {told}"))
    })
}

/// Makes the volume of noise, so that no block is spared as a zero, and says where it is served. What was just written
/// is in the page cache.
fn import(node: &Node, folder: &Path) -> Result<String> {
    let file = folder.join("noise.raw");
    let mut fill = Command::new("dd");
    fill.args(["if=/dev/urandom", "bs=1M", "status=none"]).arg(format!("of={}", file.display()));
    sh::run(fill.arg(format!("count={SIZE_MIB}")))?;
    node.ask(&["volume", "import", VOLUME, "--file", &file.display().to_string()])?;
    fs::remove_file(&file)?;
    let volume = node.ask(&["volume", "show", VOLUME])?;
    Ok(volume["nbd"].as_str().context("the volume is served nowhere")?.to_owned())
}

/// Measures while a move primes, and cancels the move.
fn while_moving(node: &Node, uri: &str, load: &Load) -> Result<Value> {
    let job = node.ask(&["volume", "move", VOLUME, "--to", "b", "--mode", "pre", "--detach"])?;
    let id = job["id"].as_str().with_context(|| format!("a job without an id: {job}"))?;
    let before = await_job(node, id, "prime", is_priming)?;
    let told = fio(uri, load)?;
    let after = node.ask(&["job", "show", id])?;
    anyhow::ensure!(is_priming(&after), "the move did not prime to the end of the measurement: {after}");
    node.ask(&["job", "cancel", id])?;
    await_job(node, id, "end", |job| job["state"] != "running")?;
    let mib = |job: &Value| job["progress"]["done_bytes"].as_u64().unwrap_or(0) >> 20;
    eprintln!("moved {} MiB meanwhile", mib(&after).saturating_sub(mib(&before)));
    Ok(told)
}

/// A move that carries bytes and has not switched.
fn is_priming(job: &Value) -> bool {
    let progress = &job["progress"];
    job["state"] == "running" && progress["phase"] == "prime" && progress["done_bytes"].as_u64() > Some(0)
}

/// Looks again and again: a job's watch ends only with the job.
fn await_job(node: &Node, id: &str, what: &str, is_so: impl Fn(&Value) -> bool) -> Result<Value> {
    let started = Instant::now();
    loop {
        let job = node.ask(&["job", "show", id])?;
        if is_so(&job) {
            return Ok(job);
        }
        anyhow::ensure!(started.elapsed() < PATIENCE, "the move does not {what}: {job}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// What fio's one job tells of its requests.
fn fio(uri: &str, load: &Load) -> Result<Value> {
    let (kind, depth) = load;
    let mut command = Command::new("fio");
    command.args(["--name=b", "--ioengine=nbd", "--bs=4k", "--time_based", "--ramp_time=0.3"]);
    command.args(["--output-format=json", "--lat_percentiles=1", "--runtime", SECONDS]);
    command.arg(format!("--size={SIZE_MIB}m")).arg(format!("--uri={uri}"));
    let told = sh::capture(command.arg(format!("--rw={kind}")).arg(format!("--iodepth={depth}")))?;
    requests(&told).with_context(|| format!("fio's answer is not understood: {told}"))
}

/// The part that has requests. fio may print a note before its JSON.
fn requests(told: &str) -> Option<Value> {
    let json: Value = serde_json::from_str(&told[told.find('{')?..]).ok()?;
    let job = json["jobs"].get(0)?;
    let part = ["read", "write"].iter().find(|kind| job[**kind]["total_ios"].as_u64() > Some(0))?;
    Some(job[*part].clone())
}

fn micros(requests: &Value, percentile: &str) -> Option<f64> {
    Some(requests["lat_ns"]["percentile"][percentile].as_f64()? / 1000.0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fios_answer() {
        let told = r#"note: something
            {"jobs":[{"read":{"total_ios":0},"write":{"total_ios":9,"lat_ns":{"percentile":{"99.000000":1500}}}}]}"#;
        let requests = requests(told).unwrap();
        assert_eq!((micros(&requests, "99.000000"), micros(&requests, "50.000000")), (Some(1.5), None));
        assert_eq!(super::requests("fio: failed"), None);
    }

    #[test]
    fn a_move_primes_when_bytes_have_gone_and_it_has_not_switched() {
        let job = |state: &str, phase: &str, done: u64| json!({"state": state, "progress": {"phase": phase, "done_bytes": done}});
        for (job, expected) in [
            (job("running", "prime", 1), true),
            (job("running", "prime", 0), false),
            (job("running", "switch", 9), false),
            (job("failed", "prime", 9), false),
            (json!({}), false),
        ] {
            assert_eq!(is_priming(&job), expected, "{job}");
        }
    }
}
