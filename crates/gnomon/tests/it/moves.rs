//! Moves of a volume between two daemons: every byte arrives, and what is refused changes nothing.

use std::{
    fs,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
};

use serde_json::Value;

use crate::{
    client::{Chance, Client, Failed, Nbd, RECORD},
    house::{House, Pair, await_some, tool},
};

/// No multiple of a block, nor of a sector.
const ODD: u64 = (24 << 20) + 1234;
/// The bytes of [`ODD`] that hold something.
const HELD: u64 = 8 << 20;

/// Makes `data` at a node: spots of noise, holes between them, and something in its last bytes.
fn fill(house: &House) -> Vec<u8> {
    house.ask(&["volume", "create", "data", "--size", &ODD.to_string()]);
    let mut nbd = open(house);
    let mut chance = Chance(ODD);
    for spot in 0..HELD / 65536 {
        // A spot in each of 128 parts of 192 KiB, at any byte of it.
        let at = spot * 3 * 65536 + chance.below(65536);
        let noise: Vec<u8> = (0..65536 / 8).flat_map(|_| chance.draw().to_le_bytes()).collect();
        nbd.write(&noise, at).expect("written");
    }
    nbd.write(&[0x5a; 7], ODD - 7).expect("written");
    nbd.flush().expect("flushed");
    content(house)
}

fn open(house: &House) -> Nbd {
    Nbd::open(&house.path("run/nbd.sock"), "data").expect("the volume is served")
}

/// All bytes, as a client of another project reads them.
fn content(house: &House) -> Vec<u8> {
    tool("nbdcopy", &[&house.nbd("data"), "-"])
}

fn is_running(job: &Value) -> bool {
    job["state"] == "running"
}

/// Whether a job is in a phase, and has `permille` of its bytes done.
fn is_in(job: &Value, phase: &str, permille: u64) -> bool {
    let done = |key: &str| job["progress"][key].as_u64().unwrap_or(0);
    job["progress"]["phase"] == phase && done("done_bytes") * 1000 >= done("total_bytes") * permille
}

/// The volume is at `a` and nowhere else, as it was.
fn assert_unchanged(pair: &Pair, before: &[u8]) {
    assert_eq!((pair.a.role("data").as_str(), pair.b.role("data").as_str()), ("primary", ""));
    assert!(content(&pair.a) == before, "the content has changed");
    open(&pair.a).write(&[1], 0).expect("it is written as before");
}

fn moved_in(mode: &str) -> Pair {
    let pair = Pair::new();
    let before = fill(&pair.a);
    let job = pair.a.ask(&["volume", "move", "data", "--to", "b", "--mode", mode]);
    assert_eq!((&job["state"], &job["result"]["to"]), (&Value::from("done"), &Value::from("b")), "{job}");
    assert_eq!((pair.a.role("data").as_str(), pair.b.role("data").as_str()), ("released", "primary"));
    assert!(content(&pair.b) == before, "{mode}: the copy differs");
    let shown = pair.b.ask(&["volume", "show", "data"]);
    assert_eq!((&shown["size"], &shown["epoch"]), (&Value::from(ODD), &Value::from(2)));
    let file = fs::metadata(shown["path"].as_str().expect("a path")).expect("the file");
    assert_eq!(file.len(), ODD);
    assert!(file.blocks() * 512 <= HELD * 3 / 2, "{mode}: not thin: {} of {HELD} bytes", file.blocks() * 512);
    pair
}

#[test]
fn every_byte_arrives_in_mode_pre() {
    moved_in("pre");
}

#[test]
fn every_byte_arrives_in_mode_hybrid() {
    moved_in("hybrid");
}

#[test]
fn every_byte_arrives_in_mode_post_and_back() {
    let pair = moved_in("post");
    assert!(matches!(open(&pair.a).write(&[1], 0), Err(Failed::Refused(_))), "the source still writes");
    open(&pair.b).write(&[0x77; 9], 4090).expect("the destination writes");
    let there = content(&pair.b);
    let back = pair.b.run(&["volume", "move", "data", "--to", "a"]);
    assert_eq!(back.code, 3, "the copy that was left behind is not written over unasked: {}", back.err);
    assert_eq!(pair.a.run(&["volume", "rm", "data", "--yes"]).code, 0);
    assert_eq!(pair.b.ask(&["volume", "move", "data", "--to", "a"])["state"], "done");
    assert_eq!((pair.a.role("data").as_str(), pair.b.role("data").as_str()), ("primary", "released"));
    assert!(content(&pair.a) == there, "the way back differs");
}

#[test]
fn the_bandwidth_is_kept_and_changed_at_once() {
    let pair = Pair::new();
    let before = fill(&pair.a);
    let slow = ["volume", "move", "data", "--to", "b", "--mode", "pre", "--bandwidth", "4mbit", "--detach"];
    pair.a.ask(&slow);
    // 4 Mbit/s are 500 kB/s; the pacer's burst shows in the first moments.
    let rate = |job: &Value| job["progress"]["rate"].as_u64().unwrap_or(0);
    let job = pair.a.await_job("data", |job| is_in(job, "prime", 700) && (1..1_000_000).contains(&rate(job)));
    assert!(is_running(&job), "{job}");
    assert_eq!(pair.a.ask(&["volume", "bandwidth", "data", "none"])["id"], job["id"]);
    let ended = pair.a.await_end("data");
    assert_eq!(ended["state"], "done", "{ended}");
    assert!(content(&pair.b) == before);
}

#[test]
fn a_cancelled_move_leaves_everything_as_it_was() {
    let pair = Pair::new();
    let before = fill(&pair.a);
    pair.a.ask(&["volume", "move", "data", "--to", "b", "--bandwidth", "4mbit", "--mode", "pre", "--detach"]);
    pair.a.await_job("data", |job| is_in(job, "prime", 690));
    let again = pair.a.run(&["volume", "move", "data", "--to", "b"]);
    assert_eq!(again.code, 3, "two moves at once: {}", again.err);
    let cancelled = pair.a.run(&["volume", "cancel", "data"]);
    assert_eq!(cancelled.code, 0, "{}", cancelled.err);
    let ended = pair.a.await_end("data");
    assert_ne!(ended["state"], "done", "{ended}");
    assert_unchanged(&pair, &before);
    assert_eq!(pair.a.ask(&["volume", "move", "data", "--to", "b"])["state"], "done", "and it can be moved later");
}

#[test]
fn another_volume_of_that_name_is_not_touched() {
    let pair = Pair::new();
    let before = fill(&pair.a);
    pair.b.ask(&["volume", "create", "data", "--size", "1M"]);
    open(&pair.b).write(&[9; 4096], 8192).expect("written");
    let there = content(&pair.b);
    let ran = pair.a.run(&["volume", "move", "data", "--to", "b"]);
    assert!(ran.code == 3 && ran.err.contains("another volume"), "{}: {}", ran.code, ran.err);
    assert!(content(&pair.b) == there, "it was touched");
    assert_eq!((pair.a.role("data").as_str(), pair.b.role("data").as_str()), ("primary", "primary"));
    assert!(content(&pair.a) == before);
}

#[test]
fn a_node_that_is_not_known_is_named() {
    let pair = Pair::new();
    let before = fill(&pair.a);
    for (node, code, words) in [("c", 1, "[[peer]]"), ("a", 3, "this very node")] {
        let ran = pair.a.run(&["volume", "move", "data", "--to", node]);
        assert!(ran.code == code && ran.err.contains(words), "{}: {}", ran.code, ran.err);
    }
    let alone = House::new();
    alone.ask(&["volume", "create", "data", "--size", "1M"]);
    let ran = alone.run(&["volume", "move", "data", "--to", "b"]);
    assert!(ran.code == 3 && ran.err.contains("gnomon node init"), "{}: {}", ran.code, ran.err);
    assert_unchanged(&pair, &before);
}

#[test]
fn a_node_of_another_authority_is_not_trusted() {
    let pair = Pair::with("", false);
    let before = fill(&pair.a);
    let ran = refused_or_cancelled(&pair, "certificate");
    assert!(ran.contains("certificate"), "{ran}");
    assert_unchanged(&pair, &before);
}

#[test]
fn a_write_that_the_spare_copy_refuses_changes_nothing() {
    let pair = Pair::new();
    let before = fill(&pair.a);
    pair.a.ask(&["volume", "move", "data", "--to", "b", "--mode", "pre", "--bandwidth", "16mbit", "--detach"]);
    pair.a.await_job("data", |job| is_in(job, "prime", 690));
    let mut nbd = open(&pair.b);
    for at in (0..ODD - 4096).step_by(4096) {
        assert!(matches!(nbd.write(&[0xee; 4096], at), Err(Failed::Refused(1))), "refused at {at}");
    }
    assert!(is_in(&pair.a.job_of("data"), "prime", 0), "it was still a spare copy");
    pair.a.ask(&["volume", "bandwidth", "data", "none"]);
    assert_eq!(pair.a.await_end("data")["state"], "done");
    assert!(content(&pair.b) == before, "the copy differs");
}

/// Begins a move that cannot begin: it says why, as its end or while it goes on trying until it is cancelled.
fn refused_or_cancelled(pair: &Pair, why: &str) -> String {
    pair.a.ask(&["volume", "move", "data", "--to", "b", "--detach"]);
    let says = |job: &Value| !is_running(job) || job["progress"]["message"].as_str().unwrap_or("").contains(why);
    let job = pair.a.await_job("data", says);
    if is_running(&job) {
        pair.a.run(&["volume", "cancel", "data"]);
        pair.a.await_end("data");
    }
    job.to_string()
}

/// A small file system of its own. Mounting takes root; whoever is not is told that the test saw nothing.
struct Small(PathBuf);

impl Small {
    fn mount(at: &Path, size: &str) -> Option<Small> {
        fs::create_dir_all(at).expect("a folder");
        let options = format!("size={size}");
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "none"]).arg(at).output();
        match mount.map(|output| output.status.success()) {
            Ok(true) => Some(Small(at.to_path_buf())),
            _ => {
                eprintln!("skipped: mounting a small file system takes root");
                None
            }
        }
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // Lazily: the daemon may still have files open.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_destination_without_space_is_told_and_the_source_goes_on() {
    let place = tempfile::tempdir().expect("a folder");
    for (size, why) in [("16M", "needs"), ("74M", "space")] {
        let volumes = place.path().join(size);
        let Some(_small) = Small::mount(&volumes, size) else { return };
        let pair = Pair::with(&format!("[volume]\ndir = '{}'\n", volumes.display()), true);
        let before = fill(&pair.a);
        if size == "74M" {
            // Room enough when the move is asked for, and none when it comes.
            pair.a.ask(&["volume", "move", "data", "--to", "b", "--mode", "pre", "--bandwidth", "4mbit", "--detach"]);
            pair.a.await_job("data", |job| is_in(job, "prime", 690));
            let _ = Command::new("dd")
                .args(["if=/dev/zero", "bs=1M", &format!("of={}", volumes.join("other").display())])
                .output();
            pair.a.ask(&["volume", "bandwidth", "data", "none"]);
        } else {
            pair.a.ask(&["volume", "move", "data", "--to", "b", "--detach"]);
        }
        let ended = pair.a.await_end("data");
        let said = ended["error"]["message"].as_str().unwrap_or_default();
        assert!(ended["state"] == "failed" && said.contains(why), "{size}: {ended}");
        assert_unchanged(&pair, &before);
    }
}

/// After the switch there is no way back by itself: the move waits for space, what was not copied is read from the source,
/// and when there is space again it goes on.
#[test]
fn a_destination_that_fills_up_while_draining_goes_on_when_there_is_space() {
    let place = tempfile::tempdir().expect("a folder");
    let Some(_small) = Small::mount(place.path(), "74M") else { return };
    let pair = Pair::with(&format!("[volume]\ndir = '{}'\n", place.path().display()), true);
    let before = fill(&pair.a);
    pair.a.ask(&["volume", "move", "data", "--to", "b", "--mode", "post", "--bandwidth", "4mbit", "--detach"]);
    pair.a.await_job("data", |job| is_in(job, "drain", 0));
    let other = place.path().join("other");
    let _ = Command::new("dd").args(["if=/dev/zero", "bs=1M", &format!("of={}", other.display())]).output();
    pair.a.ask(&["volume", "bandwidth", "data", "none"]);
    // More is read than there is room for: it comes from the source, whether or not it can be kept.
    let mut nbd = open(&pair.b);
    let mut bytes = vec![0; 1 << 20];
    for at in (0..before.len() - bytes.len()).step_by(bytes.len()) {
        nbd.read(&mut bytes, at as u64).expect("read");
        assert!(bytes == before[at..at + bytes.len()], "what is read at {at}");
    }
    let told = |job: &Value| job["progress"]["message"].as_str().is_some_and(|said| said.contains("free some space"));
    let waiting = pair.a.await_job("data", told);
    assert!(is_running(&waiting), "{waiting}");
    fs::remove_file(other).expect("removed");
    let ended = pair.a.await_end("data");
    assert_eq!(ended["state"], "done", "{ended}");
    assert!(content(&pair.b) == before);
}

#[test]
fn a_client_at_work_finds_everything_it_was_acknowledged() {
    let pair = Pair::new();
    let records = (24 << 20) / RECORD as u64;
    fs::write(pair.path("image"), Client::image(records, 7)).expect("an image");
    pair.a.ask(&["volume", "import", "data", "--file", &pair.path("image").display().to_string()]);
    let nodes = [pair.a.path("run/nbd.sock"), pair.b.path("run/nbd.sock")];
    let (mut client, stop, writes) =
        (Client::new(nodes, "data", records, 7), AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                client.step();
                writes.store(client.tally.writes, Ordering::Relaxed);
            }
        });
        let job = pair.a.ask(&["volume", "move", "data", "--to", "b", "--bandwidth", "200mbit"]);
        let then = writes.load(Ordering::Relaxed);
        let now = || writes.load(Ordering::Relaxed);
        await_some("work after the move", || format!("{then} {}", now()), || (now() > then + 100).then_some(()));
        stop.store(true, Ordering::Relaxed);
        assert_eq!(job["state"], "done");
    });
    assert!(client.tally.refused > 0, "the switch was clean: a refusal, then the other node: {:?}", client.tally);
    assert_eq!(client.tally.lost, 0, "no connection died: {:?}", client.tally);
    client.verify(1);
}

#[test]
fn what_is_flushed_at_the_destination_is_at_the_source_while_draining() {
    let pair = Pair::new();
    fill(&pair.a);
    let path = pair.a.ask(&["volume", "show", "data"])["path"].as_str().expect("a path").to_string();
    pair.a.ask(&["volume", "move", "data", "--to", "b", "--mode", "post", "--bandwidth", "16mbit", "--detach"]);
    pair.a.await_job("data", |job| is_in(job, "drain", 0));
    let (mut nbd, source) = (open(&pair.b), fs::File::open(path).expect("the source's file"));
    let mut chance = Chance(3);
    for round in 0..20u8 {
        let writes: Vec<(u64, Vec<u8>)> = (0..5)
            .map(|n| (chance.below(ODD - 9000), vec![round * 5 + n + 1; 1 + chance.below(8999) as usize]))
            .collect();
        for (at, data) in &writes {
            nbd.write(data, *at).expect("written");
        }
        nbd.flush().expect("flushed");
        // The last of them is not covered by another.
        let (at, data) = writes.last().expect("five");
        let mut there = vec![0; data.len()];
        source.read_exact_at(&mut there, *at).expect("read");
        assert!(there == *data, "round {round}: not at the source");
    }
    assert!(is_in(&pair.a.job_of("data"), "drain", 0), "it was still draining");
    pair.a.ask(&["volume", "bandwidth", "data", "none"]);
    assert_eq!(pair.a.await_end("data")["state"], "done");
    let mut left = vec![0; ODD as usize];
    source.read_exact_at(&mut left, 0).expect("read");
    assert!(left == content(&pair.b), "both copies are the same at the end");
}

#[test]
fn without_the_way_back_the_source_is_left_as_it_was() {
    let pair = Pair::new();
    let before = fill(&pair.a);
    let path = pair.a.ask(&["volume", "show", "data"])["path"].as_str().expect("a path").to_string();
    let mv = ["volume", "move", "data", "--to", "b", "--mode", "post", "--bandwidth", "16mbit", "--no-reverse"];
    pair.a.ask(&[&mv[..], &["--detach"]].concat());
    pair.a.await_job("data", |job| is_in(job, "drain", 0));
    let (mut nbd, source) = (open(&pair.b), fs::File::open(path).expect("the source's file"));
    let (mut chance, mut expected) = (Chance(4), before.clone());
    for round in 0..20u8 {
        let (at, data) = (chance.below(ODD - 9000), vec![round + 1; 1 + chance.below(8999) as usize]);
        nbd.write(&data, at).expect("written");
        nbd.flush().expect("flushed");
        expected[at as usize..][..data.len()].copy_from_slice(&data);
    }
    assert!(is_in(&pair.a.job_of("data"), "drain", 0), "it was still draining");
    pair.a.ask(&["volume", "bandwidth", "data", "none"]);
    assert_eq!(pair.a.await_end("data")["state"], "done");
    assert!(content(&pair.b) == expected, "what was written over what had not come yet stays");
    let mut left = vec![0; ODD as usize];
    source.read_exact_at(&mut left, 0).expect("read");
    assert!(left == before, "nothing was sent back");
}

#[test]
fn a_writer_of_an_older_epoch_is_refused_for_good() {
    let mut pair = Pair::new();
    let before = fill(&pair.a);
    // It was the writer, and does not know that it is no more.
    let mut stale = open(&pair.a);
    stale.write(&before[..512], 0).expect("at its time it may");
    pair.a.ask(&["volume", "move", "data", "--to", "b", "--mode", "post", "--bandwidth", "16mbit", "--detach"]);
    pair.a.await_job("data", |job| is_in(job, "drain", 0));
    let mut writer = open(&pair.b);
    writer.write(&[0x11; 4096], 65536).expect("the new one writes");
    let refused = |stale: &mut Nbd, when: &str| {
        let written = stale.write(&[0xee; 4096], 65536);
        // EPERM or ESHUTDOWN, as the protocol numbers them.
        assert!(matches!(written, Err(Failed::Refused(1 | 108))), "{when}: {written:?}");
    };
    refused(&mut stale, "while draining");
    pair.a.crash();
    pair.a.start();
    refused(&mut open(&pair.a), "after a restart");
    pair.a.ask(&["volume", "bandwidth", "data", "none"]);
    assert_eq!(pair.a.await_end("data")["state"], "done");
    refused(&mut open(&pair.a), "after the end");
    let mut expected = before;
    expected[65536..][..4096].fill(0x11);
    assert!(content(&pair.b) == expected, "no stale byte has come through");
}
