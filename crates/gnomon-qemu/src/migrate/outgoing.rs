//! The source's side.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use gnomon_terms::{Bytes, BytesPerSecond};
use parking_lot::Mutex;

use super::{MigrateError, STREAM, Stage, failure, status_of, wait};
use crate::qmp::{EventStream, MigrationProgress, MigrationStatus, Qmp, QmpError};

/// How long the guest may stand for the rest of its memory, by default. QEMU stops copying and lets the guest stand
/// once what is left fits into this at the present rate. 300 ms is QEMU's own default.
pub const DEFAULT_DOWNTIME: Duration = Duration::from_millis(300);

/// No limit of QEMU's own: the caller carries the bytes and paces them by how fast it reads.
pub(crate) const UNPACED: BytesPerSecond = BytesPerSecond(1 << 40);

/// How long a guest may take to run again after a cancel. QEMU reopens its disks for that.
const RESUME_TIMEOUT: Duration = Duration::from_secs(30);

/// How long QEMU may take to count up a completed migration; it needs well under a millisecond.
const COUNT_TIMEOUT: Duration = Duration::from_millis(100);

/// How a guest is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutgoingOptions {
    /// QEMU's own limit; `None` leaves pacing to whoever reads the stream.
    pub bandwidth: Option<BytesPerSecond>,
    /// See [`DEFAULT_DOWNTIME`].
    pub downtime: Duration,
    /// Leave out RAM that both sides map (`x-ignore-shared`): only devices are sent. The destination must be told
    /// the same.
    pub ignore_shared: bool,
}

impl Default for OutgoingOptions {
    fn default() -> OutgoingOptions {
        OutgoingOptions { bandwidth: None, downtime: DEFAULT_DOWNTIME, ignore_shared: false }
    }
}

/// What a completed move cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switched {
    /// How long the guest stood, as the source counts: until the last byte was written, the pause for the volume
    /// included.
    pub downtime: Duration,
    /// From the start.
    pub total: Duration,
    /// Bytes sent.
    pub sent: Bytes,
    /// How often all dirty memory was gone over.
    pub passes: u64,
}

/// A guest on its way out. Dropping it before the switch cancels the move (which blocks for QEMU's answer), so that no
/// error path of the caller can leave a guest standing, until [`Outgoing::forbid_return`].
#[derive(Debug)]
pub struct Outgoing {
    qmp: Qmp,
    events: EventStream,
    stage: Arc<Mutex<Stage>>,
    was_running: bool,
    may_return: bool,
}

/// Cancels an [`Outgoing`] from another thread.
#[derive(Clone, Debug)]
pub struct Canceller {
    qmp: Qmp,
    stage: Arc<Mutex<Stage>>,
}

impl Outgoing {
    /// Starts to send the guest of `qmp` into `stream` (a socket or pipe whose other end the caller reads). Returns
    /// at once; the guest runs on.
    pub fn start(qmp: &Qmp, stream: OwnedFd, options: &OutgoingOptions) -> Result<Outgoing, MigrateError> {
        qmp.migrate_set_capabilities(&[
            ("events", true),
            ("pause-before-switchover", true),
            ("x-ignore-shared", options.ignore_shared),
        ])?;
        qmp.migrate_set_parameters(options.bandwidth.unwrap_or(UNPACED), options.downtime)?;
        let was_running = qmp.query_status()?.running;
        let events = qmp.events();
        qmp.getfd(STREAM, stream.as_fd())?;
        // QEMU has its own copy: ours must go, or the reader would never see the end of the stream.
        drop(stream);
        if let Err(error) = qmp.migrate(&format!("fd:{STREAM}")) {
            // Unused, it would keep the reader waiting for a stream that never begins.
            let _ = qmp.closefd(STREAM);
            return Err(error.into());
        }
        let stage = Arc::new(Mutex::new(Stage::Copying));
        Ok(Outgoing { qmp: qmp.clone(), events, stage, was_running, may_return: true })
    }

    /// Waits until the guest stands, ready for the switch: true; or until `timeout` has passed: false, and the
    /// caller may look at the progress and call again.
    pub fn await_standing(&mut self, timeout: Duration) -> Result<bool, MigrateError> {
        match self.stage() {
            Stage::Copying => {}
            Stage::Standing => return Ok(true),
            stage => return Err(MigrateError::WrongStage { what: "wait for the guest to stand", stage }),
        }
        let reached = self.await_status(timeout, |status| *status == MigrationStatus::PreSwitchover)?;
        if reached {
            *self.stage.lock() = Stage::Standing;
        }
        Ok(reached)
    }

    /// How it goes. Blocks for one question.
    pub fn progress(&self) -> Result<MigrationProgress, MigrateError> {
        Ok(self.qmp.query_migrate()?)
    }

    /// How far it has come.
    pub fn stage(&self) -> Stage {
        *self.stage.lock()
    }

    /// Changes QEMU's own limits while it copies.
    pub fn set_limits(&self, bandwidth: Option<BytesPerSecond>, downtime: Duration) -> Result<(), MigrateError> {
        Ok(self.qmp.migrate_set_parameters(bandwidth.unwrap_or(UNPACED), downtime)?)
    }

    /// The guest must not run here again, for its disks are elsewhere: dropping this leaves it as it stands.
    pub fn forbid_return(&mut self) {
        self.may_return = false;
    }

    /// A handle that can cancel from another thread while this one waits.
    pub fn canceller(&self) -> Canceller {
        Canceller { qmp: self.qmp.clone(), stage: Arc::clone(&self.stage) }
    }

    /// Sends the devices of a standing guest and waits until all has been written. From the call on there is no
    /// cancel. After an error the caller asks the destination: if the guest is not there and will not be, it is made
    /// to run here again by [`Outgoing::reclaim`]. After success the guest stands here until this QEMU is ended.
    pub fn switch(&mut self, timeout: Duration) -> Result<Switched, MigrateError> {
        {
            let mut stage = self.stage.lock();
            if *stage != Stage::Standing {
                return Err(MigrateError::WrongStage { what: "switch", stage: *stage });
            }
            *stage = Stage::Switching;
            match self.qmp.migrate_continue() {
                // QEMU says that it did not begin, so a cancel is still safe.
                Err(error @ QmpError::Refused { .. }) => {
                    *stage = Stage::Standing;
                    return Err(error.into());
                }
                other => other?,
            }
        }
        if !self.await_status(timeout, |status| *status == MigrationStatus::Completed)? {
            return Err(MigrateError::Timeout { what: "complete", after: timeout });
        }
        *self.stage.lock() = Stage::Over;
        let told = self.final_count()?;
        Ok(Switched { downtime: told.downtime, total: told.elapsed, sent: told.transferred, passes: told.passes })
    }

    /// Cancels the move and waits until the guest runs here again (if it ran before). Refused once the switch has
    /// begun. Blocks for up to `timeout`, and 30 s for the guest to run.
    pub fn cancel(mut self, timeout: Duration) -> Result<(), MigrateError> {
        self.canceller().cancel()?;
        match self.await_status(timeout, |_| false) {
            Err(MigrateError::Cancelled | MigrateError::Failed { .. }) => self.await_running(),
            Err(other) => Err(other),
            Ok(_) => Err(MigrateError::Timeout { what: "cancel", after: timeout }),
        }
    }

    /// Makes the guest run here again after a switch that did not succeed. Only for a caller who knows that the
    /// destination does not run the guest and never will (its QEMU is gone, or it has lost its lease): otherwise one
    /// guest would run twice.
    pub fn reclaim(mut self, timeout: Duration) -> Result<(), MigrateError> {
        *self.stage.lock() = Stage::Over;
        let status = self.qmp.query_migrate()?.status;
        if matches!(status, MigrationStatus::Device | MigrationStatus::PreSwitchover | MigrationStatus::Active) {
            self.qmp.migrate_cancel()?;
            match self.await_status(timeout, |_| false) {
                Err(MigrateError::Cancelled | MigrateError::Failed { .. }) => {}
                Err(other) => return Err(other),
                Ok(_) => return Err(MigrateError::Timeout { what: "cancel", after: timeout }),
            }
        }
        match self.qmp.query_status()?.running {
            true => Ok(()),
            false => Ok(self.qmp.cont_after_migration(timeout)?),
        }
    }

    /// QEMU counts up what a migration cost a moment after it has said "completed", without an event for it. Until
    /// then its times are zero, so the question is repeated, at the pace of its own answers, for a bounded time.
    fn final_count(&self) -> Result<MigrationProgress, MigrateError> {
        let started = Instant::now();
        loop {
            let told = self.qmp.query_migrate()?;
            if !told.elapsed.is_zero() || started.elapsed() > COUNT_TIMEOUT {
                return Ok(told);
            }
        }
    }

    /// Waits for a status. Ends of the migration other than the one looked for are errors.
    fn await_status(
        &mut self,
        timeout: Duration,
        wanted: impl Fn(&MigrationStatus) -> bool,
    ) -> Result<bool, MigrateError> {
        let ended = |s: &MigrationStatus| {
            matches!(s, MigrationStatus::Completed | MigrationStatus::Failed | MigrationStatus::Cancelled)
        };
        let found = wait(&self.events, timeout, |event| status_of(event).filter(|s| wanted(s) || ended(s)))?;
        match found {
            None => Ok(false),
            Some(status) if wanted(&status) => Ok(true),
            Some(status) => Err(self.over(&status)),
        }
    }

    /// Notes an end that was not looked for.
    fn over(&mut self, status: &MigrationStatus) -> MigrateError {
        *self.stage.lock() = Stage::Over;
        match status {
            MigrationStatus::Cancelled => MigrateError::Cancelled,
            MigrationStatus::Failed => failure(&self.qmp),
            _ => MigrateError::TooLate,
        }
    }

    /// After a cancel QEMU lets the guest run by itself, a moment after it says "cancelled".
    fn await_running(&self) -> Result<(), MigrateError> {
        let started = Instant::now();
        while self.was_running && !self.qmp.query_status()?.running {
            let left = RESUME_TIMEOUT.saturating_sub(started.elapsed());
            let resumed = wait(&self.events, left, |event| (event.name == "RESUME").then_some(()))?;
            if resumed.is_none() {
                return Err(MigrateError::Timeout { what: "let the guest run again", after: RESUME_TIMEOUT });
            }
        }
        Ok(())
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        if self.may_return {
            // Over or too late is fine: then there is nothing to cancel, or it is not ours to do.
            let _ = self.canceller().cancel();
        }
    }
}

impl Canceller {
    /// Asks QEMU to cancel; whoever waits on the [`Outgoing`] is told [`MigrateError::Cancelled`], and the guest
    /// runs on. Refused once the switch has begun; does nothing when the move is over.
    pub fn cancel(&self) -> Result<(), MigrateError> {
        // Held over the command, so that no switch begins meanwhile.
        let stage = self.stage.lock();
        match *stage {
            Stage::Copying | Stage::Standing => Ok(self.qmp.migrate_cancel()?),
            Stage::Switching => Err(MigrateError::TooLate),
            Stage::Over => Ok(()),
        }
    }
}
