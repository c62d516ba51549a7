//! How a guest's memory goes to another node.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The ways there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum RamWay {
    /// gnomon's checkpoints: the memory and the devices are whole at the destination before anything is decided.
    Engine,
    /// QEMU's own migration, relayed: the devices are sent after it was decided.
    Qemu,
}

/// A way, and why it is this one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RamChoice {
    /// Which.
    pub way: RamWay,
    /// Why.
    pub why: String,
}

impl fmt::Display for RamChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let way = match self.way {
            RamWay::Engine => "by checkpoints",
            RamWay::Qemu => "by QEMU's own migration",
        };
        write!(f, "{way}: {}", self.why)
    }
}
