//! How long a request takes to be decided: 100 groups, 1,000 VMs, four threads that ask, and a worker that stages anew.
//!
//! `cargo run --release -p gnomon-memory --example decisions -- [SECONDS] [REQUESTS_PER_SECOND]` prints one line of JSON.
//! Each request is for 1 to 8 units of a VM of some group; what it gets is dropped at once (a guest that changes its
//! mind), or in one case of 64 assigned and returned. Blocks are of 64 KiB, because what is measured is the decision and
//! not the memory. Without a rate each thread asks as fast as it is answered. There is no holder.

use std::{
    env,
    error::Error,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use gnomon_memory::{GroupLimits, GroupName, HolderCommand, HostLimits, Opening, Request, Staging};
use gnomon_terms::{Bytes, BytesPerSecond};

const GROUPS: usize = 100;
const VMS: usize = 1000;
const THREADS: usize = 4;
const UNIT: u64 = 64 << 10;

/// What one thread saw.
#[derive(Default)]
struct Seen {
    nanos: Vec<u64>,
    hits: u64,
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = env::args().skip(1);
    let seconds: f64 = args.next().map_or(Ok(5.0), |text| text.parse())?;
    let rate: Option<f64> = args.next().map(|text| text.parse()).transpose()?;
    let staging = open()?;
    let began = Instant::now();
    let end = began + Duration::from_secs_f64(seconds);
    let pause = rate.map(|rate| Duration::from_secs_f64(THREADS as f64 / rate));
    let seen: Vec<Result<Seen, String>> = thread::scope(|scope| {
        let staging = &staging;
        let threads: Vec<_> = (0..THREADS).map(|n| scope.spawn(move || ask(staging, n as u64, end, pause))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err("a thread panicked".into()))).collect()
    });
    let took = began.elapsed().as_secs_f64();
    let (mut nanos, mut hits) = (Vec::new(), 0);
    for seen in seen {
        let seen = seen?;
        nanos.extend(seen.nanos);
        hits += seen.hits;
    }
    nanos.sort_unstable();
    let at = |share: f64| nanos.get((nanos.len() as f64 * share) as usize).copied().unwrap_or(0) as f64 / 1000.0;
    staging.check()?;
    let line = serde_json::json!({
        "groups": GROUPS, "vms": VMS, "threads": THREADS, "seconds": took, "requests": nanos.len(),
        "requests_per_second": nanos.len() as f64 / took, "hit_share": hits as f64 / nanos.len().max(1) as f64,
        "p50_us": at(0.5), "p99_us": at(0.99), "p999_us": at(0.999),
    });
    println!("{line}");
    Ok(())
}

/// All groups, each with blocks of four sizes.
fn open() -> Result<Arc<Staging>, Box<dyn Error>> {
    let limits = HostLimits { budget: Bytes(1 << 30), floor: Bytes(0), linger: Duration::from_secs(1) };
    let group = GroupLimits { budget: Bytes(1 << 30), refill: BytesPerSecond(1 << 30), ..GroupLimits::default() };
    let nowhere = env::temp_dir().join("gnomon-decisions-no-holder.sock");
    let mut opening = Opening::new(HolderCommand::new(nowhere, "/nonexistent", [""; 0]), limits);
    for n in 0..GROUPS {
        opening = opening.group(name(n)?, group);
    }
    let staging = Staging::open(opening)?;
    let target = [(Bytes(UNIT), 4), (Bytes(2 * UNIT), 4), (Bytes(4 * UNIT), 2), (Bytes(8 * UNIT), 1)];
    for n in 0..GROUPS {
        staging.set_target(&name(n)?, &target)?;
    }
    let all = GROUPS as u64 * 11;
    if !staging.wait_until(Duration::from_secs(120), |accounts| accounts.host.staged.blocks >= all) {
        return Err("the blocks were not staged in time".into());
    }
    Ok(staging)
}

fn name(n: usize) -> Result<GroupName, gnomon_memory::BadGroupName> {
    GroupName::new(&format!("group{n}"))
}

fn ask(staging: &Staging, seed: u64, end: Instant, pause: Option<Duration>) -> Result<Seen, String> {
    let names: Vec<GroupName> = (0..GROUPS).map(name).collect::<Result<_, _>>().map_err(|e| e.to_string())?;
    let (mut seen, mut state, mut due) = (Seen::default(), seed + 1, Instant::now());
    while Instant::now() < end {
        let random = next(&mut state);
        let vm = random as usize % VMS;
        let request = Request {
            bytes: Bytes((1 + random / 7 % 8) * UNIT),
            whole: random.is_multiple_of(11),
            slots: 4,
            step: Bytes(1),
        };
        let asked = Instant::now();
        let taken = staging.take(&names[vm % GROUPS], request).map_err(|e| e.to_string())?;
        seen.nanos.push(asked.elapsed().as_nanos() as u64);
        seen.hits += u64::from(taken.missing == Bytes(0));
        if random.is_multiple_of(64) {
            for block in taken.reserved.assign(&format!("vm{vm}")).map_err(|e| e.to_string())? {
                staging.returned(block.id()).map_err(|e| e.to_string())?;
            }
        }
        if let Some(pause) = pause {
            due += pause;
            thread::sleep(due.saturating_duration_since(Instant::now()));
        }
    }
    Ok(seen)
}

/// Numbers that repeat with their seed. Source: Marsaglia, "Xorshift RNGs", 2003.
fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}
