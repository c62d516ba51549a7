//! The store that several nodes see, and this node's presence there.
//!
//! What concerns this host alone is on record in its own state folder, so a host whose etcd is down still serves its
//! guests. What hosts must agree on is in the shared store: who is present, and (see `gnomon_store::guarding`) who may
//! run a protected VM.
//!
//! ```text
//!   node/NAME   address and origin in JSON, bound to a lease that the presence thread keeps alive
//! ```

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread,
    time::Duration,
};

use gnomon_store::{Lease, Store, StoreError};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::{
    api::{ApiError, chain},
    config::Config,
};

/// How long a node that has died is still taken for present.
const PRESENCE_TTL: Duration = Duration::from_secs(10);

/// How long a person waits for the presence of others; a store that is there answers in milliseconds.
const LOOK: Duration = Duration::from_secs(1);

/// How long a daemon that stops waits for its lease to be ended, so that it is absent at once.
const FAREWELL: Duration = Duration::from_secs(1);

/// Where nodes say that they are alive.
const NODES: &str = "node/";

/// The shared store, with this node present there until it leaves.
pub struct Shared {
    store: Arc<dyn Store>,
    /// Ends the presence when it is dropped, and says when that is done; taken by whoever ends it.
    presence: Mutex<Option<(Sender<()>, Receiver<()>)>>,
}

/// What a node says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Presence {
    /// Where its link listens; empty without one.
    address: String,
    /// Which daemon it is: the boot of its host, and its state folder. Two of one name are told apart by it.
    origin: String,
}

impl Shared {
    /// The store that the configuration names, if any; it need not answer yet.
    pub fn open(config: &Config) -> Result<Option<Shared>, ApiError> {
        let Some(store) = open_store(config)? else { return Ok(None) };
        let presence = Presence { address: config.link_address(), origin: origin(config) };
        let (stop, stops) = mpsc::channel();
        let (tell, stopped) = mpsc::channel();
        let (there, key) = (Arc::clone(&store), format!("{NODES}{}", config.node));
        thread::spawn(move || {
            keep_present(&*there, &key, &presence, &stops);
            let _ = tell.send(());
        });
        Ok(Some(Shared { store, presence: Mutex::new(Some((stop, stopped))) }))
    }

    /// The store.
    pub fn store(&self) -> Arc<dyn Store> {
        Arc::clone(&self.store)
    }

    /// Ends this node's presence. Blocks for a second at most.
    pub fn leave(&self) {
        if let Some((stop, stopped)) = self.presence.lock().take() {
            drop(stop);
            // Should the store not answer, the lease ends by itself.
            let _ = stopped.recv_timeout(FAREWELL);
        }
    }

    /// The nodes that say they are alive, with their addresses; `None` when the store does not answer.
    pub async fn present(&self) -> Option<BTreeMap<String, String>> {
        let store = Arc::clone(&self.store);
        let look = tokio::task::spawn_blocking(move || store.scan(NODES));
        let found = match tokio::time::timeout(LOOK, look).await {
            Ok(Ok(Ok(found))) => found,
            Ok(Ok(Err(error))) => {
                tracing::warn!("who is present is not known: {}", chain(&error));
                return None;
            }
            Ok(Err(_)) | Err(_) => return None,
        };
        let one = |(key, record): (String, gnomon_store::Versioned)| {
            let presence: Presence = serde_json::from_slice(&record.value).ok()?;
            Some((key.strip_prefix(NODES)?.to_string(), presence.address))
        };
        Some(found.into_iter().filter_map(one).collect())
    }
}

#[cfg(feature = "etcd")]
fn open_store(config: &Config) -> Result<Option<Arc<dyn Store>>, ApiError> {
    let Some(address) = &config.shared_store else { return Ok(None) };
    Ok(Some(Arc::new(gnomon_store::EtcdStore::open(address.clone(), config.shared_tls.as_ref())?)))
}

#[cfg(not(feature = "etcd"))]
fn open_store(config: &Config) -> Result<Option<Arc<dyn Store>>, ApiError> {
    match &config.shared_store {
        None => Ok(None),
        Some(address) => {
            Err(ApiError::refused(format!("this gnomon was built without etcd, and is to use {address}"))
                .then("build it with `--features etcd` (needs protoc), or leave the store out"))
        }
    }
}

/// Which daemon this is. A host without a boot id is told apart by its state folder alone.
fn origin(config: &Config) -> String {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    format!("{}:{}", boot.trim(), config.state_dir.display())
}

/// Says that this node is alive, until it is told to stop. Trouble is logged when it begins and when it ends.
fn keep_present(store: &dyn Store, key: &str, presence: &Presence, stops: &Receiver<()>) {
    let (mut lease, mut trouble, mut cautioned) = (None, None, false);
    loop {
        let said = match &mut lease {
            Some(lease) => store.leases().and_then(|leases| leases.keep_alive(lease)),
            None => announce(store, key, presence).map(|granted| lease = Some(granted)),
        };
        if let Err(StoreError::LeaseEnded { .. }) = &said {
            // The node was taken for dead; it says anew that it is not.
            lease = None;
            continue;
        }
        if said.is_ok() && !cautioned {
            cautioned = true;
            caution(store);
        }
        note(&mut trouble, said.err().map(|error| words(&error)));
        match stops.recv_timeout(PRESENCE_TTL / 3) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    if let (Some(lease), Ok(leases)) = (lease, store.leases()) {
        let _ = leases.revoke(&lease);
    }
}

/// A lease, with this node's presence bound to it. What an earlier run of this daemon has said is replaced.
fn announce(store: &dyn Store, key: &str, presence: &Presence) -> Result<Lease, StoreError> {
    let found = store.get(key)?;
    let is_ours =
        |value: &[u8]| serde_json::from_slice::<Presence>(value).is_ok_and(|known| known.origin == presence.origin);
    // Another daemon of this name: the write is refused, and tried again when that one may be gone.
    let expected = found.filter(|record| is_ours(&record.value)).map(|record| record.version);
    let leases = store.leases()?;
    let lease = leases.grant(PRESENCE_TTL)?;
    let value = serde_json::to_vec(presence).unwrap_or_default();
    leases.bind(&lease, key, expected, &value).inspect_err(|_| _ = leases.revoke(&lease))?;
    Ok(lease)
}

/// Says once what is known to be wrong with the store's leases.
fn caution(store: &dyn Store) {
    if let Ok(Some(caution)) = store.leases().and_then(|leases| leases.caution()) {
        tracing::warn!("{caution}");
    }
}

fn words(error: &StoreError) -> String {
    match error {
        StoreError::Conflict { key, .. } => {
            format!("another daemon says that it is {key}: give each node its own node.name")
        }
        other => format!("this node is not seen by others: {}", chain(other)),
    }
}

fn note(trouble: &mut Option<String>, now: Option<String>) {
    match (&*trouble, &now) {
        (None, Some(words)) => tracing::warn!("{words}"),
        (Some(_), None) => tracing::info!("the shared store answers: this node is present there"),
        _ => {}
    }
    *trouble = now;
}

#[cfg(test)]
mod tests {
    use gnomon_store::MemStore;

    use super::*;

    #[test]
    fn a_daemon_is_present_only_where_others_can_see_it() {
        let presence = Presence { address: "10.0.0.1:7400".to_string(), origin: "boot:/s".to_string() };
        let error = announce(&MemStore::default(), "node/a", &presence).expect_err("nobody else sees it");
        assert!(words(&error).contains("grants no leases"), "{}", words(&error));
        let conflict = StoreError::Conflict { key: "node/a".to_string(), expected: None, found: Some(1) };
        assert!(words(&conflict).contains("node.name"));
    }
}
