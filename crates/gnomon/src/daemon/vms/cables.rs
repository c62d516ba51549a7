//! Where the network cards of VMs are plugged in: at the QEMU that runs the guest, and nowhere else.

use std::sync::Arc;

use gnomon_qemu::{NicSpec, Qemu};

use super::{VmHandle, Vms};
use crate::daemon::cards::Gate;

impl Vms {
    /// The network cards of a VM.
    pub fn gate(&self, name: &str) -> Arc<Gate> {
        self.cards.gate(name)
    }

    /// The guest goes on in the QEMU that a VM has now: its cards are plugged in there, and it is announced, so that
    /// switches learn where it is.
    pub fn plug_in(&self, vm: &VmHandle) {
        let nics = vm.nics();
        if nics.is_empty() {
            return;
        }
        self.gate(&vm.record().name).plug_in(&nics);
        if let Some(qemu) = vm.qemu() {
            announce(&qemu);
        }
    }

    /// The same for a VM that a daemon before this one looked after, whose guest has not moved.
    pub(super) fn plug_in_again(&self, vm: &VmHandle) {
        self.gate(&vm.record().name).plug_in(&vm.nics());
    }
}

impl VmHandle {
    /// The network cards of its QEMU.
    pub fn nics(&self) -> Vec<NicSpec> {
        let record = self.record();
        let spec = record.qemu.as_ref().and_then(|qemu| qemu.spec.as_ref());
        spec.map(|spec| spec.nics.clone()).unwrap_or_default()
    }
}

/// A guest whose network learns late where it is goes on all the same.
fn announce(qemu: &Qemu) {
    if let Err(error) = qemu.qmp().announce_self() {
        tracing::warn!(pid = qemu.record().pid, %error, "its network cards could not be announced");
    }
}
