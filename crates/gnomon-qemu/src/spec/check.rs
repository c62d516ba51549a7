//! What cannot be: everything about a description that is wrong on any host.

use std::path::{Path, PathBuf};

use gnomon_terms::{Bytes, ErrorKind};

use super::{DiskSource, DiskSpec, MAX_INTERFACE, NetSpec, QemuVersion, RamBacking, Uplink, VmSpec};
use crate::memory::GUEST_BLOCK;

/// The most processors we ask for; machine types have lower limits of their own.
const MAX_CPUS: u32 = 1024;

/// The longest name. Half of a file name's 255 bytes, so that suffixes always fit.
const MAX_NAME: usize = 128;

/// The most DIMMs that QEMU's ACPI tables can tell a guest of.
///
/// Source: QEMU `hw/i386/pc.c`, `ACPI_MAX_RAM_SLOTS`.
const MAX_SLOTS: u32 = 256;

/// The most memory of a guest: 64 TiB.
const MAX_MEMORY: u64 = 1 << 46;

/// Bytes in the path of a unix socket: the kernel's 108 without the closing zero.
const MAX_SOCKET_PATH: usize = 107;

/// Why a guest cannot be as it was described.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// A name that files, QEMU or the guest could not bear.
    #[error("{what} '{name}' is no name: use 1 to 128 letters, digits, '.', '_' and '-', a letter or digit first")]
    BadName {
        /// What it should name.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// Two of the same name.
    #[error("two {what}s are called '{name}'; give each its own name")]
    Twice {
        /// Two of what.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// A number out of range.
    #[error("{what} is {value}; it must be at least {least} and at most {most}")]
    OutOfRange {
        /// Which number.
        what: &'static str,
        /// Its value.
        value: u64,
        /// The least allowed.
        least: u64,
        /// The most allowed.
        most: u64,
    },
    /// A unix socket's path is longer than the kernel allows.
    #[error("the path {} has {length} bytes; the kernel allows {MAX_SOCKET_PATH} for a unix socket, use a shorter directory", path.display())]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// Its length in bytes.
        length: usize,
    },
    /// A network interface's name is longer than the kernel allows.
    #[error("the interface name '{name}' has {length} bytes; the kernel allows {MAX_INTERFACE}, use a shorter one")]
    InterfaceTooLong {
        /// The name, or its beginning.
        name: String,
        /// Its length in bytes.
        length: usize,
    },
    /// Two cards of the same address or uplink.
    #[error("two network cards have {what}; give each its own")]
    SameNic {
        /// What they share.
        what: String,
    },
    /// This QEMU cannot do what a card needs.
    #[error("QEMU {version} has no datagram sockets for network cards: they came with 7.2")]
    NoNics {
        /// Which QEMU.
        version: QemuVersion,
    },
    /// Memory cannot be added to a guest in this form.
    #[error("{what} {why}; memory is added in steps of {} MiB", GUEST_BLOCK >> 20)]
    BadGrowth {
        /// Which of the description's numbers.
        what: &'static str,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Another host has said that a guest was given more than it has room for.
    #[error("the guest was given {added} while it ran, and has room for {room} in {slots} slots")]
    TooMuchAdded {
        /// What it was given.
        added: Bytes,
        /// What can be added to it.
        room: Bytes,
        /// In so many pieces.
        slots: u32,
    },
    /// Another host has said that a guest has a DIMM that it cannot have.
    #[error(
        "the guest cannot have been given DIMM '{id}' in slot {slot}: its name, size or slot is none, or is taken"
    )]
    BadDimm {
        /// Its name, or the beginning of it.
        id: String,
        /// Its slot.
        slot: u64,
    },
    /// A path or text with bytes that QEMU's command line cannot carry.
    #[error(
        "{what} {text:?} holds bytes that QEMU's command line cannot carry; use plain UTF-8 without control characters"
    )]
    BadText {
        /// What it is.
        what: &'static str,
        /// The text, as far as it can be shown.
        text: String,
    },
    /// A vhost-user disk on RAM that its backend cannot map.
    #[error("disk '{disk}' is a vhost-user disk, which needs ram = \"shared\"")]
    RamNotShared {
        /// Which disk.
        disk: String,
    },
    /// No such machine type.
    #[error("QEMU {version} has no machine type '{machine}'; see qemu-system-x86_64 -machine help")]
    NoSuchMachine {
        /// What was asked for.
        machine: String,
        /// Of which QEMU.
        version: QemuVersion,
    },
    /// KVM was insisted on and does not run stock guests here.
    #[error("accel = \"kvm\" was asked for, but {why}; use accel = \"auto\" or \"tcg\"")]
    NoKvm {
        /// What the proof said.
        why: String,
    },
}

impl SpecError {
    /// What a caller can do about it: always change the description.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Refused
    }
}

impl VmSpec {
    /// Checks everything that can be known without the host. [`crate::resolve`] and [`crate::Qemu::launch`] call it.
    pub fn check(&self) -> Result<(), SpecError> {
        check_name("the guest", &self.name)?;
        in_range("memory (bytes)", self.memory, 1 << 20, MAX_MEMORY)?;
        self.check_growth()?;
        in_range("cpus", u64::from(self.cpus), 1, u64::from(MAX_CPUS))?;
        check_names("disk", self.disks.iter().map(|d| &d.name))?;
        check_names("port", self.ports.iter().map(|p| &p.name))?;
        for (what, text) in [("machine", Some(&self.machine)), ("cpu_model", self.cpu_model.as_ref())] {
            text.map_or(Ok(()), |text| check_text(what, text))?;
        }
        for path in [&self.kernel, &self.initrd].into_iter().flatten() {
            check_path("path", path)?;
        }
        if let Some(cmdline) = &self.cmdline {
            check_text("cmdline", cmdline)?;
        }
        for port in &self.ports {
            check_socket(&port.socket)?;
        }
        if let NetSpec::User { mac: Some(mac), .. } = &self.net {
            check_text("mac", mac)?;
        }
        self.check_nics()?;
        self.disks.iter().try_for_each(|disk| self.check_disk(disk))
    }

    /// Others map a guest's memory when it is replicated or staged, so what is added is shared as the rest is.
    fn check_growth(&self) -> Result<(), SpecError> {
        let wrong = |what, why| Err(SpecError::BadGrowth { what, why });
        let Some(most) = self.max_memory else {
            return self.virtio_mem.map_or(Ok(()), |_| wrong("virtio_mem", "needs max_memory"));
        };
        in_range("max_memory (bytes)", most, self.memory.saturating_add(GUEST_BLOCK), MAX_MEMORY)?;
        in_range("memory_slots", u64::from(self.memory_slots), 1, u64::from(MAX_SLOTS))?;
        let more = most - self.memory;
        let fits = |size: u64| (GUEST_BLOCK..=more).contains(&size) && size.is_multiple_of(GUEST_BLOCK);
        match self.virtio_mem {
            _ if self.ram == RamBacking::Private => wrong("max_memory", "needs ram = \"shared\""),
            _ if !fits(more) => wrong("max_memory", "is not a whole number of steps above memory"),
            Some(size) if !fits(size) => wrong("virtio_mem", "is no whole number of steps below max_memory"),
            _ => Ok(()),
        }
    }

    fn check_nics(&self) -> Result<(), SpecError> {
        let mut seen = std::collections::HashSet::new();
        for nic in &self.nics {
            nic.uplink.check()?;
            check_socket(&nic.socket)?;
            check_socket(&nic.peer)?;
            let Uplink::Tap { name, .. } = &nic.uplink;
            for what in [format!("the address {}", nic.mac), format!("the tap {name}")] {
                if !seen.insert(what.clone()) {
                    return Err(SpecError::SameNic { what });
                }
            }
        }
        Ok(())
    }

    fn check_disk(&self, disk: &DiskSpec) -> Result<(), SpecError> {
        match &disk.source {
            DiskSource::Nbd { socket, export } => check_socket(socket).and_then(|()| check_text("export", export)),
            DiskSource::File { path, format } => check_path("path", path).and_then(|()| check_text("format", format)),
            DiskSource::VhostUser { .. } if self.ram == RamBacking::Private => {
                Err(SpecError::RamNotShared { disk: disk.name.clone() })
            }
            DiskSource::VhostUser { socket } => check_socket(socket),
        }
    }
}

fn check_name(what: &'static str, name: &str) -> Result<(), SpecError> {
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    let rest = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    match first && rest && name.len() <= MAX_NAME {
        true => Ok(()),
        false => Err(SpecError::BadName { what, name: name.chars().take(MAX_NAME).collect() }),
    }
}

fn check_names<'a>(what: &'static str, names: impl Iterator<Item = &'a String>) -> Result<(), SpecError> {
    let mut seen = std::collections::HashSet::new();
    for name in names {
        check_name(what, name)?;
        if !seen.insert(name) {
            return Err(SpecError::Twice { what, name: name.clone() });
        }
    }
    Ok(())
}

fn in_range(what: &'static str, value: u64, least: u64, most: u64) -> Result<(), SpecError> {
    match (least..=most).contains(&value) {
        true => Ok(()),
        false => Err(SpecError::OutOfRange { what, value, least, most }),
    }
}

fn check_text(what: &'static str, text: &str) -> Result<(), SpecError> {
    match text.chars().any(char::is_control) {
        false => Ok(()),
        true => Err(SpecError::BadText { what, text: text.to_string() }),
    }
}

fn check_path(what: &'static str, path: &Path) -> Result<(), SpecError> {
    match path.to_str() {
        Some(text) => check_text(what, text),
        None => Err(SpecError::BadText { what, text: path.to_string_lossy().into_owned() }),
    }
}

pub(super) fn check_socket(path: &Path) -> Result<(), SpecError> {
    check_path("path", path)?;
    let length = path.as_os_str().len();
    match length <= MAX_SOCKET_PATH {
        true => Ok(()),
        false => Err(SpecError::PathTooLong { path: path.to_path_buf(), length }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{MacAddress, NicSpec, PortSpec};

    fn nic(tap: &str, last: u8) -> NicSpec {
        let uplink = Uplink::Tap { name: tap.into(), bridge: None };
        let mac = MacAddress::local([0, 0, 0, 0, 0, last]);
        NicSpec { mac, uplink, socket: "/r/nic.sock".into(), peer: "/r/peer.sock".into() }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        type Change = fn(&mut VmSpec);
        let table: [(Change, &str); 18] = [
            (|s| s.max_memory = Some(s.memory), "max_memory"),
            (|s| s.max_memory = Some(u64::MAX), "max_memory"),
            (|s| s.max_memory = Some(s.memory + (129 << 20)), "not a whole number of steps"),
            (|s| (s.max_memory, s.memory_slots) = (Some(s.memory * 2), 257), "memory_slots is 257"),
            (|s| (s.max_memory, s.ram) = (Some(s.memory * 2), RamBacking::Private), "ram = \"shared\""),
            (|s| s.virtio_mem = Some(128 << 20), "needs max_memory"),
            (|s| (s.max_memory, s.virtio_mem) = (Some(s.memory * 2), Some(2 << 30)), "below max_memory"),
            (|s| s.name = String::new(), "is no name"),
            (|s| s.name = "../etc".into(), "is no name"),
            (|s| s.memory = 0, "memory"),
            (|s| s.cpus = 0, "cpus"),
            (
                |s| {
                    s.disks = vec![DiskSpec::raw_file("a", Path::new("/x")), DiskSpec::raw_file("a", Path::new("/y"))]
                },
                "two disks",
            ),
            (|s| s.disks = vec![DiskSpec::raw_file("a,b", Path::new("/x"))], "is no name"),
            (|s| s.disks = vec![DiskSpec::nbd("a", Path::new(&"/x".repeat(60)), "e")], "120 bytes"),
            (|s| s.ports = vec![PortSpec { name: "p".into(), socket: "/a\nb".into() }], "control characters"),
            (|s| s.cmdline = Some("a\0b".into()), "control characters"),
            (|s| s.nics = vec![nic("tap0", 1), nic("tap0", 2)], "the tap tap0"),
            (
                |s| {
                    s.ram = RamBacking::Private;
                    s.disks = vec![DiskSpec::raw_file("v", Path::new("/x"))];
                    s.disks[0].source = DiskSource::VhostUser { socket: "/v".into() };
                },
                "ram = \"shared\"",
            ),
        ];
        for (change, words) in table {
            let mut spec = VmSpec::new("web", 1 << 30);
            assert_eq!(spec.check(), Ok(()));
            change(&mut spec);
            let error = spec.check().expect_err(words).to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
