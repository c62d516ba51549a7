//! What goes on with the guest when the primary is gone.

use std::time::Duration;

use gnomon_qemu::{Loaded, Standby, StateBlob, StateError};

/// A hypervisor that waits on the shadow's memory.
pub trait Successor: Send {
    /// A guest that is loaded and stands.
    type Loaded: Ready;

    /// Whether it could go on from devices like these. Judged before a checkpoint is claimed.
    fn fits(&self, device: &StateBlob) -> Result<(), StateError>;

    /// Loads the devices. After an error it is of no use any more, and its guest does not run.
    fn load(self, device: &StateBlob, patience: Duration) -> Result<Self::Loaded, StateError>;
}

/// A guest that is loaded and stands.
pub trait Ready: Send {
    /// Makes it run. After an error it may run.
    fn run(self, patience: Duration) -> Result<(), StateError>;
}

/// A QEMU that was started with the shadow's RAM to wait for a state.
impl Successor for Standby {
    type Loaded = Loaded;

    fn fits(&self, device: &StateBlob) -> Result<(), StateError> {
        Standby::fits(self, &device.inspect()?)
    }

    /// The state was checked when it was sealed.
    fn load(self, device: &StateBlob, patience: Duration) -> Result<Loaded, StateError> {
        self.load_unchecked(device, patience)
    }
}

impl Ready for Loaded {
    fn run(self, patience: Duration) -> Result<(), StateError> {
        Loaded::run(self, patience)
    }
}
