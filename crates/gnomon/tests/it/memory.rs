//! Memory that is ready: a Linux guest gets staged memory while it runs, uses it, and gives it back; daemons die in between.
//!
//! Whatever happens, the accounts balance at the end: every block that was made is staged, at a guest, or back at the host.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
};

use serde_json::Value;

use crate::{
    cache, guest,
    house::{House, PATIENCE, await_some},
};

const MIB: u64 = 1 << 20;
/// Steps of a second: a test does not wait five minutes for a plan.
pub const QUICK: &str = "[memory]\nstep = 1\nbudget = '1GiB'\nfloor = '256MiB'\n";

/// A node that stages for a group called `shop`.
pub struct Shop {
    pub house: House,
}

impl Shop {
    pub fn open() -> Shop {
        let mut house = House::unlit("a", QUICK);
        house.start();
        Shop::at(house)
    }

    /// At a node that runs, with [`QUICK`] steps.
    pub fn at(house: House) -> Shop {
        let group =
            house.ask(&["group", "create", "shop", "--budget", "512M", "--reserve", "256M", "--max-age", "1h"]);
        assert_eq!((&group["name"], &group["shadowing"]), (&Value::from("shop"), &Value::from(true)), "{group}");
        let shop = Shop { house };
        shop.await_staged(256);
        shop
    }

    pub fn group(&self) -> Value {
        self.house.look("/v1/groups/shop")
    }

    /// Waits until so many MiB are staged, and nothing is on its way.
    pub fn await_staged(&self, mib: u64) {
        let staged = || {
            let accounts = &self.group()["accounts"];
            (accounts["staged"] == mib * MIB && accounts["populating"] == 0 && accounts["leaving"] == 0).then_some(())
        };
        await_some(&format!("{mib} MiB to be staged"), || self.group().to_string(), staged);
    }

    /// Boots a Linux that does what it is told, with 256 MiB.
    fn boot(&self, name: &str, more: &[&str]) -> Linux {
        self.boot_with("256M", name, more)
    }

    fn boot_with(&self, memory: &str, name: &str, more: &[&str]) -> Linux {
        let (kernel, initrd) = (cache::kernel(), cache::initrd("guest.cpio"));
        let append = "console=ttyS0 quiet panic=-1 memhp_default_state=online_movable gn.memory=1";
        let run = ["vm", "run", name, "--memory", memory, "--accel", "tcg", "--kernel", &kernel, "--initrd", &initrd];
        let rest = ["--append", append, "--port", "gnomon.report", "--agent", "--group", "shop"];
        let vm = self.house.ask(&[&run[..], &rest[..], more].concat());
        assert_eq!(vm["status"], "running", "{vm}");
        assert_eq!(self.house.ask(&["vm", "memory", name])["group"], "shop", "it is in its group as soon as it runs");
        Linux::listen(&self.house, name)
    }

    /// A change of a VM's memory that was made, in whole.
    pub fn resize(&self, name: &str, way: &str, mib: u64) -> Value {
        let change = self.house.ask(&["vm", "memory", name, way, &format!("{mib}M")]);
        assert_eq!(
            (change["done"].as_i64().map(i64::unsigned_abs), &change["why"]),
            (Some(mib * MIB), &Value::Null),
            "{change}"
        );
        change
    }

    /// Asks for so many MiB back until all of them are: a page that is in use for a moment keeps its DIMM for now.
    fn shrink(&self, name: &str, mib: u64) {
        let view = || self.house.ask(&["vm", "memory", name]);
        let wanted = view()["now"].as_u64().expect("bytes") - mib * MIB;
        let shrunk = || {
            let left = view()["now"].as_u64()?.saturating_sub(wanted) / MIB;
            if left > 0 {
                self.house.run(&["vm", "memory", name, "--shrink", &format!("{left}M")]);
            }
            (view()["now"] == wanted).then_some(())
        };
        await_some(&format!("{mib} MiB to be given back"), || view().to_string(), shrunk);
    }

    /// Every block is in one place.
    pub fn assert_balanced(&self) {
        let of = |key: &str| self.group()["accounts"][key].as_u64().expect("bytes");
        let balanced = || {
            let places = ["populating", "staged", "reserved", "assigned", "leaving", "released"];
            (of("created") == places.iter().map(|place| of(place)).sum::<u64>()).then_some(())
        };
        await_some("the accounts to balance", || self.group().to_string(), balanced);
    }
}

/// The guest, as it speaks.
pub struct Linux {
    port: BufReader<UnixStream>,
    began_with: u64,
    console: PathBuf,
}

impl Linux {
    pub fn listen(house: &House, name: &str) -> Linux {
        let stream = UnixStream::connect(house.path(&format!("run/vm/{name}/gnomon.report.sock"))).expect("its port");
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        let console = house.path(&format!("run/vm/{name}/console.log"));
        let mut linux = Linux { port: BufReader::new(stream), began_with: 0, console };
        linux.began_with = linux.hear("ready")["total_kib"].as_u64().expect("a number");
        linux
    }

    /// Its QEMU is another one by now, with sockets of its own.
    pub fn call_again(&mut self, house: &House) {
        let view = house.ask(&["vm", "show", "web"]);
        let ports = view["ports"].as_array().expect("ports");
        let port = ports.iter().find(|port| port["name"] == "gnomon.report").expect("its port");
        let stream = UnixStream::connect(port["socket"].as_str().expect("a path")).expect("its port");
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        self.port = BufReader::new(stream);
    }

    fn hear(&mut self, kind: &str) -> Value {
        let mut line = String::new();
        let read = self.port.read_line(&mut line);
        let console = || fs::read_to_string(&self.console).unwrap_or_default();
        let said: Value = serde_json::from_str(&line)
            .unwrap_or_else(|error| panic!("no '{kind}': {read:?}, {error}: {}", console()));
        assert_eq!(said["kind"], kind, "{line}");
        said
    }

    pub fn ask(&mut self, command: &str, kind: &str) -> Value {
        writeln!(self.port.get_mut(), "{command}").expect("written");
        self.hear(kind)
    }

    /// Waits until it has so many MiB more than it began with.
    pub fn grown(&mut self, mib: u64) {
        let kib = self.began_with + (mib << 10);
        let now = self.ask(&format!("grown {kib}"), "memory");
        assert!(now["total_kib"].as_u64() >= Some(kib), "{now}");
    }

    /// Takes so many MiB, and they are what it wrote.
    pub fn touch(&mut self, mib: u64) {
        let burst = self.ask(&format!("touch {mib}"), "touched");
        assert_eq!(burst["mib"], mib, "{burst}");
        assert_eq!(self.ask("check", "checked")["wrong"], 0);
    }
}

fn refused(shop: &Shop, args: &[&str], why: &str) {
    let ran = shop.house.run(args);
    assert!(ran.code == 3 && ran.err.contains(why), "{args:?}: {}: {}", ran.code, ran.err);
}

/// The whole story: grown from staged memory, used, given back; what comes next is staged anew, and the host gets the rest.
#[test]
fn a_guest_grows_from_staged_memory_and_gives_it_back() {
    let shop = Shop::open();
    let mut linux = shop.boot("web", &["--max-memory", "1280M"]);
    let change = shop.resize("web", "--grow", 256);
    let boot = shop.house.ask(&["vm", "memory", "web"])["boot"].as_u64().expect("bytes");
    assert_eq!(
        (change["staged"].as_u64(), change["now"].as_u64()),
        (Some(256 * MIB), Some(boot + 256 * MIB)),
        "{change}"
    );
    linux.grown(256);
    linux.touch(300);
    // What nobody has staged comes all the same, and is counted as missed.
    shop.house.ask(&["group", "disable", "shop"]);
    shop.await_staged(0);
    let cold = shop.resize("web", "--grow", 512);
    assert_eq!((cold["staged"].as_u64(), cold["dimms"].as_u64()), (Some(0), Some(1)), "{cold}");
    linux.grown(768);
    let requests = shop.group()["requests"].clone();
    let bytes = |key: &str| requests[key].as_u64().expect("bytes");
    // Its own start is a request too, for which there was no block of its size.
    assert_eq!(bytes("hit_bytes") + bytes("missed_bytes"), boot + (256 + 512) * MIB, "{requests}");
    assert_eq!(bytes("hit_bytes"), 256 * MIB, "{requests}");

    let view = shop.house.ask(&["vm", "memory", "web"]);
    assert_eq!((view["now"].as_u64(), view["group"].as_str()), (Some(boot + 768 * MIB), Some("shop")), "{view}");
    refused(&shop, &["vm", "memory", "web", "--grow", "512M"], "can be given 256.0 MiB more");
    assert_eq!(shop.house.run(&["vm", "memory", "web", "--shrink", "0"]).code, 2);

    let metrics = shop.house.http("/metrics");
    let told = |name: &str| metrics.lines().any(|line| line.starts_with(&format!("{name}{{group=\"shop\"}} ")));
    for name in ["staged_bytes", "assigned_bytes", "hit_bytes_total", "missed_bytes_total"] {
        assert!(told(&format!("gnomon_memory_{name}")), "{name}: {metrics}");
    }

    linux.ask("drop", "memory");
    shop.shrink("web", 768);
    let gone = || (shop.group()["accounts"]["assigned"] == 0).then_some(());
    await_some("its blocks to go back", || shop.group().to_string(), gone);
    shop.assert_balanced();
    assert_eq!(shop.house.run(&["vm", "stop", "web", "--force"]).code, 0);
    shop.assert_balanced();
}

/// The lower slot is not the one to go, nor the higher: it is the DIMM that the guest has touched least of.
#[test]
fn a_guest_is_asked_back_first_what_it_has_touched_least() {
    let shop = Shop::open();
    let mut linux = shop.boot("web", &["--max-memory", "1280M"]);
    shop.resize("web", "--grow", 128);
    shop.house.ask(&["group", "disable", "shop"]);
    shop.await_staged(0);
    shop.resize("web", "--grow", 256);
    linux.grown(384);
    // Linux uses what it has got first: all of the staged DIMM in slot 0, and half of the other in slot 1.
    linux.touch(260);
    linux.ask("drop", "memory");
    // Only the first one fits. The next takes its slot.
    shop.shrink("web", 128);
    shop.resize("web", "--grow", 256);
    linux.grown(512);
    shop.house.ask(&["group", "enable", "shop"]);
    let touched = || {
        let view = shop.house.ask(&["vm", "memory", "web"]);
        let dimms = view["dimms"].as_array().expect("DIMMs").iter();
        let of = |id: &str| dimms.clone().find(|dimm| dimm["id"] == id)?["touched_percent"].as_u64();
        let heat = &view["heat"];
        assert!(heat.is_null() || heat["from"] == "page tables", "{view}");
        (of("cold-1")? > 20 && of("cold-2")? < 10 && heat["us_per_gib"].as_f64()? > 0.0).then_some(())
    };
    await_some("what it has touched to be seen", || shop.house.ask(&["vm", "memory", "web"]).to_string(), touched);
    let spent = |line: &str| line.strip_prefix("gnomon_memory_looks_seconds_total ")?.parse::<f64>().ok();
    assert!(
        shop.house.http("/metrics").lines().find_map(spent) > Some(0.0),
        "it was looked, and that has cost something"
    );
    shop.resize("web", "--shrink", 256);
    let view = shop.house.ask(&["vm", "memory", "web"]);
    assert_eq!(view["dimms"][0]["id"], "cold-1", "{view}");
    assert_eq!(shop.house.run(&["vm", "stop", "web", "--force"]).code, 0);
    shop.assert_balanced();
}

/// The daemon dies, and finds both again: what is staged at its holder, and what is at a guest in its QEMU.
#[test]
fn a_daemon_that_died_finds_staged_and_assigned_blocks_again() {
    let mut shop = Shop::open();
    let mut linux = shop.boot("web", &["--max-memory", "1280M"]);
    shop.resize("web", "--grow", 256);
    linux.grown(256);
    linux.touch(300);
    shop.house.ask(&["group", "disable", "shop"]);
    shop.await_staged(0);
    shop.house.ask(&["group", "enable", "shop"]);
    let staged = || shop.group()["accounts"]["staged"].as_u64().filter(|bytes| *bytes > 0);
    await_some("something to be staged", || shop.group().to_string(), staged);
    let holders = shop.house.holders();
    assert_eq!(holders.len(), 1, "{holders:?}");
    shop.house.crash();
    shop.house.start();
    let found = || {
        let accounts = &shop.group()["accounts"];
        (accounts["assigned"] == 256 * MIB && accounts["staged"].as_u64() > Some(0)).then_some(())
    };
    await_some("its blocks to be found again", || shop.group().to_string(), found);
    assert_eq!(shop.house.holders(), holders, "the same process has kept them");
    assert_eq!(shop.group()["members"], Value::from(vec!["web"]));
    assert_eq!(linux.ask("check", "checked")["wrong"], 0, "its memory is what it was");
    linux.ask("drop", "memory");
    shop.shrink("web", 256);
    shop.assert_balanced();
    assert_eq!(shop.house.run(&["vm", "stop", "web", "--force"]).code, 0);
}

/// A QEMU that dies takes its memory with it: nothing of it stays on the books.
#[test]
fn the_memory_of_a_guest_that_died_goes_back_to_the_host() {
    let shop = Shop::open();
    let _linux = shop.boot("web", &["--max-memory", "1280M"]);
    shop.resize("web", "--grow", 256);
    let pid = shop.house.ask(&["vm", "show", "web"])["pid"].as_u64().expect("a process").to_string();
    crate::house::tool("kill", &["-KILL", &pid]);
    let gone = || (shop.group()["accounts"]["assigned"] == 0).then_some(());
    await_some("its blocks to go back", || shop.group().to_string(), gone);
    shop.assert_balanced();
    shop.house.ask(&["vm", "stop", "web"]);
    // Nor does anything stay of a group that is gone.
    shop.house.ask(&["group", "rm", "shop"]);
    assert_eq!(shop.house.look("/v1/groups"), Value::Array(Vec::new()));
    let empty = || shop.house.holders().iter().all(|pid| blocks_of(pid) == 0).then_some(());
    await_some("nothing to be held", || format!("{:?}", shop.house.holders()), empty);
}

/// How many blocks a process has.
fn blocks_of(pid: &str) -> usize {
    let links = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    links
        .filter_map(|link| fs::read_link(link.path()).ok())
        .filter(|to| to.to_string_lossy().contains("gnomon-block:"))
        .count()
}

/// A guest that knows nothing of new memory holds one block at most: the next is not risked on it, and when it ends the host
/// has all of it back.
#[test]
fn a_guest_that_never_answers_holds_one_block_at_most() {
    let shop = Shop::open();
    fs::write(shop.house.path("ticker"), guest::ticker()).expect("written");
    let kernel = shop.house.text("ticker");
    let run =
        ["vm", "run", "deaf", "--memory", "16M", "--max-memory", "1040M", "--kernel", &kernel, "--accel", "tcg"];
    shop.house.ask(&[&run[..], &["--group", "shop"]].concat());
    let ran = shop.house.run(&["vm", "memory", "deaf", "--grow", "256M"]);
    assert!(ran.code == 1 && ran.err.contains("deaf"), "{}: {}", ran.code, ran.err);
    let accounts = shop.group()["accounts"].clone();
    assert_eq!(
        (accounts["assigned"].as_u64(), accounts["reserved"].as_u64()),
        (Some(128 * MIB), Some(0)),
        "{accounts}"
    );
    assert_eq!(shop.house.run(&["vm", "stop", "deaf", "--force"]).code, 0);
    let gone = || (shop.group()["accounts"]["assigned"] == 0).then_some(());
    await_some("its block to go back", || shop.group().to_string(), gone);
    shop.assert_balanced();
}

/// The other way: one device that changes its size. Nothing of it can be staged, and steps are small.
#[test]
fn a_guest_grows_and_shrinks_by_virtio_mem() {
    let shop = Shop::open();
    let mut linux = shop.boot("web", &["--max-memory", "768M", "--grow-by", "virtio-mem"]);
    let change = shop.resize("web", "--grow", 200);
    assert_eq!((change["staged"].as_u64(), change["dimms"].as_u64()), (Some(0), Some(0)), "{change}");
    linux.touch(280);
    assert_eq!(shop.group()["requests"]["hit_bytes"], 0, "{}", shop.group());
    refused(&shop, &["vm", "memory", "web", "--grow", "400M"], "that can be added");
    refused(&shop, &["vm", "update", "web", "--cpu", "qemu64-v1"], "by virtio-mem, which stay on this host");
    linux.ask("drop", "memory");
    shop.shrink("web", 200);
    assert_eq!(shop.house.run(&["vm", "stop", "web", "--force"]).code, 0);
}

/// A guest that is short says so by its agent, and gets more before its program is through.
#[test]
fn a_guest_that_is_short_gets_more_by_itself() {
    let shop = Shop::open();
    // What its program leaves to its kernel, 32 MiB, is less than a tenth of this.
    let mut linux = shop.boot_with("512M", "web", &["--max-memory", "1536M"]);
    let view = shop.house.ask(&["vm", "memory", "web", "--auto", "on"]);
    assert_eq!(view["auto"], true, "{view}");
    // More than it has: what it does waits until there is memory.
    linux.touch(700);
    let view = shop.house.ask(&["vm", "memory", "web"]);
    assert!(view["now"].as_u64() >= view["boot"].as_u64().map(|boot| boot + 128 * MIB), "{view}");
    assert!(shop.group()["requests"]["hit_bytes"].as_u64() > Some(0), "{}", shop.group());
    shop.house.ask(&["vm", "memory", "web", "--auto", "off"]);
    assert_eq!(shop.house.run(&["vm", "stop", "web", "--force"]).code, 0);
    shop.assert_balanced();
}

/// A VM of a size that was asked for before starts from a block of that size, and is as well off as with memory of its own:
/// it changes its QEMU, and the block is nobody's before both are gone.
#[test]
fn a_vm_starts_from_staged_memory() {
    let shop = Shop::open();
    let newer = cache::newer_qemu();
    let boots = |is_staged: bool| {
        let before = shop.group()["requests"]["hit_bytes"].as_u64().expect("bytes");
        let mut linux = shop.boot("web", &[]);
        if is_staged {
            let pid = shop.house.ask(&["vm", "show", "web"])["pid"].as_u64().expect("a process");
            // The kernel leaves out a page that somebody has locked just then.
            let filled = || (mapped(pid) > 240 * MIB).then_some(());
            await_some("its page tables to be filled", || mapped(pid).to_string(), filled);
        }
        linux.touch(64);
        shop.house.ask(&["vm", "update", "web", "--qemu", &newer, "--untried", "--observe", "1"]);
        linux.call_again(&shop.house);
        assert_eq!(linux.ask("check", "checked")["wrong"], 0, "its memory came along");
        linux.touch(32);
        let size = shop.house.ask(&["vm", "memory", "web"])["boot"].as_u64().expect("bytes");
        let hit = shop.group()["requests"]["hit_bytes"].as_u64().expect("bytes") - before;
        assert_eq!(shop.house.run(&["vm", "stop", "web", "--force"]).code, 0);
        (size, hit)
    };
    let (size, hit) = boots(false);
    assert_eq!(hit, 0, "nobody had asked for this size before");
    let ready = || shop.group()["staged"].as_array()?.iter().any(|stock| stock["size"] == size).then_some(());
    await_some("a block of its size", || shop.group().to_string(), ready);
    assert_eq!(boots(true), (size, size));
    shop.assert_balanced();
}

/// Bytes of a block that a QEMU has in its page tables.
fn mapped(pid: u64) -> u64 {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).expect("it lives");
    let of_it = smaps.lines().skip_while(|line| !line.contains("memfd:gnomon-block:"));
    let rss = of_it.skip(1).find_map(|line| line.strip_prefix("Rss:")?.strip_suffix("kB"));
    rss.map_or(0, |kib| kib.trim().parse::<u64>().expect("a number") << 10)
}

/// A start that is refused changes nothing: a VM that runs stays in its group, and one that never ran is in none. And groups
/// are there as soon as a daemon is.
#[test]
fn a_start_that_is_refused_changes_no_group() {
    let mut shop = Shop::open();
    shop.house.ask(&["group", "create", "other", "--budget", "256M", "--reserve", "128M"]);
    let _linux = shop.boot("web", &[]);
    let run = |name| ["vm", "run", name, "--memory", "256M", "--accel", "tcg", "--kernel", "/nowhere"];
    refused(&shop, &[&run("web")[..], &["--group", "other"]].concat(), "runs already");
    assert_ne!(shop.house.run(&[&run("mail")[..], &["--group", "other"]].concat()).code, 0);
    let members = |group: &str| shop.house.look(&format!("/v1/groups/{group}"))["members"].clone();
    assert_eq!((members("shop"), members("other")), (Value::from(vec!["web"]), Value::Array(Vec::new())));
    shop.house.ask(&["group", "add", "other", "web"]);
    assert_eq!((members("shop"), members("other")), (Value::Array(Vec::new()), Value::from(vec!["web"])));
    shop.house.crash();
    shop.house.start();
    assert_eq!(shop.house.look("/v1/groups/other")["members"], Value::from(vec!["web"]));
    assert_eq!(shop.house.run(&["vm", "stop", "web", "--force"]).code, 0);
    shop.assert_balanced();
}

/// What is asked for wrongly is refused with what to do.
#[test]
fn what_cannot_be_done_about_memory_is_said() {
    let shop = Shop::open();
    refused(&shop, &["group", "create", "shop"], "already");
    refused(&shop, &["group", "create", "far", "--numa-node", "1023"], "no NUMA node 1023");
    refused(&shop, &["group", "remove", "shop", "nobody"], "is not in group");
    assert_eq!(shop.house.run(&["group", "stats", "none"]).code, 1);
    assert_eq!(shop.house.run(&["group", "horizon", "shop", "0s"]).code, 2);
    assert_eq!(shop.house.run(&["vm", "memory", "nobody", "--grow", "128M"]).code, 1);
    assert_ne!(
        shop.house.run(&["vm", "run", "web", "--memory", "256M", "--kernel", "/nowhere", "--group", "none"]).code,
        0
    );
    let _linux = shop.boot("web", &[]);
    refused(&shop, &["vm", "memory", "web", "--grow", "128M"], "without room for more");
    refused(&shop, &["vm", "memory", "web", "--auto", "on"], "without room for more");
    assert_eq!(shop.house.ask(&["group", "horizon", "shop", "30s"])["horizon_s"], 30);
    let off = shop.house.ask(&["group", "disable", "shop"]);
    assert_eq!((&off["shadowing"], &off["target"]), (&Value::from(false), &Value::Array(Vec::new())), "{off}");
    shop.await_staged(0);
    assert_eq!(shop.house.run(&["vm", "stop", "web", "--force"]).code, 0);
}
