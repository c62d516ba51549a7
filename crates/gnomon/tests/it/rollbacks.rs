//! The way back of a move that has switched: planned while both nodes live, promoted when the destination is dead, and
//! either under `kill -9`. Every write that a client was acknowledged is at the source afterwards, or, where the
//! destination died, every write that was flushed.

use std::{
    fs,
    process::Command,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

use serde_json::Value;

use crate::{
    client::{Chance, Client, Failed, Nbd, RECORD},
    house::{House, Pair, await_some},
};

/// Bytes of the volume, all of them written.
const SIZE: u64 = 24 << 20;
/// Draining takes half a minute at this rate: the rollback comes long before its end.
const SLOW: &str = "8mbit";
/// What the client thinks about between two requests.
const THOUGHT: Duration = Duration::from_micros(500);

// ---- a volume at work ------------------------------------------------------------------------------------------

/// A client works on a volume that has just switched from `a` to `b`; `deed` happens, and then the volume must be at
/// `a` alone and hold what the client knows.
fn while_at_work(seed: u64, deed: impl FnOnce(&mut Pair, &dyn Fn(u64))) {
    let mut pair = Pair::new();
    let records = SIZE / RECORD as u64;
    fs::write(pair.path("image"), Client::image(records, seed)).expect("an image");
    pair.a.ask(&["volume", "import", "data", "--file", &pair.path("image").display().to_string()]);
    let nodes = [pair.a.path("run/nbd.sock"), pair.b.path("run/nbd.sock")];
    let mut client = Client::new(nodes, "data", records, seed);
    let (stop, writes) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let worker = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                client.step();
                thread::sleep(THOUGHT);
                writes.store(client.tally.writes, Ordering::Relaxed);
            }
        });
        let _stop = StopAtEnd(&stop);
        let more = |count: u64| {
            let aim = writes.load(Ordering::Relaxed) + count;
            let now = || writes.load(Ordering::Relaxed);
            let come = || (now() >= aim || worker.is_finished()).then_some(());
            await_some("acknowledged writes", || format!("{} of {aim}; seed {seed}", now()), come);
            assert!(!worker.is_finished(), "the client has ended; seed {seed}");
        };
        pair.a.ask(&["volume", "move", "data", "--to", "b", "--mode", "post", "--bandwidth", SLOW, "--detach"]);
        await_role(&pair.b, "primary, draining");
        more(50);
        deed(&mut pair, &more);
        await_back(&pair, seed);
        more(100);
    });
    println!("seed {seed}: {:?}", client.tally);
    client.verify(0);
    assert_eq!(pair.a.run(&["volume", "show", "data"]).code, 0);
    assert_eq!(pair.b.run(&["volume", "show", "data"]).code, 1, "nothing of it is at the destination");
}

struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn await_role(house: &House, role: &str) {
    await_some(role, || house.role("data"), || (house.role("data") == role).then_some(()));
}

/// Waits until the volume is at `a` alone, and no move of it is under way.
fn await_back(pair: &Pair, seed: u64) {
    let state =
        || format!("seed {seed}: a {}, b {}: {}", pair.a.role("data"), pair.b.role("data"), pair.a.job_of("data"));
    await_some("the volume at its source", state, || {
        let is_back =
            pair.a.role("data") == "primary" && pair.b.look("/v1/volumes").as_array().is_some_and(Vec::is_empty);
        (is_back && pair.a.job_of("data")["state"] != "running").then_some(())
    });
}

#[test]
fn a_volume_comes_back_while_its_client_works() {
    while_at_work(1, |pair, more| {
        let there = pair.b.run(&["volume", "rollback", "data"]);
        assert_eq!(there.code, 3, "{}", there.err);
        assert!(there.err.contains("on node 'a'"), "{}", there.err);
        let done = pair.a.ask(&["volume", "rollback", "data"]);
        assert_eq!((&done["state"], &done["kind"]), (&Value::from("done"), &Value::from("rollback")), "{done}");
        assert_eq!(done["result"]["rolled_back"], true, "{done}");
        let moved = pair.a.job_of("data");
        assert_eq!((&moved["kind"], &moved["state"]), (&Value::from("move"), &Value::from("cancelled")), "{moved}");
        more(50);
        let again = pair.a.run(&["volume", "rollback", "data"]);
        assert_eq!(again.code, 3, "there is nothing to roll back: {}", again.err);
    });
}

#[test]
fn a_move_that_did_not_switch_or_does_not_mirror_is_not_rolled_back() {
    let pair = Pair::new();
    fs::write(pair.path("image"), Client::image(SIZE / RECORD as u64, 3)).expect("an image");
    pair.a.ask(&["volume", "import", "data", "--file", &pair.path("image").display().to_string()]);
    let start = |more: &[&str]| {
        let mut all = vec!["volume", "move", "data", "--to", "b", "--bandwidth", SLOW, "--detach"];
        all.extend(more);
        pair.a.ask(&all);
    };
    start(&["--mode", "pre"]);
    for args in [&["volume", "rollback", "data"][..], &["volume", "rollback", "data", "--i-have-fenced", "b"]] {
        let early = pair.a.run(args);
        assert!(early.code == 3 && early.err.contains("not switched"), "{}", early.err);
    }
    pair.a.run(&["volume", "cancel", "data"]);
    start(&["--mode", "post", "--no-reverse"]);
    await_role(&pair.b, "primary, draining");
    for args in [&["volume", "rollback", "data"][..], &["volume", "rollback", "data", "--i-have-fenced", "b"]] {
        let unmirrored = pair.a.run(args);
        assert!(unmirrored.code == 3 && unmirrored.err.contains("--no-reverse"), "{}", unmirrored.err);
    }
    let other = pair.a.run(&["volume", "rollback", "data", "--i-have-fenced", "c"]);
    assert!(other.code == 3 && other.err.contains("'b', not 'c'"), "{}", other.err);
}

// ---- kill -9 in the midst --------------------------------------------------------------------------------------

/// What has been seen of the rollback when daemons die.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// So many writes were acknowledged since it was asked for.
    Asked(u64),
    /// The destination writes no more.
    Held,
    /// The source is the writer.
    Taken,
}

fn die_while_coming_back(seed: u64, dead: &'static str) {
    let mut chance = Chance(seed);
    let moment = match seed % 3 {
        0 => Moment::Asked(chance.below(20)),
        1 => Moment::Held,
        _ => Moment::Taken,
    };
    while_at_work(seed, |pair, more| {
        pair.a.ask(&["volume", "rollback", "data", "--detach"]);
        match moment {
            Moment::Asked(count) => more(count),
            // The rollback may be over before it is looked at: then the death comes after it.
            Moment::Held => {
                await_some("a fence", String::new, || (pair.b.role("data") != "primary, draining").then_some(()))
            }
            Moment::Taken => await_role(&pair.a, "primary"),
        }
        println!("seed {seed}: {dead} killed at {moment:?}: a {}, b {}", pair.a.role("data"), pair.b.role("data"));
        let mut houses: Vec<&mut House> = match dead {
            "a" => vec![&mut pair.a],
            "b" => vec![&mut pair.b],
            _ => vec![&mut pair.b, &mut pair.a],
        };
        houses.iter_mut().for_each(|house| house.crash());
        houses.iter_mut().for_each(|house| house.start());
    });
}

#[test]
fn the_source_dies_while_a_volume_comes_back() {
    (100..106).for_each(|seed| die_while_coming_back(seed, "a"));
}

#[test]
fn the_destination_dies_while_a_volume_comes_back() {
    (200..206).for_each(|seed| die_while_coming_back(seed, "b"));
}

#[test]
fn both_die_while_a_volume_comes_back() {
    (300..306).for_each(|seed| die_while_coming_back(seed, "both"));
}

// ---- the destination is dead -------------------------------------------------------------------------------------

#[test]
fn a_source_is_promoted_when_the_destination_is_dead_and_the_dead_learns_it() {
    let mut pair = Pair::new();
    fs::write(pair.path("image"), Client::image(SIZE / RECORD as u64, 9)).expect("an image");
    pair.a.ask(&["volume", "import", "data", "--file", &pair.path("image").display().to_string()]);
    pair.a.ask(&["volume", "move", "data", "--to", "b", "--mode", "post", "--bandwidth", SLOW, "--detach"]);
    await_role(&pair.b, "primary, draining");
    let mut nbd = Nbd::open(&pair.b.path("run/nbd.sock"), "data").expect("served");
    for place in 0..200u64 {
        nbd.write(&[place as u8 + 1; 5000], place * 100_000).expect("written");
    }
    nbd.flush().expect("flushed");
    nbd.write(&[0xee; 512], 0).expect("written, and not flushed");
    pair.b.crash();
    let done = pair.a.ask(&["volume", "rollback", "data", "--i-have-fenced", "b"]);
    assert_eq!(
        (&done["state"], &done["result"]["rolled_back"]),
        (&Value::from("done"), &Value::from(true)),
        "{done}"
    );
    assert_eq!(pair.a.job_of("data")["state"], "cancelled", "the move's own job is over");
    let mut here = Nbd::open(&pair.a.path("run/nbd.sock"), "data").expect("served");
    let mut bytes = [0; 5000];
    for place in 0..200u64 {
        here.read(&mut bytes, place * 100_000).expect("read");
        let from = if place == 0 { 512 } else { 0 };
        assert!(bytes[from..].iter().all(|byte| *byte == place as u8 + 1), "what was flushed at {place} is lost");
    }
    here.write(&[0x11; 512], 0).expect("the source writes");
    returns_and_has_lost(&mut pair);
    assert_eq!(pair.a.ask(&["volume", "move", "data", "--to", "b"])["state"], "done", "and it can be moved again");
}

/// The dead node comes back: not one write gets through there, it says that it has lost, and its copy can go.
fn returns_and_has_lost(pair: &mut Pair) {
    pair.b.start();
    let mut there = Nbd::open(&pair.b.path("run/nbd.sock"), "data").expect("served");
    let written = there.write(&[0x22; 512], 4096);
    assert!(matches!(written, Err(Failed::Refused(1 | 108))), "two writers: {written:?}");
    await_role(&pair.b, "lost");
    pair.b.crash();
    pair.b.start();
    assert_eq!(pair.b.role("data"), "lost", "it does not forget");
    assert_eq!(pair.b.run(&["volume", "rm", "data", "--yes"]).code, 0);
}

#[test]
fn a_destination_that_was_only_cut_off_learns_that_it_has_lost() {
    let pair = Pair::new();
    fs::write(pair.path("image"), Client::image(SIZE / RECORD as u64, 5)).expect("an image");
    pair.a.ask(&["volume", "import", "data", "--file", &pair.path("image").display().to_string()]);
    pair.a.ask(&["volume", "move", "data", "--to", "b", "--mode", "post", "--bandwidth", SLOW, "--detach"]);
    await_role(&pair.b, "primary, draining");
    assert_eq!(pair.a.ask(&["volume", "rollback", "data", "--i-have-fenced", "b"])["state"], "done");
    await_role(&pair.b, "lost");
    let mut there = Nbd::open(&pair.b.path("run/nbd.sock"), "data").expect("served");
    assert!(matches!(there.write(&[1; 512], 0), Err(Failed::Refused(1 | 108))));
}

// ---- a guest -----------------------------------------------------------------------------------------------------

/// Counts in memory, writes the count to sector 1 of each of so many disks through the BIOS, one after the other, waits
/// for the next interrupt (18 a second), begins again. An error stops it for good.
fn code(disks: u8) -> [u8; 39] {
    [
        0x31,
        0xc0, // xor ax, ax
        0x8e,
        0xc0, // mov es, ax
        0x8e,
        0xd8, // mov ds, ax
        0x66,
        0xff,
        0x06,
        0x00,
        0x80, // again: inc dword [0x8000]
        0xba,
        0x80,
        0x00, // mov dx, 0x80 (head 0, first disk)
        0xb8,
        0x01,
        0x03, // next: mov ax, 0x0301 (write one sector)
        0xb9,
        0x02,
        0x00, // mov cx, 2 (cylinder 0, sector 2, counted from 1)
        0xbb,
        0x00,
        0x80, // mov bx, 0x8000
        0xcd,
        0x13, // int 0x13
        0x73,
        0x02, // jnc +2
        0xeb,
        0xfe, // stop: jmp stop
        0x42, // inc dx
        0x80,
        0xfa,
        0x80 + disks, // cmp dl, 0x80 + disks
        0x72,
        0xeb, // jb next
        0xfb, // sti
        0xf4, // hlt
        0xeb,
        0xdf, // jmp again
    ]
}

/// Memory of the guest: no multiple of 256 KiB, of which QEMU 7.2 under TCG loses dirty pages.
const MEMORY: &str = "16400KiB";

/// Two nodes, and a guest called `tiny` on a volume called `data`, and maybe more, that has switched from `a` to `b` and
/// drains.
struct Guest {
    pair: Pair,
}

impl Guest {
    fn boot(disks: &[&str]) -> Guest {
        let pair = Pair::new();
        let code = code(disks.len() as u8);
        let mut disk = Client::image(SIZE / RECORD as u64, 77);
        disk[..1024].fill(0);
        disk[..code.len()].copy_from_slice(&code);
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        fs::write(pair.path("image"), disk).expect("written");
        let mut run = vec!["vm", "run", "tiny", "--memory", MEMORY, "--accel", "tcg"];
        for name in disks {
            pair.a.ask(&["volume", "import", name, "--file", &pair.path("image").display().to_string()]);
            run.extend(["--disk", name]);
        }
        pair.a.ask(&run);
        Guest { pair }
    }

    fn moving() -> Guest {
        Guest::moving_with(&["data"])
    }

    fn moving_with(disks: &[&str]) -> Guest {
        let guest = Guest::boot(disks);
        guest.advances(&guest.pair.a, 3);
        let ask = ["vm", "move", "tiny", "--to", "b", "--mode", "post", "--bandwidth", SLOW, "--detach"];
        guest.pair.a.ask(&ask);
        guest.pair.a.await_job("data", |job| job["progress"]["phase"] == "drain");
        guest.advances(&guest.pair.b, 3);
        guest
    }

    /// How often the guest has written, as a node's volume says; 0 while it cannot be read there.
    fn count(&self, house: &House) -> u32 {
        self.count_on(house, "data")
    }

    fn count_on(&self, house: &House, volume: &str) -> u32 {
        let mut sector = [0; 512];
        let read = Nbd::open(&house.path("run/nbd.sock"), volume).map(|mut nbd| nbd.read(&mut sector, 512));
        match read {
            Ok(Ok(())) => u32::from_le_bytes(sector[..4].try_into().expect("4 bytes")),
            _ => 0,
        }
    }

    /// Waits until the guest has written so many times more; returns the count.
    fn advances(&self, house: &House, times: u32) -> u32 {
        let from = self.count(house);
        let state = || format!("{from}, now {}; {}", self.count(house), house.look("/v1/vms/tiny"));
        await_some("writes of the guest", state, || Some(self.count(house)).filter(|now| *now >= from + times))
    }

    fn status(house: &House) -> String {
        house.look("/v1/vms/tiny")["status"].as_str().unwrap_or_default().to_string()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        for house in [&self.pair.a, &self.pair.b] {
            house.run(&["vm", "stop", "tiny", "--force"]);
            // Not even when no daemon runs may a QEMU outlive its test.
            let record = fs::read(house.path("run/vm/tiny/qemu.json")).unwrap_or_default();
            let pid = serde_json::from_slice::<Value>(&record).ok().and_then(|record| record["pid"].as_u64());
            let is_ours = |pid: &u64| {
                let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                String::from_utf8_lossy(&line).contains(&house.text("run"))
            };
            if let Some(pid) = pid.filter(is_ours) {
                let _ = Command::new("kill").args(["-KILL", &pid.to_string()]).status();
            }
        }
    }
}

#[test]
fn a_guest_comes_back_while_it_runs() {
    let guest = Guest::moving();
    let there = guest.pair.b.run(&["vm", "rollback", "tiny"]);
    assert!(there.code == 3 && there.err.contains("gnomon vm rollback tiny"), "{}", there.err);
    let disk = guest.pair.a.run(&["volume", "rollback", "data"]);
    assert!(disk.code == 3 && disk.err.contains("gnomon vm rollback tiny"), "{}", disk.err);
    let before = guest.count(&guest.pair.b);
    let done = guest.pair.a.ask(&["vm", "rollback", "tiny"]);
    assert_eq!((&done["state"], &done["result"]["guest_runs"]), (&Value::from("done"), &Value::from(true)), "{done}");
    let after = guest.count(&guest.pair.a);
    assert!(after >= before, "an acknowledged write is lost: {after} after {before}");
    guest.advances(&guest.pair.a, 5);
    assert_eq!((Guest::status(&guest.pair.a).as_str(), guest.pair.b.role("data").as_str()), ("running", ""));
    assert_eq!(Guest::status(&guest.pair.b), "", "its QEMU at the destination has ended");
    let again = ["vm", "move", "tiny", "--to", "b", "--mode", "post"];
    assert_eq!(guest.pair.a.ask(&again)["state"], "done", "and it can be moved again");
    guest.advances(&guest.pair.b, 3);
}

/// Both disks of a guest come back in one moment: neither lacks a write that the other has seen the end of.
#[test]
fn a_guest_of_two_disks_comes_back_with_both() {
    let guest = Guest::moving_with(&["data", "more"]);
    let (a, b) = (&guest.pair.a, &guest.pair.b);
    let one = a.run(&["volume", "rollback", "more"]);
    assert!(one.code == 3 && one.err.contains("gnomon vm rollback tiny"), "{}", one.err);
    let before = ["data", "more"].map(|volume| guest.count_on(b, volume));
    assert!(before[1] > 0, "it writes to both");
    let done = a.ask(&["vm", "rollback", "tiny"]);
    assert_eq!((&done["state"], &done["result"]["guest_runs"]), (&Value::from("done"), &Value::from(true)), "{done}");
    for (volume, before) in ["data", "more"].into_iter().zip(before) {
        assert_eq!((a.role(volume).as_str(), b.role(volume).as_str()), ("primary", ""), "{volume}");
        let after = guest.count_on(a, volume);
        assert!(after >= before, "{volume}: an acknowledged write is lost: {after} after {before}");
    }
    guest.advances(a, 3);
    a.run(&["vm", "stop", "tiny", "--force"]);
    let [first, second] = ["data", "more"].map(|volume| guest.count_on(a, volume));
    assert!(second <= first && first - second <= 1, "it writes {first} to one and then {second} to the other");
}

#[test]
fn a_guest_whose_host_died_is_started_from_its_disk() {
    let mut guest = Guest::moving();
    let pid = guest.pair.b.ask(&["vm", "show", "tiny"])["pid"].as_u64().expect("a process");
    guest.pair.b.crash();
    assert!(Command::new("kill").args(["-KILL", &pid.to_string()]).status().expect("kill").success());
    let done = guest.pair.a.ask(&["vm", "rollback", "tiny", "--i-have-fenced", "b"]);
    assert_eq!(
        (&done["state"], &done["result"]["guest_runs"]),
        (&Value::from("done"), &Value::from(false)),
        "{done}"
    );
    guest.pair.a.ask(&["vm", "run", "tiny", "--memory", MEMORY, "--disk", "data", "--accel", "tcg"]);
    guest.advances(&guest.pair.a, 3);
    returns_and_has_lost(&mut guest.pair);
    guest.advances(&guest.pair.a, 3);
}

/// A daemon dies while a guest comes back: the volume ends at the source with every write, and the guest runs there or
/// its user is told that it does not.
fn a_daemon_dies_while_a_guest_comes_back(seed: u64) {
    let mut guest = Guest::moving();
    let mut chance = Chance(seed);
    let (is_source, moment) = (chance.below(2) == 0, chance.below(4));
    let before = guest.count(&guest.pair.b);
    guest.pair.a.ask(&["vm", "rollback", "tiny", "--detach"]);
    let a = &guest.pair.a;
    let has_come = || match moment {
        0 => a.job_of("data")["progress"]["phase"] == "rollback",
        1 => Guest::status(a) == "inmigrate",
        2 => guest.pair.b.role("data") != "primary, draining",
        _ => a.role("data") == "primary",
    };
    await_some("the moment", || a.job_of("data").to_string(), || has_come().then_some(()));
    let victim = if is_source { &mut guest.pair.a } else { &mut guest.pair.b };
    victim.crash();
    victim.start();
    await_back(&guest.pair, seed);
    let after = guest.count(&guest.pair.a);
    assert!(after >= before, "seed {seed}: an acknowledged write is lost: {after} after {before}");
    let runs = Guest::status(&guest.pair.a) == "running";
    println!("seed {seed}: {} killed at {moment}, guest runs {runs}", if is_source { "a" } else { "b" });
    if !runs {
        guest.pair.a.run(&["vm", "stop", "tiny", "--force"]);
        guest.pair.a.ask(&["vm", "run", "tiny", "--memory", MEMORY, "--disk", "data", "--accel", "tcg"]);
    }
    guest.advances(&guest.pair.a, 3);
}

#[test]
fn daemons_die_while_a_guest_comes_back() {
    (1..9).for_each(a_daemon_dies_while_a_guest_comes_back);
}
