//! A guest of one boot sector that does nothing but write: for proving trackers where no operating system boots.
//!
//! It works in real mode, which runs even under a KVM that emulates every instruction, with one segment made 4 GiB
//! large on the way ("unreal mode"). Each pass raises one byte in each of 64 pages from 64 KiB on, then four bytes in
//! each of 16 pages chosen by chance from 1 MiB on, then writes a full stop to the first serial port.

use gnomon_terms::Bytes;

/// Where the random pages begin.
const RANDOM_BASE: u64 = 1 << 20;

/// Where the mask of random offsets is in the code.
const MASK_AT: usize = 0x5b;

/// The code, loaded by the firmware at 0x7c00.
#[rustfmt::skip]
const CODE: [u8; 142] = [
    0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xd0,             // cli; xor ax, ax; mov ds, ax; mov ss, ax
    0xbc, 0x00, 0x70,                                     // mov sp, 0x7000
    0xe4, 0x92, 0x0c, 0x02, 0xe6, 0x92,                   // in al, 0x92; or al, 2; out 0x92, al  (A20)
    // Into protected mode and out again: fs keeps its limit of 4 GiB.
    0x0f, 0x01, 0x16, 0x88, 0x7c,                         // lgdt [gdtr]
    0x0f, 0x20, 0xc0, 0x0c, 0x01, 0x0f, 0x22, 0xc0,       // mov eax, cr0; or al, 1; mov cr0, eax
    0xbb, 0x08, 0x00, 0x8e, 0xe3,                         // mov bx, 8; mov fs, bx
    0x24, 0xfe, 0x0f, 0x22, 0xc0,                         // and al, 0xfe; mov cr0, eax
    0x66, 0xbd, 0x01, 0x00, 0x00, 0x00,                   // mov ebp, 1
    0xbb, 0x00, 0x10, 0xb9, 0x40, 0x00,                   // pass: mov bx, 0x1000; mov cx, 64
    0x8e, 0xc3, 0x26, 0xfe, 0x06, 0x00, 0x00,             // page: mov es, bx; inc byte [es:0]
    0x81, 0xc3, 0x00, 0x01, 0xe2, 0xf3,                   // add bx, 0x100; loop page
    0xb9, 0x10, 0x00,                                     // mov cx, 16
    0x66, 0x69, 0xed, 0x0d, 0x66, 0x19, 0x00,             // random: imul ebp, ebp, 1664525
    0x66, 0x81, 0xc5, 0x5f, 0xf3, 0x6e, 0x3c,             // add ebp, 1013904223
    0x66, 0x89, 0xef, 0x66, 0xc1, 0xef, 0x02,             // mov edi, ebp; shr edi, 2
    0x66, 0x81, 0xe7, 0x00, 0x00, 0x00, 0x00,             // and edi, mask
    0x66, 0x81, 0xc7, 0x00, 0x00, 0x10, 0x00,             // add edi, 1 MiB
    0x64, 0x67, 0x66, 0xff, 0x07, 0xe2, 0xd6,             // inc dword [fs:edi]; loop random
    0xba, 0xf8, 0x03, 0xb0, 0x2e, 0xee,                   // mov dx, 0x3f8; mov al, '.'; out dx, al
    0xeb, 0xb8, 0x00, 0x00, 0x00,                         // jmp pass; three bytes to align what follows
    // gdt: nothing; data, all of 4 GiB.
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    0xff, 0xff, 0x00, 0x00, 0x00, 0x92, 0xcf, 0x00,
    // gdtr: its size less one, where it is.
    0x0f, 0x00, 0x78, 0x7c, 0x00, 0x00,
];

/// A raw disk image with this guest, for a machine with `ram` bytes (at least 4 MiB). What it prints is `.`, once a
/// pass.
pub fn boot_sector(ram: Bytes) -> Vec<u8> {
    // Firmware takes it for a disk only from about a megabyte on.
    let mut image = vec![0; 1 << 20];
    image[..CODE.len()].copy_from_slice(&CODE);
    image[MASK_AT..MASK_AT + 4].copy_from_slice(&mask(ram).to_le_bytes());
    image[510..512].copy_from_slice(&[0x55, 0xaa]);
    image
}

/// The largest offset of the form 2^n - 4 that stays within the RAM behind the base. A PC has no RAM between 3 and
/// 4 GiB, so it stays below 2 GiB.
fn mask(ram: Bytes) -> u32 {
    let room = ram.0.saturating_sub(RANDOM_BASE).clamp(4, 1 << 31);
    let half = room.next_power_of_two() / 2;
    let size = if room.is_power_of_two() { room } else { half };
    (size as u32).wrapping_sub(4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_writes_stay_within_the_ram() {
        let table = [(4 << 20, (2 << 20) - 4), (5 << 20, (4 << 20) - 4), (64 << 20, (32 << 20) - 4)];
        for (ram, expected) in table {
            assert_eq!(mask(Bytes(ram)), expected, "{ram}");
        }
        for ram in [1u64 << 30, 3 << 30, 1 << 40] {
            assert!(u64::from(mask(Bytes(ram))) + RANDOM_BASE + 4 <= ram.min(3 << 30), "{ram}");
        }
    }

    #[test]
    fn the_code_is_a_boot_sector_with_its_mask_in_place() {
        assert_eq!(CODE[MASK_AT - 3..MASK_AT + 4], [0x66, 0x81, 0xe7, 0, 0, 0, 0]);
        let image = boot_sector(Bytes(64 << 20));
        assert_eq!(image[510..512], [0x55, 0xaa]);
        assert_eq!(image[MASK_AT..MASK_AT + 4], [0xfc, 0xff, 0xff, 0x01]);
    }
}
