//! The staging area of a host: the pool with its worker, its holder and its clock.
//!
//! ```text
//!   take ───────────► pool (one lock, no system call) ───► Reserved ──assign──► the roof gives them to QEMU
//!   set_target ─────►   │ changed                             │ dropped: back to the pool
//!                       ▼                                      ▼
//!                     worker ── stages, evicts ──► holder    returned, vm_ended: forgotten, punched, closed
//! ```
//!
//! Two locks, in this order and never the other way round: the holder, then the books. Who changes the state of a block
//! does that first and tells the holder afterwards: a block that is on the books as a guest's is never handed to a
//! holder again, and QEMU gets it only when the holder has forgotten it.

mod error;
mod looks;
mod reserved;
mod shared;
mod worker;

use std::{fmt, sync::Arc, thread::JoinHandle, time::Duration};

use gnomon_terms::Bytes;
use parking_lot::Mutex;

use crate::{
    accounts::{Accounts, Entry, Imbalance, State},
    block::{Block, BlockId},
    fit::Request,
    groups::{GroupLimits, GroupName, HostLimits},
    holder::{Holder, HolderCommand},
    host::{Gauge, ProcGauge},
    numa::NumaNode,
    stats::GroupStats,
};
use shared::Shared;

pub use error::StagingError;
pub use reserved::{Reserved, Taken};

/// What a staging area is opened with.
pub struct Opening {
    holder: HolderCommand,
    limits: HostLimits,
    groups: Vec<(GroupName, GroupLimits)>,
    gauge: Box<dyn Gauge>,
}

/// The accounts of a host and of each group that has or had a block.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllAccounts {
    /// Of all groups together, also of those that are gone.
    pub host: Accounts,
    /// Of each, by name.
    pub groups: Vec<(GroupName, Accounts)>,
}

/// The staging area. Dropping it stops its worker; what is staged stays at the holder, for the next one that is opened.
pub struct Staging {
    shared: Arc<Shared>,
    worker: Mutex<Option<JoinHandle<()>>>,
}

impl Opening {
    /// With no groups yet, on this host.
    pub fn new(holder: HolderCommand, limits: HostLimits) -> Opening {
        Opening { holder, limits, groups: Vec::new(), gauge: Box::new(ProcGauge) }
    }

    /// With this group. Blocks that are found staged go to the groups that are known here; others go to the host.
    #[must_use]
    pub fn group(mut self, name: GroupName, limits: GroupLimits) -> Opening {
        self.groups.push((name, limits));
        self
    }

    /// With another gauge of the host's memory than its kernel.
    #[must_use]
    pub fn gauge(mut self, gauge: impl Gauge + 'static) -> Opening {
        self.gauge = Box::new(gauge);
        self
    }
}

impl Staging {
    /// Opens it: finds what an earlier daemon has left staged, and starts the worker. A block that is not fully allocated
    /// goes to the host, and so does one of a group that is not known. What is found stays until its group has a target.
    /// Raises this process's limit of open descriptors as far as it may: each block is one.
    ///
    /// Refused with [`crate::HolderError::Busy`] when another daemon uses the holder. Blocks for as long as
    /// [`HolderCommand::busy`], for up to two minutes when a holder does not answer, and for 0.2 s per GiB that goes to the host.
    pub fn open(opening: Opening) -> Result<Arc<Staging>, StagingError> {
        let (holder, found) = Holder::find(opening.holder)?;
        let shared = Arc::new(Shared::new(opening.limits, opening.gauge, holder));
        for (name, limits) in opening.groups {
            shared.books.lock().pool.add_group(shared.clock.now(), name, limits)?;
        }
        for block in found {
            // One that cannot be taken must not keep the daemon from starting. What is to go is tried again by the worker.
            if let Err(error) = shared.adopt(block) {
                tracing::error!(%error, "a block that was found staged is not used");
            }
        }
        let worker = worker::start(Arc::clone(&shared)).map_err(|source| StagingError::Thread { source })?;
        Ok(Arc::new(Staging { shared, worker: Mutex::new(Some(worker)) }))
    }

    /// Adds a group. Nothing is staged for it before it has a target.
    pub fn add_group(&self, name: GroupName, limits: GroupLimits) -> Result<(), StagingError> {
        let now = self.shared.clock.now();
        Ok(self.shared.change(|books| books.pool.add_group(now, name, limits))?)
    }

    /// Changes the limits of a group; the pages that it is made of stay. What is over a smaller budget goes to the host
    /// soon, beside this call.
    pub fn set_group_limits(&self, group: &GroupName, limits: GroupLimits) -> Result<(), StagingError> {
        Ok(self.shared.change(|books| books.pool.set_group_limits(group, limits))?)
    }

    /// Removes a group. What is staged for it is back at the host when this returns; what is reserved goes there when it
    /// is put back or its guest lets it go. Blocks for 0.2 s per GiB.
    pub fn remove_group(&self, group: &GroupName) -> Result<(), StagingError> {
        let staged = self.shared.change(|books| books.pool.remove_group(group))?;
        self.shared.let_go(&staged)
    }

    /// The groups and their limits, by name.
    pub fn groups(&self) -> Vec<(GroupName, GroupLimits)> {
        let books = self.shared.books.lock();
        books.pool.group_limits().map(|(name, limits)| (name.clone(), *limits)).collect()
    }

    /// Sets what is to be staged for a group: how many blocks of each size, which is a multiple of the group's pages. Sizes
    /// that are not named are not wanted. The worker stages and evicts the difference, beside this call; fewer are staged
    /// where the limits do not allow as many, and more are kept for as long as blocks linger.
    pub fn set_target(&self, group: &GroupName, target: &[(Bytes, u32)]) -> Result<(), StagingError> {
        let now = self.shared.clock.now();
        Ok(self.shared.change(|books| books.pool.set_target(now, group, target))?)
    }

    /// Changes the limits of the host. What is over a smaller budget, or under a higher floor, goes to the host soon.
    pub fn set_limits(&self, limits: HostLimits) {
        self.shared.change(|books| books.pool.set_host_limits(limits));
    }

    /// Says on which node a group's guests run; `None` when they run on several, or it is not known. New blocks go there as
    /// long as it has room; those that there are stay where they are.
    pub fn set_home(&self, group: &GroupName, node: Option<NumaNode>) -> Result<(), StagingError> {
        Ok(self.shared.change(|books| books.pool.set_home(group, node))?)
    }

    /// Takes what serves a request best, for a guest that runs where its group's do. Makes no system call but the waking of
    /// the worker: microseconds.
    pub fn take(&self, group: &GroupName, request: Request) -> Result<Taken, StagingError> {
        self.take_near(group, request, None)
    }

    /// The same, for a guest that runs on the node `near`: what is there comes first, and what is elsewhere before going
    /// without.
    pub fn take_near(
        &self,
        group: &GroupName,
        request: Request,
        near: Option<NumaNode>,
    ) -> Result<Taken, StagingError> {
        let asked = std::time::Instant::now();
        let now = self.shared.clock.now();
        let grant = self.shared.change(|books| {
            let grant = books.pool.take(now, group, request, near);
            books.pool.decided(group, asked.elapsed());
            grant
        })?;
        let reserved = Reserved::new(Arc::clone(&self.shared), grant.blocks);
        Ok(Taken { reserved, hit: grant.hit, missing: grant.missing })
    }

    /// A block was found at the QEMU of a VM, by a daemon that was restarted. It is on the books as assigned from now on.
    /// The group need not be known any more.
    pub fn assigned_again(&self, vm: &str, block: Block) -> Result<Arc<Block>, StagingError> {
        let (id, block, now) = (block.id(), Arc::new(block), self.shared.clock.now());
        let entry = entry_of(&block);
        self.shared.change(|books| books.pool.found_assigned(now, id, vm, entry))?;
        self.shared.forget(id)?;
        Ok(block)
    }

    /// A guest let a block go (its DIMM was unplugged, or never came to be): its memory is back at the host when this
    /// returns, whatever QEMU still has open. Only for a caller who knows that the guest has no access to it any more: what
    /// it had there is zeros from now on. Refused when the block is not on the books as assigned. Blocks for 0.2 s per GiB.
    pub fn returned(&self, block: BlockId) -> Result<(), StagingError> {
        self.shared.give_back(block)
    }

    /// A VM has ended, in whatever way: everything that was assigned to it is back at the host when this returns. Says how
    /// many blocks that were. Only for a caller who knows that no QEMU of the VM lives, and that no request for it is
    /// under way. Blocks for 0.2 s per GiB.
    pub fn vm_ended(&self, vm: &str) -> Result<usize, StagingError> {
        let ids = self.shared.change(|books| books.pool.ended(vm))?;
        self.shared.let_go(&ids)?;
        Ok(ids.len())
    }

    /// The accounts, at one moment.
    pub fn accounts(&self) -> AllAccounts {
        self.shared.books.lock().accounts()
    }

    /// Counts anew what the accounts say. Takes time in proportion to the number of blocks.
    pub fn check(&self) -> Result<(), Imbalance> {
        self.shared.books.lock().pool.ledger().check()
    }

    /// What is at the guest of a VM, as the books have it.
    pub fn assigned_to(&self, vm: &str) -> Vec<(BlockId, Bytes)> {
        let books = self.shared.books.lock();
        let of_vm = |entry: &Entry<_>| matches!(&entry.state, State::Assigned(to) if to == vm);
        let mut blocks: Vec<(BlockId, Bytes)> = books
            .pool
            .ledger()
            .iter()
            .filter(|(_, entry)| of_vm(entry))
            .map(|(id, entry)| (id, entry.size))
            .collect();
        blocks.sort();
        blocks
    }

    /// What staging was worth for a group.
    pub fn stats(&self, group: &GroupName) -> Result<GroupStats, StagingError> {
        Ok(self.shared.books.lock().pool.stats(self.shared.clock.now(), group)?)
    }

    /// Waits until the accounts are as wanted. False when `patience` has passed.
    pub fn wait_until(&self, patience: Duration, wanted: impl Fn(&AllAccounts) -> bool) -> bool {
        let end = std::time::Instant::now() + patience;
        let mut books = self.shared.books.lock();
        while !wanted(&books.accounts()) {
            if self.shared.changed.wait_until(&mut books, end).timed_out() {
                return wanted(&books.accounts());
            }
        }
        true
    }

    /// The process that keeps what is staged; `None` while there is nothing to keep or it could not be started.
    pub fn holder_pid(&self) -> Option<i32> {
        self.shared.holder.lock().pid()
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        self.shared.change(|books| books.stopping = true);
        if let Some(worker) = self.worker.lock().take() {
            // A worker that has panicked has said so itself.
            let _ = worker.join();
        }
    }
}

impl fmt::Debug for Staging {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Staging").field("accounts", &self.accounts().host).finish_non_exhaustive()
    }
}

/// How a block goes on the books.
fn entry_of(block: &Arc<Block>) -> Entry<Arc<Block>> {
    Entry {
        group: block.group().clone(),
        size: block.size(),
        pages: block.pages(),
        state: State::Staged,
        node: None,
        block: Some(Arc::clone(block)),
    }
}
