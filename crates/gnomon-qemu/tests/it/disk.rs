//! A guest whose disk server goes away.

use std::{
    fs,
    io::{ErrorKind, Read},
    os::unix::net::UnixStream,
    path::PathBuf,
    process::Command,
    time::Duration,
};

use gnomon_qemu::{
    Accel, CaptureOptions, DiskSpec, Exited, Incoming, IncomingFrom, Outgoing, OutgoingOptions, Role, RunState,
    Standby, StopDeadlines, VmPaths, VmSpec, capture,
};
use rustix::process::{Pid, Signal, kill_process};

use crate::guests::{LONG, Stable, qemu};

/// A boot sector that reads its disk over and over through the firmware, one sector after another, and prints `.`
/// for each that came and `E` for each that did not.
#[rustfmt::skip]
const READER: [u8; 59] = [
    0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xd0,             // xor ax, ax; mov ds, ax; mov ss, ax
    0xbc, 0x00, 0x70,                               // mov sp, 0x7000
    0xb4, 0x42, 0xb2, 0x80, 0xbe, 0x2b, 0x7c,       // again: mov ah, 0x42; mov dl, 0x80; mov si, packet
    0xcd, 0x13,                                     // int 0x13
    0xb0, 0x2e, 0x73, 0x02, 0xb0, 0x45,             // mov al, '.'; jnc ok; mov al, 'E'
    0xba, 0xf8, 0x03, 0xee,                         // ok: mov dx, 0x3f8; out dx, al
    0xfe, 0x06, 0x33, 0x7c,                         // inc byte [packet + 8]
    0x66, 0xb9, 0xa0, 0x86, 0x01, 0x00,             // mov ecx, 100000
    0x67, 0xe2, 0xfd, 0xeb, 0xde,                   // rest: loop rest (ecx); jmp again
    0x10, 0x00, 0x01, 0x00, 0x00, 0x80, 0x00, 0x00, // packet: one sector to 0:8000
    0x01, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, // from sector 1 on
];

/// An NBD server with the reader's disk.
struct Server {
    home: PathBuf,
}

impl Server {
    fn start(stable: &Stable, name: &str) -> Server {
        let server = Server { home: stable.path().join(name) };
        fs::create_dir(&server.home).expect("made");
        let mut image = vec![0u8; 1 << 20];
        image[..READER.len()].copy_from_slice(&READER);
        image[510..512].copy_from_slice(&[0x55, 0xaa]);
        fs::write(server.file("reader.img"), image).expect("written");
        server.run();
        server
    }

    fn file(&self, name: &str) -> PathBuf {
        self.home.join(name)
    }

    /// With `--fork` the command ends once the server listens.
    fn run(&self) {
        let status = Command::new("qemu-nbd")
            .args(["--fork", "--persistent", "--shared=8", "--format=raw", "--export-name=root"])
            .arg(format!("--pid-file={}", self.file("nbd.pid").display()))
            .arg(format!("--socket={}", self.file("nbd.sock").display()))
            .arg(self.file("reader.img"))
            .status()
            .expect("qemu-nbd is installed");
        assert!(status.success());
    }

    fn end(&self) {
        let pid = fs::read_to_string(self.file("nbd.pid")).expect("it runs");
        let pid = Pid::from_raw(pid.trim().parse().expect("a number")).expect("a process");
        kill_process(pid, Signal::KILL).expect("killed");
    }

    fn reader(&self, reconnect_seconds: u32) -> VmSpec {
        let disk = DiskSpec::nbd("root", &self.file("nbd.sock"), "root");
        let disks = vec![DiskSpec { reconnect_seconds, ..disk }];
        VmSpec { accel: Accel::Tcg, disks, ..VmSpec::new("reader", 32 << 20) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Ok(Ok(pid)) = fs::read_to_string(self.file("nbd.pid")).map(|pid| pid.trim().parse::<i32>()) {
            let _ = Pid::from_raw(pid).map(|pid| kill_process(pid, Signal::KILL));
        }
    }
}

/// Reads marks until one comes after a pause, or says that none came.
fn mark(console: &mut UnixStream, patience: Duration) -> Option<u8> {
    console.set_read_timeout(Some(patience)).expect("a timeout");
    let mut byte = [0u8; 1];
    match console.read(&mut byte) {
        Ok(1) => Some(byte[0]),
        Err(e) if e.kind() == ErrorKind::WouldBlock => None,
        other => panic!("the guest has ended: {other:?}"),
    }
}

#[test]
fn a_restart_of_the_disk_server_is_a_pause_to_the_guest_and_nothing_else() {
    let stable = Stable::new();
    let server = Server::start(&stable, "disks");
    let vm = stable.launch("a", &server.reader(300), Role::Boot);
    let mut console = UnixStream::connect(VmPaths::new(&stable.home("a")).console()).expect("a console");
    assert_eq!(mark(&mut console, LONG), Some(b'.'));
    server.end();
    // What the server had answered is still printed; then the guest waits.
    while mark(&mut console, Duration::from_millis(300)) == Some(b'.') {}
    assert!(vm.qmp().query_status().expect("answers").running);
    server.run();
    assert_eq!(mark(&mut console, LONG), Some(b'.'), "the read that waited has been answered");
    assert!(vm.qmp().query_status().expect("answers").running);
    assert!(!stable.console("a").contains('E'));
}

#[test]
fn a_disk_lost_for_good_makes_the_guest_stand_without_an_error_of_its_own() {
    let stable = Stable::new();
    let server = Server::start(&stable, "disks");
    let vm = stable.launch("a", &server.reader(0), Role::Boot);
    let mut console = UnixStream::connect(VmPaths::new(&stable.home("a")).console()).expect("a console");
    assert_eq!(mark(&mut console, LONG), Some(b'.'));
    let events = vm.qmp().events();
    server.end();
    events.wait_for(LONG, |e| (e.name == "STOP").then_some(())).expect("it stands");
    assert_eq!(vm.qmp().query_status().expect("answers").state, RunState::IoError);
    assert!(!stable.console("a").contains('E'));
}

/// While a request waits for a server, QEMU's main loop waits too once it is asked to end: only a kill helps.
#[test]
fn a_qemu_that_waits_for_its_disk_can_be_stopped() {
    let stable = Stable::new();
    let server = Server::start(&stable, "disks");
    let vm = stable.launch("a", &server.reader(300), Role::Boot);
    let mut console = UnixStream::connect(VmPaths::new(&stable.home("a")).console()).expect("a console");
    assert_eq!(mark(&mut console, LONG), Some(b'.'));
    server.end();
    while mark(&mut console, Duration::from_millis(300)) == Some(b'.') {}
    let deadlines = StopDeadlines { powerdown: Duration::ZERO, quit: Duration::from_millis(200) };
    assert_eq!(vm.stop(deadlines).expect("stopped"), Exited::Signal(9));
}

/// The order of a switchover with a disk: the guest stands, its volume goes over (the source's server refuses or is
/// gone), the devices follow. QEMU must need nothing of the source's disk any more, and none of the destination's
/// before the guest runs there.
#[test]
fn a_standing_guest_needs_its_old_disk_no_more() {
    let stable = Stable::new();
    let (old, new) = (Server::start(&stable, "old"), Server::start(&stable, "new"));
    let source = stable.launch("source", &old.reader(300), Role::Boot);
    let mut console = UnixStream::connect(VmPaths::new(&stable.home("source")).console()).expect("a console");
    assert_eq!(mark(&mut console, LONG), Some(b'.'));
    // A port whose client does not read waits, and would go on waiting on the other side.
    drop(console);
    let destination = stable.launch("destination", &new.reader(300), Role::Incoming);

    let (out, into) = UnixStream::pair().expect("a pair");
    let mut incoming = Incoming::start(destination.qmp(), IncomingFrom::Stream(into.into()), false).expect("waits");
    let mut outgoing = Outgoing::start(source.qmp(), out.into(), &OutgoingOptions::default()).expect("starts");
    assert!(outgoing.await_standing(LONG).expect("no failure"));
    old.end();
    outgoing.switch(LONG).expect("switched without its disk");
    assert!(incoming.await_running(LONG).expect("no failure"));
    let mut console = UnixStream::connect(VmPaths::new(&stable.home("destination")).console()).expect("a console");
    assert_eq!(mark(&mut console, LONG), Some(b'.'), "it reads from its new disk");
    assert!(!stable.console("destination").contains('E'));
    source.kill().expect("killed");
}

/// QEMU gives its disks up when it sends a guest's state, and takes them again when the guest is to run on.
#[test]
fn checkpoints_do_not_disturb_a_guest_that_reads_its_disk() {
    let stable = Stable::new();
    let server = Server::start(&stable, "disks");
    let vm = stable.launch("a", &server.reader(300), Role::Boot);
    let mut console = UnixStream::connect(VmPaths::new(&stable.home("a")).console()).expect("a console");
    for _ in 0..10 {
        assert_eq!(mark(&mut console, LONG), Some(b'.'));
        let frozen = capture(&vm, &CaptureOptions::default()).expect("captured");
        frozen.resume(LONG).expect("runs again");
    }
    assert_eq!(mark(&mut console, LONG), Some(b'.'));
    assert!(!stable.console("a").contains('E'));
}

/// A takeover with a disk: the old QEMU's server is gone before the new one runs, on a server of its own.
#[test]
fn a_guest_is_taken_over_with_its_disk_on_another_server() {
    let stable = Stable::new();
    let (old, new) = (Server::start(&stable, "old"), Server::start(&stable, "new"));
    let source = stable.launch("source", &old.reader(300), Role::Boot);
    let mut console = UnixStream::connect(VmPaths::new(&stable.home("source")).console()).expect("a console");
    assert_eq!(mark(&mut console, LONG), Some(b'.'));
    drop(console);
    let ram = source.open_ram().expect("opened").expect("gnomon made it");
    let (spec, paused) = (new.reader(300), Role::IncomingPaused);
    let destination = stable.launch_by(qemu(), "destination", &spec, paused, Some(ram.shared())).expect("waits");
    let standby = Standby::new(&destination).expect("ready");
    let blob = capture(&source, &CaptureOptions::default()).expect("captured").hand_over();
    old.end();
    standby.load(&blob, LONG).expect("loaded").run(LONG).expect("runs");
    let mut console = UnixStream::connect(VmPaths::new(&stable.home("destination")).console()).expect("a console");
    assert_eq!(mark(&mut console, LONG), Some(b'.'), "it reads from its new disk");
    assert!(!stable.console("destination").contains('E'));
    source.kill().expect("killed");
}
