//! The store of a cluster: an etcd that several hosts see.
//!
//! ```text
//!   any thread ──► EtcdStore (blocks) ──► one small runtime ──► members.rs: one member at a time, tries, rotation
//!                                             └── watch.rs: a task for each watch, opened again when it breaks
//! ```
//! Every write is a transaction on the revisions that its keys had (`txn.rs`), also a plain put: a request that was
//! given up may still be under way, and must do nothing when it arrives late. A record's [`Version`] is the revision of
//! the whole etcd at which it was written, so it rises over deletes and over leases that end.
//!
//! Writes are durable on most members when they return, and reads go through the leader: nobody reads what is old.

mod leases;
mod members;
mod record;
mod txn;
mod watch;

use std::{
    future::Future,
    sync::{Arc, mpsc},
    time::Duration,
};

use etcd_client::GetOptions;
use tokio::runtime::{Builder, Runtime};

use self::{
    members::Members,
    record::Requests,
    txn::{Outcome, Write},
};
use crate::{
    address::EtcdAddress,
    lease::Leases,
    store::{Change, Store, StoreError, Version, Versioned, check_key, check_record, check_records, too_large},
    tls::EtcdTls,
};

/// Records in one transaction: etcd's default for `--max-txn-ops`.
const MOST_AT_ONCE: usize = 128;

/// Bytes of values in one transaction. It names each key three times, so the most of the longest keys take 0.4 MiB of
/// etcd's 1.5 MiB.
const MOST_BYTES_AT_ONCE: usize = crate::LARGEST_VALUE;

/// Records of one page of a scan.
const PAGE: i64 = 64;

/// The longest message: a page of the largest records, with what belongs to each. A bound, not a buffer.
const LONGEST_MESSAGE: usize = (PAGE as usize) * (crate::LARGEST_VALUE + crate::LONGEST_KEY + 1024);

/// How often a put is tried anew because somebody else wrote one of its keys in between. Each time somebody got
/// through; so many in a row mean that a key is fought over, and then compare-and-set is the call to use.
const MOST_RACES: usize = 64;

/// A store in an etcd.
pub struct EtcdStore {
    core: Arc<Core>,
    /// `None` only while it is dropped.
    runtime: Option<Runtime>,
}

/// What calls and watches share.
struct Core {
    members: Members,
    requests: Requests,
}

impl EtcdStore {
    /// A store at `address`, over TLS if its files are given. Nobody has to answer yet: a host whose etcd is down still
    /// serves its guests.
    pub fn open(address: EtcdAddress, tls: Option<&EtcdTls>) -> Result<EtcdStore, StoreError> {
        EtcdStore::open_with(address, tls, members::PATIENCE)
    }

    /// The same; calls are given up after `patience`.
    pub fn open_with(
        address: EtcdAddress,
        tls: Option<&EtcdTls>,
        patience: Duration,
    ) -> Result<EtcdStore, StoreError> {
        let shown = address.to_string();
        let declined = |source: Box<dyn std::error::Error + Send + Sync>| StoreError::Declined {
            store: shown.clone(),
            deed: "be opened".to_string(),
            source,
        };
        let tls = tls.map(EtcdTls::read).transpose().map_err(|error| declined(Box::new(error)))?;
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("gnomon-etcd")
            .enable_all()
            .build()
            .map_err(|error| declined(Box::new(error)))?;
        let members = wait(&runtime, Members::new(address, tls, patience));
        let members = members.unwrap_or_else(|| Err(etcd_client::Error::Internal(String::from("no clients"))));
        let members = members.map_err(|error| declined(Box::new(error)))?;
        Ok(EtcdStore { core: Arc::new(Core { members, requests: Requests::new() }), runtime: Some(runtime) })
    }

    /// Where it is.
    pub fn address(&self) -> &EtcdAddress {
        self.core.members.address()
    }

    /// Whether most of its members answer now: the revision they have come to.
    pub fn revision(&self) -> Result<u64, StoreError> {
        self.run(|core| async move { core.revision().await }).map(|revision| u64::try_from(revision).unwrap_or(0))
    }

    /// Does `work` on the store's runtime, and waits. Callers may be threads of another runtime.
    fn run<T, F>(&self, work: impl FnOnce(Arc<Core>) -> F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        let done = self.runtime.as_ref().and_then(|runtime| wait(runtime, work(Arc::clone(&self.core))));
        done.unwrap_or_else(|| {
            Err(StoreError::Unsettled {
                store: self.address().to_string(),
                deed: "answer".to_string(),
                source: "what it said was not understood, or it is being closed".into(),
            })
        })
    }
}

impl Drop for EtcdStore {
    fn drop(&mut self) {
        // Not the runtime's own drop: that waits, and must not happen on a thread of another runtime.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Waits for `work`; `None` when it died.
fn wait<T: Send + 'static>(runtime: &Runtime, work: impl Future<Output = T> + Send + 'static) -> Option<T> {
    let (tell, told) = mpsc::sync_channel(1);
    runtime.spawn(async move {
        let _ = tell.send(work.await);
    });
    told.recv().ok()
}

impl Core {
    /// A key as etcd has it.
    fn path(&self, key: &str) -> String {
        format!("{}/{key}", self.members.address().namespace())
    }

    /// One of our keys, of one as etcd has it.
    fn key(&self, path: &[u8]) -> Result<String, StoreError> {
        let text = std::str::from_utf8(path).ok();
        let below = text.and_then(|text| text.strip_prefix(self.members.address().namespace())?.strip_prefix('/'));
        below.map(str::to_string).ok_or_else(|| StoreError::Corrupt {
            key: String::from_utf8_lossy(path).into_owned(),
            what: "its name is not of this namespace".to_string(),
        })
    }

    async fn get(&self, key: &str) -> Result<Option<Versioned>, StoreError> {
        let (deed, path) = (format!("read {key}"), self.path(key));
        let found = self.members.ask(&deed, |client| {
            let path = path.clone();
            async move { client.kv_client().get(path, None).await }
        });
        let found = found.await?;
        found.kvs().first().map(|kv| record::decode(key, kv.mod_revision(), kv.value())).transpose()
    }

    async fn revision(&self) -> Result<i64, StoreError> {
        let path = self.path("");
        let options = GetOptions::new().with_count_only();
        let found = self.members.ask("say its revision", |client| {
            let (path, options) = (path.clone(), options.clone());
            async move { client.kv_client().get(path, Some(options)).await }
        });
        Ok(found.await?.header().map_or(0, etcd_client::ResponseHeader::revision))
    }

    /// Everything below `prefix`, all as of one revision, which is returned too.
    async fn scan(&self, prefix: &str) -> Result<(i64, Vec<(String, Versioned)>), StoreError> {
        let (mut all, mut revision, deed) = (Vec::new(), 0, format!("list {prefix}"));
        let (mut from, end) = (self.path(prefix).into_bytes(), end_of(self.path(prefix).into_bytes()));
        loop {
            // Revision 0 is the newest; the pages after the first are read as of the same.
            let options = GetOptions::new().with_range(end.clone()).with_limit(PAGE).with_revision(revision);
            let page = self.members.ask(&deed, |client| {
                let (from, options) = (from.clone(), options.clone());
                let client = client.kv_client().max_decoding_message_size(LONGEST_MESSAGE);
                async move { { client }.get(from, Some(options)).await }
            });
            let page = page.await?;
            if revision == 0 {
                revision = page.header().map_or(0, etcd_client::ResponseHeader::revision);
            }
            for kv in page.kvs() {
                let key = self.key(kv.key())?;
                let record = record::decode(&key, kv.mod_revision(), kv.value())?;
                all.push((key, record));
            }
            match page.kvs().last() {
                Some(last) if page.more() => from = [last.key(), &[0]].concat(),
                _ => return Ok((revision, all)),
            }
        }
    }

    async fn put_all(&self, records: Vec<(String, Vec<u8>)>) -> Result<Vec<Version>, StoreError> {
        let Some((first, _)) = records.first() else { return Ok(Vec::new()) };
        let deed = format!("write {first}");
        // etcd takes a key once in a transaction; of a key that is named twice the last stays.
        let last: std::collections::BTreeMap<&str, &[u8]> =
            records.iter().map(|(key, value)| (key.as_str(), value.as_slice())).collect();
        let bytes = last.values().map(|value| value.len()).sum();
        if last.len() > MOST_AT_ONCE {
            return Err(too_large(first, "the batch", last.len(), MOST_AT_ONCE, "records"));
        }
        if bytes > MOST_BYTES_AT_ONCE {
            return Err(too_large(first, "the batch", bytes, MOST_BYTES_AT_ONCE, "bytes"));
        }
        for _ in 0..MOST_RACES {
            let found = self.versions(last.keys().copied()).await?;
            let writes = last.iter().zip(found).map(|((key, value), expected)| Write::put(key, expected, value));
            if let Outcome::Done(version) = self.commit(&deed, writes.collect()).await? {
                return Ok(vec![version; records.len()]);
            }
        }
        Err(self.fought_over(deed))
    }

    async fn compare_and_set(&self, write: Write) -> Result<Version, StoreError> {
        let (key, expected) = (write.key.clone(), write.expected);
        match self.commit(&format!("write {key}"), vec![write]).await? {
            Outcome::Done(version) => Ok(version),
            Outcome::Conflict(found) => {
                let found = found.into_iter().next().flatten();
                Err(StoreError::Conflict { key, expected, found })
            }
        }
    }

    async fn delete(&self, key: &str) -> Result<bool, StoreError> {
        let deed = format!("delete {key}");
        for _ in 0..MOST_RACES {
            let Some(version) = self.versions([key].into_iter()).await?.into_iter().next().flatten() else {
                return Ok(false);
            };
            if let Outcome::Done(_) = self.commit(&deed, vec![Write::delete(key, version)]).await? {
                return Ok(true);
            }
        }
        Err(self.fought_over(deed))
    }

    fn fought_over(&self, deed: String) -> StoreError {
        let source = "others wrote the same keys all the time".into();
        StoreError::Declined { store: self.members.address().to_string(), deed, source }
    }
}

/// The first key that does not begin with `prefix`: etcd's ranges end before a key. Never empty: ours have a slash.
fn end_of(mut prefix: Vec<u8>) -> Vec<u8> {
    while let Some(last) = prefix.pop() {
        if last < u8::MAX {
            prefix.push(last + 1);
            break;
        }
    }
    prefix
}

impl Store for EtcdStore {
    fn get(&self, key: &str) -> Result<Option<Versioned>, StoreError> {
        check_key(key)?;
        let key = key.to_string();
        self.run(|core| async move { core.get(&key).await })
    }

    fn put_all(&self, records: &[(String, Vec<u8>)]) -> Result<Vec<Version>, StoreError> {
        check_records(records)?;
        let records = records.to_vec();
        self.run(|core| async move { core.put_all(records).await })
    }

    fn compare_and_set(&self, key: &str, expected: Option<Version>, value: &[u8]) -> Result<Version, StoreError> {
        check_record(key, value)?;
        let write = Write::put(key, expected, value);
        self.run(|core| async move { core.compare_and_set(write).await })
    }

    fn delete(&self, key: &str) -> Result<bool, StoreError> {
        check_key(key)?;
        let key = key.to_string();
        self.run(|core| async move { core.delete(&key).await })
    }

    fn scan(&self, prefix: &str) -> Result<Vec<(String, Versioned)>, StoreError> {
        check_key(prefix)?;
        let prefix = prefix.to_string();
        self.run(|core| async move { core.scan(&prefix).await }).map(|(_, all)| all)
    }

    fn watch(&self, prefix: &str) -> Result<mpsc::Receiver<Change>, StoreError> {
        check_key(prefix)?;
        let prefix = prefix.to_string();
        self.run(|core| async move { watch::begin(core, prefix).await })
    }

    fn leases(&self) -> Result<&dyn Leases, StoreError> {
        Ok(self)
    }
}
