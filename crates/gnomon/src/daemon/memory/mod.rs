//! Memory that is ready: trust groups, what is staged for them, and guests that get it.
//!
//! ```text
//!   clock.rs   once a second: who has ended, who is short; each step: demands ─► planner ─► target ─► staging area
//!   resize.rs  a running guest's request ─► staged blocks, then the standard path
//!   boot.rs    a VM that starts ─► one staged block of its size, if there is one
//!   found.rs   after a restart: what is staged is at the holder, what is at guests is in their QEMUs
//! ```
//! The planner (gnomon-cycle) says how much should be staged and knows no block; the staging area (gnomon-memory) has the
//! blocks and knows no forecast. Only here do they meet.

mod boot;
mod clock;
pub mod demand;
mod found;
mod group;
pub mod groups;
pub mod resize;

use std::{
    collections::{BTreeMap, HashSet},
    path::PathBuf,
    sync::Arc,
};

use gnomon_cycle::staging::Pressure;
use gnomon_memory::{Block, BlockId, HolderCommand, HostLimits, Opening, Request, Reserved, Staging};
use parking_lot::{Mutex, RwLock};

use self::group::Group;
use super::records::Records;
use crate::{api::ApiError, config::Config};

pub use boot::run;
pub use clock::start;

/// The holder's socket below the run folder.
const SOCKET: &str = "memory.sock";

/// What this node does about memory.
pub struct Memory {
    config: crate::config::MemoryConfig,
    socket: PathBuf,
    records: Arc<Records>,
    groups: RwLock<BTreeMap<String, Arc<Group>>>,
    /// Opened when there is a group, or something of an earlier daemon's.
    staging: Mutex<Option<Arc<Staging>>>,
    /// Blocks that are guests' own. The accounts say whose.
    at_guests: Mutex<BTreeMap<BlockId, Arc<Block>>>,
    /// QEMUs that were looked at for blocks of an earlier daemon's, by process.
    looked_at: Mutex<HashSet<i32>>,
    /// VMs of which the memory is being changed, or that are being started.
    changing: Mutex<HashSet<String>>,
    /// VMs that were asked for memory back and have not answered: they may let go at any time.
    owing: Mutex<HashSet<String>>,
    /// VMs whose memory follows what their guests need.
    following: Mutex<BTreeMap<String, Pressure>>,
}

/// That a VM's memory is being changed, or the VM started: one change at a time, and nothing of it is taken for left over
/// meanwhile.
struct Turn<'a> {
    memory: &'a Memory,
    vm: String,
}

impl<'a> Turn<'a> {
    fn take(memory: &'a Memory, vm: &str) -> Result<Turn<'a>, ApiError> {
        match memory.changing.lock().insert(vm.to_string()) {
            true => Ok(Turn { memory, vm: vm.to_string() }),
            false => Err(ApiError::refused(format!("the memory of VM '{vm}' is being changed already"))
                .then("wait for that to end, and ask again")),
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.memory.changing.lock().remove(&self.vm);
    }
}

impl Memory {
    /// Knows nothing yet but where things are; [`start`] brings back what is on record.
    pub fn new(config: &Config, records: Arc<Records>) -> Memory {
        Memory {
            config: config.memory,
            socket: config.run_dir.join(SOCKET),
            records,
            groups: RwLock::default(),
            staging: Mutex::default(),
            at_guests: Mutex::default(),
            looked_at: Mutex::default(),
            changing: Mutex::default(),
            owing: Mutex::default(),
            following: Mutex::default(),
        }
    }

    /// The staging area, once there is one.
    fn staging(&self) -> Option<Arc<Staging>> {
        self.staging.lock().clone()
    }

    /// The staging area; opened if need be. Blocks for up to two minutes when a holder hangs.
    fn open_staging(&self) -> Result<Arc<Staging>, ApiError> {
        let mut staging = self.staging.lock();
        if let Some(open) = staging.as_ref() {
            return Ok(Arc::clone(open));
        }
        // This very program, also when its file has been replaced by a newer one.
        let args = ["hold-memory".into(), "--at".into(), self.socket.clone().into_os_string()];
        let holder = HolderCommand::new(&self.socket, "/proc/self/exe", args);
        let limits = HostLimits { budget: self.config.budget, floor: self.config.floor, ..HostLimits::default() };
        let mut opening = Opening::new(holder, limits);
        for group in self.groups.read().values() {
            opening = opening.group(group.name.clone(), groups::limits(&group.record()));
        }
        let opened = Staging::open(opening)?;
        *staging = Some(Arc::clone(&opened));
        Ok(opened)
    }

    /// The trust group of a VM.
    fn group_of(&self, vm: &str) -> Option<Arc<Group>> {
        let groups = self.groups.read();
        groups.values().find(|group| group.record().members.iter().any(|member| member == vm)).cloned()
    }

    /// Staged blocks that serve a VM's request; those that are not made its own go back to the shelf. `None` when nothing is
    /// staged for it, or something is wrong: then the standard path is there.
    fn take(&self, vm: &str, request: Request) -> Option<Reserved> {
        let (group, staging) = (self.group_of(vm)?, self.staging()?);
        match staging.take(&group.name, request) {
            Ok(taken) => Some(taken.reserved),
            Err(error) => {
                tracing::warn!(vm, %error, "what is staged cannot be used");
                None
            }
        }
    }

    /// Makes the next of these blocks a VM's own: from here on it can only go back to the host.
    fn assign(&self, reserved: &mut Reserved, vm: &str) -> Option<Arc<Block>> {
        match reserved.assign_next(vm) {
            Ok(block) => {
                let block = block?;
                self.at_guests.lock().insert(block.id(), Arc::clone(&block));
                Some(block)
            }
            Err(error) => {
                tracing::warn!(vm, %error, "what is staged cannot be used");
                None
            }
        }
    }

    /// A guest has let a block go, or never had it: its memory goes back to the host.
    fn returned(&self, id: BlockId) {
        let Some(block) = self.at_guests.lock().remove(&id) else { return };
        if let Some(staging) = self.staging()
            && let Err(error) = staging.returned(&block)
        {
            tracing::error!(block = id.0, %error, "memory that a guest has let go of");
        }
    }

    /// A VM has no QEMU any more: nor has it any block.
    fn ended(&self, vm: &str) {
        let Some(staging) = self.staging() else { return };
        let blocks = staging.assigned_to(vm);
        match staging.vm_ended(vm) {
            Ok(0) => {}
            Ok(count) => tracing::info!(vm, count, "its staged memory went back to the host"),
            Err(error) => tracing::error!(vm, %error, "memory of a VM that has ended"),
        }
        let mut at_guests = self.at_guests.lock();
        blocks.iter().for_each(|(id, _)| drop(at_guests.remove(id)));
    }
}
