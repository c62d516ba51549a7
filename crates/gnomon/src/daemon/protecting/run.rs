//! A run of checkpoints: one after another on a thread of its own, until something is asked or the session is of no use.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use gnomon_machine::primary::{ReplicateError, Replicator, Told};
use gnomon_qemu::{Qemu, RunState};
use gnomon_terms::Bytes;

use super::{pulse::millis, shared::Shared, volumes::Volumes};
use crate::{
    api::{ApiError, chain, types::Progress},
    daemon::jobs::Job,
};

/// How long to wait after a checkpoint that did not come about.
pub(super) const AGAIN: Duration = Duration::from_millis(500);
/// How long a guest whose checkpoint was cut off by a crash of the daemon may take to run again.
const RESUME: Duration = Duration::from_secs(30);

/// How a run of checkpoints ended.
pub(super) enum Left {
    /// Something was asked.
    Asked,
    /// The session is of no use any more.
    Broken(ApiError),
}

/// The first copy of everything, which the shadow has: when it was begun, and what it cost.
#[derive(Clone, Copy)]
struct FirstCopy {
    begun: Instant,
    told: Told,
}

/// A run of checkpoints, on a thread of its own.
pub(super) struct Run {
    pub engine: Replicator,
    pub qemu: Arc<Qemu>,
    pub shared: Arc<Shared>,
    pub volumes: Arc<Volumes>,
}

impl Run {
    /// Takes checkpoints until `wait`, which lasts as long as it is told to, says that something was asked. The job of
    /// the first copy comes back when it has not been made.
    pub fn checkpoints(mut self, mut job: Option<Job>, mut wait: impl FnMut(Duration) -> bool) -> Done {
        let (mut due, mut first) = (Duration::ZERO, None);
        let left = loop {
            if wait(due) {
                // What is asked of a shadow is asked of one that is there.
                if let Some(copy) = first
                    && let Some(job) = job.take()
                {
                    self.protected(&job, copy);
                }
                break Left::Asked;
            }
            // It may have been woken in vain, or another shadow's checkpoint may have been one for this, and was sent.
            due = self.engine.due_in();
            if due > Duration::ZERO && self.engine.may_wait() {
                continue;
            }
            due = match self.checkpoint(&mut job, &mut first) {
                Ok(()) => self.engine.due_in(),
                Err(error) if !self.engine.is_connected() => break Left::Broken(error.into()),
                // Another shadow's switchover: what becomes of it ends this session, or lets it go on.
                Err(ReplicateError::Held) => AGAIN,
                Err(error) if self.volumes.is_broken() => break Left::Broken(error.into()),
                Err(error) if self.qemu.exit_watch().exited().is_some() => break Left::Broken(error.into()),
                Err(error) => self.pass_over(&error),
            };
        };
        (self.engine, left, job)
    }

    /// Takes one checkpoint. While there is a job it is waited for; the second one ends the job. The first is as old as
    /// the copy of everything took, and a shadow that has no more than that is not in step.
    fn checkpoint(&mut self, job: &mut Option<Job>, first: &mut Option<FirstCopy>) -> Result<(), ReplicateError> {
        let begun = Instant::now();
        let told = self.engine.checkpoint()?;
        self.shared.pulse.sent(told, self.engine.due_in() + told.took);
        if job.is_none() {
            return Ok(());
        }
        self.engine.await_sealed(told.checkpoint)?;
        if let Some(FirstCopy { begun, told: whole }) = first.replace(FirstCopy { begun, told })
            && let Some(job) = job.take()
        {
            let (bytes, pause) = (Bytes(whole.bytes.0 + told.bytes.0), whole.pause.max(told.pause));
            self.protected(&job, FirstCopy { begun, told: Told { bytes, pause, ..told } });
        }
        Ok(())
    }

    /// Ends the job of the first copy.
    fn protected(&self, job: &Job, FirstCopy { begun, told }: FirstCopy) {
        let (to, bytes) = (self.shared.record.lock().to.clone(), told.bytes.0);
        let idle = if self.has_nothing_to_hold() { "; it has no network card: there is nothing to hold" } else { "" };
        let message = format!("protected by node {to} since checkpoint {}{idle}", told.checkpoint);
        tell(job, "protected", bytes, bytes, &message);
        job.finish(Ok(serde_json::json!({
            "to": to,
            "checkpoint": told.checkpoint,
            "bytes": bytes,
            "seconds": begun.elapsed().as_secs_f64(),
            "pause_ms": millis(told.pause),
        })));
    }

    /// Whether strict mode was asked for and changes nothing.
    fn has_nothing_to_hold(&self) -> bool {
        let has_card = self.qemu.record().spec.as_ref().is_some_and(|spec| !spec.nics.is_empty());
        self.shared.record.lock().strict && !has_card
    }

    /// A checkpoint did not come about, and the next one may: how long until then.
    fn pass_over(&self, error: &ReplicateError) -> Duration {
        self.shared.pulse.failed(&chain(error));
        tracing::warn!(vm = self.shared.record.lock().vm, error = chain(error), "a checkpoint did not come about");
        let (leash, guest) = (&self.shared.family.leash, self.engine.guest());
        let woken = guest.undisturbed(|| leash.run(|| wake_up(&self.qemu)).unwrap_or(Ok(()))).unwrap_or(Ok(()));
        if let Err(error) = woken {
            tracing::error!(pid = self.qemu.record().pid, %error, "the guest may stand: try `cont` on its monitor");
        }
        AGAIN
    }
}

/// The engine, how the run ended, and the job of a first copy that was not made.
pub(super) type Done = (Replicator, Left, Option<Job>);

/// Makes a guest run again that stands because of a checkpoint.
pub(super) fn wake_up(qemu: &Qemu) -> Result<(), ApiError> {
    let state = qemu.qmp().query_status()?.state;
    if matches!(state, RunState::FinishMigrate | RunState::Postmigrate) {
        tracing::warn!(pid = qemu.record().pid, "a checkpoint was cut off: its guest runs on");
        qemu.qmp().cont_after_migration(RESUME)?;
    }
    Ok(())
}

/// Tells how far a job is.
pub(super) fn tell(job: &Job, phase: &str, done_bytes: u64, total_bytes: u64, message: &str) {
    let (phase, message) = (phase.to_string(), message.to_string());
    job.report(Progress { phase, done_bytes, total_bytes, message, ..Progress::default() });
}
