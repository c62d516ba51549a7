//! The record of a running QEMU: what must be known to find it again, and not another in its place.

use std::{
    fs,
    io::{self, Write},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

use super::ProcessError;
use crate::{
    ram::RamRecord,
    spec::{QemuVersion, Resolved, VmSpec},
};

/// The largest record we read. A spec with a hundred disks is 30 KB.
const RECORD_LIMIT: u64 = 1 << 20;

/// A QEMU process, told apart from every other that had or will have its number: processes of one boot with the same
/// number differ in when they started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QemuRecord {
    /// The guest's name.
    pub name: String,
    /// The process.
    pub pid: i32,
    /// When it started, in clock ticks since the boot.
    pub start_ticks: u64,
    /// Which boot.
    pub boot_id: String,
    /// Its monitor's socket.
    pub qmp: PathBuf,
    /// Where its output goes; `None` when it is not ours.
    pub log: Option<PathBuf>,
    /// Which QEMU.
    pub version: QemuVersion,
    /// Its RAM, when gnomon made it; records of before that have none.
    #[serde(default)]
    pub ram: Option<RamRecord>,
    /// The guest; `None` when gnomon did not start it.
    pub spec: Option<VmSpec>,
    /// The guest, settled; `None` when gnomon did not start it.
    pub resolved: Option<Resolved>,
}

impl QemuRecord {
    /// Records a living process.
    pub(super) fn of(name: &str, pid: i32, qmp: &Path, version: QemuVersion) -> Result<QemuRecord, ProcessError> {
        Ok(QemuRecord {
            name: name.to_string(),
            pid,
            start_ticks: start_ticks(pid)?.ok_or(ProcessError::Gone { pid, why: "it has ended" })?,
            boot_id: boot_id()?,
            qmp: qmp.to_path_buf(),
            log: None,
            version,
            ram: None,
            spec: None,
            resolved: None,
        })
    }

    /// Reads a record that [`crate::Qemu::launch`] wrote.
    pub fn read(path: &Path) -> Result<QemuRecord, ProcessError> {
        let bad = |what: String| ProcessError::BadRecord { path: path.to_path_buf(), what };
        let size = fs::metadata(path).map_err(|e| ProcessError::file("read", path, e))?.len();
        if size > RECORD_LIMIT {
            return Err(bad(format!("it has {size} bytes; records have less than {RECORD_LIMIT}")));
        }
        let text = fs::read(path).map_err(|e| ProcessError::file("read", path, e))?;
        serde_json::from_slice(&text).map_err(|e| bad(e.to_string()))
    }

    /// Writes it whole or not at all; durable when this returns.
    pub fn write(&self, path: &Path) -> Result<(), ProcessError> {
        let text = serde_json::to_vec_pretty(self).expect("a record has nothing that JSON cannot hold");
        let file = |e: io::Error| ProcessError::file("write", path, e);
        let dir = path.parent().unwrap_or(Path::new("."));
        let mut fresh = tempfile::NamedTempFile::new_in(dir).map_err(file)?;
        fresh.write_all(&text).and_then(|()| fresh.as_file().sync_all()).map_err(file)?;
        fresh.persist(path).map_err(|e| file(e.error))?;
        fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(file)
    }

    /// Whether the recorded process still runs.
    pub fn is_running(&self) -> bool {
        self.open().is_ok()
    }

    /// Opens the recorded process. The descriptor is opened before the start time is compared: once open it can
    /// not come to mean another process.
    pub(super) fn open(&self) -> Result<OwnedFd, ProcessError> {
        let gone = |why| ProcessError::Gone { pid: self.pid, why };
        if boot_id()? != self.boot_id {
            return Err(gone("the host has been booted since"));
        }
        let pid =
            Some(self.pid).filter(|&pid| pid > 0).and_then(Pid::from_raw).ok_or(gone("that is no process number"))?;
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(rustix::io::Errno::SRCH | rustix::io::Errno::INVAL) => return Err(gone("it has ended")),
            Err(e) => return Err(ProcessError::Watch { pid: self.pid, source: e.into() }),
        };
        match start_ticks(self.pid)? {
            Some(ticks) if ticks == self.start_ticks => Ok(pidfd),
            Some(_) => Err(gone("another process has its number now")),
            None => Err(gone("it has ended")),
        }
    }
}

/// When a process started; `None` when there is none, or what is left of it only waits to be reaped.
fn start_ticks(pid: i32) -> Result<Option<u64>, ProcessError> {
    let path = PathBuf::from(format!("/proc/{pid}/stat"));
    match fs::read_to_string(&path) {
        Ok(stat) => Ok(parse_start(&stat)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        // The process ended between open and read.
        Err(e) if e.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => Ok(None),
        Err(e) => Err(ProcessError::file("read", &path, e)),
    }
}

/// Field 22 of `/proc/PID/stat`, unless field 3 says that the process is dead. Field 2 is the program's name in
/// parentheses and may itself hold parentheses and spaces, so counting starts at the last one.
///
/// Source: proc_pid_stat(5).
fn parse_start(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    match fields.next()? {
        "Z" | "X" => None,
        _ => fields.nth(18)?.parse().ok(),
    }
}

fn boot_id() -> Result<String, ProcessError> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    fs::read_to_string(path).map(|id| id.trim().to_string()).map_err(|e| ProcessError::file("read", path, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own_record() -> QemuRecord {
        let version = QemuVersion { major: 7, minor: 2, micro: 22 };
        QemuRecord::of("web", std::process::id() as i32, Path::new("/q"), version).expect("we live")
    }

    #[test]
    fn the_start_is_found_behind_any_name() {
        let rest = "S 1 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 0";
        let table = [
            (format!("7 (qemu) {rest}"), Some(4711)),
            (format!("7 (a) S 9) 3 (b) {rest}"), Some(4711)),
            (format!("7 (qemu) {}", rest.replacen('S', "Z", 1)), None),
            ("7 (qemu) S 1 1".to_string(), None),
            (String::new(), None),
        ];
        for (stat, start) in table {
            assert_eq!(parse_start(&stat), start, "{stat}");
        }
    }

    #[test]
    fn a_process_that_lives_is_found_again() {
        assert!(own_record().is_running());
    }

    #[test]
    fn a_number_that_was_given_away_is_not_mistaken() {
        let mut record = own_record();
        record.start_ticks -= 1;
        let error = record.open().expect_err("another process");
        assert!(matches!(error, ProcessError::Gone { why: "another process has its number now", .. }), "{error}");
        let error = QemuRecord { boot_id: "x".into(), ..own_record() }.open().expect_err("another boot");
        assert!(error.to_string().contains("booted since"), "{error}");
        for pid in [0, -1, i32::MAX] {
            let error = QemuRecord { pid, ..own_record() }.open().expect_err("nobody");
            assert!(matches!(error, ProcessError::Gone { .. }), "{error}");
        }
    }

    #[test]
    fn a_record_is_written_whole_and_read_back() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("qemu.json");
        own_record().write(&path).expect("written");
        assert_eq!(QemuRecord::read(&path).expect("read"), own_record());
        fs::write(&path, "{").expect("overwritten");
        assert!(matches!(QemuRecord::read(&path), Err(ProcessError::BadRecord { .. })));
    }
}
