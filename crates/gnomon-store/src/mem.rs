//! A store in memory: for tests, and for what may be lost.

use std::{collections::BTreeMap, sync::mpsc::Receiver};

use parking_lot::Mutex;

use crate::{
    lease::Leases,
    store::{Change, Store, StoreError, Version, Versioned, Watchers, check_key, check_record, check_records},
};

/// Loses everything when it is dropped.
#[derive(Default)]
pub struct MemStore {
    state: Mutex<State>,
    watchers: Watchers,
}

#[derive(Default)]
struct State {
    records: BTreeMap<String, Versioned>,
    /// The last version of deleted keys, so that versions only rise.
    buried: BTreeMap<String, Version>,
}

impl State {
    fn write(&mut self, key: &str, value: &[u8]) -> Versioned {
        let last = self.records.get(key).map(|r| r.version).or_else(|| self.buried.remove(key)).unwrap_or(0);
        let record = Versioned { version: last + 1, value: value.to_vec() };
        self.records.insert(key.to_string(), record.clone());
        record
    }
}

impl Store for MemStore {
    fn get(&self, key: &str) -> Result<Option<Versioned>, StoreError> {
        check_key(key)?;
        Ok(self.state.lock().records.get(key).cloned())
    }

    fn put_all(&self, records: &[(String, Vec<u8>)]) -> Result<Vec<Version>, StoreError> {
        check_records(records)?;
        let mut state = self.state.lock();
        let mut versions = Vec::with_capacity(records.len());
        for (key, value) in records {
            let now = state.write(key, value);
            versions.push(now.version);
            self.watchers.tell(&Change { key: key.clone(), now: Some(now) });
        }
        Ok(versions)
    }

    fn compare_and_set(&self, key: &str, expected: Option<Version>, value: &[u8]) -> Result<Version, StoreError> {
        check_record(key, value)?;
        let mut state = self.state.lock();
        let found = state.records.get(key).map(|record| record.version);
        if found != expected {
            return Err(StoreError::Conflict { key: key.to_string(), expected, found });
        }
        let now = state.write(key, value);
        let version = now.version;
        self.watchers.tell(&Change { key: key.to_string(), now: Some(now) });
        Ok(version)
    }

    fn delete(&self, key: &str) -> Result<bool, StoreError> {
        check_key(key)?;
        let mut state = self.state.lock();
        let Some(record) = state.records.remove(key) else { return Ok(false) };
        state.buried.insert(key.to_string(), record.version);
        self.watchers.tell(&Change { key: key.to_string(), now: None });
        Ok(true)
    }

    fn scan(&self, prefix: &str) -> Result<Vec<(String, Versioned)>, StoreError> {
        let state = self.state.lock();
        let from = state.records.range(prefix.to_string()..);
        Ok(from.take_while(|(key, _)| key.starts_with(prefix)).map(|(k, v)| (k.clone(), v.clone())).collect())
    }

    fn watch(&self, prefix: &str) -> Result<Receiver<Change>, StoreError> {
        Ok(self.watchers.add(prefix))
    }

    fn leases(&self) -> Result<&dyn Leases, StoreError> {
        let why = "it is in the memory of one process, and whoever is to judge a lease must be able to see it";
        Err(StoreError::NoLeases { store: "the store in memory".to_string(), why })
    }
}
