//! Taking a DIMM back: asked for, let go of by the guest, closed by QEMU.

use std::{collections::HashSet, time::Duration};

use super::{BACKEND_SUFFIX, DimmAnswer, DimmEvent, FD_PURPOSE, MemoryDeviceError, await_event, backend_of, dimms};
use crate::{Qemu, qmp::QmpError};

/// Asks the guest for a DIMM, awaits that it lets go for up to `patience`, and has QEMU close the memory. After an error
/// the DIMM is whole. After [`MemoryDeviceError::NoAnswer`] the guest goes on at it (Linux moves pages away for as long as
/// it takes), and this may be called again: also for a DIMM of which the guest let go while nobody waited.
pub fn remove_dimm(qemu: &Qemu, id: &str, patience: Duration) -> Result<(), MemoryDeviceError> {
    let events = qemu.qmp().events();
    match qemu.qmp().device_del(id) {
        Ok(()) => {}
        Err(QmpError::Refused { class, .. }) if class == "DeviceNotFound" => return forget(qemu, id),
        // The guest was asked before.
        Err(QmpError::Refused { desc, .. }) if desc.contains("already in the process of unplug") => {}
        Err(error) => return Err(error.into()),
    }
    let answer = await_event(&events, patience, |event| {
        let answer = DimmEvent::of(event).filter(|event| event.id == id)?.answer;
        matches!(answer, DimmAnswer::Gone | DimmAnswer::Kept(_) | DimmAnswer::Stuck(_)).then_some(answer)
    })?;
    match answer {
        Some(DimmAnswer::Gone) => forget(qemu, id),
        Some(answer) => Err(MemoryDeviceError::Kept { id: id.to_string(), answer }),
        None => Err(MemoryDeviceError::NoAnswer { id: id.to_string(), after: patience }),
    }
}

/// Has QEMU close the memory of a DIMM that is no device any more.
fn forget(qemu: &Qemu, id: &str) -> Result<(), MemoryDeviceError> {
    match qemu.qmp().object_del(&backend_of(id)) {
        Err(QmpError::Refused { desc, .. }) if desc.contains("not found") => {
            Err(MemoryDeviceError::NotThere { what: "DIMM", id: id.to_string() })
        }
        answer => Ok(answer?),
    }
}

/// Has QEMU close the memory of every DIMM that is none (any more): offered by a daemon that ended before it plugged it,
/// or let go of while nobody waited. Says which. Memory that QEMU was given while it did not answer, and that never came to
/// be a DIMM's, is closed as well. Nothing may be added meanwhile.
pub fn sweep_backends(qemu: &Qemu) -> Result<Vec<String>, MemoryDeviceError> {
    qemu.qmp().query_fd_sets(FD_PURPOSE)?.into_iter().try_for_each(|set| qemu.qmp().remove_fd(set))?;
    let backends = qemu.qmp().query_memdev()?;
    let plugged: HashSet<String> = dimms(qemu)?.into_iter().map(|dimm| dimm.id).collect();
    let ids = backends.iter().filter_map(|backend| backend.id.as_deref()?.strip_suffix(BACKEND_SUFFIX));
    let orphans: Vec<String> = ids.filter(|id| !plugged.contains(*id)).map(str::to_string).collect();
    orphans.iter().try_for_each(|id| forget(qemu, id))?;
    Ok(orphans)
}
