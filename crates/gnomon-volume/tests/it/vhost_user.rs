//! The vhost-user-blk front under a real QEMU, and under a frontend that offers what a hostile guest would.

use std::{
    fs,
    process::{Command, Stdio},
    sync::Arc,
};

use gnomon_volume::{
    disk::{FileDisk, Mode},
    front::vhost_user::{VhostUserError, VhostUserServer},
    serve::Exports,
};

use tempfile::TempDir;

use crate::{
    frontend::{DATA, Desc, Guest, INDIRECT, MEMORY, NEXT, WRITE},
    rig::{HeldDisk, export, noise, text},
};

const MIB: usize = 1 << 20;

/// Reads sector 1 with the BIOS, adds one to its first byte, writes it as sector 3, and leaves QEMU with that byte.
///
/// ```text
/// 00 xor ax,ax; mov ds,ax; mov es,ax; mov ss,ax; mov sp,7c00    the BIOS has put the drive into dl
/// 0b mov si,7c30; mov ah,42; int 13; jc 2a                      extended read with the packet at 7c30
/// 14 inc byte [8000]; mov byte [7c38],3                         the packet now names sector 3
/// 1d mov ax,4300; int 13; jc 2a                                 extended write
/// 24 mov al,[8000]; out f4,al; hlt
/// 2a mov al,0; out f4,al; hlt
/// 30 packet: size 16, 1 sector, to 0000:8000, sector 1
/// ```
const BOOT: [u8; 64] = [
    0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0, 0xbc, 0x00, 0x7c, 0xbe, 0x30, 0x7c, 0xb4, 0x42, 0xcd, 0x13, 0x72,
    0x16, 0xfe, 0x06, 0x00, 0x80, 0xc6, 0x06, 0x38, 0x7c, 0x03, 0xb8, 0x00, 0x43, 0xcd, 0x13, 0x72, 0x06, 0xa0, 0x00,
    0x80, 0xe6, 0xf4, 0xf4, 0xb0, 0x00, 0xe6, 0xf4, 0xf4, 0x90, 0x10, 0x00, 0x01, 0x00, 0x00, 0x80, 0x00, 0x00, 0x01,
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
];

/// Boots QEMU from the socket; returns the byte the boot sector left with.
fn boot(socket: &str) -> u8 {
    let chardev = format!("socket,id=disk,path={socket}");
    let status = Command::new("timeout")
        .args(["--kill-after=5", "120", "qemu-system-x86_64", "-accel", "tcg", "-nodefaults", "-display", "none"])
        .args(["-no-reboot", "-m", "64M", "-machine", "pc,memory-backend=ram"])
        .args(["-object", "memory-backend-memfd,id=ram,size=64M,share=on", "-chardev", &chardev])
        .args(["-device", "vhost-user-blk-pci,chardev=disk,bootindex=0,num-queues=2"])
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"])
        .stdin(Stdio::null())
        .status()
        .expect("qemu-system-x86_64: `cargo xtask test` installs it");
    // isa-debug-exit leaves with twice the byte and one.
    u8::try_from(status.code().expect("QEMU exits") >> 1).expect("an exit code has 8 bits")
}

#[test]
fn a_guest_boots_reads_and_writes() {
    let dir = tempfile::tempdir().unwrap();
    let (image, socket) = (dir.path().join("disk.raw"), dir.path().join("blk.sock"));
    let mut content = vec![0; 1 << 20];
    content[..BOOT.len()].copy_from_slice(&BOOT);
    content[510..512].copy_from_slice(&[0x55, 0xaa]);
    content[512..1024].fill(0x20);
    fs::write(&image, &content).unwrap();
    let exports = Exports::new();
    let disk = FileDisk::open(&image, None, Mode::ReadWrite).unwrap();
    exports.add(export("disk", Arc::new(disk), false)).unwrap();
    let server = VhostUserServer::bind(&socket, exports.clone(), "disk").unwrap();
    for round in 1..=2 {
        assert_eq!(boot(text(&socket)), 0x21, "boot {round}: a frontend may come again");
    }
    content[3 * 512..4 * 512].copy_from_slice(&[&[0x21][..], &[0x20; 511]].concat());
    assert!(fs::read(&image).unwrap() == content, "sector 3 is what the guest wrote, and nothing else changed");
    exports.remove("disk").unwrap();
    server.stop();
    assert!(!socket.exists());
}

#[test]
fn there_must_be_something_to_serve() {
    let dir = tempfile::tempdir().unwrap();
    let result = VhostUserServer::bind(&dir.path().join("s"), Exports::new(), "nothing");
    assert!(matches!(result, Err(VhostUserError::Serve(_))));
}

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;
const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

/// A guest over a disk whose upper half is far away.
fn guest(fill: Vec<u8>, read_only: bool) -> (TempDir, Arc<Exports>, VhostUserServer, Arc<HeldDisk>, Guest) {
    let dir = tempfile::tempdir().unwrap();
    let (exports, disk) = (Exports::new(), HeldDisk::new(fill));
    exports.add(export("a-disk-with-a-long-name", disk.clone(), read_only)).unwrap();
    let socket = dir.path().join("blk.sock");
    let server = VhostUserServer::bind(&socket, exports.clone(), "").unwrap();
    let guest = Guest::connect(&socket);
    (dir, exports, server, disk, guest)
}

/// One segment of a discard or write-zeroes.
fn segment(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
}

#[test]
fn every_request_does_what_it_says() {
    let (_dir, _exports, server, disk, mut guest) = guest(noise(1, MIB), false);
    disk.let_go();
    assert_eq!(guest.config(8), (MIB as u64 / 512).to_le_bytes());
    let data = noise(2, 200_000 / 512 * 512);
    assert_eq!(guest.request(OUT, 100, &data, 0), (OK, vec![]));
    assert_eq!(guest.request(IN, 100, &[], data.len() as u32), (OK, data.clone()));
    let before = disk.flushes();
    assert_eq!(guest.request(FLUSH, 0, &[], 0), (OK, vec![]));
    assert_eq!(disk.flushes(), before + 1);
    assert_eq!(guest.request(GET_ID, 0, &[], 20), (OK, b"a-disk-with-a-long-n".to_vec()));
    let zeroes = [segment(101, 2, 0), segment(110, 1, 1)].concat();
    assert_eq!(guest.request(WRITE_ZEROES, 0, &zeroes, 0), (OK, vec![]));
    assert_eq!(guest.request(DISCARD, 0, &segment(120, 3, 0), 0), (OK, vec![]));
    let mut want = data;
    for (sector, sectors) in [(1, 2), (10, 1), (20, 3)] {
        want[sector * 512..(sector + sectors) * 512].fill(0);
    }
    assert_eq!(guest.request(IN, 100, &[], want.len() as u32), (OK, want));
    drop(guest);
    server.stop();
}

#[test]
fn what_a_guest_must_not_ask_for_is_refused() {
    let (_dir, _exports, server, disk, mut guest) = guest(noise(1, MIB), false);
    disk.let_go();
    let end = MIB as u64 / 512;
    let many = segment(0, 1, 0).repeat(33);
    let table = [
        ("past the end", guest.request(IN, end, &[], 512).0, IO_ERROR),
        ("across the end", guest.request(OUT, end - 1, &[1; 1024], 0).0, IO_ERROR),
        ("a sector beyond all numbers", guest.request(IN, u64::MAX, &[], 512).0, IO_ERROR),
        ("an unknown kind", guest.request(99, 0, &[], 512).0, UNSUPPORTED),
        ("a discard past the end", guest.request(DISCARD, 0, &segment(end - 1, 2, 0), 0).0, IO_ERROR),
        ("a discard of nothing", guest.request(DISCARD, 0, &[], 0).0, IO_ERROR),
        ("a cut segment", guest.request(DISCARD, 0, &segment(0, 1, 0)[..15], 0).0, IO_ERROR),
        ("too many segments", guest.request(WRITE_ZEROES, 0, &many, 0).0, IO_ERROR),
        ("unknown segment flags", guest.request(WRITE_ZEROES, 0, &segment(0, 1, 2), 0).0, UNSUPPORTED),
        ("a fine request after all that", guest.request(IN, 0, &[], 512).0, OK),
    ];
    for (what, got, want) in table {
        assert_eq!(got, want, "{what}");
    }
    drop(guest);
    server.stop();
}

#[test]
fn hostile_chains_harm_nobody() {
    let (_dir, _exports, server, disk, mut guest) = guest(noise(1, MIB), false);
    disk.let_go();
    let desc = |at, len, flags, next| Desc { at, len, flags, next };
    let header = desc(DATA, 16, NEXT, 1);
    let status = desc(DATA + 64, 1, WRITE, 0);
    let table: [(&str, Vec<Desc>); 9] = [
        ("no status", vec![desc(DATA, 16, 0, 0)]),
        ("no header", vec![status]),
        ("a short header", vec![desc(DATA, 3, NEXT, 1), status]),
        ("outside the memory", vec![header, desc(MEMORY - 10, 512, NEXT | WRITE, 2), status]),
        ("beyond all addresses", vec![header, desc(u64::MAX - 5, 512, NEXT | WRITE, 2), status]),
        ("a loop", vec![header, desc(DATA, 512, NEXT | WRITE, 0)]),
        ("a next that is none", vec![header, desc(DATA, 512, NEXT | WRITE, 5000)]),
        ("an indirect table outside", vec![desc(MEMORY * 2, 32, INDIRECT, 0)]),
        ("an indirect table of odd size", vec![desc(DATA, 33, INDIRECT, 0)]),
    ];
    for (what, chain) in table {
        // A read of sector 0; the loop reads into it.
        guest.put(DATA, &[0; 16]);
        guest.offer(&chain);
        // At most what a chain as long as the queue can hold.
        assert!(guest.await_used() <= 64 * 512, "{what}");
    }
    // The same 1 MiB again and again: more data than any request may have.
    let mut huge = vec![header];
    huge.extend((1..60).map(|n| desc(0x20000, 0xd0000, NEXT | WRITE, n + 1)));
    huge.push(status);
    guest.put(DATA, &[0; 16]);
    guest.offer(&huge);
    guest.await_used();
    assert_eq!(guest.get(DATA + 64, 1), [IO_ERROR]);
    assert_eq!(guest.request(IN, 0, &[], 512).0, OK);
    drop(guest);
    server.stop();
}

#[test]
fn requests_that_wait_do_not_hold_up_the_queue() {
    let (_dir, _exports, server, disk, mut guest) = guest(noise(1, MIB), false);
    let far = MIB as u64 / 1024;
    let header = [&[0; 8][..], &far.to_le_bytes()].concat();
    let (at, status) = (0x80000, 0x90000);
    guest.put(at, &header);
    guest.put(status, &[0xee]);
    guest.offer(&[
        Desc { at, len: 16, flags: NEXT, next: 1 },
        Desc { at: at + 16, len: 512, flags: NEXT | WRITE, next: 2 },
        Desc { at: status, len: 1, flags: WRITE, next: 0 },
    ]);
    disk.await_waiting(1);
    // The queue's thread takes another request, whose descriptors are other ones, while the first waits.
    let near = std::thread::spawn({
        let disk = disk.clone();
        move || {
            disk.await_flush(1);
            disk.let_go();
        }
    });
    assert_eq!(guest.get(status, 1), [0xee]);
    assert_eq!(guest.request(FLUSH, 0, &[], 0).0, OK);
    near.join().unwrap();
    guest.await_used();
    assert_eq!(guest.get(status, 1), [OK]);
    assert_eq!(guest.get(at + 16, 512), noise(1, MIB)[MIB / 2..][..512]);
    assert_eq!(guest.stop(), 2);
    drop(guest);
    server.stop();
}

#[test]
fn a_removed_export_is_out_of_the_guests_reach() {
    let (dir, exports, server, disk, mut guest) = guest(noise(1, MIB), true);
    disk.let_go();
    assert_eq!(guest.request(OUT, 0, &[1; 512], 0).0, IO_ERROR, "read-only");
    assert_eq!(guest.request(DISCARD, 0, &segment(0, 1, 0), 0).0, IO_ERROR, "read-only");
    exports.remove("a-disk-with-a-long-name").unwrap();
    assert!(vhost::vhost_user::Frontend::connect(dir.path().join("none"), 1).is_err());
    drop(guest);
    server.stop();
    assert_eq!(exports.clients("a-disk-with-a-long-name"), 0);
}
