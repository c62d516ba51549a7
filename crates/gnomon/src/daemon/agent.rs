//! The agent of a guest, as the host hears it: on a virtio-serial port called `agent`, one line a second.
//!
//! Guests are not trusted: a look reads a bounded number of bytes, what is no report is counted and forgotten, and a
//! guest that floods its port waits for itself, for QEMU takes no more from it than we read.

use std::{
    io::{ErrorKind, Read},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use gnomon_proto::report::{Lines, Report};
use gnomon_qemu::{PortSpec, Qemu};

use crate::api::types::{AgentView, PressureView};

/// The port's name, in the guest and in a VM's description.
pub const PORT: &str = "agent";
/// The most that is read at a look: a hundred beats.
const LOOK_LIMIT: usize = 16 << 10;
/// A guest that was heard within this time is one that beats: five beats.
const BEATS_WITHIN: Duration = Duration::from_secs(5);

/// A listener on one guest's port. QEMU lets one client at a time listen.
#[derive(Debug, Default)]
pub struct Ear {
    stream: Option<UnixStream>,
    lines: Lines,
    last: Option<(Report, Instant)>,
    faults: u64,
}

impl Ear {
    /// A listener on the guest of `qemu`; deaf when the guest has no such port, or somebody else listens to it.
    pub fn of(qemu: &Qemu) -> Ear {
        let spec = qemu.record().spec.as_ref();
        let port = spec.and_then(|spec| spec.ports.iter().find(|port| port.name == PORT));
        Ear { stream: port.and_then(connect), ..Ear::default() }
    }

    /// Takes in what has come since the last look. Does not wait.
    pub fn listen(&mut self) {
        let mut bytes = [0; 4096];
        let mut left = LOOK_LIMIT;
        while let Some(stream) = self.stream.as_mut().filter(|_| left > 0) {
            match stream.read(&mut bytes[..left.min(4096)]) {
                Ok(0) => self.stream = None,
                Ok(len) => {
                    left -= len;
                    self.take_in(&bytes[..len]);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => self.stream = None,
            }
        }
    }

    fn take_in(&mut self, bytes: &[u8]) {
        for told in self.lines.take_in(bytes) {
            match told {
                Ok(report) => self.last = Some((report, Instant::now())),
                Err(_) => self.faults += 1,
            }
        }
    }

    /// When it was last heard.
    pub fn heard(&self) -> Option<Instant> {
        self.last.map(|(_, at)| at)
    }

    /// Whether it beats.
    pub fn beats(&self) -> bool {
        self.heard().is_some_and(|at| at.elapsed() < BEATS_WITHIN)
    }

    /// What it last said, as the API shows it; `None` when it was never heard.
    pub fn view(&self) -> Option<AgentView> {
        let (report, at) = self.last?;
        Some(AgentView {
            heard_s: at.elapsed().as_secs_f64(),
            seq: report.seq,
            up_s: report.up.as_secs_f64(),
            memory_total: report.total.0,
            memory_available: report.available.0,
            memory_free: report.free.0,
            pressure: report.pressure.map(|pressure| PressureView {
                cpu: percent(pressure.cpu),
                memory: percent(pressure.memory),
                stalled: percent(pressure.stalled),
                io: percent(pressure.io),
            }),
            faults: self.faults,
        })
    }
}

fn connect(port: &PortSpec) -> Option<UnixStream> {
    let stream = UnixStream::connect(&port.socket).ok()?;
    stream.set_nonblocking(true).ok()?;
    Some(stream)
}

/// Hundredths of a percent as percent.
fn percent(hundredths: u32) -> f64 {
    f64::from(hundredths) / 100.0
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use gnomon_terms::Bytes;

    use super::*;

    fn heard_by_pair() -> (UnixStream, Ear) {
        let (guest, host) = UnixStream::pair().expect("a pair");
        host.set_nonblocking(true).expect("set");
        (guest, Ear { stream: Some(host), ..Ear::default() })
    }

    #[test]
    fn the_last_report_counts_and_noise_is_counted() {
        let (mut guest, mut ear) = heard_by_pair();
        ear.listen();
        assert!(ear.view().is_none() && !ear.beats());
        let report = |seq| Report { seq, total: Bytes(4096), available: Bytes(1024), ..Report::default() };
        write!(guest, "{}\nnoise\n{}\n{}", report(1), report(2), report(3)).expect("sent");
        ear.listen();
        let view = ear.view().expect("heard");
        assert_eq!((view.seq, view.faults, view.memory_available), (2, 1, 1024), "a line without an end is none");
        guest.write_all(b"\n").expect("sent");
        ear.listen();
        assert_eq!(ear.view().map(|view| view.seq), Some(3));
        assert!(ear.beats());
        drop(guest);
        ear.listen();
        assert_eq!(ear.view().map(|view| view.seq), Some(3), "what it said last is remembered");
    }

    #[test]
    fn a_flood_is_read_a_look_at_a_time() {
        let (mut guest, mut ear) = heard_by_pair();
        guest.set_nonblocking(true).expect("set");
        let mut sent = 0;
        while let Ok(len) = guest.write(&[b'\n'; 8192]) {
            sent += len;
        }
        assert!(sent > LOOK_LIMIT);
        ear.listen();
        assert_eq!(ear.faults, LOOK_LIMIT as u64);
    }
}
