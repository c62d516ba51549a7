//! Network cards of this node's VMs: their frames are carried by the daemon, between QEMU and the uplinks.
//!
//! ```text
//!   Cards ──┬── Gate of a VM ──┬── Card: a thread ── Tap
//!           │   strict mode    └── Card …
//!           └── Gate …
//! ```
//! Whoever may run the guest has its cables: they are pulled where it was given away before they are plugged in where it
//! goes on, so its address is never at two places. A copy that something is tried on has cards and no cables.

mod card;
mod error;
mod gate;
mod tap;

use std::{collections::BTreeMap, sync::Arc};

use gnomon_qemu::{MacAddress, NicSpec};
use parking_lot::Mutex;

pub use error::UplinkError;
pub use gate::Gate;

/// The cards of all VMs.
#[derive(Default)]
pub struct Cards {
    gates: Mutex<BTreeMap<String, Arc<Gate>>>,
}

impl Cards {
    /// Those of a VM.
    pub fn gate(&self, vm: &str) -> Arc<Gate> {
        let mut gates = self.gates.lock();
        Arc::clone(gates.entry(vm.to_string()).or_insert_with(|| Arc::new(Gate::new(vm))))
    }

    /// The VM is not this node's any more: its cables are pulled.
    pub fn forget(&self, vm: &str) {
        let gate = self.gates.lock().remove(vm);
        if let Some(gate) = gate {
            gate.fence();
        }
    }

    /// Refuses cards that could not be plugged in here, as far as can be told without doing it.
    pub fn check(nics: &[NicSpec]) -> Result<(), UplinkError> {
        nics.iter().try_for_each(|nic| tap::Tap::check(&nic.uplink))
    }
}

/// The address of a VM's card when none was asked for: always the same for the same name and place. 46 bits of a hash, so
/// that a million cards share none but with a chance of 1 in 140.
pub fn derived_address(vm: &str, index: usize) -> MacAddress {
    let digest = blake3::hash(format!("gnomon card {index} of {vm}").as_bytes());
    let mut bytes = [0; 6];
    bytes.copy_from_slice(&digest.as_bytes()[..6]);
    MacAddress::local(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_that_of_a_name_and_a_place() {
        assert_eq!(derived_address("web", 0), derived_address("web", 0));
        assert_ne!(derived_address("web", 0), derived_address("web", 1));
        assert_ne!(derived_address("web", 0), derived_address("db", 0));
    }
}
