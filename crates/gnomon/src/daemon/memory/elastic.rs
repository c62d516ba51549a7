//! A guest that is grown by one device that changes its size (virtio-mem), in steps of 2 MiB.
//!
//! Its memory belongs to one VM, and the device empties what it is given: nothing can be staged for it. So its requests are no
//! part of what is planned for its group, whose blocks it could not use.

use gnomon_qemu::{MemoryDeviceError, Qemu, VirtioMem, resize_virtio_mem};
use gnomon_terms::Bytes;

use super::resize::{Ask, Change, PATIENCE};
use crate::api::ApiError;

/// Has the device of a guest be larger or smaller. What the guest has not done by then it goes on at.
pub(super) fn resize(qemu: &Qemu, vm: &str, device: &VirtioMem, ask: Ask) -> Result<Change, ApiError> {
    let size = wanted(device, ask).ok_or_else(|| {
        let (has, most) = (device.requested, device.most);
        ApiError::refused(format!("VM '{vm}' is to have {has} of the {most} that can be added to it"))
            .then("ask for less, or start it with a larger --max-memory")
    })?;
    let (now, why) = match resize_virtio_mem(qemu, size, PATIENCE) {
        Ok(now) => (now.actual, None),
        Err(error @ MemoryDeviceError::PartWay { actual, .. }) => (actual, Some(error.to_string())),
        Err(error) => return Err(error.into()),
    };
    let done = match ask {
        Ask::More(_) => now.0.saturating_sub(device.actual.0),
        Ask::Less(_) => device.actual.0.saturating_sub(now.0),
    };
    Ok(Change { done, why, ..Change::default() })
}

/// The size that is asked for: in whole steps, more when it grows and fewer when it shrinks. `None` when it cannot have that.
fn wanted(device: &VirtioMem, ask: Ask) -> Option<Bytes> {
    let (step, has) = (device.block.0.max(1), device.requested.0);
    let size = match ask {
        Ask::More(bytes) => has.checked_add(bytes.checked_next_multiple_of(step)?)?,
        Ask::Less(bytes) => has.checked_sub(bytes - bytes % step)?,
    };
    (size <= device.most.0).then_some(Bytes(size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_whole_steps_within_what_there_is() {
        let device = VirtioMem { most: Bytes(100), requested: Bytes(40), actual: Bytes(44), block: Bytes(4) };
        let table = [
            (Ask::More(8), Some(48)),
            (Ask::More(5), Some(48)),
            (Ask::More(60), Some(100)),
            (Ask::More(61), None),
            (Ask::More(u64::MAX), None),
            (Ask::Less(5), Some(36)),
            (Ask::Less(40), Some(0)),
            (Ask::Less(44), None),
            (Ask::Less(3), Some(40)),
        ];
        for (ask, size) in table {
            assert_eq!(wanted(&device, ask), size.map(Bytes), "{ask:?}");
        }
    }
}
