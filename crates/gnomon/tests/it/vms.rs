//! VMs: run, found again, stopped, adopted, and talked to.

use std::{
    fs,
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
};

use serde_json::Value;

use crate::{
    guest,
    house::{House, await_some, gnomon, read_until, tool},
};

/// A node with a VM called `tiny` on a volume called `boot`.
struct Guest {
    house: House,
}

impl Guest {
    fn boot() -> Guest {
        Guest::boot_with(&guest::READER, "boot")
    }

    /// With a boot sector, on its volume as `--disk` takes it.
    fn boot_with(code: &[u8], disk: &str) -> Guest {
        let house = House::new();
        fs::write(house.path("boot.raw"), guest::disk(code)).expect("written");
        house.ask(&["volume", "import", "boot", "--file", &house.text("boot.raw")]);
        let guest = Guest { house };
        let run = ["vm", "run", "tiny", "--memory", "16M", "--disk", disk, "--accel", "tcg", "--port", "heart"];
        assert_eq!(guest.house.ask(&run)["status"], "running");
        guest
    }

    fn show(&self) -> Value {
        self.house.ask(&["vm", "show", "tiny"])
    }

    /// Waits until the guest has said that it read its disk, `times` times.
    fn reads(&self, times: usize) {
        let console = self.show()["console"].as_str().expect("a console").to_string();
        let said = read_until(Path::new(&console), |said| said.iter().filter(|byte| **byte == b'G').count() >= times);
        assert!(!said.contains(&b'E'), "a read failed: {}", String::from_utf8_lossy(&said));
    }
}

/// A QEMU that somebody started by hand; it ends with the test.
struct ByHand {
    qemu: Child,
    qmp: String,
}

impl ByHand {
    fn start(house: &House) -> ByHand {
        ByHand::start_at(house.text("by-hand.qmp"))
    }

    fn start_at(qmp: String) -> ByHand {
        let monitor = format!("unix:{qmp},server=on,wait=off");
        let args = ["-machine", "q35,accel=tcg", "-m", "16", "-display", "none", "-nodefaults", "-qmp", &monitor];
        let qemu = Command::new("qemu-system-x86_64").args(args).stdin(Stdio::null()).spawn().expect("QEMU");
        let listens = || fs::exists(&qmp).expect("looked").then_some(());
        await_some("QEMU's monitor", String::new, listens);
        ByHand { qemu, qmp }
    }
}

impl Drop for ByHand {
    fn drop(&mut self) {
        // It has ended already in a test that went well.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

#[test]
fn a_guest_survives_the_death_of_the_daemon() {
    let mut guest = Guest::boot();
    guest.reads(3);
    let before = guest.show();
    assert_eq!((&before["status"], &before["accel"]), (&Value::from("running"), &Value::from("tcg")));
    let port = before["ports"][0]["socket"].as_str().expect("a port's socket");
    assert!(fs::exists(port).expect("looked"), "{port}");
    guest.house.crash();
    guest.house.start();
    let after = guest.show();
    assert_eq!((&after["pid"], &after["status"]), (&before["pid"], &before["status"]));
    guest.reads(3);
}

#[test]
fn a_guest_with_its_queues_served_survives_the_death_of_the_daemon() {
    let mut guest = Guest::boot_with(&guest::READER, "boot,front=vhost-user");
    guest.reads(3);
    let before = guest.show();
    let moved = guest.house.run(&["vm", "move", "tiny", "--to", "b"]);
    assert!(moved.code == 3 && moved.err.contains("vhost-user"), "{}: {}", moved.code, moved.err);
    for _ in 0..2 {
        guest.house.crash();
        guest.house.start();
        guest.reads(20);
    }
    let after = guest.show();
    assert_eq!((&after["pid"], &after["status"]), (&before["pid"], &before["status"]));
    assert_eq!(guest.house.run(&["volume", "rm", "boot", "--yes"]).code, 3, "its disk is in use");
    assert_eq!(guest.house.run(&["vm", "stop", "tiny", "--force"]).code, 0);
    assert_eq!(guest.house.run(&["volume", "rm", "boot", "--yes"]).code, 0);
}

/// The monitor of a QEMU has one client at a time. Somebody else's must not make a daemon that starts believe that the
/// guest has ended, and give its disk away.
#[test]
fn a_guest_whose_monitor_is_busy_when_the_daemon_starts_is_not_forgotten() {
    let mut guest = Guest::boot();
    guest.reads(3);
    let before = guest.show();
    guest.house.crash();
    let busy = UnixStream::connect(before["qmp"].as_str().expect("a path")).expect("connected");
    guest.house.start();
    assert_eq!(guest.show()["status"], "unreachable");
    guest.reads(3);
    for args in [&["volume", "rm", "boot", "--yes"][..], &["vm", "stop", "tiny"]] {
        let refused = guest.house.run(args);
        assert_eq!(refused.code, 3, "{}", refused.err);
    }
    drop(busy);
    let status = || guest.show()["status"].as_str().unwrap_or_default().to_string();
    await_some("its monitor", status, || (status() == "running").then_some(()));
    assert_eq!(guest.show()["pid"], before["pid"]);
}

/// A daemon that dies between the start of a QEMU and its record leaves one that nobody knows of.
#[test]
fn a_qemu_that_is_not_on_record_is_ended_when_the_daemon_starts() {
    let mut guest = Guest::boot();
    fs::create_dir_all(guest.house.path("run/vm/gone/7")).expect("a folder");
    let mut stray = ByHand::start_at(guest.house.text("run/vm/gone/7/qmp.sock"));
    guest.house.crash();
    guest.house.start();
    assert!(!stray.qemu.wait().expect("ended").success(), "it was killed");
    guest.reads(3);
}

#[test]
fn a_disk_in_use_is_not_given_away() {
    let guest = Guest::boot();
    let rm = guest.house.run(&["volume", "rm", "boot", "--yes"]);
    assert_eq!(rm.code, 3, "{}", rm.err);
    let second = guest.house.run(&["vm", "run", "other", "--memory", "16M", "--disk", "boot", "--accel", "tcg"]);
    assert_eq!(second.code, 3, "{}", second.err);
    let again = guest.house.run(&["vm", "run", "tiny", "--memory", "16M", "--disk", "boot", "--accel", "tcg"]);
    assert_eq!(again.code, 3, "{}", again.err);
    assert_eq!(guest.house.run(&["vm", "stop", "tiny", "--force"]).code, 0);
    assert_eq!(guest.house.run(&["vm", "show", "tiny"]).code, 1, "a stopped VM is forgotten");
    assert_eq!(guest.house.run(&["volume", "rm", "boot", "--yes"]).code, 0);
}

#[test]
fn the_end_of_a_qemu_is_told() {
    let mut guest = Guest::boot();
    let pid = guest.show()["pid"].as_u64().expect("a process");
    guest.house.crash();
    tool("kill", &["-KILL", &pid.to_string()]);
    guest.house.start();
    let shown = guest.show();
    assert_eq!(shown["status"], "exited");
    assert!(shown["exit"].as_str().is_some_and(|exit| exit.contains("while the daemon was away")), "{shown}");
    assert_eq!(
        guest.house.run(&["vm", "run", "tiny", "--memory", "16M", "--disk", "boot", "--accel", "tcg"]).code,
        0
    );
}

#[test]
fn a_qemu_that_was_started_by_hand_is_looked_after() {
    let mut house = House::new();
    let mut by_hand = ByHand::start(&house);
    let adopted = house.ask(&["vm", "adopt", "old", "--qmp", &by_hand.qmp]);
    let pid = Value::from(by_hand.qemu.id());
    assert_eq!((&adopted["status"], &adopted["pid"]), (&Value::from("running"), &pid), "{adopted}");
    assert_eq!(house.run(&["vm", "adopt", "old", "--qmp", &by_hand.qmp]).code, 3, "the name is taken");
    for (args, words) in
        [(&["vm", "console", "old"][..], "adopted"), (&["vm", "move", "old", "--to", "b"], "no volume of this node")]
    {
        let ran = house.run(args);
        assert!(ran.code == 3 && ran.err.contains(words), "{args:?}: {} {}", ran.code, ran.err);
    }
    house.crash();
    house.start();
    assert_eq!(house.ask(&["vm", "show", "old"])["pid"], pid, "found again");
    assert_eq!(house.run(&["vm", "stop", "old", "--force"]).code, 0);
    assert!(by_hand.qemu.wait().expect("ended").success(), "it was asked to quit, not killed");
    assert_eq!(house.run(&["vm", "show", "old"]).code, 1);
}

#[test]
fn what_is_no_qemu_is_not_adopted() {
    let house = House::new();
    fs::write(house.path("file"), "").expect("written");
    let listener = UnixListener::bind(house.path("other")).expect("a socket");
    let other = thread::spawn(move || listener.accept().expect("a caller").0.write_all(b"220 at your service\r\n"));
    // Nothing, no socket, and a socket that speaks something else.
    for socket in ["nothing", "file", "other"] {
        let ran = house.run(&["vm", "adopt", "old", "--qmp", &house.text(socket)]);
        assert!(ran.code == 1 && ran.err.contains(socket), "{socket}: {} {}", ran.code, ran.err);
    }
    other.join().expect("it was called").expect("it spoke");
    assert_eq!(house.ask(&["vm", "ls"]), Value::Array(Vec::new()));
    assert_eq!(gnomon(&["vm", "adopt", "old"]).code, 2, "without a socket");
}

/// `gnomon vm console` with our hands at its keyboard.
fn console(house: &House) -> Child {
    let mut command = house.command(&["vm", "console", "tiny"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a console")
}

#[test]
fn a_console_carries_keys_and_answers_until_it_is_left() {
    let guest = Guest::boot_with(&guest::NEXT_LETTER, "boot");
    let mut console = console(&guest.house);
    let (mut keys, mut screen) = (console.stdin.take().expect("piped"), console.stdout.take().expect("piped"));
    // What the firmware says comes first. A key that is typed before the guest's code runs may be the firmware's.
    let mut seen = Vec::new();
    while !seen.ends_with(b"IBM") {
        keys.write_all(b"HAL").expect("typed");
        let mut bytes = [0; 256];
        let len = screen.read(&mut bytes).expect("answered");
        assert!(len > 0, "the console ended: {:?}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&bytes[..len]);
    }
    keys.write_all(&[0x1d]).expect("typed");
    assert!(console.wait().expect("left").success());
}

#[test]
fn a_console_ends_with_its_guest() {
    let guest = Guest::boot();
    let mut console = console(&guest.house);
    let mut screen = console.stdout.take().expect("piped");
    screen.read_exact(&mut [0]).expect("it shows something");
    assert_eq!(guest.house.run(&["vm", "stop", "tiny", "--force"]).code, 0);
    // Nobody presses a key any more; the end of the guest is enough.
    let _keys = console.stdin.take().expect("piped");
    let mut rest = Vec::new();
    screen.read_to_end(&mut rest).expect("the end");
    let ended = || console.try_wait().expect("asked");
    assert!(await_some("the end of the console", String::new, ended).success());
}
