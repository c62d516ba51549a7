//! What the callers, the worker and the reserved blocks share.

use std::{mem, sync::Arc, time::Instant as StdInstant};

use gnomon_terms::Instant;
use parking_lot::{Condvar, Mutex};
use rustix::time::{ClockId, clock_gettime};

use super::{AllAccounts, StagingError, entry_of};
use crate::{
    accounts::{Entry, Imbalance},
    block::{Block, BlockId},
    descriptors::raise_limit,
    groups::HostLimits,
    guard::{Verdict, judge},
    holder::Holder,
    host::Gauge,
    numa::NumaNode,
    pool::Pool,
};

/// The shared part.
pub(super) struct Shared {
    pub(super) books: Mutex<Books>,
    /// Something on the books has changed.
    pub(super) changed: Condvar,
    pub(super) holder: Mutex<Holder>,
    pub(super) clock: Clock,
    gauge: Box<dyn Gauge>,
}

/// What the lock is around.
pub(super) struct Books {
    pub(super) pool: Pool<Arc<Block>>,
    /// Leaving blocks that the worker is to let go.
    pub(super) leaving: Vec<BlockId>,
    /// The worker has not seen the latest change.
    pub(super) unseen: bool,
    pub(super) stopping: bool,
}

/// Monotonic time since the area was opened.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    opened: StdInstant,
}

impl Clock {
    /// Now.
    pub(super) fn now(&self) -> Instant {
        Instant::ORIGIN.after(self.opened.elapsed())
    }
}

impl Books {
    pub(super) fn accounts(&self) -> AllAccounts {
        let ledger = self.pool.ledger();
        let groups = ledger.groups().map(|(name, accounts)| (name.clone(), *accounts)).collect();
        AllAccounts { host: ledger.host(), groups }
    }
}

impl Shared {
    pub(super) fn new(limits: HostLimits, gauge: Box<dyn Gauge>, holder: Holder) -> Shared {
        // Half of the descriptors are for whatever else this process does.
        let pool = Pool::new(limits, first_id(), raise_limit() / 2);
        let books = Books { pool, leaving: Vec::new(), unseen: true, stopping: false };
        Shared {
            books: Mutex::new(books),
            changed: Condvar::new(),
            holder: Mutex::new(holder),
            clock: Clock { opened: StdInstant::now() },
            gauge,
        }
    }

    /// Changes the books and wakes whoever waits for a change.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut Books) -> T) -> T {
        let mut books = self.books.lock();
        let changed = change(&mut books);
        books.unseen = true;
        drop(books);
        self.changed.notify_all();
        changed
    }

    /// What the guard says now.
    pub(super) fn judge(&self) -> Verdict {
        match self.gauge.read() {
            Ok(memory) => {
                let books = self.books.lock();
                judge(&memory, books.pool.limits().floor, &books.pool.small_staged())
            }
            Err(error) => {
                tracing::warn!(%error, "the host's memory is not known");
                Verdict::UNKNOWN
            }
        }
    }

    /// The node that a whole block is on: nothing on a host with one, where nobody asks.
    pub(super) fn node_of(&self, block: &Block) -> Option<NumaNode> {
        let several = self.gauge.read().is_ok_and(|memory| memory.nodes.len() > 1);
        if several { block.node() } else { None }
    }

    /// Takes a block that an earlier daemon has left, or gives it back to the host.
    pub(super) fn adopt(&self, block: Block) -> Result<(), StagingError> {
        let (id, whole, block) = (block.id(), block.is_whole(), Arc::new(block));
        let node = if whole { self.node_of(&block) } else { None };
        let (now, entry) = (self.clock.now(), Entry { node, ..entry_of(&block) });
        let kept = self.change(|books| match whole {
            true => books.pool.found_staged(now, id, entry),
            false => books.pool.found_broken(id, entry).map(|()| false),
        })?;
        tracing::info!(%id, group = %block.group(), size = %block.size(), kept, "a staged block was found");
        if kept { Ok(()) } else { self.let_go(&[id]) }
    }

    /// Has the holder forget a block: when this returns without an error it is certain that it does not have it.
    pub(super) fn forget(&self, id: BlockId) -> Result<(), StagingError> {
        Ok(self.holder.lock().forget(id)?)
    }

    /// Gives a block that is assigned back to the host.
    pub(super) fn give_back(&self, id: BlockId) -> Result<(), StagingError> {
        self.change(|books| books.pool.returned(id))?;
        self.let_go(&[id])
    }

    /// Gives leaving blocks back to the host, and strikes them out. Returns the first error; a block that could not be
    /// given back for certain stays on the books as leaving, and is tried again by the worker.
    pub(super) fn let_go(&self, ids: &[BlockId]) -> Result<(), StagingError> {
        let mut failed = Ok(());
        for id in ids {
            if let Err(error) = self.let_one_go(*id) {
                // The worker is not woken for it: it would try at once, and again and again.
                self.books.lock().leaving.push(*id);
                failed = failed.and(Err(error));
            }
        }
        failed
    }

    fn let_one_go(&self, id: BlockId) -> Result<(), StagingError> {
        self.forget(id)?;
        let block = self.books.lock().pool.block(id);
        if let Some(block) = block {
            block.release()?;
        }
        Ok(self.change(|books| books.pool.released(id))?)
    }

    /// Puts reserved blocks back. Those that cannot go back are let go by the worker.
    pub(super) fn put_back(&self, ids: impl Iterator<Item = BlockId>) {
        let now = self.clock.now();
        self.change(|books| {
            for id in ids {
                match books.pool.put_back(now, id) {
                    Ok(true) => {}
                    Ok(false) => books.leaving.push(id),
                    Err(error) => tracing::error!(%error, "a block that was reserved is lost to the books"),
                }
            }
        });
    }

    /// What the worker is to let go.
    pub(super) fn leaving(&self) -> Vec<BlockId> {
        mem::take(&mut self.books.lock().leaving)
    }

    /// Hands everything that no guest has seen to a holder that is new. A block that is taken meanwhile is forgotten
    /// again: who assigns it waits for the holder's lock.
    pub(super) fn hold_again(&self, holder: &mut Holder) {
        let unseen = self.books.lock().pool.unseen();
        for id in unseen {
            let block = self.books.lock().pool.if_unseen(id);
            let kept = block.map_or(Ok(()), |block| holder.keep(&block));
            if let Err(error) = kept {
                tracing::warn!(%error, "a staged block would not outlive this daemon");
            }
            // It has ended meanwhile: the next one is given all of them.
            if !holder.is_up() {
                return;
            }
        }
    }
}

/// Ids begin at the age of the host in nanoseconds: no daemon of the same boot has used what comes after it, for none
/// makes a block in a nanosecond.
fn first_id() -> u64 {
    let age = clock_gettime(ClockId::Boottime);
    let (seconds, nanos) = (u64::try_from(age.tv_sec).unwrap_or(0), u64::try_from(age.tv_nsec).unwrap_or(0));
    seconds.saturating_mul(1_000_000_000).saturating_add(nanos)
}

/// For errors that are mistakes of ours: logged, and the worker goes on with the rest.
pub(super) fn log_imbalance(result: Result<(), Imbalance>) {
    if let Err(error) = result {
        tracing::error!(%error, "the accounts of staged memory");
    }
}
