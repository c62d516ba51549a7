//! A command of the operator that says whether a guest is well: exit code 0 is yes.
//!
//! It is told by its environment where the guest is: `GNOMON_VM`, `GNOMON_QMP`, `GNOMON_CONSOLE` (what the guest has
//! said on its first serial port, a file), and `GNOMON_PORT_NAME` for each of its channels.

use std::{
    io::Read,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use gnomon_machine::verdict::Sign;
use gnomon_qemu::{Qemu, VmPaths};

/// How often a probe that runs is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// The end of what a probe said that is told.
const SAID: usize = 400;

/// A probe under way. Dropping it ends it.
pub struct Probe {
    child: Child,
    began: Instant,
    patience: Duration,
}

impl Probe {
    /// Starts `command` by a shell, for the guest of `qemu`.
    pub fn start(command: &str, vm: &str, qemu: &Qemu, patience: Duration) -> std::io::Result<Probe> {
        let mut shell = Command::new("/bin/sh");
        shell.arg("-c").arg(command).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        shell.env("GNOMON_VM", vm).env("GNOMON_QMP", &qemu.record().qmp);
        if let Some(dir) = qemu.record().qmp.parent() {
            shell.env("GNOMON_CONSOLE", VmPaths::new(dir).console_log());
        }
        for port in qemu.record().spec.iter().flat_map(|spec| &spec.ports) {
            shell.env(variable(&port.name), &port.socket);
        }
        Ok(Probe { child: shell.spawn()?, began: Instant::now(), patience })
    }

    /// Waits for its end, at most as long as it may take, or until `stop` says so; what speaks against the guest.
    pub fn wait(mut self, mut stop: impl FnMut() -> bool) -> Option<Sign> {
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) if status.success() => return None,
                Ok(Some(status)) => return Some(Sign::ProbeFailed { code: status.code(), said: self.said() }),
                Ok(None) if self.began.elapsed() >= self.patience => return Some(Sign::ProbeHung),
                Ok(None) if stop() => return None,
                Ok(None) => thread::sleep(LOOK),
                Err(error) => return Some(Sign::ProbeFailed { code: None, said: error.to_string() }),
            }
        }
    }

    /// The end of what it said, on both streams.
    fn said(&mut self) -> String {
        let mut bytes = Vec::new();
        // It has ended, so there is an end to read to; a grandchild that keeps a pipe open is not waited for longer
        // than the pipe's buffer, which is what the limit is for.
        if let Some(out) = &mut self.child.stdout {
            let _ = out.take(64 << 10).read_to_end(&mut bytes);
        }
        if let Some(err) = &mut self.child.stderr {
            let _ = err.take(64 << 10).read_to_end(&mut bytes);
        }
        let text = String::from_utf8_lossy(&bytes);
        let text = text.trim();
        let start = text.char_indices().rev().nth(SAID).map_or(0, |(at, _)| at);
        text[start..].to_string()
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The variable that names a port's socket: letters and digits as they are, upper case, everything else `_`.
fn variable(port: &str) -> String {
    let upper = port.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' });
    format!("GNOMON_PORT_{}", upper.collect::<String>())
}

/// The bytes that were appended to a file since it was `from` bytes long, at most 1 MiB of them.
pub fn appended(file: &Path, from: u64) -> Vec<u8> {
    use std::os::unix::fs::FileExt;
    const MOST: u64 = 1 << 20;
    let Ok(file) = std::fs::File::open(file) else { return Vec::new() };
    let len = file.metadata().map_or(0, |metadata| metadata.len()).saturating_sub(from).min(MOST);
    let mut bytes = vec![0; len as usize];
    match file.read_at(&mut bytes, from) {
        Ok(read) => bytes.truncate(read),
        Err(_) => bytes.clear(),
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_become_variables() {
        for (port, name) in [("heart", "GNOMON_PORT_HEART"), ("org.qemu-agent.0", "GNOMON_PORT_ORG_QEMU_AGENT_0")] {
            assert_eq!(variable(port), name);
        }
    }

    #[test]
    fn only_what_is_new_is_read() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), b"old new").expect("written");
        assert_eq!(appended(file.path(), 4), b"new");
        assert_eq!(appended(file.path(), 99), b"");
        assert_eq!(appended(Path::new("/nowhere"), 0), b"");
    }
}
