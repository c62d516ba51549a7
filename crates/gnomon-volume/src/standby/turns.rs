//! Where the guest's writes meet the sender: the [`Ledger`] behind its locks.
//!
//! Lock order: the boundary, the lock of a stripe, the ledger. A write holds the boundary and its stripe from before it
//! is noted until it is done; a mark shuts the boundary, so that each write is wholly before or wholly after it; the
//! sender holds a stripe while it takes and reads, so that what it sends is what its turn had.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant as Clock},
};

use gnomon_terms::{BLOCK_SIZE, Extent};
use parking_lot::{Condvar, Mutex, RwLock, RwLockReadGuard};

use super::{
    blockset::BlockSet,
    ledger::{BadTurn, Copy, Ledger, Step, Taken},
};
use crate::disk::{Disk, DiskError};

/// Which write of a volume belongs to which turn of its standby. Does nothing while there is no standby in step.
pub struct Turns {
    active: AtomicBool,
    boundary: RwLock<()>,
    ledger: Mutex<Option<Ledger>>,
    written: Condvar,
    marked: Condvar,
}

impl Default for Turns {
    fn default() -> Turns {
        Turns {
            active: AtomicBool::new(false),
            boundary: RwLock::new(()),
            ledger: Mutex::new(None),
            written: Condvar::new(),
            marked: Condvar::new(),
        }
    }
}

impl Turns {
    // ---- for the guest's writes -----------------------------------------------------------------------------

    /// A write begins; it is done before the guard goes.
    pub(crate) fn enter(&self) -> RwLockReadGuard<'_, ()> {
        self.boundary.read()
    }

    /// `extent` of `local` is about to be written; its stripe is locked. Reads what a turn on its way still needs of it.
    pub(crate) fn before_write(&self, local: &dyn Disk, extent: Extent) {
        if !self.active.load(Ordering::SeqCst) {
            return;
        }
        let needed = self.with(|ledger| ledger.needed(extent)).unwrap_or_default();
        // Nobody takes these blocks meanwhile, for that needs the stripe; and no mark comes between, for we are within
        // the boundary.
        let copies: Result<Vec<(u64, Copy)>, DiskError> =
            needed.into_iter().map(|block| Ok((block, read_block(local, block)?))).collect();
        self.with(|ledger| {
            match copies {
                Ok(copies) => _ = copies.into_iter().all(|(block, copy)| ledger.keep(block, copy)),
                Err(error) => {
                    tracing::error!(%error, "what a standby needs cannot be read: its turn is void");
                    ledger.give_up();
                }
            }
            ledger.write(extent);
        });
        self.written.notify_one();
    }

    // ---- for the sender -------------------------------------------------------------------------------------

    /// Writes are noted from now on.
    pub(super) fn begin(&self, newest: u64, limit: u64) {
        *self.ledger.lock() = Some(Ledger::new(newest, limit));
        self.active.store(true, Ordering::SeqCst);
        // A write that saw nothing to do has been done when this has been had: what it owed is in the outbox.
        drop(self.boundary.write());
    }

    /// These are to be sent in the turn that is open.
    pub(super) fn owe(&self, runs: &[Extent]) {
        self.with(|ledger| runs.iter().for_each(|run| ledger.write(*run)));
    }

    /// Writes are not noted any more, and what was noted is forgotten.
    pub(super) fn end(&self) {
        self.active.store(false, Ordering::SeqCst);
        *self.ledger.lock() = None;
        self.wake();
    }

    /// Closes a turn: waits for writes under way, and for nothing else.
    pub(super) fn close(&self, turn: u64) -> Option<Result<(), BadTurn>> {
        let _shut = self.boundary.write();
        let closed = self.with(|ledger| ledger.close(turn));
        self.wake();
        closed
    }

    /// What to send next; waits for something for at most `patience`. What no turn ends with is not sent before
    /// `rested`: it may be written again.
    pub(super) fn next(&self, patience: Duration, rested: Clock) -> Option<Step> {
        let until = Clock::now() + patience;
        let mut ledger = self.ledger.lock();
        loop {
            match ledger.as_ref()?.next() {
                None if self.written.wait_until(&mut ledger, until).timed_out() => return None,
                None => {}
                Some(Step::Stripe { is_due: false, .. }) if Clock::now() < rested => {
                    self.marked.wait_until(&mut ledger, rested);
                }
                step => return step,
            }
        }
    }

    /// Has the sender look what there is to do.
    pub(super) fn wake(&self) {
        // Under the lock, so that a waiter is either before its look or already waiting.
        let _ledger = self.ledger.lock();
        self.written.notify_all();
        self.marked.notify_all();
    }

    /// What is to be sent of a stripe, which is locked.
    pub(super) fn take(&self, stripe: u64) -> Taken {
        self.with(|ledger| ledger.take(stripe)).unwrap_or_default()
    }

    /// The end of a turn is sent now.
    pub(super) fn ended(&self, turn: u64) {
        self.with(|ledger| ledger.end(turn));
    }

    /// The standby has sealed a turn.
    pub(super) fn seal(&self, turn: u64) -> Option<Result<BlockSet, BadTurn>> {
        self.with(|ledger| ledger.seal(turn))
    }

    /// The runs in a stripe of a sealed set that nothing newer is known of; the stripe is locked.
    pub(super) fn settled(&self, had: &BlockSet, stripe: u64) -> Vec<Extent> {
        self.with(|ledger| ledger.settled(had, stripe)).unwrap_or_default()
    }

    /// Asks the ledger, if there is one.
    pub(super) fn with<T>(&self, ask: impl FnOnce(&mut Ledger) -> T) -> Option<T> {
        self.ledger.lock().as_mut().map(ask)
    }
}

/// A block's content, cut at the end of the disk.
fn read_block(local: &dyn Disk, block: u64) -> Result<Copy, DiskError> {
    let at = block * BLOCK_SIZE;
    let mut content = vec![0; BLOCK_SIZE.min(local.size().0 - at) as usize];
    local.read_at(&mut content, at)?;
    Ok(content.into_boxed_slice())
}
