//! What the user left open, settled against one host.

use std::{collections::BTreeSet, fmt, str::FromStr};

use gnomon_terms::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Accel, SpecError, VmSpec};
use crate::{
    memory::{GUEST_BLOCK, MAX_NAME, is_name},
    qmp::MachineInfo,
};

/// A QEMU release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct QemuVersion {
    /// 7 of 7.2.22.
    pub major: u32,
    /// 2 of 7.2.22.
    pub minor: u32,
    /// 22 of 7.2.22.
    pub micro: u32,
}

/// What really runs the processors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// The processor itself, through `/dev/kvm`.
    Kvm,
    /// QEMU's emulator.
    Tcg,
}

/// What both sides of a migration must have in common, as settled on the first host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolved {
    /// Versioned machine type.
    pub machine: String,
    /// What runs the processors.
    pub accelerator: Accelerator,
    /// RAM in bytes that it begins with, as given to QEMU.
    pub memory: u64,
    /// DIMMs that it has when it starts, by slot: what it was given where it ran before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dimms: Vec<SettledDimm>,
}

/// A DIMM, and where the guest has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettledDimm {
    /// What QEMU calls it; its memory is called so in the state of devices.
    pub id: String,
    /// In bytes: a multiple of 128 MiB.
    pub size: u64,
    /// Its slot.
    pub slot: u64,
    /// Its first byte, as the guest sees it.
    pub address: u64,
}

impl Resolved {
    /// All the memory that it has when it starts, in bytes.
    pub fn whole_memory(&self) -> u64 {
        self.dimms.iter().fold(self.memory, |sum, dimm| sum.saturating_add(dimm.size))
    }

    /// Checks what another host may have said of DIMMs: names that are names to QEMU, sizes that a guest can add, each slot
    /// and name once, within what the spec has room for.
    pub fn check(&self, spec: &VmSpec) -> Result<(), SpecError> {
        let room = spec.max_memory.unwrap_or(spec.memory).saturating_sub(spec.memory);
        let added = self.whole_memory().saturating_sub(self.memory);
        if self.dimms.len() > spec.memory_slots as usize || added > room {
            return Err(SpecError::TooMuchAdded { added: Bytes(added), room: Bytes(room), slots: spec.memory_slots });
        }
        let (mut slots, mut ids) = (BTreeSet::new(), BTreeSet::new());
        for dimm in &self.dimms {
            let is_free = slots.insert(dimm.slot) && ids.insert(&dimm.id);
            let fits =
                dimm.size > 0 && dimm.size.is_multiple_of(GUEST_BLOCK) && dimm.slot < u64::from(spec.memory_slots);
            if !is_free || !fits || !is_name(&dimm.id) {
                return Err(SpecError::BadDimm { id: dimm.id.chars().take(MAX_NAME).collect(), slot: dimm.slot });
            }
        }
        Ok(())
    }
}

/// The first release with `-netdev dgram`.
///
/// Source: QEMU 7.2 change log, "Network".
const NICS_SINCE: (u32, u32) = (7, 2);

/// Settles `spec` on a host with this QEMU, these machine types and this verdict on KVM (`Err` says why not).
pub fn resolve(
    spec: &VmSpec,
    version: QemuVersion,
    machines: &[MachineInfo],
    kvm: Result<(), &str>,
) -> Result<Resolved, SpecError> {
    spec.check()?;
    if !spec.nics.is_empty() && (version.major, version.minor) < NICS_SINCE {
        return Err(SpecError::NoNics { version });
    }
    let accelerator = match (spec.accel, kvm) {
        (Accel::Tcg, _) | (Accel::Auto, Err(_)) => Accelerator::Tcg,
        (Accel::Kvm | Accel::Auto, Ok(())) => Accelerator::Kvm,
        (Accel::Kvm, Err(why)) => return Err(SpecError::NoKvm { why: why.to_string() }),
    };
    let named = |m: &&MachineInfo| m.name == spec.machine || m.alias.as_ref() == Some(&spec.machine);
    let machine = machines
        .iter()
        .find(named)
        .ok_or_else(|| SpecError::NoSuchMachine { machine: spec.machine.clone(), version })?
        .name
        .clone();
    let memory = safe_memory_size(Bytes(spec.memory), accelerator, version).0;
    Ok(Resolved { machine, accelerator, memory, dimms: Vec::new() })
}

/// The RAM size to give to QEMU for `wanted`: a multiple of 8 KiB (what `-m` rounds up to), never less than wanted.
///
/// Under TCG before QEMU 9.0 it is also never a multiple of 256 KiB. There the dirty log is gathered 64 pages at a
/// time when a RAM block is so aligned, and that path forgets to reset the emulator's own note of which pages are
/// dirty: pages written afterwards are not sent, and the guest breaks after a native migration, silently. 8 KiB more
/// make QEMU take the slow path, which is right.
///
/// Source: QEMU commit 03bfc2188f06 (physmem: Fix migration dirty bitmap coherency with TCG memory access), and our
/// own comparison of a migrated image with the truth: 13–27 pages wrong when aligned, 0 when not.
pub fn safe_memory_size(wanted: Bytes, accelerator: Accelerator, version: QemuVersion) -> Bytes {
    const STEP: u64 = 8 << 10;
    const FAST_PATH: u64 = 256 << 10;
    let size = wanted.0.next_multiple_of(STEP);
    let loses_pages = accelerator == Accelerator::Tcg && version.major < 9 && size.is_multiple_of(FAST_PATH);
    Bytes(if loses_pages { size + STEP } else { size })
}

impl QemuVersion {
    /// From the greeting of a monitor.
    pub(crate) fn of_greeting(greeting: &Value) -> Option<QemuVersion> {
        let numbers = greeting.get("version")?.get("qemu")?;
        let number = |name: &str| numbers.get(name)?.as_u64()?.try_into().ok();
        Some(QemuVersion { major: number("major")?, minor: number("minor")?, micro: number("micro")? })
    }
}

/// That a text holds no QEMU version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no QEMU version in '{0}'")]
pub struct NoVersion(pub String);

impl FromStr for QemuVersion {
    type Err = NoVersion;

    /// `7.2.22`, or the output of `--version` that has it as a word.
    fn from_str(text: &str) -> Result<QemuVersion, NoVersion> {
        let version_of = |word: &str| {
            let mut numbers = word.splitn(3, '.').map(|n| n.parse::<u32>().ok());
            Some(QemuVersion { major: numbers.next()??, minor: numbers.next()??, micro: numbers.next()?? })
        };
        text.split_whitespace()
            .find_map(version_of)
            .ok_or_else(|| NoVersion(text.lines().next().unwrap_or("").chars().take(80).collect()))
    }
}

impl fmt::Display for QemuVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Accelerator::Kvm => "kvm",
            Accelerator::Tcg => "tcg",
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OLD: QemuVersion = QemuVersion { major: 7, minor: 2, micro: 22 };
    const NEW: QemuVersion = QemuVersion { major: 10, minor: 0, micro: 2 };
    const MIB: u64 = 1 << 20;

    #[test]
    fn memory_avoids_the_lossy_path_only_where_it_is_lossy() {
        let table = [
            (256 * MIB, Accelerator::Tcg, OLD, 262_152 << 10),
            (256 * MIB, Accelerator::Tcg, NEW, 256 * MIB),
            (256 * MIB, Accelerator::Kvm, OLD, 256 * MIB),
            ((256 * MIB) + (8 << 10), Accelerator::Tcg, OLD, 262_152 << 10),
            ((256 * MIB) - 1, Accelerator::Tcg, OLD, 262_152 << 10),
            ((256 * MIB) + 1, Accelerator::Kvm, NEW, 262_152 << 10),
        ];
        for (wanted, accelerator, version, size) in table {
            let got = safe_memory_size(Bytes(wanted), accelerator, version);
            assert_eq!(got, Bytes(size), "{wanted} {accelerator} {version}");
        }
    }

    proptest! {
        #[test]
        fn memory_is_enough_and_never_aligned_under_an_old_emulator(wanted in 1u64..1 << 46) {
            let size = safe_memory_size(Bytes(wanted), Accelerator::Tcg, OLD).0;
            prop_assert!(size >= wanted && size - wanted <= 16 << 10);
            prop_assert!(!size.is_multiple_of(256 << 10) && size.is_multiple_of(8 << 10));
        }
    }

    #[test]
    fn versions_are_read_from_what_qemu_prints() {
        let line = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright";
        assert_eq!(line.parse(), Ok(OLD));
        assert_eq!("10.0.2".parse(), Ok(NEW));
        assert_eq!("QEMU emulator".parse::<QemuVersion>(), Err(NoVersion("QEMU emulator".into())));
        assert!("7.2.x".parse::<QemuVersion>().is_err());
    }

    fn machines() -> Vec<MachineInfo> {
        let machine = |name: &str, alias: Option<&str>| MachineInfo {
            name: name.into(),
            alias: alias.map(str::to_string),
            cpu_max: 255,
            deprecated: false,
        };
        vec![machine("pc-q35-7.2", Some("q35")), machine("pc-q35-7.1", None)]
    }

    #[test]
    fn what_was_left_open_is_settled() {
        let table = [
            ("q35", Accel::Auto, Ok(()), "pc-q35-7.2", Accelerator::Kvm),
            ("q35", Accel::Auto, Err("no node"), "pc-q35-7.2", Accelerator::Tcg),
            ("pc-q35-7.1", Accel::Tcg, Ok(()), "pc-q35-7.1", Accelerator::Tcg),
        ];
        for (machine, accel, kvm, resolved, accelerator) in table {
            let spec = VmSpec { machine: machine.into(), accel, ..VmSpec::new("web", 1 << 30) };
            let got = resolve(&spec, OLD, &machines(), kvm).expect("can be settled");
            assert_eq!((got.machine.as_str(), got.accelerator), (resolved, accelerator));
        }
    }

    #[test]
    fn what_the_host_has_not_is_refused() {
        let kvm = VmSpec { accel: Accel::Kvm, ..VmSpec::new("web", 1 << 30) };
        assert_eq!(resolve(&kvm, OLD, &machines(), Err("no node")), Err(SpecError::NoKvm { why: "no node".into() }));
        let odd = VmSpec { machine: "pdp11".into(), ..VmSpec::new("web", 1 << 30) };
        let error = resolve(&odd, OLD, &machines(), Ok(()));
        assert_eq!(error, Err(SpecError::NoSuchMachine { machine: "pdp11".into(), version: OLD }));
    }
}
