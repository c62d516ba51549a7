//! A VM's term at the store, and what is done with it: look, claim, change of heirs.
//!
//! ```text
//!   guard/VM/term         the term, in JSON; changed by compare-and-set only
//!   guard/VM/held/LEASE   is there while the lease lives: bound to it before a term names it
//! ```
//! A lease has its own key, named after it, so that "this lease has ended" is seen by anybody, and stays so.

use std::time::Duration;

use gnomon_proto::guard::{Claimed, Sight};
use gnomon_terms::Epoch;
use serde::{Deserialize, Serialize};

use crate::{
    lease::{Lease, LeaseId},
    store::{Store, StoreError, Version},
};

/// A VM's term, as the store has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Term {
    /// Its epoch, from 1.
    pub epoch: u64,
    /// The node that holds the VM.
    pub holder: String,
    /// The name of that node's lease.
    pub lease: i64,
    /// The nodes that may take over: those with a whole state that nothing acknowledged is missing from.
    pub heirs: Vec<String>,
}

/// The term of one VM, as one node deals with it.
pub(super) struct Desk<'a> {
    pub(super) store: &'a dyn Store,
    pub(super) node: &'a str,
    pub(super) vm: &'a str,
}

/// What a look saw, and the term itself.
pub(super) type Seen = Option<(Sight, Term)>;

impl Desk<'_> {
    /// Reads the term, and then whether its lease lives. A lease that has ended stays so, and the term's version is
    /// what a claim goes by; so nothing is lost by two reads.
    pub(super) fn look(&self) -> Result<Seen, StoreError> {
        let Some((version, term)) = self.read()? else { return Ok(None) };
        let sight = Sight {
            epoch: Epoch(term.epoch),
            version,
            mine: term.holder == self.node,
            heir: term.heirs.iter().any(|heir| heir == self.node),
            held: self.store.get(&self.held(LeaseId(term.lease)))?.is_some(),
        };
        Ok(Some((sight, term)))
    }

    /// Claims `epoch` over the term that was seen. A lease that comes to nothing is given back, or ends by itself.
    pub(super) fn claim(
        &self,
        ttl: Duration,
        epoch: Epoch,
        over: Option<Version>,
        heirs: Vec<String>,
    ) -> Result<(Claimed, Option<(Lease, Term)>), StoreError> {
        let leases = self.store.leases()?;
        let lease = leases.grant(ttl)?;
        leases.bind(&lease, &self.held(lease.id()), None, self.node.as_bytes())?;
        let term = Term { epoch: epoch.0, holder: self.node.to_string(), lease: lease.id().0, heirs };
        match self.store.compare_and_set(&self.key(), over, &encode(&term)?) {
            Ok(_) => Ok((Claimed::Won(lease.sure_until()), Some((lease, term)))),
            Err(StoreError::Conflict { .. }) => {
                // It ends by itself if this fails.
                let _ = leases.revoke(&lease);
                Ok((Claimed::Lost, None))
            }
            Err(error) => Err(error),
        }
    }

    /// Says who may take over from now on. False when this node does not hold the term with `lease` any more.
    pub(super) fn set_heirs(&self, lease: LeaseId, heirs: &[String]) -> Result<bool, StoreError> {
        loop {
            let Some((version, term)) = self.read()? else { return Ok(false) };
            if term.holder != self.node || term.lease != lease.0 {
                return Ok(false);
            }
            let changed = Term { heirs: heirs.to_vec(), ..term };
            match self.store.compare_and_set(&self.key(), Some(version), &encode(&changed)?) {
                Ok(_) => return Ok(true),
                // Somebody claimed it, or this node changed it at the same time: a look tells.
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Removes the term: the VM is protected no more.
    pub(super) fn forget(&self) -> Result<(), StoreError> {
        self.store.delete(&self.key()).map(|_| ())
    }

    /// Everything of this VM's at the store.
    pub(super) fn prefix(&self) -> String {
        format!("guard/{}/", self.vm)
    }

    fn key(&self) -> String {
        format!("guard/{}/term", self.vm)
    }

    fn held(&self, lease: LeaseId) -> String {
        format!("guard/{}/held/{lease}", self.vm)
    }

    fn read(&self) -> Result<Option<(Version, Term)>, StoreError> {
        let key = self.key();
        let Some(record) = self.store.get(&key)? else { return Ok(None) };
        let term = serde_json::from_slice(&record.value);
        let term = term.map_err(|error| StoreError::Corrupt { key, what: format!("it is no term: {error}") })?;
        Ok(Some((record.version, term)))
    }
}

fn encode(term: &Term) -> Result<Vec<u8>, StoreError> {
    let failed =
        |error: serde_json::Error| StoreError::Corrupt { key: "a term".to_string(), what: error.to_string() };
    serde_json::to_vec(term).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemStore;

    const DESK: fn(&MemStore) -> Desk<'_> = |store| Desk { store, node: "a", vm: "web" };

    #[test]
    fn a_look_sees_whose_it_is_and_whether_it_is_held() {
        let store = MemStore::default();
        assert_eq!(DESK(&store).look().expect("look"), None);
        let term = |holder: &str, heirs: &[&str]| Term {
            epoch: 3,
            holder: holder.to_string(),
            lease: 7,
            heirs: heirs.iter().map(|heir| heir.to_string()).collect(),
        };
        for (term, held, expected) in [
            (term("a", &["b"]), true, (true, false, true)),
            (term("b", &["c", "a"]), false, (false, true, false)),
            (term("b", &[]), true, (false, false, true)),
        ] {
            let version = store.put("guard/web/term", &encode(&term).expect("json")).expect("put");
            match held {
                true => _ = store.put("guard/web/held/0000000000000007", b"").expect("put"),
                false => _ = store.delete("guard/web/held/0000000000000007").expect("delete"),
            }
            let (sight, seen) = DESK(&store).look().expect("look").expect("there is one");
            assert_eq!((sight.mine, sight.heir, sight.held), expected, "{term:?}");
            assert_eq!((sight.version, sight.epoch, seen), (version, Epoch(3), term));
        }
    }

    #[test]
    fn heirs_are_named_by_the_holder_only() {
        let store = MemStore::default();
        assert!(!DESK(&store).set_heirs(LeaseId(7), &[]).expect("no term"));
        let term = Term { epoch: 1, holder: "a".to_string(), lease: 7, heirs: vec![] };
        store.put("guard/web/term", &encode(&term).expect("json")).expect("put");
        assert!(!DESK(&store).set_heirs(LeaseId(8), &["b".to_string()]).expect("another lease"));
        assert!(DESK(&store).set_heirs(LeaseId(7), &["b".to_string()]).expect("the holder"));
        assert_eq!(DESK(&store).look().expect("look").expect("term").1.heirs, ["b"]);
        assert!(!Desk { node: "b", ..DESK(&store) }.set_heirs(LeaseId(7), &[]).expect("an heir"));
    }

    #[test]
    fn a_term_that_is_damaged_is_told() {
        let store = MemStore::default();
        store.put("guard/web/term", b"{\"epoch\":-1}").expect("put");
        assert_eq!(DESK(&store).look().expect_err("no term").kind(), gnomon_terms::ErrorKind::Corrupt);
    }
}
