//! `demo`: the main job, for real, on one machine.
//!
//! Two daemons with a slow link between them, a guest that beats, reads, rewrites and checks itself, and a move of
//! that guest with its disk while it works. At the end every record of the moved disk is read again.

pub mod beats;
pub mod crash;
pub mod failover;
pub mod guest;
pub mod memory;
pub mod nodes;
mod screen;
pub mod update;

use std::{fs, path::Path, process::ExitCode, time::Instant};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{
    Ended,
    args::{self, Args, Misuse},
    guest_image, newer_qemu, setup, sh,
};
use guest::Guest;
use nodes::Nodes;
use screen::Facts;

/// What the demo is told.
struct Plan {
    rate: u64,
    delay: std::time::Duration,
    size: u64,
    mode: String,
    /// How the guest's memory goes, if it is not as the program chooses.
    ram: Option<String>,
    seed: u64,
}

impl Plan {
    fn of(args: &Args) -> Result<Plan> {
        let link = args.text("link").unwrap_or("400mbit,1ms");
        let (rate, delay) =
            link.split_once(',').ok_or_else(|| Misuse(format!("--link {link}: write 400mbit,1ms")))?;
        let mode = args.text("mode").unwrap_or("hybrid").to_owned();
        if !["pre", "hybrid", "post"].contains(&mode.as_str()) {
            return Err(Misuse(format!("--mode {mode}: write pre, hybrid or post")).into());
        }
        let ram = args.text("ram").map(str::to_owned);
        if ram.as_ref().is_some_and(|ram| !["engine", "qemu"].contains(&ram.as_str())) {
            return Err(Misuse("--ram: write engine or qemu".to_string()).into());
        }
        Ok(Plan {
            rate: args::rate(rate)?,
            delay: args::delay(delay)?,
            size: args::size(args.text("size").unwrap_or("2GiB"))?,
            mode,
            ram,
            seed: args.number("seed", 42)?,
        })
    }
}

/// `cargo xtask demo`
pub fn run(args: &Args) -> Ended {
    let plan = Plan::of(args)?;
    sh::stage("setup", setup::ensure)?;
    let image = sh::stage("guest", guest_image::build)?;
    let newer = sh::stage("a newer QEMU", newer_qemu::ensure)?;
    sh::stage("build", build)?;
    let folder = std::env::temp_dir().join(format!("gn-demo-{}", std::process::id()));
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let facts = perform(&plan, &image, &newer, &folder);
    match args.has("keep") || facts.is_err() {
        true => eprintln!("demo: logs, disks and sockets are kept in {}", folder.display()),
        false => fs::remove_dir_all(&folder)?,
    }
    let facts = facts?;
    match args.has("json") {
        true => println!("{}", facts.json()),
        false => println!("{}", facts.words()),
    }
    Ok(if facts.well() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The program as its users have it.
pub fn build() -> Result<()> {
    sh::run_aside(sh::cargo().args(["build", "--release", "--quiet", "--package", "gnomon"]))
}

fn perform(plan: &Plan, image: &guest_image::GuestImage, newer: &Path, folder: &Path) -> Result<Facts> {
    let started = Instant::now();
    let nodes = sh::stage("two nodes and a link", || Nodes::start(folder, plan.rate, plan.delay))?;
    let mut guest = sh::stage("a guest on node a", || Guest::boot(&nodes, image, plan.size, plan.seed, "nbd"))?;
    let told = sh::stage("move to node b", || guest.move_to_b(&plan.mode, plan.ram.as_deref()))?;
    let updated = sh::stage("another QEMU under it, and a bad one", || guest.update(newer))?;
    sh::stage("a shadow on node a", || guest.protect())?;
    let fall = sh::stage("its QEMU dies", || guest.fail_over())?;
    let last = sh::stage("stop and dump", || guest.stop())?;
    let verified = sh::stage("verify every record", || guest.verify(&nodes.a, image))?;
    let grown = sh::stage("a guest that bursts", || memory::play(&nodes.b, image))?;
    facts(&told, (updated, fall, grown), &last, &guest, verified, started)
}

fn facts(
    job: &Value,
    (updated, fall, grown): (update::Told, beats::Fall, memory::Told),
    last: &Value,
    guest: &Guest,
    verified: bool,
    started: Instant,
) -> Result<Facts> {
    let pulse = guest.pulse();
    let moved =
        |key: &str| job["result"][key].as_u64().with_context(|| format!("the move's result lacks {key}: {job}"));
    let corrupt_records = last["corrupt"].as_u64().context("the guest's last report lacks corrupt")?
        + last["errors"].as_u64().unwrap_or(0)
        + last["ram_wrong"].as_u64().unwrap_or(0);
    Ok(Facts {
        gap_ms: pulse.gap.context("no heartbeat on both nodes")?.as_secs_f64() * 1000.0,
        heartbeats_lost: pulse.lost,
        corrupt_records,
        bytes_total: moved("bytes_total")?,
        bytes_moved: moved("bytes_moved")?,
        reads_after_switch: moved("reads_after_switch")?,
        reads_stalled: moved("reads_stalled")?,
        reads_stalled_sequential: moved("reads_stalled_sequential")?,
        reads_stalled_oracle: moved("reads_stalled_oracle")?,
        verified,
        updated,
        failed_over: failover::Told::of(&fall, corrupt_records),
        grown,
        seconds: started.elapsed().as_secs_f64(),
    })
}
