//! Strict mode: what the guest sends leaves only when each shadow that is waited for has the state that it comes from.
//!
//! ```text
//!              "not exposed" on record, then the first checkpoint that it has a part in
//!            ┌────────────────────────────────────────────────────►┐
//!   exposed: nobody waits for it                       not exposed: frames wait for it from that freeze on
//!            └◄────────────────────────────────────────────────────┘
//!              no checkpoint for a while since the session was lost, or it fell behind the
//!              others, or has nothing any more: struck off at the store, "exposed" on record
//! ```
//! When all shadows are exposed, the guest is: its frames leave at once. With two, losing one exposes nothing.
//!
//! Whichever way it goes, the record is durable before the first frame goes by it, so that a daemon that dies in between
//! holds too much rather than too little when it is back. A guest must not be gone on with at a shadow that was exposed
//! without a thought: what it said since is known to others.

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
    /// A session with the shadow has begun, which has nothing to go on from if it is `anew`: the first copy takes long, and
    /// is not waited for.
    pub(super) async fn begin_strictly(&self, anew: bool) -> Result<(), ApiError> {
        match self.record().strict && anew {
            true => self.expose("it has nothing yet").await,
            false => Ok(()),
        }
    }

    /// Checkpoints are about to be taken: from the first one on, frames wait for this shadow.
    pub(super) async fn end_exposure(&self) -> Result<(), ApiError> {
        let record = self.record();
        match record.strict && record.exposed {
            true => self.write_exposed(false).await,
            false => Ok(()),
        }
    }

    /// The session with the shadow was lost, or could not be begun. A guest whose shadow stays away goes on without it.
    pub(super) async fn expose_if_alone(&self) {
        let alone = self.shared.alone_for(Instant::now());
        if self.shared.is_waited_for() && alone >= WAITS_FOR_SHADOW {
            self.expose_or_say_why("it is lost").await;
        }
    }

    /// While checkpoints are taken: one that falls behind is not waited for as long as there is another, and is again when
    /// it keeps up.
    pub(super) async fn weigh(&self) {
        let record = self.record();
        if !record.strict {
            return;
        }
        let has_others = self.shared.family.waits_for_others(&record.to);
        match falls_behind(self.shared.pulse.behind_by(), self.shared.pulse.bound()) {
            Some(true) if !record.exposed && has_others => self.expose_or_say_why("it fell behind").await,
            Some(false) if record.exposed => {
                if let Err(error) = self.end_exposure().await {
                    tracing::error!(vm = record.vm, %error, "its shadow keeps up, and that is on no record");
                }
            }
            _ => {}
        }
    }

    async fn expose_or_say_why(&self, what: &str) {
        if let Err(error) = self.expose(what).await {
            tracing::error!(vm = self.record().vm, %error, "its frames wait on: {what}, and that is on no record");
        }
    }

    /// The guest goes on without this shadow: on record first, then frames leave. One that might take over by itself is
    /// struck off before: it must not go on from what others know to be past.
    async fn expose(&self, what: &str) -> Result<(), ApiError> {
        let record = self.record();
        let family = Arc::clone(&self.shared.family);
        if !record.exposed {
            family.doubt(&record.to);
            if let Some(guard) = family.guard() {
                let node = record.to.clone();
                blocking(move || guard.strike_off(&node)).await?;
            }
            self.write_exposed(true).await?;
            self.story.exposed(what, family.waits_for_others(&record.to));
        }
        family.leave_behind(&record.to);
        Ok(())
    }

    async fn write_exposed(&self, exposed: bool) -> Result<(), ApiError> {
        let (shared, records) = (Arc::clone(&self.shared), Arc::clone(&self.daemon.records));
        blocking(move || shared.write(&records, |record| record.exposed = exposed)).await
    }
}

/// Whether a shadow whose newest checkpoint is so old falls behind, or keeps up; `None` in between, and while nothing is
/// known.
fn falls_behind(behind_by: Option<Duration>, bound: Duration) -> Option<bool> {
    match behind_by? {
        behind_by if behind_by > bound => Some(true),
        behind_by if behind_by < bound / 4 => Some(false),
        _ => None,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_falls_behind_is_not_taken_back_at_once() {
        let s = Duration::from_secs;
        let table = [
            ("nothing known", None, None),
            ("keeps up", Some(s(1)), Some(false)),
            ("late, and as it was before", Some(s(4)), None),
            ("behind", Some(s(9)), Some(true)),
        ];
        for (what, behind_by, expected) in table {
            assert_eq!(falls_behind(behind_by, s(8)), expected, "{what}");
        }
    }
}
