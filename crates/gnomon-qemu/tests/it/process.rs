//! Starting, finding again and ending real QEMUs.

use std::{
    fs,
    process::{Command, Stdio},
    time::Duration,
};

use gnomon_qemu::{
    Exited, GuestRam, ProcessError, Qemu, QemuRecord, RamBacking, RamError, Role, VmPaths, VmSpec, end_leftover,
};
use gnomon_terms::Bytes;
use rustix::process::{Pid, Signal, kill_process};

use crate::guests::{Console, LONG, Stable, at_once, qemu};

#[test]
fn a_guest_boots_and_speaks() {
    let stable = Stable::new();
    let vm = stable.launch("a", &stable.ticker(), Role::Boot);
    let mut console = Console::open(&stable.home("a"));
    let first = console.tick();
    assert_eq!(console.tick(), first + 1);
    assert_eq!(vm.stop(at_once()).expect("stopped"), Exited::Code(0));
    assert!(stable.console("a").contains(&format!("{first:08x}\n")));
}

#[test]
fn a_bad_option_is_told_in_qemus_words() {
    let stable = Stable::new();
    let mut spec = stable.ticker();
    spec.extra_args = vec!["-no-such-option".into()];
    let error = stable.try_launch("a", &spec, Role::Boot).expect_err("it cannot start");
    let text = error.to_string();
    assert!(matches!(error, ProcessError::Exited { status: Exited::Code(1), .. }), "{text}");
    assert!(text.contains("exited with code 1") && text.contains("no-such-option"), "{text}");
}

#[test]
fn a_disk_that_is_not_there_is_told() {
    let stable = Stable::new();
    let mut spec = stable.ticker();
    fs::remove_file(stable.path().join("ticker.img")).expect("removed");
    spec.name = "gone".into();
    let text = stable.try_launch("a", &spec, Role::Boot).expect_err("no disk").to_string();
    assert!(text.contains("No such file or directory"), "{text}");
}

#[test]
fn a_directory_takes_one_guest_at_a_time() {
    let stable = Stable::new();
    let first = stable.launch("a", &stable.ticker(), Role::Boot);
    let error = stable.try_launch("a", &stable.ticker(), Role::Boot).expect_err("taken");
    assert!(matches!(error, ProcessError::AlreadyRunning { pid, .. } if pid == first.record().pid), "{error}");
    // Also when the launcher died before it could write the record.
    fs::remove_file(VmPaths::new(&stable.home("a")).record()).expect("removed");
    let error = stable.try_launch("a", &stable.ticker(), Role::Boot).expect_err("taken");
    assert!(matches!(error, ProcessError::AlreadyRunning { pid, .. } if pid == first.record().pid), "{error}");
    first.stop(at_once()).expect("stopped");
    stable.launch("a", &stable.ticker(), Role::Boot);
}

/// Its launcher may have died before or after it wrote the record.
#[test]
fn a_qemu_that_nobody_knows_of_is_ended() {
    let stable = Stable::new();
    assert_eq!(end_leftover(&stable.home("a")).expect("looked"), None, "there never was one");
    for on_record in [true, false] {
        let vm = stable.launch("a", &stable.ticker(), Role::Boot);
        let (pid, watch) = (vm.record().pid, vm.exit_watch());
        drop(vm);
        if !on_record {
            std::fs::remove_file(VmPaths::new(&stable.home("a")).record()).expect("removed");
        }
        assert_eq!(end_leftover(&stable.home("a")).expect("ended"), Some(pid), "on record: {on_record}");
        assert!(watch.wait(LONG).is_some(), "it has ended");
        assert_eq!(end_leftover(&stable.home("a")).expect("looked"), None, "and it is gone");
    }
}

#[test]
fn a_qemu_is_adopted_after_its_handle_is_gone() {
    let stable = Stable::new();
    let vm = stable.launch("a", &stable.ticker(), Role::Boot);
    let record = vm.record().clone();
    drop(vm);
    let again = Qemu::adopt_dir(&stable.home("a")).expect("it still runs");
    assert_eq!(again.record(), &record);
    assert!(again.qmp().query_status().expect("answers").running);
    again.kill().expect("killed");
    let error = Qemu::adopt(record).expect_err("it is gone");
    assert!(matches!(error, ProcessError::Gone { .. }), "{error}");
}

/// A process that starts a QEMU and dies at once: the guest must not notice. The test program is its own launcher.
#[test]
fn a_guest_survives_the_death_of_its_launcher() {
    const HOME: &str = "GNOMON_TEST_LAUNCHER_HOME";
    if let Some(home) = std::env::var_os(HOME) {
        let stable = Stable::at(home.into());
        std::mem::forget(stable.launch("a", &stable.ticker(), Role::Boot));
        std::process::abort();
    }
    let stable = Stable::new();
    let status = Command::new(std::env::current_exe().expect("ourselves"))
        .args(["--exact", "process::a_guest_survives_the_death_of_its_launcher", "--nocapture"])
        .env(HOME, stable.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .expect("run");
    assert!(!status.success(), "it was to die");
    let vm = Qemu::adopt_dir(&stable.home("a")).expect("it still runs");
    let mut console = Console::open(&stable.home("a"));
    let tick = console.tick();
    assert_eq!(console.tick(), tick + 1);
    // Nobody tells us the exit code of a process that is not our child; that it ended, the kernel does.
    assert_eq!(vm.stop(at_once()).expect("stopped"), Exited::Unknown);
}

#[test]
fn a_qemu_of_others_is_adopted_by_its_socket() {
    let stable = Stable::new();
    let socket = stable.path().join("theirs.sock");
    let mut child = Command::new(&qemu().path)
        .args(["-machine", "none", "-nodefaults", "-display", "none", "-S", "-qmp"])
        .arg(format!("unix:{},server=on,wait=on", socket.display()))
        .stderr(Stdio::piped())
        .spawn()
        .expect("run");
    // With wait=on QEMU says on its standard error that it waits, which is the event that the socket is there.
    let mut said = std::io::BufReader::new(child.stderr.take().expect("piped"));
    std::io::BufRead::read_line(&mut said, &mut String::new()).expect("said");
    let vm = Qemu::adopt_socket("theirs", &socket).expect("adopted");
    assert_eq!(vm.record().pid, child.id() as i32);
    assert_eq!(vm.record().version, qemu().version);
    let record: QemuRecord = vm.record().clone();
    drop(vm);
    let again = Qemu::adopt(record).expect("adopted by record");
    again.stop(at_once()).expect("stopped");
    // The watch, which runs in this process, has reaped it already or does so now.
    let _ = child.wait();
}

#[test]
fn our_own_qemu_is_known_by_its_socket_too() {
    let stable = Stable::new();
    let vm = stable.launch("a", &stable.ticker(), Role::Boot);
    let (pid, socket) = (vm.record().pid, VmPaths::new(&stable.home("a")).qmp());
    drop(vm);
    assert_eq!(Qemu::adopt_socket("a", &socket).expect("adopted").record().pid, pid);
}

#[test]
fn a_killed_qemu_is_noticed_by_whoever_waits() {
    let stable = Stable::new();
    let vm = stable.launch("a", &stable.ticker(), Role::Boot);
    let watch = vm.exit_watch();
    assert_eq!(watch.exited(), None);
    assert_eq!(watch.wait(Duration::ZERO), None);
    let waiter = std::thread::spawn(move || watch.wait(Duration::MAX));
    let pid = Pid::from_raw(vm.record().pid).expect("a process");
    kill_process(pid, Signal::KILL).expect("killed");
    assert_eq!(waiter.join().expect("waited"), Some(Exited::Signal(9)));
    assert_eq!(vm.kill().expect("already"), Exited::Signal(9));
}

#[test]
fn a_guest_that_ignores_the_power_button_is_ended_anyway() {
    let stable = Stable::new();
    let vm = stable.launch("a", &stable.ticker(), Role::Boot);
    let deadlines = gnomon_qemu::StopDeadlines { powerdown: Duration::from_millis(50), quit: LONG };
    assert_eq!(vm.stop(deadlines).expect("stopped"), Exited::Code(0));
}

/// The word at 0x10000 is the guest's count, which it prints.
#[test]
fn the_guests_ram_is_seen_from_outside_also_by_who_adopts_it() {
    let stable = Stable::new();
    let vm = stable.launch("a", &stable.ticker(), Role::Boot);
    let tick = Console::open(&stable.home("a")).tick();
    vm.qmp().stop().expect("stands");
    let ours = vm.open_ram().expect("opened").expect("gnomon made it");
    drop(vm);
    let vm = Qemu::adopt_dir(&stable.home("a")).expect("adopted");
    let again = vm.open_ram().expect("opened").expect("gnomon made it");
    assert_eq!((again.inode(), again.size()), (ours.inode(), ours.size()));
    let (mut one, mut two) = ([0u8; 4], [0u8; 4]);
    ours.map().expect("mapped").read_at(0x10000, &mut one).expect("within");
    again.map_writable().expect("mapped").view().read_at(0x10000, &mut two).expect("within");
    assert_eq!(one, two);
    assert!(u32::from_le_bytes(one) >= tick);
}

#[test]
fn a_guest_with_ram_of_its_own_shows_none() {
    let stable = Stable::new();
    let spec = VmSpec { ram: RamBacking::Private, ..stable.ticker() };
    let vm = stable.launch("a", &spec, Role::Boot);
    Console::open(&stable.home("a")).tick();
    assert!(vm.open_ram().expect("asked").is_none());
}

#[test]
fn ram_of_another_size_is_refused_before_qemu_starts() {
    let stable = Stable::new();
    let (spec, ram) = (stable.ticker(), GuestRam::create("small", Bytes(4096)).expect("made"));
    let resolved = crate::guests::settled(&spec);
    let dir = stable.home("a");
    let (qemu, host_args, role, ram) = (&qemu().path, &[][..], Role::Boot, Some(ram.shared()));
    let launch = gnomon_qemu::Launch { qemu, host_args, spec: &spec, resolved: &resolved, dir: &dir, role, ram };
    let error = Qemu::launch(&launch).expect_err("too small");
    assert!(matches!(error, ProcessError::Ram(RamError::OtherSize { .. })), "{error}");
}
