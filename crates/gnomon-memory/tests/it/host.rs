//! A host for one test: a folder, a gauge that says what the test wants, and accounts that are checked at the end.

use std::{
    fs,
    ops::Deref,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicI32, AtomicU64, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use gnomon_memory::{
    AllAccounts, Gauge, GaugeError, GroupLimits, GroupName, HolderCommand, HostLimits, HostMemory, Opening, Request,
    Staging, Taken,
};
use gnomon_terms::{Bytes, BytesPerSecond};
use rustix::{
    process::{Pid, Signal, getpid, getpriority_process, kill_process},
    thread::gettid,
};
use tempfile::TempDir;

/// How long a test waits for what must come.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// The size of most blocks here.
pub const MIB: Bytes = Bytes(1 << 20);

/// A gauge whose host has as much as the test says.
#[derive(Clone, Debug)]
pub struct TestGauge {
    available: Arc<AtomicU64>,
    /// So many steps of populations before nothing is available.
    calm_steps: Arc<AtomicU64>,
    /// The lowest priority of a thread that has read it, as its nice value.
    nicest: Arc<AtomicI32>,
}

/// A host.
pub struct TestHost {
    dir: TempDir,
    pub gauge: TestGauge,
    pub limits: HostLimits,
    /// How long a holder may take to answer, and to be busy with another daemon.
    pub patience: Duration,
    pub busy: Duration,
    staging: Option<Arc<Staging>>,
    holders: Vec<i32>,
}

impl Default for TestGauge {
    /// 4 GiB for ever.
    fn default() -> TestGauge {
        let (available, calm_steps) = (Arc::new(AtomicU64::new(4 << 30)), Arc::new(AtomicU64::new(u64::MAX)));
        TestGauge { available, calm_steps, nicest: Arc::new(AtomicI32::new(i32::MIN)) }
    }
}

impl TestGauge {
    /// From now on so much is available.
    pub fn set(&self, available: Bytes) {
        self.available.store(available.0, SeqCst);
    }

    /// The lowest priority of a thread that has read it, as its nice value.
    pub fn nicest(&self) -> i32 {
        self.nicest.load(SeqCst)
    }

    /// Nothing is available any more from the step of this number on, of whatever population.
    pub fn fall_at_step(&self, step: u64) {
        self.calm_steps.store(step, SeqCst);
    }
}

impl Gauge for TestGauge {
    fn read(&self) -> Result<HostMemory, GaugeError> {
        let nice = own_nice();
        self.nicest.fetch_max(nice, SeqCst);
        // Only a step of a population is nicer than this process.
        if nice > process_nice() {
            let _ = self.calm_steps.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1));
        }
        let calm = self.calm_steps.load(SeqCst) > 0;
        let available = Bytes(if calm { self.available.load(SeqCst) } else { 0 });
        Ok(HostMemory { total: Bytes(8 << 30), available, ..HostMemory::default() })
    }
}

impl TestHost {
    /// A host with 4 GiB available and the group `web`.
    pub fn new() -> TestHost {
        let mut host = TestHost::closed();
        host.open();
        host
    }

    /// The same, and nothing opened yet.
    pub fn closed() -> TestHost {
        TestHost {
            dir: tempfile::tempdir().expect("a folder"),
            gauge: TestGauge::default(),
            limits: HostLimits { budget: Bytes(256 << 20), floor: Bytes(1 << 30), linger: Duration::ZERO },
            patience: PATIENCE,
            busy: PATIENCE,
            staging: None,
            holders: Vec::new(),
        }
    }

    /// Opens the staging area, as a daemon that starts.
    pub fn open(&mut self) {
        let opening = self.opening().group(web(), group_limits());
        self.opened(Staging::open(opening).expect("opened"));
    }

    /// This is its staging area from now on.
    pub fn opened(&mut self, staging: Arc<Staging>) {
        self.staging = Some(staging);
    }

    /// What it is opened with, but for groups.
    pub fn opening(&self) -> Opening {
        Opening::new(self.command(), self.limits).gauge(self.gauge.clone())
    }

    /// How its holder is started.
    pub fn command(&self) -> HolderCommand {
        let socket = self.socket();
        let command = HolderCommand::new(socket.clone(), program(), ["hold".into(), socket.into_os_string()]);
        HolderCommand { patience: self.patience, busy: self.busy, ..command }
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("holder.sock")
    }

    /// Drops the staging area without a goodbye, as a daemon that is killed.
    pub fn kill(&mut self) {
        let staging = self.staging.take();
        self.holders.extend(staging.and_then(|staging| staging.holder_pid()));
    }

    /// Ends this holder with the host.
    pub fn kill_later(&mut self, holder: i32) {
        self.holders.push(holder);
    }

    /// Waits until there is a holder, and says which process it is.
    pub fn holder(&self) -> i32 {
        wait_for(|| self.holder_pid())
    }

    /// Sets the target of `web`, and waits until it is reached.
    pub fn stage(&self, target: &[(Bytes, u32)]) {
        self.stage_and(target, target.iter().map(|(_, count)| u64::from(*count)).sum());
    }

    /// The same, until so many blocks are staged for all groups.
    pub fn stage_and(&self, target: &[(Bytes, u32)], blocks: u64) {
        self.set_target(&web(), target).expect("a target");
        assert!(self.wait_until(PATIENCE, |accounts| accounts.host.staged.blocks == blocks), "{:?}", self.accounts());
    }

    pub fn take_web(&self, bytes: Bytes) -> Taken {
        self.take(&web(), Request { bytes, whole: false, slots: 256, step: Bytes(1) }).expect("decided")
    }

    /// Checks that nothing is lost on the books.
    pub fn balanced(&self) -> AllAccounts {
        self.check().expect("balanced");
        let accounts = self.accounts();
        assert!(accounts.host.balance() && accounts.groups.iter().all(|(_, group)| group.balance()), "{accounts:?}");
        accounts
    }
}

impl Deref for TestHost {
    type Target = Staging;

    fn deref(&self) -> &Staging {
        self.staging.as_ref().expect("it is open")
    }
}

impl Drop for TestHost {
    /// Nothing is left of a test: its holder goes, and its blocks with it.
    fn drop(&mut self) {
        if self.staging.is_some() && !thread::panicking() {
            self.balanced();
        }
        self.kill();
        self.holders.iter().copied().for_each(end);
    }
}

/// Kills a process of ours. It may have ended already.
pub fn end(pid: i32) {
    if let Some(pid) = Pid::from_raw(pid).filter(|pid| is_ours(*pid)) {
        let _ = kill_process(pid, Signal::KILL);
    }
}

/// The number of a process that has ended may be another's.
fn is_ours(pid: Pid) -> bool {
    let program_of = fs::read_link(format!("/proc/{}/exe", pid.as_raw_nonzero()));
    program_of.is_ok_and(|of| of == program())
}

/// How nice the calling thread is.
pub fn own_nice() -> i32 {
    getpriority_process(Some(gettid())).expect("told")
}

/// How nice the first thread of this process is.
fn process_nice() -> i32 {
    getpriority_process(Some(getpid())).expect("told")
}

/// Looks until there is something. For what tells nobody when it comes.
pub fn wait_for<T>(look: impl Fn() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "it did not come");
        thread::sleep(Duration::from_millis(5));
    }
}

pub fn program() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_gnomon-memory-test-process"))
}

pub fn web() -> GroupName {
    GroupName::new("web").expect("a name")
}

pub fn group_limits() -> GroupLimits {
    GroupLimits { budget: Bytes(256 << 20), refill: BytesPerSecond(1 << 30), ..GroupLimits::default() }
}
