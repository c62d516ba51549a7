//! All the memory of a guest that runs, and what it is made of now.
//!
//! QEMU tells where the guest sees each DIMM and at which address of its own it has that; the process's mappings tell which
//! file is there. So nothing has to be on record, and a daemon that was restarted finds what it needs.
//!
//! Source: QEMU documentation, "Human Monitor", `gpa2hva`.

use std::fs;

use gnomon_terms::Bytes;

use super::{Dimm, HeldMemory, MemoryDeviceError, dimms, held_memory};
use crate::{
    Qemu,
    dirty::maps::file_at,
    ram::{GuestMemory, RamError},
    spec::{Resolved, SettledDimm},
};

/// How a guest is made up now, DIMMs included that it was given while it ran; `None` for one whose makeup is not known.
pub fn resolved_now(qemu: &Qemu) -> Result<Option<Resolved>, MemoryDeviceError> {
    let Some(began) = qemu.record().resolved.clone() else { return Ok(None) };
    let settled = |dimm: Dimm| SettledDimm { id: dimm.id, size: dimm.size.0, slot: dimm.slot, address: dimm.address };
    Ok(Some(Resolved { dimms: dimms(qemu)?.into_iter().map(settled).collect(), ..began }))
}

/// All the memory of a guest, opened through its process, DIMMs by slot; `None` for one with RAM of QEMU's own. The guest is
/// given nothing and gives nothing back meanwhile.
pub fn memory_of(qemu: &Qemu) -> Result<Option<GuestMemory>, MemoryDeviceError> {
    let (record, dimms) = (qemu.record(), dimms(qemu)?);
    let Some(boot) = &record.ram else { return Ok(None) };
    let mut memory = GuestMemory::of(crate::GuestRam::open_in(record.pid, boot)?);
    if dimms.is_empty() {
        return Ok(Some(memory));
    }
    let held = held_memory(qemu)?;
    let path = format!("/proc/{}/maps", record.pid);
    let maps = fs::read_to_string(&path).map_err(|source| RamError::Open { path: path.into(), source })?;
    for dimm in &dimms {
        let address = qemu.qmp().host_address(dimm.address)?;
        let found = file_at(&maps, address).and_then(|inode| held_as(&held, inode, dimm.size));
        let found = found.ok_or_else(|| RamError::NotThere { pid: record.pid, what: dimm.id.clone() })?;
        memory.add(found.open()?);
    }
    Ok(Some(memory))
}

fn held_as(held: &[HeldMemory], inode: u64, size: Bytes) -> Option<&HeldMemory> {
    held.iter().find(|held| (held.inode, held.size) == (inode, size))
}
