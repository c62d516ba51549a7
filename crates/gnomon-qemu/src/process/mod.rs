//! The process of a QEMU: it outlives us, and we find it again.
//!
//! ```text
//!              launch                    daemon restarts             adopt
//!  (nothing) ─────────► Qemu (handle) ───────────────────► (record) ───────► Qemu (handle)
//!                         │ stop: power button → quit → SIGKILL                 │
//!                         └──────────────────► Exited ◄─────────────────────────┘
//! ```
//!
//! A QEMU runs in a session of its own, with its output in a file, so neither a signal to our group nor a closed
//! terminal reaches it. Dropping a [`Qemu`] closes our end of the monitor and nothing else. (A service manager that
//! kills by control group still kills it: the unit of the daemon needs `KillMode=process`.)

mod error;
mod leftover;
mod record;
mod spawn;
mod watch;

use std::{
    fs, io, iter,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use gnomon_terms::Bytes;
use rustix::process::Signal;
use serde_json::{Value, json};

pub use error::ProcessError;
pub use leftover::end_leftover;
pub use record::QemuRecord;
pub(crate) use spawn::{Spawn, last_words, spawn};
pub use watch::{ExitWatch, Exited};

use crate::{
    qmp::{GREETING_TIMEOUT, Qmp, QmpError, dial},
    ram::{GuestMemory, GuestRam, RamError, RamLoan, RamRecord},
    spec::{RamBacking, RamFd, Resolved, Role, VmPaths, VmSpec, command_line},
};

/// How long a process may take to be gone after its monitor closed or it was killed. Freeing a large RAM takes
/// about 0.1 s per GiB on a loaded host.
const REAP_TIMEOUT: Duration = Duration::from_secs(60);

/// What is needed to start a QEMU.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// The program, such as `/usr/bin/qemu-system-x86_64`.
    pub qemu: &'a Path,
    /// Arguments that belong to this host rather than to the guest (`-L DIR` of a QEMU beside the installed one).
    pub host_args: &'a [String],
    /// The guest.
    pub spec: &'a VmSpec,
    /// The guest, settled.
    pub resolved: &'a Resolved,
    /// A directory of its own; made when absent. Sockets, logs and the record live there.
    pub dir: &'a Path,
    /// Whether it boots or waits for a migration.
    pub role: Role,
    /// Memory that is there already (a takeover, a fork, a shadow): `resolved.memory` bytes, then a piece for each of
    /// `resolved.dimms`. When left open, memory is made as the spec says.
    pub ram: Option<RamLoan<'a>>,
}

/// How long each way of stopping may take before the next, harder one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StopDeadlines {
    /// For the guest's operating system to shut down after the power button. Zero: it is not asked.
    pub powerdown: Duration,
    /// For QEMU to end after `quit`. Then it is killed.
    pub quit: Duration,
}

impl Default for StopDeadlines {
    /// One minute for the guest (systemd allows its services 90 s, most need 5) and ten seconds for QEMU, whose
    /// `quit` drains disks that may hang.
    fn default() -> StopDeadlines {
        StopDeadlines { powerdown: Duration::from_secs(60), quit: Duration::from_secs(10) }
    }
}

/// A running QEMU and our connection to its monitor.
#[derive(Debug)]
pub struct Qemu {
    qmp: Qmp,
    record: QemuRecord,
    pidfd: Arc<OwnedFd>,
    watch: ExitWatch,
}

impl Qemu {
    /// Starts a QEMU and connects to it. Returns once its monitor answers; blocks up to 20 s. When it does not come
    /// to that, no process is left and the error tells what QEMU said.
    pub fn launch(launch: &Launch<'_>) -> Result<Qemu, ProcessError> {
        launch.spec.check()?;
        launch.resolved.check(launch.spec)?;
        let mut paths = VmPaths::new(launch.dir);
        paths.check()?;
        fs::create_dir_all(launch.dir).map_err(|e| ProcessError::file("make", launch.dir, e))?;
        refuse_if_running(&paths)?;
        let made = make_memory(launch)?;
        let loan = launch.ram.or(made.as_ref().map(GuestMemory::shared));
        let listener = listen(&paths.qmp())?;
        paths.qmp_fd = Some(listener.as_raw_fd());
        let numbers = loan.iter().flat_map(|loan| loan.parts).map(|part| part.as_fd().as_raw_fd());
        let mut inherit: Vec<i32> = numbers.collect();
        paths.ram = loan.zip(inherit.first()).map(|(loan, fd)| RamFd {
            fd: *fd,
            sharing: loan.sharing,
            populate: loan.populate,
        });
        paths.dimms = inherit.get(1..).unwrap_or_default().to_vec();
        inherit.extend(paths.qmp_fd);

        let mut args = launch.host_args.to_vec();
        args.extend(command_line(launch.spec, launch.resolved, &paths, launch.role));
        let (pid, pidfd, watch) =
            spawn(&Spawn { program: launch.qemu, args: &args, inherit: &inherit, log: &paths.qemu_log() })?;
        // From here on only QEMU listens: if it ends, whoever waits for its greeting sees the end.
        drop(listener);
        let started = Started { pid, pidfd, watch, paths: &paths, ram: loan.and_then(|loan| loan.record()) };
        started.greet(launch)
    }

    /// Connects to the QEMU of a record, if it still is that very process. Blocks up to 20 s.
    pub fn adopt(record: QemuRecord) -> Result<Qemu, ProcessError> {
        Qemu::adopt_within(record, GREETING_TIMEOUT)
    }

    /// The same for a caller who would rather come again than wait: its monitor has `patience` to greet.
    pub fn adopt_within(record: QemuRecord, patience: Duration) -> Result<Qemu, ProcessError> {
        let pidfd = Arc::new(record.open()?);
        let watch = ExitWatch::over(Arc::clone(&pidfd), record.pid)?;
        match dial(&record.qmp).and_then(|stream| Qmp::over(stream, patience)) {
            Ok(qmp) => Ok(Qemu { qmp, record, pidfd, watch }),
            Err(error) => Err(match watch.wait(ends_within(&error)) {
                Some(_) => ProcessError::Gone { pid: record.pid, why: "it has ended" },
                None => error.into(),
            }),
        }
    }

    /// Connects to the QEMU whose record is in `dir`, as [`Qemu::launch`] left it.
    pub fn adopt_dir(dir: &Path) -> Result<Qemu, ProcessError> {
        Qemu::adopt(QemuRecord::read(&VmPaths::new(dir).record())?)
    }

    /// Connects to a QEMU that gnomon did not start. `socket` is a monitor in control mode that it listens on
    /// (`-qmp unix:PATH,server=on,wait=off`); the kernel tells whose it is. Its output is not ours to read.
    pub fn adopt_socket(name: &str, socket: &Path) -> Result<Qemu, ProcessError> {
        let stream = dial(socket)?;
        let pid = listener_of(&stream, socket)?;
        let silent = |source| ProcessError::NoMonitor { path: socket.to_path_buf(), source };
        let qmp = Qmp::over(stream, GREETING_TIMEOUT).map_err(silent)?;
        let record = QemuRecord::of(name, pid, socket, qmp.version()?)?;
        let pidfd = Arc::new(record.open()?);
        let watch = ExitWatch::over(Arc::clone(&pidfd), pid)?;
        Ok(Qemu { qmp, record, pidfd, watch })
    }

    /// Its monitor.
    pub fn qmp(&self) -> &Qmp {
        &self.qmp
    }

    /// What is needed to adopt it.
    pub fn record(&self) -> &QemuRecord {
        &self.record
    }

    /// A handle that tells when the process has ended. It may outlive this.
    pub fn exit_watch(&self) -> ExitWatch {
        self.watch.clone()
    }

    /// Blocks until the process has ended or `timeout` has passed (`None`).
    pub fn wait_exit(&self, timeout: Duration) -> Option<Exited> {
        self.watch.wait(timeout)
    }

    /// The last lines QEMU wrote, printable; empty when it wrote none or its output is not ours.
    pub fn last_words(&self) -> String {
        self.record.log.as_deref().map(spawn::last_words).unwrap_or_default()
    }

    /// Opens the guest's RAM through the process, if gnomon made it: the same memory, also for a daemon that was
    /// restarted. `None` for a QEMU that has RAM of its own.
    pub fn open_ram(&self) -> Result<Option<GuestRam>, ProcessError> {
        self.record.ram.as_ref().map(|ram| GuestRam::open_in(self.record.pid, ram)).transpose().map_err(Into::into)
    }

    /// Ends the guest and QEMU: power button, then `quit`, then SIGKILL, each with its deadline. Blocks for the sum
    /// of them at most, and a minute for the process to go. A QEMU whose disk server is away does not even answer
    /// to `quit`: it waits for the guest's requests first, which is why the last way is there.
    pub fn stop(&self, deadlines: StopDeadlines) -> Result<Exited, ProcessError> {
        type Way = fn(&Qmp, Duration) -> bool;
        let ways: [(Duration, Way); 2] = [(deadlines.powerdown, press_power), (deadlines.quit, quit)];
        for (deadline, ask) in ways {
            let started = Instant::now();
            let may_end = !deadline.is_zero() && ask(&self.qmp, deadline);
            let patience = if may_end { deadline.saturating_sub(started.elapsed()) } else { Duration::ZERO };
            if let Some(exited) = self.watch.wait(patience) {
                return Ok(exited);
            }
        }
        self.kill()
    }

    /// Kills QEMU with SIGKILL and waits until it is gone. To the guest it is a power cut.
    pub fn kill(&self) -> Result<Exited, ProcessError> {
        kill(&self.pidfd, &self.watch, self.record.pid)
    }
}

/// A process that has not greeted yet.
struct Started<'a> {
    pid: i32,
    pidfd: Arc<OwnedFd>,
    watch: ExitWatch,
    paths: &'a VmPaths,
    ram: Option<RamRecord>,
}

impl Started<'_> {
    /// Connects, writes the record, and hands the process over; or ends it.
    fn greet(self, launch: &Launch<'_>) -> Result<Qemu, ProcessError> {
        match self.connect(launch) {
            Ok((qmp, record)) => Ok(Qemu { qmp, record, pidfd: self.pidfd, watch: self.watch }),
            Err(error) => Err(self.give_up(error)),
        }
    }

    fn connect(&self, launch: &Launch<'_>) -> Result<(Qmp, QemuRecord), ProcessError> {
        let path = self.paths.qmp();
        let qmp = Qmp::connect(&path)?;
        let mut record = QemuRecord::of(&launch.spec.name, self.pid, &path, qmp.version()?)?;
        record.log = Some(self.paths.qemu_log());
        record.ram = self.ram.clone();
        record.spec = Some(launch.spec.clone());
        record.resolved = Some(launch.resolved.clone());
        record.write(&self.paths.record())?;
        Ok((qmp, record))
    }

    /// A connection that failed because QEMU ended is QEMU's story to tell; otherwise the process is of no use.
    fn give_up(self, error: ProcessError) -> ProcessError {
        let patience = match &error {
            ProcessError::Qmp(error) => ends_within(error),
            _ => Duration::ZERO,
        };
        match self.watch.wait(patience) {
            Some(status) => ProcessError::Exited { status, said: spawn::last_words(&self.paths.qemu_log()) },
            None => match kill(&self.pidfd, &self.watch, self.pid) {
                Ok(_) => error,
                Err(worse) => worse,
            },
        }
    }
}

/// The memory that a spec wants made, and a check of memory that is there already. DIMMs are always ours to make.
fn make_memory(launch: &Launch<'_>) -> Result<Option<GuestMemory>, ProcessError> {
    let resolved = launch.resolved;
    let Some(loan) = launch.ram else {
        let is_private = launch.spec.ram == RamBacking::Private && resolved.dimms.is_empty();
        let made = (!is_private).then(|| GuestMemory::create(&launch.spec.name, resolved));
        return Ok(made.transpose()?);
    };
    let wanted = iter::once(resolved.memory).chain(resolved.dimms.iter().map(|dimm| dimm.size));
    if wanted.eq(loan.parts.iter().map(|part| part.size().0)) {
        return Ok(None);
    }
    let size = loan.parts.iter().fold(0, |sum: u64, part| sum.saturating_add(part.size().0));
    Err(RamError::OtherSize { wanted: Bytes(resolved.whole_memory()), size: Bytes(size) }.into())
}

/// How long to wait for the end of a process whose monitor failed in this way. One that closes its monitor, or does not
/// listen, is on its way out: freeing its memory comes after its sockets.
fn ends_within(error: &QmpError) -> Duration {
    match error {
        QmpError::Closed { .. } | QmpError::Connect { .. } => Duration::from_secs(5),
        _ => Duration::ZERO,
    }
}

/// Presses the power button of a guest that can notice it. False when there is no use in waiting.
fn press_power(qmp: &Qmp, within: Duration) -> bool {
    let status = qmp.execute("query-status", json!({}), within);
    let running = status.is_ok_and(|status| status["running"] == json!(true));
    running && took_effect(qmp.execute("system_powerdown", json!({}), within))
}

fn quit(qmp: &Qmp, within: Duration) -> bool {
    took_effect(qmp.execute("quit", json!({}), within))
}

/// A connection that has ended is what was asked for.
fn took_effect(answer: Result<Value, QmpError>) -> bool {
    matches!(answer, Ok(_) | Err(QmpError::Closed { .. }))
}

/// Kills a process and waits until it is gone.
pub(crate) fn kill(pidfd: &OwnedFd, watch: &ExitWatch, pid: i32) -> Result<Exited, ProcessError> {
    match rustix::process::pidfd_send_signal(pidfd, Signal::KILL) {
        // Gone already: the watch knows or will know at once.
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(e) => return Err(ProcessError::Signal { pid, source: e.into() }),
    }
    watch.wait(REAP_TIMEOUT).ok_or(ProcessError::StillThere { pid, after: REAP_TIMEOUT })
}

/// A directory holds one guest: a second QEMU on its sockets and disks would be two writers. The record tells, and
/// where it does not (the launcher died before it was written) the socket does.
fn refuse_if_running(paths: &VmPaths) -> Result<(), ProcessError> {
    let taken = |pid| Err(ProcessError::AlreadyRunning { pid, dir: paths.dir.clone() });
    if let Ok(record) = QemuRecord::read(&paths.record())
        && record.is_running()
    {
        return taken(record.pid);
    }
    match leftover::holder_of(&paths.qmp())? {
        Some((_, pid)) => taken(pid),
        None => Ok(()),
    }
}

/// Which process listens at the other end, as the kernel noted when it began to.
fn listener_of(stream: &UnixStream, path: &Path) -> Result<i32, ProcessError> {
    let peer = rustix::net::sockopt::socket_peercred(stream)
        .map_err(|e| ProcessError::file("ask who listens on", path, e.into()))?;
    Ok(peer.pid.as_raw_nonzero().get())
}

/// Listens on `path`, whose file a QEMU that has ended may have left behind.
fn listen(path: &Path) -> Result<UnixListener, ProcessError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(ProcessError::file("remove", path, e)),
        _ => {}
    }
    UnixListener::bind(path).map_err(|e| ProcessError::file("listen on", path, e))
}
