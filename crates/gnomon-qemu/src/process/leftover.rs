//! A QEMU that nobody knows of: whoever started it died before it was on record.
//!
//! Between the start of a process and the sync of its record there are milliseconds in which a launcher can be killed.
//! The process then goes on, with the monitor's socket that it was given, and no record names it. The kernel does: its
//! table of sockets has the path with an inode, and the process has that inode among its descriptors. (Asking the
//! socket itself would not do: until QEMU is up it names the dead launcher, who began to listen.)

use std::{
    fs,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
    process,
    sync::Arc,
};

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::{ExitWatch, ProcessError, QemuRecord, kill};
use crate::spec::VmPaths;

/// The kernel's table of sockets that have a path.
const SOCKETS: &str = "/proc/net/unix";

/// Kills the QEMU that runs in `dir`, whether it is on record or not, and waits until it is gone. Returns its process,
/// or `None` when none runs there. Only for a caller who knows that no guest lives in it. Blocks up to a minute.
pub fn end_leftover(dir: &Path) -> Result<Option<i32>, ProcessError> {
    let paths = VmPaths::new(dir);
    if let Ok(record) = QemuRecord::read(&paths.record())
        && record.kill()?
    {
        return Ok(Some(record.pid));
    }
    match holder_of(&paths.qmp())? {
        Some((pidfd, pid)) => end(pidfd, pid).map(|()| Some(pid)),
        None => Ok(None),
    }
}

impl QemuRecord {
    /// Kills the process without asking its monitor, and waits until it is gone. False when it was gone already. Blocks up
    /// to a minute.
    pub fn kill(&self) -> Result<bool, ProcessError> {
        match self.open() {
            Ok(pidfd) => end(pidfd, self.pid).map(|()| true),
            Err(ProcessError::Gone { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn end(pidfd: OwnedFd, pid: i32) -> Result<(), ProcessError> {
    let pidfd = Arc::new(pidfd);
    let watch = ExitWatch::over(Arc::clone(&pidfd), pid)?;
    kill(&pidfd, &watch, pid).map(drop)
}

/// Another process that has the socket bound to `path` open. Processes of other users are not seen unless we are root.
pub(super) fn holder_of(path: &Path) -> Result<Option<(OwnedFd, i32)>, ProcessError> {
    let file = |what: &Path, e| ProcessError::file("read", what, e);
    let table = fs::read(SOCKETS).map_err(|e| file(Path::new(SOCKETS), e))?;
    let inodes = inodes_of(&table, path);
    if inodes.is_empty() {
        return Ok(None);
    }
    let names = fs::read_dir("/proc").map_err(|e| file(Path::new("/proc"), e))?;
    let numbers = names.filter_map(|name| name.ok()?.file_name().to_str()?.parse::<i32>().ok());
    for pid in numbers.filter(|&pid| pid != process::id() as i32) {
        // Opened before it is looked at: it cannot come to mean another process in between.
        let opened = Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        if let Some(pidfd) = opened
            && holds_any(pid, &inodes)
        {
            return Ok(Some((pidfd, pid)));
        }
    }
    Ok(None)
}

/// The sockets of a table of the kernel's that are bound to `path`.
fn inodes_of(table: &[u8], path: &Path) -> Vec<u64> {
    // Num RefCount Protocol Flags Type St Inode Path: the path is last and may have spaces.
    let inode_of = |line: &[u8]| {
        let mut rest = line;
        for _ in 0..6 {
            (_, rest) = split_field(rest)?;
        }
        let (inode, bound) = split_field(rest)?;
        let is_it = bound.get(1..)? == path.as_os_str().as_bytes();
        is_it.then(|| std::str::from_utf8(inode).ok()?.parse().ok()).flatten()
    };
    table.split(|byte| *byte == b'\n').filter_map(inode_of).collect()
}

/// The next field of a line, and what follows it with the space before it.
fn split_field(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let line = line.trim_ascii_start();
    line.split_at_checked(line.iter().position(|byte| *byte == b' ')?)
}

fn holds_any(pid: i32, inodes: &[u64]) -> bool {
    let links: Vec<PathBuf> = inodes.iter().map(|inode| PathBuf::from(format!("socket:[{inode}]"))).collect();
    let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    descriptors.flatten().any(|entry| fs::read_link(entry.path()).is_ok_and(|link| links.contains(&link)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn lines_of_the_table_are_told_apart() {
        let table = b"Num       RefCount Protocol Flags    Type St Inode Path\n\
            0000000079ae6454: 00000003 00000000 00000000 0001 03 32826726\n\
            0000000079ae6455: 00000002 00000000 00010000 0001 01     4711 /run/a b/qmp.sock\n\
            0000000079ae6456: 00000003 00000000 00000000 0001 03 12 /run/a b/qmp.sock\n\
            0000000079ae6457: 00000002 00000000 00010000 0001 01 13 /run/a b/qmp.sock2\n\
            a broken line\n";
        assert_eq!(inodes_of(table, Path::new("/run/a b/qmp.sock")), [4711, 12]);
        assert_eq!(inodes_of(table, Path::new("/run/a")), [0u64; 0]);
        assert_eq!(inodes_of(b"", Path::new("/run/a")), [0u64; 0]);
    }

    #[test]
    fn our_own_socket_has_no_other_holder() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("qmp.sock");
        let _listener = UnixListener::bind(&path).expect("bound");
        let table = fs::read(SOCKETS).expect("the table");
        let inodes = inodes_of(&table, &path);
        assert_eq!(inodes.len(), 1, "the kernel's table has it");
        assert!(holds_any(process::id() as i32, &inodes), "and it is found among our descriptors");
        assert!(holder_of(&path).expect("looked").is_none(), "nobody else has it");
    }
}
