//! The gate of an export: who is inside, and whether anyone may still come in.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Condvar, Mutex};

use super::ServeError;

/// Counts the requests that touch the disk, and closes once.
#[derive(Default)]
pub(super) struct Gate {
    /// Requests inside, and [`CLOSED`].
    state: AtomicU64,
    lock: Mutex<()>,
    emptied: Condvar,
}

/// The highest bit; the others count. 2^63 requests at once are out of reach.
const CLOSED: u64 = 1 << 63;

impl Gate {
    /// Lets a request in, or says that the export is gone.
    pub(super) fn enter(&self) -> Result<Inside<'_>, ServeError> {
        let before = self.state.fetch_add(1, Ordering::AcqRel);
        let inside = Inside { gate: self };
        // A refused request is inside for a moment, which can only make `wait_until_empty` wait that moment longer.
        if before & CLOSED != 0 { Err(ServeError::Removed) } else { Ok(inside) }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.state.load(Ordering::Acquire) & CLOSED != 0
    }

    /// Lets nobody in any more. Does not wait.
    pub(super) fn close(&self) {
        self.state.fetch_or(CLOSED, Ordering::AcqRel);
    }

    /// Blocks until the last request is out. Only after [`Gate::close`].
    pub(super) fn wait_until_empty(&self) {
        let mut guard = self.lock.lock();
        while self.state.load(Ordering::Acquire) != CLOSED {
            self.emptied.wait(&mut guard);
        }
    }
}

/// A request inside the gate; leaves when dropped.
pub(super) struct Inside<'a> {
    gate: &'a Gate,
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        if self.gate.state.fetch_sub(1, Ordering::AcqRel) == CLOSED + 1 {
            // Under the lock, so that a waiter is either before its look at the state or already waiting.
            let _guard = self.gate.lock.lock();
            self.gate.emptied.notify_all();
        }
    }
}
