//! A guest and its shadow on another node: protected, handed over, gone on with after its host died.
//!
//! The guest counts in its memory and says each count. Wherever it runs, it goes on with the next one, or, after its host
//! died, from a count that is no older than the last checkpoint that its shadow had. A guest with disks counts on one of
//! them too, and says `E` as soon as disk and memory are not of the same moment.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use gnomon_store::{RedbStore, Store};
use serde_json::Value;

use crate::{
    client::{Chance, Failed, Nbd},
    guest,
    house::{House, Pair, await_some, tool},
};

/// Two nodes, and on the first one a VM that counts.
pub struct Sheltered {
    pub pair: Pair,
}

impl Sheltered {
    fn boot() -> Sheltered {
        let pair = Pair::new();
        let kernel = pair.path("ticker");
        fs::write(&kernel, guest::ticker()).expect("written");
        let kernel = kernel.display().to_string();
        let run = ["vm", "run", "tiny", "--memory", "16M", "--kernel", &kernel, "--accel", "tcg"];
        assert_eq!(pair.a.ask(&run)["status"], "running");
        let sheltered = Sheltered { pair };
        sheltered.await_count(&sheltered.pair.a, 1);
        sheltered
    }

    /// With two disks.
    fn boot_with_disks() -> Sheltered {
        Sheltered::boot_at(Pair::new())
    }

    /// With two disks, on nodes that run.
    pub fn boot_at(pair: Pair) -> Sheltered {
        fs::write(pair.path("boot.raw"), guest::comparer()).expect("written");
        pair.a.ask(&["volume", "import", "boot", "--file", &pair.path("boot.raw").display().to_string()]);
        pair.a.ask(&["volume", "create", "data", "--size", "1M"]);
        let run = ["vm", "run", "tiny", "--memory", "16M", "--disk", "boot", "--disk", "data", "--accel", "tcg"];
        assert_eq!(pair.a.ask(&run)["status"], "running");
        let sheltered = Sheltered { pair };
        sheltered.await_count(&sheltered.pair.a, 1);
        sheltered
    }

    fn protect(&self) -> Value {
        self.pair.a.ask(&["vm", "protect", "tiny", "--on", "b", "--interval", "50ms"])
    }

    pub fn kill_primary(&mut self) {
        let pid = show(&self.pair.a)["pid"].as_u64().expect("a process").to_string();
        self.pair.a.crash();
        tool("kill", &["-KILL", &pid]);
    }

    /// Waits until the guest has come to a count on a node.
    pub fn await_count(&self, house: &House, count: u16) -> u16 {
        let newest = || counts(house).last().copied().filter(|newest| *newest >= count);
        await_some(&format!("count {count}"), || format!("{:?}", counts(house).last()), newest)
    }

    /// A count that the guest had come to on `a`, once `b` has a checkpoint that was begun later.
    pub fn await_sealed_count(&self) -> u16 {
        let newest = counts(&self.pair.a).last().copied().expect("it counts");
        let sealed = await_some("a checkpoint", || show(&self.pair.b).to_string(), || checkpoint(&self.pair.b));
        // Two are on their way at most, so the third one from here was begun after the count was seen.
        let later = || checkpoint(&self.pair.b).filter(|now| *now >= sealed + 3);
        await_some("later checkpoints", || show(&self.pair.b).to_string(), later);
        newest
    }

    /// The guest goes on on `b`, from a count that is one of these.
    pub fn goes_on_from(&self, least: u16, most: u16) {
        let first = await_some("a count", String::new, || counts(&self.pair.b).first().copied());
        assert!((least..=most).contains(&first), "it went on with {first}, not within {least} and {most}");
        self.await_count(&self.pair.b, first + 5);
        let said = counts(&self.pair.b);
        assert!(said.is_sorted_by(|one, next| next - one == 1), "{said:?}");
        assert!(!console(&self.pair.b).contains(&b'E'), "disk and memory are of two moments");
    }
}

fn console(house: &House) -> Vec<u8> {
    fs::read(house.path("run/vm/tiny/console.log")).unwrap_or_default()
}

pub fn show(house: &House) -> Value {
    house.look("/v1/vms/tiny")
}

fn checkpoint(house: &House) -> Option<u64> {
    show(house)["shadow"]["checkpoint"].as_u64()
}

pub fn counts(house: &House) -> Vec<u16> {
    guest::ticks(&console(house))
}

pub fn state(house: &House) -> String {
    show(house)["protection"]["state"].as_str().unwrap_or_default().to_string()
}

pub fn await_state(house: &House, wanted: &str) {
    await_some(wanted, || show(house).to_string(), || (state(house) == wanted).then_some(()));
}

pub fn events(house: &House) -> Vec<(String, String)> {
    let events = house.ask(&["vm", "events", "tiny"]);
    let word = |event: &Value, key: &str| event[key].as_str().unwrap_or_default().to_string();
    events.as_array().expect("a list").iter().map(|event| (word(event, "what"), word(event, "status"))).collect()
}

pub fn refused(house: &House, args: &[&str], why: &str) {
    let ran = house.run(args);
    assert!(ran.code == 3 && ran.err.contains(why), "{args:?} ended with {}: {}", ran.code, ran.err);
}

#[test]
fn a_guest_goes_on_at_its_shadow_after_its_host_died() {
    let mut sheltered = Sheltered::boot();
    let job = sheltered.protect();
    assert_eq!((&job["state"], &job["result"]["to"]), (&Value::from("done"), &Value::from("b")), "{job}");
    // The first one is as old as the copy of everything took.
    assert!(job["result"]["checkpoint"].as_u64() >= Some(2), "{job}");
    await_state(&sheltered.pair.a, "protected");
    let here = show(&sheltered.pair.a)["protection"].clone();
    assert!(here["lag_ms"].as_f64().is_some_and(|lag| lag > 0.0) && here["tracker"] != "", "{here}");
    let there = show(&sheltered.pair.b);
    assert_eq!((&there["status"], &there["shadow"]["of"]), (&Value::from("shadow"), &Value::from("a")), "{there}");

    let (a, b) = (&sheltered.pair.a, &sheltered.pair.b);
    refused(b, &["vm", "stop", "tiny"], "only its shadow is here");
    refused(b, &["vm", "run", "tiny", "--memory", "16M", "--kernel", "x"], "only its shadow is here");
    refused(a, &["vm", "stop", "tiny"], "protected by node b");
    refused(b, &["vm", "failover", "tiny"], "a cut cable");
    refused(b, &["vm", "failover", "tiny", "--i-have-fenced", "a"], "not fenced");

    let count = sheltered.await_sealed_count();
    sheltered.kill_primary();
    let last = counts(&sheltered.pair.a).last().copied().expect("it counted");
    let told = sheltered.pair.b.ask(&["vm", "failover", "tiny", "--i-have-fenced", "a"]);
    assert_eq!(told["result"]["from"], "a", "{told}");
    sheltered.goes_on_from(count, last + 1);
    assert_eq!(show(&sheltered.pair.b)["status"], "running");
    assert_eq!(events(&sheltered.pair.b), [("failover".to_string(), "done".to_string())]);

    sheltered.pair.a.start();
    let lost = show(&sheltered.pair.a);
    let said = lost["exit"].as_str().unwrap_or_default();
    assert!(said.contains("node b took over at epoch 2"), "{lost}");
    assert_eq!(sheltered.pair.a.qemus(), Vec::<u64>::new());
    assert_eq!(sheltered.pair.a.ask(&["vm", "stop", "tiny"])["name"], "tiny");
}

/// Its disks are of the same moment as its memory, whenever its host dies.
#[test]
fn disks_and_memory_go_on_from_one_moment() {
    for _ in 0..3 {
        let mut sheltered = Sheltered::boot_with_disks();
        sheltered.protect();
        await_state(&sheltered.pair.a, "protected");
        let count = sheltered.await_sealed_count();
        sheltered.kill_primary();
        let last = counts(&sheltered.pair.a).last().copied().expect("it counted");
        sheltered.pair.b.ask(&["vm", "failover", "tiny", "--i-have-fenced", "a"]);
        sheltered.goes_on_from(count, last + 1);
        assert_eq!(
            (sheltered.pair.b.role("data").as_str(), sheltered.pair.b.role("boot").as_str()),
            ("primary", "primary")
        );
        sheltered.pair.a.start();
        assert_eq!(sheltered.pair.a.role("data"), "lost");
        let mut volume = Nbd::open(&sheltered.pair.a.path("run/nbd.sock"), "data").expect("it is served");
        assert!(
            matches!(volume.write(&[1; 512], 512), Err(Failed::Refused(_))),
            "nothing is written at a lost primary"
        );
    }
}

#[test]
fn a_guest_is_handed_over_and_back_without_a_missed_count() {
    handed_over(&Sheltered::boot());
    handed_over(&Sheltered::boot_with_disks());
}

fn handed_over(sheltered: &Sheltered) {
    let (a, b) = (&sheltered.pair.a, &sheltered.pair.b);
    refused(a, &["vm", "switchover", "tiny"], "is not protected");
    let mut from = a;
    for to in [b, a, b] {
        let name = if std::ptr::eq(to, b) { "b" } else { "a" };
        let before = fs::read(to.path("run/vm/tiny/console.log")).unwrap_or_default().len();
        from.ask(&["vm", "protect", "tiny", "--on", name, "--interval", "50ms"]);
        await_state(from, "protected");
        let told = from.ask(&["vm", "switchover", "tiny"]);
        assert!(told["result"]["gap_ms"].as_f64().is_some_and(|gap| gap > 0.0), "{told}");
        println!("{told}");
        assert_eq!((from.qemus().len(), to.qemus().len()), (0, 1));
        assert_eq!(from.run(&["vm", "show", "tiny"]).code, 1, "it is gone here");
        let said = || guest::ticks(&fs::read(to.path("run/vm/tiny/console.log")).unwrap_or_default()[before..]);
        await_some("five more counts", String::new, || (said().len() >= 5).then_some(()));
        let last = *counts(from).last().expect("it counted");
        assert_eq!(said().first(), Some(&(last + 1)), "no count is missed, and none is said twice");
        assert!(!console(to).contains(&b'E'), "disk and memory are of two moments");
        from = to;
    }
    let told: Vec<_> = events(a).into_iter().filter(|(what, _)| what == "switchover").collect();
    assert_eq!(told.len(), 3, "{told:?}");
    assert!(told.iter().all(|(_, status)| status == "done"), "{told:?}");
}

/// A shadow is there once it has the first copy, whatever the job of `vm protect` still waits for.
#[test]
fn a_guest_is_handed_over_as_soon_as_its_shadow_has_it() {
    let sheltered = Sheltered::boot();
    let (a, b) = (&sheltered.pair.a, &sheltered.pair.b);
    let job = a.ask(&["vm", "protect", "tiny", "--on", "b", "--interval", "2s", "--detach"]);
    await_state(a, "protected");
    a.ask(&["vm", "switchover", "tiny"]);
    assert_eq!((a.qemus().len(), b.qemus().len()), (0, 1));
    let job = a.look(&format!("/v1/jobs/{}", job["id"].as_str().expect("an id")));
    assert_eq!(job["state"], "done", "{job}");
}

#[test]
fn a_shadow_that_is_lost_comes_back() {
    let mut sheltered = Sheltered::boot_with_disks();
    sheltered.protect();
    await_state(&sheltered.pair.a, "protected");
    sheltered.pair.b.crash();
    await_state(&sheltered.pair.a, "lost");
    let lost = show(&sheltered.pair.a)["protection"].clone();
    assert!(lost["why"].is_string() && lost["since"].is_number(), "{lost}");
    let count = counts(&sheltered.pair.a).last().copied().expect("it counts");
    sheltered.await_count(&sheltered.pair.a, count + 3);
    sheltered.pair.b.start();
    await_state(&sheltered.pair.a, "protected");
    assert_eq!(sheltered.pair.b.qemus().len(), 1, "the QEMU that waited before is gone");
    // The event follows the state.
    let told = || events(&sheltered.pair.a).into_iter().map(|(what, _)| what).collect::<Vec<_>>();
    let all = || (told() == ["protect", "shadow-lost", "protect"]).then_some(());
    await_some("its events", || format!("{:?}", told()), all);

    let count = sheltered.await_sealed_count();
    sheltered.kill_primary();
    let last = counts(&sheltered.pair.a).last().copied().expect("it counted");
    sheltered.pair.b.ask(&["vm", "failover", "tiny", "--i-have-fenced", "a"]);
    sheltered.goes_on_from(count, last + 1);
}

#[test]
fn a_primary_whose_daemon_was_killed_goes_on_protecting() {
    let mut sheltered = Sheltered::boot();
    sheltered.protect();
    for _ in 0..3 {
        await_state(&sheltered.pair.a, "protected");
        sheltered.pair.a.crash();
        let count = counts(&sheltered.pair.a).last().copied().expect("it counts");
        sheltered.pair.a.start();
        // Wherever in a checkpoint its daemon was killed, the guest runs on.
        sheltered.await_count(&sheltered.pair.a, count + 3);
    }
    await_state(&sheltered.pair.a, "protected");
    let said = counts(&sheltered.pair.a);
    assert!(said.is_sorted_by(|one, next| next - one == 1), "{said:?}");
}

/// What its checkpoints are made of is noted by the way: nobody looks at its page tables meanwhile.
#[test]
fn where_a_protected_guest_writes_is_known_from_its_checkpoints() {
    let sheltered = Sheltered::boot();
    let a = &sheltered.pair.a;
    a.ask(&["group", "create", "shop", "--budget", "64M", "--max-age", "1h"]);
    a.ask(&["group", "add", "shop", "tiny"]);
    sheltered.protect();
    let memory = || a.look("/v1/vms/tiny/memory");
    let noted = || {
        let heat = &memory()["heat"];
        (heat["from"] == "writes" && heat["hot"].as_u64()? > 0).then_some(())
    };
    await_some("its writes to be noted", || memory().to_string(), noted);
    sheltered.await_sealed_count();
    a.ask(&["vm", "unprotect", "tiny"]);
    let looked = || (memory()["heat"]["from"] == "page tables").then_some(());
    await_some("nobody to carry it", || memory().to_string(), looked);
}

#[test]
fn a_guest_that_is_not_protected_any_more_leaves_nothing_behind() {
    let mut sheltered = Sheltered::boot_with_disks();
    sheltered.protect();
    await_state(&sheltered.pair.a, "protected");
    sheltered.pair.a.ask(&["vm", "unprotect", "tiny"]);
    assert_eq!(show(&sheltered.pair.a)["protection"], Value::Null);
    assert_eq!(sheltered.pair.b.qemus(), Vec::<u64>::new());
    assert_eq!(sheltered.pair.b.look("/v1/vms"), Value::from(Vec::<Value>::new()));
    assert!(!sheltered.pair.b.path("run/vm/tiny").exists(), "its folder");
    let files = fs::read_dir(sheltered.pair.b.path("state/volumes")).expect("a folder").count();
    assert_eq!((files, sheltered.pair.b.look("/v1/volumes")), (0, Value::from(Vec::<Value>::new())));
    assert_eq!(sheltered.pair.a.role("data"), "primary");
    refused(&sheltered.pair.a, &["vm", "unprotect", "tiny"], "is not protected");

    // A shadow's node that was away learns it when it returns.
    sheltered.protect();
    sheltered.pair.b.crash();
    sheltered.pair.a.ask(&["vm", "unprotect", "tiny"]);
    sheltered.pair.b.start();
    let gone = || (sheltered.pair.b.look("/v1/vms") == Value::from(Vec::<Value>::new())).then_some(());
    await_some("the shadow to go", || sheltered.pair.b.look("/v1/vms").to_string(), gone);
    assert_eq!(sheltered.pair.b.qemus(), Vec::<u64>::new());
}

#[test]
fn without_a_shared_store_nothing_fails_over_by_itself() {
    let sheltered = Sheltered::boot();
    let a = &sheltered.pair.a;
    refused(a, &["vm", "protect", "tiny", "--on", "b", "--auto-failover"], "cut cable");
    let told = a.run(&["vm", "protect", "tiny", "--on", "b", "--auto-failover"]).err;
    assert!(told.contains("--store etcd://") && told.contains("--i-have-fenced"), "{told}");
    assert_eq!(show(a)["protection"], Value::Null);
}

#[test]
fn what_cannot_be_protected_is_refused_at_once() {
    let sheltered = Sheltered::boot();
    let a = &sheltered.pair.a;
    refused(a, &["vm", "protect", "tiny", "--on", "a"], "this very node");
    assert_eq!(a.run(&["vm", "protect", "tiny", "--on", "nowhere"]).code, 1);
    assert_eq!(a.run(&["vm", "protect", "tiny", "--on", "b", "--interval", "1ms"]).code, 2);
    sheltered.protect();
    refused(a, &["vm", "protect", "tiny", "--on", "b"], "protected by node b");
    refused(a, &["vm", "update", "tiny", "--qemu", "/nowhere"], "protected by node b");
    refused(a, &["vm", "failover", "tiny", "--i-have-fenced", "b"], "this node's own");
}

/// A daemon dies at any moment of a switchover: when it is back, the guest runs at one of the nodes, and goes on counting.
#[test]
fn a_daemon_that_dies_in_a_switchover_leaves_one_guest() {
    let mut chance = Chance(83);
    for seed in 0..8 {
        let mut sheltered = Sheltered::boot_with_disks();
        sheltered.protect();
        await_state(&sheltered.pair.a, "protected");
        let mut switch = sheltered.pair.a.command(&["vm", "switchover", "tiny"]).spawn().expect("runs");
        let until = Instant::now() + Duration::from_micros(chance.below(80_000));
        while Instant::now() < until {
            thread::yield_now();
        }
        let dying = if seed % 2 == 0 { &mut sheltered.pair.a } else { &mut sheltered.pair.b };
        dying.crash();
        switch.wait().expect("ended");
        dying.start();
        let runs = |house: &House| show(house)["status"] == "running";
        let (a, b) = (&sheltered.pair.a, &sheltered.pair.b);
        let told = || format!("seed {seed}: {} {}", show(a), show(b));
        // While it is not known at `a` yet, what is there stands, or its record is about to go.
        let settled = || match (runs(a), runs(b)) {
            (true, false) => (state(a) == "protected").then_some(a),
            (false, true) => a.qemus().is_empty().then_some(b),
            _ => None,
        };
        let house = await_some("one guest that runs", told, settled);
        let count = await_some("a count", told, || counts(house).last().copied());
        sheltered.await_count(house, count + 3);
        assert!(!console(house).contains(&b'E'), "seed {seed}: disk and memory are of two moments");
    }
}

/// Found by these deaths: the new host's daemon dies when the guest is its VM, and its shadow not forgotten yet.
#[test]
fn a_guest_that_was_taken_in_is_let_be_though_its_shadow_is_on_record() {
    let mut sheltered = Sheltered::boot_with_disks();
    sheltered.protect();
    let records = |house: &House| RedbStore::open(&house.path("state/gnomon.redb")).expect("nobody else has it open");
    sheltered.pair.b.crash();
    let shadow = records(&sheltered.pair.b).get("shadow/tiny").expect("read").expect("it is on record");
    sheltered.pair.b.start();
    let told = || events(&sheltered.pair.a).into_iter().map(|(what, _)| what).collect::<Vec<_>>();
    let again = || (told() == ["protect", "shadow-lost", "protect"]).then_some(());
    await_some("protected again", || format!("{:?}", told()), again);
    sheltered.pair.a.ask(&["vm", "switchover", "tiny"]);
    sheltered.pair.b.crash();
    let forgotten = ("shadow/tiny".to_string(), shadow.value);
    records(&sheltered.pair.b).put_all(&[forgotten]).expect("written");
    sheltered.pair.b.start();
    // It may not have come to say one there before that daemon died.
    let count =
        await_some("a count", || show(&sheltered.pair.b).to_string(), || counts(&sheltered.pair.b).last().copied());
    sheltered.await_count(&sheltered.pair.b, count + 3);
    sheltered.pair.b.crash();
    assert!(records(&sheltered.pair.b).get("shadow/tiny").expect("read").is_none(), "it is forgotten now");
}

/// The memory of a shadow dies with its daemon; its disks do not.
#[test]
fn disks_survive_a_shadow_whose_daemon_was_killed() {
    let mut sheltered = Sheltered::boot_with_disks();
    sheltered.protect();
    await_state(&sheltered.pair.a, "protected");
    let count = sheltered.await_sealed_count();
    sheltered.pair.b.crash();
    sheltered.kill_primary();
    let last = counts(&sheltered.pair.a).last().copied().expect("it counted");
    sheltered.pair.b.start();
    let told = sheltered.pair.b.ask(&["vm", "failover", "tiny", "--i-have-fenced", "a"]);
    assert_eq!(told["result"]["guest_runs"], false, "{told}");
    assert_eq!(sheltered.pair.b.role("data"), "primary");
    let mut sector = [0; 512];
    let mut volume = Nbd::open(&sheltered.pair.b.path("run/nbd.sock"), "data").expect("it is served");
    volume.read(&mut sector, 512).expect("read");
    let on_disk = u16::from_le_bytes([sector[0], sector[1]]);
    assert!((count..=last + 1).contains(&on_disk), "{on_disk} is not within {count} and {last}");
    assert_eq!(sheltered.pair.b.qemus(), Vec::<u64>::new());
}
