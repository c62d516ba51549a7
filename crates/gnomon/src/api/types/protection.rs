//! What crosses the API about shadows of VMs.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Asks for a shadow of a running VM on another node, beside those that it has. What is asked must be as for those.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ProtectVm {
    /// The node of the shadow.
    pub on: String,
    /// Milliseconds from one checkpoint to the next; without it, as the guest's pauses and the link allow.
    #[serde(default)]
    pub interval_ms: Option<u64>,
    /// Whether nothing that the guest says may leave before its shadow has the state it comes from. With a guard, the
    /// guest stands rather than run unsure of its lease.
    #[serde(default)]
    pub strict: bool,
    /// Whether the shadow takes over by itself when the lease of this node has ended at the shared store.
    #[serde(default)]
    pub auto_failover: bool,
}

/// Asks a node to go on with a guest whose shadow it has.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct FailoverVm {
    /// The node that ran the guest, which the operator has made sure cannot run or write any more; and those of the nodes
    /// with other shadows that do not answer, of which he has made sure the same.
    #[serde(default)]
    pub fenced: Vec<String>,
}

/// Asks to hand a guest over.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SwitchVm {
    /// To which of the nodes of its shadows; without it, to the first one that is protected.
    #[serde(default)]
    pub to: Option<String>,
}

/// Asks to give shadows up.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct UnprotectVm {
    /// The node of the shadow; without it, all of them.
    #[serde(default)]
    pub on: Option<String>,
}

/// How a protection does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProtectionState {
    /// The first copy is under way: there is nothing yet that could be gone on from.
    Syncing,
    /// The shadow has a fresh checkpoint.
    Protected,
    /// The shadow's checkpoint is old, or the last one failed.
    Behind,
    /// There is no session with the shadow.
    Lost,
    /// The guest was given to the shadow's node, and it is not known yet whether it runs there. It stands here.
    Given,
    /// The guest does not run here any more; the shadow has what it had.
    Ended,
}

/// The shadow of a VM, as its primary knows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ProtectionView {
    /// The node of the shadow.
    pub to: String,
    /// How it does.
    pub state: ProtectionState,
    /// Since when it is behind or lost, seconds since 1970.
    pub since: Option<f64>,
    /// Why it is behind or lost.
    pub why: Option<String>,
    /// The epoch in which the guest runs here.
    pub epoch: u64,
    /// The newest checkpoint that the shadow has said to have. What came after it would be lost with this host.
    pub checkpoint: Option<u64>,
    /// How old that is, milliseconds.
    pub lag_ms: Option<f64>,
    /// From one checkpoint to the next, milliseconds.
    pub interval_ms: f64,
    /// Sent since the daemon began to protect it: pages and devices.
    pub bytes: u64,
    /// Of these, by the last checkpoint.
    pub last_bytes: u64,
    /// How long the guest stood for a checkpoint: half of the last thousand were shorter.
    pub pause_p50_ms: Option<f64>,
    /// 99 of 100 were shorter.
    pub pause_p99_ms: Option<f64>,
    /// By which means its written pages are followed: pagemap-scan, soft-dirty or compare.
    pub tracker: String,
    /// Whether frames of the guest wait until the shadow has the state they come from.
    #[serde(default)]
    pub strict: bool,
    /// Whether they do not wait for this shadow, and that is on record: it has nothing yet, was lost, or fell behind. When
    /// that is so of all shadows, they leave at once.
    #[serde(default)]
    pub exposed: bool,
    /// Its guard; without one an operator decides.
    #[serde(default)]
    pub guard: Option<GuardView>,
}

/// The guard of a protection, as a node knows it: who may run the guest, as far as the shared store says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct GuardView {
    /// Whether the shadow takes over by itself when the holder's lease ends: it is an heir, and has something to go on
    /// from.
    pub armed: bool,
    /// The epoch of the term, as it was seen last; none was seen without one.
    pub term: Option<u64>,
    /// The node that holds it.
    pub holder: Option<String>,
    /// Nodes that may take over.
    pub heirs: Vec<String>,
    /// How long this node's lease surely lives, milliseconds; nothing when it does not hold it.
    pub lease_ms: Option<f64>,
    /// Why the store could not be asked, when the last try failed.
    pub trouble: Option<String>,
}

/// A shadow, as its node knows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ShadowView {
    /// The node where the guest runs.
    pub of: String,
    /// Whether there is a session with it.
    pub connected: bool,
    /// The checkpoint from which the guest would go on here; without one it could not.
    pub checkpoint: Option<u64>,
    /// The epoch of that checkpoint.
    pub epoch: Option<u64>,
    /// How long ago it was applied here, milliseconds.
    pub age_ms: Option<f64>,
    /// The nodes of the guest's other shadows.
    #[serde(default)]
    pub siblings: Vec<String>,
    /// Its guard; without one an operator decides.
    #[serde(default)]
    pub guard: Option<GuardView>,
}
