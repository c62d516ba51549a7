//! Trackers held to the truth on this very host: a guest writes, is frozen, and is compared byte by byte.

use std::{
    env,
    io::{self, Read},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
    time::{Duration, Instant},
};

use gnomon_terms::{Bytes, ErrorKind, PAGE_SIZE, PageNumber, PageRun, PageSet};
use serde::Serialize;

use super::{DirtyTracker, TrackError, TrackTarget, TrackerFacts, TrackerTier, guest::boot_sector};
use crate::{
    process::{ProcessError, Spawn, kill, spawn},
    qmp::{Qmp, QmpError},
    ram::{GuestRam, RAM_ID},
    spec::Accelerator,
};

/// RAM of the guest: large enough for pages that are never touched, small enough to be compared in 20 ms.
const MEMORY: Bytes = Bytes(64 << 20);

/// How often each tier is compared with the truth.
const ROUNDS: u32 = 10;

/// How many passes of the guest there are in a round, at least: each writes 64 pages and up to 16 more.
const PASSES: usize = 4;

/// How long firmware, a pass or the monitor may take. An emulated KVM needs a second to boot.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the self-test has found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SelfTest {
    /// What ran the guest.
    pub accelerator: Accelerator,
    /// How much RAM it had, in bytes.
    pub memory: u64,
    /// Each tier that this host has, best first.
    pub tiers: Vec<TierTest>,
}

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum SelfTestError {
    /// QEMU did not start or end.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// Its monitor did not do as asked.
    #[error(transparent)]
    Qmp(#[from] QmpError),
    /// The guest could not be tracked.
    #[error(transparent)]
    Track(#[from] TrackError),
    /// The guest did not make a pass.
    #[error("the guest did not run: {source}")]
    Silent {
        /// What its serial port gave.
        #[source]
        source: io::Error,
    },
}

impl SelfTestError {
    fn file(deed: &'static str, path: &Path, source: io::Error) -> SelfTestError {
        SelfTestError::Process(ProcessError::file(deed, path, source))
    }

    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            SelfTestError::Process(e) => e.kind(),
            SelfTestError::Qmp(e) => e.kind(),
            SelfTestError::Track(e) => e.kind(),
            SelfTestError::Silent { .. } => ErrorKind::Unavailable,
        }
    }
}

/// One tier against the truth.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TierTest {
    /// Which.
    pub tier: TrackerTier,
    /// Why it could not be tried or was ended; `None` when it went through.
    pub failed: Option<String>,
    /// How many rounds were compared.
    pub rounds: u32,
    /// Pages that really differed, over all rounds.
    pub written: u64,
    /// Pages that differed and were not reported: must be none.
    pub missed: u64,
    /// Pages that were reported and did not differ.
    pub needless: u64,
    /// The median time of a scan.
    pub scan: Duration,
}

impl TierTest {
    fn of(tier: TrackerTier) -> TierTest {
        TierTest { tier, failed: None, rounds: 0, written: 0, missed: 0, needless: 0, scan: Duration::ZERO }
    }

    /// Whether it went through, saw writes and missed none.
    pub fn right(&self) -> bool {
        self.failed.is_none() && self.written > 0 && self.missed == 0
    }
}

/// Runs the guest of one boot sector under `accelerator` and holds every tier to the truth. Blocks for about two
/// seconds; no process is left.
pub fn self_test(qemu: &Path, accelerator: Accelerator) -> Result<SelfTest, SelfTestError> {
    let dir = tempfile::tempdir().map_err(|e| SelfTestError::file("write to", &env::temp_dir(), e))?;
    let ram = GuestRam::create("gnomon-self-test", MEMORY).map_err(ProcessError::from)?;
    let (ours, theirs) = pair(qemu)?;
    let (monitor, control) = pair(qemu)?;
    let args = arguments(&dir.path().join("boot.img"), &ram, accelerator, &control, &theirs)?;
    let inherit = [ram.as_fd().as_raw_fd(), control.as_raw_fd(), theirs.as_raw_fd()];
    let started = Spawn { program: qemu, args: &args, inherit: &inherit, log: &dir.path().join("log") };
    let (pid, pidfd, watch) = spawn(&started)?;
    drop((theirs, control));
    let tiers = Qmp::over(monitor, PATIENCE).map_err(SelfTestError::from).and_then(|qmp| {
        let mut bench = Bench { qmp, marks: ours, target: TrackTarget::new(pid, &ram)? };
        bench.pass(PASSES)?;
        bench.qmp.stop()?;
        let available = TrackerFacts::gather().verdicts().into_iter().filter(|verdict| verdict.available);
        Ok(available.map(|verdict| bench.judge(verdict.tier)).collect())
    });
    kill(&pidfd, &watch, pid)?;
    Ok(SelfTest { accelerator, memory: MEMORY.0, tiers: tiers? })
}

fn pair(qemu: &Path) -> Result<(UnixStream, OwnedFd), SelfTestError> {
    let (ours, theirs) = UnixStream::pair().map_err(|e| SelfTestError::file("connect to", qemu, e))?;
    Ok((ours, OwnedFd::from(theirs)))
}

/// The QEMU: as little as boots a disk. `qemu64` is a model that every KVM runs.
fn arguments(
    disk: &Path,
    ram: &GuestRam,
    accelerator: Accelerator,
    control: &OwnedFd,
    serial: &OwnedFd,
) -> Result<Vec<String>, SelfTestError> {
    std::fs::write(disk, boot_sector(MEMORY)).map_err(|e| SelfTestError::file("write", disk, e))?;
    let drive = format!("file={},format=raw,if=ide", disk.display().to_string().replace(',', ",,"));
    let fd = ram.as_fd().as_raw_fd();
    let backend = format!("memory-backend-file,id={RAM_ID},size={},mem-path=/proc/self/fd/{fd},share=on", MEMORY.0);
    let (machine, size) = (format!("pc,memory-backend={RAM_ID}"), format!("size={}b", MEMORY.0));
    let (qmp, com) =
        (format!("socket,id=qmp,fd={}", control.as_raw_fd()), format!("socket,id=com,fd={}", serial.as_raw_fd()));
    let accelerator = accelerator.to_string();
    let words = [
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-object",
        &backend,
        "-machine",
        &machine,
        "-m",
        &size,
        "-accel",
        &accelerator,
        "-cpu",
        "qemu64",
        "-drive",
        &drive,
        "-chardev",
        &qmp,
        "-mon",
        "chardev=qmp,mode=control",
        "-chardev",
        &com,
        "-serial",
        "chardev:com",
    ];
    Ok(words.iter().map(|word| word.to_string()).collect())
}

/// A guest that writes and can be frozen.
struct Bench {
    qmp: Qmp,
    /// The guest's serial port: a full stop for each pass.
    marks: UnixStream,
    target: TrackTarget,
}

impl Bench {
    fn judge(&mut self, tier: TrackerTier) -> TierTest {
        let mut test = TierTest::of(tier);
        if let Err(error) = self.rounds(tier, &mut test) {
            test.failed = Some(error.to_string());
        }
        test
    }

    fn rounds(&mut self, tier: TrackerTier, test: &mut TierTest) -> Result<(), SelfTestError> {
        let mut tracker = tier.start(&self.target)?;
        tracker.scan(&mut PageSet::new())?;
        let mut before = frozen(&self.target)?;
        let mut times = Vec::new();
        for _ in 0..ROUNDS {
            let (dirty, took) = self.round(tracker.as_mut())?;
            let now = frozen(&self.target)?;
            let truth = differing(&before, &now);
            test.rounds += 1;
            test.written += truth.count().0;
            test.missed += truth.pages().filter(|page| !dirty.contains(*page)).count() as u64;
            test.needless += dirty.pages().filter(|page| !truth.contains(*page)).count() as u64;
            times.push(took);
            before = now;
        }
        times.sort_unstable();
        test.scan = times[times.len() / 2];
        Ok(())
    }

    /// Lets the guest run, scans once while it does where the tier may, freezes it and scans again.
    fn round(&mut self, tracker: &mut dyn DirtyTracker) -> Result<(PageSet, Duration), SelfTestError> {
        let mut dirty = PageSet::new();
        self.qmp.cont()?;
        self.pass(PASSES)?;
        if !tracker.tier().needs_standing_guest() {
            tracker.scan(&mut dirty)?;
            self.pass(1)?;
        }
        self.qmp.stop()?;
        let started = Instant::now();
        tracker.scan(&mut dirty)?;
        Ok((dirty, started.elapsed()))
    }

    /// Blocks until the guest has made so many passes from now on.
    fn pass(&mut self, count: usize) -> Result<(), SelfTestError> {
        let failed = |source| SelfTestError::Silent { source };
        let mut old = [0; 4096];
        self.marks.set_nonblocking(true).map_err(failed)?;
        while self.marks.read(&mut old).is_ok_and(|n| n > 0) {}
        self.marks.set_nonblocking(false).map_err(failed)?;
        self.marks.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
        // One more: the first may have been on its way.
        let mut marks = vec![0; count + 1];
        self.marks.read_exact(&mut marks).map_err(failed)
    }
}

/// All of the RAM of a guest that stands.
fn frozen(target: &TrackTarget) -> Result<Vec<u8>, TrackError> {
    let mut bytes = vec![0; target.pages().bytes().0 as usize];
    target.read(PageNumber(0), &mut bytes)?;
    Ok(bytes)
}

fn differing(before: &[u8], now: &[u8]) -> PageSet {
    let pages = before.chunks(PAGE_SIZE as usize).zip(now.chunks(PAGE_SIZE as usize));
    (0..).zip(pages).filter(|(_, (a, b))| a != b).map(|(page, _)| PageRun::new(page, 1)).collect()
}
