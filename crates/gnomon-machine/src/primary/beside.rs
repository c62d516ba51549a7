//! Pages that are sent beside the running guest with no checkpoint at the end: how a guest that is to leave is brought so
//! near to its shadow that the last checkpoint carries little.
//!
//! Whoever moves it decides how near is near enough, because that is a question of patience: what is owed is told after
//! each look, and how long it takes to send can be seen.

use gnomon_terms::PageCount;

use super::{ReplicateError, Replicator};

impl Replicator {
    /// Looks at what was written, and tells how much the shadow lacks now. Blocks for a scan.
    pub fn owed(&mut self) -> Result<PageCount, ReplicateError> {
        let looked = self.guest.lock().look(self.leg);
        self.settled(looked)
    }

    /// Sends all that is owed, as of the last look, for the checkpoint that comes next; the guest runs. Blocks while the
    /// link is full. What is written meanwhile is owed at the next look.
    pub fn send_beside(&mut self) -> Result<(), ReplicateError> {
        let (checkpoint, pages) = self.guest.lock().take_owed(self.leg);
        let sent = self.send_live(checkpoint, &pages);
        self.settled(sent)
    }

    /// Like [`Replicator::hand_over`], for who has no time to let go of all the rest while a guest waits.
    pub fn leave_standing(&mut self) {
        self.guest.lock().hand_over(self.leg);
    }
}
