//! What QEMU answers, read into types. Words that a newer QEMU may add are kept, never refused.

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use gnomon_terms::{Bytes, BytesPerSecond};

/// What the guest's processors are doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunState {
    /// Not started yet (`-S`).
    Prelaunch,
    /// Waits for an incoming migration.
    Inmigrate,
    /// Running.
    Running,
    /// Stopped by command.
    Paused,
    /// Stopped because a disk failed (`rerror=stop`); `cont` tries the request again.
    IoError,
    /// Stopped for the last part of an outgoing migration.
    FinishMigrate,
    /// Has been migrated away; `cont` makes this side run again.
    Postmigrate,
    /// The guest has shut down and QEMU was told not to exit.
    Shutdown,
    /// Anything else, in QEMU's word.
    Other(String),
}

impl RunState {
    pub(super) fn of(word: &str) -> RunState {
        match word {
            "prelaunch" => RunState::Prelaunch,
            "inmigrate" => RunState::Inmigrate,
            "running" => RunState::Running,
            "paused" => RunState::Paused,
            "io-error" => RunState::IoError,
            "finish-migrate" => RunState::FinishMigrate,
            "postmigrate" => RunState::Postmigrate,
            "shutdown" => RunState::Shutdown,
            other => RunState::Other(other.to_string()),
        }
    }
}

/// The answer to `query-status`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmStatus {
    /// Whether the guest's processors run.
    pub running: bool,
    /// In which state it is.
    pub state: RunState,
}

/// Where a migration stands, in QEMU's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MigrationStatus {
    /// There is none.
    None,
    /// About to begin.
    Setup,
    /// Copying while the guest runs.
    Active,
    /// The guest stands, and waits for `migrate-continue`.
    PreSwitchover,
    /// Sending the device state.
    Device,
    /// Cancel was asked for.
    Cancelling,
    /// Cancelled.
    Cancelled,
    /// Done.
    Completed,
    /// Failed.
    Failed,
    /// Anything else, in QEMU's word.
    Other(String),
}

impl MigrationStatus {
    pub(crate) fn of(word: &str) -> MigrationStatus {
        match word {
            "" | "none" => MigrationStatus::None,
            "setup" => MigrationStatus::Setup,
            "active" => MigrationStatus::Active,
            "pre-switchover" => MigrationStatus::PreSwitchover,
            "device" => MigrationStatus::Device,
            "cancelling" => MigrationStatus::Cancelling,
            "cancelled" => MigrationStatus::Cancelled,
            "completed" => MigrationStatus::Completed,
            "failed" => MigrationStatus::Failed,
            other => MigrationStatus::Other(other.to_string()),
        }
    }
}

/// The answer to `query-migrate`. Fields that QEMU does not tell at the present stage are zero.
#[derive(Clone, Debug, PartialEq)]
pub struct MigrationProgress {
    /// Where it stands.
    pub status: MigrationStatus,
    /// Why it failed, in QEMU's words.
    pub error: Option<String>,
    /// RAM of the guest.
    pub total: Bytes,
    /// RAM that is still to be sent, as of the last pass.
    pub remaining: Bytes,
    /// What has been sent.
    pub transferred: Bytes,
    /// Pages that were all zero, and cost nothing to send.
    pub zero_pages: u64,
    /// How often all dirty memory has been gone over.
    pub passes: u64,
    /// Bytes that the guest dirties each second, as of the last pass.
    pub dirty_rate: BytesPerSecond,
    /// The present rate of sending.
    pub rate: BytesPerSecond,
    /// Since the start.
    pub elapsed: Duration,
    /// How long the guest stood: the real time once completed, the expectation before.
    pub downtime: Duration,
}

impl MigrationProgress {
    /// What is left at the present rate; `None` while there is no rate. It does not foresee what the guest dirties.
    pub fn eta(&self) -> Option<Duration> {
        (self.rate.0 > 0).then(|| self.rate.time_for(self.remaining))
    }

    /// Reads QEMU's answer. Numbers that are absent, negative or no numbers count as zero.
    pub(super) fn of(answer: &Value) -> MigrationProgress {
        let ram = answer.get("ram").unwrap_or(&Value::Null);
        let number = |from: &Value, name: &str| from.get(name).and_then(Value::as_u64).unwrap_or(0);
        let millis = |name: &str| Duration::from_millis(number(answer, name));
        let page = number(ram, "page-size").max(1);
        let mbps = ram.get("mbps").and_then(Value::as_f64).filter(|m| m.is_finite() && *m > 0.0).unwrap_or(0.0);
        let downtime = if answer.get("downtime").is_some() { "downtime" } else { "expected-downtime" };
        MigrationProgress {
            status: MigrationStatus::of(answer.get("status").and_then(Value::as_str).unwrap_or("")),
            error: answer.get("error-desc").and_then(Value::as_str).map(str::to_string),
            total: Bytes(number(ram, "total")),
            remaining: Bytes(number(ram, "remaining")),
            transferred: Bytes(number(ram, "transferred")),
            zero_pages: number(ram, "duplicate"),
            passes: number(ram, "dirty-sync-count"),
            dirty_rate: BytesPerSecond(number(ram, "dirty-pages-rate").saturating_mul(page)),
            rate: BytesPerSecond((mbps * 1e6 / 8.0) as u64),
            elapsed: millis("total-time"),
            downtime: millis(downtime),
        }
    }
}

/// One machine type that a QEMU knows.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct MachineInfo {
    /// Its name, versioned: `pc-q35-7.2`.
    pub name: String,
    /// The name without version that stands for it in this QEMU: `q35`.
    #[serde(default)]
    pub alias: Option<String>,
    /// Largest number of processors.
    #[serde(default)]
    pub cpu_max: u64,
    /// QEMU means to remove it.
    #[serde(default)]
    pub deprecated: bool,
}

/// Memory that a guest has.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct MemoryBackend {
    /// Its name.
    #[serde(default)]
    pub id: Option<String>,
    /// In bytes.
    pub size: u64,
    /// Other processes may map it, and see what the guest writes.
    #[serde(default)]
    pub share: bool,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn progress_is_read_from_a_running_migration() {
        let p = MigrationProgress::of(&json!({
            "status": "active", "total-time": 1500, "expected-downtime": 300,
            "ram": {"total": 1000, "remaining": 500, "transferred": 400, "duplicate": 3, "mbps": 8.0,
                    "dirty-sync-count": 2, "dirty-pages-rate": 10, "page-size": 4096},
        }));
        assert_eq!(p.status, MigrationStatus::Active);
        assert_eq!((p.total, p.remaining, p.transferred), (Bytes(1000), Bytes(500), Bytes(400)));
        assert_eq!((p.rate, p.dirty_rate), (BytesPerSecond(1_000_000), BytesPerSecond(40_960)));
        assert_eq!((p.elapsed, p.downtime), (Duration::from_millis(1500), Duration::from_millis(300)));
        assert_eq!(p.eta(), Some(Duration::from_micros(500)));
    }

    #[test]
    fn nonsense_counts_as_nothing() {
        for answer in [json!({}), json!(null), json!({"status": 3, "ram": [], "total-time": -1})] {
            let p = MigrationProgress::of(&answer);
            assert_eq!((p.status.clone(), p.total, p.eta()), (MigrationStatus::None, Bytes(0), None), "{answer}");
        }
        let endless = json!({"ram": {"mbps": 1e300, "dirty-pages-rate": u64::MAX, "page-size": 4096}});
        assert_eq!(MigrationProgress::of(&endless).dirty_rate, BytesPerSecond(u64::MAX));
    }

    #[test]
    fn words_of_a_newer_qemu_are_kept() {
        assert_eq!(RunState::of("dreaming"), RunState::Other("dreaming".into()));
        assert_eq!(MigrationStatus::of("wait-unplug"), MigrationStatus::Other("wait-unplug".into()));
    }
}
