//! What is known of VMs that have a shadow, on either side.
//!
//! A protection has one ID, and at its primary a record for each of its shadows. `promoted/ID` is the commit point of every
//! takeover: once it is durable, the guest of that protection lives on the shadow's node, whatever the primary believes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Records;
use crate::api::ApiError;

/// A VM of this node that has a shadow elsewhere: one for each shadow. What they have in common is the same in all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProtectRecord {
    /// Names the protection on all nodes.
    pub id: String,
    /// The VM.
    pub vm: String,
    /// The node of its shadow.
    pub to: String,
    /// How often it is checkpointed, milliseconds; `None`: as its pauses and the link allow.
    pub interval_ms: Option<u64>,
    /// The epoch in which its guest runs here.
    pub epoch: u64,
    /// Its volumes; the place in the list is the stream.
    pub volumes: Vec<String>,
    /// The epoch at which the guest was given to the shadow's node, while it is not known whether it runs there.
    pub given: Option<u64>,
    /// Whether nothing that the guest says leaves before its shadow has the state it comes from.
    #[serde(default)]
    pub strict: bool,
    /// Whether this shadow is not waited for: it has nothing yet, or was lost, or fell behind.
    #[serde(default)]
    pub exposed: bool,
    /// The lease's time to live in seconds, when a guard at the shared store decides who runs it; `None`: an operator.
    #[serde(default)]
    pub lease_s: Option<u64>,
    /// The epoch of the guard's term that this node held last.
    #[serde(default)]
    pub term: Option<u64>,
    /// How often a daemon has begun to checkpoint it: its numbers begin anew then.
    #[serde(default)]
    pub generation: u64,
}

/// A VM of another node that has its shadow here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShadowRecord {
    /// Names the protection on both nodes.
    pub id: String,
    /// The VM.
    pub vm: String,
    /// The node where its guest runs.
    pub from: String,
    /// The epoch in which it runs there.
    pub epoch: u64,
    /// Fences the QEMU that waits here.
    pub token: u64,
    /// Its volumes; the place in the list is the stream.
    pub volumes: Vec<String>,
    /// As at the primary.
    #[serde(default)]
    pub strict: bool,
    /// As at the primary.
    #[serde(default)]
    pub lease_s: Option<u64>,
    /// The nodes of the guest's other shadows: one of them may have taken over.
    #[serde(default)]
    pub siblings: Vec<String>,
}

#[cfg(test)]
impl ShadowRecord {
    /// The shadow of a guest that runs at another node, in its first epoch there.
    pub fn of(vm: &str, from: &str) -> ShadowRecord {
        ShadowRecord {
            id: format!("{from}-1-p1"),
            vm: vm.to_string(),
            from: from.to_string(),
            epoch: 1,
            token: 1,
            volumes: Vec::new(),
            strict: false,
            lease_s: None,
            siblings: Vec::new(),
        }
    }
}

impl Records {
    /// All shadows elsewhere of VMs of this node.
    pub fn protections(&self) -> Result<Vec<ProtectRecord>, ApiError> {
        let all = self.all::<ProtectRecord>("protect/")?;
        // One that was written when a VM had one shadow comes first, and again once it was changed since.
        let by_shadow: BTreeMap<_, _> = all.into_iter().map(|one| ((one.vm.clone(), one.to.clone()), one)).collect();
        Ok(by_shadow.into_values().collect())
    }

    /// Writes the record of a shadow elsewhere.
    pub fn put_protection(&self, record: &ProtectRecord) -> Result<(), ApiError> {
        self.put(&format!("protect/{}/{}", record.vm, record.to), record)
    }

    /// Removes the record of a VM's shadow at a node.
    pub fn remove_protection(&self, vm: &str, to: &str) -> Result<(), ApiError> {
        self.store.delete(&format!("protect/{vm}/{to}"))?;
        // As it was named when a VM had one shadow.
        self.store.delete(&format!("protect/{vm}"))?;
        Ok(())
    }

    /// All VMs that have their shadow here.
    pub fn shadows(&self) -> Result<Vec<ShadowRecord>, ApiError> {
        self.all("shadow/")
    }

    /// Writes a shadow's record.
    pub fn put_shadow(&self, record: &ShadowRecord) -> Result<(), ApiError> {
        self.put(&format!("shadow/{}", record.vm), record)
    }

    /// Removes a shadow's record.
    pub fn remove_shadow(&self, vm: &str) -> Result<(), ApiError> {
        self.store.delete(&format!("shadow/{vm}"))?;
        Ok(())
    }

    /// Notes that the guest of a protection lives here from this epoch on. Kept for good: nobody can say when its
    /// primary will return and ask, and it is a few bytes.
    pub fn put_promoted(&self, id: &str, epoch: u64) -> Result<(), ApiError> {
        self.put(&format!("promoted/{id}"), &epoch)
    }

    /// The epoch from which on the guest of a protection lives here, if it does.
    pub fn promoted(&self, id: &str) -> Result<Option<u64>, ApiError> {
        self.get(&format!("promoted/{id}"))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn both_sides_of_a_protection_come_back() {
        let records = Records::new(Arc::new(gnomon_store::MemStore::default()));
        let here = ProtectRecord {
            id: "a-1-1".into(),
            vm: "web".into(),
            to: "b".into(),
            interval_ms: Some(100),
            epoch: 1,
            volumes: vec!["root".into()],
            given: None,
            strict: true,
            exposed: false,
            lease_s: Some(5),
            term: Some(3),
            generation: 2,
        };
        let beside = ProtectRecord { to: "c".into(), exposed: true, ..here.clone() };
        let there = ShadowRecord {
            id: "a-1-1".into(),
            vm: "web".into(),
            from: "a".into(),
            epoch: 1,
            token: 4,
            volumes: vec!["root".into()],
            strict: true,
            lease_s: Some(5),
            siblings: vec!["c".into()],
        };
        records.put_protection(&here).expect("put");
        records.put_protection(&beside).expect("put");
        records.put_shadow(&there).expect("put");
        assert_eq!(records.protections().expect("all"), [here, beside]);
        records.remove_protection("web", "c").expect("removed");
        assert_eq!(records.shadows().expect("all"), [there]);
        assert_eq!(records.promoted("a-1-1").expect("asked"), None);
        records.put_promoted("a-1-1", 2).expect("put");
        assert_eq!(records.promoted("a-1-1").expect("asked"), Some(2));
        records.remove_protection("web", "b").expect("removed");
        records.remove_shadow("web").expect("removed");
        assert!(records.protections().expect("all").is_empty() && records.shadows().expect("all").is_empty());
    }
}
