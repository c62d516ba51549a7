//! How each VM usually is: what its QEMU does to the processor and to its disks, measured once a second, what that lets
//! expect, and what the agent in its guest says. Whoever tries an update on a copy of a guest compares the copy with this.

use std::{
    collections::BTreeMap,
    fs,
    sync::{Arc, Weak},
    thread,
    time::{Duration, Instant},
};

use gnomon_forecast::series::{EwmaForecaster, Interval, SeriesForecaster, Step};
use gnomon_qemu::Qemu;
use parking_lot::Mutex;

use super::{agent::Ear, vms::Vms};
use crate::api::types::AgentView;

/// How often VMs are looked at. A look costs two small files and one question to QEMU, some 0.3 ms.
const EVERY: Duration = Duration::from_secs(1);
/// How much the newest value weighs: the last ten seconds are two thirds of the level. A level, and not the blend of all
/// models: on steps of a second that costs hundreds of times as much and foresees no better (docs/series-and-location.md).
const NEWEST: f64 = 0.1;
/// Processor ticks a second, as the kernel counts them for everybody.
const TICKS: f64 = 100.0;

/// What a QEMU has done since it began.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reading {
    at: Instant,
    cpu: f64,
    requests: u64,
    memory: f64,
}

/// What it does, per second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Processor seconds.
    pub cpu: f64,
    /// Requests to its disks.
    pub requests: f64,
    /// Not per second: bytes of memory that are QEMU's own. RAM of the guest that is shared with others is not in it.
    pub memory: f64,
}

/// What is expected of a VM.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Expected {
    /// Processor seconds per second.
    pub cpu: Interval,
    /// Requests per second to its disks.
    pub requests: Interval,
    /// Bytes of memory that are QEMU's own.
    pub memory: Interval,
}

/// The history of one VM.
struct History {
    pid: i32,
    last: Reading,
    cpu: EwmaForecaster,
    requests: EwmaForecaster,
    memory: EwmaForecaster,
    ear: Ear,
}

/// The histories of all VMs.
#[derive(Default)]
pub struct Vitals {
    all: Mutex<BTreeMap<String, History>>,
}

impl Vitals {
    /// Begins to look, until `vms` are gone.
    pub fn start(vms: &Arc<Vms>) -> Arc<Vitals> {
        let vitals = Arc::new(Vitals::default());
        let (keep, vms) = (Arc::clone(&vitals), Arc::downgrade(vms));
        thread::spawn(move || {
            while keep.look(&vms) {
                thread::sleep(EVERY);
            }
        });
        vitals
    }

    /// Looks at every VM once; false when there is nobody to look at any more.
    fn look(&self, vms: &Weak<Vms>) -> bool {
        let Some(vms) = vms.upgrade() else { return false };
        let running = vms.running();
        // Before the lock: a QEMU that hangs answers late, and who asks for a history must not wait for it.
        let readings: Vec<_> = running.iter().map(|(_, qemu)| Reading::of(qemu)).collect();
        let mut all = self.all.lock();
        all.retain(|name, _| running.iter().any(|(running, _)| running == name));
        for ((name, qemu), reading) in running.into_iter().zip(readings) {
            let (Some(reading), pid) = (reading, qemu.record().pid) else { continue };
            match all.get_mut(&name).filter(|history| history.pid == pid) {
                Some(history) => history.note(reading),
                // Another QEMU counts from zero; what its guest does is as before.
                None => {
                    let before = all.remove(&name);
                    all.insert(name, History::begin(pid, reading, Ear::of(&qemu), before));
                }
            }
        }
        true
    }

    /// What the agent in a VM's guest last said; `None` when it was not heard since its QEMU or this daemon began.
    pub fn agent(&self, name: &str) -> Option<AgentView> {
        self.all.lock().get(name)?.ear.view()
    }

    /// When the agent of a VM was last heard.
    pub fn heard(&self, name: &str) -> Option<Instant> {
        self.all.lock().get(name)?.ear.heard()
    }

    /// Whether the agent of a VM beats.
    pub fn beats(&self, name: &str) -> bool {
        self.all.lock().get(name).is_some_and(|history| history.ear.beats())
    }

    /// What is expected of a VM, so that nine of ten seconds are within; `None` while too little has been seen.
    pub fn expected(&self, name: &str) -> Option<Expected> {
        const COVERAGE: f64 = 0.9;
        let all = self.all.lock();
        let history = all.get(name)?;
        let expected = |of: &EwmaForecaster| of.forecast(0, COVERAGE);
        Some(Expected {
            cpu: expected(&history.cpu)?,
            requests: expected(&history.requests)?,
            memory: expected(&history.memory)?,
        })
    }
}

impl History {
    fn begin(pid: i32, reading: Reading, ear: Ear, before: Option<History>) -> History {
        let fresh = || EwmaForecaster::new(NEWEST);
        let (cpu, requests, memory) = match before {
            Some(before) => (before.cpu, before.requests, before.memory),
            None => (fresh(), fresh(), fresh()),
        };
        History { pid, last: reading, cpu, requests, memory, ear }
    }

    fn note(&mut self, reading: Reading) {
        self.ear.listen();
        let rates = reading.since(&self.last);
        self.cpu.observe(&Step::of(rates.cpu));
        self.requests.observe(&Step::of(rates.requests));
        self.memory.observe(&Step::of(rates.memory));
        self.last = reading;
    }
}

impl Reading {
    /// Looks at a QEMU; `None` when it does not answer.
    pub fn of(qemu: &Qemu) -> Option<Reading> {
        let of_process = |file| fs::read_to_string(format!("/proc/{}/{file}", qemu.record().pid)).ok();
        let (stat, statm) = (of_process("stat")?, of_process("statm")?);
        let requests = qemu.qmp().query_block_requests().ok()?;
        Some(Reading { at: Instant::now(), cpu: cpu_seconds(&stat)?, requests, memory: own_memory(&statm)? })
    }

    /// What it did per second since an earlier look.
    pub fn since(&self, earlier: &Reading) -> Rates {
        let seconds = self.at.saturating_duration_since(earlier.at).as_secs_f64().max(1e-3);
        Rates {
            cpu: (self.cpu - earlier.cpu).max(0.0) / seconds,
            requests: self.requests.saturating_sub(earlier.requests) as f64 / seconds,
            memory: self.memory,
        }
    }
}

/// User and system time of a process, in seconds. Its name, in parentheses, may hold anything.
///
/// Source: proc_pid_stat(5), fields 14 and 15.
fn cpu_seconds(stat: &str) -> Option<f64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_whitespace().skip(11);
    let (user, system): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some((user + system) as f64 / TICKS)
}

/// Bytes of a process that it shares with no file and no other process.
///
/// Source: proc_pid_statm(5): resident pages, and those of them that are backed by a file or shared.
fn own_memory(statm: &str) -> Option<f64> {
    const PAGE: f64 = 4096.0;
    let mut fields = statm.split_whitespace().skip(1);
    let (resident, shared): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some(resident.saturating_sub(shared) as f64 * PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_found_behind_any_name() {
        let tail = "S 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20";
        for name in ["qemu", "a) b (", ") ) 9 9"] {
            assert_eq!(cpu_seconds(&format!("42 ({name}) {tail}")), Some(3.0), "{name}");
        }
        assert_eq!(cpu_seconds("42 qemu S 1"), None);
        assert_eq!(cpu_seconds(""), None);
    }

    #[test]
    fn memory_of_its_own_is_what_is_not_shared() {
        let table =
            [("900 50 20 5 0 9 0", Some(30.0 * 4096.0)), ("9 1 2", Some(0.0)), ("9 1", None), ("9 x y", None)];
        for (statm, bytes) in table {
            assert_eq!(own_memory(statm), bytes, "{statm}");
        }
    }

    #[test]
    fn rates_are_differences_over_time() {
        let begun = Instant::now();
        let first = Reading { at: begun, cpu: 10.0, requests: 1000, memory: 4096.0 };
        let second = Reading { at: begun + Duration::from_secs(2), cpu: 11.0, requests: 1500, memory: 8192.0 };
        assert_eq!(second.since(&first), Rates { cpu: 0.5, requests: 250.0, memory: 8192.0 });
        let reset = Reading { requests: 3, cpu: 0.0, ..second };
        assert_eq!(reset.since(&first), Rates { cpu: 0.0, requests: 0.0, memory: 8192.0 });
    }
}
