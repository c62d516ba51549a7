//! Memory that is ready: trust groups, what is staged for them, and guests that get it.
//!
//! ```text
//!   clock.rs   once a second: who has ended, who is short; each step: demands ─► planner ─► target ─► staging area
//!   dimm.rs    what DIMMs are called, and which block that means
//!   resize.rs  a running guest's request ─► staged blocks, then the standard path
//!   growth.rs  DIMM by DIMM, what is staged first
//!   elastic.rs the same for a guest with a device that changes its size: nothing can be staged for it
//!   boot.rs    a VM that starts ─► one staged block of its size, if there is one
//!   follow.rs  a guest that says it is short ─► a request, at most one at a time, and rarer when it does not take it
//!   heat.rs    where VMs touch their memory: which DIMM is asked back first, and what a group's members have in common
//!   turn.rs    one change of a VM at a time
//!   numa.rs    where guests run, on a host with several NUMA nodes
//!   asking.rs  questions to many QEMUs, so that one that hangs holds up nobody
//!   found.rs   after a restart: what is staged is at the holder, what is at guests is in their QEMUs
//! ```
//! The planner (gnomon-cycle) says how much should be staged and knows no block; the staging area (gnomon-memory) has the
//! blocks and knows no forecast. Only here do they meet.

mod asking;
mod boot;
mod clock;
pub mod demand;
mod dimm;
mod elastic;
mod follow;
mod found;
mod group;
pub mod groups;
mod growth;
mod heat;
mod numa;
pub mod resize;
mod turn;
mod writes;

use std::{
    collections::{BTreeMap, HashSet},
    path::PathBuf,
    sync::Arc,
};

use gnomon_memory::{Block, BlockId, HolderCommand, HostLimits, NumaNode, Opening, Request, Reserved, Staging};
use gnomon_qemu::Qemu;
use parking_lot::{Mutex, RwLock};

use self::{
    asking::Asking,
    dimm::DimmNames,
    follow::Following,
    group::Group,
    heat::Heats,
    turn::{Turn, Turns},
};
use super::{Daemon, records::Records, vms::VmHandle};
use crate::{api::ApiError, config::Config};

pub use boot::run;
pub use clock::start;

/// The holder's socket below the run folder.
const SOCKET: &str = "memory.sock";

/// What this node does about memory.
pub struct Memory {
    config: crate::config::MemoryConfig,
    dimm_names: DimmNames,
    socket: PathBuf,
    records: Arc<Records>,
    groups: RwLock<BTreeMap<String, Arc<Group>>>,
    /// Held by whoever changes which groups there are, who is in them, or what they are to have: one at a time, because each
    /// looks at all of them and writes down what it made of that.
    changes: Mutex<()>,
    /// Opened when there is a group, or something of an earlier daemon's. A request never waits for that.
    staging: RwLock<Option<Arc<Staging>>>,
    opening: Mutex<()>,
    /// QEMUs that were looked at for blocks of an earlier daemon's, by process.
    looked_at: Mutex<HashSet<i32>>,
    turns: Turns,
    /// VMs that were asked for memory back, or given some, and have not answered: they may let go at any time. Each with how
    /// often it is still looked.
    owing: Mutex<BTreeMap<String, u32>>,
    /// VMs whose memory follows what their guests need.
    following: Mutex<BTreeMap<String, Following>>,
    heats: Heats,
    asking: Asking,
}

impl Memory {
    /// Knows nothing yet but where things are; [`start`] brings back what is on record.
    pub fn new(config: &Config, records: Arc<Records>) -> Memory {
        Memory {
            config: config.memory,
            dimm_names: DimmNames::of(&config.node),
            socket: config.run_dir.join(SOCKET),
            records,
            groups: RwLock::default(),
            changes: Mutex::default(),
            staging: RwLock::default(),
            opening: Mutex::default(),
            looked_at: Mutex::default(),
            turns: Turns::default(),
            owing: Mutex::default(),
            following: Mutex::default(),
            heats: Heats::default(),
            asking: Asking::default(),
        }
    }

    /// The staging area, once there is one.
    fn staging(&self) -> Option<Arc<Staging>> {
        self.staging.read().clone()
    }

    /// The staging area; opened if need be. Blocks for up to two minutes when a holder hangs.
    fn open_staging(&self) -> Result<Arc<Staging>, ApiError> {
        let _opening = self.opening.lock();
        if let Some(open) = self.staging() {
            return Ok(open);
        }
        // This very program, also when its file has been replaced by a newer one.
        let args = ["hold-memory".into(), "--at".into(), self.socket.clone().into_os_string()];
        let holder = HolderCommand::new(&self.socket, "/proc/self/exe", args);
        let limits = HostLimits { budget: self.config.budget, floor: self.config.floor, ..HostLimits::default() };
        let mut opening = Opening::new(holder, limits);
        for group in self.groups.read().values() {
            opening = opening.group(group.name.clone(), groups::limits(&group.record(), group.mode()));
        }
        let opened = Staging::open(opening)?;
        *self.staging.write() = Some(Arc::clone(&opened));
        Ok(opened)
    }

    /// Sees to it that a VM's memory is what it began with, and stays so until this is dropped: for who begins to carry it
    /// elsewhere, and has it on record by then.
    pub(super) fn hold_still(&self, vm: &VmHandle) -> Result<Turn<'_>, ApiError> {
        let turn = self.turns.take(&vm.record().name)?;
        vm.refuse_if_its_device_has_memory()?;
        Ok(turn)
    }

    /// Whether a VM has ended for certain: no QEMU of it lives, nor is one about to take over.
    fn is_over(&self, daemon: &Daemon, vm: &str) -> bool {
        daemon.vms.is_free(vm) && !daemon.updates.is_under_way(vm)
    }

    /// Asks the QEMUs of these VMs, and tells what those that run have answered.
    fn ask<T: Send + 'static>(
        &self,
        daemon: &Daemon,
        vms: Vec<String>,
        question: fn(&Arc<Qemu>) -> Option<T>,
    ) -> Vec<(String, T)> {
        let running = vms.into_iter().filter_map(|vm| daemon.vms.get(&vm).ok()?.qemu().map(|qemu| (vm, qemu)));
        let answers = self.asking.all(running, question);
        answers.into_iter().filter_map(|(vm, answer)| Some((vm, answer?))).collect()
    }

    /// The trust group of a VM.
    fn group_of(&self, vm: &str) -> Option<Arc<Group>> {
        let groups = self.groups.read();
        groups.values().find(|group| group.has(vm)).cloned()
    }

    /// Staged blocks that serve the request of a VM that runs on the node `near`; those that are not made its own go back to
    /// the shelf. `None` when nothing is staged for it, or something is wrong: then the standard path is there.
    fn take(&self, vm: &str, request: Request, near: Option<NumaNode>) -> Option<Reserved> {
        self.take_near(self.group_of(vm)?.as_ref(), vm, request, near)
    }

    /// The same for a VM that does not run yet.
    fn take_of(&self, group: &Group, vm: &str, request: Request) -> Option<Reserved> {
        self.take_near(group, vm, request, None)
    }

    fn take_near(&self, group: &Group, vm: &str, request: Request, near: Option<NumaNode>) -> Option<Reserved> {
        match self.staging()?.take_near(&group.name, request, near) {
            Ok(taken) => Some(taken.reserved),
            Err(error) => {
                tracing::warn!(vm, %error, "what is staged cannot be used");
                None
            }
        }
    }

    /// Makes the next of these blocks a VM's own: from here on it can only go back to the host.
    fn assign(&self, reserved: &mut Reserved, vm: &str) -> Option<Arc<Block>> {
        reserved.assign_next(vm).unwrap_or_else(|error| {
            tracing::warn!(vm, %error, "what is staged cannot be used");
            None
        })
    }

    /// A DIMM is no VM's any more, or never was: its memory goes back to the host, if it is of a block of this host that is
    /// that VM's on the books.
    fn let_go(&self, vm: &str, name: &str) {
        let is_its_own = |id: &BlockId| {
            self.staging().is_some_and(|staging| staging.assigned_to(vm).iter().any(|(own, _)| own == id))
        };
        if let Some(id) = self.dimm_names.block_of(name).filter(is_its_own) {
            self.returned(id);
        }
    }

    /// A guest has let a block go, or never had it: its memory goes back to the host.
    fn returned(&self, id: BlockId) {
        if let Some(staging) = self.staging()
            && let Err(error) = staging.returned(id)
        {
            tracing::error!(block = id.0, %error, "memory that a guest has let go of");
        }
    }

    /// A VM has no QEMU any more: nor has it any block.
    fn ended(&self, vm: &str) {
        let Some(staging) = self.staging() else { return };
        match staging.vm_ended(vm) {
            Ok(0) => {}
            Ok(count) => tracing::info!(vm, count, "its staged memory went back to the host"),
            Err(error) => tracing::error!(vm, %error, "memory of a VM that has ended"),
        }
    }
}
