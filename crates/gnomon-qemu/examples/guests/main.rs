//! How long a Linux guest waits for memory: a DIMM of memory that was staged, beside one that nobody has allocated yet,
//! which its first touches or QEMU have to; and the same for what a guest boots with.
//!
//! `guests KERNEL INITRD ROUNDS`. The ways take turns on the same guest, each round beginning with another one, so
//! that a busy host falls on all alike. Prints JSON: the samples of each case by way, in milliseconds. `cargo xtask bench
//! memory` runs it.

mod guest;
mod staged;

use std::{
    collections::BTreeMap,
    os::fd::AsFd,
    time::{Duration, Instant},
};

use gnomon_qemu::{Filling, GuestRam, NewDimm, add_dimm, held_memory, remove_dimm};
use gnomon_terms::Bytes;
use guest::{Guest, Parts};
use serde_json::json;

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

const MIB: u64 = 1 << 20;
/// What is asked for at once.
const SIZES: [(&str, u64); 2] = [("128 MiB", 128), ("1 GiB", 1024)];
/// MiB that a guest of DIMMs boots with: enough to describe 1 GiB more (16 MiB), and for its kernel to use huge pages, which
/// it leaves alone below 512.
const BASE: u64 = 1024;
/// Of a DIMM, what a burst leaves untouched: the guest's own use of it must not make it wait.
const MARGIN: u64 = 16;
/// What a guest boots with, and how much of it is touched then.
const BOOT: (u64, u64) = (1024, 768);
/// Reaching it is a failure of the guest, never a measure.
const PATIENCE: Duration = Duration::from_secs(120);

/// How the memory comes to be there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Populated and zeroed before anybody asked; QEMU's page tables are filled, beside the guest that boots from it.
    Staged,
    /// Populated as well; the page tables are filled as the guest touches it.
    Unmapped,
    /// Nothing is there until the guest touches it.
    Cold,
    /// QEMU allocates all of it once it is asked for.
    Prealloc,
}

const WAYS: [(Way, &str); 4] =
    [(Way::Staged, "gnomon"), (Way::Unmapped, "unmapped"), (Way::Cold, "cold"), (Way::Prealloc, "prealloc")];

impl Way {
    fn is_staged(self) -> bool {
        matches!(self, Way::Staged | Way::Unmapped)
    }

    fn filling(self) -> Filling {
        match self {
            Way::Staged => Filling::Mapped,
            Way::Prealloc => Filling::Allocated,
            Way::Unmapped | Way::Cold => Filling::Untouched,
        }
    }

    /// Whether the QEMU of a boot is told to have all of it there at once.
    fn populates(self) -> bool {
        self == Way::Prealloc
    }
}

/// Samples by case, in the order in which cases were met, and by way.
#[derive(Default)]
struct Samples {
    cases: Vec<String>,
    all: BTreeMap<(String, &'static str), Vec<f64>>,
}

fn main() -> Fallible<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [kernel, initrd, rounds] = &words[..] else { return Err("usage: guests KERNEL INITRD ROUNDS".into()) };
    let parts = Parts { kernel: kernel.into(), initrd: initrd.into() };
    let rounds: usize = rounds.parse()?;
    let mut samples = Samples::default();
    let mut guest = Guest::boot(&parts, BASE * MIB, SIZES.map(|(_, mib)| mib * MIB).into_iter().max(), None)?.0;
    for round in 0..rounds {
        for (name, mib) in SIZES {
            for (way, who) in in_turn(round) {
                let sample = dimm(&mut guest, way, mib)?;
                samples.note(&format!("{name} usable"), who, sample.usable);
                samples.note(&format!("{name} first touch"), who, sample.touched);
                samples.note(&format!("{name} both"), who, sample.usable + sample.touched);
                samples.note(&format!("{name} slowest step"), who, sample.slowest);
                if let Some(staging) = sample.staging {
                    samples.note(&format!("{name} staging, ahead"), who, staging);
                }
            }
        }
        eprintln!("round {}/{rounds}: DIMMs done", round + 1);
    }
    drop(guest);
    for round in 0..rounds {
        for (way, who) in in_turn(round) {
            let (boot, touched) = boot(&parts, way)?;
            samples.note("boot of 1 GiB", who, boot);
            samples.note("boot, first touch", who, touched);
        }
        eprintln!("round {}/{rounds}: boots done", round + 1);
    }
    println!("{}", samples.json());
    Ok(())
}

/// The ways, beginning with another one each time.
fn in_turn(round: usize) -> impl Iterator<Item = (Way, &'static str)> {
    (0..WAYS.len()).map(move |turn| WAYS[(round + turn) % WAYS.len()])
}

/// What one request took.
struct Request {
    /// Before it, when the memory was staged.
    staging: Option<Duration>,
    /// Until the guest said that it has it.
    usable: Duration,
    /// All pages for the first time, as the guest measured.
    touched: Duration,
    /// The longest of its steps of 4 MiB.
    slowest: Duration,
}

fn dimm(guest: &mut Guest, way: Way, mib: u64) -> Fallible<Request> {
    let (memory, staging) = memory(way, mib * MIB)?;
    let asked = Instant::now();
    let dimm = NewDimm { id: "burst", memory: memory.as_fd(), size: memory.size(), filling: way.filling() };
    add_dimm(&guest.vm, &dimm, PATIENCE)?;
    let usable = asked.elapsed();
    let burst = guest.ask(&format!("touch {}", mib - MARGIN), "touched")?;
    guest.ask("drop", "memory")?;
    remove_dimm(&guest.vm, "burst", PATIENCE)?;
    // QEMU unmaps it a moment later: that must not fall on whoever is next.
    while held_memory(&guest.vm)?.iter().any(|held| held.inode == memory.inode()) {
        guest.vm.qmp().query_status()?;
    }
    if burst["mib"] != mib - MARGIN || burst["waited_us"] != 0 {
        return Err(format!("the guest had not the memory it said it had: {burst}").into());
    }
    let micros = |name: &str| burst[name].as_u64().map(Duration::from_micros).ok_or("the guest told no time");
    Ok(Request { staging, usable, touched: micros("micros")?, slowest: micros("slowest_us")? })
}

/// From QEMU's start until the guest's first program runs, and its first touch of what it has.
fn boot(parts: &Parts, way: Way) -> Fallible<(Duration, Duration)> {
    let (size, touched) = BOOT;
    let (mut guest, took) = Guest::boot(parts, size * MIB, None, Some(way))?;
    let burst = guest.ask(&format!("touch {touched}"), "touched")?;
    Ok((took, Duration::from_micros(burst["micros"].as_u64().ok_or("the guest told no time")?)))
}

/// Memory that nobody has had, and how long it took to stage it.
fn memory(way: Way, size: u64) -> Fallible<(GuestRam, Option<Duration>)> {
    let memory = GuestRam::create("gnomon-bench", Bytes(size))?;
    let staging = way.is_staged().then(|| staged::populate(&memory)).transpose()?;
    Ok((memory, staging))
}

impl Samples {
    fn note(&mut self, case: &str, who: &'static str, took: Duration) {
        if !self.cases.iter().any(|known| known == case) {
            self.cases.push(case.to_owned());
        }
        self.all.entry((case.to_owned(), who)).or_default().push(took.as_secs_f64() * 1000.0);
    }

    fn json(&self) -> serde_json::Value {
        let rows = self.cases.iter().map(|case| {
            let of = |who| self.all.get(&(case.clone(), who)).cloned().unwrap_or_default();
            let samples: serde_json::Map<_, _> =
                WAYS.iter().map(|(_, who)| ((*who).to_owned(), json!(of(*who)))).collect();
            json!({ "case": case, "samples": samples })
        });
        rows.collect()
    }
}
