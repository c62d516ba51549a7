//! Guests of other nodes that are landing here by checkpoints.
//!
//! Such a QEMU is on record before it is started, and until its guest is a VM of this node or is given up: after a crash
//! of the daemon it is known what it waits for, and it is not ended as one that nobody knows.

use serde::{Deserialize, Serialize};

use super::Records;
use crate::api::ApiError;

/// A guest that is landing here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LandingRecord {
    /// The VM.
    pub vm: String,
    /// The move that brings it.
    pub move_id: String,
    /// The node where it runs.
    pub from: String,
    /// Fences the QEMU that waits here.
    pub token: u64,
    /// Its volumes: once all of them are this node's, so is the guest.
    pub volumes: Vec<String>,
}

impl Records {
    /// All guests that are landing here.
    pub fn landings(&self) -> Result<Vec<LandingRecord>, ApiError> {
        self.all("landing/")
    }

    /// Writes the record of a guest that lands here.
    pub fn put_landing(&self, record: &LandingRecord) -> Result<(), ApiError> {
        self.put(&format!("landing/{}", record.vm), record)
    }

    /// Removes the record of a guest that has landed, or was given up.
    pub fn remove_landing(&self, vm: &str) -> Result<(), ApiError> {
        self.store.delete(&format!("landing/{vm}"))?;
        Ok(())
    }
}
