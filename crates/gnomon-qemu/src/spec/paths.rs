//! Where the files of one running guest are.

use std::path::{Path, PathBuf};

use super::{SpecError, check_socket};
use crate::ram::RamSharing;

/// The directory of one running guest, and the descriptors it is started with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmPaths {
    /// The directory. One guest each.
    pub dir: PathBuf,
    /// The monitor's listening socket, made before QEMU starts and inherited under this number. Then nobody has to
    /// wait for the socket's file to appear, and a QEMU that dies early is seen as a closed connection. Set by
    /// [`crate::Qemu::launch`]; without it QEMU listens on [`VmPaths::qmp`] by itself.
    pub qmp_fd: Option<i32>,
    /// The guest's RAM.
    pub ram: Option<RamFd>,
    /// The memory of the DIMMs that it has from the start, in their order: numbers of descriptors that QEMU inherits.
    pub dimms: Vec<i32>,
}

/// A memfd that QEMU inherits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamFd {
    /// Under this number.
    pub fd: i32,
    /// How it maps it.
    pub sharing: RamSharing,
    /// Whether it fills its page tables before the guest runs.
    pub populate: bool,
}

impl VmPaths {
    /// The paths of a guest that lives in `dir`.
    pub fn new(dir: &Path) -> VmPaths {
        VmPaths { dir: dir.to_path_buf(), qmp_fd: None, ram: None, dimms: Vec::new() }
    }

    /// The monitor.
    pub fn qmp(&self) -> PathBuf {
        self.dir.join("qmp.sock")
    }

    /// The first serial port: QEMU listens, one client at a time. A client that stays and does not read makes the
    /// port wait after some 280 bytes; characters are dropped then, and a guest that is moved meanwhile has a mute
    /// port on the other side (seen with QEMU 7.2). So whoever connects reads, or leaves.
    pub fn console(&self) -> PathBuf {
        self.dir.join("console.sock")
    }

    /// Everything the guest ever wrote to its first serial port.
    pub fn console_log(&self) -> PathBuf {
        self.dir.join("console.log")
    }

    /// What QEMU says on its standard output and error.
    pub fn qemu_log(&self) -> PathBuf {
        self.dir.join("qemu.log")
    }

    /// What is needed to adopt the running QEMU: a [`crate::QemuRecord`] as JSON.
    pub fn record(&self) -> PathBuf {
        self.dir.join("qemu.json")
    }

    /// Checks that the kernel can bind the sockets.
    pub fn check(&self) -> Result<(), SpecError> {
        check_socket(&self.console()).and_then(|()| check_socket(&self.qmp()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_too_deep_for_sockets_is_refused() {
        assert_eq!(VmPaths::new(Path::new("/run/gnomon/web")).check(), Ok(()));
        let deep = PathBuf::from("/").join("d".repeat(120));
        assert!(matches!(VmPaths::new(&deep).check(), Err(SpecError::PathTooLong { length: 134, .. })));
    }
}
