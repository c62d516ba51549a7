//! One suite for every store, and what a crash leaves.

mod crash;

use std::sync::Arc;

use gnomon_store::{MemStore, RedbStore, Store, StoreError};

/// What every store promises. `open` gives a fresh one.
fn conforms(open: impl Fn() -> Arc<dyn Store>) {
    reads_see_writes(&*open());
    versions_only_rise(&*open());
    compare_and_set_lets_one_win(&open());
    scans_see_their_prefix(&*open());
    watches_hear_changes_in_order(&*open());
}

fn reads_see_writes(store: &dyn Store) {
    assert_eq!(store.get("a").expect("get"), None);
    assert_eq!(store.put("a", b"1").expect("put"), 1);
    assert_eq!(store.get("a").expect("get").expect("there").value, b"1");
    store.put_all(&[("a".into(), b"2".to_vec()), ("b".into(), vec![])]).expect("put all");
    assert_eq!(store.get("a").expect("get").expect("there").value, b"2");
    assert_eq!(store.get("b").expect("get").expect("there").value, b"");
}

fn versions_only_rise(store: &dyn Store) {
    store.put("a", b"1").expect("put");
    store.put("a", b"2").expect("put");
    assert!(store.delete("a").expect("delete"));
    assert!(!store.delete("a").expect("delete"));
    assert_eq!(store.get("a").expect("get"), None);
    assert_eq!(store.put("a", b"3").expect("put"), 3, "an old reader cannot mistake the new record for the old one");
}

fn compare_and_set_lets_one_win(store: &Arc<dyn Store>) {
    let refused = store.compare_and_set("a", Some(1), b"x");
    assert!(matches!(refused, Err(StoreError::Conflict { found: None, .. })), "{refused:?}");
    store.compare_and_set("a", None, b"0").expect("first");
    let wins: usize = std::thread::scope(|scope| {
        let all: Vec<_> = (0..8u8)
            .map(|who| scope.spawn(move || usize::from(store.compare_and_set("a", Some(1), &[who]).is_ok())))
            .collect();
        all.into_iter().map(|one| one.join().expect("thread")).sum()
    });
    assert_eq!(wins, 1);
}

fn scans_see_their_prefix(store: &dyn Store) {
    for key in ["v/b", "v/a", "w/a", "v", "v0"] {
        store.put(key, key.as_bytes()).expect("put");
    }
    let keys: Vec<String> = store.scan("v/").expect("scan").into_iter().map(|(key, _)| key).collect();
    assert_eq!(keys, ["v/a", "v/b"]);
    assert!(store.scan("nothing").expect("scan").is_empty());
}

fn watches_hear_changes_in_order(store: &dyn Store) {
    let changes = store.watch("v/");
    store.put("w/x", b"no").expect("put");
    store.put("v/x", b"1").expect("put");
    store.delete("v/x").expect("delete");
    let heard: Vec<(String, bool)> =
        (0..2).map(|_| changes.recv().expect("change")).map(|change| (change.key, change.now.is_some())).collect();
    assert_eq!(heard, [("v/x".to_string(), true), ("v/x".to_string(), false)]);
}

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
