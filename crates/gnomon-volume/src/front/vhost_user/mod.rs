//! The vhost-user-blk front: a virtio disk whose queues this process serves out of the guest's shared memory.
//!
//! ```text
//! listener ─▶ one frontend at a time ─▶ control thread: features, memory, queues (the vhost-user-backend crate)
//!                                   └─▶ queue threads: descriptor chain ─▶ request ─▶ serve ─▶ used ring
//!                                                            └─ would wait ─▶ helper threads ─┘
//! ```
//!
//! One socket serves one export. A frontend (QEMU) may disconnect and connect again. When this process dies, QEMU waits
//! for the socket to be served again, and the guest's requests with it: what was not told as done is done again.
//! Everything in the queues is the guest's: chains are bounded, addresses are checked against the shared memory, and
//! a request is decoded once and never looked at again.
//!
//! Source: Virtual I/O Device (VIRTIO) Version 1.2, section 5.2 "Block Device"; the vhost-user protocol of QEMU.

mod device;
mod order;
mod request;

use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
    thread::{self, JoinHandle},
};

use gnomon_terms::ErrorKind;
use parking_lot::Mutex;
use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, eventfd, poll},
    io::retry_on_intr,
};
use vhost::vhost_user::Listener;
use vhost_user_backend::{ShutdownHandle, VhostUserDaemon};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

use self::device::Device;
use super::socket;
use crate::serve::{Exports, ServeError};

/// Why a vhost-user socket could not be offered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VhostUserError {
    /// The socket or its thread could not be made.
    #[error("cannot listen at {path}: check that the folder exists and that nobody else listens there")]
    Io {
        /// Where.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// There is nothing to serve.
    #[error(transparent)]
    Serve(#[from] ServeError),
}

impl VhostUserError {
    /// What the caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            VhostUserError::Io { .. } => ErrorKind::Unavailable,
            VhostUserError::Serve(error) => error.kind(),
        }
    }
}

/// A running vhost-user-blk socket. Dropping it stops it.
pub struct VhostUserServer {
    path: PathBuf,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

struct Shared {
    exports: Arc<Exports>,
    export: String,
    /// Written once, to end the acceptor.
    stop: OwnedFd,
    /// The frontend that is connected, and whether there may be another.
    current: Arc<Mutex<Current>>,
}

#[derive(Default)]
struct Current {
    stopping: bool,
    frontend: Option<ShutdownHandle>,
}

impl VhostUserServer {
    /// Offers the export of this name at a unix socket. Returns when a frontend can connect.
    pub fn bind(path: &Path, exports: Arc<Exports>, export: &str) -> Result<VhostUserServer, VhostUserError> {
        if exports.describe(export).is_none() {
            return Err(ServeError::Unknown { name: export.to_string() }.into());
        }
        VhostUserServer::listen(path, exports, export)
            .map_err(|source| VhostUserError::Io { path: path.to_path_buf(), source })
    }

    fn listen(path: &Path, exports: Arc<Exports>, export: &str) -> io::Result<VhostUserServer> {
        let listener = socket::listen(path)?;
        let stop = eventfd(0, EventfdFlags::CLOEXEC)?;
        let shared = Arc::new(Shared { exports, export: export.to_string(), stop, current: Arc::default() });
        let acceptor = thread::Builder::new().name("vublk-accept".into()).spawn({
            let shared = shared.clone();
            move || shared.accept(&mut Listener::from(listener))
        })?;
        Ok(VhostUserServer { path: path.to_path_buf(), shared, acceptor: Some(acceptor) })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Disconnects the frontend and returns when no thread is left. Blocks as long as the slowest disk operation.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let Some(acceptor) = self.acceptor.take() else { return };
        rustix::io::write(&self.shared.stop, &1u64.to_ne_bytes()).expect("an eventfd takes a 1");
        self.shared.current.lock().hang_up(true);
        acceptor.join().expect("the acceptor does not panic");
        // Gone already when someone tidied up; a successor replaces a stale one.
        let _ = fs::remove_file(&self.path);
    }
}

impl Drop for VhostUserServer {
    fn drop(&mut self) {
        self.end();
    }
}

impl Current {
    fn hang_up(&mut self, for_good: bool) {
        self.stopping |= for_good;
        if let Some(frontend) = &self.frontend {
            frontend.shutdown();
        }
    }
}

impl Shared {
    fn accept(&self, listener: &mut Listener) {
        while self.await_frontend(listener) {
            if let Err(error) = self.attend(listener) {
                tracing::warn!(export = self.export, %error, "a vhost-user frontend was lost");
            }
        }
    }

    /// Blocks until a frontend connects; false when the server is to stop.
    fn await_frontend(&self, listener: &Listener) -> bool {
        // SAFETY: the listener outlives the borrow, which ends with this function.
        let listener = unsafe { std::os::fd::BorrowedFd::borrow_raw(std::os::fd::AsRawFd::as_raw_fd(listener)) };
        let mut ready = [PollFd::new(&listener, PollFlags::IN), PollFd::new(&self.stop, PollFlags::IN)];
        match retry_on_intr(|| poll(&mut ready, None)) {
            Ok(_) => ready[1].revents().is_empty(),
            Err(error) => {
                tracing::error!(%error, "cannot wait for vhost-user frontends any more");
                false
            }
        }
    }

    /// Serves one frontend until it disconnects.
    fn attend(&self, listener: &mut Listener) -> Result<(), AttendError> {
        let current = self.current.clone();
        let session = self.exports.open(&self.export, move || current.lock().hang_up(false));
        let session = match session {
            Ok(session) => Arc::new(session),
            Err(error) => {
                // Taken from the queue and closed, so that QEMU hears no instead of waiting.
                drop(listener.accept());
                return Err(error.into());
            }
        };
        let device = Arc::new(Device::new(session.clone()));
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
        let mut daemon = VhostUserDaemon::new("vublk".into(), device, memory).map_err(AttendError::daemon)?;
        daemon.start(listener).map_err(AttendError::daemon)?;
        self.introduce(daemon.shutdown_handle(), session.is_removed());
        let ended = daemon.wait();
        self.current.lock().frontend = None;
        ended.or_else(|error| if is_goodbye(&error) { Ok(()) } else { Err(AttendError::daemon(error)) })
    }

    /// Makes the frontend known to those who may hang up; at once if they have wanted to already.
    fn introduce(&self, frontend: Option<ShutdownHandle>, removed: bool) {
        let mut current = self.current.lock();
        current.frontend = frontend;
        if removed || current.stopping {
            current.hang_up(false);
        }
    }
}

/// Why a frontend was lost.
#[derive(Debug, thiserror::Error)]
enum AttendError {
    #[error(transparent)]
    Serve(#[from] ServeError),
    #[error("the vhost-user connection failed: {0}")]
    Daemon(String),
}

impl AttendError {
    fn daemon(error: vhost_user_backend::Error) -> AttendError {
        AttendError::Daemon(error.to_string())
    }
}

/// Whether the error is only the frontend's leaving, perhaps in the middle of a message.
fn is_goodbye(error: &vhost_user_backend::Error) -> bool {
    use vhost::vhost_user::Error::{Disconnected, PartialMessage};
    matches!(error, vhost_user_backend::Error::HandleRequest(Disconnected | PartialMessage))
}
