//! Facts about this host, as data. How they are shown, and what is advised, is the roof's business.

use std::{
    env, fs,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    fs::{Access, MemfdFlags},
    io::Errno,
};
use serde::Serialize;

use crate::{
    process::{Exited, ProcessError, Spawn, kill, last_words, spawn},
    qmp::{MachineInfo, Qmp},
    spec::QemuVersion,
};

/// The program that runs guests.
const QEMU_SYSTEM: &str = "qemu-system-x86_64";

/// How long a QEMU may take to print its version or to list its machines. Both need well under a second; a first run
/// from a cold disk a few.
const QEMU_TIMEOUT: Duration = Duration::from_secs(30);

/// What this host has. Serialises for `--json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HostFacts {
    /// Kernel release, such as `6.1.0-28-amd64`.
    pub kernel: String,
    /// Every QEMU found in `PATH`, in its order.
    pub qemus: Vec<QemuBinary>,
    /// `qemu-img`, for importing disks.
    pub qemu_img: Option<PathBuf>,
    /// What `/dev/kvm` is to us. Whether it really runs guests only [`crate::prove_kvm`] can say.
    pub kvm_node: KvmNode,
    /// The kernel tells which pages were written, and protects them again in one call (6.7 and newer): the fastest
    /// tracker.
    pub pagemap_scan: bool,
    /// The kernel keeps soft-dirty bits: the second tracker.
    pub soft_dirty: bool,
    /// Memory can be shared by descriptor.
    pub memfd: bool,
    /// Completion-based file access is allowed.
    pub io_uring: bool,
}

/// What `/dev/kvm` is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum KvmNode {
    /// There is none.
    Absent,
    /// It is there and we may not use it: the user is not in its group.
    Forbidden,
    /// It is there.
    Present,
}

/// A QEMU program and which one it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct QemuBinary {
    /// Where it is.
    pub path: PathBuf,
    /// Its release.
    pub version: QemuVersion,
    /// Folders with its firmware, for one that is not installed where it was built for.
    pub data_dirs: Vec<PathBuf>,
}

impl HostFacts {
    /// Looks. Blocks for as long as each QEMU takes to print its version. What cannot be found out counts as absent.
    pub fn gather() -> HostFacts {
        let system = rustix::system::uname();
        HostFacts {
            kernel: system.release().to_string_lossy().into_owned(),
            qemus: in_path(QEMU_SYSTEM).filter_map(|path| QemuBinary::inspect(&path).ok()).collect(),
            qemu_img: in_path("qemu-img").next(),
            kvm_node: kvm_node(Path::new("/dev/kvm")),
            pagemap_scan: has_pagemap_scan(),
            soft_dirty: has_soft_dirty(),
            memfd: rustix::fs::memfd_create("gnomon-doctor", MemfdFlags::CLOEXEC).is_ok(),
            io_uring: has_io_uring(),
        }
    }
}

/// The first QEMU in `PATH`.
pub fn find_qemu() -> Option<PathBuf> {
    in_path(QEMU_SYSTEM).next()
}

impl QemuBinary {
    /// Asks the program at `path` for its version.
    pub fn inspect(path: &Path) -> Result<QemuBinary, ProcessError> {
        let said = run(path, &["--version".to_string()])?;
        let version = said
            .parse()
            .map_err(|e: crate::NoVersion| ProcessError::Exited { status: Exited::Code(0), said: e.to_string() })?;
        Ok(QemuBinary { path: path.to_path_buf(), version, data_dirs: Vec::new() })
    }

    /// A QEMU of Debian packages that were unpacked into `root`, beside the one that is installed.
    pub fn unpacked(root: &Path) -> Result<QemuBinary, ProcessError> {
        let data_dirs = ["qemu", "seabios"].map(|name| root.join("usr/share").join(name)).to_vec();
        Ok(QemuBinary { data_dirs, ..QemuBinary::inspect(&root.join("usr/bin").join(QEMU_SYSTEM))? })
    }

    /// The arguments that tell it where its firmware is: [`crate::Launch::host_args`].
    pub fn host_args(&self) -> Vec<String> {
        self.data_dirs.iter().flat_map(|dir| ["-L".to_string(), dir.to_string_lossy().into_owned()]).collect()
    }

    /// Asks it for its machine types, over the monitor of a QEMU without a machine. The answer holds for as long as
    /// the program is the same.
    pub fn machines(&self) -> Result<Vec<MachineInfo>, ProcessError> {
        let (ours, theirs) = UnixStream::pair().map_err(|e| ProcessError::file("connect to", &self.path, e))?;
        let theirs = OwnedFd::from(theirs);
        let dir = tempfile::tempdir().map_err(|e| ProcessError::file("write to", &env::temp_dir(), e))?;
        let fd = theirs.as_raw_fd();
        let chardev = format!("socket,id=qmp,fd={fd}");
        let words = ["-machine", "none", "-nodefaults", "-no-user-config", "-display", "none"];
        let monitor = ["-chardev", &chardev, "-mon", "chardev=qmp,mode=control"];
        let args: Vec<String> = words.iter().chain(&monitor).map(|w| w.to_string()).collect();
        let log = dir.path().join("log");
        let (pid, pidfd, watch) = spawn(&Spawn { program: &self.path, args: &args, inherit: &[fd], log: &log })?;
        drop(theirs);
        let machines = Qmp::over(ours, QEMU_TIMEOUT).and_then(|qmp| qmp.query_machines());
        // It has no guest and no disk, so it need not be asked to end.
        kill(&pidfd, &watch, pid)?;
        Ok(machines?)
    }
}

/// Runs a program that prints a few lines and ends.
fn run(program: &Path, args: &[String]) -> Result<String, ProcessError> {
    let dir = tempfile::tempdir().map_err(|e| ProcessError::file("write to", &env::temp_dir(), e))?;
    let log = dir.path().join("log");
    let (pid, pidfd, watch) = spawn(&Spawn { program, args, inherit: &[], log: &log })?;
    match watch.wait(QEMU_TIMEOUT) {
        Some(Exited::Code(0)) => Ok(last_words(&log)),
        Some(status) => Err(ProcessError::Exited { status, said: last_words(&log) }),
        None => {
            kill(&pidfd, &watch, pid)?;
            Err(ProcessError::Exited { status: Exited::Unknown, said: format!("nothing for {QEMU_TIMEOUT:?}") })
        }
    }
}

/// Every executable of this name in `PATH`, once each.
fn in_path(name: &'static str) -> impl Iterator<Item = PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut seen = Vec::new();
    let dirs: Vec<PathBuf> = env::split_paths(&path).collect();
    dirs.into_iter().map(move |dir| dir.join(name)).filter(move |file| {
        let real = fs::canonicalize(file).ok();
        let fresh = real.as_ref().is_some_and(|real| !seen.contains(real));
        seen.extend(real);
        fresh && rustix::fs::access(file, Access::EXEC_OK).is_ok()
    })
}

fn kvm_node(path: &Path) -> KvmNode {
    match rustix::fs::access(path, Access::READ_OK | Access::WRITE_OK) {
        Ok(()) => KvmNode::Present,
        Err(Errno::NOENT) => KvmNode::Absent,
        Err(_) => KvmNode::Forbidden,
    }
}

/// The argument of the `PAGEMAP_SCAN` call. All zero it asks about an empty range.
///
/// Source: Linux `include/uapi/linux/fs.h`, `struct pm_scan_arg`.
#[repr(C)]
#[derive(Default)]
struct ScanArg {
    size: u64,
    rest: [u64; 11],
}

/// Asks about an empty range of our own memory: an older kernel does not know the call.
fn has_pagemap_scan() -> bool {
    const PAGEMAP_SCAN: rustix::ioctl::Opcode = rustix::ioctl::opcode::read_write::<ScanArg>(b'f', 16);
    let Ok(pagemap) = fs::File::open("/proc/self/pagemap") else { return false };
    let mut arg = ScanArg { size: size_of::<ScanArg>() as u64, ..ScanArg::default() };
    // SAFETY: the opcode is the one of a call that reads and writes a `ScanArg`, which `arg` is.
    let call = unsafe { rustix::ioctl::Updater::<PAGEMAP_SCAN, ScanArg>::new(&mut arg) };
    // SAFETY: on this file the opcode has only that meaning; an older kernel refuses it.
    unsafe { rustix::ioctl::ioctl(&pagemap, call) }.is_ok()
}

/// Bit 55 of a page's entry is set by the first write after the bits were cleared, and on a kernel that keeps them,
/// for every page that was ever written. We write one and look.
///
/// Source: Linux documentation, "Soft-Dirty PTEs".
fn has_soft_dirty() -> bool {
    use std::os::unix::fs::FileExt;
    let written = Box::new(std::hint::black_box(1u8));
    let page = (&raw const *written).addr() as u64 / rustix::param::page_size() as u64;
    let mut entry = [0u8; 8];
    fs::File::open("/proc/self/pagemap").and_then(|map| map.read_exact_at(&mut entry, page * 8)).is_ok()
        && u64::from_ne_bytes(entry) >> 55 & 1 == 1
}

/// Makes the smallest ring. It may be switched off by the administrator or forbidden by a container.
fn has_io_uring() -> bool {
    let mut params = rustix::io_uring::io_uring_params::default();
    // SAFETY: the parameters ask for nothing beyond a ring, which is not mapped and closed at once.
    unsafe { rustix::io_uring::io_uring_setup(1, &mut params) }.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_told_apart_from_none() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(kvm_node(&dir.path().join("kvm")), KvmNode::Absent);
        let node = dir.path().join("node");
        fs::write(&node, "").expect("written");
        assert_eq!(kvm_node(&node), KvmNode::Present);
    }

    #[test]
    fn the_scan_call_has_the_number_the_kernel_gives_it() {
        // _IOWR('f', 16, 96 bytes)
        assert_eq!(size_of::<ScanArg>(), 96);
        assert_eq!(rustix::ioctl::opcode::read_write::<ScanArg>(b'f', 16), 0xC060_6610);
    }
}
