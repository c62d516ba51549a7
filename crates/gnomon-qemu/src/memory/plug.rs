//! Adding a DIMM: offered to QEMU, plugged, taken by the guest.

use std::{
    os::fd::{AsFd, BorrowedFd},
    time::Duration,
};

use gnomon_terms::Bytes;
use serde_json::json;

use super::{
    DimmAnswer, DimmEvent, FD_PURPOSE, GUEST_BLOCK, MAX_NAME, MemoryDeviceError, PageTables, await_event, backend_of,
    is_name,
};
use crate::{
    Qemu,
    qmp::{EventStream, Qmp, QmpError},
};

/// How long QEMU may take to map memory, and to populate it when that is asked for: 1 GiB that nobody has touched takes
/// one second on an idle host and some ten on a busy one.
const MAP_TIMEOUT: Duration = Duration::from_secs(120);

/// Memory that is to become a DIMM.
#[derive(Clone, Copy, Debug)]
pub struct NewDimm<'a> {
    /// Names it in QEMU and in its events: a letter, then letters, digits, `-`, `.` and `_`, 64 at most.
    pub id: &'a str,
    /// A memfd, read and write.
    pub memory: BorrowedFd<'a>,
    /// Its size: a multiple of [`GUEST_BLOCK`].
    pub size: Bytes,
    /// What is done before the guest gets it.
    pub filling: Filling,
}

/// What is done with memory before a guest gets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filling {
    /// Nothing: it is allocated and mapped as the guest touches it.
    Untouched,
    /// What is allocated of it is mapped, beside the running guest: some 25 ms for 128 MiB. It is a help: what is not
    /// mapped then is as the guest touches it.
    Mapped,
    /// QEMU allocates what nobody has yet, and maps all of it. The guest's disks and cards stand meanwhile: for 40 ms and
    /// more where 128 MiB are allocated, and half a second where they are not.
    Allocated,
}

/// Memory that QEMU has mapped, and that the guest does not know of. Dropped, QEMU lets go of it.
#[derive(Debug)]
pub struct OfferedDimm {
    qmp: Qmp,
    id: String,
    plugged: bool,
}

/// A DIMM that QEMU has, and of which the guest is being told.
#[derive(Debug)]
pub struct PluggedDimm {
    events: EventStream,
    id: String,
}

/// Adds a DIMM and awaits that the guest takes it, for up to `patience` (and two minutes for QEMU). Of an error that does
/// not say that it [stays](MemoryDeviceError::stays), nothing is left in QEMU.
pub fn add_dimm(qemu: &Qemu, dimm: &NewDimm<'_>, patience: Duration) -> Result<(), MemoryDeviceError> {
    OfferedDimm::new(qemu, dimm)?.plug()?.taken(patience)
}

impl OfferedDimm {
    /// Has QEMU map the memory: the descriptor is QEMU's own from then on, and the caller may close its own.
    pub fn new(qemu: &Qemu, dimm: &NewDimm<'_>) -> Result<OfferedDimm, MemoryDeviceError> {
        check(dimm)?;
        let qmp = qemu.qmp().clone();
        let (set, fd) = qmp.add_fd_anywhere(dimm.memory.as_fd(), FD_PURPOSE)?;
        // QEMU opens a backend's file by itself, which knows nothing of /dev/fdset; its own descriptors it can open.
        let arguments = json!({
            "qom-type": "memory-backend-file", "id": backend_of(dimm.id), "size": dimm.size.0,
            "mem-path": format!("/proc/self/fd/{fd}"), "share": true, "prealloc": dimm.filling == Filling::Allocated,
        });
        let added = qmp.object_add(arguments, MAP_TIMEOUT);
        // The backend has a descriptor of its own now. A QEMU that does not answer has ended, and has none.
        let _ = qmp.remove_fd(set);
        let id = dimm.id.to_string();
        match added {
            Ok(()) => {
                if dimm.filling == Filling::Mapped
                    && let Err(error) = PageTables::of(qemu, dimm.memory, dimm.size).and_then(|tables| tables.fill())
                {
                    tracing::warn!(id, %error, "its memory is mapped as the guest touches it");
                }
                Ok(OfferedDimm { qmp, id, plugged: false })
            }
            Err(QmpError::Refused { desc, .. }) if desc.contains("duplicate property") => {
                Err(MemoryDeviceError::Exists { id })
            }
            Err(source @ QmpError::Refused { .. }) => Err(MemoryDeviceError::Backend { id, source }),
            Err(source) => {
                // It may be made yet.
                drop(OfferedDimm { qmp, id: id.clone(), plugged: false });
                Err(MemoryDeviceError::Backend { id, source })
            }
        }
    }

    /// Plugs it in. QEMU says at once whether it can; what the guest says is another question.
    pub fn plug(mut self) -> Result<PluggedDimm, MemoryDeviceError> {
        let events = self.qmp.events();
        let device = json!({ "driver": "pc-dimm", "id": self.id, "memdev": backend_of(&self.id) });
        match self.qmp.device_add(device) {
            Ok(()) => {
                self.plugged = true;
                Ok(PluggedDimm { events, id: self.id.clone() })
            }
            Err(error) => Err(MemoryDeviceError::of_plugging(&self.id, error)),
        }
    }
}

impl Drop for OfferedDimm {
    fn drop(&mut self) {
        if self.plugged {
            return;
        }
        // There is nothing at all when QEMU has ended.
        if let Err(error) = self.qmp.object_del(&backend_of(&self.id)) {
            tracing::debug!(id = self.id, %error, "no memory to take back");
        }
    }
}

impl PluggedDimm {
    /// Awaits the guest's answer for up to `patience`. Linux answers once the memory is added and, when it is set so,
    /// online. May be asked again after [`MemoryDeviceError::NoAnswer`].
    pub fn taken(&self, patience: Duration) -> Result<(), MemoryDeviceError> {
        let id = self.id.clone();
        let answer = await_event(&self.events, patience, |event| {
            let answer = DimmEvent::of(event).filter(|event| event.id == id)?.answer;
            matches!(answer, DimmAnswer::Taken | DimmAnswer::Declined(_) | DimmAnswer::Gone).then_some(answer)
        })?;
        match answer {
            Some(DimmAnswer::Taken) => Ok(()),
            Some(DimmAnswer::Gone) => Err(MemoryDeviceError::NotThere { what: "DIMM", id }),
            Some(answer) => Err(MemoryDeviceError::Declined { id, answer }),
            None => Err(MemoryDeviceError::NoAnswer { id, after: patience }),
        }
    }
}

fn check(dimm: &NewDimm<'_>) -> Result<(), MemoryDeviceError> {
    if !is_name(dimm.id) {
        return Err(MemoryDeviceError::BadId { id: dimm.id.chars().take(MAX_NAME).collect() });
    }
    match dimm.size.0 > 0 && dimm.size.0.is_multiple_of(GUEST_BLOCK) {
        true => Ok(()),
        false => Err(MemoryDeviceError::BadSize { size: dimm.size }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_sizes_that_nobody_takes_are_refused() {
        let file = std::fs::File::open("/dev/null").expect("a descriptor");
        let table = [
            ("block-1.a_B", 128 << 20, true),
            ("b", 1 << 30, true),
            ("b", 0, false),
            ("b", 127 << 20, false),
            ("", 128 << 20, false),
            ("1b", 128 << 20, false),
            ("a,b", 128 << 20, false),
            ("a/b", 128 << 20, false),
        ];
        for (id, size, fits) in table {
            let dimm = NewDimm { id, memory: file.as_fd(), size: Bytes(size), filling: Filling::Mapped };
            assert_eq!(check(&dimm).is_ok(), fits, "{id} {size}");
        }
        let long = "b".repeat(MAX_NAME + 1);
        let dimm = NewDimm { id: &long, memory: file.as_fd(), size: Bytes(GUEST_BLOCK), filling: Filling::Mapped };
        assert!(matches!(check(&dimm), Err(MemoryDeviceError::BadId { .. })));
    }
}
