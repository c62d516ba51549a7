//! `kill -9` in the midst of writing: every write that was acknowledged is there.

use std::{
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Command, Stdio},
};

use gnomon_store::{RedbStore, Store};

/// Says to this very test, run again as a child process, where to write.
const CHILD: &str = "GNOMON_STORE_CRASH_CHILD";

/// How many acknowledged writes the child may make before it is killed, one number for each round.
const ROUNDS: [u64; 5] = [1, 7, 50, 173, 400];

#[test]
fn what_was_acknowledged_survives_a_kill() {
    if let Some(path) = std::env::var_os(CHILD) {
        return write_for_ever(&PathBuf::from(path));
    }
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("store.redb");
    let mut acknowledged = 0;
    for writes in ROUNDS {
        acknowledged = acknowledged.max(run_child_until(&path, acknowledged + writes));
        let store = RedbStore::open(&path).expect("the store opens after a kill");
        let found = store.get("counter").expect("get").map_or(0, |record| parse(&record.value));
        assert!(found >= acknowledged, "{found} is there, {acknowledged} was acknowledged");
        acknowledged = found;
    }
}

fn parse(value: &[u8]) -> u64 {
    String::from_utf8_lossy(value).parse().expect("a number")
}

/// Counts in the store, and says each number once it is durable.
fn write_for_ever(path: &std::path::Path) {
    let store = RedbStore::open(path).expect("open");
    let mut counter = store.get("counter").expect("get").map_or(0, |record| parse(&record.value));
    loop {
        counter += 1;
        store.put("counter", counter.to_string().as_bytes()).expect("put");
        println!("\nstored {counter}");
    }
}

/// Runs the child until it has said `target`, kills it, and returns the last number it said.
fn run_child_until(path: &std::path::Path, target: u64) -> u64 {
    let mut child = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "crash::what_was_acknowledged_survives_a_kill", "--nocapture"])
        .env(CHILD, path)
        .stdout(Stdio::piped())
        .spawn()
        .expect("child");
    let mut lines = BufReader::new(child.stdout.take().expect("stdout")).lines();
    let mut last = 0;
    while last < target {
        let line = lines.next().expect("the child goes on").expect("line");
        if let Some(number) = line.strip_prefix("stored ") {
            last = number.parse().expect("a number");
        }
    }
    child.kill().expect("kill");
    child.wait().expect("wait");
    last
}
