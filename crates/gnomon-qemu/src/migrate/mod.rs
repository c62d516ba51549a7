//! Moving a running guest from one QEMU to another. The caller carries the bytes: each side gets a descriptor, and
//! what flows between the two is gnomon's to pace, encrypt and count.
//!
//! ```text
//!  Outgoing:  start ─► copying ──(standing)──► switch ─► over: the guest stands here for good
//!                        │ cancel                 │
//!                        ▼                        ▼ failed
//!                    runs here               runs here, or reclaim
//!  Incoming:  start ─────────► loading ─────────────────► loaded ─► running
//! ```
//!
//! QEMU always pauses before the switchover: the guest stands, its disk requests have ended and nothing irrevocable
//! has happened. There the caller hands the volume over; then [`Outgoing::switch`] sends the devices. Up to that
//! call a cancel is safe. After it only whoever decides about epochs may say on which side the guest lives, because
//! the last bytes may have arrived although the source thinks they did not.
//!
//! Source: QEMU documentation, `docs/devel/migration.rst`; `qapi/migration.json` (MigrationStatus).

mod incoming;
mod outgoing;

use std::time::{Duration, Instant};

use gnomon_terms::ErrorKind;

pub use incoming::{Incoming, IncomingFrom};
pub(crate) use outgoing::UNPACED;
pub use outgoing::{Canceller, DEFAULT_DOWNTIME, Outgoing, OutgoingOptions, Switched};

use crate::qmp::{CloseReason, EventError, EventStream, MigrationStatus, Qmp, QmpError, QmpEvent};

/// The name under which a stream's descriptor is given to a monitor.
const STREAM: &str = "gnomon-migration";

/// How far a move of a guest has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Memory is copied (source) or loaded (destination).
    Copying,
    /// The guest stands and waits for the switch.
    Standing,
    /// The device state is being sent.
    Switching,
    /// All has been sent (source) or loaded (destination).
    Over,
}

/// Why a guest did not move.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// A monitor did not do as asked.
    #[error(transparent)]
    Qmp(#[from] QmpError),
    /// QEMU gave up.
    #[error("the migration failed: {why}")]
    Failed {
        /// In QEMU's words.
        why: String,
    },
    /// It was cancelled.
    #[error("the migration was cancelled")]
    Cancelled,
    /// QEMU has ended in the midst of it. On the destination that is how it says that the stream was bad.
    #[error("QEMU is gone in the midst of the migration ({reason}); its log says why")]
    Ended {
        /// What became of the connection.
        reason: CloseReason,
    },
    /// Not within the time allowed. Nothing was undone.
    #[error("the migration did not {what} within {after:?}")]
    Timeout {
        /// What was waited for.
        what: &'static str,
        /// How long.
        after: Duration,
    },
    /// The switch has begun: whether the destination has the guest is not known here.
    #[error("too late to cancel: the switch to the destination has begun; ask the destination, then reclaim")]
    TooLate,
    /// Not at the stage the call is for.
    #[error("cannot {what} now: the migration is at the stage {stage:?}")]
    WrongStage {
        /// What was asked.
        what: &'static str,
        /// Where it is.
        stage: Stage,
    },
}

impl MigrateError {
    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            MigrateError::Qmp(e) => e.kind(),
            MigrateError::Cancelled | MigrateError::TooLate | MigrateError::WrongStage { .. } => ErrorKind::Refused,
            MigrateError::Failed { .. } | MigrateError::Ended { .. } | MigrateError::Timeout { .. } => {
                ErrorKind::Unavailable
            }
        }
    }
}

/// The status that a `MIGRATION` event tells.
pub(crate) fn status_of(event: &QmpEvent) -> Option<MigrationStatus> {
    let word = event.data.get("status").and_then(|s| s.as_str());
    (event.name == "MIGRATION").then(|| MigrationStatus::of(word.unwrap_or("")))
}

/// Waits for what `pick` looks for; `None` when `timeout` has passed.
fn wait<T>(
    events: &EventStream,
    timeout: Duration,
    pick: impl FnMut(&QmpEvent) -> Option<T>,
) -> Result<Option<T>, MigrateError> {
    match events.wait_for(timeout, pick) {
        Ok(found) => Ok(Some(found)),
        Err(EventError::Timeout) => Ok(None),
        Err(EventError::Closed(reason)) => Err(MigrateError::Ended { reason }),
    }
}

/// Why QEMU says the migration failed.
fn failure(qmp: &Qmp) -> MigrateError {
    let why = qmp.query_migrate().ok().and_then(|p| p.error);
    MigrateError::Failed { why: why.unwrap_or_else(|| "QEMU gives no reason; the stream may have been cut".into()) }
}

impl Qmp {
    /// Makes a guest run again after a migration or checkpoint that has just ended. For a moment (under 1 ms as
    /// measured) QEMU refuses with "not finalized yet" and has no event for the end of it, so the question is
    /// repeated, at the pace of its own answers, for up to `timeout`.
    pub fn cont_after_migration(&self, timeout: Duration) -> Result<(), QmpError> {
        let started = Instant::now();
        loop {
            match self.cont() {
                Err(QmpError::Refused { desc, .. })
                    if desc.contains("not finalized") && started.elapsed() < timeout =>
                {
                    std::thread::yield_now();
                }
                other => return other,
            }
        }
    }
}
