//! Moves under `kill -9`: whichever daemon dies, and whenever, the move goes on by itself, ends with one primary, and
//! the client at work finds every write that it was acknowledged.
//!
//! When a daemon dies is counted in events, not in time: bytes carried, writes acknowledged, or what a node has just
//! become. The seed decides what the client does and how many events there are.

use std::{
    fs,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    client::{Chance, Client, RECORD},
    house::{House, PATIENCE, Pair, await_some},
};

/// Bytes of the volume, all of them written: a second or two at [`RATE`].
const SIZE: u64 = 24 << 20;
const RATE: &str = "160mbit";

/// What the client thinks about between two requests: it writes 4 MB/s at most.
const THOUGHT: Duration = Duration::from_micros(500);

/// Which daemon dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Source,
    Destination,
    /// First the destination, then the source; and back in that order.
    Both,
}

impl Victim {
    fn die(self, pair: &mut Pair) {
        let mut dead: Vec<&mut House> = match self {
            Victim::Source => vec![&mut pair.a],
            Victim::Destination => vec![&mut pair.b],
            Victim::Both => vec![&mut pair.b, &mut pair.a],
        };
        dead.iter_mut().for_each(|house| house.crash());
        dead.iter_mut().for_each(|house| house.start());
    }
}

/// What it has seen when it dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    /// So many thousandths are at the destination, which is a spare copy.
    Priming(u64),
    /// So many writes were acknowledged since the move was asked for, which switches at once.
    Switching(u64),
    /// The source has just been fenced.
    Fenced,
    /// So many thousandths are at the destination, which is the primary.
    Draining(u64),
    /// The destination has just let the source go.
    Released,
}

impl Moment {
    fn mode(self) -> &'static str {
        match self {
            Moment::Priming(_) => "pre",
            _ => "post",
        }
    }

    fn has_come(self, pair: &Pair, writes: u64) -> bool {
        let is_in = |phase: &str, permille: u64| {
            let progress = &pair.a.job_of("data")["progress"];
            let bytes = |key: &str| progress[key].as_u64().unwrap_or(0);
            progress["phase"] == phase && bytes("done_bytes") * 1000 >= bytes("total_bytes") * permille
        };
        match self {
            Moment::Priming(permille) => is_in("prime", permille),
            Moment::Draining(permille) => is_in("drain", permille),
            Moment::Switching(after) => writes >= after,
            Moment::Fenced => pair.a.role("data") == "fenced",
            Moment::Released => pair.b.role("data") == "primary",
        }
    }
}

/// Lives through one move with one death in it.
fn live(seed: u64, victim: Victim, moment: Moment) {
    let mut pair = Pair::new();
    let records = SIZE / RECORD as u64;
    fs::write(pair.path("image"), Client::image(records, seed)).expect("an image");
    pair.a.ask(&["volume", "import", "data", "--file", &pair.path("image").display().to_string()]);
    let nodes = [pair.a.path("run/nbd.sock"), pair.b.path("run/nbd.sock")];
    let mut client = Client::new(nodes, "data", records, seed);
    let (stop, writes) = (AtomicBool::new(false), AtomicU64::new(0));
    let done = || writes.load(Ordering::Relaxed);
    let winner = thread::scope(|scope| {
        let worker = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                client.step();
                // A guest that writes faster than the link carries would never be whole at the destination.
                thread::sleep(THOUGHT);
                writes.store(client.tally.writes, Ordering::Relaxed);
            }
        });
        // A panic of either side must end the other.
        let _stop = StopAtEnd(&stop);
        let more = |count| {
            let aim = done() + count;
            let come = || (done() >= aim || worker.is_finished()).then_some(());
            await_some("acknowledged writes", || format!("{} of {aim}", done()), come);
            assert!(!worker.is_finished(), "the client has ended; seed {seed}");
        };
        more(20);
        let before = done();
        let ask = ["volume", "move", "data", "--to", "b", "--mode", moment.mode(), "--bandwidth", RATE, "--detach"];
        pair.a.ask(&ask);
        await_moment(&pair, moment, || done() - before);
        victim.die(&mut pair);
        let winner = await_one_primary(&pair, seed, || worker.is_finished());
        more(100);
        winner
    });
    println!("seed {seed}: {victim:?} killed at {moment:?}, the volume is at node {winner}, {:?}", client.tally);
    client.verify(winner);
}

struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Looks without a pause: the moments of a switch are short.
fn await_moment(pair: &Pair, moment: Moment, writes: impl Fn() -> u64) {
    let begun = Instant::now();
    while !moment.has_come(pair, writes()) {
        assert!(begun.elapsed() < PATIENCE, "{moment:?} did not come: {}", pair.a.job_of("data"));
        assert_ne!(pair.a.job_of("data")["state"], "failed", "{}", pair.a.job_of("data"));
    }
}

/// Waits until the move is over; returns which node has the volume: the other has not.
fn await_one_primary(pair: &Pair, seed: u64, is_given_up: impl Fn() -> bool) -> usize {
    let is_idle = |house: &House| {
        let job = house.job_of("data");
        job == Value::Null || job["state"] != "running"
    };
    let state = || {
        let (a, b) = (pair.a.look("/v1/volumes/data"), pair.b.look("/v1/volumes/data"));
        format!("seed {seed}: a {a}, b {b}, job {}", pair.a.job_of("data"))
    };
    await_some("one primary", state, || {
        assert!(!is_given_up(), "the client has ended; {}", state());
        let ended = match (pair.a.role("data").as_str(), pair.b.role("data").as_str()) {
            ("released", "primary") => Some(1),
            ("primary", "") => Some(0),
            _ => None,
        };
        ended.filter(|_| is_idle(&pair.a))
    })
}

/// Six lives with seeds from `first` on.
fn lives(first: u64, victim: Victim, moment: impl Fn(u64, &mut Chance) -> Moment) {
    for number in 0..6 {
        let seed = first + number;
        live(seed, victim, moment(number, &mut Chance(seed)));
    }
}

fn priming(_: u64, chance: &mut Chance) -> Moment {
    Moment::Priming(50 + chance.below(800))
}

/// A move in mode post opens the volume and hands it over within the client's first tens of writes.
fn switching(number: u64, chance: &mut Chance) -> Moment {
    match number {
        0..=1 => Moment::Fenced,
        2 => Moment::Switching(chance.below(200)),
        _ => Moment::Switching(chance.below(50)),
    }
}

fn draining(number: u64, chance: &mut Chance) -> Moment {
    match number {
        0..=2 => Moment::Released,
        _ => Moment::Draining(chance.below(950)),
    }
}

#[test]
fn the_source_dies_while_priming() {
    lives(100, Victim::Source, priming);
}

#[test]
fn the_destination_dies_while_priming() {
    lives(200, Victim::Destination, priming);
}

#[test]
fn the_source_dies_while_switching() {
    lives(300, Victim::Source, switching);
}

#[test]
fn the_destination_dies_while_switching() {
    lives(400, Victim::Destination, switching);
}

#[test]
fn the_source_dies_while_draining() {
    lives(500, Victim::Source, draining);
}

#[test]
fn the_destination_dies_while_draining() {
    lives(600, Victim::Destination, draining);
}

#[test]
fn both_die_while_priming() {
    lives(700, Victim::Both, priming);
}

#[test]
fn both_die_while_switching() {
    lives(800, Victim::Both, switching);
}

#[test]
fn both_die_while_draining() {
    lives(900, Victim::Both, draining);
}
