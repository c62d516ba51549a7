//! Starting a process that is not bound to us, and reading what it said.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
};

use rustix::{
    io::{FdFlags, fcntl_setfd},
    process::{Pid, PidfdFlags, pidfd_open, setsid},
};

use super::{ExitWatch, ProcessError};

/// How much of the end of a log is read for an error: enough for the longest message of QEMU (a list of valid
/// choices) and bounded whatever the guest made QEMU print.
const WORDS_BYTES: u64 = 4 << 10;

/// How many lines of it are told.
const WORDS_LINES: usize = 6;

/// What to start.
pub(crate) struct Spawn<'a> {
    /// The program.
    pub(crate) program: &'a Path,
    /// Its arguments.
    pub(crate) args: &'a [String],
    /// Descriptors it gets under the same numbers. They stay open in the caller until this returns.
    pub(crate) inherit: &'a [i32],
    /// Where its output goes. What was there before is kept as `….old`.
    pub(crate) log: &'a Path,
}

/// Starts a process in a session of its own. It is reaped by its watch, so the caller need not wait for it.
pub(crate) fn spawn(spawn: &Spawn<'_>) -> Result<(i32, Arc<OwnedFd>, ExitWatch), ProcessError> {
    let log = fresh_log(spawn.log).map_err(|e| ProcessError::file("write", spawn.log, e))?;
    let both = log.try_clone().map_err(|e| ProcessError::file("write", spawn.log, e))?;
    let inherit = spawn.inherit.to_vec();
    let mut command = Command::new(spawn.program);
    command.args(spawn.args).stdin(Stdio::null()).stdout(log).stderr(both);
    // SAFETY: the closure runs in the child between fork and exec. It makes system calls only, neither allocates
    // nor takes locks, and the descriptors it names are open: the caller keeps them open until `spawn` returns.
    unsafe {
        command.pre_exec(move || {
            setsid()?;
            inherit.iter().try_for_each(|&fd| fcntl_setfd(BorrowedFd::borrow_raw(fd), FdFlags::empty()))?;
            Ok(())
        });
    }
    let child = command.spawn().map_err(|e| ProcessError::file("run", spawn.program, e))?;
    let number = child.id() as i32;
    // The child is not reaped yet, so its number cannot have been given to another.
    let pid = Pid::from_child(&child);
    let pidfd =
        pidfd_open(pid, PidfdFlags::empty()).map_err(|e| ProcessError::Watch { pid: number, source: e.into() })?;
    let pidfd = Arc::new(pidfd);
    let watch = ExitWatch::over(Arc::clone(&pidfd), number)?;
    Ok((number, pidfd, watch))
}

fn fresh_log(path: &Path) -> io::Result<File> {
    let mut old = path.as_os_str().to_os_string();
    old.push(".old");
    match fs::rename(path, old) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    File::options().append(true).create_new(true).open(path)
}

/// The last lines of a log on one line, printable. Empty when there are none or it cannot be read: it serves to
/// explain another error.
pub(crate) fn last_words(log: &Path) -> String {
    read_tail(log).map(|tail| tidy(&tail)).unwrap_or_default()
}

fn read_tail(log: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(log)?;
    let size = file.metadata()?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(WORDS_BYTES)))?;
    let mut tail = Vec::new();
    file.take(WORDS_BYTES).read_to_end(&mut tail)?;
    Ok(tail)
}

/// Lines are joined, and control characters (a terminal's escapes from a guest) made harmless.
fn tidy(tail: &[u8]) -> String {
    let text = String::from_utf8_lossy(tail);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let last = &lines[lines.len().saturating_sub(WORDS_LINES)..];
    last.join("; ").chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_told_harmlessly() {
        let table: [(&[u8], &str); 4] = [
            (b"", ""),
            (b"one\n\n two \n", "one; two"),
            (b"1\n2\n3\n4\n5\n6\n7\n", "2; 3; 4; 5; 6; 7"),
            (b"\x1b[2Jred\xff", "\u{fffd}[2Jred\u{fffd}"),
        ];
        for (tail, words) in table {
            assert_eq!(tidy(tail), words);
        }
    }

    #[test]
    fn only_the_end_of_a_long_log_is_read() {
        let dir = tempfile::tempdir().expect("a directory");
        let log = dir.path().join("log");
        fs::write(&log, [vec![b'x'; 100_000], b"\nthe end\n".to_vec()].concat()).expect("written");
        assert!(read_tail(&log).expect("read").len() as u64 <= WORDS_BYTES);
        assert!(last_words(&log).ends_with("; the end"));
        assert_eq!(last_words(&dir.path().join("absent")), "");
    }
}
