//! What every store promises: one suite for all of them.

use std::sync::Arc;

use gnomon_store::{LARGEST_VALUE, LONGEST_KEY, Store, StoreError};
use gnomon_terms::ErrorKind;

/// Holds a kind of store to its promises. `open` gives a fresh, empty one.
pub fn conforms(open: impl Fn() -> Arc<dyn Store>) {
    reads_see_writes(&*open());
    versions_only_rise(&*open());
    compare_and_set_lets_one_win(&open());
    a_refused_compare_and_set_says_what_is_there(&*open());
    puts_at_the_same_time_are_all_done(&open());
    scans_see_their_prefix(&*open());
    scans_see_all_of_it(&*open());
    watches_hear_changes_in_order(&*open());
    what_is_too_large_is_refused(&*open());
}

fn reads_see_writes(store: &dyn Store) {
    assert_eq!(store.get("a").expect("get"), None);
    let version = store.put("a", b"1").expect("put");
    assert!(version >= 1);
    let read = store.get("a").expect("get").expect("there");
    assert_eq!((read.version, read.value.as_slice()), (version, &b"1"[..]));
    store.put_all(&[("a".into(), b"2".to_vec()), ("b".into(), vec![])]).expect("put all");
    assert_eq!(store.get("a").expect("get").expect("there").value, b"2");
    assert_eq!(store.get("b").expect("get").expect("there").value, b"");
    store.put_all(&[("c".into(), b"old".to_vec()), ("c".into(), b"new".to_vec())]).expect("put all");
    assert_eq!(store.get("c").expect("get").expect("there").value, b"new", "of a key named twice the last stays");
    assert!(store.put_all(&[]).expect("nothing").is_empty());
    assert_eq!(store.get("").expect("the empty key is a key"), None);
}

fn versions_only_rise(store: &dyn Store) {
    let first = store.put("a", b"1").expect("put");
    let second = store.put("a", b"2").expect("put");
    assert!(store.delete("a").expect("delete"));
    assert!(!store.delete("a").expect("delete"));
    assert_eq!(store.get("a").expect("get"), None);
    let third = store.put("a", b"3").expect("put");
    assert!(first < second && second < third, "an old reader cannot mistake the new record for the old one");
    assert!(store.delete("a").expect("delete"));
    let fourth = store.compare_and_set("a", None, b"4").expect("there is none");
    assert!(third < fourth);
}

fn compare_and_set_lets_one_win(store: &Arc<dyn Store>) {
    let refused = store.compare_and_set("a", Some(1), b"x");
    assert!(matches!(refused, Err(StoreError::Conflict { found: None, .. })), "{refused:?}");
    let first = store.compare_and_set("a", None, b"0").expect("first");
    let wins: usize = std::thread::scope(|scope| {
        let all: Vec<_> = (0..8u8)
            .map(|who| scope.spawn(move || usize::from(store.compare_and_set("a", Some(first), &[who]).is_ok())))
            .collect();
        all.into_iter().map(|one| one.join().expect("thread")).sum()
    });
    assert_eq!(wins, 1);
}

fn a_refused_compare_and_set_says_what_is_there(store: &dyn Store) {
    let old = store.put("a", b"1").expect("put");
    let new = store.put("a", b"2").expect("put");
    for expected in [None, Some(0), Some(old), Some(u64::MAX)] {
        let error = store.compare_and_set("a", expected, b"x").expect_err("it was written since");
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert!(matches!(error, StoreError::Conflict { found, .. } if found == Some(new)), "{error:?}");
    }
    assert!(store.compare_and_set("none", Some(0), b"x").is_err(), "nothing has the version 0");
    assert_eq!(store.get("a").expect("get").expect("there").value, b"2");
}

fn puts_at_the_same_time_are_all_done(store: &Arc<dyn Store>) {
    std::thread::scope(|scope| {
        for who in 0..4u8 {
            scope.spawn(move || {
                for round in 0..5u8 {
                    store.put("shared", &[who, round]).expect("put");
                }
            });
        }
    });
    let last = store.get("shared").expect("get").expect("there").value;
    assert_eq!(last[1], 4, "the last writer's last word stays");
}

fn scans_see_their_prefix(store: &dyn Store) {
    for key in ["v/b", "v/a", "w/a", "v", "v0"] {
        store.put(key, key.as_bytes()).expect("put");
    }
    let keys: Vec<String> = store.scan("v/").expect("scan").into_iter().map(|(key, _)| key).collect();
    assert_eq!(keys, ["v/a", "v/b"]);
    assert!(store.scan("nothing").expect("scan").is_empty());
    assert_eq!(store.scan("").expect("scan").len(), 5);
}

fn scans_see_all_of_it(store: &dyn Store) {
    let records: Vec<(String, Vec<u8>)> =
        (0..300u32).map(|number| (format!("many/{number:03}"), number.to_le_bytes().to_vec())).collect();
    for batch in records.chunks(100) {
        store.put_all(batch).expect("put");
    }
    let found: Vec<(String, Vec<u8>)> =
        store.scan("many/").expect("scan").into_iter().map(|(key, record)| (key, record.value)).collect();
    assert_eq!(found, records);
}

fn watches_hear_changes_in_order(store: &dyn Store) {
    store.put("v/before", b"no").expect("put");
    let changes = store.watch("v/").expect("watch");
    let elsewhere = store.watch("u/").expect("watch");
    store.put("w/x", b"no").expect("put");
    let version = store.put("v/x", b"1").expect("put");
    store.delete("v/x").expect("delete");
    store.put_all(&[("v/y".into(), b"2".to_vec()), ("v/z".into(), b"3".to_vec())]).expect("put all");
    let first = changes.recv().expect("change");
    assert_eq!(first.key, "v/x");
    assert!(first.now.is_some_and(|now| now.version == version && now.value == b"1"));
    let heard: Vec<(String, bool)> =
        (0..3).map(|_| changes.recv().expect("change")).map(|change| (change.key, change.now.is_some())).collect();
    assert_eq!(heard, [("v/x".to_string(), false), ("v/y".to_string(), true), ("v/z".to_string(), true)]);
    assert!(elsewhere.try_recv().is_err());
}

fn what_is_too_large_is_refused(store: &dyn Store) {
    let (longest, too_long) = ("k".repeat(LONGEST_KEY), "k".repeat(LONGEST_KEY + 1));
    let (largest, too_big) = (vec![7; LARGEST_VALUE], vec![7; LARGEST_VALUE + 1]);
    let version = store.put(&longest, &largest).expect("at the bounds");
    let read = store.get(&longest).expect("get").expect("there");
    assert_eq!((read.version, read.value.len()), (version, LARGEST_VALUE));
    let refused = [
        store.put(&too_long, b"").map(|_| ()),
        store.put("a", &too_big).map(|_| ()),
        store.put_all(&[("a".into(), vec![]), (too_long.clone(), vec![])]).map(|_| ()),
        store.compare_and_set(&too_long, None, b"").map(|_| ()),
        store.compare_and_set("a", None, &too_big).map(|_| ()),
        store.get(&too_long).map(|_| ()),
        store.delete(&too_long).map(|_| ()),
    ];
    for (number, result) in refused.into_iter().enumerate() {
        let error = result.expect_err("too large");
        assert!(matches!(error, StoreError::TooLarge { .. }), "{number}: {error:?}");
        assert!(error.kind() == ErrorKind::Refused && error.to_string().len() < 300, "{number}: {error}");
    }
    assert_eq!(store.get("a").expect("get"), None, "none of it was written");
}
