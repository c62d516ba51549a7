//! What a store promises.

use std::{path::PathBuf, sync::mpsc::Receiver, time::Duration};

use gnomon_terms::ErrorKind;

use crate::lease::Leases;

/// Rises with every write of a key, from at least 1; also over a delete. Not a count: a store may leave numbers out.
pub type Version = u64;

/// The longest key, in bytes. Every name of ours is far shorter; etcd keeps all keys in memory.
pub const LONGEST_KEY: usize = 1024;

/// The largest value, in bytes. etcd takes requests of 1.5 MiB with all that belongs to them, and stores hold facts.
pub const LARGEST_VALUE: usize = 1 << 20;

/// A value and its version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned {
    /// Greater than at every earlier write of this key.
    pub version: Version,
    /// What was written last.
    pub value: Vec<u8>,
}

/// A change to a key, as a watch tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Which key.
    pub key: String,
    /// What it is now; `None` after a delete.
    pub now: Option<Versioned>,
}

/// Keys and small values. Shared by many threads; every call blocks until done.
///
/// A write is durable when the call returns, and writes are seen in one order by everybody. Keys and values are
/// bounded by [`LONGEST_KEY`] and [`LARGEST_VALUE`]; what is larger is [`StoreError::TooLarge`].
pub trait Store: Send + Sync {
    /// What is at `key`.
    fn get(&self, key: &str) -> Result<Option<Versioned>, StoreError>;

    /// Writes all of these, or none; returns the versions they got. Of a key that is named twice the last stays. A
    /// store on other machines may refuse more at once than its engine takes, with [`StoreError::TooLarge`].
    fn put_all(&self, records: &[(String, Vec<u8>)]) -> Result<Vec<Version>, StoreError>;

    /// Writes if the key still has the version that was `expected` (`None`: if there is none); else
    /// [`StoreError::Conflict`].
    fn compare_and_set(&self, key: &str, expected: Option<Version>, value: &[u8]) -> Result<Version, StoreError>;

    /// Removes a key; false if there was none.
    fn delete(&self, key: &str) -> Result<bool, StoreError>;

    /// Everything whose key begins with `prefix`, by key.
    fn scan(&self, prefix: &str) -> Result<Vec<(String, Versioned)>, StoreError>;

    /// From now on every change below `prefix`, in order, until the receiver is dropped.
    ///
    /// A store on other machines may be out of reach for a while: then changes come late, and of several changes to a
    /// key only the last may come. Silence is no proof that nothing changed.
    fn watch(&self, prefix: &str) -> Result<Receiver<Change>, StoreError>;

    /// Its leases; [`StoreError::NoLeases`] when another host could not judge them.
    fn leases(&self) -> Result<&dyn Leases, StoreError>;

    /// Writes one key.
    fn put(&self, key: &str, value: &[u8]) -> Result<Version, StoreError> {
        let versions = self.put_all(&[(key.to_string(), value.to_vec())])?;
        Ok(versions.first().copied().unwrap_or_default())
    }
}

/// Why a store could not do as told. Nothing was changed, save for [`StoreError::Unsettled`], which does not know.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Somebody else wrote the key.
    #[error("{key} has version {found:?}, not {expected:?}: read it again and decide anew")]
    Conflict {
        /// Which key.
        key: String,
        /// The version that was expected.
        expected: Option<Version>,
        /// The version that is there.
        found: Option<Version>,
    },
    /// The engine below failed.
    #[error("the store {path} failed to {deed}")]
    Engine {
        /// Where it is.
        path: PathBuf,
        /// What it was doing.
        deed: &'static str,
        /// What the engine said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A key, a value or a batch is over the bounds.
    #[error("{what} of {key} has {size} {unit}, and {limit} is the most: the store is for small facts")]
    TooLarge {
        /// Which key; of a batch the first.
        key: String,
        /// What of it.
        what: &'static str,
        /// How much it is.
        size: usize,
        /// The most.
        limit: usize,
        /// What is counted.
        unit: &'static str,
    },
    /// A store on other machines did not answer. Nothing was changed.
    #[error(
        "the store {store} did not answer within {waited:?} to {deed}: see that its members run, that most of them \
         reach one another, and that this host reaches them"
    )]
    Unreachable {
        /// Its address.
        store: String,
        /// What was asked.
        deed: String,
        /// How long it was tried.
        waited: Duration,
        /// What came of the last try.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A store on other machines was asked to write, and did not say what came of it.
    #[error("the store {store} did not say whether it could {deed}: it may have; read it again and decide anew")]
    Unsettled {
        /// Its address.
        store: String,
        /// What was asked.
        deed: String,
        /// What came of the last try.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A store on other machines answered, and does not do it.
    #[error("the store {store} refused to {deed}")]
    Declined {
        /// Its address.
        store: String,
        /// What was asked.
        deed: String,
        /// What it said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The lease has ended, or was never granted; what was bound to it is gone.
    #[error("the lease {lease} has ended at the store {store}: whoever waited for its end may have taken over")]
    LeaseEnded {
        /// The store's address.
        store: String,
        /// Which lease.
        lease: String,
    },
    /// The store cannot grant leases that mean anything to another host.
    #[error("{store} grants no leases: {why}")]
    NoLeases {
        /// Which store.
        store: String,
        /// Why not, and what to do.
        why: &'static str,
    },
    /// A record is not what was written.
    #[error("the record {key} is damaged: {what}")]
    Corrupt {
        /// Which key.
        key: String,
        /// What is wrong.
        what: String,
    },
}

impl StoreError {
    /// What the caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            StoreError::Conflict { .. }
            | StoreError::TooLarge { .. }
            | StoreError::LeaseEnded { .. }
            | StoreError::NoLeases { .. } => ErrorKind::Refused,
            StoreError::Engine { .. }
            | StoreError::Unreachable { .. }
            | StoreError::Unsettled { .. }
            | StoreError::Declined { .. } => ErrorKind::Unavailable,
            StoreError::Corrupt { .. } => ErrorKind::Corrupt,
        }
    }
}

/// Refuses a key that is too long.
pub(crate) fn check_key(key: &str) -> Result<(), StoreError> {
    match key.len() <= LONGEST_KEY {
        true => Ok(()),
        false => Err(too_large(key, "the name", key.len(), LONGEST_KEY, "bytes")),
    }
}

/// Refuses a key or a value that is too large.
pub(crate) fn check_record(key: &str, value: &[u8]) -> Result<(), StoreError> {
    check_key(key)?;
    match value.len() <= LARGEST_VALUE {
        true => Ok(()),
        false => Err(too_large(key, "the value", value.len(), LARGEST_VALUE, "bytes")),
    }
}

/// Refuses a batch in which a key or a value is too large.
pub(crate) fn check_records(records: &[(String, Vec<u8>)]) -> Result<(), StoreError> {
    records.iter().try_for_each(|(key, value)| check_record(key, value))
}

/// What is over a bound; a long name is cut, for messages are read by people.
pub(crate) fn too_large(key: &str, what: &'static str, size: usize, limit: usize, unit: &'static str) -> StoreError {
    let shown: String = key.chars().take(SHOWN_OF_A_NAME).collect();
    StoreError::TooLarge { key: shown, what, size, limit, unit }
}

/// As much of a name as a message shows.
const SHOWN_OF_A_NAME: usize = 64;

/// Who watches what; shared by the implementations on this host.
#[derive(Default)]
pub(crate) struct Watchers {
    all: parking_lot::Mutex<Vec<(String, std::sync::mpsc::Sender<Change>)>>,
}

impl Watchers {
    pub(crate) fn add(&self, prefix: &str) -> Receiver<Change> {
        let (sender, receiver) = std::sync::mpsc::channel();
        self.all.lock().push((prefix.to_string(), sender));
        receiver
    }

    /// Tells everybody concerned; those who no longer listen are forgotten.
    pub(crate) fn tell(&self, change: &Change) {
        self.all.lock().retain(|(prefix, sender)| {
            !change.key.starts_with(prefix.as_str()) || sender.send(change.clone()).is_ok()
        });
    }
}
