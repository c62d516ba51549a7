//! The state of a counting guest's devices: captured over and over, loaded elsewhere, damaged, forked.

use std::time::Duration;

use gnomon_qemu::{
    CaptureOptions, Frozen, GuestRam, Qemu, RAM_ID, RamBacking, Role, RunState, Standby, StateBlob, StateError,
    StreamError, VmSpec, capture, load,
};
use gnomon_terms::{Bytes, ErrorKind, PageNumber};

use crate::guests::{Console, LONG, Stable, newer_qemu, qemu, ticks};

/// Where the guest keeps the first of its 64 copies of the count.
pub const COUNT_AT: u64 = 0x10000;

/// A guest that has begun to count, and its RAM.
pub fn counting(stable: &Stable, name: &str, spec: &VmSpec) -> (Qemu, GuestRam) {
    let vm = stable.launch(name, spec, Role::Boot);
    Console::open(&stable.home(name)).tick();
    let ram = vm.open_ram().expect("opened").expect("gnomon made it");
    (vm, ram)
}

pub fn count(ram: &GuestRam) -> u32 {
    let mut bytes = [0; 4];
    ram.map().expect("mapped").read_at(COUNT_AT, &mut bytes).expect("within");
    u32::from_le_bytes(bytes)
}

fn frozen(vm: &Qemu) -> Frozen {
    capture(vm, &CaptureOptions::default()).expect("captured")
}

/// A QEMU that waits for a state, on the RAM of another.
fn waiting(stable: &Stable, name: &str, spec: &VmSpec, ram: &GuestRam) -> Qemu {
    stable.launch_by(qemu(), name, spec, Role::IncomingPaused, Some(ram.shared())).expect("waits")
}

fn runs_on(stable: &Stable, vm: &Qemu, name: &str) {
    assert!(vm.qmp().query_status().expect("answers").running);
    let mut console = Console::open(&stable.home(name));
    let tick = console.tick();
    assert_eq!(console.tick(), tick + 1);
}

/// Nobody is ever connected to the console, so its log has every tick, from the first.
#[test]
fn a_guest_loses_no_tick_in_sixty_checkpoints() {
    let stable = Stable::new();
    let vm = stable.launch("a", &stable.ticker(), Role::Boot);
    let mut pauses = Vec::new();
    while pauses.len() < 60 || ticks(&stable.console("a")).len() < 100 {
        let frozen = frozen(&vm);
        assert_stands_after_migration(&vm);
        let checkpoint = frozen.resume(LONG).expect("runs again");
        assert!(checkpoint.blob.length() > Bytes(100_000), "{checkpoint:?}");
        assert!(checkpoint.pause >= checkpoint.phases.saving, "{checkpoint:?}");
        pauses.push(checkpoint.pause);
    }
    vm.qmp().stop().expect("stands");
    pauses.sort();
    let (count, at) = (pauses.len(), |percent: usize| pauses[pauses.len() * percent / 100]);
    println!("{count} checkpoints: pause p50 {:?}, p95 {:?}, most {:?}", at(50), at(95), pauses[count - 1]);
    for (index, tick) in ticks(&stable.console("a")).into_iter().enumerate() {
        assert_eq!(tick as usize, index + 1);
    }
}

/// QEMU says first that a migration is complete and then that it is over.
fn assert_stands_after_migration(vm: &Qemu) {
    let state = vm.qmp().query_status().expect("answers").state;
    assert!(matches!(state, RunState::FinishMigrate | RunState::Postmigrate), "{state:?}");
}

#[test]
fn another_qemu_goes_on_with_the_same_ram() {
    let stable = Stable::new();
    let spec = stable.ticker();
    let (source, ram) = counting(&stable, "source", &spec);
    let destination = waiting(&stable, "destination", &spec, &ram);
    let blob = frozen(&source).hand_over();
    let standing = count(&ram);
    let loaded = load(&destination, &blob, LONG).expect("loaded");
    assert_eq!(count(&ram), standing, "it must not run before it is told");
    assert!(!destination.qmp().query_status().expect("answers").running);
    let took = loaded.took();
    loaded.run(LONG).expect("runs");
    println!("state of {} bytes loaded in {took:?}", blob.length().0);
    runs_on(&stable, &destination, "destination");
    let after = ticks(&stable.console("destination"));
    assert!((standing..=standing + 2).contains(&after[0]), "stood at {standing}, went on with {}", after[0]);
    assert!(!source.qmp().query_status().expect("answers").running, "it must not run twice");
}

#[test]
fn a_guest_handed_over_can_be_taken_back() {
    let stable = Stable::new();
    let (vm, _ram) = counting(&stable, "a", &stable.ticker());
    drop(frozen(&vm).hand_over());
    assert!(!vm.qmp().query_status().expect("answers").running);
    vm.qmp().cont_after_migration(LONG).expect("runs");
    runs_on(&stable, &vm, "a");
}

#[test]
fn a_frozen_guest_that_is_dropped_runs_again() {
    let stable = Stable::new();
    let (vm, _ram) = counting(&stable, "a", &stable.ticker());
    drop(frozen(&vm));
    runs_on(&stable, &vm, "a");
}

#[test]
fn a_guest_that_stood_before_stands_afterwards() {
    let stable = Stable::new();
    let (vm, _ram) = counting(&stable, "a", &stable.ticker());
    vm.qmp().stop().expect("stands");
    let checkpoint = frozen(&vm).resume(LONG).expect("nothing to do");
    assert_eq!((checkpoint.pause, checkpoint.phases.saving), (Duration::ZERO, Duration::ZERO));
    assert!(!vm.qmp().query_status().expect("answers").running);
    let error = capture(&vm, &CaptureOptions::default()).expect_err("QEMU wants it to run in between");
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    assert!(!vm.qmp().query_status().expect("answers").running);
    vm.qmp().cont_after_migration(LONG).expect("runs");
    runs_on(&stable, &vm, "a");
}

/// Also on a newer QEMU, which is how an update is tried before it is made.
#[test]
fn a_fork_runs_while_its_origin_stays_as_it_was() {
    let stable = Stable::new();
    let spec = stable.ticker();
    let (origin, ram) = counting(&stable, "origin", &spec);
    let frozen = frozen(&origin);
    let before = pages(&ram);
    for (name, qemu) in [("old", qemu()), ("new", newer_qemu())] {
        let fork = stable.launch_by(qemu, name, &spec, Role::IncomingPaused, Some(ram.forked())).expect("waits");
        load(&fork, frozen.blob(), LONG).expect("loaded").run(LONG).expect("runs");
        runs_on(&stable, &fork, name);
        assert!(before == pages(&ram), "the fork wrote into its origin");
        let error = capture(&fork, &CaptureOptions::default()).expect_err("its RAM is private");
        assert!(matches!(&error, StateError::RamNotShared { id } if id == RAM_ID), "{error}");
        fork.kill().expect("killed");
    }
    frozen.resume(LONG).expect("runs again");
    runs_on(&stable, &origin, "origin");
}

fn pages(ram: &GuestRam) -> Vec<u8> {
    let view = ram.map().expect("mapped");
    let mut all = vec![0; ram.size().0 as usize];
    view.read_at(0, &mut all).expect("within");
    assert!(view.page_is(PageNumber(0), all[..4096].try_into().expect("a page")).expect("within"));
    all
}

#[test]
fn a_guest_with_ram_of_its_own_is_refused_before_it_stands() {
    let stable = Stable::new();
    let spec = VmSpec { ram: RamBacking::Private, ..stable.ticker() };
    let vm = stable.launch("a", &spec, Role::Boot);
    let error = capture(&vm, &CaptureOptions::default()).expect_err("not shared");
    assert!(matches!(error, StateError::RamNotShared { .. }), "{error}");
    runs_on(&stable, &vm, "a");
}

#[test]
fn a_state_that_is_too_large_is_given_up_and_the_guest_runs_on() {
    let stable = Stable::new();
    for (name, qemu) in [("old", qemu()), ("new", newer_qemu())] {
        let vm = stable.launch_by(qemu, name, &stable.ticker(), Role::Boot, None).expect("started");
        let options = CaptureOptions { limit: Bytes(64 << 10), ..CaptureOptions::default() };
        let error = capture(&vm, &options).expect_err("too large");
        assert!(matches!(error, StateError::TooLarge { limit: Bytes(65536) }), "{error}");
        runs_on(&stable, &vm, name);
        drop(frozen(&vm));
        runs_on(&stable, &vm, name);
    }
}

#[test]
fn a_damaged_or_foreign_state_is_refused_and_both_qemus_are_as_before() {
    let stable = Stable::new();
    let spec = stable.ticker();
    let (source, ram) = counting(&stable, "source", &spec);
    let blob = frozen(&source).resume(LONG).expect("runs again").blob;
    let bytes = blob.bytes().expect("read");
    let old = VmSpec { machine: "pc-q35-7.1".into(), ..spec.clone() };
    let other = waiting(&stable, "other", &old, &ram);
    let error = load(&other, &blob, LONG).expect_err("another machine");
    assert!(matches!(&error, StateError::OtherMachine { here, .. } if here == "pc-q35-7.1"), "{error}");

    let twice = VmSpec { memory: spec.memory * 2, ..spec.clone() };
    let large = stable.launch("large", &twice, Role::IncomingPaused);
    let error = load(&large, &blob, LONG).expect_err("other RAM");
    assert!(matches!(&error, StateError::OtherRam { state: Some(_), .. }), "{error}");

    for length in [0, 3, 40, bytes.len() / 2, bytes.len() - 1] {
        let cut = StateBlob::of_bytes(&bytes[..length]).expect("fits");
        let error = load(&large, &cut, LONG).expect_err("cut");
        assert!(matches!(error, StateError::Stream(StreamError::CutShort { .. })), "{length}: {error}");
        assert_eq!(error.kind(), ErrorKind::Corrupt);
    }
    for vm in [&other, &large] {
        assert_eq!(vm.qmp().query_status().expect("answers").state, RunState::Inmigrate);
    }
    runs_on(&stable, &source, "source");
}

/// What only QEMU can judge: devices that are not alike. Its own words are told.
#[test]
fn a_state_of_other_devices_is_refused_in_qemus_words() {
    let stable = Stable::new();
    let spec = stable.ticker();
    let (source, ram) = counting(&stable, "source", &spec);
    let frozen = frozen(&source);
    let bytes = frozen.blob().bytes().expect("read");
    for (name, two) in [("cpus", VmSpec { cpus: 2, ..spec.clone() }), ("disks", without_disks(&spec))] {
        let other = waiting(&stable, name, &two, &ram);
        let error = load(&other, frozen.blob(), LONG).expect_err("other devices");
        let said = error.to_string();
        assert!(
            matches!(error, StateError::NotTaken { .. }) && said.contains("qemu-system-x86_64:"),
            "{name}: {said}"
        );
    }
    let cut = StateBlob::of_bytes(&bytes[..bytes.len() / 2]).expect("fits");
    let error = Standby::new(&waiting(&stable, "cut", &spec, &ram)).expect("waits").load_unchecked(&cut, LONG);
    let error = error.expect_err("cut");
    assert!(matches!(error, StateError::NotTaken { .. }), "{error}");
    frozen.resume(LONG).expect("runs again");
    runs_on(&stable, &source, "source");
}

fn without_disks(spec: &VmSpec) -> VmSpec {
    VmSpec { disks: Vec::new(), ..spec.clone() }
}

#[test]
fn a_qemu_that_dies_in_a_capture_is_told() {
    let stable = Stable::new();
    let (vm, _ram) = counting(&stable, "a", &stable.ticker());
    vm.kill().expect("killed");
    let error = capture(&vm, &CaptureOptions::default()).expect_err("gone");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
}
