//! All the memory of a guest that runs, and what it is made of now.
//!
//! QEMU tells where the guest sees each DIMM and at which address of its own it has that; the process's mappings tell which
//! file is there. So nothing has to be on record, and a daemon that was restarted finds what it needs.
//!
//! Source: QEMU documentation, "Human Monitor", `gpa2hva`.

use std::{collections::HashSet, fs};

use gnomon_terms::Bytes;

use super::{Dimm, HeldMemory, MemoryDeviceError, dimms, held_memory};
use crate::{
    Qemu,
    dirty::maps::{file_at, files},
    ram::{GuestMemory, RamError},
    spec::{Resolved, SettledDimm},
};

/// How a guest is made up now, DIMMs included that it was given while it ran; `None` for one whose makeup is not known.
pub fn resolved_now(qemu: &Qemu) -> Result<Option<Resolved>, MemoryDeviceError> {
    let Some(began) = qemu.record().resolved.clone() else { return Ok(None) };
    let settled = |dimm: Dimm| SettledDimm { id: dimm.id, size: dimm.size.0, slot: dimm.slot, address: dimm.address };
    Ok(Some(Resolved { dimms: dimms(qemu)?.into_iter().map(settled).collect(), ..began }))
}

/// All the memory of a guest of this makeup, opened through its process; `None` for one with RAM of QEMU's own.
pub fn memory_of(qemu: &Qemu, made_of: &Resolved) -> Result<Option<GuestMemory>, MemoryDeviceError> {
    let (record, dimms) = (qemu.record(), &made_of.dimms);
    let Some(boot) = &record.ram else { return Ok(None) };
    let mut memory = GuestMemory::of(crate::GuestRam::open_in(record.pid, boot)?);
    if dimms.is_empty() {
        return Ok(Some(memory));
    }
    let held = held_memory(qemu)?;
    let path = format!("/proc/{}/maps", record.pid);
    let maps = fs::read_to_string(&path).map_err(|source| RamError::Open { path: path.into(), source })?;
    for dimm in dimms {
        let address = qemu.qmp().host_address(dimm.address)?;
        let found = file_at(&maps, address).and_then(|inode| held_as(&held, inode, Bytes(dimm.size)));
        let found = found.ok_or_else(|| RamError::NotThere { pid: record.pid, what: dimm.id.clone() })?;
        memory.add(found.open()?);
    }
    Ok(Some(memory))
}

/// Inodes of the files that a process has mapped: of the memory that its guest really has. One that is only open may be what
/// the process was started with, and of no use to it any more.
pub fn mapped_files(pid: i32) -> Result<HashSet<u64>, MemoryDeviceError> {
    let path = format!("/proc/{pid}/maps");
    let maps = fs::read_to_string(&path).map_err(|source| RamError::Open { path: path.into(), source })?;
    Ok(files(&maps))
}

fn held_as(held: &[HeldMemory], inode: u64, size: Bytes) -> Option<&HeldMemory> {
    held.iter().find(|held| (held.inode, held.size) == (inode, size))
}
