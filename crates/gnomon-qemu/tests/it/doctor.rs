//! What is said of this host against what it does.

use std::path::Path;

use gnomon_qemu::{HostFacts, KVM_CPU, KvmNode, PROOF_TIMEOUT, QemuBinary, prove_kvm, prove_with_kernel};

use crate::guests::qemu;

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
