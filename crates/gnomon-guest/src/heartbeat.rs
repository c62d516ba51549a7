//! The heartbeat: one line `seq guest_us` each tick. `seq` has no gap, so a host that sees one has lost a beat; the
//! host stamps the arrivals, so a pause of the guest shows as a distance between two of them.

use std::{
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::ram::Ram;

/// How long to wait before a port that took nothing is tried again: a beat. One whose host end is closed polls as hung up
/// all the time, so there is no event to wait for.
const PORT_RETRY: Duration = Duration::from_millis(1);

/// Starts the thread that beats on `port` until the machine is off. `ticks` counts the beats.
///
/// A late beat is sent at once and the rhythm kept: after a pause the missed ones follow in a burst. The thread asks
/// for the highest ordinary priority, for it must not wait behind the workload.
pub fn start(
    mut port: impl Write + Send + 'static,
    tick: Duration,
    dirty: u64,
    ram: Arc<Ram>,
) -> io::Result<Arc<AtomicU64>> {
    let ticks = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&ticks);
    let beat = move || {
        let _ = rustix::process::setpriority_process(None, -20);
        let started = Instant::now();
        let mut due = Duration::ZERO;
        for seq in 0u64.. {
            // The clock is what it waits for.
            thread::sleep(due.saturating_sub(started.elapsed()));
            ram.dirty(dirty);
            let line = format!("{seq} {}\n", started.elapsed().as_micros());
            send(&mut port, line.as_bytes());
            counter.store(seq + 1, Ordering::Release);
            due += tick;
        }
    };
    thread::Builder::new().name("heartbeat".to_owned()).spawn(beat)?;
    Ok(ticks)
}

/// Sends all of `bytes`, however long the host end takes to be there: after a move it may be away for a moment, and a
/// beat dropped then would look like one that the move lost.
pub fn send(port: &mut impl Write, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        match port.write(bytes) {
            Ok(0) | Err(_) => thread::sleep(PORT_RETRY),
            Ok(sent) => bytes = bytes.get(sent..).unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    /// A port that hands each line to the test.
    struct Port(mpsc::Sender<String>);

    impl Write for Port {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let line = String::from_utf8_lossy(bytes).into_owned();
            self.0.send(line).map_err(|_| io::ErrorKind::BrokenPipe)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A port that takes one byte at each second call and refuses in between.
    struct Reluctant(Vec<u8>, bool);

    impl Write for Reluctant {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1 = !self.1;
            if self.1 {
                return Err(io::ErrorKind::NotConnected.into());
            }
            self.0.extend(&bytes[..1]);
            Ok(1)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_port_that_refuses_loses_nothing() {
        let mut port = Reluctant(Vec::new(), false);
        send(&mut port, b"7 7001\n");
        assert_eq!(port.0, b"7 7001\n");
    }

    #[test]
    fn beats_are_contiguous_and_not_early() {
        let (sender, lines) = mpsc::channel();
        let ticks = start(Port(sender), Duration::from_millis(1), 1, Arc::new(Ram::new(0, 1))).unwrap();
        for expected in 0u64..50 {
            let line = lines.recv().unwrap();
            let (seq, micros) = line.trim_end().split_once(' ').unwrap();
            assert_eq!(seq.parse(), Ok(expected));
            assert!(micros.parse::<u64>().unwrap() >= expected * 1000, "beat {line:?} came early");
        }
        assert!(ticks.load(Ordering::Acquire) >= 49);
    }
}
