//! A VM moves with all of its disks.

use std::{fs, path::Path};

use serde_json::Value;

use crate::{
    client::Nbd,
    guest,
    house::{House, Pair, read_until, tool},
};

/// A VM called `two` at node a: it boots from one volume and counts in the other.
fn boot() -> Pair {
    let pair = Pair::new();
    fs::write(pair.path("boot.raw"), guest::disk(&guest::COUNTER)).expect("written");
    pair.a.ask(&["volume", "import", "boot", "--file", &pair.path("boot.raw").display().to_string()]);
    pair.a.ask(&["volume", "create", "count", "--size", "8M"]);
    let run = ["vm", "run", "two", "--memory", "16M", "--disk", "boot", "--disk", "count", "--accel", "tcg"];
    assert_eq!(pair.a.ask(&run)["status"], "running");
    works(&pair.a);
    pair
}

/// The guest goes on reading and writing at this node.
fn works(house: &House) {
    let shown = house.ask(&["vm", "show", "two"]);
    let console = shown["console"].as_str().expect("a console");
    let good = |said: &[u8]| said.iter().filter(|byte| **byte == b'G').count() >= 3;
    let said = read_until(Path::new(console), good);
    assert!(!said.contains(&b'E'), "a request failed: {}", String::from_utf8_lossy(&said));
}

/// How far the guest has counted, as its second disk says.
fn counted(house: &House) -> u16 {
    let mut bytes = [0; 2];
    let mut nbd = Nbd::open(&house.path("run/nbd.sock"), "count").expect("the volume is served");
    nbd.read(&mut bytes, 512).expect("read");
    u16::from_le_bytes(bytes)
}

#[test]
fn all_disks_of_a_vm_move_together_with_its_checkpoints() {
    moves_together("engine");
}

#[test]
fn all_disks_of_a_vm_move_together_with_qemus_own_migration() {
    moves_together("qemu");
}

/// Moves, by one of the ways that its memory can go.
fn moves_together(way: &str) {
    let pair = boot();
    let before = counted(&pair.a);
    let outlook = pair.a.ask(&["vm", "move", "two", "--to", "b", "--ram", way, "--dry-run"]);
    assert_eq!(outlook["ram"]["way"], way, "{outlook}");
    assert!(outlook["memory"].as_u64() >= Some(16 << 20), "{outlook}");
    let job = pair.a.ask(&["vm", "move", "two", "--to", "b", "--ram", way]);
    assert_eq!((&job["state"], &job["result"]["to"]), (&Value::from("done"), &Value::from("b")), "{job}");
    assert_eq!(job["result"]["ram"]["way"], way, "{job}");
    assert!(job["result"]["bytes_ram"].as_u64() > Some(0), "{job}");
    for disk in ["boot", "count"] {
        assert_eq!((pair.a.role(disk).as_str(), pair.b.role(disk).as_str()), ("released", "primary"), "{disk}");
    }
    works(&pair.b);
    let shown = pair.b.ask(&["vm", "show", "two"]);
    assert_eq!(shown["disks"], Value::from(vec!["boot", "count"]));
    // The counter is in the guest's memory: it has not begun again.
    assert!(counted(&pair.b).wrapping_sub(before) < 1 << 15, "{before} {}", counted(&pair.b));
    assert!(counted(&pair.b) != before, "what it writes arrives at its second disk");
    assert_eq!(pair.a.ask(&["vm", "ls"]), Value::Array(Vec::new()));
    assert_eq!(pair.b.run(&["vm", "stop", "two", "--force"]).code, 0);
    assert!(tool("nbdcopy", &[&pair.b.nbd("boot"), "-"]) == guest::disk(&guest::COUNTER), "the boot disk differs");
}

#[test]
fn a_vm_goes_as_it_says_that_it_would() {
    let pair = boot();
    let shown = pair.a.ask(&["vm", "show", "two"])["ram"].clone();
    assert!(shown["why"].as_str().is_some_and(|why| !why.is_empty()), "{shown}");
    let told = pair.a.ask(&["vm", "move", "two", "--to", "b", "--dry-run"])["ram"]["way"].clone();
    let job = pair.a.ask(&["vm", "move", "two", "--to", "b"]);
    assert_eq!((&told, &job["result"]["ram"]["way"]), (&shown["way"], &shown["way"]), "{job}");
    works(&pair.b);
    assert_eq!(pair.b.run(&["vm", "stop", "two", "--force"]).code, 0);
}

#[test]
fn a_vm_with_a_disk_that_cannot_go_stays_whole() {
    let pair = boot();
    pair.b.ask(&["volume", "create", "count", "--size", "1M"]);
    let ran = pair.a.run(&["vm", "move", "two", "--to", "b"]);
    assert!(ran.code == 3 && ran.err.contains("another volume"), "{}: {}", ran.code, ran.err);
    works(&pair.a);
    for (disk, there) in [("boot", ""), ("count", "primary")] {
        assert_eq!((pair.a.role(disk).as_str(), pair.b.role(disk).as_str()), ("primary", there), "{disk}");
    }
    assert_eq!(pair.b.ask(&["vm", "ls"]), Value::Array(Vec::new()), "no half of it is left there");
    assert_eq!(pair.b.run(&["volume", "rm", "count", "--yes"]).code, 0);
    assert_eq!(pair.a.ask(&["vm", "move", "two", "--to", "b", "--no-reverse"])["state"], "done", "later it goes");
    works(&pair.b);
    assert_eq!(pair.b.run(&["vm", "stop", "two", "--force"]).code, 0);
}
