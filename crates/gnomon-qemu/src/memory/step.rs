//! In which steps a Linux guest takes memory: in what it calls a memory block, which is larger in a large guest.
//!
//! Linux answers ACPI that it has taken a DIMM of any size; of one that is not made of whole blocks it uses nothing, and only its
//! log says so. So the size is worked out here, as the guest's kernel does.
//!
//! Source: Linux `arch/x86/mm/init_64.c`, `probe_memory_block_size`; QEMU `hw/i386/pc_piix.c` and `pc_q35.c` for how much of a
//! guest's RAM is below 4 GiB.

use super::GUEST_BLOCK;
use crate::spec::Resolved;

const GIB: u64 = 1 << 30;
/// A guest whose RAM ends below here has small blocks.
const LARGE: u64 = 64 * GIB;
/// The largest block that there is.
const MOST: u64 = 2 * GIB;

/// What a guest of this makeup takes at least, and in multiples of, in bytes: a power of two from [`GUEST_BLOCK`] to 2 GiB.
/// DIMMs of such sizes are where they have to be: QEMU's room for them begins at a whole GiB behind the RAM.
pub fn guest_step(made_of: &Resolved) -> u64 {
    let end = end_of_ram(made_of);
    let mut step = if end < LARGE { GUEST_BLOCK } else { MOST };
    while step > GUEST_BLOCK && !end.is_multiple_of(step) {
        step /= 2;
    }
    step
}

/// Where the RAM ends that it began with, as the guest sees it.
fn end_of_ram(made_of: &Resolved) -> u64 {
    // Of a small guest none is above 4 GiB, and it does not matter where it ends.
    let below = if made_of.machine.contains("q35") { 2 * GIB } else { 3 * GIB };
    match made_of.memory.checked_sub(below) {
        Some(above) => above.saturating_add(4 * GIB),
        None => made_of.memory,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Accelerator;

    #[test]
    fn a_step_is_what_ends_with_the_ram_of_a_large_guest() {
        const MIB: u64 = 1 << 20;
        let table = [
            ("pc-q35-7.2", GIB, 128 * MIB),
            ("pc-q35-7.2", 61 * GIB, 128 * MIB),
            // It ends at 64 GiB.
            ("pc-q35-7.2", 62 * GIB, 2 * GIB),
            ("pc-q35-7.2", 64 * GIB, 2 * GIB),
            ("pc-q35-7.2", 65 * GIB, GIB),
            ("pc-q35-7.2", 64 * GIB + 512 * MIB, 512 * MIB),
            ("pc-q35-7.2", 64 * GIB + 128 * MIB, 128 * MIB),
            // Kept away from whole blocks for another reason: see `safe_memory_size`.
            ("pc-q35-7.2", 64 * GIB + 8192, 128 * MIB),
            ("pc-i440fx-7.2", 62 * GIB, 128 * MIB),
            ("pc-i440fx-7.2", 64 * GIB, GIB),
            ("pc-i440fx-7.2", 65 * GIB, 2 * GIB),
        ];
        for (machine, memory, step) in table {
            let made_of =
                Resolved { machine: machine.into(), accelerator: Accelerator::Kvm, memory, dimms: Vec::new() };
            assert_eq!(guest_step(&made_of), step, "{machine} {memory}");
        }
    }
}
