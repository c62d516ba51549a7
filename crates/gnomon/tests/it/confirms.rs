//! A destination whose source is gone for good: the operator says that it is fenced, and the volume is primary where it
//! is. A source that returns all the same learns that it is not the writer.

use std::fs;

use crate::{
    client::{Client, Failed, Nbd, RECORD},
    house::{House, Pair, await_some},
};

/// Bytes of the volume, all of them written: draining takes half a minute at [`SLOW`].
const SIZE: u64 = 24 << 20;
const SLOW: &str = "8mbit";
/// Bytes of one write.
const PIECE: usize = 1 << 20;
const FENCED: [&str; 5] = ["volume", "confirm", "data", "--i-have-fenced", "a"];

/// Two nodes, and a volume called `data` that has switched from `a` to `b` and drains.
fn draining() -> Pair {
    let pair = Pair::new();
    fs::write(pair.path("image"), Client::image(SIZE / RECORD as u64, 21)).expect("an image");
    pair.a.ask(&["volume", "import", "data", "--file", &pair.path("image").display().to_string()]);
    pair.a.ask(&["volume", "move", "data", "--to", "b", "--mode", "post", "--bandwidth", SLOW, "--detach"]);
    await_role(&pair.b, "primary, draining");
    pair
}

fn await_role(house: &House, role: &str) {
    await_some(role, || house.role("data"), || (house.role("data") == role).then_some(()));
}

fn open(house: &House) -> Nbd {
    Nbd::open(&house.path("run/nbd.sock"), "data").expect("served")
}

/// Writes the whole volume: what is written here need not come from the source.
fn fill(house: &House, byte: u8) {
    let mut nbd = open(house);
    (0..SIZE / PIECE as u64).for_each(|piece| nbd.write(&[byte; PIECE], piece * PIECE as u64).expect("written"));
}

fn assert_holds(house: &House, byte: u8) {
    let (mut nbd, mut bytes) = (open(house), vec![0; PIECE]);
    for piece in 0..SIZE / PIECE as u64 {
        nbd.read(&mut bytes, piece * PIECE as u64).expect("read");
        assert!(bytes.iter().all(|found| *found == byte), "MiB {piece} is something else");
    }
}

fn assert_refused(house: &House, args: &[&str], why: &str) {
    let ran = house.run(args);
    assert!(ran.code == 3 && ran.err.contains(why), "{}: {}", ran.code, ran.err);
}

/// The daemon of `b` comes back while `a` is gone, and has everything.
fn alone_and_whole() -> Pair {
    let mut pair = draining();
    pair.a.crash();
    fill(&pair.b, 0x5a);
    pair.b.crash();
    pair.b.start();
    assert_eq!(pair.b.role("data"), "draining, unconfirmed");
    pair
}

#[test]
fn a_volume_that_is_whole_outlives_its_source() {
    let mut pair = alone_and_whole();
    let volume = pair.b.ask(&FENCED);
    assert_eq!((&volume["role"], &volume["epoch"]), (&"primary".into(), &4.into()), "{volume}");
    assert_holds(&pair.b, 0x5a);
    open(&pair.b).write(&[0x11; 512], 0).expect("it is the writer");
    open(&pair.b).write(&[0x5a; 512], 0).expect("it is the writer");
    assert_refused(&pair.b, &FENCED, "primary here");
    pair.b.crash();
    pair.b.start();
    assert_eq!(pair.b.role("data"), "primary", "it does not forget");
    pair.a.start();
    await_role(&pair.a, "released");
    assert_eq!(pair.a.run(&["volume", "rm", "data", "--yes"]).code, 0);
    assert_eq!(pair.b.ask(&["volume", "move", "data", "--to", "a"])["state"], "done", "and it can be moved again");
    assert_holds(&pair.a, 0x5a);
}

/// The volume has gone on to be something else at `b` when its source returns.
#[test]
fn a_source_learns_its_end_though_the_volume_is_no_more() {
    let mut pair = alone_and_whole();
    pair.b.ask(&FENCED);
    assert_eq!(pair.b.run(&["volume", "rm", "data", "--yes"]).code, 0);
    pair.b.ask(&["volume", "create", "data", "--size", "1MiB"]);
    pair.a.start();
    await_role(&pair.a, "released");
    assert_eq!(pair.b.ask(&["volume", "show", "data"])["size"], 1 << 20, "the new one is left alone");
}

#[test]
fn a_write_that_waited_for_the_source_goes_on() {
    let pair = alone_and_whole();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| open(&pair.b).write(&[0x33; 4096], 0));
        let clients = || pair.b.look("/v1/volumes/data")["clients"].as_u64().filter(|clients| *clients > 0);
        await_some("a client", || pair.b.look("/v1/volumes/data").to_string(), clients);
        pair.b.ask(&FENCED);
        writer.join().expect("no panic").expect("written");
    });
    let mut bytes = [0; 4096];
    open(&pair.b).read(&mut bytes, 0).expect("read");
    assert_eq!(bytes, [0x33; 4096]);
}

#[test]
fn what_is_not_whole_or_not_alone_is_not_confirmed() {
    let mut pair = draining();
    assert_refused(&pair.a, &["volume", "confirm", "data", "--i-have-fenced", "b"], "fenced here");
    assert_refused(&pair.b, &["volume", "confirm", "data", "--i-have-fenced", "c"], "'a', not 'c'");
    assert_refused(&pair.b, &FENCED, "are only at node 'a'");
    fill(&pair.b, 0x77);
    // It is whole, and what was written is still on its way back.
    assert_refused(&pair.b, &FENCED, "answers");
    pair.b.crash();
    pair.a.crash();
    pair.b.start();
    pair.b.ask(&FENCED);
    assert_holds(&pair.b, 0x77);
}

/// Both were said to be fenced, one after the other: the one that was confirmed has the newer epoch.
#[test]
fn a_source_that_was_promoted_and_lost_yields_when_it_returns() {
    let mut pair = draining();
    pair.a.crash();
    fill(&pair.b, 0x5a);
    pair.b.crash();
    pair.a.start();
    assert_eq!(pair.a.ask(&["volume", "rollback", "data", "--i-have-fenced", "b"])["state"], "done");
    open(&pair.a).write(&[0x22; 512], 0).expect("it is the writer");
    pair.a.crash();
    pair.b.start();
    assert_eq!(pair.b.ask(&FENCED)["role"], "primary");
    pair.a.start();
    await_role(&pair.a, "lost");
    let written = open(&pair.a).write(&[0x22; 512], 4096);
    assert!(matches!(written, Err(Failed::Refused(1 | 108))), "two writers: {written:?}");
    pair.a.crash();
    pair.a.start();
    assert_eq!(pair.a.role("data"), "lost", "it does not forget");
    assert_holds(&pair.b, 0x5a);
    open(&pair.b).write(&[0x5a; 512], 0).expect("the other is the writer");
    assert_eq!(pair.a.run(&["volume", "rm", "data", "--yes"]).code, 0);
}
