//! Strict mode: what the guest sends leaves only when the shadow has the state that it comes from.
//!
//! ```text
//!              "not exposed" on record, then the first checkpoint
//!            ┌────────────────────────────────────────────────────►┐
//!   exposed: frames leave                              not exposed: they wait from its freeze on
//!            └◄────────────────────────────────────────────────────┘
//!              no checkpoint for a while since the session was lost, or the shadow
//!              has nothing any more: "exposed" on record, then what waits leaves
//! ```
//! Whichever way it goes, the record is durable before the first frame goes by it, so that a daemon that dies in between
//! holds too much rather than too little when it is back. A guest that was exposed must not be gone on with elsewhere
//! without a thought: what it said since its last checkpoint is known to others.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{blocking, primary::Primary, shared::Shared};
use crate::{
    api::ApiError,
    daemon::{Daemon, records::ProtectRecord},
};

/// How long there may be no checkpoint after the session was lost, before the guest goes on without its shadow: longer
/// than the shadow's daemon takes to be restarted, shorter than most clients wait for an answer.
const WAITS_FOR_SHADOW: Duration = Duration::from_secs(5);

/// What a daemon that starts knows of a guest's frames, before it carries the first one: those of a guest that is not
/// exposed wait, and those of a guest that was given away, or is another node's, do not leave here at all.
pub fn bring_back(daemon: &Daemon, record: &ProtectRecord) {
    let gate = daemon.vms.gate(&record.vm);
    if record.given.is_some() {
        gate.fence();
    }
    if record.strict && !record.exposed {
        gate.hold();
    }
}

impl Primary {
    /// A session with the shadow has begun, which has nothing to go on from if it is `anew`. The session's number at the
    /// gate, by which its commits count.
    pub(super) async fn begin_strictly(&self, anew: bool) -> Result<Option<u64>, ApiError> {
        if !self.record().strict {
            return Ok(None);
        }
        if anew {
            // The first copy takes long, and there is nothing that could be gone on from.
            self.expose().await?;
        }
        Ok(Some(self.daemon.vms.gate(&self.record().vm).begin()))
    }

    /// Checkpoints are about to be taken: from the first one on, frames wait.
    pub(super) async fn end_exposure(&self) -> Result<(), ApiError> {
        let record = self.record();
        match record.strict && record.exposed {
            true => self.write_exposed(false).await,
            false => Ok(()),
        }
    }

    /// The session with the shadow was lost, or could not be begun. A guest whose shadow stays away goes on without it.
    pub(super) async fn expose_if_alone(&self) {
        let record = self.record();
        if !record.strict || record.exposed || self.shared.alone_for(Instant::now()) < WAITS_FOR_SHADOW {
            return;
        }
        if let Err(error) = self.expose().await {
            tracing::error!(vm = record.vm, %error, "its frames wait on: that its shadow is lost is on no record");
        }
    }

    /// The guest goes on without its shadow: on record first, then its frames leave. A shadow that might take over by
    /// itself is struck off before: it must not go on from what others know to be past.
    async fn expose(&self) -> Result<(), ApiError> {
        let record = self.record();
        if !record.exposed {
            if let Some(guard) = self.shared.guard() {
                blocking(move || guard.strike_off()).await?;
            }
            self.write_exposed(true).await?;
            self.story.exposed();
        }
        self.daemon.vms.gate(&record.vm).expose();
        Ok(())
    }

    async fn write_exposed(&self, exposed: bool) -> Result<(), ApiError> {
        let (shared, records) = (Arc::clone(&self.shared), Arc::clone(&self.daemon.records));
        blocking(move || shared.write(&records, |record| record.exposed = exposed)).await
    }
}

impl Shared {
    /// How long the guest has been without a session, or in sessions without a checkpoint.
    fn alone_for(&self, now: Instant) -> Duration {
        let since = *self.alone_since.lock().get_or_insert(now);
        now.saturating_duration_since(since)
    }

    /// The shadow has sealed a checkpoint.
    pub(super) fn is_not_alone(&self) {
        *self.alone_since.lock() = None;
    }
}
