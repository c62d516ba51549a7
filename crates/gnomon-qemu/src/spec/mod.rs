//! What a guest is, and the QEMU command line that makes it so.
//!
//! [`VmSpec`] is what the user asked for. [`resolve`] settles what the user left open against one host (the versioned
//! machine type, the accelerator, the exact memory size) into [`Resolved`], which is recorded: both sides of a
//! migration need the same, whatever the other host would have chosen. [`command_line`] is a pure function of both.

mod check;
mod command;
mod nic;
mod paths;
mod resolve;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use check::SpecError;
use check::check_socket;
pub(crate) use command::cpu_model;
pub use command::{Role, command_line};
pub use nic::{MAX_INTERFACE, MacAddress, NicSpec, NoMacAddress, Uplink};
pub use paths::{RamFd, VmPaths};
pub use resolve::{Accelerator, NoVersion, QemuVersion, Resolved, SettledDimm, resolve, safe_memory_size};

/// A guest, as its user describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmSpec {
    /// What it is called: 1–128 of letters, digits, `.`, `_` and `-`, a letter or digit first.
    pub name: String,
    /// RAM in bytes. Rounded to what the accelerator can carry faithfully, see [`safe_memory_size`].
    pub memory: u64,
    /// RAM in bytes that the guest may be grown to while it runs, by DIMMs and by [`VmSpec::virtio_mem`]; left open, it
    /// cannot. More than `memory` by a multiple of 128 MiB.
    #[serde(default)]
    pub max_memory: Option<u64>,
    /// How many DIMMs it can have at once, 1 to 256. Means nothing without `max_memory`.
    #[serde(default = "default_slots")]
    pub memory_slots: u32,
    /// Bytes, of those between `memory` and `max_memory`, that a virtio-mem device gives and takes in steps of 2 MiB
    /// without DIMMs. It begins with none. A multiple of 128 MiB.
    #[serde(default)]
    pub virtio_mem: Option<u64>,
    /// Processors.
    #[serde(default = "one")]
    pub cpus: u32,
    /// QEMU machine type. An alias such as `q35` is resolved to the versioned type and recorded.
    #[serde(default = "default_machine")]
    pub machine: String,
    /// What runs the processors.
    #[serde(default)]
    pub accel: Accel,
    /// QEMU processor model. Left open: `host` under KVM, QEMU's default under TCG.
    #[serde(default)]
    pub cpu_model: Option<String>,
    /// Who makes the guest's RAM.
    #[serde(default)]
    pub ram: RamBacking,
    /// Disks, in the order the guest sees them. The first bootable one boots unless `kernel` is given.
    #[serde(default)]
    pub disks: Vec<DiskSpec>,
    /// Linux kernel to boot directly.
    #[serde(default)]
    pub kernel: Option<PathBuf>,
    /// Its initial RAM disk.
    #[serde(default)]
    pub initrd: Option<PathBuf>,
    /// Its command line.
    #[serde(default)]
    pub cmdline: Option<String>,
    /// Channels between guest and host (virtio-serial).
    #[serde(default)]
    pub ports: Vec<PortSpec>,
    /// QEMU's own network.
    #[serde(default)]
    pub net: NetSpec,
    /// Network cards whose frames somebody else carries.
    #[serde(default)]
    pub nics: Vec<NicSpec>,
    /// Keep all the guest ever writes to its first serial port. QEMU sets no limit to the file: switch it off for a
    /// guest that is not trusted with the host's disk space.
    #[serde(default = "yes")]
    pub console_log: bool,
    /// Given to QEMU as they are, after all others. Not checked.
    #[serde(default)]
    pub extra_args: Vec<String>,
}

/// What the user wants to run the processors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// KVM where it has been proven to run a stock guest, TCG elsewhere.
    #[default]
    Auto,
    /// KVM, or not at all.
    Kvm,
    /// Emulation.
    Tcg,
}

/// Who makes the guest's RAM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RamBacking {
    /// gnomon: a memfd that QEMU, gnomon and vhost-user backends map. Replication, checkpoints and updates need it.
    #[default]
    Shared,
    /// QEMU, for itself alone.
    Private,
}

/// One disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskSpec {
    /// Names it to QEMU, and to the guest as its serial number (the first 20 bytes): letters, digits, `-`, `_`.
    pub name: String,
    /// Where its bytes are.
    pub source: DiskSource,
    /// The guest may not write.
    #[serde(default)]
    pub read_only: bool,
    /// For NBD: how many seconds the guest's requests wait for a server that has gone before they fail (and the
    /// guest stands). Long by default, so that a restart of the server never disturbs a guest. QEMU looks for the
    /// server after 1, 2, 4, 8 and then every 16 s. While requests wait, commands that have to end them first
    /// (`stop`, `quit`, a migration's switch to standing) wait as well; only a kill does not.
    #[serde(default = "reconnect_default")]
    pub reconnect_seconds: u32,
}

/// Where a disk's bytes are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum DiskSource {
    /// An export of an NBD server.
    Nbd {
        /// Its unix socket.
        socket: PathBuf,
        /// Which export.
        export: String,
    },
    /// A vhost-user-blk backend; needs [`RamBacking::Shared`].
    VhostUser {
        /// Its unix socket.
        socket: PathBuf,
    },
    /// A file or block device of this host.
    File {
        /// Which.
        path: PathBuf,
        /// QEMU's name for its format. Never guessed: a guest that writes a qcow2 header to a raw disk would
        /// otherwise choose what QEMU opens next.
        #[serde(default = "raw")]
        format: String,
    },
}

/// A channel between guest and host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortSpec {
    /// Its name in the guest: `/dev/virtio-ports/NAME`.
    pub name: String,
    /// The unix socket that QEMU listens on. One client at a time.
    pub socket: PathBuf,
}

/// Network of a guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum NetSpec {
    /// No card.
    #[default]
    None,
    /// QEMU's user-mode network. Its connections do not survive a migration: the host side of them is in QEMU.
    User {
        /// The card's address; QEMU's default, the same for all guests, when left open.
        #[serde(default)]
        mac: Option<String>,
        /// TCP ports of the host's loopback that lead into the guest: (host, guest).
        #[serde(default)]
        forward: Vec<(u16, u16)>,
    },
}

fn yes() -> bool {
    true
}

fn one() -> u32 {
    1
}

/// A bitmap of slots costs QEMU nothing; each DIMM is one memory region of KVM, which has thousands.
fn default_slots() -> u32 {
    32
}

fn default_machine() -> String {
    "q35".to_string()
}

fn reconnect_default() -> u32 {
    300
}

fn raw() -> String {
    "raw".to_string()
}

impl VmSpec {
    /// A guest with `memory` bytes and otherwise what an empty description means.
    pub fn new(name: &str, memory: u64) -> VmSpec {
        VmSpec {
            name: name.to_string(),
            memory,
            max_memory: None,
            memory_slots: default_slots(),
            virtio_mem: None,
            cpus: one(),
            machine: default_machine(),
            accel: Accel::default(),
            cpu_model: None,
            ram: RamBacking::default(),
            disks: Vec::new(),
            kernel: None,
            initrd: None,
            cmdline: None,
            ports: Vec::new(),
            net: NetSpec::default(),
            nics: Vec::new(),
            console_log: yes(),
            extra_args: Vec::new(),
        }
    }
}

impl DiskSpec {
    /// A writable disk of an NBD server, with the default patience.
    pub fn nbd(name: &str, socket: &Path, export: &str) -> DiskSpec {
        let source = DiskSource::Nbd { socket: socket.to_path_buf(), export: export.to_string() };
        DiskSpec { name: name.to_string(), source, read_only: false, reconnect_seconds: reconnect_default() }
    }

    /// A writable raw file or block device.
    pub fn raw_file(name: &str, path: &Path) -> DiskSpec {
        let source = DiskSource::File { path: path.to_path_buf(), format: raw() };
        DiskSpec { name: name.to_string(), source, read_only: false, reconnect_seconds: reconnect_default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_description_means_what_new_says() {
        let read: VmSpec = serde_json::from_str(r#"{"name": "web", "memory": 1048576}"#).expect("complete");
        assert_eq!(read, VmSpec::new("web", 1 << 20));
    }

    #[test]
    fn a_description_survives_being_written_down() {
        let mut spec = VmSpec::new("web", 1 << 30);
        spec.disks.push(DiskSpec::nbd("root", Path::new("/run/d.sock"), "root"));
        spec.net = NetSpec::User { mac: None, forward: vec![(2222, 22)] };
        let text = serde_json::to_string(&spec).expect("serialisable");
        assert_eq!(serde_json::from_str::<VmSpec>(&text).expect("own words"), spec);
    }
}
