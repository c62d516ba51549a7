//! One session of the workload: a report each second, and the host's commands in between.
//!
//! Commands, one a line: `report` (one more now), `stop` (end the workload, sync, final report), `dump` (the version
//! table), `poweroff`. Answers are JSON lines; `dump` is followed by as many raw bytes as its line says.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{latency::Latencies, ram::Ram, workload::Workload};

/// Between two reports, unless one is asked for.
const REPORT_EACH: Duration = Duration::from_secs(1);

/// How long to wait before looking again at a port whose host end is closed: it reads as ended and polls as hung up all
/// the time, so there is no event to wait for.
const PORT_RETRY: Duration = Duration::from_millis(20);

/// Longer lines are no command of ours; reading stops there, so that a host cannot fill the guest's memory.
const LINE_LIMIT: u64 = 256;

/// Commands queued before the reading thread waits.
const COMMAND_QUEUE: usize = 16;

/// What the host can ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// A report now.
    Report,
    /// End of the workload.
    Stop,
    /// The version table.
    Dump,
    /// End of the machine.
    Poweroff,
}

impl Command {
    /// The command in a line, if it is one.
    pub fn parse(line: &str) -> Option<Command> {
        match line.trim() {
            "report" => Some(Command::Report),
            "stop" => Some(Command::Stop),
            "dump" => Some(Command::Dump),
            "poweroff" => Some(Command::Poweroff),
            _ => None,
        }
    }
}

/// A workload, what it has told, and the port it tells it on.
pub struct Session<W> {
    workload: Workload,
    seed: u64,
    ram: Arc<Ram>,
    ticks: Arc<AtomicU64>,
    port: W,
    total: Latencies,
}

impl<W: Write> Session<W> {
    /// A session that reports to `port`.
    pub fn new(workload: Workload, seed: u64, ram: Arc<Ram>, ticks: Arc<AtomicU64>, port: W) -> Session<W> {
        Session { workload, seed, ram, ticks, port, total: Latencies::default() }
    }

    /// Reports and obeys until `poweroff`, the end of `commands`, or `limit`.
    pub fn run(&mut self, commands: &Receiver<Command>, limit: Option<Duration>) -> io::Result<()> {
        let started = Instant::now();
        let left = |now: Instant| limit.map_or(REPORT_EACH, |limit| limit.saturating_sub(now - started));
        self.tell("ready")?;
        loop {
            let wait = left(Instant::now()).min(REPORT_EACH);
            if wait.is_zero() {
                return Ok(());
            }
            match commands.recv_timeout(wait) {
                Ok(Command::Report) | Err(RecvTimeoutError::Timeout) => self.tell("report")?,
                Ok(Command::Stop) => self.stop()?,
                Ok(Command::Dump) => self.dump()?,
                Ok(Command::Poweroff) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
        }
    }

    /// Ends the workload and tells the totals. A second call tells them again.
    pub fn stop(&mut self) -> io::Result<()> {
        self.workload.stop()?;
        self.tell("final")
    }

    /// The version table in its dump format.
    pub fn versions(&self) -> Vec<u8> {
        self.workload.shared().versions.dump(self.seed)
    }

    /// Whether everything read so far, and all RAM, is as it was written.
    pub fn clean(&self) -> bool {
        let tally = &self.workload.shared().tally;
        tally.corrupt.load(Ordering::Acquire) + tally.errors.load(Ordering::Acquire) + self.ram.wrong() == 0
    }

    fn dump(&mut self) -> io::Result<()> {
        let versions = self.versions();
        writeln!(self.port, "{{\"kind\":\"dump\",\"bytes\":{}}}", versions.len())?;
        self.port.write_all(&versions)?;
        self.port.flush()
    }

    /// One JSON line. A report's latencies are those since the last line; the final ones are those of all.
    fn tell(&mut self, kind: &str) -> io::Result<()> {
        let is_final = kind == "final";
        let recent = self.workload.shared().tally.take_latencies();
        self.total.merge(&recent);
        let latencies = if is_final { &self.total } else { &recent };
        // Walking all RAM and all versions takes milliseconds in a slow guest, so only the final line does it.
        let sums = if is_final {
            format!(",\"version_sum\":{},\"ram_wrong\":{}", self.workload.shared().versions.sum(), self.ram.wrong())
        } else {
            String::new()
        };
        let line = self.line(kind, latencies, &sums);
        self.port.write_all(line.as_bytes())?;
        self.port.flush()
    }

    fn line(&self, kind: &str, latencies: &Latencies, sums: &str) -> String {
        let tally = &self.workload.shared().tally;
        let count = |counter: &AtomicU64| counter.load(Ordering::Acquire);
        format!(
            "{{\"kind\":\"{kind}\",\"reads\":{},\"writes\":{},\"corrupt\":{},\"errors\":{},\"overlapped\":{},\"ticks\":{},\
             \"read_us\":{{\"p50\":{},\"p99\":{},\"max\":{}}},\"journal\":\"{:016x}\"{sums}}}\n",
            count(&tally.reads),
            count(&tally.writes),
            count(&tally.corrupt),
            count(&tally.errors),
            count(&tally.overlapped),
            count(&self.ticks),
            latencies.quantile(0.5),
            latencies.quantile(0.99),
            latencies.max(),
            count(&tally.journal),
        )
    }
}

/// Reads commands from `port` on a thread of their own; lines that `parse` does not know are left out. The host end may close
/// and open again: a guest that was moved has a new host.
pub fn listen<C: Send + 'static>(
    port: impl Read + Send + 'static,
    parse: fn(&str) -> Option<C>,
) -> io::Result<Receiver<C>> {
    let (sender, receiver) = mpsc::sync_channel(COMMAND_QUEUE);
    let listen = move || {
        let mut port = BufReader::new(port);
        let mut line = Vec::new();
        loop {
            match (&mut port).take(LINE_LIMIT).read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => thread::sleep(PORT_RETRY),
                Ok(_) if !line.ends_with(b"\n") && (line.len() as u64) < LINE_LIMIT => {}
                Ok(_) => {
                    let command = parse(&String::from_utf8_lossy(&line));
                    line.clear();
                    if let Some(command) = command
                        && sender.send(command).is_err()
                    {
                        return;
                    }
                }
            }
        }
    };
    thread::Builder::new().name("commands".to_owned()).spawn(listen)?;
    Ok(receiver)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read_and_noise_is_not() {
        let noise = "x".repeat(10_000);
        let text = format!("report\n{noise}\nstop\r\n\n\u{0}\ndump\npoweroff\n");
        let commands = listen(io::Cursor::new(text.into_bytes()), Command::parse).unwrap();
        let heard: Vec<Command> = (0..4).map(|_| commands.recv().unwrap()).collect();
        assert_eq!(heard, [Command::Report, Command::Stop, Command::Dump, Command::Poweroff]);
    }
}
