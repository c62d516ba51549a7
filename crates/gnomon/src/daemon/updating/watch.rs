//! Watching a guest for signs that something is wrong with it.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use gnomon_forecast::series::Interval;
use gnomon_machine::verdict::{Side, Sign, trouble_on_console};
use gnomon_qemu::{EventError, EventStream, Qemu, QmpEvent, VmPaths};

use super::probe::appended;
use crate::daemon::{
    agent::Ear,
    vitals::{Expected, Rates, Reading, Vitals},
};

/// How long one wait for an event is: how soon a wish to cancel is seen.
const LOOK: Duration = Duration::from_millis(100);
/// A guest is compared with its history over at least this long: less is noise.
const LEAST: Duration = Duration::from_secs(3);

/// How long a guest whose agent beats once a second may be silent.
const SILENT: Duration = Duration::from_secs(5);

/// How the agent of a guest under watch is heard.
pub enum Pulse {
    /// It was not heard before: its silence says nothing.
    None,
    /// It speaks on the port of a copy, which nobody else listens to.
    Copy(Ear),
    /// It is the VM's own, which is listened to anyway.
    Own(Arc<Vitals>, String),
}

/// A guest under watch.
pub struct Watch {
    qemu: Arc<Qemu>,
    pulse: Pulse,
    events: EventStream,
    console: Option<PathBuf>,
    /// How long the console's log was when the watch began.
    heard: u64,
    began: Instant,
    first: Option<Reading>,
}

impl Watch {
    /// Begins to watch: from here on nothing is missed. Before the guest runs, so that its first steps are seen.
    pub fn begin(qemu: &Arc<Qemu>, pulse: Pulse) -> Watch {
        let console = qemu.record().qmp.parent().map(|dir| VmPaths::new(dir).console_log());
        let heard = console.as_ref().and_then(|log| log.metadata().ok()).map_or(0, |metadata| metadata.len());
        Watch {
            events: qemu.qmp().events(),
            console,
            heard,
            began: Instant::now(),
            first: Reading::of(qemu),
            pulse,
            qemu: Arc::clone(qemu),
        }
    }

    /// Watches until `until` or the first hard sign, or until `stop` says so.
    pub fn until(&mut self, until: Instant, mut stop: impl FnMut() -> bool) -> Vec<Sign> {
        let mut signs = Vec::new();
        while signs.is_empty() && Instant::now() < until && !stop() {
            let left = until.saturating_duration_since(Instant::now()).min(LOOK);
            match self.events.next(left) {
                Ok(event) => signs.extend(sign_of(&event)),
                Err(EventError::Timeout) => {}
                Err(EventError::Closed(_)) => signs.push(self.ended()),
            }
            signs.extend(self.console_sign());
            signs.extend(self.silence());
        }
        signs
    }

    /// From here on is measured what the guest does: what it did until now was other work than it usually has.
    pub fn measure_anew(&mut self) {
        (self.began, self.first) = (Instant::now(), Reading::of(&self.qemu));
    }

    /// How the guest compares with what was expected of it, where more is worse: a copy without a network does less than
    /// its original, and that says nothing. Nothing when it was watched for too short a time.
    pub fn compare(&self, expected: Option<&Expected>) -> Vec<Sign> {
        let (Some(expected), Some(rates)) = (expected, self.rates()) else { return Vec::new() };
        vec![
            unlike("processor time (seconds per second)", rates.cpu, expected.cpu),
            unlike("disk requests per second", rates.requests, expected.requests),
        ]
    }

    /// What it has done per second since the watch began; `None` when that is too short a time, or it does not answer.
    pub fn rates(&self) -> Option<Rates> {
        let first = self.first.as_ref().filter(|_| self.began.elapsed() >= LEAST)?;
        Some(Reading::of(&self.qemu)?.since(first))
    }

    fn ended(&self) -> Sign {
        let exited = self.qemu.wait_exit(Duration::from_secs(5));
        let how = exited.map_or_else(|| "its monitor closed".to_string(), |exited| exited.to_string());
        let words = self.qemu.last_words();
        Sign::Ended { how: if words.is_empty() { how } else { format!("{how}: {words}") } }
    }

    /// The agent beat before, and has not been heard since the watch began.
    fn silence(&mut self) -> Option<Sign> {
        let heard = match &mut self.pulse {
            Pulse::None => return None,
            Pulse::Copy(ear) => {
                ear.listen();
                ear.heard()
            }
            Pulse::Own(vitals, name) => vitals.heard(name),
        };
        let last = heard.map_or(self.began, |heard| heard.max(self.began));
        (last.elapsed() > SILENT).then(|| Sign::Silent { what: "the agent in the guest".to_string() })
    }

    fn console_sign(&self) -> Option<Sign> {
        let log = self.console.as_ref()?;
        trouble_on_console(&appended(log, self.heard)).map(|said| Sign::Panic { said })
    }
}

/// A number where more than expected is bad.
pub fn unlike(what: &'static str, seen: f64, expected: Interval) -> Sign {
    Sign::Unlike { what, seen, low: expected.low, high: expected.high, hurts: Side::Above }
}

/// What QEMU tells that speaks against a guest.
fn sign_of(event: &QmpEvent) -> Option<Sign> {
    let word = |key: &str| event.data[key].as_str().unwrap_or_default().to_string();
    match event.name.as_str() {
        "GUEST_PANICKED" => Some(Sign::Panic { said: format!("QEMU was told ({})", word("action")) }),
        "RESET" | "SHUTDOWN" | "WATCHDOG" | "SUSPEND" => Some(Sign::Restarted { event: event.name.clone() }),
        "BLOCK_IO_ERROR" => Some(Sign::DiskFailed {
            what: format!("{} of {}: {}", word("operation"), word("device"), word("reason")),
        }),
        _ => None,
    }
}
