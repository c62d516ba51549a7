//! The stores of one host.

use std::sync::Arc;

use gnomon_store::{MemStore, RedbStore, Store, StoreError};
use gnomon_terms::ErrorKind;

use crate::conformance::conforms;

#[test]
fn the_store_in_memory_conforms() {
    conforms(|| Arc::new(MemStore::default()));
}

#[test]
fn the_embedded_store_conforms() {
    let dir = tempfile::tempdir().expect("dir");
    let next = std::cell::Cell::new(0);
    conforms(|| {
        next.set(next.get() + 1);
        Arc::new(RedbStore::open(&dir.path().join(format!("{}.redb", next.get()))).expect("open"))
    });
}

#[test]
fn the_embedded_store_is_found_again_and_is_for_one_process() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("store.redb");
    let store = RedbStore::open(&path).expect("open");
    store.put("a", b"1").expect("put");
    assert!(RedbStore::open(&path).is_err(), "two daemons on one store");
    drop(store);
    assert_eq!(RedbStore::open(&path).expect("open").get("a").expect("get").expect("there").value, b"1");
}

#[test]
fn a_file_that_is_no_store_is_refused() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("store.redb");
    std::fs::write(&path, vec![7u8; 8192]).expect("write");
    assert!(RedbStore::open(&path).is_err());
}

#[test]
fn a_store_that_no_other_host_sees_grants_no_lease_and_says_why() {
    let dir = tempfile::tempdir().expect("dir");
    let embedded = RedbStore::open(&dir.path().join("store.redb")).expect("open");
    let stores: [(&dyn Store, &str); 2] = [(&embedded, "--i-have-fenced"), (&MemStore::default(), "one process")];
    for (store, advice) in stores {
        let Err(error) = store.leases() else { panic!("a lease that nobody else can judge") };
        assert!(matches!(error, StoreError::NoLeases { .. }) && error.kind() == ErrorKind::Refused, "{error:?}");
        assert!(error.to_string().contains(advice), "{error}");
    }
}
