//! A guest that was given memory while it ran takes it along: to another host, to its shadow, to another QEMU. There it uses
//! it, gives it back and gets more; the host it left has its blocks back.

use serde_json::Value;

use crate::{
    cache,
    house::{House, Pair, await_some, tool},
    memory::{Linux, QUICK},
    protects::refused,
};

const MIB: u64 = 1 << 20;
/// Of these, 256 MiB are staged.
const GIVEN: u64 = 384;

/// Stages for a group called `shop`, to which `web` belongs as soon as it is here.
fn stage(house: &House) {
    house.ask(&["group", "create", "shop", "--budget", "512M", "--reserve", "256M", "--max-age", "1h"]);
    await_staged(house, 256);
}

fn await_staged(house: &House, mib: u64) {
    let group = || house.look("/v1/groups/shop");
    let staged = || (group()["accounts"]["staged"] == mib * MIB).then_some(());
    await_some(&format!("{mib} MiB to be staged"), || group().to_string(), staged);
}

/// A Linux with a disk that has been given memory, and has written to all of it.
fn boot(house: &House) -> Linux {
    house.ask(&["volume", "create", "data", "--size", "8M"]);
    let (kernel, initrd) = (cache::kernel(), cache::initrd("guest.cpio"));
    let append = "console=ttyS0 quiet panic=-1 memhp_default_state=online_movable gn.memory=1";
    let run = ["vm", "run", "web", "--memory", "256M", "--max-memory", "1280M", "--accel", "tcg", "--disk", "data"];
    let rest = ["--kernel", &kernel, "--initrd", &initrd, "--append", append, "--port", "gnomon.report"];
    house.ask(&[&run[..], &rest, &["--agent", "--group", "shop"]].concat());
    let mut linux = Linux::listen(house, "web");
    let change = house.ask(&["vm", "memory", "web", "--grow", &format!("{GIVEN}M")]);
    assert_eq!(
        (&change["staged"], &change["done"]),
        (&Value::from(256 * MIB), &Value::from(GIVEN * MIB)),
        "{change}"
    );
    linux.grown(GIVEN);
    linux.touch(450);
    linux
}

fn assigned(house: &House) -> u64 {
    house.look("/v1/groups/shop")["accounts"]["assigned"].as_u64().expect("bytes")
}

/// Asks for so many MiB back until all of them are.
fn shrink(house: &House, mib: u64) {
    let view = || house.ask(&["vm", "memory", "web"]);
    let wanted = view()["now"].as_u64().expect("bytes") - mib * MIB;
    let shrunk = || {
        let left = view()["now"].as_u64()?.saturating_sub(wanted) / MIB;
        if left > 0 {
            house.run(&["vm", "memory", "web", "--shrink", &format!("{left}M")]);
        }
        (view()["now"] == wanted).then_some(())
    };
    await_some(&format!("{mib} MiB to be given back"), || view().to_string(), shrunk);
}

/// All that it was given it has here, with what it wrote there; it gives all of it back, and gets staged memory of this node.
fn is_at_home(house: &House, linux: &mut Linux) {
    linux.call_again(house);
    assert_eq!(linux.ask("check", "checked")["wrong"], 0, "its memory is what it was");
    let view = house.ask(&["vm", "memory", "web"]);
    let boot = view["boot"].as_u64().expect("bytes");
    assert_eq!(view["now"], boot + GIVEN * MIB, "{view}");
    linux.ask("drop", "memory");
    shrink(house, GIVEN);
    await_blocks_back(house);
    let staged = || (house.look("/v1/groups/shop")["accounts"]["staged"].as_u64() >= Some(128 * MIB)).then_some(());
    await_some("a staged block", || house.look("/v1/groups/shop").to_string(), staged);
    let change = house.ask(&["vm", "memory", "web", "--grow", "256M"]);
    assert!(change["staged"].as_u64() >= Some(128 * MIB), "{change}");
    linux.grown(256);
    linux.touch(300);
    assert_eq!(change["staged"], assigned(house), "{change}");
}

fn pair() -> Pair {
    let mut pair = Pair::unlit(["a", "b"], QUICK, true);
    pair.a.configure(QUICK);
    pair.a.start();
    pair.b.start();
    for house in [&pair.a, &pair.b] {
        stage(house);
    }
    pair
}

fn await_blocks_back(house: &House) {
    await_some(
        "its blocks to go back",
        || house.look("/v1/groups/shop").to_string(),
        || (assigned(house) == 0).then_some(()),
    );
}

#[test]
fn what_a_guest_was_given_moves_with_it() {
    let pair = pair();
    let mut linux = boot(&pair.a);
    let outlook = pair.a.ask(&["vm", "move", "web", "--to", "b", "--dry-run"]);
    assert!(outlook["memory"].as_u64() >= Some((256 + GIVEN) * MIB), "{outlook}");
    refused(&pair.a, &["vm", "move", "web", "--to", "b", "--ram", "qemu"], "loses pages under TCG");
    let job = pair.a.ask(&["vm", "move", "web", "--to", "b", "--ram", "engine"]);
    assert_eq!(
        (&job["state"], &job["result"]["ram"]["way"]),
        (&Value::from("done"), &Value::from("engine")),
        "{job}"
    );
    await_blocks_back(&pair.a);
    pair.b.ask(&["group", "add", "shop", "web"]);
    is_at_home(&pair.b, &mut linux);
    assert_eq!(pair.b.run(&["vm", "stop", "web", "--force"]).code, 0);
    await_blocks_back(&pair.b);
}

#[test]
fn what_a_guest_was_given_is_protected_with_it() {
    let mut pair = pair();
    let mut linux = boot(&pair.a);
    let job = pair.a.ask(&["vm", "protect", "web", "--on", "b", "--interval", "100ms"]);
    assert_eq!(job["state"], "done", "{job}");
    refused(&pair.a, &["vm", "memory", "web", "--grow", "128M"], "protect");
    let state = || pair.a.look("/v1/vms/web")["protection"]["state"].clone();
    await_some("protected", || state().to_string(), || (state() == "protected").then_some(()));
    let pid = pair.a.look("/v1/vms/web")["pid"].as_u64().expect("a process").to_string();
    pair.a.crash();
    tool("kill", &["-KILL", &pid]);
    let told = pair.b.ask(&["vm", "failover", "web", "--i-have-fenced", "a"]);
    assert_eq!(told["state"], "done", "{told}");
    pair.b.ask(&["group", "add", "shop", "web"]);
    is_at_home(&pair.b, &mut linux);
    assert_eq!(pair.b.run(&["vm", "stop", "web", "--force"]).code, 0);
    pair.a.start();
    await_blocks_back(&pair.a);
}

/// The same blocks, under another QEMU and back: they are no one else's in between.
#[test]
fn what_a_guest_was_given_stays_when_its_qemu_changes() {
    let mut house = House::unlit("a", QUICK);
    house.start();
    stage(&house);
    let mut linux = boot(&house);
    let newer = cache::newer_qemu();
    let update = house.run(&["vm", "update", "web", "--qemu", &newer, "--observe", "0.5"]);
    assert_eq!(update.code, 0, "{}", update.err);
    linux.call_again(&house);
    assert_eq!((linux.ask("check", "checked")["wrong"].clone(), assigned(&house)), (Value::from(0), 256 * MIB));
    let back = house.run(&["vm", "rollback", "web"]);
    assert_eq!(back.code, 0, "{}", back.err);
    is_at_home(&house, &mut linux);
    assert_eq!(house.run(&["vm", "stop", "web", "--force"]).code, 0);
    await_blocks_back(&house);
}
