//! The agent: runs in a guest, and tells the host once a second that the guest lives and how its memory does.
//!
//! ```text
//!   /proc/meminfo, /proc/pressure ──► Report ──► /dev/virtio-ports/agent ──► gnomon serve on the host
//! ```
//! It needs nothing in the guest but procfs, sysfs and the port (`gnomon vm run --agent`): one static program, some hundred KiB
//! of memory, no network. It cannot be asked to do anything.

mod memory;

use std::{
    env,
    fs::{self, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use gnomon_proto::report::Report;

/// How often it beats.
const BEAT: Duration = Duration::from_secs(1);
/// How long to wait before a port that is not there yet, or was taken away, is looked for again. Rare: a write to a port
/// whose host end is closed waits in the kernel until it is open.
const LOOK: Duration = Duration::from_millis(100);
/// Where the kernel shows the port called `agent`.
const PORT: &str = "/dev/virtio-ports/agent";
/// Where it is found when no udev has made that link.
const PORTS: &str = "/sys/class/virtio-ports";

const HELP: &str = "gnomon-agent [PORT]\n\n\
    Tells the host of this guest once a second that it lives, and how its memory does.\n\
    PORT is /dev/virtio-ports/agent unless named. It runs until it is killed.\n";

fn main() -> ExitCode {
    let mut words = env::args_os().skip(1);
    let (port, more) = (words.next(), words.next());
    match port.as_deref().and_then(|word| word.to_str()) {
        _ if more.is_some() => {
            eprint!("{HELP}");
            ExitCode::from(2)
        }
        Some("--help" | "-h") => {
            print!("{HELP}");
            ExitCode::SUCCESS
        }
        _ => beat(&port.map_or_else(|| PORT.into(), PathBuf::from)),
    }
}

/// Beats on `port` for ever.
fn beat(port: &Path) -> ExitCode {
    let begun = Instant::now();
    let mut seq = 0;
    let mut due = Duration::ZERO;
    loop {
        match open(port) {
            Ok(mut port) => loop {
                // The clock is what it waits for.
                thread::sleep(due.saturating_sub(begun.elapsed()));
                if tell(&mut port, seq).is_err() {
                    break;
                }
                seq += 1;
                // After a pause of the guest the missed beats are not made up for: the host sees that time has passed.
                due = (due + BEAT).max(begun.elapsed());
            },
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                eprintln!("gnomon-agent: {}: {error}: run it as root", port.display());
                return ExitCode::FAILURE;
            }
            Err(_) => {}
        }
        thread::sleep(LOOK);
    }
}

fn open(port: &Path) -> io::Result<impl Write> {
    let mut options = OpenOptions::new();
    match options.write(true).open(port) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && port == Path::new(PORT) => {
            options.open(device(Path::new(PORTS)).ok_or(error)?)
        }
        opened => opened,
    }
}

/// The device of the port called `agent`, as its `name` file says.
fn device(ports: &Path) -> Option<PathBuf> {
    fs::read_dir(ports).ok()?.flatten().find_map(|port| {
        let name = fs::read_to_string(port.path().join("name")).ok()?;
        (name.trim() == "agent").then(|| Path::new("/dev").join(port.file_name()))
    })
}

fn tell(port: &mut impl Write, seq: u64) -> io::Result<()> {
    let report = Report { seq, ..memory::look() };
    // In one write: a port takes a line as it is, and two would be two chances to be cut off.
    port.write_all(format!("{report}\n").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_is_found_by_its_name() {
        let ports = tempfile::tempdir().expect("a folder");
        assert_eq!(device(ports.path()), None);
        for (port, name) in [("vport1p1", "heart\n"), ("vport1p2", "agent\n")] {
            fs::create_dir(ports.path().join(port)).expect("a folder");
            fs::write(ports.path().join(port).join("name"), name).expect("written");
        }
        assert_eq!(device(ports.path()), Some(PathBuf::from("/dev/vport1p2")));
    }

    #[test]
    fn each_beat_is_a_report_with_the_next_number() {
        let mut port = Vec::new();
        (0..3).for_each(|seq| tell(&mut port, seq).expect("told"));
        let text = String::from_utf8(port).expect("text");
        let seqs: Vec<u64> = text.lines().map(|line| Report::parse(line.as_bytes()).expect("a report").seq).collect();
        assert_eq!(seqs, [0, 1, 2]);
    }
}
