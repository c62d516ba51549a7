//! What a store promises.

use std::{path::PathBuf, sync::mpsc::Receiver};

use gnomon_terms::ErrorKind;

/// Counts the writes to a key, from 1. A key that was deleted and written again goes on counting upwards.
pub type Version = u64;

/// A value and its version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned {
    /// How often the key has been written.
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
/// A write is durable when the call returns, and writes are seen in one order by everybody.
pub trait Store: Send + Sync {
    /// What is at `key`.
    fn get(&self, key: &str) -> Result<Option<Versioned>, StoreError>;

    /// Writes all of these, or none; returns the versions they got.
    fn put_all(&self, records: &[(String, Vec<u8>)]) -> Result<Vec<Version>, StoreError>;

    /// Writes if the key still has the version that was `expected` (`None`: if there is none); else
    /// [`StoreError::Conflict`].
    fn compare_and_set(&self, key: &str, expected: Option<Version>, value: &[u8]) -> Result<Version, StoreError>;

    /// Removes a key; false if there was none.
    fn delete(&self, key: &str) -> Result<bool, StoreError>;

    /// Everything whose key begins with `prefix`, by key.
    fn scan(&self, prefix: &str) -> Result<Vec<(String, Versioned)>, StoreError>;

    /// From now on every change below `prefix`, in order, until the receiver is dropped.
    fn watch(&self, prefix: &str) -> Receiver<Change>;

    /// Writes one key.
    fn put(&self, key: &str, value: &[u8]) -> Result<Version, StoreError> {
        let versions = self.put_all(&[(key.to_string(), value.to_vec())])?;
        Ok(versions.first().copied().unwrap_or_default())
    }
}

/// Why a store could not do as told. Nothing was changed.
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
            StoreError::Conflict { .. } => ErrorKind::Refused,
            StoreError::Engine { .. } => ErrorKind::Unavailable,
            StoreError::Corrupt { .. } => ErrorKind::Corrupt,
        }
    }
}

/// Who watches what; shared by the implementations.
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
