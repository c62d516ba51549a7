//! Another QEMU under a running guest: tried on a copy, switched, taken back; refused, killed and cut off in between.
//!
//! The guest counts in its memory and writes the count to its disk. Whatever happens, it goes on counting, never reads
//! an error, and never runs twice.

use std::{
    fs,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    cache::newer_qemu,
    client::Chance,
    guest,
    house::{House, await_some, read_until, tool},
};

/// Is well when the copy has said three times that it read and wrote.
const PROBE: &str = "for i in $(seq 100); do grep -q GGG \"$GNOMON_CONSOLE\" && exit 0; sleep 0.1; done; exit 1";

/// A node with a VM that counts.
struct Counting {
    house: House,
}

impl Counting {
    fn boot() -> Counting {
        Counting::boot_as(&[])
    }

    fn boot_as(more: &[&str]) -> Counting {
        let house = House::new();
        fs::write(house.path("boot.raw"), guest::disk(&guest::COUNTER)).expect("written");
        house.ask(&["volume", "import", "boot", "--file", &house.text("boot.raw")]);
        house.ask(&["volume", "create", "data", "--size", "1M"]);
        let run = ["vm", "run", "tiny", "--memory", "16M", "--disk", "boot", "--disk", "data", "--accel", "tcg"];
        assert_eq!(house.ask(&[&run, more].concat())["status"], "running");
        let counting = Counting { house };
        counting.goes_on();
        counting
    }

    fn show(&self) -> Value {
        self.house.ask(&["vm", "show", "tiny"])
    }

    /// The count that the guest wrote last.
    fn count(&self) -> u16 {
        let disk = tool("nbdcopy", &[&self.house.nbd("data"), "-"]);
        u16::from_le_bytes([disk[512], disk[513]])
    }

    /// The guest counts on, without an error; returns what it has come to.
    fn goes_on(&self) -> u16 {
        let before = self.count();
        let console = self.show()["console"].as_str().expect("a console").to_string();
        let said = read_until(Path::new(&console), |said| said.iter().filter(|byte| **byte == b'G').count() >= 3);
        assert!(!said.contains(&b'E'), "an error: {}", String::from_utf8_lossy(&said));
        let after = self.count();
        assert!(after > before, "{before}, then {after}");
        after
    }

    fn update(&self, more: &[&str]) -> (i32, String) {
        let newer = newer_qemu();
        self.change(&[&["--qemu", &newer], more].concat())
    }

    fn change(&self, what: &[&str]) -> (i32, String) {
        let ran = self.house.run(&[&["vm", "update", "tiny"], what].concat());
        (ran.code, format!("{}{}", ran.out, ran.err))
    }

    /// One QEMU, the one that is shown.
    fn runs_once(&self) {
        let pid = self.show()["pid"].as_u64().expect("a process");
        assert_eq!(self.house.qemus(), [pid]);
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        // A QEMU outlives its daemon; it must not outlive its test.
        self.house.run(&["vm", "stop", "tiny", "--force"]);
    }
}

#[test]
fn a_guest_gets_another_qemu_and_goes_back() {
    let counting = Counting::boot();
    let (before, count) = (counting.show(), counting.goes_on());
    let (code, said) = counting.update(&["--probe", PROBE, "--observe", "0.5"]);
    assert_eq!(code, 0, "{said}");
    let after = counting.show();
    assert!(after["version"] != before["version"] && after["pid"] != before["pid"], "{before} {after}");
    assert!(counting.goes_on() > count);
    counting.runs_once();

    let back = counting.house.run(&["vm", "rollback", "tiny"]);
    assert_eq!(back.code, 0, "{}", back.err);
    assert_eq!(counting.show()["version"], before["version"]);
    counting.goes_on();
    counting.runs_once();
    let events = counting.house.ask(&["vm", "events", "tiny"]);
    let told: Vec<_> =
        events.as_array().expect("a list").iter().map(|event| (&event["what"], &event["status"])).collect();
    let text = |text: &str| Value::from(text);
    assert_eq!(told, [(&text("update"), &text("done")), (&text("rollback"), &text("done"))]);
    assert!(events[0]["gap_ms"].as_f64().is_some_and(|gap| gap > 0.0), "{events}");
}

/// The versioned type that an alias stands for in the installed QEMU.
pub fn versioned(alias: &str) -> String {
    let installed = gnomon_qemu::QemuBinary::inspect(&gnomon_qemu::find_qemu().expect("QEMU")).expect("QEMU");
    let machines = installed.machines().expect("told");
    machines.into_iter().find(|machine| machine.alias.as_deref() == Some(alias)).expect("known").name
}

#[test]
fn what_is_the_same_by_another_name_is_changed_under_the_guest() {
    for alias in ["pc", "q35"] {
        let counting = Counting::boot_as(&["--machine", alias, "--cpu", "qemu64"]);
        let (machine, before) = (versioned(alias), counting.show());
        assert_eq!((before["machine"].as_str(), before["cpu"].as_str()), (Some(machine.as_str()), Some("qemu64")));
        let (code, said) =
            counting.change(&["--machine", &machine, "--cpu", "qemu64-v1", "--probe", PROBE, "--observe", "0.5"]);
        assert_eq!(code, 0, "{said}");
        let after = counting.show();
        assert!(after["pid"] != before["pid"] && after["version"] == before["version"], "{before} {after}");
        assert_eq!((after["machine"].as_str(), after["cpu"].as_str()), (Some(machine.as_str()), Some("qemu64-v1")));
        counting.goes_on();
        counting.runs_once();
        // The versioned name holds in a newer QEMU, where the alias stands for another machine.
        let (code, said) = counting.update(&["--machine", &machine, "--cpu", "qemu64", "--observe", "0.5"]);
        assert_eq!(code, 0, "{said}");
        assert!(counting.show()["version"] != before["version"]);
        counting.goes_on();
        let (code, said) = counting.change(&["--machine", alias]);
        assert!(code == 3 && said.contains(&machine), "{code}: {said}");
        // And back, to the names before as well.
        assert_eq!(counting.house.run(&["vm", "rollback", "tiny"]).code, 0);
        let back = counting.show();
        assert_eq!((&back["version"], &back["cpu"]), (&before["version"], &Value::from("qemu64-v1")));
        counting.goes_on();
        counting.runs_once();
    }
}

#[test]
fn what_the_guest_would_see_is_refused_before_anything_is_touched() {
    let counting = Counting::boot();
    let before = counting.show();
    let newer = newer_qemu();
    let (pc, own) = (versioned("pc"), versioned("q35"));
    let table: [(&[&str], &str); 8] = [
        (&["--machine", "pc"], &pc),
        (&["--qemu", &newer, "--machine", "q35"], &own),
        (&["--machine", "pdp11"], "does not know 'pdp11'"),
        (&["--cpu", "Nehalem"], "vendor: AuthenticAMD and GenuineIntel"),
        (&["--cpu", "qemu64,-svm"], "it would lose svm"),
        (&["--cpu", "abacus"], "abacus"),
        (&["--machine", "q35"], "has these names already"),
        (&["--guest-exec", "true"], "no port for an agent"),
    ];
    for (what, why) in table {
        for more in [&["--dry-run"][..], &[]] {
            let (code, said) = counting.change(&[what, more].concat());
            assert!(code == 3 && said.contains(why), "{what:?}: {code}: {said}");
        }
    }
    assert_eq!(counting.change(&["--probe", "true"]).0, 2, "nothing to change is a wrong usage");
    assert_eq!(counting.change(&["--guest-exec", "true", "--cpu", "qemu64"]).0, 2, "a command stands alone");
    assert_eq!(counting.house.ask(&["vm", "events", "tiny"]), serde_json::json!([]));
    assert_eq!(counting.show()["pid"], before["pid"]);
    counting.goes_on();
    counting.runs_once();
}

/// `max` is all that a QEMU can do, which grows with each release.
#[test]
fn a_processor_that_grows_with_its_qemu_is_refused_another_one() {
    let counting = Counting::boot_as(&["--cpu", "max"]);
    let (code, said) = counting.update(&[]);
    assert!(code == 3 && said.contains("processor change") && said.contains("'max' is all that"), "{code}: {said}");
    counting.goes_on();
    counting.runs_once();
}

#[test]
fn what_updates_did_is_kept_and_foretells_the_next() {
    let mut counting = Counting::boot();
    let newer = newer_qemu();
    let outlook = |counting: &Counting| counting.house.ask(&["vm", "update", "tiny", "--qemu", &newer, "--dry-run"]);
    assert_eq!(outlook(&counting)["earlier"]["updates"], 0);
    assert_eq!(counting.update(&["--probe", "exit 1", "--observe", "0"]).0, 3);
    // Until the VM's history is long enough for a forecast, what an update changes cannot be told.
    let with_series = || {
        let (code, said) = counting.update(&["--untried", "--observe", "4"]);
        assert_eq!(code, 0, "{said}");
        let told = outlook(&counting);
        assert_eq!(counting.house.run(&["vm", "rollback", "tiny"]).code, 0);
        Some(told).filter(|told| told["earlier"]["changes"].as_array().is_some_and(|changes| changes.len() == 3))
    };
    // Each lasts four looks at the VM, and nine make a history.
    let seen = (0..8).find_map(|_| with_series());
    assert!(seen.is_some(), "{}", outlook(&counting));
    let told = outlook(&counting);
    let (earlier, history) = (&told["earlier"], told["history"].as_array().expect("a list"));
    assert!(earlier["own"] == true && earlier["updates"] == history.len(), "{told}");
    assert_eq!(
        (&earlier["verdicts"]["refused"], &earlier["verdicts"]["done"]),
        (&1.into(), &(history.len() - 1).into())
    );
    assert!(earlier["gap_ms_median"].as_f64().is_some_and(|gap| gap > 0.0), "{told}");
    let last = history.last().expect("one");
    assert!(
        last["series"]
            .as_array()
            .expect("a list")
            .iter()
            .any(|one| one["name"] == "memory" && one["after"].as_f64() > Some(0.0)),
        "{told}"
    );
    // It is said in words, and is there after a restart.
    let words = counting.house.run(&["vm", "update", "tiny", "--qemu", &newer, "--dry-run"]).out;
    counting.house.crash();
    counting.house.start();
    assert_eq!(outlook(&counting)["earlier"], told["earlier"], "{words}");
    counting.goes_on();
    counting.runs_once();
}

#[test]
fn an_update_that_fails_its_trial_leaves_the_guest_alone() {
    let counting = Counting::boot();
    let before = counting.show();
    let (code, said) = counting.update(&["--probe", "echo it is ill; exit 7", "--observe", "0"]);
    assert!(code == 3 && said.contains("it is ill") && said.contains('7'), "{code}: {said}");
    assert_eq!((&counting.show()["pid"], &counting.show()["version"]), (&before["pid"], &before["version"]));
    counting.goes_on();
    counting.runs_once();
    assert_eq!(counting.house.ask(&["vm", "events", "tiny"])[0]["status"], "refused");
    let forks = fs::read_dir(counting.house.path("state/volumes")).expect("volumes").flatten();
    let left: Vec<_> = forks.filter(|file| file.file_name().to_string_lossy().contains("fork")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn what_is_no_qemu_is_refused_at_once() {
    let counting = Counting::boot();
    for (path, why) in [("/bin/true", "/bin/true"), ("/nowhere/qemu", "/nowhere/qemu")] {
        let ran = counting.house.run(&["vm", "update", "tiny", "--qemu", path]);
        assert!(ran.code == 3 && ran.err.contains(why), "{}: {}", ran.code, ran.err);
    }
    let never = counting.house.run(&["vm", "rollback", "tiny"]);
    assert!(never.code != 0, "{}", never.out);
    counting.goes_on();
}

/// Waits until the job of the newest update is in a phase.
pub fn await_phase(house: &House, phase: &str) -> Value {
    let jobs = || house.look("/v1/jobs");
    let update = || jobs().as_array()?.iter().rfind(|job| job["kind"] == "update").cloned();
    await_some(phase, || jobs().to_string(), || update().filter(|job| job["progress"]["phase"] == phase))
}

pub fn await_end(house: &House, id: &str) -> Value {
    let job = || house.look(&format!("/v1/jobs/{id}"));
    await_some("the end", || job().to_string(), || Some(job()).filter(|job| job["state"] != "running"))
}

#[test]
fn a_copy_whose_qemu_dies_speaks_against_the_update() {
    let counting = Counting::boot();
    let own = counting.show()["pid"].as_u64().expect("a process");
    let newer = newer_qemu();
    let begin = ["vm", "update", "tiny", "--qemu", &newer, "--observe", "600", "--detach"];
    let job = counting.house.ask(&begin);
    let copy = await_some("a copy", String::new, || counting.house.qemus().into_iter().find(|pid| *pid != own));
    await_some("it to be watched", String::new, || {
        let console = fs::read_dir(counting.house.path("run/vm/tiny")).expect("a folder").flatten();
        console
            .map(|entry| entry.path().join("console.log"))
            .find(|log| fs::read(log).is_ok_and(|log| log.contains(&b'G')))
    });
    tool("kill", &["-KILL", &copy.to_string()]);
    let ended = await_end(&counting.house, job["id"].as_str().expect("an id"));
    assert_eq!(ended["state"], "failed");
    assert!(ended["error"]["message"].as_str().is_some_and(|why| why.contains("its QEMU ended")), "{ended}");
    counting.goes_on();
    counting.runs_once();
}

#[test]
fn an_update_waits_for_its_approval_and_a_dead_daemon_forgets_it() {
    let mut counting = Counting::boot();
    let newer = newer_qemu();
    let begin = ["vm", "update", "tiny", "--qemu", &newer, "--observe", "0", "--approve", "manual", "--detach"];
    counting.house.ask(&begin);
    await_phase(&counting.house, "approval");
    counting.goes_on();
    counting.house.crash();
    counting.house.start();
    counting.goes_on();
    counting.runs_once();
    let job = counting.house.ask(&begin);
    await_phase(&counting.house, "approval");
    assert_eq!(counting.house.run(&["vm", "approve", "tiny"]).code, 0);
    assert_eq!(await_end(&counting.house, job["id"].as_str().expect("an id"))["state"], "done");
    counting.goes_on();
    counting.runs_once();
}

/// The daemon dies within the milliseconds of the switch: the guest runs in one QEMU, whichever, and goes on counting.
#[test]
fn a_daemon_that_dies_in_the_switch_leaves_one_guest() {
    let mut counting = Counting::boot();
    let mut chance = Chance(41);
    for seed in 0..6 {
        let newer = newer_qemu();
        let mut update = Command::new(env!("CARGO_BIN_EXE_gnomon"));
        update.args(["vm", "update", "tiny", "--qemu", &newer, "--untried", "--observe", "0"]);
        let mut update = update.env("GNOMON_SOCKET", counting.house.path("run/gnomon.sock")).spawn().expect("runs");
        let own = counting.house.qemus();
        await_some("a second QEMU", String::new, || (counting.house.qemus().len() > own.len()).then_some(()));
        // Anywhere between its start and well after the switch; which moment that is, the seed decides.
        let until = Instant::now() + Duration::from_micros(chance.below(120_000));
        while Instant::now() < until {
            thread::yield_now();
        }
        counting.house.crash();
        update.wait().expect("ended");
        counting.house.start();
        let runs = || counting.show()["status"] == "running" && counting.house.qemus().len() == 1;
        await_some("one guest that runs", || format!("seed {seed}: {}", counting.show()), || runs().then_some(()));
        counting.goes_on();
        counting.runs_once();
    }
}
