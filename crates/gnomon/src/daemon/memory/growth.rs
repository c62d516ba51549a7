//! A guest is given memory: what is staged first, DIMM by DIMM, then the rest by the standard path.
//!
//! ```text
//!   assign ──► add ──► the guest takes it ──► the next one
//!                ├──► nobody has it: the block goes back to the host, and what is left is not risked on this guest
//!                └──► QEMU has it, or may: it is the guest's, and looked at again later
//! ```

use std::{os::fd::AsFd, time::Instant};

use gnomon_memory::Request;
use gnomon_qemu::{Filling, GuestRam, MemoryDeviceError, NewDimm, add_dimm, remove_dimm};
use gnomon_terms::Bytes;

use super::{
    Memory, dimm, numa,
    resize::{Change, Guest, PATIENCE},
};

/// A guest that is being given memory.
pub(super) struct Growth<'a> {
    memory: &'a Memory,
    guest: &'a Guest,
    left: u64,
    change: Change,
}

impl<'a> Growth<'a> {
    /// So many bytes more, in whole steps of the guest's.
    pub fn of(memory: &'a Memory, guest: &'a Guest, bytes: u64) -> Growth<'a> {
        Growth { memory, guest, left: bytes, change: Change::default() }
    }

    /// Blocks until the guest has all of it, or it is known why not; tells how far it came.
    pub fn run(mut self) -> Change {
        // What a daemon left that ended in the middle of this would be in the way.
        self.memory.sweep(&self.guest.name, &self.guest.qemu);
        if self.add_staged() && self.left > 0 {
            self.add_cold();
        }
        self.change
    }

    /// What is staged first. A guest that does not take one is not given the next, which stays on the shelf; false then.
    fn add_staged(&mut self) -> bool {
        let request = Request {
            bytes: Bytes(self.left),
            whole: false,
            slots: self.guest.free_slots(),
            step: Bytes(self.guest.step),
        };
        let near = numa::of(&self.guest.qemu);
        let decided = Instant::now();
        let taken = self.memory.take(&self.guest.name, request, near);
        self.change.decided = decided.elapsed();
        let Some(mut reserved) = taken else { return true };
        while let Some(block) = self.memory.assign(&mut reserved, &self.guest.name) {
            let (size, id) = (block.size(), self.memory.dimm_names.staged(block.id()));
            let added = self.add(&id, &block, size, Filling::Mapped);
            match self.settle(added, size, &id) {
                Fate::Taken => self.change.staged += size.0,
                Fate::Stays => return false,
                Fate::Gone => {
                    self.memory.returned(block.id());
                    return false;
                }
            }
        }
        true
    }

    fn add(&self, id: &str, memory: &impl AsFd, size: Bytes, filling: Filling) -> Result<(), MemoryDeviceError> {
        let dimm = NewDimm { id, memory: memory.as_fd(), size, filling };
        add_dimm(&self.guest.qemu, &dimm, PATIENCE)
    }

    /// The standard path: memory that the host gives as it is touched.
    fn add_cold(&mut self) {
        let (size, id) = (Bytes(self.left), dimm::cold(self.guest.free_number()));
        match GuestRam::create(&format!("{}-{id}", self.guest.name), size) {
            Ok(ram) => {
                let added = self.add(&id, &ram, size, Filling::Untouched);
                self.settle(added, size, &id);
            }
            Err(error) => self.change.why = Some(error.to_string()),
        }
    }

    /// Notes how it went with a DIMM. One that the guest declined would hold a slot for nothing: it is taken away again.
    fn settle(&mut self, added: Result<(), MemoryDeviceError>, size: Bytes, id: &str) -> Fate {
        let Err(error) = added else {
            self.change.done += size.0;
            self.change.dimms += 1;
            self.left -= size.0;
            return Fate::Taken;
        };
        let declined = matches!(error, MemoryDeviceError::Declined { .. });
        let removed = declined.then(|| remove_dimm(&self.guest.qemu, id, PATIENCE));
        let (fate, why) = match removed {
            Some(Ok(())) => (Fate::Gone, format!("{error}: this was done")),
            Some(Err(kept)) => (Fate::Stays, format!("{error}: {kept}")),
            None if error.stays() => (Fate::Stays, error.to_string()),
            None => (Fate::Gone, error.to_string()),
        };
        self.change.why = Some(why);
        if fate == Fate::Stays {
            self.memory.owes(&self.guest.name);
        }
        fate
    }
}

/// What has become of a DIMM that was added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// The guest has it.
    Taken,
    /// Nobody has it.
    Gone,
    /// QEMU has it, or may have it yet, and the guest does not use it.
    Stays,
}
