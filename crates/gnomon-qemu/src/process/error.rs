//! What can go wrong with a QEMU process.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use gnomon_terms::ErrorKind;

use super::Exited;
use crate::{qmp::QmpError, ram::RamError, spec::SpecError};

/// Why a QEMU could not be started, found or ended.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The guest cannot be as it was described.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The monitor did not do as asked.
    #[error(transparent)]
    Qmp(#[from] QmpError),
    /// What listens there does not answer as a QEMU's monitor does.
    #[error("{} does not answer as a QEMU monitor: {source}", path.display())]
    NoMonitor {
        /// The socket.
        path: PathBuf,
        /// What it did instead.
        #[source]
        source: QmpError,
    },
    /// Its RAM could not be made or found.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// A file, socket or program of this host could not be used.
    #[error("cannot {deed} {}: {source}", path.display())]
    File {
        /// What was tried.
        deed: &'static str,
        /// On what.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// QEMU ended before it was ready.
    #[error("QEMU {status}{}", Said(said))]
    Exited {
        /// How it ended.
        status: Exited,
        /// The last lines it wrote; may be empty.
        said: String,
    },
    /// The directory has a running QEMU.
    #[error("{} already has a running QEMU (process {pid}); adopt or stop it first", dir.display())]
    AlreadyRunning {
        /// Its process.
        pid: i32,
        /// The directory.
        dir: PathBuf,
    },
    /// The process of a record is no more. Its number may meanwhile belong to another.
    #[error("process {pid} is not the QEMU that was recorded: {why}")]
    Gone {
        /// The recorded process.
        pid: i32,
        /// How we know.
        why: &'static str,
    },
    /// A record could not be read.
    #[error("the record {} cannot be read: {what}", path.display())]
    BadRecord {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The process could not be signalled.
    #[error("cannot signal process {pid}: {source}")]
    Signal {
        /// Which process.
        pid: i32,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// The process could not be watched.
    #[error("cannot watch process {pid}: {source}")]
    Watch {
        /// Which process.
        pid: i32,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// The process was killed and is still there: the kernel is busy with it (a hanging disk, or much memory).
    #[error(
        "process {pid} was killed but is not gone after {after:?}; look at what it waits for in /proc/{pid}/stack"
    )]
    StillThere {
        /// Which process.
        pid: i32,
        /// How long we waited.
        after: Duration,
    },
}

impl ProcessError {
    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            ProcessError::Spec(e) => e.kind(),
            ProcessError::Qmp(e) | ProcessError::NoMonitor { source: e, .. } => e.kind(),
            ProcessError::Ram(e) => e.kind(),
            ProcessError::AlreadyRunning { .. } | ProcessError::Exited { .. } => ErrorKind::Refused,
            ProcessError::BadRecord { .. } => ErrorKind::Corrupt,
            ProcessError::File { .. }
            | ProcessError::Gone { .. }
            | ProcessError::Signal { .. }
            | ProcessError::Watch { .. }
            | ProcessError::StillThere { .. } => ErrorKind::Unavailable,
        }
    }

    pub(crate) fn file(deed: &'static str, path: &Path, source: io::Error) -> ProcessError {
        ProcessError::File { deed, path: path.to_path_buf(), source }
    }
}

/// The end of a sentence: what QEMU said, if anything.
struct Said<'a>(&'a str);

impl std::fmt::Display for Said<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            "" => f.write_str(" and said nothing"),
            said => write!(f, ", it said: {said}"),
        }
    }
}
