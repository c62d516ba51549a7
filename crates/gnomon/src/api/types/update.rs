//! Updates of a running VM: what is asked, what it would be like, and what earlier ones were like.

use std::{
    collections::BTreeMap,
    fmt,
    path::PathBuf,
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::api::ApiError;

/// What a running VM is to become. Given is at least one of `qemu`, `machine` and `cpu`, or `guest_exec` alone.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct UpdateVm {
    /// Another QEMU: the program, or the folder into which its packages were unpacked.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub qemu: Option<PathBuf>,
    /// Another name of its machine type, in QEMU's words.
    #[serde(default)]
    pub machine: Option<String>,
    /// Another name of its processor model, in QEMU's words.
    #[serde(default)]
    pub cpu: Option<String>,
    /// A command for the guest's own shell, by the agent in the guest: `vm run --guest-agent`.
    #[serde(default)]
    pub guest_exec: Option<String>,
    /// How long it may take, each time, seconds.
    #[serde(default = "guest_exec_timeout")]
    pub guest_exec_timeout: f64,
    /// A command that says whether the copy is well: exit code 0.
    #[serde(default)]
    pub probe: Option<String>,
    /// How long it may take, seconds.
    pub probe_timeout: f64,
    /// How long the copy, and then the guest, is watched, seconds.
    pub observe: f64,
    /// Who lets a guest switch whose copy did well.
    pub approve: Approve,
    /// Without a trial.
    #[serde(default)]
    pub untried: bool,
}

/// As long as the installation of a good many packages takes.
fn guest_exec_timeout() -> f64 {
    600.0
}

/// Who lets a guest switch whose copy did well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Approve {
    /// The verdict.
    #[default]
    Auto,
    /// Somebody: `gnomon vm approve`.
    Manual,
}

/// What an update changes; of several the one that reaches farthest, which is the first here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum UpdateKind {
    /// The QEMU program.
    Qemu,
    /// What its machine type is called.
    Machine,
    /// What its processor model is called.
    Cpu,
    /// Something in the guest, by a command there.
    GuestExec,
}

/// How an update ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum UpdateVerdict {
    /// It was made, and the guest did well in it.
    Done,
    /// Its trial on a copy went badly: the guest was left alone.
    Refused,
    /// It was made, and taken back because the guest did not do well in it.
    TakenBack,
    /// It could not be made; or its command in the guest failed, having done whatever it did until then.
    Failed,
    /// Its command was run in the guest, which did not do well after it. It is not taken back.
    Unwell,
}

/// How a command in a guest ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CommandView {
    /// Its exit code; nothing when a signal ended it.
    pub code: Option<i32>,
    /// The end of what it said, on both streams: some KB at most.
    pub said: String,
    /// How long it took, seconds.
    pub seconds: f64,
}

/// What an update did to a VM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ImpactView {
    /// When it ended, seconds since 1970.
    pub at: f64,
    /// Which VM.
    pub vm: String,
    /// What it changed.
    pub kind: UpdateKind,
    /// What the guest ran in.
    pub from: String,
    /// What it was to run in.
    pub to: String,
    /// How it ended.
    pub verdict: UpdateVerdict,
    /// How long the guest stood, when it switched.
    pub gap_ms: Option<f64>,
    /// What was measured of it before and after, where both are known.
    pub series: Vec<SeriesView>,
    /// How its command ended in the guest; of one that was refused, on the copy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<CommandView>,
}

/// What a number of a VM was before an update and after.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SeriesView {
    /// `cpu` (processor seconds per second), `io` (disk requests per second) or `memory` (bytes of QEMU itself).
    pub name: String,
    /// What was expected of it before the update, so that nine of ten seconds are within.
    pub expected: IntervalView,
    /// What it was while the guest was watched after the update.
    pub after: f64,
    /// Whether that speaks against the update, as a trial would judge it.
    pub is_against: bool,
}

/// Where a number is expected.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct IntervalView {
    /// The least.
    pub low: f64,
    /// The best guess.
    pub middle: f64,
    /// The most.
    pub high: f64,
}

/// What earlier updates of one kind let expect.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EarlierUpdates {
    /// How many are remembered.
    pub updates: u64,
    /// Whether they are this VM's own; if not, those of all VMs of this node.
    pub own: bool,
    /// How long the guest stood, in the middle of them.
    pub gap_ms_median: Option<f64>,
    /// How they ended, and how many so.
    pub verdicts: BTreeMap<UpdateVerdict, u64>,
    /// How each number is expected to change.
    pub changes: Vec<ChangeView>,
}

/// How a number is expected to change, by how it changed before.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ChangeView {
    /// As in `SeriesView`.
    pub name: String,
    /// How many earlier changes this is known from.
    pub from: u64,
    /// The change that is expected.
    pub change: IntervalView,
    /// How probable it is that the change is within (0–1), if this update is like those before; 0 with only one.
    pub coverage: f64,
}

/// What an update would be like: the answer to a dry run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct UpdateOutlook {
    /// What it would change.
    pub kind: UpdateKind,
    /// What the guest runs in.
    pub from: String,
    /// What it would run in.
    pub to: String,
    /// Why the real update would be refused before anything is touched.
    pub refused: Option<ApiError>,
    /// What earlier ones of this kind were like.
    pub earlier: EarlierUpdates,
    /// What is remembered of this VM's own updates, of every kind, oldest first.
    pub history: Vec<ImpactView>,
}

impl ImpactView {
    /// An update of this moment that could not be made.
    pub fn now(vm: &str) -> ImpactView {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        let (kind, verdict) = (UpdateKind::Qemu, UpdateVerdict::Failed);
        let (from, to) = (String::new(), String::new());
        let vm = vm.to_string();
        ImpactView { at, vm, kind, from, to, verdict, gap_ms: None, series: Vec::new(), command: None }
    }
}

impl fmt::Display for UpdateKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            UpdateKind::Qemu => "qemu",
            UpdateKind::Machine => "machine",
            UpdateKind::Cpu => "cpu",
            UpdateKind::GuestExec => "guest-exec",
        })
    }
}

impl fmt::Display for UpdateVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            UpdateVerdict::Done => "done",
            UpdateVerdict::Refused => "refused",
            UpdateVerdict::TakenBack => "taken back",
            UpdateVerdict::Failed => "failed",
            UpdateVerdict::Unwell => "unwell after it",
        })
    }
}

impl fmt::Display for EarlierUpdates {
    /// One line: how many, of whom, their gap and how they ended.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.updates == 0 {
            return write!(f, "no earlier update of this kind is known");
        }
        let whose = if self.own { "of this VM" } else { "of other VMs here" };
        write!(f, "earlier updates of this kind ({whose}): {}", self.updates)?;
        if let Some(gap) = self.gap_ms_median {
            write!(f, ", gap {gap:.1} ms in the middle")?;
        }
        self.verdicts.iter().try_for_each(|(verdict, count)| write!(f, ", {count} {verdict}"))
    }
}
