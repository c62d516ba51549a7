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

/// A guest without a disk, as a kernel: adds one to a word in its memory, says it on its serial port as four letters from
/// `a` to `p` and a new line, waits for the next interrupt (18 a second), begins again.
pub fn ticker() -> Vec<u8> {
    // One sector of a header that asks for one sector of set-up code, which is all there is; some room behind it.
    // Source: Linux, Documentation/arch/x86/boot.rst (kernels before protocol 2.00 are entered at the second sector).
    let mut kernel = vec![0; 4096];
    kernel[0x1f1] = 1;
    kernel[0x200..0x200 + TICKER.len()].copy_from_slice(&TICKER);
    kernel
}

const TICKER: [u8; 40] = [
    0xfb, // sti
    0x31, 0xc0, // xor ax, ax
    0x8e, 0xd8, // mov ds, ax
    0xbb, 0x00, 0x90, // mov bx, 0x9000
    0xc7, 0x07, 0x00, 0x00, // mov word [bx], 0
    0xff, 0x07, // again: inc word [bx]
    0xb9, 0x04, 0x00, // mov cx, 4
    0x8b, 0x07, // mov ax, [bx]
    0xc1, 0xc0, 0x04, // next: rol ax, 4
    0x50, // push ax
    0x24, 0x0f, // and al, 15
    0x04, 0x61, // add al, 'a'
    0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xee, // out dx, al
    0x58, // pop ax
    0xe2, 0xf1, // loop next
    0xb0, 0x0a, // mov al, '\n'
    0xee, // out dx, al
    0xf4, // hlt
    0xeb, 0xe4, // jmp again
];

/// A disk that boots a guest which counts in its memory and on sector 2 of the second disk: reads the disk, and stands
/// still with `E` when that does not hold the very count that it remembers; adds one, writes it, and says it as a
/// [`ticker`] does.
pub fn comparer() -> Vec<u8> {
    disk(&COMPARER)
}

const COMPARER: [u8; 94] = [
    0xfb, // sti
    0x31, 0xc0, // xor ax, ax
    0x8e, 0xc0, // mov es, ax
    0x8e, 0xd8, // mov ds, ax
    0xc7, 0x06, 0x00, 0x90, 0x00, 0x00, // mov word [0x9000], 0
    0xb8, 0x01, 0x02, // again: mov ax, 0x0201 (read one sector)
    0xb9, 0x02, 0x00, // mov cx, 2 (cylinder 0, sector 2)
    0xba, 0x81, 0x00, // mov dx, 0x81 (head 0, second disk)
    0xbb, 0x00, 0x80, // mov bx, 0x8000
    0xcd, 0x13, // int 0x13
    0x72, 0x38, // jc bad
    0xa1, 0x00, 0x80, // mov ax, [0x8000]
    0x3b, 0x06, 0x00, 0x90, // cmp ax, [0x9000]
    0x75, 0x2f, // jne bad
    0xff, 0x06, 0x00, 0x90, // inc word [0x9000]
    0xb8, 0x01, 0x03, // mov ax, 0x0301 (write one sector)
    0xb9, 0x02, 0x00, // mov cx, 2
    0xba, 0x81, 0x00, // mov dx, 0x81
    0xbb, 0x00, 0x90, // mov bx, 0x9000
    0xcd, 0x13, // int 0x13
    0x72, 0x1b, // jc bad
    0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xb9, 0x04, 0x00, // mov cx, 4
    0xa1, 0x00, 0x90, // mov ax, [0x9000]
    0xc1, 0xc0, 0x04, // next: rol ax, 4
    0x50, // push ax
    0x24, 0x0f, // and al, 15
    0x04, 0x61, // add al, 'a'
    0xee, // out dx, al
    0x58, // pop ax
    0xe2, 0xf4, // loop next
    0xb0, 0x0a, // mov al, '\n'
    0xee, // out dx, al
    0xf4, // hlt
    0xeb, 0xb8, // jmp again
    0xba, 0xf8, 0x03, // bad: mov dx, 0x3f8
    0xb0, 0x45, // mov al, 'E'
    0xee, // out dx, al
    0xf4, // hlt
    0xeb, 0xf7, // jmp bad
];

/// The counts that a ticker has said, whole ones only.
pub fn ticks(console: &[u8]) -> Vec<u16> {
    let whole = console.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let lines = console[..whole].split(|byte| *byte == b'\n');
    let is_count = |line: &&[u8]| line.len() == 4 && line.iter().all(|byte| (b'a'..=b'p').contains(byte));
    lines.filter(is_count).map(|line| line.iter().fold(0, |sum, byte| sum * 16 + u16::from(byte - b'a'))).collect()
}
