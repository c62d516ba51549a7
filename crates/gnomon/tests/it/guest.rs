//! Guests of one sector, in 16-bit machine code: real QEMUs on real disks, without the minute that an operating system
//! takes to boot. The firmware loads the first sector of the first disk and jumps to it.

/// A disk of 1 MiB that boots `code`.
pub fn disk(code: &[u8]) -> Vec<u8> {
    let mut disk = vec![0; 1 << 20];
    disk[..code.len()].copy_from_slice(code);
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    disk
}

/// Reads sector 1 of the first disk through the BIOS, prints `G` when that went well and `E` otherwise, waits for the
/// next interrupt (18 a second), begins again.
pub const READER: [u8; 31] = [
    0x31, 0xc0, // xor ax, ax
    0x8e, 0xc0, // mov es, ax
    0xb8, 0x01, 0x02, // again: mov ax, 0x0201 (read one sector)
    0xb9, 0x01, 0x00, // mov cx, 1 (cylinder 0, sector 1)
    0xba, 0x80, 0x00, // mov dx, 0x80 (head 0, first disk)
    0xbb, 0x00, 0x80, // mov bx, 0x8000
    0xcd, 0x13, // int 0x13
    0xb0, 0x47, // mov al, 'G'
    0x73, 0x02, // jnc +2
    0xb0, 0x45, // mov al, 'E'
    0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xee, // out dx, al
    0xf4, // hlt
    0xeb, 0xe5, // jmp again
];

/// Reads sector 1 of the first disk, adds one to a word in memory, and writes it to sector 2 of the second disk; prints
/// `G` when both went well and `E` otherwise, waits for the next interrupt, begins again.
pub const COUNTER: [u8; 51] = [
    0x31, 0xc0, // xor ax, ax
    0x8e, 0xc0, // mov es, ax
    0x8e, 0xd8, // mov ds, ax
    0xb8, 0x01, 0x02, // again: mov ax, 0x0201 (read one sector)
    0xb9, 0x01, 0x00, // mov cx, 1 (cylinder 0, sector 1)
    0xba, 0x80, 0x00, // mov dx, 0x80 (head 0, first disk)
    0xbb, 0x00, 0x80, // mov bx, 0x8000
    0xcd, 0x13, // int 0x13
    0x72, 0x14, // jc bad
    0xb8, 0x01, 0x03, // mov ax, 0x0301 (write one sector)
    0xb9, 0x02, 0x00, // mov cx, 2 (cylinder 0, sector 2)
    0xba, 0x81, 0x00, // mov dx, 0x81 (head 0, second disk)
    0xbb, 0x00, 0x90, // mov bx, 0x9000
    0xff, 0x07, // inc word [bx]
    0xcd, 0x13, // int 0x13
    0xb0, 0x47, // mov al, 'G'
    0x73, 0x02, // jnc +2
    0xb0, 0x45, // bad: mov al, 'E'
    0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xee, // out dx, al
    0xf4, // hlt
    0xeb, 0xd3, // jmp again
];

/// Answers every byte on its serial port with the next one.
pub const NEXT_LETTER: [u8; 17] = [
    0xba, 0xfd, 0x03, // again: mov dx, 0x3fd (line status)
    0xec, // in al, dx
    0xa8, 0x01, // test al, 1 (a byte has come)
    0x74, 0xfb, // jz -5
    0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xec, // in al, dx
    0xfe, 0xc0, // inc al
    0xee, // out dx, al
    0xeb, 0xef, // jmp again
];
