//! `gnomon doctor`: what this host can do, and what to mend.

use std::{path::Path, time::Duration};

use gnomon_link::Identity;
use gnomon_qemu::{
    Accelerator, HostFacts, KVM_CPU, KvmNode, KvmProof, SelfTest, TierTest, TierVerdict, prove_kvm, self_test,
};
use gnomon_terms::Bytes;
use serde::Serialize;

use crate::{api::chain, cli::facts, config::Config};

/// How long KVM may take to prove itself to the doctor.
const PROOF_TIMEOUT: Duration = Duration::from_secs(10);

/// What was found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// This node's name.
    pub node: String,
    /// What the host has.
    pub host: HostFacts,
    /// Whether KVM runs stock guests; `None` when there is nothing to try it with.
    pub kvm: Option<KvmProof>,
    /// The trackers held to the truth; `None` when there is no QEMU to try them with.
    pub tracker_test: Option<Result<SelfTest, String>>,
    /// Bytes free where volumes go; `None` when that cannot be told.
    pub volume_space: Option<u64>,
    /// Whose certificate the link has, or why there is none.
    pub link: String,
    /// What to mend, most important first.
    pub advice: Vec<String>,
}

/// Looks at the host. Blocks, up to ten seconds for KVM.
pub fn examine(config: &Config) -> Report {
    let host = HostFacts::gather();
    let kvm = match (host.kvm_node, host.qemus.first()) {
        (KvmNode::Present, Some(qemu)) => Some(prove_kvm(&qemu.path, KVM_CPU, PROOF_TIMEOUT)),
        _ => None,
    };
    let tracker_test = host.qemus.first().map(|qemu| test_trackers(&qemu.path, host.kvm_node));
    let link = match &config.link {
        None => "none: this node stands alone".to_string(),
        Some(link) => match Identity::load(&link.pki) {
            Ok(identity) => format!("{} as {}", link.listen, identity.name()),
            Err(error) => format!("broken: {}", chain(&error)),
        },
    };
    let volume_space = space(config);
    let mut advice = advice(&host, kvm.as_ref(), volume_space, &link);
    advice.extend(tracker_advice(tracker_test.as_ref()));
    Report { node: config.node.clone(), host, kvm, tracker_test, volume_space, link, advice }
}

/// Under KVM where there is any, be it one that emulates: its page tables are what matters. Else, or when it does not
/// run even one boot sector, under TCG.
fn test_trackers(qemu: &Path, kvm: KvmNode) -> Result<SelfTest, String> {
    let under_kvm = (kvm == KvmNode::Present).then(|| self_test(qemu, Accelerator::Kvm));
    match under_kvm {
        Some(Ok(test)) => Ok(test),
        Some(Err(_)) | None => self_test(qemu, Accelerator::Tcg).map_err(|error| chain(&error)),
    }
}

/// A tracker that misses pages would lose a guest's memory: that is said in any case.
fn tracker_advice(test: Option<&Result<SelfTest, String>>) -> Option<String> {
    let wrong = test?.as_ref().ok()?.tiers.iter().find(|tier| tier.missed > 0)?;
    Some(format!("tracking by {} misses pages on this host: do not protect VMs here, and report it", wrong.tier))
}

fn tracker_words(tiers: &[TierVerdict]) -> String {
    let words = |tier: &TierVerdict| {
        let verdict = if tier.available { "yes" } else { "no" };
        let why = if tier.why.is_empty() { String::new() } else { format!(" ({})", tier.why) };
        format!("{}: {verdict}{why}", tier.tier)
    };
    tiers.iter().map(words).collect::<Vec<_>>().join("; ")
}

fn self_test_words(test: &Option<Result<SelfTest, String>>) -> String {
    let tier_words = |tier: &TierTest| match &tier.failed {
        Some(why) => format!("{}: failed: {why}", tier.tier),
        None => format!(
            "{}: {} of {} written pages missed, {} reported needlessly, a scan {:?}",
            tier.tier, tier.missed, tier.written, tier.needless, tier.scan
        ),
    };
    match test {
        None => "not tried: there is no QEMU".to_string(),
        Some(Err(why)) => format!("failed: {why}"),
        Some(Ok(test)) => {
            let tiers: Vec<String> = test.tiers.iter().map(tier_words).collect();
            format!("under {} with {}: {}", test.accelerator, Bytes(test.memory), tiers.join("; "))
        }
    }
}

fn space(config: &Config) -> Option<u64> {
    let dir = config.volume_dir.ancestors().find(|dir| dir.exists())?;
    let stat = rustix::fs::statvfs(dir).ok()?;
    Some(stat.f_bavail * stat.f_frsize)
}

/// What to mend. A pure function of what was found.
fn advice(host: &HostFacts, kvm: Option<&KvmProof>, space: Option<u64>, link: &str) -> Vec<String> {
    const LITTLE: u64 = 10 << 30;
    let mut advice = Vec::new();
    let mut say = |wrong: bool, text: &str| {
        if wrong {
            advice.push(text.to_string());
        }
    };
    say(host.qemus.is_empty(), "there is no QEMU: apt-get install qemu-system-x86");
    say(host.qemu_img.is_none(), "there is no qemu-img, so images cannot be imported: apt-get install qemu-utils");
    say(host.kvm_node == KvmNode::Absent, "there is no /dev/kvm: guests are emulated, 10 to 50 times slower");
    say(host.kvm_node == KvmNode::Forbidden, "/dev/kvm is not allowed to this user: add it to the group kvm");
    say(kvm.is_some_and(|kvm| !kvm.usable), "KVM is there but does not run guests: they are emulated instead");
    say(space.is_some_and(|space| space < LITTLE), "under 10 GiB are free where volumes go: set volume.dir");
    say(link.starts_with("broken"), "the link's certificates cannot be used: `gnomon node init` makes new ones");
    advice
}

/// The report in words.
pub fn words(report: &Report) -> String {
    let host = &report.host;
    let yes = |there: bool| if there { "yes" } else { "no" }.to_string();
    let qemus: Vec<String> =
        host.qemus.iter().map(|qemu| format!("{} ({})", qemu.version, qemu.path.display())).collect();
    let kvm = match (&report.kvm, host.kvm_node) {
        (Some(proof), _) => format!("{}: {}", if proof.usable { "works" } else { "does not work" }, proof.why),
        (None, KvmNode::Absent) => "no /dev/kvm".to_string(),
        (None, KvmNode::Forbidden) => "/dev/kvm is not allowed to this user".to_string(),
        (None, KvmNode::Present) => "not tried: there is no QEMU".to_string(),
    };
    let mut text = facts(&[
        ("node", report.node.clone()),
        ("kernel", host.kernel.clone()),
        ("qemu", if qemus.is_empty() { "none".to_string() } else { qemus.join(", ") }),
        ("qemu-img", host.qemu_img.as_ref().map_or("none".to_string(), |path| path.display().to_string())),
        ("kvm", kvm),
        ("trackers", tracker_words(&host.trackers)),
        ("tracker test", self_test_words(&report.tracker_test)),
        ("memfd", yes(host.memfd)),
        ("io_uring", yes(host.io_uring)),
        ("space", report.volume_space.map(|space| Bytes(space).to_string()).unwrap_or_default()),
        ("link", report.link.clone()),
    ]);
    for line in &report.advice {
        text.push_str("\nadvice: ");
        text.push_str(line);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_advised() {
        let bare = HostFacts {
            kernel: "6.1".to_string(),
            qemus: Vec::new(),
            qemu_img: None,
            kvm_node: KvmNode::Absent,
            trackers: Vec::new(),
            memfd: true,
            io_uring: true,
        };
        let given = advice(&bare, None, Some(1), "none");
        assert_eq!(given.len(), 4, "{given:?}");
        let whole = HostFacts { kvm_node: KvmNode::Present, qemu_img: Some("/q".into()), ..bare };
        assert_eq!(advice(&whole, None, Some(u64::MAX), "none").len(), 1, "only QEMU is missing");
    }
}
