//! What checkpoints cost a Linux guest: how long it stands, beside what QEMU alone needs to write its devices down and go
//! on; how much slower it works; and that both hang on what it writes and not on how much memory it has.
//!
//! `checkpoints KERNEL INITRD DISK ROUNDS MIB…`. What is compared is measured in turn on the same guest, so that a busy
//! host falls on both alike. The shadow is in this process. Prints JSON. `cargo xtask bench checkpoint` runs it.

mod guest;
#[path = "../measured/mod.rs"]
mod measured;

use std::{
    thread,
    time::{Duration, Instant},
};

use gnomon_machine::primary::Told;
use guest::{Guest, Parts};
use measured::Fallible;

const MEMORY: u64 = 256 << 20;
/// Milliseconds from one checkpoint to the next.
const INTERVALS: [u64; 3] = [50, 100, 500];
/// For guests of several sizes.
const USUAL: Duration = Duration::from_millis(100);
/// Checkpoints at each interval for each round.
const A_ROUND: usize = 20;

/// It writes 16 pages of 64 MiB each millisecond, whatever its memory, and a few records on its disk.
const STEADY: &str = "gn.buf=64 gn.dirty=16";
/// It beats as often as it can, and writes four of those pages with each: how often that is, is how fast it works.
const FLAT_OUT: &str = "gn.buf=64 gn.dirty=4 gn.tick_us=50 gn.read_iops=0 gn.write_iops=0";
/// One look at how fast it works.
const LOOK: Duration = Duration::from_secs(1);

fn main() -> Fallible<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [kernel, initrd, disk, rounds, sizes @ ..] = &words[..] else {
        return Err("usage: checkpoints KERNEL INITRD DISK ROUNDS MIB…".into());
    };
    let parts = Parts { kernel: kernel.into(), initrd: initrd.into(), disk: disk.into() };
    let rounds: usize = rounds.parse()?;
    let mut rows = pauses(&parts, rounds * A_ROUND)?;
    rows.extend(slowdowns(&parts, rounds)?);
    for size in sizes {
        rows.push(of_a_size(&parts, size.parse()?, rounds * A_ROUND)?);
    }
    println!("[{}]", rows.join(",\n "));
    Ok(())
}

/// How long it stands at each interval, checkpoints and bare captures in turn.
fn pauses(parts: &Parts, count: usize) -> Fallible<Vec<String>> {
    let mut guest = Guest::start(parts, MEMORY, STEADY)?;
    let mut rows = Vec::new();
    for millis in INTERVALS {
        let (told, bare) = in_turn(&mut guest, Duration::from_millis(millis), count)?;
        rows.push(pause_row(&format!("every {millis} ms"), &told, bare));
    }
    Ok(rows)
}

/// A guest of another size that writes as much.
fn of_a_size(parts: &Parts, mib: u64, count: usize) -> Fallible<String> {
    let mut guest = Guest::start(parts, mib << 20, STEADY)?;
    let (told, bare) = in_turn(&mut guest, USUAL, count)?;
    Ok(pause_row(&format!("{mib} MiB"), &told, bare))
}

fn in_turn(guest: &mut Guest, interval: Duration, count: usize) -> Fallible<(Vec<Told>, Vec<Duration>)> {
    let (mut told, mut bare) = (Vec::new(), Vec::new());
    let mut rhythm = Rhythm::new(interval);
    for _ in 0..count {
        rhythm.wait();
        told.push(guest.primary.checkpoint()?);
        rhythm.wait();
        bare.push(guest.bare()?);
    }
    Ok((told, bare))
}

fn pause_row(case: &str, told: &[Told], bare: Vec<Duration>) -> String {
    let mean = |of: fn(&Told) -> u64| told.iter().map(of).sum::<u64>() / told.len().max(1) as u64;
    let (took, _) = spread(told.iter().map(|told| told.took).collect());
    let (ours, bare) = (spread(told.iter().map(|told| told.pause).collect()), spread(bare));
    format!(
        r#"{{"case":"{case}","kind":"pause","unit":"ms","better":"lower","n":{},"gnomon_p50":{:.2},"gnomon_p95":{:.2},"bare_p50":{:.2},"bare_p95":{:.2},"times_bare_p50":{:.2},"times_bare_p95":{:.2},"took_p50":{took:.2},"pages_running":{},"pages_standing":{},"bytes":{},"device_bytes":{}}}"#,
        told.len(),
        ours.0,
        ours.1,
        bare.0,
        bare.1,
        ours.0 / bare.0,
        ours.1 / bare.1,
        mean(|told| told.running.0),
        mean(|told| told.standing.0),
        mean(|told| told.bytes.0),
        mean(|told| told.device.0),
    )
}

/// How much slower a guest works that does nothing else: with checkpoints, and with bare captures, beside none.
fn slowdowns(parts: &Parts, rounds: usize) -> Fallible<Vec<String>> {
    let mut guest = Guest::start(parts, MEMORY, FLAT_OUT)?;
    let mut rows = Vec::new();
    for millis in INTERVALS {
        let interval = Duration::from_millis(millis);
        let (mut none, mut ours, mut bare) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..rounds {
            none.push(speed(&mut guest, interval, |_| Ok(()))?);
            ours.push(speed(&mut guest, interval, |guest| Ok(guest.primary.checkpoint().map(drop)?))?);
            bare.push(speed(&mut guest, interval, |guest| guest.bare().map(drop))?);
        }
        let (none, ours, bare) = (median(none), median(ours), median(bare));
        rows.push(format!(
            r#"{{"case":"every {millis} ms","kind":"slowdown","unit":"percent","better":"lower","n":{rounds},"beats_a_second":{none:.0},"gnomon":{:.1},"bare":{:.1}}}"#,
            (1.0 - ours / none) * 100.0,
            (1.0 - bare / none) * 100.0,
        ));
    }
    Ok(rows)
}

/// Beats a second while something is done to the guest at an interval.
fn speed(guest: &mut Guest, interval: Duration, mut deed: impl FnMut(&mut Guest) -> Fallible<()>) -> Fallible<f64> {
    let mut rhythm = Rhythm::new(interval);
    // The first one takes in what was written while nobody looked.
    deed(guest)?;
    let (began, before) = (Instant::now(), guest.beats());
    while began.elapsed() < LOOK {
        rhythm.wait();
        deed(guest)?;
    }
    Ok((guest.beats() - before) as f64 / began.elapsed().as_secs_f64())
}

/// So long from one beginning to the next; late is not made up for.
struct Rhythm {
    interval: Duration,
    due: Instant,
}

impl Rhythm {
    fn new(interval: Duration) -> Rhythm {
        Rhythm { interval, due: Instant::now() }
    }

    fn wait(&mut self) {
        self.due = Instant::now().max(self.due + self.interval);
        thread::sleep(self.due.saturating_duration_since(Instant::now()));
    }
}

/// The median and the 95th percentile, milliseconds.
fn spread(samples: Vec<Duration>) -> (f64, f64) {
    let mut samples: Vec<f64> = samples.iter().map(|sample| sample.as_secs_f64() * 1e3).collect();
    samples.sort_by(f64::total_cmp);
    let at = |share: usize| samples.get(samples.len() * share / 100).copied().unwrap_or_default();
    (at(50), at(95))
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied().unwrap_or_default()
}
