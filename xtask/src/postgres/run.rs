//! The run: boot, protect, work; then to the other host and back, as often as the plan has it; then the verdict.

use std::{
    fs,
    path::Path,
    thread,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{
    Plan, Way,
    client::{Client, Load, PATIENCE, RETRY, Told},
    facts::{Facts, WAYS},
    hosts,
    image::Image,
    memory, verdict,
};
use crate::{
    demo::{
        failover,
        nodes::{Node, Nodes},
    },
    sh,
};

/// What the guest is called.
pub const VM: &str = "db";
const VOLUME: &str = "db";

/// As in the demo: 8 KiB more than 256 MiB.
const MEMORY_KIB: u64 = 262_152;

/// It is grown by so much, before it is protected.
const GROWS: u64 = 256 << 20;

/// From one checkpoint to the next: what each answer waits for, about twice in the mean.
const INTERVAL: &str = "100ms";

/// Of the hosts' link: 1 Gbit/s.
pub const RATE: u64 = 125_000_000;

/// The guest's card: a port of the host's bridge, of the same name on both.
const CARD: &str = "tap:gn-db,bridge=br0";

/// Something that was done to the guest, and when: microseconds since 1970.
struct Event {
    way: Way,
    from: u64,
    to: u64,
}

/// Makes the run in a folder of its own, which is kept when something went wrong.
pub fn run(plan: &Plan, image: &Image) -> Result<Facts> {
    let folder = std::env::temp_dir().join(format!("gn-postgres-{}", std::process::id()));
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let facts = perform(plan, image, &folder);
    match facts.as_ref().is_ok_and(Facts::is_good) {
        true => fs::remove_dir_all(&folder)?,
        false => eprintln!("postgres: logs and disks are kept in {}", folder.display()),
    }
    facts
}

fn perform(plan: &Plan, image: &Image, folder: &Path) -> Result<Facts> {
    let nodes = sh::stage("two hosts", || Nodes::start_at(folder, hosts::HOSTS, RATE))?;
    let client = Client::new(&image.root, folder);
    sh::stage("a guest on host a", || boot(&nodes.a, image, GROWS).and_then(|()| client.await_database()))?;
    let load = client.load(plan.clients)?;
    load.await_work()?;
    sh::stage("more memory, and less again", || memory::breathe(&nodes.a, &client, GROWS, || load.await_work()))?;
    let begun = now()?;
    let events = shuttle(plan, &nodes, &load)?;
    let ended = now()?;
    let Told { acks, broken } = load.stop()?;
    let verdict = verdict::judge(&acks, &client.rows()?);
    let silence = |(way, _): (Way, &str)| {
        let of = events.iter().filter(|event| event.way == way);
        of.map(|event| verdict::silence(&acks, event.from, event.to) as f64 / 1000.0).collect()
    };
    Ok(Facts {
        balanced: client.is_balanced()?,
        tps: verdict::rate(&acks, begun, ended),
        silences: WAYS.map(silence),
        verdict,
        broken,
    })
}

/// Starts the guest: with 256 MiB, and room for so many more as it is grown by.
pub fn boot(node: &Node, image: &Image, room: u64) -> Result<()> {
    let text = |path: &Path| path.to_str().map(str::to_owned).with_context(|| format!("{}", path.display()));
    let (disk, kernel, initrd) = (text(&image.disk)?, text(&image.kernel)?, text(&image.initrd)?);
    node.ask(&["volume", "import", VOLUME, "--file", &disk])?;
    // New memory is used at once, and can be given back.
    let memory = "memhp_default_state=online_movable";
    let append = format!("console=ttyS0 quiet panic=-1 {memory} GNOMON_ADDRESS={}/24", hosts::GUEST);
    let (begins, most) = (format!("{MEMORY_KIB}KiB"), format!("{}KiB", MEMORY_KIB + (room >> 10)));
    let run = ["vm", "run", VM, "--memory", &begins, "--max-memory", &most, "--disk", VOLUME, "--nic", CARD];
    node.ask(&[&run[..], &["--kernel", &kernel, "--initrd", &initrd, "--append", &append]].concat()).map(drop)
}

/// There and back, with a shadow on the other host each time; what was done, and when.
fn shuttle(plan: &Plan, nodes: &Nodes, load: &Load) -> Result<Vec<Event>> {
    let (mut here, mut there) = (&nodes.a, &nodes.b);
    let mut events = Vec::new();
    protect(here, there)?;
    for (turn, way) in plan.ways().into_iter().enumerate() {
        let name = format!("{}: {way:?} from {} to {}", turn + 1, here.name, there.name);
        sh::stage(&name, || -> Result<()> {
            load.await_work()?;
            await_look(here, "is protected", |vm| vm["protection"]["state"] == "protected")?;
            let from = now()?;
            match way {
                Way::Switchover => here.ask(&["vm", "switchover", VM]).map(drop)?,
                Way::QemuDies => failover::fail_over(here, there, VM)?,
                Way::HostDies => failover::outlive(here, there, VM)?,
            }
            let to = now()?;
            load.await_work()?;
            events.push(Event { way, from, to });
            if way != Way::Switchover {
                clear(here)?;
            }
            (here, there) = (there, here);
            protect(here, there)
        })?;
    }
    load.await_work()?;
    Ok(events)
}

fn protect(here: &Node, there: &Node) -> Result<()> {
    here.ask(&["vm", "protect", VM, "--on", there.name, "--interval", INTERVAL, "--strict"]).map(drop)
}

/// Removes what a failover has left of the guest, once its host has heard that it was lost.
fn clear(node: &Node) -> Result<()> {
    await_look(node, "has heard that its guest was taken over", |vm| vm["protection"].is_null())?;
    node.ask(&["vm", "stop", VM])?;
    node.ask(&["volume", "rm", VOLUME, "--yes"]).map(drop)
}

/// Looks at the guest on a node until it is as wished.
fn await_look(node: &Node, wish: &str, fits: impl Fn(&Value) -> bool) -> Result<()> {
    let started = Instant::now();
    loop {
        let seen = node.ask(&["vm", "show", VM])?;
        if fits(&seen) {
            return Ok(());
        }
        ensure!(started.elapsed() < PATIENCE, "nobody says on node {} that it {wish}: {seen}", node.name);
        thread::sleep(RETRY);
    }
}

/// Microseconds since 1970.
pub fn now() -> Result<u64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?.as_micros() as u64)
}
