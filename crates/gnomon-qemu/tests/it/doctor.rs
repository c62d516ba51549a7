//! What is said of this host against what it does.

use std::path::Path;

use gnomon_qemu::{
    Accelerator, HostFacts, KVM_CPU, KvmNode, PROOF_TIMEOUT, Processor, QemuBinary, Resolved, Role, prove_kvm,
    prove_with_kernel,
};

use crate::guests::{Stable, newer_qemu, qemu};

#[test]
fn the_host_has_what_the_tests_use() {
    let facts = HostFacts::gather();
    assert_eq!(facts.qemus.first(), Some(qemu()));
    assert!(facts.memfd && facts.qemu_img.is_some(), "{facts:?}");
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("Linux");
    assert_eq!(facts.kernel, kernel.trim());
}

#[test]
fn machines_have_versioned_names_and_aliases() {
    let machines = qemu().machines().expect("listed");
    let q35 = machines.iter().find(|m| m.alias.as_deref() == Some("q35")).expect("QEMU knows q35");
    assert!(q35.name.starts_with("pc-q35-"), "{q35:?}");
}

/// A machine type that both QEMUs have.
fn machine(name: &str) -> Resolved {
    Resolved { machine: name.to_string(), accelerator: Accelerator::Tcg, memory: 16 << 20, dimms: Vec::new() }
}

#[test]
fn a_processor_is_the_same_by_another_name_and_in_another_release() {
    let own = |by: &QemuBinary, model| by.processor(&machine("pc-q35-7.2"), 1, model).expect("told");
    let usual = own(qemu(), None);
    for (by, model) in [(qemu(), Some("qemu64")), (qemu(), Some("qemu64-v1")), (newer_qemu(), None)] {
        assert_eq!(usual.differences(&own(by, model)), [], "{model:?} of {}", by.version);
    }
    let told = |other: &Processor| usual.differences(other).iter().map(ToString::to_string).collect::<Vec<_>>();
    let nehalem = told(&own(qemu(), Some("Nehalem")));
    for seen in ["vendor: AuthenticAMD and GenuineIntel", "sse4.2: false and true", "CPUID 0x1 ECX"] {
        assert!(nehalem.iter().any(|said| said.starts_with(seen)), "{seen}: {nehalem:?}");
    }
    assert!(!told(&own(qemu(), Some("qemu64,-svm"))).is_empty());
    // What this name stands for grows with each release.
    assert!(!own(qemu(), Some("max")).differences(&own(newer_qemu(), Some("max"))).is_empty());
}

#[test]
fn a_guest_has_the_processor_that_was_foretold() {
    let stable = Stable::new();
    let vm = stable.launch("a", &stable.ticker(), Role::Boot);
    let record = vm.record();
    let resolved = record.resolved.as_ref().expect("settled");
    let foretold = qemu().processor(resolved, 1, None).expect("told");
    assert_eq!(Processor::of(vm.qmp()).expect("told").differences(&foretold), []);
}

#[test]
fn a_processor_that_a_qemu_does_not_know_is_refused_in_its_words() {
    let error = qemu().processor(&machine("pc-q35-7.2"), 1, Some("abacus")).expect_err("unknown");
    assert!(error.to_string().contains("abacus"), "{error}");
}

#[test]
fn a_program_that_is_no_qemu_is_refused() {
    let error = QemuBinary::inspect(Path::new("/bin/true")).expect_err("no QEMU");
    assert!(error.to_string().contains("no QEMU version"), "{error}");
    assert!(QemuBinary::inspect(Path::new("/nowhere/qemu")).is_err());
}

/// The verdict depends on the host; that it agrees with the node and explains itself does not.
#[test]
fn kvm_is_proven_or_the_reason_is_told() {
    for cpu in [KVM_CPU, "qemu64"] {
        let proof = prove_kvm(&qemu().path, cpu, PROOF_TIMEOUT);
        println!("{cpu}: {proof:?}");
        assert!(!proof.why.is_empty());
        if HostFacts::gather().kvm_node != KvmNode::Present {
            assert!(!proof.usable, "{proof:?}");
        }
    }
}

/// A processor model that does not exist makes QEMU end at once: that is no proof, and its words are told.
#[test]
fn a_qemu_that_ends_proves_nothing() {
    let proof = prove_kvm(&qemu().path, "abacus", PROOF_TIMEOUT);
    assert!(!proof.usable && proof.why.contains("it said"), "{proof:?}");
    let kernel = prove_with_kernel(&qemu().path, KVM_CPU, Path::new("/nowhere/vmlinuz"), None, PROOF_TIMEOUT);
    assert!(!kernel.usable && kernel.why.contains("did not speak"), "{kernel:?}");
}
