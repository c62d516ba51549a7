//! A store that several hosts see, and what it does when members die, cables are cut and history is forgotten.

use std::{
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::Receiver,
    },
    time::{Duration, Instant},
};

use gnomon_store::{Change, EtcdStore, Lease, Store, StoreError};
use gnomon_terms::ErrorKind;

use crate::{
    cluster::{Cluster, STORE_PATIENCE},
    conformance::conforms,
    wire::Wire,
};

/// For what comes when it comes; a test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn the_store_of_a_cluster_conforms() {
    let cluster = Cluster::start();
    conforms(|| Arc::new(cluster.store()));
}

#[test]
fn hosts_see_one_another_and_namespaces_stand_apart() {
    let cluster = Cluster::start();
    let (here, there, elsewhere) = (cluster.store_in("a"), cluster.store_in("a"), cluster.store_in("a/b"));
    let heard = there.watch("").expect("watch");
    let version = here.put("key", b"1").expect("put");
    assert_eq!(there.get("key").expect("get").map(|record| record.version), Some(version));
    assert!(elsewhere.scan("").expect("scan").is_empty());
    elsewhere.put("key", b"theirs").expect("put");
    here.delete("key").expect("delete");
    let changes: Vec<Change> = (0..3).map(|_| next(&heard)).collect();
    let keys: Vec<(&str, bool)> = changes.iter().map(|change| (change.key.as_str(), change.now.is_some())).collect();
    assert_eq!(keys, [("key", true), ("b/key", true), ("key", false)], "a namespace below is seen from above");
}

#[test]
fn a_batch_is_bounded_and_what_others_wrote_is_told() {
    let cluster = Cluster::start();
    let store = cluster.store();
    let batch = |count: usize, bytes: usize| -> Vec<(String, Vec<u8>)> {
        (0..count).map(|number| (format!("{number:0>1024}"), vec![1; bytes])).collect()
    };
    store.put_all(&batch(128, 8192)).expect("128 of the longest keys and 1 MiB");
    for too_large in [batch(129, 1), batch(128, 8193)] {
        let error = store.put_all(&too_large).expect_err("more than etcd takes");
        assert!(matches!(error, StoreError::TooLarge { .. }), "{error:?}");
    }
    cluster.put_raw(&format!("{}/foreign", store.address().namespace()), b"{}");
    assert_eq!(store.get("foreign").expect_err("not ours").kind(), ErrorKind::Corrupt);
}

#[test]
fn a_member_is_killed_and_comes_back() {
    let mut cluster = Cluster::start();
    let (store, hasty) = (cluster.patient_store_in("n"), cluster.store_in("n"));
    let heard = store.watch("").expect("watch");
    let mut version = store.put("counter", b"0").expect("put");
    assert_eq!(next(&heard).now.map(|now| now.version), Some(version));
    for number in 0..3 {
        cluster.kill(number);
        version = store.compare_and_set("counter", Some(version), &[number as u8]).expect("two of three are enough");
        assert_eq!(next(&heard).now.map(|now| now.version), Some(version), "the watch goes on at another member");
        cluster.run(number);
        cluster.leader();
    }
    cluster.kill(0);
    cluster.kill(1);
    let error = hasty.put("counter", b"x").expect_err("one of three is not enough");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    cluster.run(0);
    cluster.leader();
    assert_eq!(store.get("counter").expect("get").expect("there").version, version, "nothing was written");
}

/// Several clients count by compare-and-set while the leader dies: every count that was acknowledged is there, once.
#[test]
fn the_leader_is_killed_while_clients_count() {
    const CLIENTS: u64 = 4;
    const BEFORE: u64 = 40;
    const AFTER: u64 = 80;
    let mut cluster = Cluster::start();
    let stores: Vec<EtcdStore> = (0..CLIENTS).map(|_| cluster.patient_store_in("count")).collect();
    stores[0].put("counter", &0u64.to_le_bytes()).expect("put");
    let (acknowledged, unsettled) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for store in &stores {
            scope.spawn(|| {
                while acknowledged.load(Ordering::SeqCst) < AFTER {
                    match count(store) {
                        Ok(()) => _ = acknowledged.fetch_add(1, Ordering::SeqCst),
                        Err(StoreError::Unsettled { .. }) => _ = unsettled.fetch_add(1, Ordering::SeqCst),
                        Err(StoreError::Conflict { .. } | StoreError::Unreachable { .. }) => {}
                        Err(other) => panic!("{other:?}"),
                    }
                }
            });
        }
        while acknowledged.load(Ordering::SeqCst) < BEFORE {
            std::thread::yield_now();
        }
        cluster.kill(cluster.leader());
    });
    let (acknowledged, unsettled) = (acknowledged.into_inner(), unsettled.into_inner());
    let counted = read_counter(&stores[0]);
    assert!(
        (acknowledged..=acknowledged + unsettled).contains(&counted),
        "{counted} counted, {acknowledged} acknowledged, {unsettled} unsettled"
    );
}

/// Adds one to the counter, if nobody else does in between.
fn count(store: &EtcdStore) -> Result<(), StoreError> {
    let Some(record) = store.get("counter")? else { panic!("the counter is gone") };
    let value = u64::from_le_bytes(record.value.try_into().expect("eight bytes")) + 1;
    store.compare_and_set("counter", Some(record.version), &value.to_le_bytes()).map(|_| ())
}

fn read_counter(store: &EtcdStore) -> u64 {
    let record = store.get("counter").expect("get").expect("there");
    u64::from_le_bytes(record.value.try_into().expect("eight bytes"))
}

#[test]
fn a_client_is_cut_off_and_hears_of_everything_when_it_is_back() {
    let cluster = Cluster::start();
    let wires: Vec<Wire> =
        (0..3).map(|number| Wire::to((Ipv4Addr::LOCALHOST, cluster.client_port(number)))).collect();
    let ports: Vec<u16> = wires.iter().map(Wire::port).collect();
    let (cut_off, well) = (cluster.store_at(&ports, "n"), cluster.store_in("n"));
    let heard = cut_off.watch("").expect("watch");
    well.put("a", b"1").expect("put");
    assert_eq!(next(&heard).key, "a");
    wires.iter().for_each(Wire::cut);
    for result in [cut_off.get("a").map(|_| ()), cut_off.watch("").map(|_| ())] {
        let error = result.expect_err("nothing comes through");
        assert!(matches!(error, StoreError::Unreachable { .. }), "{error:?}");
        let said = error.to_string();
        assert!(said.contains(&cut_off.address().to_string()) && said.contains("see that"), "{said}");
    }
    let error = cut_off.put("a", b"2").expect_err("nothing comes through");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let written: Vec<u64> = (0..3).map(|_| well.put("a", b"3").expect("put")).collect();
    well.delete("b").expect("delete");
    wires.iter().for_each(Wire::mend);
    let versions: Vec<Option<u64>> = (0..3).map(|_| next(&heard).now.map(|now| now.version)).collect();
    assert_eq!(versions, written.into_iter().map(Some).collect::<Vec<_>>(), "each of them, in order");
    assert_eq!(cut_off.get("a").expect("it is back").expect("there").value, b"3");
}

#[test]
fn history_is_compacted_under_a_watch_that_was_cut() {
    let cluster = Cluster::start();
    let wires: Vec<Wire> =
        (0..3).map(|number| Wire::to((Ipv4Addr::LOCALHOST, cluster.client_port(number)))).collect();
    let ports: Vec<u16> = wires.iter().map(Wire::port).collect();
    let (cut_off, well) = (cluster.store_at(&ports, "n"), cluster.store_in("n"));
    for key in ["goes", "stays", "changes"] {
        well.put(key, b"old").expect("put");
    }
    let heard = cut_off.watch("").expect("watch");
    wires.iter().for_each(Wire::cut);
    well.delete("goes").expect("delete");
    well.put("changes", b"between").expect("put");
    let changed = well.put("changes", b"new").expect("put");
    let comes = well.put("comes", b"new").expect("put");
    cluster.compact();
    wires.iter().for_each(Wire::mend);
    let changes: Vec<(String, Option<u64>)> =
        (0..3).map(|_| next(&heard)).map(|change| (change.key, change.now.map(|now| now.version))).collect();
    let expected = [("goes", None), ("changes", Some(changed)), ("comes", Some(comes))];
    assert_eq!(changes, expected.map(|(key, version)| (key.to_string(), version)), "the last change to each key");
    let after = well.put("stays", b"new").expect("put");
    assert_eq!(next(&heard).now.map(|now| now.version), Some(after), "and then it goes on as before");
}

#[test]
fn nobody_answers_where_no_etcd_is() {
    let nowhere = "etcd://127.0.0.1:1,127.0.0.1:2/n".parse().expect("address");
    let store = EtcdStore::open_with(nowhere, None, STORE_PATIENCE)
        .expect("opened: a host whose etcd is down still serves its guests");
    let error = store.put("a", b"1").expect_err("nobody");
    assert!(matches!(error, StoreError::Unreachable { .. }), "it was never sent, so it was not written: {error:?}");
    let said = said_with_cause(&error);
    assert!(said.contains("127.0.0.1:1,127.0.0.1:2") && said.contains("refused"), "{said}");
}

fn said_with_cause(error: &dyn std::error::Error) -> String {
    let cause = error.source().map(ToString::to_string).unwrap_or_default();
    format!("{error}: {cause}")
}

#[test]
fn a_lease_lives_while_it_is_kept_alive_and_takes_its_keys_with_it() {
    let cluster = Cluster::start();
    let (holder, judge) = (cluster.store(), cluster.store_in("n0"));
    let leases = holder.leases().expect("a cluster grants leases");
    let asked = Instant::now();
    let mut lease = leases.grant(Duration::from_millis(2_500)).expect("granted");
    assert_eq!(lease.ttl(), Duration::from_secs(3), "whole seconds");
    let version = leases.bind(&lease, "held", None, b"by a").expect("bound");
    let refused = leases.bind(&lease, "held", None, b"again").expect_err("there is one");
    assert!(matches!(refused, StoreError::Conflict { found, .. } if found == Some(version)), "{refused:?}");
    let heard = judge.watch("held").expect("watch");
    while asked.elapsed() < lease.ttl() * 2 {
        assert!(!lease.remaining().is_zero(), "it was kept alive in time");
        leases.keep_alive(&mut lease).expect("alive");
        assert!(judge.get("held").expect("get").is_some(), "it outlives its first time to live");
    }
    // Its holder is sure of it for a while, and for no longer than it is there.
    let change = next(&heard);
    assert_eq!((change.key.as_str(), change.now), ("held", None));
    assert!(lease.remaining().is_zero(), "it ended {:?} before its holder would have stopped", lease.remaining());
    assert!(matches!(leases.keep_alive(&mut lease), Err(StoreError::LeaseEnded { .. })), "too late");
    assert!(matches!(leases.bind(&lease, "held", None, b"late"), Err(StoreError::LeaseEnded { .. })), "too late");
    assert_eq!(judge.get("held").expect("get"), None);
    leases.revoke(&lease).expect("it has ended already");
}

#[test]
fn a_lease_that_is_given_back_ends_at_once() {
    let cluster = Cluster::start();
    let store = cluster.store();
    let leases = store.leases().expect("leases");
    let caution = leases.caution().expect("a version");
    assert!(caution.is_none_or(|caution| caution.contains("3.4.31")), "of whichever version it is");
    let lease: Lease = leases.grant(Duration::from_secs(600)).expect("granted");
    leases.bind(&lease, "held", None, b"").expect("bound");
    let heard = store.watch("held").expect("watch");
    leases.revoke(&lease).expect("revoked");
    assert_eq!(next(&heard).now, None);
}

/// The next change.
fn next(heard: &Receiver<Change>) -> Change {
    heard.recv_timeout(PATIENCE).expect("a change")
}
