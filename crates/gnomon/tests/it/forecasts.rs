//! `forecast show`: what is expected of a volume, why, and how good it was. A real client reads, and what it would read
//! next is what the right expert names; also after a restart of the daemon, and of a volume that is like another.

use std::fs::{self, OpenOptions};

use serde_json::{Value, json};

use crate::{
    client::Nbd,
    house::{House, Pair, await_some},
};

/// Bytes of a unit.
const UNIT: u64 = 64 << 10;

fn shown(house: &House, name: &str, more: &[&str]) -> Value {
    house.ask(&[&["forecast", "show", name], more].concat())
}

/// The expert with the greatest weight of a clock, silence aside.
fn leader<'a>(view: &'a Value, clock: &str) -> &'a Value {
    let experts = view["experts"].as_array().expect("experts");
    let of_clock = experts.iter().filter(|row| row["clock"] == clock && row["expert"] != "silence");
    of_clock
        .max_by(|one, other| one["weight"].as_f64().partial_cmp(&other["weight"].as_f64()).expect("weights"))
        .expect("one")
}

/// Insists that `expert` is among what is expected, and for the unit that comes next.
fn names(view: &Value, offset: u64, expert: &str) {
    let expected = view["expected"].as_array().expect("a list");
    let next = expected.iter().find(|row| row["offset"] == offset && row["expert"] == expert);
    let next = next.unwrap_or_else(|| panic!("{expert} does not name {offset} in {view:#}"));
    assert!(next["chance"].as_f64() > Some(0.5) && next["bytes"] == UNIT, "{next}");
}

#[test]
fn a_stream_and_a_pattern_are_expected_to_go_on_by_who_knows_them() {
    let house = House::new();
    let image = house.text("image.raw");
    fs::write(&image, vec![7; 8 << 20]).expect("written");
    OpenOptions::new().write(true).open(&image).and_then(|file| file.set_len(2 << 30)).expect("sized");
    house.ask(&["volume", "import", "root", "--file", &image]);
    let nothing = &shown(&house, "root", &[])[0];
    assert_eq!(
        (&nothing["accesses"], &nothing["expected"], &nothing["moving"]),
        (&json!(0), &json!([]), &Value::Null)
    );
    assert_eq!((&nothing["first"][0]["offset"], &nothing["first"][0]["expert"]), (&json!(0), &json!("sequential")));

    let mut nbd = Nbd::open(&house.path("run/nbd.sock"), "root").expect("the volume is served");
    let mut unit = vec![0; UNIT as usize];
    for at in 0..512 {
        nbd.read(&mut unit, at * UNIT).expect("read");
    }
    let stream = &shown(&house, "root", &["--top", "64"])[0];
    assert_eq!((&stream["accesses"], &stream["reads"][0]["offset"]), (&json!(512), &json!(511 * UNIT)));
    assert_eq!(leader(stream, "reactive")["expert"], "readahead", "{stream:#}");
    let bins = stream["calibration"].as_array().expect("bins");
    assert!(bins.iter().all(|bin| bin["came_true"].as_f64() <= Some(1.0)) && stream["calibration_error"].is_number());
    assert!(leader(stream, "reactive")["worth"]["precision"].as_f64() > Some(0.5), "{stream:#}");
    names(stream, 512 * UNIT, "readahead");
    assert!(stream["first"][0]["offset"].as_u64() < Some(8 << 20), "only what is allocated would move: {stream:#}");
    assert_eq!((&stream["first"][0]["reads"], &stream["first"][0]["writes"]), (&json!(1), &json!(0)), "{stream:#}");

    let mut at = 1024;
    for step in [7, 90, 3].into_iter().cycle().take(600) {
        nbd.read(&mut unit[..4096], at * UNIT).expect("read");
        at += step;
    }
    let pattern = &shown(&house, "root", &["--top", "64"])[0];
    assert_eq!(leader(pattern, "sequence")["expert"], "delta-markov", "{pattern:#}");
    names(pattern, at * UNIT, "delta-markov");
    let few = &shown(&house, "root", &["--top", "2"])[0];
    assert!(
        ["reads", "expected", "first"].iter().all(|list| few[list].as_array().is_some_and(|list| list.len() <= 2))
    );
    let said = house.run(&["forecast", "show", "root"]);
    assert!(
        ["delta-markov", "Expected soon", "First in a move"].iter().all(|word| said.out.contains(word)),
        "{}",
        said.out
    );
}

#[test]
fn a_vm_shows_its_volumes_and_what_does_not_exist_is_refused() {
    let house = House::new();
    for volume in ["root", "data"] {
        house.ask(&["volume", "create", volume, "--size", "8M"]);
    }
    let said = house.run(&["forecast", "show", "data"]);
    assert!(said.code == 0 && said.out.contains("no access has been seen yet"), "{} {}", said.out, said.err);
    house.ask(&["vm", "run", "web", "--memory", "16M", "--accel", "tcg", "--disk", "root", "--disk", "data"]);
    let volumes: Vec<Value> =
        shown(&house, "web", &[]).as_array().expect("a list").iter().map(|view| view["volume"].clone()).collect();
    assert_eq!(volumes, ["root", "data"]);
    house.ask(&["vm", "stop", "web", "--force"]);
    for (args, why) in [
        (vec!["forecast", "show", "nobody"], "groups and namespaces do not exist yet"),
        (vec!["forecast", "show", "web", "--volume"], "there is no volume named 'web'"),
    ] {
        let said = house.run(&args);
        assert!(said.code == 1 && said.err.contains(why), "{} {}", said.code, said.err);
    }
    assert_eq!(house.run(&["forecast", "show", "root", "--top", "257"]).code, 2, "lists are bounded");
}

#[test]
fn a_move_can_be_asked_for_its_forecast() {
    let pair = Pair::new();
    pair.a.ask(&["volume", "create", "data", "--size", "64M"]);
    let mut nbd = Nbd::open(&pair.a.path("run/nbd.sock"), "data").expect("the volume is served");
    for at in 0..32 {
        nbd.write(&vec![7; 1 << 20], at << 20).expect("written");
    }
    let slow = ["--mode", "post", "--bandwidth", "100KB/s", "--detach"];
    pair.a.ask(&[&["volume", "move", "data", "--to", "b"][..], &slow].concat());
    // At this rate the move lasts for minutes: long enough to be asked.
    let look = || Some(shown(&pair.a, "data", &[])[0].clone()).filter(|view| view["moving"]["switched"] == true);
    let view = await_some("the switch", || shown(&pair.a, "data", &[]).to_string(), look);
    let moving = &view["moving"];
    assert!(moving["lacking"].as_u64() > Some(0) && moving["job"].is_string(), "{view:#}");
    assert!(view["first"][0]["writes"].as_u64() > Some(0), "what is lacking is what was written: {view:#}");
    await_some("the taking", || pair.b.role("data"), || (pair.b.role("data") == "primary, draining").then_some(()));
    let mut there = Nbd::open(&pair.b.path("run/nbd.sock"), "data").expect("the volume is served there");
    there.read(&mut [0; 4096], 31 << 20).expect("read");
    let stalled = || Some(shown(&pair.a, "data", &[])[0].clone()).filter(|view| view["moving"]["stalls"] == 1);
    let view = await_some("the stall", || shown(&pair.a, "data", &[]).to_string(), stalled);
    assert_eq!(view["moving"]["stalled_share"], 1.0, "{view:#}");
    let last = view["gap_over_time"].as_array().and_then(|points| points.last()).expect("a point");
    assert_eq!((&last["reads"], &last["stalls"]), (&json!(1), &json!(1)), "{view:#}");
    let orders = [&view["moving"]["stalls_sequential"], &view["moving"]["stalls_oracle"]];
    assert!(orders.iter().all(|stalls| stalls.as_u64() <= Some(1) && stalls.is_number()), "{view:#}");
    assert_eq!(shown(&pair.b, "data", &[])[0]["ask_node"], "a");
    let said = pair.b.run(&["forecast", "show", "data"]).out;
    assert!(said.contains("from node a") && said.contains("gnomon forecast show data"), "{said}");

    let drawn = |marks: [&str; 3]| {
        let file = pair.a.text("data.svg");
        pair.a.ask(&["forecast", "show", "data", "--plot", &file]);
        let svg = fs::read_to_string(&file).expect("a picture");
        assert!(svg.starts_with("<svg ") && marks.iter().all(|mark| svg.contains(mark)), "{svg}");
    };
    drawn(["Volume data (", ">reads after the switch<", "s of a move"]);
    pair.a.ask(&["volume", "bandwidth", "data", "none"]);
    assert_eq!(pair.a.await_end("data")["state"], "done");
    let view = &shown(&pair.a, "data", &[])[0];
    let last = view["gap_over_time"].as_array().and_then(|points| points.last()).expect("a point");
    assert_eq!((&view["moving"], &last["reads"]), (&Value::Null, &json!(1)), "the last move is remembered: {view:#}");
    assert!(pair.a.run(&["forecast", "show", "data"]).out.contains("In the last move 1 of 1 reads waited"));
    drawn(["Volume data (released)", ">share that came true<", "s of a move"]);
}

/// The place of the nth unit that a guest reads when it starts: the first sector, then all over the disk.
fn booted(nth: u64) -> u64 {
    nth * 7919 % 30_011 * UNIT
}

/// Reads what a guest reads when it starts, from the first unit on.
fn boot(house: &House, volume: &str, units: u64) {
    let mut nbd = Nbd::open(&house.path("run/nbd.sock"), volume).expect("the volume is served");
    (0..units).for_each(|nth| nbd.read(&mut [0; 4096], booted(nth)).expect("read"));
}

/// What was recorded of a boot is known to the next daemon, however the last one ended, and to a volume that is said to be
/// like this one. What cannot be believed is told and does no harm, and all of it goes with the volume.
#[test]
fn a_boot_is_remembered_over_a_restart_and_for_a_volume_that_is_like_it() {
    let mut house = House::new();
    house.ask(&["volume", "create", "root", "--size", "2G"]);
    boot(&house, "root", 400);
    assert_eq!(shown(&house, "root", &[])[0]["before"], false);
    house.stop();
    let kept = house.path("state/volumes/root.raw.learned");
    assert!(kept.exists(), "it is written when the daemon ends");
    house.start();
    house.crash();
    house.start();
    let view = &shown(&house, "root", &[])[0];
    assert_eq!((&view["before"], &view["accesses"]), (&json!(true), &json!(0)), "{view:#}");
    house.ask(&["volume", "create", "sibling", "--size", "2G", "--like", "root"]);
    for volume in ["root", "sibling"] {
        boot(&house, volume, 100);
        let view = &shown(&house, volume, &["--top", "64"])[0];
        names(view, booted(100), "recorded");
        assert!(house.run(&["forecast", "show", volume]).out.contains("what was kept of before"), "{view:#}");
    }
    house.ask(&["volume", "create", "stranger", "--size", "2G"]);
    boot(&house, "stranger", 100);
    let expected = shown(&house, "stranger", &["--top", "64"])[0]["expected"].clone();
    let rows = expected.as_array().expect("a list");
    assert!(rows.iter().all(|row| row["expert"] != "recorded"), "nobody told it: {expected:#}");

    house.stop();
    let mut bytes = fs::read(&kept).expect("a file");
    *bytes.last_mut().expect("some bytes") ^= 1;
    fs::write(&kept, &bytes).expect("written");
    house.start();
    assert_eq!(shown(&house, "root", &[])[0]["before"], false, "a damaged file is not believed");
    assert!(house.log().contains("set aside") && house.path("state/volumes/root.raw.learned.bad").exists());
    house.ask(&["volume", "rm", "root", "--yes"]);
    house.ask(&["volume", "create", "root", "--size", "2G"]);
    assert_eq!(shown(&house, "root", &[])[0]["before"], false, "another volume of the same name");
    for volume in ["root", "sibling", "stranger"] {
        house.ask(&["volume", "rm", volume, "--yes"]);
    }
    assert_eq!(fs::read_dir(house.path("state/volumes")).expect("a folder").count(), 0, "nothing is left over");
    let said = house.run(&["volume", "create", "root", "--size", "2G", "--like", "nobody"]);
    assert!(said.code == 1 && said.err.contains("nobody"), "{} {}", said.code, said.err);
}

/// Runs a VM that never gets further than its firmware.
fn run<'a>(name: &'a str, disks: &[&'a str], group: Option<&'a str>) -> Vec<&'a str> {
    let disks = disks.iter().flat_map(|disk| ["--disk", disk]);
    let group = group.into_iter().flat_map(|group| ["--group", group]);
    ["vm", "run", name, "--memory", "16M", "--accel", "tcg"].into_iter().chain(disks).chain(group).collect()
}

/// What a volume began like.
fn like(house: &House, volume: &str) -> Value {
    let view = &shown(house, volume, &["--volume"])[0];
    assert_eq!(view["before"], !view["like"].is_null(), "{view:#}");
    view["like"].clone()
}

/// A disk of which nothing was learned begins like one of its trust group: when its VM starts there or joins, and for the
/// next daemon too. Never across groups, never over what was learned, and a start that fails leaves nothing behind.
#[test]
fn a_disk_begins_with_what_its_trust_group_has_learned() {
    let mut house = House::new();
    let sizes = [("a", "2G"), ("b", "2G"), ("small", "1G"), ("c", "2G"), ("d", "2G"), ("e", "2G"), ("f", "2G")];
    for (volume, size) in sizes {
        house.ask(&["volume", "create", volume, "--size", size]);
    }
    for group in ["shop", "other"] {
        house.ask(&["group", "create", group, "--budget", "64M", "--reserve", "0"]);
    }
    boot(&house, "a", 400);
    house.stop();
    house.start();
    house.ask(&run("vm-a", &["a"], Some("shop")));
    house.ask(&run("vm-b", &["b", "small"], Some("shop")));
    house.ask(&run("vm-c", &["c"], Some("other")));
    assert_eq!(["b", "small", "c"].map(|volume| like(&house, volume)), [json!("a"), Value::Null, Value::Null]);
    assert!(house.run(&["forecast", "show", "b", "--volume"]).out.contains("what volume a had learned"));
    assert!(house.log().contains("of the same trust group"), "{}", house.log());

    house.crash();
    house.start();
    assert_eq!(like(&house, "b"), "a", "the next daemon knows it too");
    boot(&house, "b", 100);
    names(&shown(&house, "b", &["--volume", "--top", "64"])[0], booted(100), "recorded");

    house.ask(&run("vm-d", &["d"], None));
    assert_eq!(like(&house, "d"), Value::Null, "it is in no group");
    house.ask(&["group", "add", "shop", "vm-d"]);
    assert!(["a", "b"].map(Value::from).contains(&like(&house, "d")), "it has joined one");
    house.ask(&["group", "add", "other", "vm-a"]);
    let view = &shown(&house, "a", &["--volume"])[0];
    assert_eq!((&view["before"], &view["like"]), (&json!(true), &Value::Null), "it has learned by itself");

    let failing = [&run("vm-e", &["e"], Some("shop"))[..], &["--kernel", "/nowhere"]].concat();
    assert_ne!(house.run(&failing).code, 0);
    assert_eq!(like(&house, "e"), Value::Null, "its VM never ran in the group");
    house.ask(&["group", "remove", "shop", "vm-d"]);
    house.ask(&["vm", "stop", "vm-d", "--force"]);
    house.ask(&run("vm-d", &["f"], None));
    assert_eq!(like(&house, "f"), Value::Null, "its VM has left the group");
}
