//! The embedded store: one file, crash safe.
//!
//! Each record is its version (8 bytes, little-endian) and the value. Two-phase commit is on: redb's releases before
//! 4.2 could roll durable commits back after a crash during recovery, and two-phase commits were not affected; it
//! costs one more sync, and facts are few. Source: redb's changelog, 4.2.0.

use std::{
    path::{Path, PathBuf},
    sync::mpsc::Receiver,
};

use parking_lot::Mutex;
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};

use crate::{
    lease::Leases,
    store::{Change, Store, StoreError, Version, Versioned, Watchers, check_key, check_record, check_records},
};

/// Key → version and value.
const RECORDS: TableDefinition<&str, &[u8]> = TableDefinition::new("records");
/// The last version of deleted keys, so that versions only rise.
const BURIED: TableDefinition<&str, u64> = TableDefinition::new("buried");

/// Bytes of the version before a value.
const VERSION_LEN: usize = 8;

/// A store in one file of this host.
pub struct RedbStore {
    path: PathBuf,
    database: Database,
    watchers: Watchers,
    /// Held while a change is written and told, so that watchers hear changes in the order they were made.
    writing: Mutex<()>,
}

impl RedbStore {
    /// Opens the store in `path`, or makes it. Only one process may have it open.
    pub fn open(path: &Path) -> Result<RedbStore, StoreError> {
        let database = Database::create(path).map_err(|source| StoreError::Engine {
            path: path.to_path_buf(),
            deed: "open (is another daemon using it?)",
            source: Box::new(source),
        })?;
        let store = RedbStore {
            path: path.to_path_buf(),
            database,
            watchers: Watchers::default(),
            writing: Mutex::default(),
        };
        // Makes the tables, so that reading never finds them missing.
        store.write(|_, _| Ok(()))?;
        Ok(store)
    }

    fn engine<E>(&self, deed: &'static str) -> impl FnOnce(E) -> StoreError
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        let path = self.path.clone();
        move |source| StoreError::Engine { path, deed, source: Box::new(source) }
    }

    /// Runs `deed` in one durable transaction, and tells its changes afterwards.
    fn write<T>(
        &self,
        deed: impl FnOnce(&mut Tables<'_>, &mut Vec<Change>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let _guard = self.writing.lock();
        let mut transaction = self.database.begin_write().map_err(self.engine("begin a write"))?;
        transaction.set_durability(Durability::Immediate).map_err(self.engine("begin a write"))?;
        transaction.set_two_phase_commit(true);
        let mut changes = Vec::new();
        let result = {
            let mut tables = Tables::open(self, &transaction)?;
            deed(&mut tables, &mut changes)?
        };
        transaction.commit().map_err(self.engine("commit"))?;
        for change in &changes {
            self.watchers.tell(change);
        }
        Ok(result)
    }
}

/// The tables of a transaction.
struct Tables<'a> {
    store: &'a RedbStore,
    records: redb::Table<'a, &'static str, &'static [u8]>,
    buried: redb::Table<'a, &'static str, u64>,
}

impl<'a> Tables<'a> {
    fn open(store: &'a RedbStore, transaction: &'a WriteTransaction) -> Result<Tables<'a>, StoreError> {
        let records = transaction.open_table(RECORDS).map_err(store.engine("open its records"))?;
        let buried = transaction.open_table(BURIED).map_err(store.engine("open its records"))?;
        Ok(Tables { store, records, buried })
    }

    fn version(&self, key: &str) -> Result<Option<Version>, StoreError> {
        let found = self.records.get(key).map_err(self.store.engine("read"))?;
        found.map(|guard| decode(key, guard.value()).map(|record| record.version)).transpose()
    }

    fn put(&mut self, key: &str, value: &[u8]) -> Result<Versioned, StoreError> {
        let last = match self.version(key)? {
            Some(version) => version,
            None => self.buried.remove(key).map_err(self.store.engine("read"))?.map_or(0, |guard| guard.value()),
        };
        let record = Versioned { version: last + 1, value: value.to_vec() };
        self.records.insert(key, encode(&record).as_slice()).map_err(self.store.engine("write"))?;
        Ok(record)
    }
}

impl Store for RedbStore {
    fn get(&self, key: &str) -> Result<Option<Versioned>, StoreError> {
        check_key(key)?;
        let transaction = self.database.begin_read().map_err(self.engine("begin a read"))?;
        let records = transaction.open_table(RECORDS).map_err(self.engine("open its records"))?;
        let found = records.get(key).map_err(self.engine("read"))?;
        found.map(|guard| decode(key, guard.value())).transpose()
    }

    fn put_all(&self, records: &[(String, Vec<u8>)]) -> Result<Vec<Version>, StoreError> {
        check_records(records)?;
        self.write(|tables, changes| {
            let mut versions = Vec::with_capacity(records.len());
            for (key, value) in records {
                let now = tables.put(key, value)?;
                versions.push(now.version);
                changes.push(Change { key: key.clone(), now: Some(now) });
            }
            Ok(versions)
        })
    }

    fn compare_and_set(&self, key: &str, expected: Option<Version>, value: &[u8]) -> Result<Version, StoreError> {
        check_record(key, value)?;
        self.write(|tables, changes| {
            let found = tables.version(key)?;
            if found != expected {
                return Err(StoreError::Conflict { key: key.to_string(), expected, found });
            }
            let now = tables.put(key, value)?;
            let version = now.version;
            changes.push(Change { key: key.to_string(), now: Some(now) });
            Ok(version)
        })
    }

    fn delete(&self, key: &str) -> Result<bool, StoreError> {
        check_key(key)?;
        self.write(|tables, changes| {
            let Some(version) = tables.version(key)? else { return Ok(false) };
            tables.records.remove(key).map_err(self.engine("delete"))?;
            tables.buried.insert(key, version).map_err(self.engine("delete"))?;
            changes.push(Change { key: key.to_string(), now: None });
            Ok(true)
        })
    }

    fn scan(&self, prefix: &str) -> Result<Vec<(String, Versioned)>, StoreError> {
        let transaction = self.database.begin_read().map_err(self.engine("begin a read"))?;
        let records = transaction.open_table(RECORDS).map_err(self.engine("open its records"))?;
        let mut found = Vec::new();
        for entry in records.range(prefix..).map_err(self.engine("scan"))? {
            let (key, value) = entry.map_err(self.engine("scan"))?;
            if !key.value().starts_with(prefix) {
                break;
            }
            found.push((key.value().to_string(), decode(key.value(), value.value())?));
        }
        Ok(found)
    }

    fn watch(&self, prefix: &str) -> Result<Receiver<Change>, StoreError> {
        Ok(self.watchers.add(prefix))
    }

    fn leases(&self) -> Result<&dyn Leases, StoreError> {
        let why = "it lives and dies with this host, so no other host could tell a lease that ended from a cable that \
                   was cut; name an etcd to `gnomon serve --store`, or fence a dead host by hand and say so with \
                   --i-have-fenced";
        Err(StoreError::NoLeases { store: format!("the embedded store {}", self.path.display()), why })
    }
}

fn encode(record: &Versioned) -> Vec<u8> {
    [&record.version.to_le_bytes()[..], &record.value].concat()
}

fn decode(key: &str, bytes: &[u8]) -> Result<Versioned, StoreError> {
    match bytes.split_first_chunk::<VERSION_LEN>() {
        Some((version, value)) => Ok(Versioned { version: u64::from_le_bytes(*version), value: value.to_vec() }),
        None => Err(StoreError::Corrupt { key: key.to_string(), what: "it is shorter than its version".to_string() }),
    }
}
