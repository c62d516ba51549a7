//! A guest with two shadows, each on a node of its own: it goes on being protected when one is lost, and at most one of them
//! ever takes over.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;

use crate::{
    client::Chance,
    guest,
    house::{House, await_some, linked, tool},
    protects::{counts, events, refused, show},
};

/// Three nodes, and on the first one a guest that counts in its memory and on a disk.
struct Three {
    a: House,
    b: House,
    c: House,
    _pki: TempDir,
}

impl Three {
    fn boot() -> Three {
        let ([a, b, c], pki) = linked(["a", "b", "c"]);
        let mut three = Three { a, b, c, _pki: pki };
        for house in [&mut three.a, &mut three.b, &mut three.c] {
            house.start();
        }
        fs::write(three.a.path("boot.raw"), guest::comparer()).expect("written");
        three.a.ask(&["volume", "import", "boot", "--file", &three.a.text("boot.raw")]);
        three.a.ask(&["volume", "create", "data", "--size", "1M"]);
        let run = ["vm", "run", "tiny", "--memory", "16M", "--disk", "boot", "--disk", "data", "--accel", "tcg"];
        assert_eq!(three.a.ask(&run)["status"], "running");
        await_count(&three.a, 1);
        three
    }

    fn protect(&self) {
        let ran = self.a.run(&["vm", "protect", "tiny", "--on", "b,c", "--interval", "50ms"]);
        assert_eq!(ran.code, 0, "{}", ran.err);
        for node in ["b", "c"] {
            await_shadow(&self.a, node, "protected");
        }
    }

    /// The guest's host dies; the count it had come to.
    fn kill_primary(&mut self) -> u16 {
        let pid = show(&self.a)["pid"].as_u64().expect("a process").to_string();
        self.a.crash();
        tool("kill", &["-KILL", &pid]);
        counts(&self.a).last().copied().expect("it counted")
    }
}

/// What a primary says of its shadow at a node.
fn shadow(house: &House, node: &str) -> Value {
    let all = show(house)["protections"].as_array().cloned().unwrap_or_default();
    all.into_iter().find(|one| one["to"] == node).unwrap_or_default()
}

fn await_shadow(house: &House, node: &str, state: &str) {
    let told = || show(house).to_string();
    await_some(&format!("{node} {state}"), told, || (shadow(house, node)["state"] == state).then_some(()));
}

fn await_count(house: &House, count: u16) {
    let newest = || counts(house).last().is_some_and(|newest| *newest >= count).then_some(());
    await_some(&format!("count {count}"), || show(house).to_string(), newest);
}

fn goes_on_counting(house: &House) {
    let now = counts(house).last().copied().unwrap_or(0);
    await_count(house, now + 5);
}

/// Waits until a shadow has a checkpoint that was begun after this.
fn await_later_checkpoint(house: &House) {
    let checkpoint = || show(house)["shadow"]["checkpoint"].as_u64();
    let now = await_some("a checkpoint", || show(house).to_string(), checkpoint);
    await_some("later ones", || show(house).to_string(), || checkpoint().filter(|later| *later > now + 3));
}

fn await_dropped(house: &House) {
    let gone = || (house.look("/v1/vms") == Value::from(Vec::<Value>::new())).then_some(());
    await_some("the shadow to be dropped", || house.look("/v1/vms").to_string(), gone);
    assert_eq!(house.qemus(), Vec::<u64>::new());
    let files = fs::read_dir(house.path("state/volumes")).expect("a folder").count();
    assert_eq!(files, 0, "its disks go with it");
}

/// It went on from what one of the shadows had, and disk and memory are of one moment.
fn assert_went_on(house: &House, last: u16) {
    goes_on_counting(house);
    let said = counts(house);
    assert!(said[0] <= last + 1 && said.is_sorted_by(|one, next| next - one == 1), "after {last}: {said:?}");
    let console = fs::read(house.path("run/vm/tiny/console.log")).expect("a console");
    assert!(!console.contains(&b'E'), "disk and memory are of two moments");
}

#[test]
fn one_shadow_is_lost_and_the_other_takes_over() {
    let mut three = Three::boot();
    three.protect();
    let (a, b, c) = (&three.a, &three.b, &three.c);
    for (house, sibling) in [(b, "c"), (c, "b")] {
        let knows = || (show(house)["shadow"]["siblings"] == Value::from(vec![sibling])).then_some(());
        await_some("it knows its sibling", || show(house).to_string(), knows);
    }
    let said = a.run(&["vm", "show", "tiny"]).out;
    assert!(said.contains("on node b: protected") && said.contains("on node c: protected"), "{said}");
    refused(a, &["vm", "protect", "tiny", "--on", "c"], "protected by node b, c");
    refused(a, &["vm", "unprotect", "tiny", "--on", "d"], "not protected by node d");
    refused(a, &["vm", "stop", "tiny"], "protected by node b, c");

    // One daemon dies: the guest and the other shadow go on. It comes back, and is filled anew.
    three.c.crash();
    await_shadow(&three.a, "c", "lost");
    await_later_checkpoint(&three.b);
    assert_eq!(
        (&shadow(&three.a, "b")["state"], &show(&three.a)["protection"]["to"]),
        (&"protected".into(), &"b".into())
    );
    goes_on_counting(&three.a);
    three.c.start();
    await_shadow(&three.a, "c", "protected");
    await_later_checkpoint(&three.c);

    // The host dies, and one of the others with it: its word cannot be had, so the operator has to give his.
    three.c.crash();
    await_later_checkpoint(&three.b);
    let last = three.kill_primary();
    refused(&three.b, &["vm", "failover", "tiny", "--i-have-fenced", "c"], "may still run");
    refused(&three.b, &["vm", "failover", "tiny", "--i-have-fenced", "a"], "another shadow");
    let told = three.b.ask(&["vm", "failover", "tiny", "--i-have-fenced", "a,c"]);
    assert_eq!(told["result"]["guest_runs"], true, "{told}");
    assert_went_on(&three.b, last);

    // Who comes back learns it: the other shadow never runs it, and the primary gives it up.
    three.c.start();
    let ran = three.c.run(&["vm", "failover", "tiny", "--i-have-fenced", "a"]);
    assert!(ran.code != 0, "{}", ran.out);
    await_dropped(&three.c);
    three.a.start();
    let said = || show(&three.a)["exit"].as_str().is_some_and(|said| said.contains("node b took over"));
    let given_up = || (said() && three.a.qemus().is_empty() && three.a.role("data") == "lost").then_some(());
    await_some("it is given up", || show(&three.a).to_string(), given_up);
    goes_on_counting(&three.b);
}

/// Both shadows live: whichever has the newer checkpoint is the one to go on with, and the other refuses and goes.
#[test]
fn of_two_shadows_that_live_one_takes_over_and_the_other_goes() {
    let mut three = Three::boot();
    three.protect();
    [&three.b, &three.c].into_iter().for_each(await_later_checkpoint);
    let last = three.kill_primary();
    let by_hand = ["vm", "failover", "tiny", "--i-have-fenced", "a"];
    let first = three.b.run(&by_hand);
    let (runs, goes) = if first.code == 0 { (&three.b, &three.c) } else { (&three.c, &three.b) };
    if first.code != 0 {
        assert!(first.err.contains("newer checkpoint"), "{}", first.err);
        assert_eq!(three.c.run(&by_hand).code, 0);
    }
    // At once, and whether or not it has heard of it.
    let second = goes.run(&by_hand);
    assert!(second.code != 0, "{}", second.out);
    await_dropped(goes);
    assert_went_on(runs, last);
    let dropped = ("shadow-dropped".to_string(), "done".to_string());
    await_some("its event", || format!("{:?}", events(goes)), || events(goes).contains(&dropped).then_some(()));
}

#[test]
fn a_shadow_more_a_shadow_less_and_a_switchover_to_one() {
    let three = Three::boot();
    let (a, b, c) = (&three.a, &three.b, &three.c);
    let protect = |house: &House, node| house.ask(&["vm", "protect", "tiny", "--on", node, "--interval", "50ms"]);
    protect(a, "b");
    refused(a, &["vm", "protect", "tiny", "--on", "c", "--strict", "--interval", "50ms"], "without --strict");
    protect(a, "c");
    a.ask(&["vm", "unprotect", "tiny", "--on", "b"]);
    await_dropped(b);
    assert_eq!(show(a)["protections"].as_array().map(Vec::len), Some(1));
    await_later_checkpoint(c);
    let alone = || (show(c)["shadow"]["siblings"] == Value::Array(Vec::new())).then_some(());
    await_some("it knows that it is alone", || show(c).to_string(), alone);
    protect(a, "b");
    for node in ["b", "c"] {
        await_shadow(a, node, "protected");
    }
    refused(a, &["vm", "switchover", "tiny", "--to", "d"], "no shadow at node d");
    let told = a.ask(&["vm", "switchover", "tiny", "--to", "c"]);
    assert_eq!((&told["result"]["to"], &told["result"]["dropped"]), (&"c".into(), &vec!["b"].into()), "{told}");
    await_dropped(b);
    goes_on_counting(c);
    assert!(a.qemus().is_empty() && show(c)["status"] == "running");
    // There it is protected anew, by both.
    let ran = c.run(&["vm", "protect", "tiny", "--on", "a,b", "--interval", "50ms"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    for node in ["a", "b"] {
        await_shadow(c, node, "protected");
    }
    c.ask(&["vm", "unprotect", "tiny"]);
    [a, b].into_iter().for_each(await_dropped);
    assert_eq!((c.role("data").as_str(), &show(c)["protections"]), ("primary", &Value::Array(Vec::new())));
}

/// A daemon dies at any moment of a switchover to one of two: one guest runs, and the other shadow is of its primary, or gone.
#[test]
fn a_daemon_that_dies_in_a_switchover_to_one_of_two_leaves_one_guest() {
    let mut chance = Chance(29);
    for seed in 0..4 {
        let mut three = Three::boot();
        three.protect();
        let mut switch = three.a.command(&["vm", "switchover", "tiny", "--to", "b"]).spawn().expect("runs");
        let until = Instant::now() + Duration::from_micros(chance.below(80_000));
        while Instant::now() < until {
            thread::yield_now();
        }
        let dying = if seed % 2 == 0 { &mut three.a } else { &mut three.b };
        dying.crash();
        switch.wait().expect("ended");
        dying.start();
        let (a, b, c) = (&three.a, &three.b, &three.c);
        let runs = |house: &House| show(house)["status"] == "running";
        let told = || format!("seed {seed}: {} {} {}", show(a), show(b), show(c));
        let is_protected = |node| shadow(a, node)["state"] == "protected";
        let settled = || match (runs(a), runs(b)) {
            (true, false) => (is_protected("b") && is_protected("c")).then_some(a),
            (false, true) => (a.qemus().is_empty() && c.look("/v1/vms") == Value::Array(Vec::new())).then_some(b),
            _ => None,
        };
        goes_on_counting(await_some("one guest that runs", told, settled));
        assert!(!runs(c), "seed {seed}");
    }
}
