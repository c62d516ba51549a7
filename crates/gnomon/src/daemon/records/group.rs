//! Trust groups, as their user made them. What is staged for them is not on record: the holder and the guests are looked
//! at.

use serde::{Deserialize, Serialize};

use super::Records;
use crate::api::ApiError;

/// A trust group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupRecord {
    /// Its name.
    pub name: String,
    /// Its VMs, in the order in which they came.
    pub members: Vec<String>,
    /// Whether memory is made ready ahead for it.
    pub shadowing: bool,
    /// How far ahead is looked, in seconds.
    pub horizon_s: u64,
    /// The most that is staged for it, in bytes.
    pub budget: u64,
    /// What is kept staged while nothing is known yet, in bytes.
    pub reserve: u64,
    /// A size that nobody has asked for in this time is not kept staged, in seconds.
    pub max_age_s: u64,
    /// Its blocks are made of 2 MiB pages.
    pub huge_pages: bool,
    /// The NUMA node that its blocks are to be on.
    #[serde(default)]
    pub numa_node: Option<u32>,
}

impl Records {
    /// All trust groups.
    pub fn groups(&self) -> Result<Vec<GroupRecord>, ApiError> {
        self.all("group/")
    }

    /// Writes a group's record.
    pub fn put_group(&self, record: &GroupRecord) -> Result<(), ApiError> {
        self.put(&format!("group/{}", record.name), record)
    }

    /// Removes it.
    pub fn remove_group(&self, name: &str) -> Result<(), ApiError> {
        self.store.delete(&format!("group/{name}"))?;
        Ok(())
    }
}
