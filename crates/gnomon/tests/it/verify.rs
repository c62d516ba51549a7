//! Comparing copies with `gnomon volume verify`: what differs is listed, and what a client writes meanwhile is not.

use std::{
    fs,
    os::unix::fs::FileExt,
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
};

use serde_json::{Value, json};

use crate::{
    client::{Client, RECORD},
    house::{House, Pair, Ran, await_some},
};

/// Large enough that a move is still on when it has been compared a few times: each question waits for up to 4 MiB of
/// copies before it, whatever the bandwidth.
const SIZE: u64 = 128 << 20;
const RECORDS: u64 = SIZE / RECORD as u64;

/// Imports an image of records as `data` at `a`; returns the image's path.
fn import(house: &House, image: &Path) -> String {
    fs::write(image, Client::image(RECORDS, 5)).expect("an image");
    let image = image.display().to_string();
    house.ask(&["volume", "import", "data", "--file", &image]);
    image
}

/// Changes one byte of a file behind everybody's back.
fn corrupt(path: &str, at: u64) {
    let file = fs::File::options().read(true).write(true).open(path).expect("the file");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("read");
    file.write_all_at(&[byte[0] ^ 0x80], at).expect("written");
}

fn file_of(house: &House) -> String {
    house.ask(&["volume", "show", "data"])["path"].as_str().expect("a path").to_string()
}

fn verify(house: &House, more: &[&str]) -> (i32, Value, Ran) {
    let ran = house.run(&[&["--json", "volume", "verify", "data"], more].concat());
    let job: Value = serde_json::from_str(&ran.out).unwrap_or_default();
    (ran.code, job["result"].clone(), ran)
}

fn is_in(job: &Value, phase: &str, permille: u64) -> bool {
    let done = |key: &str| job["progress"][key].as_u64().unwrap_or(0);
    job["progress"]["phase"] == phase && done("done_bytes") * 1000 >= done("total_bytes") * permille
}

/// A move that stays in `phase` for a while: half of it is carried fast, the rest slowly.
fn held_in(phase: &str, mode: &str) -> Pair {
    let pair = Pair::new();
    import(&pair.a, &pair.path("image"));
    pair.a.ask(&["volume", "move", "data", "--to", "b", "--mode", mode, "--bandwidth", "400mbit", "--detach"]);
    pair.a.await_job("data", |job| is_in(job, phase, 500));
    pair.a.ask(&["volume", "bandwidth", "data", "24mbit"]);
    pair
}

/// An offset in a block that both copies have: the first one whose content is at the destination.
fn common(pair: &Pair) -> u64 {
    let read = |house: &House| fs::read(file_of(house)).expect("the file");
    let (ours, theirs) = (read(&pair.a), read(&pair.b));
    let mut blocks = ours.chunks(4096).zip(theirs.chunks(4096));
    blocks.position(|(ours, theirs)| ours == theirs).expect("something is there") as u64 * 4096
}

#[test]
fn a_corrupted_block_is_listed_from_both_sides_while_priming() {
    let pair = held_in("prime", "pre");
    let (code, found, ran) = verify(&pair.a, &[]);
    assert_eq!((code, &found["same"], &found["with"]), (0, &json!(true), &json!("b")), "{}", ran.err);
    let seen = |key: &str| found[key].as_u64().unwrap_or(0);
    assert!(seen("compared_bytes") > 0 && seen("lacking_bytes") > 0, "{found}");
    assert_eq!(seen("compared_bytes") + seen("lacking_bytes") + seen("unsettled_bytes"), SIZE, "{found}");
    let at = common(&pair);
    corrupt(&file_of(&pair.b), at + 17);
    for house in [&pair.a, &pair.b] {
        let (code, found, ran) = verify(house, &[]);
        assert_eq!((code, &found["extents"]), (1, &json!([{ "at": at, "len": 4096 }])), "{} {found}", ran.err);
        assert_eq!(found["differing_bytes"], 4096);
        assert!(ran.err.contains("differ"), "{}", ran.err);
    }
}

#[test]
fn a_corrupted_block_is_listed_while_draining() {
    let pair = held_in("drain", "post");
    let at = common(&pair);
    corrupt(&file_of(&pair.b), at);
    for house in [&pair.a, &pair.b] {
        let (code, found, ran) = verify(house, &[]);
        assert_eq!((code, &found["extents"]), (1, &json!([{ "at": at, "len": 4096 }])), "{} {found}", ran.err);
    }
}

#[test]
fn a_client_that_writes_meanwhile_makes_no_difference() {
    for (phase, mode) in [("prime", "pre"), ("drain", "post")] {
        let pair = held_in(phase, mode);
        let nodes = [pair.a.path("run/nbd.sock"), pair.b.path("run/nbd.sock")];
        let (stop, writes) = (AtomicBool::new(false), AtomicU64::new(0));
        let mut client = Client::new(nodes, "data", RECORDS, 5);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    client.step();
                    writes.store(client.tally.writes, Ordering::Relaxed);
                }
            });
            let some = || (writes.load(Ordering::Relaxed) > 50).then_some(());
            await_some("writes", || writes.load(Ordering::Relaxed).to_string(), some);
            for house in [&pair.a, &pair.b] {
                let (code, found, ran) = verify(house, &[]);
                // A move that ended first has nothing left to compare over.
                let ended = code == 1 && found.is_null() && ran.err.contains("session");
                assert!(ended || (code == 0 && found["extents"].as_array().is_none_or(Vec::is_empty)), "{found}");
            }
            stop.store(true, Ordering::Relaxed);
        });
    }
}

#[test]
fn another_node_and_a_file_are_compared_with_on_request() {
    let pair = Pair::new();
    let image = import(&pair.a, &pair.path("image"));
    assert_eq!(verify(&pair.a, &["--with", "b"]).0, 1, "there is none on b");
    import(&pair.b, &pair.path("image"));
    for other in [["--with", "b"], ["--against", &image]] {
        let (code, found, ran) = verify(&pair.a, &other);
        assert_eq!((code, &found["compared_bytes"]), (0, &json!(SIZE)), "{} {found}", ran.err);
    }
    for at in [5 * 4096 + 1, 6 * 4096, SIZE - 1] {
        corrupt(&file_of(&pair.b), at);
        corrupt(&image, at);
    }
    let expected = json!([{ "at": 5 * 4096, "len": 8192 }, { "at": SIZE - 4096, "len": 4096 }]);
    for other in [["--with", "b"], ["--against", &image]] {
        let (code, found, ran) = verify(&pair.a, &other);
        assert_eq!((code, &found["extents"]), (1, &expected), "{} {found}", ran.err);
    }
    fs::write(&image, [0; 5000]).expect("another image");
    let (code, _, ran) = verify(&pair.a, &["--against", &image]);
    assert!(code == 3 && ran.err.contains("5000"), "{code} {}", ran.err);
    let digest = pair.a.ask(&["volume", "verify", "data"]);
    assert_eq!(digest["result"]["bytes"], SIZE, "without another copy it tells a digest");
}
