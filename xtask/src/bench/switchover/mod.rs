//! `bench switchover`: how long a guest is silent when it changes its host, beside QEMU's own pre-copy migration.
//!
//! Both move the same guest, under TCG, between two QEMUs of the same version on this machine: ours from the daemon of
//! one node to that of another with its disk, QEMU's over a unix socket with a disk that both share. The guest beats each
//! millisecond and dirties so many of the pages of 128 MiB with each beat; what counts is the longest distance between two
//! beats around the switch, as the host hears them. A last case changes the QEMU on one host, to a newer one and back.
//!
//! Two guests alive at once would disturb each other, so for each case our guest makes half of the rounds, then the peer's
//! all of them, then ours the rest: a drift of the machine falls on both alike.

mod native;
mod ours;

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::{Better, Case, Row, list};
use crate::{
    args::Args,
    demo::{self, beats},
    guest_image::{self, GuestImage},
    newer_qemu, setup, sh,
};
use native::Native;
use ours::Ours;

const CONTENDERS: [&str; 3] = ["gnomon", "qemu-tuned", "qemu-default"];

/// How long the guest beats on after a switch before it is looked at: what is late by then is of something else.
const AROUND: Duration = Duration::from_millis(400);

/// Records on the guest's disk, which it leaves alone here: 16 MiB.
const RECORDS: &str = "4096";

/// QEMU 7.2 under TCG loses dirty pages in a migration of its own when RAM is a multiple of 256 KiB (fixed upstream by
/// 03bfc2188f06, in 9.0). With 8 KiB more it takes another path, and is right.
const UNALIGNED_KIB: u64 = 8;

/// A guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Load {
    ram_mib: u64,
    /// Pages dirtied each millisecond.
    rate: u64,
}

impl Load {
    fn memory_kib(self) -> u64 {
        self.ram_mib * 1024 + UNALIGNED_KIB
    }

    fn kernel_line(self) -> String {
        let rate = self.rate;
        format!("console=ttyS0 quiet panic=-1 gn.seed=1 gn.buf=128 gn.dirty={rate} gn.read_iops=0 gn.write_iops=0")
    }
}

/// What all guests boot.
struct Stage<'a> {
    image: &'a GuestImage,
    /// The filled disk.
    disk: &'a Path,
    folder: &'a Path,
    newer: &'a Path,
    /// What all beats are timed from.
    began: Instant,
}

/// Runs the benchmark.
pub(super) fn run(rounds: usize, args: &Args) -> Result<Vec<Row>> {
    let rams = list(args, "ram", &[256, 1024])?;
    let rates = list(args, "rates", &[0, 4, 16])?;
    setup::ensure()?;
    let image = sh::stage("guest", guest_image::build)?;
    let newer = sh::stage("a newer QEMU", newer_qemu::ensure)?;
    sh::stage("build", demo::build)?;
    let folder = std::env::temp_dir().join(format!("gn-switch-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    let disk = folder.join("filled.raw");
    let mut fill = std::process::Command::new(&image.program);
    sh::run_aside(fill.args(["fill", "--seed", "1", "--records", RECORDS, "--file"]).arg(&disk))?;
    let stage = Stage { image: &image, disk: &disk, folder: &folder, newer: &newer, began: Instant::now() };
    let measured = measure(&stage, rounds, &rams, &rates);
    match measured.is_err() {
        true => eprintln!("bench: logs are kept in {}", folder.display()),
        false => fs::remove_dir_all(&folder)?,
    }
    measured
}

fn measure(stage: &Stage, rounds: usize, rams: &[u64], rates: &[u64]) -> Result<Vec<Row>> {
    let mut ours = Ours::start(stage)?;
    let mut rows = Vec::new();
    for &ram_mib in rams {
        for &rate in rates {
            let load = Load { ram_mib, rate };
            rows.push(row(stage, &mut ours, load, rounds, Deed::Switchover)?);
        }
        // The guest of the middle: RAM is not copied, so its rate hardly matters.
        let load = Load { ram_mib, rate: rates[rates.len() / 2] };
        rows.push(row(stage, &mut ours, load, rounds, Deed::Upgrade)?);
    }
    Ok(rows)
}

/// What is done to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    /// It goes to another host, by the same QEMU.
    Switchover,
    /// It stays, and changes its QEMU: to the newer one, and back.
    Upgrade,
}

fn row(stage: &Stage, ours: &mut Ours, load: Load, rounds: usize, deed: Deed) -> Result<Row> {
    let name = match deed {
        Deed::Switchover => format!("{} MiB, {} pages/ms", load.ram_mib, load.rate),
        Deed::Upgrade => format!("upgrade, {} MiB", load.ram_mib),
    };
    let mut samples = CONTENDERS.map(|who| (who, Vec::new()));
    let (first, rest) = (rounds.div_ceil(2), rounds / 2);
    ours.gaps(load, deed, first, &mut samples[0].1).with_context(|| format!("{name}: gnomon"))?;
    let mut native = Native::boot(stage, load)?;
    for _ in 0..rounds {
        samples[1].1.push(native.migrate(deed, native::TUNED).with_context(|| format!("{name}: QEMU, tuned"))?);
        samples[2].1.push(native.migrate(deed, native::DEFAULT).with_context(|| format!("{name}: QEMU, default"))?);
    }
    drop(native);
    ours.gaps(load, deed, rest, &mut samples[0].1).with_context(|| format!("{name}: gnomon"))?;
    for (who, gaps) in &samples {
        eprintln!("{name:<24} {who:<13} {gaps:.1?} ms");
    }
    Ok(Row { case: Case { name, unit: "ms", better: Better::Lower }, samples: samples.into() })
}

/// The gap that two streams show, milliseconds. A switch that loses a beat is no switch.
fn gap(source: &demo::guest::Stream, destination: &demo::guest::Stream) -> Result<f64> {
    let pulse = beats::judge(&demo::guest::lock(source), &demo::guest::lock(destination));
    anyhow::ensure!(pulse.lost == 0, "{} heartbeats were lost", pulse.lost);
    let gap = pulse.gap.context("no heartbeat on both sides of the switch")?;
    Ok(demo::update::millis(gap))
}

/// Waits until something is heard, and then as long as is looked at.
fn beat_on(stream: &demo::guest::Stream) -> Result<()> {
    let began = Instant::now();
    while demo::guest::lock(stream).is_empty() {
        anyhow::ensure!(began.elapsed() < Duration::from_secs(60), "the guest does not beat");
        std::thread::sleep(demo::guest::RETRY);
    }
    std::thread::sleep(AROUND);
    Ok(())
}
