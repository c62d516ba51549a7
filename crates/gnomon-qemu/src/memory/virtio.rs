//! virtio-mem: one device whose size the guest is asked to change, in steps of 2 MiB.

use std::time::Duration;

use gnomon_terms::Bytes;
use serde_json::json;

use super::{MemoryDeviceError, VIRTIO_MEM, VirtioMem, await_event, virtio_mem};
use crate::{Qemu, qmp::QmpEvent};

/// Asks the guest to have `size` bytes of its virtio-mem device, a multiple of its block, and awaits for up to `patience`
/// that it has. QEMU tells of a change at most once a second; Linux rests for 50 s after a page that it could not move.
/// After [`MemoryDeviceError::PartWay`] the guest goes on.
pub fn resize_virtio_mem(qemu: &Qemu, size: Bytes, patience: Duration) -> Result<VirtioMem, MemoryDeviceError> {
    let events = qemu.qmp().events();
    virtio_mem(qemu)?;
    qemu.qmp().qom_set(&format!("/machine/peripheral/{VIRTIO_MEM}"), "requested-size", json!(size.0))?;
    // It may have that size already, and then nothing happens.
    if virtio_mem(qemu)?.actual != size {
        await_event(&events, patience, |event| (changed_to(event)? == size).then_some(()))?;
    }
    let now = virtio_mem(qemu)?;
    match now.actual == size {
        true => Ok(now),
        false => Err(MemoryDeviceError::PartWay { requested: size, actual: now.actual, after: patience }),
    }
}

/// The size that our device has now, when that is what an event tells.
fn changed_to(event: &QmpEvent) -> Option<Bytes> {
    let is_ours = event.name == "MEMORY_DEVICE_SIZE_CHANGE" && event.data["id"] == VIRTIO_MEM;
    event.data["size"].as_u64().filter(|_| is_ours).map(Bytes)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_changes_of_our_device_count() {
        let table = [
            ("MEMORY_DEVICE_SIZE_CHANGE", json!({ "id": "vmem0", "size": 5 }), Some(Bytes(5))),
            ("MEMORY_DEVICE_SIZE_CHANGE", json!({ "id": "vmem1", "size": 5 }), None),
            ("MEMORY_DEVICE_SIZE_CHANGE", json!({ "id": "vmem0", "size": -5 }), None),
            ("BALLOON_CHANGE", json!({ "id": "vmem0", "size": 5 }), None),
        ];
        for (name, data, size) in table {
            assert_eq!(changed_to(&QmpEvent { data, ..QmpEvent::new(name) }), size);
        }
    }
}
