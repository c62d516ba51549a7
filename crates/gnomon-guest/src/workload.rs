//! The workload: one thread reads and judges, one rewrites, and the tally counts what they saw.

use std::{
    io,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Instant,
};

use crate::{
    disk::{Buffer, Disk},
    latency::Latencies,
    params::Params,
    plan::{Pace, Plan, Run},
    record::{self, Label, RECORD_SIZE},
    versions::Versions,
};

/// Faults told in words; beyond these they are only counted.
const FAULTS_TOLD: u64 = 20;

/// A running workload. Dropping it does not stop the threads; [`Workload::stop`] does.
pub struct Workload {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// What reader, writer and reporter share.
pub struct Shared {
    disk: Disk,
    seed: u64,
    started: Instant,
    stop: AtomicBool,
    /// What has been written.
    pub versions: Versions,
    /// What has been seen.
    pub tally: Tally,
}

/// Counts since the start.
#[derive(Debug, Default)]
pub struct Tally {
    /// Records read and judged.
    pub reads: AtomicU64,
    /// Records rewritten.
    pub writes: AtomicU64,
    /// Records that were not what was last written.
    pub corrupt: AtomicU64,
    /// Operations that the disk refused.
    pub errors: AtomicU64,
    /// Records that a write overlapped while they were read: not judged.
    pub overlapped: AtomicU64,
    /// Chain over (record, version) of all writes in order.
    pub journal: AtomicU64,
    /// Read latencies since they were last taken.
    pub latencies: Mutex<Latencies>,
}

impl Workload {
    /// Opens the disk, reads a sample of it to prove that it is the filled one, and starts the threads.
    pub fn start(params: &Params) -> io::Result<Workload> {
        let disk = Disk::open(Path::new(&params.disk))?;
        let held = disk.records()?;
        let records = if params.records == 0 { held } else { params.records };
        if records == 0 || records > held || records > crate::versions::MAX_RECORDS {
            return Err(io::Error::other(format!("{records} records wanted, {} holds {held}", params.disk)));
        }
        let shared = Arc::new(Shared {
            disk,
            seed: params.seed,
            started: Instant::now(),
            stop: AtomicBool::new(false),
            versions: Versions::new(records),
            tally: Tally::default(),
        });
        shared.sample()?;
        let threads = vec![
            spawn("reader", &shared, params.read_iops, Plan::new(params, records, 1), read_on)?,
            spawn("writer", &shared, params.write_iops, Plan::new(params, records, 2), write_on(params.sync))?,
        ];
        Ok(Workload { shared, threads: threads.into_iter().flatten().collect() })
    }

    /// The counts and the version table, while it runs and after.
    pub fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Lets both threads finish the operation they are in, and makes everything durable.
    pub fn stop(&mut self) -> io::Result<()> {
        self.shared.stop.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            thread.join().map_err(|_| io::Error::other("a workload thread panicked"))?;
        }
        self.shared.disk.sync()
    }
}

/// Starts a paced thread that calls `step` until the workload stops; none for a rate of zero.
fn spawn(
    name: &str,
    shared: &Arc<Shared>,
    rate: u64,
    mut plan: Plan,
    mut step: impl FnMut(&Shared, &mut Plan, &mut Buffer) + Send + 'static,
) -> io::Result<Option<JoinHandle<()>>> {
    let Some(mut pace) = Pace::new(rate) else { return Ok(None) };
    let shared = Arc::clone(shared);
    let work = move || {
        let mut buffer = Buffer::new();
        while !shared.stop.load(Ordering::Acquire) {
            // The clock is what it waits for.
            thread::sleep(pace.wait(shared.started.elapsed()));
            step(&shared, &mut plan, &mut buffer);
        }
    };
    thread::Builder::new().name(name.to_owned()).spawn(work).map(Some)
}

fn read_on(shared: &Shared, plan: &mut Plan, buffer: &mut Buffer) {
    let run = plan.read();
    if let Err(err) = shared.read(run, buffer) {
        shared.tally.refused("read", run.first, &err);
    }
}

fn write_on(sync: u64) -> impl FnMut(&Shared, &mut Plan, &mut Buffer) {
    let mut unsynced = 0;
    move |shared, plan, buffer| {
        let index = plan.record();
        let mut result = shared.write(index, buffer);
        unsynced += 1;
        if sync > 0 && unsynced >= sync {
            unsynced = 0;
            result = result.and_then(|()| shared.disk.sync());
        }
        if let Err(err) = result {
            shared.tally.refused("write", index, &err);
        }
    }
}

impl Shared {
    /// Reads the ends of the disk and a few places between, before anything is written.
    fn sample(&self) -> io::Result<()> {
        let mut buffer = Buffer::new();
        let last = self.versions.len() - 1;
        for part in 0..=16 {
            let first = (u128::from(last) * part / 16) as u64;
            self.read(Run { first, count: 1 }, &mut buffer)?;
        }
        match self.tally.corrupt.load(Ordering::Acquire) {
            0 => Ok(()),
            bad => Err(io::Error::other(format!("{bad} of 17 sampled records are wrong: is the disk filled?"))),
        }
    }

    /// Reads a run and judges each record that no write overlapped.
    fn read(&self, run: Run, buffer: &mut Buffer) -> io::Result<()> {
        let before: Vec<Option<u32>> =
            (run.first..run.first + run.count).map(|index| self.versions.settled(index)).collect();
        let asked = Instant::now();
        let bytes = self.disk.read(run.first, run.count, buffer)?;
        lock(&self.tally.latencies).note(asked.elapsed());
        for ((index, before), bytes) in (run.first..).zip(before).zip(bytes.chunks_exact(RECORD_SIZE)) {
            match before {
                Some(version) if self.versions.settled(index) == Some(version) => self.judge(index, version, bytes),
                _ => add(&self.tally.overlapped, 1),
            }
        }
        Ok(())
    }

    fn judge(&self, index: u64, version: u32, bytes: &[u8]) {
        add(&self.tally.reads, 1);
        let expected = Label { index, version: u64::from(version), seed: self.seed };
        if let Err(fault) = record::check(expected, bytes) {
            let earlier = self.tally.corrupt.fetch_add(1, Ordering::AcqRel);
            if earlier < FAULTS_TOLD {
                eprintln!("gnomon-guest: record {index} is corrupt: {fault}");
            }
        }
    }

    /// Rewrites a record with its next version. A refused write leaves the record unsettled for good: what the disk
    /// then holds is not known, so it is not judged.
    fn write(&self, index: u64, buffer: &mut Buffer) -> io::Result<()> {
        let version = self.versions.begin(index);
        record::write(Label { index, version: u64::from(version), seed: self.seed }, &mut buffer.0[..RECORD_SIZE]);
        self.disk.write(index, buffer)?;
        self.versions.finish(index, version);
        add(&self.tally.writes, 1);
        let chain = record::fold(self.tally.journal.load(Ordering::Acquire), index);
        self.tally.journal.store(record::fold(chain, u64::from(version)), Ordering::Release);
        Ok(())
    }
}

impl Tally {
    fn refused(&self, deed: &str, index: u64, err: &io::Error) {
        if self.errors.fetch_add(1, Ordering::AcqRel) < FAULTS_TOLD {
            eprintln!("gnomon-guest: {deed} of record {index}: {err}");
        }
    }

    /// The latencies since the last call.
    pub fn take_latencies(&self) -> Latencies {
        std::mem::take(&mut lock(&self.latencies))
    }
}

fn add(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::AcqRel);
}

/// A histogram is whole after each `note`, so a panicked holder leaves nothing half done.
fn lock(latencies: &Mutex<Latencies>) -> MutexGuard<'_, Latencies> {
    latencies.lock().unwrap_or_else(PoisonError::into_inner)
}
