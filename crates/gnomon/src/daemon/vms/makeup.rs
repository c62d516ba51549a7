//! What a running guest is made of, for who takes it elsewhere: its devices, and all its memory, DIMMs included.
//!
//! All of it is asked of QEMU when it is needed: what a guest was given while it ran is on no record.

use gnomon_qemu::{Accelerator, GuestMemory, Qemu, Resolved, VmSpec, memory_of, resolved_now};

use crate::api::ApiError;

/// The first QEMU release whose migration loses no written page of memory that is aligned, under TCG.
///
/// Source: see [`gnomon_qemu::safe_memory_size`].
const LOSES_NONE_SINCE: u32 = 9;

/// How a guest is built now. Asks QEMU.
pub fn built(qemu: &Qemu) -> Result<(VmSpec, Resolved), ApiError> {
    match (qemu.record().spec.clone(), resolved_now(qemu)?) {
        (Some(spec), Some(resolved)) => Ok((spec, resolved)),
        _ => Err(ApiError::refused(format!("VM '{}' was adopted: its devices are not known", qemu.record().name))
            .then(
                "restart it with `gnomon vm run`; adopted VMs cannot be moved, protected or updated by this version",
            )),
    }
}

/// How a guest is built now, and all its memory. Asks QEMU.
pub fn whole(qemu: &Qemu) -> Result<(Resolved, GuestMemory), ApiError> {
    let (_, made_of) = built(qemu)?;
    let memory = memory_of(qemu, &made_of)?.ok_or_else(|| {
        ApiError::refused("the guest's RAM is QEMU's own, and cannot be followed")
            .then("restart the VM with `gnomon vm run`: its RAM is shared since then")
    })?;
    Ok((made_of, memory))
}

/// Bytes of all its memory; what it began with when QEMU does not answer.
pub fn all_memory(qemu: &Qemu) -> u64 {
    let now = resolved_now(qemu).ok().flatten();
    now.as_ref().or(qemu.record().resolved.as_ref()).map_or(0, Resolved::whole_memory)
}

/// Refuses a guest that QEMU's own migration would break without a word: memory that is added is aligned, which what it
/// begins with is never where that matters.
pub fn refuse_if_qemu_loses_pages(qemu: &Qemu) -> Result<(), ApiError> {
    let (_, made_of) = built(qemu)?;
    let (name, version) = (&qemu.record().name, qemu.record().version);
    if !loses_pages(&made_of, version.major) {
        return Ok(());
    }
    let added = gnomon_terms::Bytes(made_of.whole_memory() - made_of.memory);
    Err(ApiError::refused(format!(
        "VM '{name}' was given {added} while it ran, of which the migration of QEMU {version} loses pages under TCG"
    ))
    .then(format!(
        "let its memory go by checkpoints, or ask for it back: `gnomon vm memory {name} --shrink {}`",
        added.0
    )))
}

fn loses_pages(made_of: &Resolved, major: u32) -> bool {
    made_of.accelerator == Accelerator::Tcg && major < LOSES_NONE_SINCE && !made_of.dimms.is_empty()
}

#[cfg(test)]
mod tests {
    use gnomon_qemu::SettledDimm;

    use super::*;

    #[test]
    fn only_dimms_of_an_emulated_guest_in_an_old_qemu_lose_pages() {
        let made_of = |accelerator, has_dimm: bool| {
            let dimm = SettledDimm { id: "cold-1".into(), size: 1 << 27, slot: 0, address: 1 << 32 };
            let dimms = has_dimm.then_some(dimm).into_iter().collect();
            Resolved { machine: "pc".into(), accelerator, memory: 1 << 28, dimms }
        };
        let table = [
            (Accelerator::Tcg, true, 7, true),
            (Accelerator::Tcg, true, 8, true),
            (Accelerator::Tcg, true, 9, false),
            (Accelerator::Tcg, false, 7, false),
            (Accelerator::Kvm, true, 7, false),
        ];
        for (accelerator, has_dimm, major, loses) in table {
            assert_eq!(
                loses_pages(&made_of(accelerator, has_dimm), major),
                loses,
                "{accelerator} {has_dimm} {major}"
            );
        }
    }
}
