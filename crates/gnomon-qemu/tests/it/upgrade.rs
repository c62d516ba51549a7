//! A running guest changes its QEMU, on one host: to a newer one and back, on the same RAM.

use std::time::Instant;

use gnomon_qemu::{
    Accel, CaptureOptions, GuestRam, HostFacts, KvmNode, Qemu, QemuBinary, Role, Standby, VmSpec, capture,
};

use crate::{
    guests::{Console, LONG, Stable, newer_qemu, qemu, ticks},
    state::{count, counting},
};

/// Takes the guest over; says how long it stood, as this process saw it.
fn change(stable: &Stable, from: &Qemu, to: &QemuBinary, name: &str, spec: &VmSpec, ram: &GuestRam) -> Qemu {
    let next = stable.launch_by(to, name, spec, Role::IncomingPaused, Some(ram.shared())).expect("waits");
    let standby = Standby::new(&next).expect("ready");
    let frozen = capture(from, &CaptureOptions::default()).expect("captured");
    let (begun, phases) = (Instant::now(), frozen.phases());
    let standing = count(ram);
    let blob = frozen.hand_over();
    let loaded = standby.load(&blob, LONG).expect("loaded");
    let took = loaded.took();
    loaded.run(LONG).expect("runs");
    println!(
        "{} to {} on {}: saving {:?}, load {took:?}, gap {:?}",
        from.record().version,
        to.version,
        spec.machine,
        phases.saving,
        phases.saving + begun.elapsed()
    );
    let mut console = Console::open(&stable.home(name));
    let tick = console.tick();
    assert_eq!(console.tick(), tick + 1);
    let first = ticks(&stable.console(name))[0];
    assert!((standing..=standing + 2).contains(&first), "stood at {standing}, went on with {first}");
    from.kill().expect("killed");
    next
}

fn there_and_back(machine: &str, accel: Accel) {
    let stable = Stable::new();
    // A model that both QEMUs and every host have.
    let cpu_model = (accel == Accel::Kvm).then(|| "qemu64".to_string());
    let spec = VmSpec { machine: machine.into(), accel, cpu_model, ..stable.ticker() };
    let (old, ram) = counting(&stable, "old", &spec);
    let new = change(&stable, &old, newer_qemu(), "new", &spec, &ram);
    let newer = change(&stable, &new, newer_qemu(), "newer", &spec, &ram);
    let back = change(&stable, &newer, qemu(), "back", &spec, &ram);
    assert!(back.qmp().query_status().expect("answers").running);
}

#[test]
fn pc_goes_to_a_newer_qemu_and_back() {
    there_and_back("pc-i440fx-7.2", Accel::Tcg);
}

#[test]
fn q35_goes_to_a_newer_qemu_and_back() {
    there_and_back("pc-q35-7.2", Accel::Tcg);
}

/// A boot sector runs under every KVM, also under one that emulates and boots no stock kernel. Hosts without KVM say so.
#[test]
fn it_is_the_same_under_kvm() {
    match HostFacts::gather().kvm_node {
        KvmNode::Present => there_and_back("pc-q35-7.2", Accel::Kvm),
        node => println!("not tried: /dev/kvm is {node:?}"),
    }
}
