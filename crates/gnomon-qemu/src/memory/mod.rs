//! Memory that a guest gets and gives back while it runs: DIMMs whose memory is a memfd of ours, and virtio-mem.
//!
//! ```text
//!                offer                plug                  accepted
//!  a memfd ──────────────► Offered ──────────► Plugged ──────────────► the guest's
//!     ▲      object-add       │    device_add     │   the guest says so   │ remove_dimm: device_del
//!     └── dropped, or QEMU says no ◄──────────────┘                       ▼
//!     └── object-del ◄── DEVICE_DELETED ◄──────────────────────── the guest lets go, or keeps it
//! ```
//!
//! QEMU says at once whether a DIMM can be plugged; whether the guest takes it, and whether it ever lets go of it, is the
//! guest's to say, by ACPI (`_OST`) or not at all. So nothing here waits longer than its caller's patience, and a DIMM at
//! which the guest has not been heard is whole: QEMU has it, [`dimms`] shows it, and the guest may still take it or, after
//! [`remove_dimm`], let go of it.
//!
//! What is in QEMU is the only record: a daemon that was restarted looks at [`dimms`] and [`held_memory`].
//!
//! A guest takes DIMMs as its kernel is set: Linux adds the memory and uses it once it is online, by itself with
//! `memhp_default_state=online_movable` on its command line, which also lets it give them back. That it has taken a DIMM does
//! not say that it uses it: set otherwise it leaves the memory alone, and a Linux that fails to add memory says so in its log,
//! and to ACPI that it has taken it. And it describes each new page in memory that it has,
//! 64 bytes for 4 KiB: a DIMM that is too large for that can bring it to a standstill (a Linux 6.1 with 36 MiB to spare took
//! 8 GiB and was not heard of again), so whoever adds looks at what the guest has first.
//!
//! Source: ACPI 6.5, 6.3.5 (`_OST`); QEMU documentation, `docs/memory-hotplug.txt` and "virtio-mem".

mod error;
mod event;
mod inventory;
mod plug;
mod presence;
mod step;
mod tables;
mod unplug;
mod virtio;
mod whole;

pub use error::MemoryDeviceError;
pub use event::{DimmAnswer, DimmEvent};
pub(crate) use inventory::{AddedMemory, added_memory};
pub use inventory::{Dimm, HeldMemory, VirtioMem, added, dimms, held_memory, virtio_mem};
pub use plug::{Filling, NewDimm, OfferedDimm, PluggedDimm, add_dimm};
pub use presence::{Looked, Part, PresenceError, present};
pub use step::guest_step;
pub use tables::PageTables;
pub use unplug::{remove_dimm, sweep_backends};
pub use virtio::resize_virtio_mem;
pub use whole::{mapped_files, memory_of, resolved_now};

use std::time::Duration;

use crate::qmp::{EventError, EventStream, QmpEvent};

/// What a guest adds and gives back at least: the memory block of Linux on x86-64. For one of 64 GiB and more see [`guest_step`].
///
/// Source: Linux `Documentation/admin-guide/mm/memory-hotplug.rst`, "Memory hotplug granularity".
pub const GUEST_BLOCK: u64 = 128 << 20;

/// What the virtio-mem device is called in every QEMU that gnomon starts.
pub(crate) const VIRTIO_MEM: &str = "vmem0";

/// What its memory is called there.
pub(crate) const VIRTIO_MEM_BACKEND: &str = "vmem0-ram";

/// What the backends of DIMMs end with: the DIMM's own name comes before.
const BACKEND_SUFFIX: &str = "-dimm";

/// What a descriptor is given to QEMU for that is to become a DIMM's memory.
const FD_PURPOSE: &str = "gnomon-dimm";

/// The longest name of a DIMM.
pub(crate) const MAX_NAME: usize = 64;

/// What the backend of a DIMM is called, in QEMU and in the state of devices.
pub(crate) fn backend_of(id: &str) -> String {
    format!("{id}{BACKEND_SUFFIX}")
}

/// Whether QEMU takes this for a name: a letter, then letters, digits, `-`, `.` and `_`.
pub(crate) fn is_name(id: &str) -> bool {
    let first = id.bytes().next().is_some_and(|b| b.is_ascii_alphabetic());
    first && id.len() <= MAX_NAME && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
}

/// Reads events until one is what is looked for; `None` when patience has ended.
fn await_event<T>(
    events: &EventStream,
    patience: Duration,
    pick: impl FnMut(&QmpEvent) -> Option<T>,
) -> Result<Option<T>, MemoryDeviceError> {
    match events.wait_for(patience, pick) {
        Ok(found) => Ok(Some(found)),
        Err(EventError::Timeout) => Ok(None),
        Err(EventError::Closed(reason)) => Err(MemoryDeviceError::Ended { reason }),
    }
}
