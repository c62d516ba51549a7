//! What crosses the API about the agent in a guest.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What the agent in a guest last said.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AgentView {
    /// How long ago, seconds. It beats once a second.
    pub heard_s: f64,
    /// The number of that beat, from 0 when the agent began.
    pub seq: u64,
    /// How long the guest is up, seconds.
    pub up_s: f64,
    /// The guest's memory, bytes.
    pub memory_total: u64,
    /// What it could give to programs without swapping.
    pub memory_available: u64,
    /// What nothing uses.
    pub memory_free: u64,
    /// How much it waits; null when its kernel does not say.
    pub pressure: Option<PressureView>,
    /// Lines that were no reports.
    pub faults: u64,
}

/// The share of the last ten seconds in which something in a guest waited, percent.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PressureView {
    /// Some task waited for a processor.
    pub cpu: f64,
    /// Some task waited for memory.
    pub memory: f64,
    /// All tasks waited for memory.
    pub stalled: f64,
    /// Some task waited for a disk.
    pub io: f64,
}
