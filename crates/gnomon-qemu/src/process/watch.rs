//! Noticing that a process has ended, from the kernel's event and nothing else.

use std::{fmt, os::fd::OwnedFd, sync::Arc, thread, time::Duration};

use parking_lot::{Condvar, Mutex};
use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{WaitId, WaitIdOptions, WaitIdStatus, waitid},
};

use super::ProcessError;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exited {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// Unknown: it was not our child (an adopted QEMU), and only a parent is told.
    Unknown,
}

/// Tells when a process has ended. Cheap to clone. One thread stands behind all clones; it ends with the process,
/// and reaps it if it is our child.
#[derive(Clone, Debug)]
pub struct ExitWatch {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    exited: Mutex<Option<Exited>>,
    changed: Condvar,
}

impl ExitWatch {
    pub(super) fn over(pidfd: Arc<OwnedFd>, pid: i32) -> Result<ExitWatch, ProcessError> {
        let shared = Arc::new(Shared::default());
        let tell = Arc::clone(&shared);
        thread::Builder::new()
            .name(format!("watch-{pid}"))
            .spawn(move || {
                let exited = wait_for_exit(&pidfd);
                tracing::debug!(pid, %exited, "QEMU has ended");
                *tell.exited.lock() = Some(exited);
                tell.changed.notify_all();
            })
            .map_err(|source| ProcessError::Watch { pid, source })?;
        Ok(ExitWatch { shared })
    }

    /// How it ended; `None` while it runs. Does not block.
    pub fn exited(&self) -> Option<Exited> {
        *self.shared.exited.lock()
    }

    /// Blocks until it has ended or `timeout` has passed (`None`). `Duration::MAX` waits for ever.
    pub fn wait(&self, timeout: Duration) -> Option<Exited> {
        let deadline = std::time::Instant::now().checked_add(timeout);
        let mut exited = self.shared.exited.lock();
        while exited.is_none() {
            match deadline {
                None => self.shared.changed.wait(&mut exited),
                Some(at) if self.shared.changed.wait_until(&mut exited, at).timed_out() => break,
                Some(_) => {}
            }
        }
        *exited
    }
}

/// A process descriptor becomes readable when the process ends.
///
/// Source: pidfd_open(2), waitid(2).
fn wait_for_exit(pidfd: &OwnedFd) -> Exited {
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    while let Err(rustix::io::Errno::INTR) = poll(&mut fds, None) {}
    match waitid(WaitId::PidFd(std::os::fd::AsFd::as_fd(pidfd)), WaitIdOptions::EXITED) {
        Ok(Some(status)) => Exited::of(&status),
        Ok(None) | Err(_) => Exited::Unknown,
    }
}

impl Exited {
    fn of(status: &WaitIdStatus) -> Exited {
        match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Exited::Code(code),
            (None, Some(signal)) => Exited::Signal(signal),
            (None, None) => Exited::Unknown,
        }
    }
}

impl fmt::Display for Exited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exited::Code(code) => write!(f, "exited with code {code}"),
            Exited::Signal(signal) => write!(f, "was killed by signal {signal}"),
            Exited::Unknown => f.write_str("has ended (its exit code went to whoever started it)"),
        }
    }
}
