//! Whether a workload sees that its guest is grown: PostgreSQL under pgbench in a Debian guest, which is given memory from
//! what is staged, gives it back, is given as much by the cold path, and gives it back, in turns. What the clients waited for
//! their transactions meanwhile is held against the undisturbed time before each change. Needs root.

use std::{fs, path::Path, thread, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::spans::{self, Deed};
use crate::{
    args::Args,
    demo::nodes::Nodes,
    postgres::{
        self,
        client::{Client, Load, Told},
        hosts,
        image::{self, Image},
        memory::{Change, Pool},
        run, verdict,
    },
    sh,
};

const ROUNDS: usize = 10;
/// By so much the guest is grown. It begins with 256 MiB.
const GROWS: u64 = 1 << 30;
const CLIENTS: u32 = 4;
/// Undisturbed, before each change.
const QUIET: Duration = Duration::from_secs(6);

const STAGED: &str = "given 1 GiB of staged memory";
const STAGED_BACK: &str = "staged memory taken back";
const COLD: &str = "given 1 GiB of cold memory";
const COLD_BACK: &str = "cold memory taken back";

/// The rows; lower is better in each.
pub(super) fn rows(args: &Args) -> Result<Value> {
    let rounds = args.number("rounds", ROUNDS)?.max(1);
    if hosts::is_within() {
        return measure(rounds, &image::build()?);
    }
    postgres::prepare()?;
    let words = ["bench", "memory", "--only", "debian", "--json", "--rounds"].map(str::to_owned);
    let told = hosts::ask(&[&words[..], &[rounds.to_string()]].concat())?;
    let mut told: Value = serde_json::from_str(&told).context("what the measurement tells is no JSON")?;
    Ok(told["rows"].take())
}

/// In a folder of its own, which is kept when something went wrong.
fn measure(rounds: usize, image: &Image) -> Result<Value> {
    let folder = std::env::temp_dir().join(format!("gn-debian-{}", std::process::id()));
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let rows = perform(rounds, image, &folder);
    match rows.is_ok() {
        true => fs::remove_dir_all(&folder)?,
        false => eprintln!("debian: logs and disks are kept in {}", folder.display()),
    }
    rows
}

fn perform(rounds: usize, image: &Image, folder: &Path) -> Result<Value> {
    let nodes = sh::stage("two hosts", || Nodes::start_at(folder, hosts::HOSTS, run::RATE))?;
    let client = Client::new(&image.root, folder);
    sh::stage("a guest on host a", || run::boot(&nodes.a, image, GROWS).and_then(|()| client.await_database()))?;
    let pool = Pool::open(&nodes.a, GROWS)?;
    let load = client.load(CLIENTS)?;
    let mut deeds = Vec::new();
    for round in 0..rounds {
        sh::stage(&format!("round {}/{rounds}", round + 1), || play(&pool, &load, round, &mut deeds))?;
    }
    let Told { acks, broken } = load.stop()?;
    let verdict = verdict::judge(&acks, &client.rows()?);
    ensure!(verdict.is_good() && broken == 0 && client.is_balanced()?, "transactions are missing: {verdict:?}");
    pool.close()?;
    Ok([STAGED, STAGED_BACK, COLD, COLD_BACK].iter().map(|kind| spans::row(kind, &deeds, &acks)).collect())
}

/// Both ways, each round beginning with the other one.
fn play(pool: &Pool<'_>, load: &Load, round: usize, deeds: &mut Vec<Deed>) -> Result<()> {
    for turn in 0..2 {
        let staged = (round + turn).is_multiple_of(2);
        let [given, back] = if staged { [STAGED, STAGED_BACK] } else { [COLD, COLD_BACK] };
        if staged {
            pool.join()?;
        }
        deeds.push(after_quiet(pool, load, given, || pool.grow())?);
        deeds.push(after_quiet(pool, load, back, || pool.shrink())?);
        if staged {
            pool.leave()?;
        }
    }
    Ok(())
}

/// Does it after a time in which nothing was done to the guest, and nothing was being staged.
fn after_quiet(
    pool: &Pool<'_>,
    load: &Load,
    kind: &'static str,
    change: impl FnOnce() -> Result<Change>,
) -> Result<Deed> {
    pool.await_staged()?;
    load.await_work()?;
    let quiet = run::now()?;
    thread::sleep(QUIET);
    let Change { from, to, staged, dimms } = change()?;
    ensure!(kind != STAGED || staged == GROWS, "it was given other memory than was staged: {staged} bytes");
    ensure!(kind != COLD || staged == 0, "it was given staged memory: {staged} bytes");
    // What is seen a moment after it belongs to it.
    load.await_work()?;
    eprintln!("{kind}: {:.0} ms, {dimms} DIMMs", (to - from) as f64 / 1e3);
    Ok(Deed { kind, quiet, from, to, dimms })
}
