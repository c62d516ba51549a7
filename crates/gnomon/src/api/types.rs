//! What crosses the API: requests and views. Sizes are bytes, times seconds; nothing here acts.

mod agent;
mod forecast;
mod memory;
mod nic;
mod protection;
mod ram;
mod update;

use std::{
    path::PathBuf,
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

pub use agent::{AgentView, PressureView};
pub use forecast::{
    BinView, ExpectedView, ExpertView, FeedState, FeedView, FirstView, ForecastQuery, ForecastView, GapView,
    MovingView, ReadView, TOP, WorthView,
};
pub use memory::{
    AccountsView, BelievedView, CreateGroup, DemandView, DimmView, GroupView, GrowBy, HeatView, MemoryChange,
    MemoryView, NumaView, RequestsView, ResizeMemory, SetHorizon, SetMemoryAuto, StockView,
};
pub use nic::{NicView, RunNic};
pub use protection::{
    FailoverVm, GuardView, ProtectVm, ProtectionState, ProtectionView, ShadowView, SwitchVm, UnprotectVm,
};
pub use ram::{RamChoice, RamWay};
pub use update::{
    Approve, ChangeView, CommandView, EarlierUpdates, ImpactView, IntervalView, SeriesView, UpdateKind,
    UpdateOutlook, UpdateVerdict, UpdateVm,
};

use super::ApiError;

/// This daemon.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct NodeView {
    /// Its name.
    pub name: String,
    /// The program's version.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// Seconds since it started.
    pub up_s: u64,
    /// The unix socket where disks are offered.
    pub nbd_socket: String,
    /// Where disks are offered over TCP and TLS.
    pub nbd_tcp: Option<String>,
    /// Where other nodes reach it.
    pub link: Option<String>,
}

/// A node as seen from this one.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct PeerView {
    /// Its name.
    pub name: String,
    /// `host:port`; empty for this node when it has no link.
    pub address: String,
    /// Whether it is the one that was asked.
    pub here: bool,
    /// Whether its port accepts a connection right now.
    pub reachable: bool,
    /// Whether it says at the shared store that it is alive; nothing when there is no such store, or it does not answer.
    #[serde(default)]
    pub present: Option<bool>,
}

/// Asks for a new, empty volume.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct CreateVolume {
    /// Its name, which is also the name of its NBD export.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its forecasts begin with what those of this volume have learned.
    #[serde(default)]
    pub like: Option<String>,
}

/// Asks for a volume with the content of a disk image.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ImportVolume {
    /// Its name.
    pub name: String,
    /// An image on the daemon's host: raw or qcow2.
    #[schema(value_type = String)]
    pub file: PathBuf,
    /// The volume's size in bytes, if it is to be larger than the image.
    #[serde(default)]
    pub size: Option<u64>,
    /// Its forecasts begin with what those of this volume have learned.
    #[serde(default)]
    pub like: Option<String>,
}

/// A volume.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct VolumeView {
    /// Its name.
    pub name: String,
    /// What it is here: primary, shadow, released; unusable when it could not be opened.
    pub role: String,
    /// Size in bytes as its guest sees it.
    pub size: u64,
    /// Bytes of storage it takes.
    pub allocated: u64,
    /// The file that holds it.
    pub path: String,
    /// When it was made, seconds since 1970.
    pub created: u64,
    /// Who may write: rises with each handover.
    pub epoch: u64,
    /// Where a guest of this host finds it.
    pub nbd: String,
    /// NBD connections open now.
    pub clients: u64,
    /// What its guest did since the daemon started.
    pub accesses: AccessCounts,
    /// A move under way.
    pub job: Option<String>,
}

/// What a guest did with a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AccessCounts {
    /// Read requests.
    pub reads: u64,
    /// Write requests.
    pub writes: u64,
    /// Trims and write-zeroes.
    pub discards: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Accesses the tap had no room for: the guest was served, only the forecast did not see them.
    pub lost: u64,
}

/// How a move hands the guest over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum MoveMode {
    /// Switch only when everything is there.
    Pre,
    /// Switch when the forecast stall is under its bound.
    #[default]
    Hybrid,
    /// Switch at once and fetch the rest afterwards.
    Post,
}

/// Asks for a volume, or a VM with its volumes, to be moved to another node.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct MoveRequest {
    /// The node it goes to.
    pub to: String,
    /// When to switch.
    #[serde(default)]
    pub mode: MoveMode,
    /// How the memory of a VM goes; left open: by checkpoints where that can be had, or else by QEMU's own migration.
    #[serde(default)]
    pub ram: Option<RamWay>,
    /// The most it may use, bytes a second.
    pub bandwidth: Option<u64>,
    /// Send the destination's writes back while draining, so that a rollback loses nothing acknowledged.
    pub reverse: bool,
}

/// What a move would be like: the answer to a dry run. Numbers after a refusal may be missing, and are zero then.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MoveOutlook {
    /// The node it would go to.
    pub to: String,
    /// What would move.
    pub volumes: Vec<VolumeOutlook>,
    /// Bytes free at the destination.
    pub free: u64,
    /// Bytes a second that the link would carry.
    pub rate: u64,
    /// Where that is known from.
    pub rate_is: RateOrigin,
    /// Seconds from a question to its answer.
    pub round_trip_s: f64,
    /// Seconds until everything is there, if the guest writes nothing meanwhile: a bound for a move that switches sooner.
    /// Memory that has to be carried first is reckoned with.
    pub priming_s: f64,
    /// How the memory of a VM would go.
    #[serde(default)]
    pub ram: Option<RamChoice>,
    /// Bytes of its memory.
    #[serde(default)]
    pub memory: u64,
    /// Why the real move would be refused.
    pub refused: Option<ApiError>,
}

/// A volume in the outlook of a move.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VolumeOutlook {
    /// Its name.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// Bytes that hold something: what would be carried.
    pub allocated: u64,
    /// Reads to be expected in the ten seconds after a switch, by those of the last ten.
    pub reads_expected: u64,
    /// Of these, the ones that would wait if it switched with nothing at the destination.
    pub reads_stalling: u64,
    /// Seconds of these waits in all.
    pub stall_s: f64,
}

/// Where a link's rate is known from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RateOrigin {
    /// The request.
    Given,
    /// The configuration of this node.
    Configured,
    /// A few megabytes that were sent.
    Measured,
}

impl MoveOutlook {
    /// Nothing is known yet of a move to this node.
    pub fn to(node: &str) -> MoveOutlook {
        MoveOutlook {
            to: node.to_string(),
            volumes: Vec::new(),
            free: 0,
            rate: 0,
            rate_is: RateOrigin::Measured,
            round_trip_s: 0.0,
            priming_s: 0.0,
            ram: None,
            memory: 0,
            refused: None,
        }
    }
}

/// Asks this node to be the writer again.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Rollback {
    /// The destination, if it is dead and the operator has made sure that it cannot write any more. Without it, both
    /// nodes have to be there.
    #[serde(default)]
    pub fenced: Option<String>,
}

/// Asks this node to be the primary of a volume that drains, without the source of its move, which is gone for good.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Confirm {
    /// The source: the operator has made sure that it cannot write any more.
    pub fenced: String,
}

/// Asks for a volume to be verified: compared with the other copy of its move, or with what is named here; without
/// either, its digest is told.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct VerifyRequest {
    /// The node that has another copy.
    #[serde(default)]
    pub with: Option<String>,
    /// A raw image on the daemon's host.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub against: Option<PathBuf>,
}

/// What a comparison found: the result of a `verify` job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Verified {
    /// Whether nothing that was compared differs.
    pub same: bool,
    /// The node or file that has the other copy.
    pub with: String,
    /// Bytes that were compared.
    pub compared_bytes: u64,
    /// Bytes of blocks that differ.
    pub differing_bytes: u64,
    /// Where they differ, in address order, up to 1000 extents.
    pub extents: Vec<DifferingExtent>,
    /// Bytes that differ and are in no listed extent.
    pub unlisted_bytes: u64,
    /// Bytes that were not compared: one of the copies does not have them yet.
    pub lacking_bytes: u64,
    /// Bytes that were not compared: they were written each time they were looked at.
    pub unsettled_bytes: u64,
}

/// Where two copies differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DifferingExtent {
    /// Its first byte.
    pub at: u64,
    /// How many bytes: whole blocks of 4096.
    pub len: u64,
}

/// Changes what a running move may use.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema)]
pub struct SetBandwidth {
    /// Bytes a second; `None`: no limit.
    pub rate: Option<u64>,
}

/// A port of a VM, offered to the host as a unix socket.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct PortView {
    /// The port's name in the guest: `/dev/virtio-ports/NAME`.
    pub name: String,
    /// The socket's path.
    pub socket: String,
}

/// How QEMU reaches a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Front {
    /// Over the NBD protocol: a VM with such disks can be moved, and stands when a disk fails.
    #[default]
    Nbd,
    /// The daemon serves the guest's virtio queues in its memory: fewer steps for each request. The guest itself is told
    /// when the disk fails, and the VM cannot be moved.
    VhostUser,
}

/// A disk of a VM that is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RunDisk {
    /// Name of a volume.
    pub volume: String,
    /// How QEMU reaches it.
    #[serde(default)]
    pub front: Front,
}

/// Asks for a VM.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RunVm {
    /// Its name.
    pub name: String,
    /// Its memory in bytes.
    pub memory: u64,
    /// What it may be grown to while it runs; left open, it cannot grow.
    #[serde(default)]
    pub max_memory: Option<u64>,
    /// How it is grown.
    #[serde(default)]
    pub grow_by: GrowBy,
    /// The trust group that it joins.
    #[serde(default)]
    pub group: Option<String>,
    /// How many processors.
    pub cpus: u32,
    /// Its disks, in order: the first is the boot disk.
    pub disks: Vec<RunDisk>,
    /// A kernel to boot instead of the first disk.
    #[schema(value_type = Option<String>)]
    pub kernel: Option<PathBuf>,
    /// Its initial ram disk.
    #[schema(value_type = Option<String>)]
    pub initrd: Option<PathBuf>,
    /// Its command line.
    pub append: Option<String>,
    /// `auto` (KVM when a tiny guest proves it), `kvm` or `tcg`.
    pub accel: String,
    /// QEMU's machine type; left open: `q35`. An alias becomes the versioned type that it stands for here.
    #[serde(default)]
    pub machine: Option<String>,
    /// QEMU's processor model; left open: `host` under KVM, QEMU's default under emulation.
    #[serde(default)]
    pub cpu: Option<String>,
    /// Virtio-serial ports.
    pub ports: Vec<String>,
    /// Network cards.
    #[serde(default)]
    pub nics: Vec<RunNic>,
}

/// Asks the daemon to look after a QEMU that somebody else started.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct AdoptVm {
    /// The name it is to have here.
    pub name: String,
    /// Its QMP socket.
    #[schema(value_type = String)]
    pub qmp: PathBuf,
}

/// A VM.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct VmView {
    /// Its name.
    pub name: String,
    /// QEMU's own word (running, paused, io-error…), or `exited`, `unreachable`.
    pub status: String,
    /// QEMU's process.
    pub pid: Option<u32>,
    /// Memory in bytes; 0 when it was adopted and not asked.
    pub memory: u64,
    /// `kvm` or `tcg`.
    pub accel: String,
    /// Its versioned machine type.
    #[serde(default)]
    pub machine: String,
    /// Its processor model, when it was named.
    #[serde(default)]
    pub cpu: Option<String>,
    /// Its volumes.
    pub disks: Vec<String>,
    /// Its ports.
    pub ports: Vec<PortView>,
    /// Its network cards; none while its guest does not run here.
    #[serde(default)]
    pub nics: Vec<NicView>,
    /// The release of QEMU that runs it.
    pub version: String,
    /// The serial console's socket.
    pub console: Option<String>,
    /// The QMP socket.
    pub qmp: String,
    /// How it ended, when it did.
    pub exit: Option<String>,
    /// The last lines it wrote to its error output, when it ended.
    pub stderr: Option<String>,
    /// What the agent in its guest says, when one VM is asked for; null when none was heard.
    #[serde(default)]
    pub agent: Option<AgentView>,
    /// Its shadow elsewhere, when it has one; of several, the one that does best.
    #[serde(default)]
    pub protection: Option<ProtectionView>,
    /// All of its shadows elsewhere, by node.
    #[serde(default)]
    pub protections: Vec<ProtectionView>,
    /// What is here, when it is only the shadow of a VM of another node.
    #[serde(default)]
    pub shadow: Option<ShadowView>,
    /// How its memory would go to another node, when one VM is asked for; null while it does not run.
    #[serde(default)]
    pub ram: Option<RamChoice>,
}

/// Something that was done to a VM as a whole.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EventView {
    /// When, seconds since 1970.
    pub at: f64,
    /// Which VM.
    pub vm: String,
    /// `update`, `rollback`, `move`, `protect`, `shadow-lost`, `exposed` (strict mode is suspended), `unprotect`, `switchover` or `failover`.
    pub what: String,
    /// `done`, `refused` or `failed`; of a command in the guest also `begun`, and `unwell` when the guest did not do well
    /// after it.
    pub status: String,
    /// Where it went.
    pub to: String,
    /// How long the guest stood, when it switched.
    pub gap_ms: Option<f64>,
    /// What that was made of.
    pub phases: Vec<PhaseView>,
    /// What spoke against it.
    pub reasons: Vec<String>,
    /// How a command in the guest ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<CommandView>,
}

impl EventView {
    /// An event of this moment that has no more to tell.
    pub fn now(vm: &str, what: &str, status: &str, to: String) -> EventView {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        let (vm, what, status) = (vm.to_string(), what.to_string(), status.to_string());
        EventView { at, vm, what, status, to, gap_ms: None, phases: Vec::new(), reasons: Vec::new(), command: None }
    }
}

/// One phase of a switch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PhaseView {
    /// Which.
    pub name: String,
    /// How long.
    pub ms: f64,
}

/// How a VM is stopped.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct StopVm {
    /// Do not ask the guest: end QEMU.
    #[serde(default)]
    pub force: bool,
}

/// Where a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// Under way.
    Running,
    /// Ended well.
    Done,
    /// Ended badly; `error` says why.
    Failed,
    /// Ended because somebody asked for it; everything is as before.
    Cancelled,
}

impl JobState {
    /// Whether nothing more will happen.
    pub fn is_over(self) -> bool {
        self != JobState::Running
    }
}

/// How far a job is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Progress {
    /// What it is doing: a word.
    pub phase: String,
    /// Bytes done in this phase.
    pub done_bytes: u64,
    /// Bytes to do in this phase; 0 when not known.
    pub total_bytes: u64,
    /// Bytes a second lately.
    pub rate: u64,
    /// Seconds until it is done, when that can be said.
    pub eta_s: Option<f64>,
    /// A sentence for people.
    pub message: String,
}

/// Work that takes long.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct JobView {
    /// Its id.
    pub id: String,
    /// What it does: import, verify, move, rollback.
    pub kind: String,
    /// The volume or VM it is about.
    pub subject: String,
    /// Where it is.
    pub state: JobState,
    /// How far it is.
    pub progress: Progress,
    /// Why it failed.
    pub error: Option<ApiError>,
    /// What came of it.
    #[schema(value_type = Option<Object>)]
    pub result: Option<serde_json::Value>,
}

/// Whether to follow a job.
#[derive(Clone, Copy, Debug, Default, Deserialize, IntoParams)]
pub struct WatchQuery {
    /// `true`: one JSON object per line with each change, until the job is over.
    #[serde(default)]
    pub watch: bool,
}

/// How a volume is removed.
#[derive(Clone, Copy, Debug, Default, Deserialize, IntoParams)]
pub struct RemoveQuery {
    /// `true`: also a spare copy whose source cannot be asked whether its move is over.
    #[serde(default)]
    pub force: bool,
}

/// How long to record accesses.
#[derive(Clone, Copy, Debug, Default, Deserialize, IntoParams)]
pub struct TraceQuery {
    /// Seconds; without it, until the connection is closed.
    pub for_s: Option<f64>,
}
