//! What the shadow has answered, handed from the thread that reads the link to the one that makes checkpoints.

use std::{sync::Arc, time::Duration};

use parking_lot::{Condvar, Mutex};

/// Answers of one session. Cloned handles are of the same session.
#[derive(Clone, Debug, Default)]
pub struct Acks(Arc<(Mutex<Heard>, Condvar)>);

/// What has been heard so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Heard {
    /// The newest checkpoint that was applied.
    pub sealed: Option<u64>,
    /// The first one that was not.
    pub refused: Option<u64>,
    /// Nothing more will be heard.
    pub gone: bool,
}

impl Acks {
    /// The shadow has applied a checkpoint, or (`ok` false) has not and gives the session up.
    pub fn sealed(&self, checkpoint: u64, ok: bool) {
        self.note(|heard| match ok {
            true => heard.sealed = heard.sealed.max(Some(checkpoint)),
            false => heard.refused = heard.refused.or(Some(checkpoint)),
        });
    }

    /// The link is gone: whoever waits here is woken.
    pub fn gone(&self) {
        self.note(|heard| heard.gone = true);
    }

    /// What has been heard.
    pub(super) fn heard(&self) -> Heard {
        *self.0.0.lock()
    }

    /// Waits until `enough` of it has been heard, at most `patience`; what has been heard by then.
    pub(super) fn wait(&self, patience: Duration, enough: impl Fn(&Heard) -> bool) -> Heard {
        let mut heard = self.0.0.lock();
        self.0.1.wait_while_for(&mut heard, |heard| !enough(heard), patience);
        *heard
    }

    fn note(&self, change: impl FnOnce(&mut Heard)) {
        change(&mut self.0.0.lock());
        self.0.1.notify_all();
    }
}
