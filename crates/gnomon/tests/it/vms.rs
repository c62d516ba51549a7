//! VMs: a guest of one sector that reads its disk at every tick of its clock and says so on its serial port.

use std::{fs, path::Path, process::Command};

use serde_json::Value;

use crate::house::{House, read_until, tool};

/// Reads sector 1 of the first disk through the BIOS, prints `G` when that went well and `E` otherwise, waits for the
/// next interrupt (18 a second), begins again.
const CODE: [u8; 31] = [
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

/// A node with a VM called `tiny` on a volume called `boot`.
struct Guest {
    house: House,
}

impl Guest {
    fn boot() -> Guest {
        let house = House::new();
        let mut disk = vec![0u8; 1 << 20];
        disk[..CODE.len()].copy_from_slice(&CODE);
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        fs::write(house.path("boot.raw"), disk).expect("written");
        house.ask(&["volume", "import", "boot", "--file", &house.text("boot.raw")]);
        let guest = Guest { house };
        let run = ["vm", "run", "tiny", "--memory", "16M", "--disk", "boot", "--accel", "tcg", "--port", "heart"];
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

impl Drop for Guest {
    fn drop(&mut self) {
        // A QEMU outlives its daemon; it must not outlive its test, not even one that fails while no daemon runs.
        if self.house.run(&["vm", "stop", "tiny", "--force"]).code == 0 || !std::thread::panicking() {
            return;
        }
        let record = fs::read(self.house.path("run/vm/tiny/qemu.json")).unwrap_or_default();
        if let Some(pid) = serde_json::from_slice::<Value>(&record).ok().and_then(|record| record["pid"].as_u64()) {
            // It may have ended already: then there is nothing to do.
            let _ = Command::new("kill").args(["-KILL", &pid.to_string()]).status();
        }
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
