//! Bad days of memory that is ready: a guest that says no to it, and one that goes to another host.
//!
//! The guests count in their memory, and answer DIMMs in slot 0 by ACPI's registers. Of what a guest that began with a staged
//! block counts, nothing is missed wherever it goes.

use std::fs;

use serde_json::Value;
use tempfile::TempDir;

use crate::{
    guest,
    house::{House, await_some, linked, tool},
    memory::{QUICK, Shop},
    protects::{await_state, counts, refused, show},
};

const MIB: u64 = 1 << 20;

/// Starts the guest that answers DIMMs with this status.
fn run(house: &House, status: u8, more: &[&str]) {
    fs::write(house.path("ticker"), guest::ticker_with_dimms(status)).expect("written");
    let kernel = house.text("ticker");
    let run = ["vm", "run", "tiny", "--memory", "16M", "--max-memory", "400M", "--kernel", &kernel, "--accel", "tcg"];
    house.ask(&[&run[..], &["--group", "shop"], more].concat());
    await_some("it to count", || show(house).to_string(), || counts(house).last().copied());
}

fn await_assigned(shop: &Shop, bytes: u64) {
    let settled = || {
        let accounts = &shop.group()["accounts"];
        (accounts["assigned"] == bytes && accounts["reserved"] == 0).then_some(())
    };
    await_some(&format!("{bytes} bytes at guests"), || shop.group().to_string(), settled);
    shop.assert_balanced();
}

/// It is told why, it has nothing that it does not use, the host has its block back, and the next request is as good.
#[test]
fn a_guest_that_declines_memory_is_no_worse_off() {
    let shop = Shop::open();
    run(&shop.house, 1, &[]);
    for _ in 0..3 {
        let large = |stock: &Value| stock["size"].as_u64() >= Some(128 * MIB);
        let ready = || shop.group()["staged"].as_array()?.iter().any(large).then_some(());
        await_some("a block that is large enough", || shop.group().to_string(), ready);
        let ran = shop.house.run(&["vm", "memory", "tiny", "--grow", "256M"]);
        assert!(ran.code == 1 && ran.err.contains("it says no (ACPI status 0x1)"), "{}: {}", ran.code, ran.err);
        assert!(ran.err.contains("remove it: this was done"), "{}", ran.err);
        let view = shop.house.ask(&["vm", "memory", "tiny"]);
        assert_eq!((&view["dimms"], &view["now"]), (&Value::Array(Vec::new()), &view["boot"]), "{view}");
        assert_eq!(shop.group()["accounts"]["assigned"], 0, "it was never risked on a second one");
        shop.assert_balanced();
    }
    let count = counts(&shop.house).last().copied().expect("it counts");
    await_some("it to count on", String::new, || counts(&shop.house).last().filter(|now| **now > count + 3).copied());
    assert_eq!(shop.house.run(&["vm", "stop", "tiny", "--force"]).code, 0);
}

/// Two nodes that stage, and a guest on the first that began with a staged block.
struct Wanderer {
    here: Shop,
    there: Shop,
    /// What it began with, in bytes.
    size: u64,
    _pki: TempDir,
}

impl Wanderer {
    /// Started with `more` than it needs.
    fn start(more: &[&str]) -> Wanderer {
        let (houses, pki) = linked(["a", "b"]);
        let [here, there] = houses.map(|mut house| {
            house.configure(QUICK);
            house.start();
            Shop::at(house)
        });
        here.house.ask(&["volume", "create", "data", "--size", "1M"]);
        // Of a size that nobody has asked for nothing is staged.
        run(&here.house, 0, more);
        here.resize("tiny", "--grow", 128);
        let size = here.house.ask(&["vm", "memory", "tiny"])["boot"].as_u64().expect("bytes");
        assert_eq!(here.house.run(&["vm", "stop", "tiny", "--force"]).code, 0);
        await_stock(&here, &[size, 128 * MIB]);
        let hit = || here.group()["requests"]["hit_bytes"].as_u64().expect("bytes");
        let before = hit();
        run(&here.house, 0, more);
        assert_eq!(hit() - before, size, "it began with a staged block");
        await_assigned(&here, size);
        Wanderer { here, there, size, _pki: pki }
    }

    /// It answers DIMMs in slot 0 only: what it was given it gives back before it goes.
    fn grows_and_gives_back(&self) {
        let change = self.here.resize("tiny", "--grow", 128);
        assert_eq!(change["staged"], 128 * MIB, "{change}");
        await_assigned(&self.here, self.size + 128 * MIB);
        self.here.resize("tiny", "--shrink", 128);
        await_assigned(&self.here, self.size);
    }

    fn protect(&self) {
        self.here.house.ask(&["vm", "protect", "tiny", "--on", "b", "--interval", "50ms"]);
        await_state(&self.here.house, "protected");
        refused(&self.here.house, &["vm", "memory", "tiny", "--grow", "128M"], "protected by node b");
    }

    /// It counts on there, from no later than what it has said here, and grows from what is staged there.
    fn is_at_home_there(&self) {
        let (here, there) = (&self.here.house, &self.there.house);
        let said = || counts(there);
        await_some("it to count there", || show(there).to_string(), || (said().len() > 3).then_some(()));
        let last = counts(here).last().copied().expect("it counted");
        assert!(said()[0] <= last + 1 && said().is_sorted_by(|one, next| next - one == 1), "{last} {:?}", said());
        let view = there.ask(&["vm", "memory", "tiny"]);
        assert_eq!((&view["boot"], &view["group"]), (&Value::from(self.size), &Value::Null), "{view}");
        there.ask(&["group", "add", "shop", "tiny"]);
        let change = self.there.resize("tiny", "--grow", 128);
        assert_eq!(change["staged"], 128 * MIB, "{change}");
        await_assigned(&self.there, 128 * MIB);
        assert_eq!(there.run(&["vm", "stop", "tiny", "--force"]).code, 0);
        await_assigned(&self.there, 0);
    }
}

fn await_stock(shop: &Shop, sizes: &[u64]) {
    let has =
        |size: &u64| shop.group()["staged"].as_array().is_some_and(|all| all.iter().any(|s| s["size"] == *size));
    let all = || sizes.iter().all(has).then_some(());
    await_some(&format!("blocks of {sizes:?}"), || shop.group().to_string(), all);
}

#[test]
fn a_guest_of_staged_memory_is_handed_over() {
    let wanderer = Wanderer::start(&[]);
    wanderer.grows_and_gives_back();
    wanderer.protect();
    let told = wanderer.here.house.ask(&["vm", "switchover", "tiny"]);
    assert_eq!(told["state"], "done", "{told}");
    await_assigned(&wanderer.here, 0);
    wanderer.is_at_home_there();
}

#[test]
fn a_guest_of_staged_memory_goes_on_after_its_host_died() {
    let mut wanderer = Wanderer::start(&[]);
    wanderer.grows_and_gives_back();
    wanderer.protect();
    let pid = show(&wanderer.here.house)["pid"].as_u64().expect("a process").to_string();
    wanderer.here.house.crash();
    tool("kill", &["-KILL", &pid]);
    wanderer.there.house.ask(&["vm", "failover", "tiny", "--i-have-fenced", "a"]);
    wanderer.is_at_home_there();
    wanderer.here.house.start();
    await_assigned(&wanderer.here, 0);
}

#[test]
fn a_guest_of_staged_memory_moves_while_it_runs() {
    for way in ["engine", "qemu"] {
        // What has no volume is moved by its own tools.
        let wanderer = Wanderer::start(&["--disk", "data"]);
        wanderer.grows_and_gives_back();
        let job = wanderer.here.house.ask(&["vm", "move", "tiny", "--to", "b", "--ram", way]);
        assert_eq!((&job["state"], &job["result"]["ram"]["way"]), (&Value::from("done"), &Value::from(way)), "{job}");
        await_assigned(&wanderer.here, 0);
        wanderer.is_at_home_there();
    }
}
