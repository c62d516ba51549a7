//! Moves of a VM under `kill -9`: of either daemon, of both, and of the QEMU at either end.
//!
//! What is promised, and checked after every life: each number that the guest has printed as written is on the disk,
//! with the right content, at the one node that has the volume. (The guest does not flush: the death of a process
//! loses no page cache, so nothing that was acknowledged may be missing. A power cut may take what was not flushed.)
//! The guest prints its numbers in order, so what it printed at both hosts in a row has no gap and no number twice:
//! it never ran at both. A guest that goes by checkpoints is loaded at the destination before anything is decided: no death
//! of a daemon loses it, nor that of the QEMU at the source once it has been given. One that goes by QEMU's own migration
//! may be caught between its hosts by a crash in the moment of the switch and lose its memory, and the move says so; its
//! disk is as whole as any other.

use std::{fs, process::Command, time::Duration};

use serde_json::Value;

use crate::{
    client::{Chance, Client, Nbd, RECORD},
    guest::{SECTORS, WRITER, WRITER_BEGINS},
    house::{House, Pair, await_some},
};

/// Bytes of the volume, all of them allocated: what the guest writes and as much again.
const SIZE: u64 = 18 << 20;
/// The rate until something dies: a guest's memory takes half a second, its disk 20.
const SLOW: &str = "8mbit";
/// Memory of the guest: no multiple of 256 KiB, of which QEMU 7.2 under TCG loses dirty pages.
const MEMORY: &str = "16400KiB";
const RUN: [&str; 9] = ["vm", "run", "tiny", "--memory", MEMORY, "--disk", "data", "--accel", "tcg"];

/// Who dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Source,
    Destination,
    /// First the destination, then the source; and back in that order.
    Both,
    /// The QEMU at the source.
    QemuHere,
    /// The QEMU at the destination.
    QemuThere,
}

/// What has been seen of the move when it happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    /// The move has been asked for.
    Asked,
    /// So many thousandths are at the destination.
    Priming(u64),
    /// A QEMU at the destination takes in memory.
    Memory,
    /// The guest has just been made to stand at the source.
    Standing,
    /// So many milliseconds after memory was first seen on its way: somewhere about the switch.
    InTheSwitch(u64),
    /// The source has just been fenced.
    Fenced,
    /// The guest has written at the destination.
    Arrived,
    /// So many thousandths are at the destination, where the guest is.
    Draining(u64),
    /// The destination has just let the source go.
    Released,
}

/// How a life ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Volume and guest are at the source, as if there had been no move.
    Stayed,
    /// Both are at the destination.
    Moved,
    /// The volume is at the source, the guest has ended there, and its user is told how.
    EndedHere,
    /// The volume is at the destination, the guest has ended there, and its user is told how.
    EndedThere,
    /// The volume is at the destination, the guest was caught between the two, and its user is told.
    Caught,
}

/// One move with one death in it.
struct Life {
    pair: Pair,
    image: Vec<u8>,
    seed: u64,
    /// How the guest's memory goes.
    ram: &'static str,
}

impl Life {
    fn begin(seed: u64, ram: &'static str) -> Life {
        let pair = Pair::new();
        let mut image = Client::image(SIZE / RECORD as u64, seed);
        image[..512].fill(0);
        image[..WRITER.len()].copy_from_slice(&WRITER);
        image[510..512].copy_from_slice(&[0x55, 0xaa]);
        fs::write(pair.path("image"), &image).expect("an image");
        pair.a.ask(&["volume", "import", "data", "--file", &pair.path("image").display().to_string()]);
        pair.a.ask(&RUN);
        let life = Life { pair, image, seed, ram };
        life.writes_more(&life.pair.a);
        life
    }

    /// Moves, kills, and waits for the end.
    fn live(&mut self, victim: Victim, moment: Moment) -> End {
        let mode = if matches!(moment, Moment::Asked | Moment::Priming(_)) { "pre" } else { "post" };
        let how = ["--ram", self.ram, "--mode", mode, "--bandwidth", SLOW, "--detach"];
        self.pair.a.ask(&[&["vm", "move", "tiny", "--to", "b"], &how[..]].concat());
        if moment == Moment::Released {
            self.hurry();
        }
        self.await_moment(moment);
        self.kill(victim, moment);
        let end = self.await_end();
        println!("seed {}: {victim:?} killed at {moment:?}: {end:?}, {} writes", self.seed, self.said().len() / 9);
        end
    }

    fn await_moment(&self, moment: Moment) {
        await_some(&format!("{moment:?}"), || self.state(), || self.has_come(moment).then_some(()));
    }

    fn has_come(&self, moment: Moment) -> bool {
        let (a, b) = (&self.pair.a, &self.pair.b);
        let is_in = |phase: &str, permille: u64| {
            let progress = &a.job_of("data")["progress"];
            let bytes = |key: &str| progress[key].as_u64().unwrap_or(0);
            progress["phase"] == phase && bytes("done_bytes") * 1000 >= bytes("total_bytes") * permille
        };
        let is_given = || matches!(a.role("data").as_str(), "fenced" | "released");
        match moment {
            Moment::Asked => true,
            Moment::Priming(permille) => is_in("prime", permille),
            // Either may be over before it is looked for.
            Moment::Memory => {
                // It is told of as landing before it has a QEMU.
                matches!(status(b).as_str(), "inmigrate" | "landing") && !qemus(b).is_empty() || is_given()
            }
            Moment::Standing => matches!(status(a).as_str(), "finish-migrate" | "postmigrate") || is_given(),
            Moment::InTheSwitch(millis) => {
                let memory = self.has_come(Moment::Memory);
                if memory {
                    std::thread::sleep(Duration::from_millis(millis));
                }
                memory
            }
            Moment::Fenced => is_given(),
            Moment::Arrived => !console(b).is_empty(),
            Moment::Draining(permille) => is_in("drain", permille),
            Moment::Released => b.role("data") == "primary",
        }
    }

    fn kill(&mut self, victim: Victim, moment: Moment) {
        let may_be_gone = moment == Moment::Fenced;
        let mut dead: Vec<&mut House> = match victim {
            Victim::Source => vec![&mut self.pair.a],
            Victim::Destination => vec![&mut self.pair.b],
            Victim::Both => vec![&mut self.pair.b, &mut self.pair.a],
            // Once the guest runs at the destination, this one is ended.
            Victim::QemuHere => return kill_qemu(&self.pair.a, may_be_gone),
            Victim::QemuThere => return kill_qemu(&self.pair.b, false),
        };
        dead.iter_mut().for_each(|house| house.crash());
        dead.iter_mut().for_each(|house| house.start());
    }

    /// What is left of the move need not be slow.
    fn hurry(&self) {
        // A move that is over has no rate.
        self.pair.a.run(&["volume", "bandwidth", "data", "none"]);
    }

    /// Waits until nothing is under way any more.
    fn await_end(&self) -> End {
        self.hurry();
        await_some("an end", || self.state(), || self.end())
    }

    fn end(&self) -> Option<End> {
        let (a, b) = (&self.pair.a, &self.pair.b);
        let job = a.job_of("data");
        if job["state"] == "running" {
            return None;
        }
        match (a.role("data").as_str(), b.role("data").as_str(), status(a).as_str(), status(b).as_str()) {
            ("primary", "", "running", "") => Some(End::Stayed),
            ("primary", "", "exited", "") => Some(End::EndedHere),
            ("released", "primary", "", "running") => Some(End::Moved),
            ("released", "primary", "", there) => match job["result"]["guest_lost"] == true {
                true => Some(End::Caught),
                false => (there == "exited").then_some(End::EndedThere),
            },
            _ => None,
        }
    }

    /// Insists on everything that is promised, whatever the end was.
    fn verify(&self, end: End) {
        let (a, b) = (&self.pair.a, &self.pair.b);
        let node = if matches!(end, End::Stayed | End::EndedHere) { a } else { b };
        let runs = matches!(end, End::Stayed | End::Moved);
        for house in [a, b] {
            let running = runs && std::ptr::eq(house, node);
            assert_eq!(qemus(house).len(), usize::from(running), "QEMUs at {}: {}", house.text(""), self.state());
        }
        if runs {
            self.writes_more(node);
            assert_eq!(node.run(&["vm", "stop", "tiny", "--force"]).code, 0);
        } else if end != End::Caught {
            let shown = node.ask(&["vm", "show", "tiny"]);
            assert!(shown["exit"].as_str().is_some_and(|exit| !exit.is_empty()), "{shown}");
        }
        self.verify_disk(node);
        if !runs {
            // It starts from its disk, as after a power cut.
            node.ask(&RUN);
            self.writes_more(node);
            assert_eq!(node.run(&["vm", "stop", "tiny", "--force"]).code, 0);
        }
    }

    /// Everything the guest said is on the disk of `node`, and the rest of the disk is as it was.
    fn verify_disk(&self, node: &House) {
        let acknowledged = self.acknowledged();
        let mut disk = vec![0; SIZE as usize];
        let mut nbd = Nbd::open(&node.path("run/nbd.sock"), "data").expect("the volume is served");
        for (index, part) in disk.chunks_mut(1 << 20).enumerate() {
            nbd.read(part, (index as u64) << 20).expect("read");
        }
        // One more than it said may have been written, and part of what it wrote is written over.
        let last = (acknowledged.saturating_sub(u64::from(SECTORS)) + 1)..=acknowledged + 1;
        let mut expected = self.image.clone();
        for number in last {
            let at = (WRITER_BEGINS + number % u64::from(SECTORS)) as usize * 512;
            let sector = (number as u32).to_le_bytes().repeat(128);
            let is_it = disk[at..at + 512] == sector;
            assert!(is_it || number > acknowledged, "write {number} of {acknowledged} is lost; {}", self.state());
            if is_it {
                expected[at..at + 512].copy_from_slice(&sector);
            }
        }
        if let Some(at) = disk.iter().zip(&expected).position(|(one, other)| one != other) {
            panic!("byte {at} is {:#x} and must be {:#x}; {}", disk[at], expected[at], self.state());
        }
    }

    /// What the guest said at both hosts, in the order it must have been: a line broken off at the one goes on at the
    /// other.
    fn said(&self) -> Vec<u8> {
        [console(&self.pair.a), console(&self.pair.b)].concat()
    }

    /// The last number the guest said. It said all before it, each once and in order.
    fn acknowledged(&self) -> u64 {
        let said = self.said();
        let whole = said.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let text = String::from_utf8_lossy(&said[..whole]);
        for (line, expected) in text.lines().zip(1u64..) {
            let digits = line.bytes().map(|letter| u64::from(letter.wrapping_sub(b'a') % 16));
            let number = digits.fold(0, |number, digit| number << 4 | digit);
            assert_eq!((line.len(), number), (8, expected), "the guest said '{line}' in line {expected}");
        }
        text.lines().count() as u64
    }

    /// Waits until the guest says that it has written more, at this node.
    fn writes_more(&self, node: &House) {
        let from = console(node).len();
        await_some("writes of the guest", || self.state(), || (console(node).len() > from + 90).then_some(()));
    }

    fn state(&self) -> String {
        let show = |house: &House| format!("{}, {}", house.look("/v1/volumes/data"), house.look("/v1/vms/tiny"));
        let (a, b) = (&self.pair.a, &self.pair.b);
        format!("seed {}: a {}; b {}; job {}", self.seed, show(a), show(b), a.job_of("data"))
    }
}

/// QEMU's word for the state of the guest at a node; empty when none is there.
fn status(house: &House) -> String {
    house.look("/v1/vms/tiny")["status"].as_str().unwrap_or_default().to_string()
}

/// What the guest has said at a node, of which QEMU keeps a file.
fn console(house: &House) -> Vec<u8> {
    fs::read(house.path("run/vm/tiny/console.log")).unwrap_or_default()
}

/// The QEMUs of a node, whether or not its daemon knows them.
fn qemus(house: &House) -> Vec<String> {
    let ours = house.text("run/vm/tiny");
    let processes = fs::read_dir("/proc").expect("processes").flatten();
    let pids = processes.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| {
        let line = fs::read(format!("/proc/{name}/cmdline")).unwrap_or_default();
        line.starts_with(b"/") && String::from_utf8_lossy(&line).contains(&ours)
    });
    pids.collect()
}

fn kill_qemu(house: &House, may_be_gone: bool) {
    let pids = qemus(house);
    assert!(pids.len() == 1 || may_be_gone, "one QEMU to kill: {pids:?}");
    for pid in pids {
        let killed = Command::new("kill").args(["-KILL", &pid]).status().expect("kill").success();
        assert!(killed || may_be_gone, "process {pid} is there");
    }
}

/// Lives one life with a guest that goes by checkpoints, and insists that it ends in one of these ways.
fn life(seed: u64, victim: Victim, moment: Moment, ends: &[End]) -> Value {
    life_by("engine", seed, victim, moment, ends)
}

fn life_by(ram: &'static str, seed: u64, victim: Victim, moment: Moment, ends: &[End]) -> Value {
    let mut life = Life::begin(seed, ram);
    let end = life.live(victim, moment);
    assert!(ends.contains(&end), "{end:?} is none of {ends:?}; {}", life.state());
    let job = life.pair.a.job_of("data");
    life.verify(end);
    job
}

/// A daemon dies at each of these moments. None loses the guest.
fn a_daemon_dies(first: u64, victim: Victim, moments: &[Moment]) {
    for (seed, moment) in (first..).zip(moments) {
        life(seed, victim, *moment, &[End::Moved]);
    }
}

/// The same with QEMU's own migration, which has a moment in which the guest is nowhere.
fn a_daemon_dies_in_qemus_own_migration(first: u64, victim: Victim) {
    for (seed, moment) in (first..).zip([Moment::Memory, Moment::Standing, Moment::Fenced]) {
        life_by("qemu", seed, victim, moment, &[End::Moved, End::Caught]);
    }
}

fn before_the_switch(seed: u64) -> [Moment; 4] {
    [Moment::Asked, Moment::Priming(20 + Chance(seed).below(100)), Moment::Memory, Moment::Standing]
}

fn after_the_decision(seed: u64) -> [Moment; 4] {
    [Moment::Fenced, Moment::Arrived, Moment::Draining(Chance(seed).below(100)), Moment::Released]
}

#[test]
fn the_source_dies_before_a_vm_switches() {
    a_daemon_dies(1000, Victim::Source, &before_the_switch(1000));
}

#[test]
fn the_source_dies_after_a_vm_switched() {
    a_daemon_dies(1100, Victim::Source, &after_the_decision(1100));
}

#[test]
fn the_destination_dies_before_a_vm_switches() {
    a_daemon_dies(2000, Victim::Destination, &before_the_switch(2000));
}

#[test]
fn the_destination_dies_after_a_vm_switched() {
    a_daemon_dies(2100, Victim::Destination, &after_the_decision(2100));
}

#[test]
fn both_die_while_a_vm_moves() {
    let [_, priming, memory, _] = before_the_switch(3000);
    let [fenced, _, draining, _] = after_the_decision(3000);
    a_daemon_dies(3000, Victim::Both, &[priming, memory, fenced, draining]);
}

#[test]
fn the_source_dies_while_qemu_migrates_a_vm() {
    a_daemon_dies_in_qemus_own_migration(1200, Victim::Source);
}

#[test]
fn the_destination_dies_while_qemu_migrates_a_vm() {
    a_daemon_dies_in_qemus_own_migration(2200, Victim::Destination);
}

/// A guest that goes by checkpoints is not lost by any death of a daemon, at whatever moment of the switch.
#[test]
fn whoever_dies_in_the_switch_the_guest_goes_on() {
    for (seed, victim) in (7000..).zip([Victim::Source, Victim::Destination, Victim::Both].repeat(2)) {
        let moment = Moment::InTheSwitch(Chance(seed).below(400));
        life(seed, victim, moment, &[End::Moved]);
    }
}

#[test]
fn a_guest_whose_qemu_dies_before_the_switch_is_not_moved() {
    for (seed, moment) in (4000..).zip([Moment::Asked, Moment::Priming(50), Moment::Memory]) {
        let job = life(seed, Victim::QemuHere, moment, &[End::EndedHere]);
        assert_eq!(job["state"], "failed", "{job}");
        assert!(job["error"]["message"].as_str().is_some_and(|why| why.contains("tiny")), "{job}");
    }
}

#[test]
fn a_guest_that_was_given_does_not_need_its_old_qemu() {
    for seed in 4100..4102 {
        life(seed, Victim::QemuHere, Moment::Fenced, &[End::Moved]);
    }
}

#[test]
fn a_guest_whose_qemu_dies_in_its_own_switch_is_there_or_its_user_is_told() {
    life_by("qemu", 4200, Victim::QemuHere, Moment::Fenced, &[End::Moved, End::Caught]);
}

#[test]
fn a_guest_whose_new_qemu_dies_before_the_switch_runs_on() {
    for seed in 5000..5002 {
        let job = life(seed, Victim::QemuThere, Moment::Memory, &[End::Stayed, End::Moved]);
        assert!(job["state"] == "done" || job["error"]["message"].is_string(), "{job}");
    }
}

#[test]
fn the_disk_of_a_guest_whose_new_qemu_dies_after_the_switch_goes_on_coming() {
    for (seed, moment) in (6000..).zip([Moment::Arrived, Moment::Draining(50), Moment::Released]) {
        // That it has arrived is told its source a moment later.
        let ends: &[End] =
            if moment == Moment::Arrived { &[End::EndedThere, End::Caught] } else { &[End::EndedThere] };
        let job = life(seed, Victim::QemuThere, moment, ends);
        assert_eq!(job["state"], "done", "{job}");
    }
}
