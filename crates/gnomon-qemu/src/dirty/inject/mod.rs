//! Makes a running process do system calls for us, and leaves it as it was.
//!
//! ```text
//!  seize ─► interrupt ─► stopped: registers, signal mask, a little stack and room in code saved
//!                           │ registers set to the stub, signals blocked
//!                           ▼
//!                 call ─► entry ─► exit ─► result ──┐   the stub asks for the next call in a word on the stack,
//!                   ▲───────────────────────────────┘   and finds none unless we put one there
//!                           │ interrupted before it leaves the kernel
//!                           ▼
//!                        mask, registers, code, stack restored ─► detached: signals that came meanwhile are delivered
//! ```
//!
//! One thread is stopped, the process's first (QEMU's main loop), for a fraction of a millisecond; processors of the
//! guest run on. The stub is position-independent code in the zero padding behind some executable segment, written
//! through ptrace. It would not be needed to make calls: it is there for the moment in which *this* process dies.
//! Then the kernel lets the thread go wherever it is, and the stub alone takes it back: it finds no further call,
//! restores the signal mask and every register, and jumps to where the thread was (an interrupted system call is
//! begun again). What stays is a hundred bytes of padding that nobody runs.
//!
//! All of it happens on a thread of its own, because the kernel ties tracing to a thread. Should the process hang in
//! the kernel and not stop in time, the caller gets an answer and that thread waits on: it detaches at once when the
//! process wakes up.
//!
//! Source: ptrace(2), syscall(2).

#[cfg(not(target_arch = "x86_64"))]
#[path = "absent.rs"]
mod session;
#[cfg(target_arch = "x86_64")]
mod session;

#[cfg(target_arch = "x86_64")]
mod ptrace;
#[cfg(target_arch = "x86_64")]
mod stub;

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
        mpsc::{RecvTimeoutError, sync_channel},
    },
    thread,
    time::Duration,
};

use gnomon_terms::ErrorKind;

pub(super) use session::Session;

/// How long a process may take to stop. It needs microseconds; one that waits for a hanging disk never does.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

/// Why a process could not be made to do calls. It runs on as before.
#[derive(Debug, thiserror::Error)]
pub enum InjectError {
    /// Stubs are written for x86-64 only.
    #[error("its processor or its 32-bit mode is not supported: only 64-bit x86 is")]
    Architecture,
    /// The kernel does not let us trace it.
    #[error(
        "the kernel does not let us trace it ({source}): it needs the same user or CAP_SYS_PTRACE, \
         kernel.yama.ptrace_scope below 2 (or that capability), and no other debugger on it"
    )]
    Attach {
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// It has ended.
    #[error("it has ended")]
    Ended,
    /// It is stopped by a signal, as by Ctrl-Z.
    #[error("it is stopped by a signal; let it go on first (kill -CONT)")]
    Standing,
    /// It did not stop in time.
    #[error("it did not stop within {PATIENCE:?}: it hangs in the kernel, perhaps on a disk")]
    Hangs,
    /// No executable segment has enough padding.
    #[error("none of its executable segments has room for a stub")]
    NoRoom,
    /// Tracing failed in the middle.
    #[error("cannot {deed}: {source}")]
    Trace {
        /// What was tried.
        deed: &'static str,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// It did something else than the stub does.
    #[error("it stopped in another call ({found}) than the one it was given ({wanted})")]
    Strayed {
        /// The number of the call it was given.
        wanted: u64,
        /// The number of the call it was in.
        found: u64,
    },
}

impl InjectError {
    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            InjectError::Architecture | InjectError::Attach { .. } | InjectError::NoRoom => ErrorKind::Refused,
            InjectError::Ended
            | InjectError::Standing
            | InjectError::Hangs
            | InjectError::Trace { .. }
            | InjectError::Strayed { .. } => ErrorKind::Unavailable,
        }
    }
}

/// Stops process `pid`, whose mappings are `maps`, lets `work` make calls in it, and lets it go on. Blocks until that
/// is done, or for [`PATIENCE`].
pub(super) fn inject<T: Send + 'static>(
    pid: i32,
    maps: &str,
    work: impl FnOnce(&mut Session) -> Result<T, InjectError> + Send + 'static,
) -> Result<T, InjectError> {
    let (tell, told) = sync_channel(1);
    let given_up = Arc::new(AtomicBool::new(false));
    let (flag, maps) = (Arc::clone(&given_up), maps.to_string());
    let tracer = move || {
        // A caller that has given up hears nothing, and its work is not done.
        let _ = tell.send(Session::run(pid, &maps, &flag, work));
    };
    let spawned = thread::Builder::new().name("injector".into()).spawn(tracer);
    spawned.map_err(|source| InjectError::Trace { deed: "start a thread", source })?;
    match told.recv_timeout(PATIENCE) {
        Ok(result) => result,
        Err(RecvTimeoutError::Timeout) => {
            given_up.store(true, SeqCst);
            Err(InjectError::Hangs)
        }
        Err(RecvTimeoutError::Disconnected) => Err(InjectError::Ended),
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests;
