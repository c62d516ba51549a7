//! The destination's side.

use std::{
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{MigrateError, STREAM, Stage, failure, status_of, wait};
use crate::qmp::{EventStream, MigrationStatus, Qmp};

/// Where a guest comes from.
#[derive(Debug)]
pub enum IncomingFrom {
    /// A connected socket or a pipe that the caller writes into.
    Stream(OwnedFd),
    /// QEMU listens on this unix socket and takes the first who connects.
    Listen(PathBuf),
}

/// A guest on its way in, to a QEMU started with [`crate::Role::Incoming`].
#[derive(Debug)]
pub struct Incoming {
    qmp: Qmp,
    events: EventStream,
    stage: Stage,
}

impl Incoming {
    /// Lets QEMU load a guest. Returns at once. `ignore_shared` must be what the source was told.
    pub fn start(qmp: &Qmp, from: IncomingFrom, ignore_shared: bool) -> Result<Incoming, MigrateError> {
        qmp.migrate_set_capabilities(&[("events", true), ("x-ignore-shared", ignore_shared)])?;
        let events = qmp.events();
        match from {
            IncomingFrom::Stream(stream) => accept_stream(qmp, stream)?,
            IncomingFrom::Listen(path) => qmp.migrate_incoming(&format!("unix:{}", utf8(&path)))?,
        }
        Ok(Incoming { qmp: qmp.clone(), events, stage: Stage::Copying })
    }

    /// Waits until the guest has been loaded: true; or until `timeout` has passed: false. QEMU 7.2 ends when the
    /// stream is bad or cut, which is told as [`MigrateError::Ended`]; newer ones say [`MigrateError::Failed`].
    pub fn await_loaded(&mut self, timeout: Duration) -> Result<bool, MigrateError> {
        if self.stage == Stage::Over {
            return Ok(true);
        }
        let found = wait(&self.events, timeout, |event| match status_of(event)? {
            status @ (MigrationStatus::Completed | MigrationStatus::Failed) => Some(status),
            _ => None,
        })?;
        match found {
            Some(MigrationStatus::Completed) => {
                self.stage = Stage::Over;
                Ok(true)
            }
            Some(_) => Err(failure(&self.qmp)),
            None => Ok(false),
        }
    }

    /// Waits until the guest runs here: true; or until `timeout` has passed: false. With
    /// [`crate::Role::IncomingPaused`] somebody has to `cont` it first.
    pub fn await_running(&mut self, timeout: Duration) -> Result<bool, MigrateError> {
        let started = Instant::now();
        if !self.await_loaded(timeout)? {
            return Ok(false);
        }
        while !self.qmp.query_status()?.running {
            let left = timeout.saturating_sub(started.elapsed());
            if wait(&self.events, left, |event| (event.name == "RESUME").then_some(()))?.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// How far it has come: `Copying` or `Over`.
    pub fn stage(&self) -> Stage {
        self.stage
    }
}

fn accept_stream(qmp: &Qmp, stream: OwnedFd) -> Result<(), MigrateError> {
    qmp.getfd(STREAM, stream.as_fd())?;
    drop(stream);
    qmp.migrate_incoming(&format!("fd:{STREAM}")).inspect_err(|_| {
        // Unused, it would keep the writer waiting for a reader that never comes.
        let _ = qmp.closefd(STREAM);
    })?;
    Ok(())
}

fn utf8(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
