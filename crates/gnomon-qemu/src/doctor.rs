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
    dirty::{TierVerdict, TrackerFacts},
    process::{Exited, ProcessError, Spawn, kill, last_words, spawn},
    processor::Processor,
    qmp::{MachineInfo, Qmp, QmpError},
    spec::{QemuVersion, Resolved, cpu_model},
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
    /// By which means the pages that a guest writes can be tracked, best first.
    pub trackers: Vec<TierVerdict>,
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
            trackers: TrackerFacts::gather().verdicts(),
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
        self.ask_idle(&["-machine", "none"], Qmp::query_machines)
    }

    /// What a guest would see of its processor here: of a QEMU with this machine type, without a guest. Takes some 0.3 s.
    /// `model` is in QEMU's words (`-cpu`); left open, as in a [`crate::VmSpec`].
    pub fn processor(&self, resolved: &Resolved, cpus: u32, model: Option<&str>) -> Result<Processor, ProcessError> {
        let (accelerator, cpus) = (resolved.accelerator.to_string(), cpus.to_string());
        let mut words = vec!["-machine", &resolved.machine, "-accel", &accelerator, "-smp", &cpus, "-S"];
        words.extend(cpu_model(model, resolved.accelerator).iter().flat_map(|model| ["-cpu", model]));
        self.ask_idle(&words, Processor::of)
    }

    /// Starts it without a guest and asks it something.
    fn ask_idle<T>(
        &self,
        words: &[&str],
        question: impl FnOnce(&Qmp) -> Result<T, QmpError>,
    ) -> Result<T, ProcessError> {
        let (ours, theirs) = UnixStream::pair().map_err(|e| ProcessError::file("connect to", &self.path, e))?;
        let theirs = OwnedFd::from(theirs);
        let dir = tempfile::tempdir().map_err(|e| ProcessError::file("write to", &env::temp_dir(), e))?;
        let fd = theirs.as_raw_fd();
        let chardev = format!("socket,id=qmp,fd={fd}");
        let alone = ["-nodefaults", "-no-user-config", "-display", "none"];
        let monitor = ["-chardev", &chardev, "-mon", "chardev=qmp,mode=control"];
        let mut args = self.host_args();
        args.extend(words.iter().chain(&alone).chain(&monitor).map(|word| word.to_string()));
        let log = dir.path().join("log");
        let (pid, pidfd, watch) = spawn(&Spawn { program: &self.path, args: &args, inherit: &[fd], log: &log })?;
        drop(theirs);
        let answer = Qmp::over(ours, QEMU_TIMEOUT).and_then(|qmp| question(&qmp));
        // One that has closed its monitor did not like its options, and says why in its log.
        let has_closed = matches!(answer, Err(QmpError::Closed { .. }));
        let ended = has_closed.then(|| watch.wait(QEMU_TIMEOUT)).flatten();
        let said = ended.map(|status| (status, last_words(&log)));
        kill(&pidfd, &watch, pid)?;
        match said {
            Some((status, said)) => Err(ProcessError::Exited { status, said }),
            None => Ok(answer?),
        }
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
}
