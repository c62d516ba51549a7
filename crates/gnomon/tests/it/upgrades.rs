//! From one release of QEMU to the next and back, on each machine type that both know: a Linux guest that counts on its
//! disk and says so misses no count and finds every one where it left it.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
};

use crate::{
    beating::{Beating, FIRST, beats},
    cache,
    updates::versioned,
};

/// Is well when the copy has counted on.
const PROBE: &str = "for i in $(seq 600); do grep -q '^beat' \"$GNOMON_CONSOLE\" && exit 0; sleep 0.1; done; exit 1";

/// The logs of the QEMUs that a guest has had, kept open: a folder goes with its QEMU.
#[derive(Default)]
struct Consoles(Vec<File>);

impl Consoles {
    fn note(&mut self, guest: &Beating) {
        self.0.push(File::open(guest.console_log()).expect("a log"));
    }

    /// All that was said, in order. A line that a switch cut in two is whole again.
    fn said(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        for log in &mut self.0 {
            log.seek(SeekFrom::Start(0)).expect("a file");
            log.read_to_end(&mut all).expect("read");
        }
        all
    }
}

fn there_and_back(alias: &str) {
    let machine = versioned(alias);
    let guest = Beating::boot(&["--machine", &machine]);
    let mut consoles = Consoles::default();
    consoles.note(&guest);
    let before = guest.show();
    assert_eq!(before["machine"], machine.as_str());
    let own = gnomon_qemu::find_qemu().expect("QEMU").display().to_string();
    let newer = cache::newer_qemu();
    for (qemu, is_new) in [(&newer, true), (&own, false), (&newer, true), (&own, false)] {
        let ran = guest.house.run(&["vm", "update", "tiny", "--qemu", qemu, "--probe", PROBE, "--observe", "0.5"]);
        assert_eq!(ran.code, 0, "{machine} to {qemu}: {}", ran.err);
        consoles.note(&guest);
        let after = guest.show();
        assert_eq!(
            (after["version"] != before["version"], &after["machine"]),
            (is_new, &before["machine"]),
            "{after}"
        );
        guest.goes_on(FIRST);
        guest.runs_once();
    }
    let counts: Vec<u64> = beats(&consoles.said()).into_iter().map(|(count, _)| count).collect();
    let expected: Vec<u64> = (1..=counts.len() as u64).collect();
    assert_eq!(counts, expected, "{machine}: a count is missing, or was said twice");
}

#[test]
fn a_linux_guest_on_q35_gets_a_newer_qemu_and_goes_back() {
    there_and_back("q35");
}

#[test]
fn a_linux_guest_on_pc_gets_a_newer_qemu_and_goes_back() {
    there_and_back("pc");
}
