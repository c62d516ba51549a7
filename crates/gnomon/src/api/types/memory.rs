//! Memory that guests get while they run, and trust groups, for which it is made ready ahead.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Asks for a trust group: VMs that may use one pool of staged memory.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct CreateGroup {
    /// Its name.
    pub name: String,
    /// The most that is staged for it, in bytes.
    pub budget: u64,
    /// What is kept staged while nothing is known yet, in bytes.
    #[serde(default)]
    pub reserve: u64,
    /// How far ahead is looked, in seconds; left open, one step of the node's clock.
    #[serde(default)]
    pub horizon_s: Option<u64>,
    /// A size that nobody has asked for in this time is not kept staged, in seconds.
    pub max_age_s: u64,
    /// Its blocks are made of the 2 MiB pages that the host has reserved.
    #[serde(default)]
    pub huge_pages: bool,
    /// The NUMA node that its blocks are to be on, as long as that has room; left open, where its VMs run.
    #[serde(default)]
    pub numa_node: Option<u32>,
}

/// Asks to look so far ahead (setShadowingHorizon).
#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema)]
pub struct SetHorizon {
    /// Seconds.
    pub seconds: u64,
}

/// A trust group, and how its staged memory did (getShadowingStats).
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct GroupView {
    /// Its name.
    pub name: String,
    /// Its VMs.
    pub members: Vec<String>,
    /// Whether memory is made ready ahead for it.
    pub shadowing: bool,
    /// How far ahead is looked, in seconds.
    pub horizon_s: u64,
    /// The most that is staged for it.
    pub budget: u64,
    /// What is kept staged while nothing is known yet.
    pub reserve: u64,
    /// A size that nobody has asked for in this time is not kept staged, in seconds.
    pub max_age_s: u64,
    /// Whether its blocks are made of 2 MiB pages.
    pub huge_pages: bool,
    /// The NUMA node that its blocks are to be on.
    #[serde(default)]
    pub numa_node: Option<u32>,
    /// What is staged on each NUMA node; nothing on a host with one.
    #[serde(default)]
    pub numa: Vec<NumaView>,
    /// What is staged, by size of block: bytes, and how many.
    pub staged: Vec<StockView>,
    /// What is meant to be staged.
    pub target: Vec<StockView>,
    /// Where each of its blocks is.
    pub accounts: AccountsView,
    /// What became of requests.
    pub requests: RequestsView,
    /// What is expected, and how good that was.
    pub expected: DemandView,
    /// Where its members use the memory that they began with: in members for each sixty-fourth of it, with noise; nothing of
    /// fewer than three.
    #[serde(default)]
    pub heat: Option<Vec<f64>>,
    /// Why less is staged than is meant to be, when the host has no memory to spare.
    pub held_back: Option<String>,
}

/// What is staged on one NUMA node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NumaView {
    /// Its number, as the kernel has it.
    pub node: u32,
    /// Bytes.
    pub staged: u64,
}

/// Blocks of one size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StockView {
    /// Bytes of one.
    pub size: u64,
    /// How many.
    pub blocks: u32,
}

/// Bytes of blocks, by where they are. Each block is in one place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AccountsView {
    /// Made, or found again after a restart.
    pub created: u64,
    /// Being allocated.
    pub populating: u64,
    /// Waiting for a request.
    pub staged: u64,
    /// Taken for a request and not at a guest yet.
    pub reserved: u64,
    /// At guests.
    pub assigned: u64,
    /// On their way back to the host.
    pub leaving: u64,
    /// Back at the host.
    pub released: u64,
}

/// What became of a group's requests since the daemon started.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct RequestsView {
    /// How many there were.
    pub requests: u64,
    /// Bytes that were staged when they were asked for.
    pub hit_bytes: u64,
    /// Bytes that were not.
    pub missed_bytes: u64,
    /// Those of the bytes hit that were on another NUMA node than their guest.
    #[serde(default)]
    pub far_bytes: u64,
    /// Percent of the bytes asked for that were staged; nothing before the first request.
    pub hit_percent: Option<f64>,
    /// Bytes that lay staged on average.
    pub idle_bytes: u64,
    /// Percent of the bytes asked for that a reserve of always that many bytes would have had; nothing before the first request.
    pub static_hit_percent: Option<f64>,
    /// Percent of what is meant to be staged that is.
    pub utilisation_percent: Option<f64>,
    /// Milliseconds from a request until the guest had memory that was staged: median and 95 of 100.
    pub staged_ms: Option<[f64; 2]>,
    /// The same for memory that was not.
    pub cold_ms: Option<[f64; 2]>,
    /// Microseconds that it took to decide on a request: median and 99 of 100.
    pub decision_us: Option<[f64; 2]>,
}

/// What a group is expected to ask for, and what is made of that.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct DemandView {
    /// What decides how much is staged: `cold` (too little is known: the reserve), `silent` (forecasts are not worth more than
    /// a reserve of one size) or `forecast`.
    pub mode: String,
    /// How sure it is to be: the level of the quantile that is staged.
    pub level: f64,
    /// How many times that is staged.
    pub scale: f64,
    /// Bytes that it will ask for within the horizon: the middle, and what 95 of 100 stay below. Nothing while too little is
    /// known, or of fewer than three members.
    pub bytes: Option<[u64; 2]>,
    /// Steps of which what was forecast could be judged.
    pub steps: u64,
    /// Percent of steps in which what was asked for was within what nine of ten should be.
    pub covered_percent: Option<f64>,
    /// By how many percent forecasts hit more than a reserve of the same idle bytes would have.
    pub gain_percent: Option<f64>,
    /// How much of what was learned is of members who are still there.
    pub history_percent: f64,
    /// Who is believed, and how much: weights sum to one.
    pub believed: Vec<BelievedView>,
}

/// A model and its weight.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct BelievedView {
    /// Its name.
    pub model: String,
    /// Its weight.
    pub weight: f64,
}

/// How a VM is given memory while it runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum GrowBy {
    /// By DIMMs, in steps of 128 MiB: of what is staged for its trust group first.
    #[default]
    Dimms,
    /// By one device that changes its size in steps of 2 MiB (virtio-mem). What it gives cannot be staged ahead: its memory
    /// belongs to one VM.
    VirtioMem,
}

/// Asks for a change of a running VM's memory: one of the two.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct ResizeMemory {
    /// Bytes more.
    #[serde(default)]
    pub grow: Option<u64>,
    /// Bytes less.
    #[serde(default)]
    pub shrink: Option<u64>,
}

/// Asks that a VM's memory follows what its guest needs, or does not any more.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema)]
pub struct SetMemoryAuto {
    /// Whether it does.
    pub on: bool,
}

/// A VM's memory.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct MemoryView {
    /// The VM.
    pub vm: String,
    /// Its trust group, if it is in one.
    pub group: Option<String>,
    /// What it started with, in bytes.
    pub boot: u64,
    /// What it has.
    pub now: u64,
    /// What it may have; as `boot` for one that cannot grow.
    pub most: u64,
    /// What was added and not taken back.
    pub dimms: Vec<DimmView>,
    /// DIMMs that can be added.
    pub free_slots: u32,
    /// Whether it follows what the guest needs.
    pub auto: bool,
    /// What of the memory it started with the host has really given.
    pub backed: u64,
    /// Where it uses that memory; nothing of a VM for which none is made ready, and before the first look.
    #[serde(default)]
    pub heat: Option<HeatView>,
}

/// Where a VM uses the memory that it began with, and what it cost to know.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HeatView {
    /// What is counted: `writes`, of a VM that is protected or moved, or `page tables`: pages that were touched for the first
    /// time.
    pub from: String,
    /// Percent of what was counted that each sixty-fourth of the memory has; what is longer ago counts less.
    pub percent: Vec<f64>,
    /// The fewest sixty-fourths that have nine tenths of it.
    pub hot: u32,
    /// Bytes that the last look at page tables was about, added memory included.
    pub looked_at: u64,
    /// Microseconds that it took.
    pub took_us: f64,
    /// The same for each GiB.
    pub us_per_gib: Option<f64>,
}

/// Memory that was added to a guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DimmView {
    /// What QEMU calls it.
    pub id: String,
    /// Bytes.
    pub size: u64,
    /// Percent of it that the guest has touched, as of the last look; nothing before that.
    #[serde(default)]
    pub touched_percent: Option<u32>,
}

/// What became of a change of a VM's memory.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct MemoryChange {
    /// The VM.
    pub vm: String,
    /// Bytes that were asked for; negative: asked back.
    pub asked: i64,
    /// Bytes that the guest took, or gave back.
    pub done: i64,
    /// Bytes of them that had been staged.
    pub staged: u64,
    /// DIMMs that were added or taken away.
    pub dimms: u32,
    /// Microseconds to find out what is staged.
    pub decided_us: f64,
    /// Milliseconds until the guest had answered.
    pub took_ms: f64,
    /// What it has now.
    pub now: u64,
    /// Why it was not all, when it was not.
    pub why: Option<String>,
}
