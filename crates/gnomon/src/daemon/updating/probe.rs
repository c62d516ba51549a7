//! A command of the operator that says whether a guest is well: exit code 0 is yes.
//!
//! It is told by its environment where the guest is: `GNOMON_VM`, `GNOMON_QMP`, `GNOMON_CONSOLE` (what the guest has
//! said on its first serial port, a file), and `GNOMON_PORT_NAME` for each of its channels.

use std::{
    io::{PipeReader, Read},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use gnomon_machine::verdict::Sign;
use gnomon_qemu::{Qemu, VmPaths};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{OFlags, fcntl_setfl},
    process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open},
};

/// How often whoever waits for a probe is asked whether to go on. Its end and what it says are heard at once.
const ASK: Duration = Duration::from_millis(100);
/// The end of what a probe said that is told.
const SAID: usize = 400;
/// Bytes of it that are kept: a character has up to four.
const KEPT: usize = 4 * SAID;

/// A probe under way. Dropping it ends it, with every process that it started and that did not leave its group.
pub struct Probe {
    child: Child,
    /// What it says on both streams, in the order of saying. Never waited for: whoever it left behind may hold it open.
    output: PipeReader,
    kept: Vec<u8>,
    began: Instant,
    patience: Duration,
}

impl Probe {
    /// Starts `command` by a shell, for the guest of `qemu`.
    pub fn start(command: &str, vm: &str, qemu: &Qemu, patience: Duration) -> std::io::Result<Probe> {
        let mut shell = shell(command);
        shell.env("GNOMON_VM", vm).env("GNOMON_QMP", &qemu.record().qmp);
        if let Some(dir) = qemu.record().qmp.parent() {
            shell.env("GNOMON_CONSOLE", VmPaths::new(dir).console_log());
        }
        for port in qemu.record().spec.iter().flat_map(|spec| &spec.ports) {
            shell.env(variable(&port.name), &port.socket);
        }
        Probe::spawn(shell, patience)
    }

    fn spawn(mut command: Command, patience: Duration) -> std::io::Result<Probe> {
        let (output, input) = std::io::pipe()?;
        fcntl_setfl(&output, OFlags::NONBLOCK)?;
        command.stdin(Stdio::null()).stdout(input.try_clone()?).stderr(input).process_group(0);
        let child = command.spawn()?;
        Ok(Probe { child, output, kept: Vec::new(), began: Instant::now(), patience })
    }

    /// Waits for its end, at most as long as it may take, or until `stop` says so; what speaks against the guest.
    pub fn wait(mut self, mut stop: impl FnMut() -> bool) -> Option<Sign> {
        loop {
            match self.listen() {
                Ok(true) => return self.judge(),
                Ok(false) if self.began.elapsed() >= self.patience => return Some(Sign::ProbeHung),
                Ok(false) if stop() => return None,
                Ok(false) => {}
                Err(error) => return Some(Sign::ProbeFailed { code: None, said: error.to_string() }),
            }
        }
    }

    /// Takes in what it says until it has ended, which is told, or until it is time to ask again. A pipe that nobody
    /// reads would hold it up.
    fn listen(&mut self) -> std::io::Result<bool> {
        let ended = pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty())?;
        let asked = Instant::now();
        loop {
            let is_open = self.hear();
            let left = ASK.min(self.patience.saturating_sub(self.began.elapsed())).saturating_sub(asked.elapsed());
            let mut waited = vec![PollFd::new(&ended, PollFlags::IN)];
            waited.extend(is_open.then(|| PollFd::new(&self.output, PollFlags::IN)));
            match poll(&mut waited, Timespec::try_from(left).ok().as_ref()) {
                Ok(_) if !waited[0].revents().is_empty() => return Ok(true),
                Ok(_) | Err(rustix::io::Errno::INTR) if left.is_zero() => return Ok(false),
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// What its end means.
    fn judge(&mut self) -> Option<Sign> {
        self.end_group();
        match self.child.wait() {
            Ok(status) if status.success() => None,
            Ok(status) => Some(Sign::ProbeFailed { code: status.code(), said: self.said() }),
            Err(error) => Some(Sign::ProbeFailed { code: None, said: error.to_string() }),
        }
    }

    /// Ends what it left behind. Before it is waited for: until then nobody else can have its number.
    fn end_group(&self) {
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
    }

    /// Takes in what has been said; whether more may come.
    fn hear(&mut self) -> bool {
        let mut bytes = [0; 4096];
        // Bounded, for a probe may say more without end.
        for _ in 0..64 {
            match self.output.read(&mut bytes) {
                Ok(0) => return false,
                Ok(read) => self.kept.extend_from_slice(&bytes[..read]),
                Err(error) => return error.kind() == std::io::ErrorKind::WouldBlock,
            }
            let surplus = self.kept.len().saturating_sub(KEPT);
            self.kept.drain(..surplus);
        }
        true
    }

    /// The end of what it said, on both streams.
    fn said(&mut self) -> String {
        self.hear();
        let text = String::from_utf8_lossy(&self.kept);
        let text = text.trim();
        let start = text.char_indices().rev().nth(SAID).map_or(0, |(at, _)| at);
        text[start..].to_string()
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            self.end_group();
            let _ = self.child.wait();
        }
    }
}

fn shell(command: &str) -> Command {
    let mut shell = Command::new("/bin/sh");
    shell.arg("-c").arg(command);
    shell
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

    /// What a shell's `command` leads to, that is given `patience`.
    fn sign_of(command: &str, patience: Duration) -> Option<Sign> {
        Probe::spawn(shell(command), patience).expect("a shell").wait(|| false)
    }

    const LONG: Duration = Duration::from_secs(600);

    #[test]
    fn a_probe_says_by_its_exit_code_whether_a_guest_is_well() {
        assert_eq!(sign_of("exit 0", LONG), None);
        let failed = |code, said: &str| Some(Sign::ProbeFailed { code: Some(code), said: said.to_string() });
        assert_eq!(sign_of("echo out; echo err >&2; exit 3", LONG), failed(3, "out\nerr"));
        assert_eq!(sign_of("sleep 600", Duration::from_millis(1)), Some(Sign::ProbeHung));
    }

    #[test]
    fn a_probe_that_says_much_ends_and_its_last_words_are_told() {
        let Some(Sign::ProbeFailed { said, .. }) = sign_of("head -c 1000000 /dev/zero; echo the end; exit 1", LONG)
        else {
            panic!("it has failed");
        };
        assert!(said.ends_with("the end") && said.len() <= SAID + 1, "{said}");
    }

    #[test]
    fn what_a_probe_left_behind_is_ended_and_not_waited_for() {
        let Some(Sign::ProbeFailed { said, .. }) = sign_of("sleep 600 & echo $!; exit 1", LONG) else {
            panic!("it has failed");
        };
        let left = Pid::from_raw(said.parse().expect("its number")).expect("a process");
        // It is killed, and has ended a moment later.
        if let Ok(ended) = pidfd_open(left, PidfdFlags::empty()) {
            let patience = Timespec::try_from(LONG).expect("a time");
            assert_eq!(poll(&mut [PollFd::new(&ended, PollFlags::IN)], Some(&patience)), Ok(1), "it lives on");
        }
    }

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
