//! What memory QEMU has beside the guest's first RAM, as QEMU and its descriptors tell.

use std::path::PathBuf;

use gnomon_terms::Bytes;
use serde_json::Value;

use super::{BACKEND_SUFFIX, MemoryDeviceError, VIRTIO_MEM, VIRTIO_MEM_BACKEND};
use crate::{
    Qemu,
    qmp::{MemoryBackend, Qmp, QmpError},
    ram::{self, GuestRam},
};

/// A DIMM that QEMU has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dimm {
    /// Its name; empty for one that was given none.
    pub id: String,
    /// In bytes.
    pub size: Bytes,
    /// Its backend, as QEMU names it.
    pub memdev: String,
    /// Where the guest sees it.
    pub address: u64,
    /// Its slot.
    pub slot: u64,
    /// It was added while the guest ran.
    pub hotplugged: bool,
}

/// The guest's virtio-mem device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtioMem {
    /// The most it can have.
    pub most: Bytes,
    /// What it should have.
    pub requested: Bytes,
    /// What it has.
    pub actual: Bytes,
    /// In steps of.
    pub block: Bytes,
}

/// A memfd that a process has open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldMemory {
    /// The name it was made with.
    pub name: String,
    /// The same memory has the same one in every process.
    pub inode: u64,
    /// In bytes.
    pub size: Bytes,
    /// Where it can be opened, for as long as the process has it.
    path: PathBuf,
}

/// The DIMMs of a guest, by slot.
pub fn dimms(qemu: &Qemu) -> Result<Vec<Dimm>, MemoryDeviceError> {
    let answer = qemu.qmp().query_memory_devices()?;
    Ok(dimms_of(&answer).ok_or_else(|| unexpected(&answer))?)
}

/// The guest's virtio-mem device, of the name that gnomon gives it.
pub fn virtio_mem(qemu: &Qemu) -> Result<VirtioMem, MemoryDeviceError> {
    let absent = || MemoryDeviceError::NotThere { what: "virtio-mem device", id: VIRTIO_MEM.to_string() };
    find_virtio_mem(qemu.qmp())?.ok_or_else(absent)
}

/// How much a guest has of what was added while it ran, or is on its way to it: DIMMs, and its virtio-mem device.
pub fn added(qemu: &Qemu) -> Result<Bytes, MemoryDeviceError> {
    let dimms = dimms(qemu)?.into_iter().map(|dimm| dimm.size.0).fold(0, u64::saturating_add);
    let device = find_virtio_mem(qemu.qmp())?.map_or(Bytes(0), |device| device.actual.max(device.requested));
    Ok(Bytes(dimms.saturating_add(device.0)))
}

fn find_virtio_mem(qmp: &Qmp) -> Result<Option<VirtioMem>, QmpError> {
    let answer = qmp.query_memory_devices()?;
    let devices = answer.as_array().ok_or_else(|| unexpected(&answer))?;
    let is_ours = |device: &&Value| device["type"] == "virtio-mem" && device["data"]["id"] == VIRTIO_MEM;
    let Some(found) = devices.iter().find(is_ours) else { return Ok(None) };
    virtio_mem_of(&found["data"]).map(Some).ok_or_else(|| unexpected(&answer))
}

/// What a guest has of what can be added while it runs.
pub(crate) struct AddedMemory {
    /// Names of DIMMs, also of such as the guest was not told of yet.
    pub(crate) dimms: Vec<String>,
    /// The name of a virtio-mem device that is not empty.
    pub(crate) device: Option<String>,
}

/// What was added to a guest; `backends` are what [`Qmp::query_memdev`] told.
pub(crate) fn added_memory(qmp: &Qmp, backends: &[MemoryBackend]) -> Result<AddedMemory, QmpError> {
    let ids = || backends.iter().filter_map(|backend| backend.id.as_deref());
    let dimms = ids().filter_map(|id| id.strip_suffix(BACKEND_SUFFIX)).map(str::to_string).collect();
    let is_used = |device: &VirtioMem| (device.actual, device.requested) != (Bytes(0), Bytes(0));
    let has_device = ids().any(|id| id == VIRTIO_MEM_BACKEND);
    let device = if has_device { find_virtio_mem(qmp)?.filter(is_used) } else { None };
    Ok(AddedMemory { dimms, device: device.map(|_| VIRTIO_MEM.to_string()) })
}

/// Every memfd that a QEMU has open, each once: also blocks that are its guest's DIMMs, for a daemon that was restarted.
/// Its memory is there for a moment after the DIMM has gone.
pub fn held_memory(qemu: &Qemu) -> Result<Vec<HeldMemory>, MemoryDeviceError> {
    let mut held: Vec<HeldMemory> = Vec::new();
    for found in ram::memfds(qemu.record().pid)? {
        if held.iter().all(|known| known.inode != found.inode) {
            held.push(HeldMemory { name: found.name, inode: found.inode, size: Bytes(found.size), path: found.path });
        }
    }
    Ok(held)
}

impl HeldMemory {
    /// Opens it. Refused when it has become another memory meanwhile.
    pub fn open(&self) -> Result<GuestRam, MemoryDeviceError> {
        Ok(GuestRam::open_inode(&self.path, self.inode)?)
    }
}

/// `None` when it cannot be read. Devices of other kinds are left out.
fn dimms_of(answer: &Value) -> Option<Vec<Dimm>> {
    let devices = answer.as_array()?.iter().filter(|device| device["type"] == "dimm");
    let mut dimms = devices.map(|device| dimm_of(&device["data"])).collect::<Option<Vec<_>>>()?;
    dimms.sort_by_key(|dimm| dimm.slot);
    Some(dimms)
}

fn dimm_of(data: &Value) -> Option<Dimm> {
    Some(Dimm {
        id: data["id"].as_str().unwrap_or_default().to_string(),
        size: Bytes(data["size"].as_u64()?),
        memdev: data["memdev"].as_str()?.to_string(),
        address: data["addr"].as_u64()?,
        slot: data["slot"].as_u64()?,
        hotplugged: data["hotplugged"].as_bool()?,
    })
}

fn virtio_mem_of(data: &Value) -> Option<VirtioMem> {
    let bytes = |name: &str| data[name].as_u64().map(Bytes);
    Some(VirtioMem {
        most: bytes("max-size")?,
        requested: bytes("requested-size")?,
        actual: bytes("size")?,
        block: bytes("block-size")?,
    })
}

fn unexpected(answer: &Value) -> QmpError {
    let what = answer.to_string().chars().take(200).collect();
    QmpError::Unexpected { command: "query-memory-devices".to_string(), what }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn dimms_are_read_by_slot_and_others_left_out() {
        let dimm = |id: &str, slot: u64| {
            json!({ "type": "dimm", "data": {
                "id": id, "addr": 1u64 << 32, "slot": slot, "node": 0, "memdev": "/objects/m", "size": 128 << 20,
                "hotplugged": true, "hotpluggable": true } })
        };
        let other = json!({ "type": "nvdimm", "data": { "surprise": [] } });
        let read = dimms_of(&json!([dimm("b", 1), other, dimm("a", 0)])).expect("read");
        assert_eq!(read.iter().map(|dimm| (dimm.id.as_str(), dimm.slot)).collect::<Vec<_>>(), [("a", 0), ("b", 1)]);
        assert_eq!((read[0].size, read[0].hotplugged), (Bytes(128 << 20), true));
    }

    #[test]
    fn nonsense_is_no_list() {
        for answer in
            [json!({}), json!(null), json!([{ "type": "dimm" }]), json!([{ "type": "dimm", "data": { "size": -1 } }])]
        {
            assert_eq!(dimms_of(&answer), None, "{answer}");
        }
        assert_eq!(virtio_mem_of(&json!({ "size": 1, "max-size": 2, "requested-size": "3", "block-size": 4 })), None);
    }
}
