//! Bad days: a host in need, groups that go, guests that ask and return, pages that are not there.

use std::{sync::Arc, thread};

use gnomon_memory::{AllAccounts, GroupLimits, PageKind, Request, StagingError};
use gnomon_terms::{Bytes, BytesPerSecond};

use crate::host::{MIB, PATIENCE, TestHost, group_limits, own_nice, web};

fn mib(count: u64) -> Bytes {
    Bytes(count << 20)
}

#[test]
fn memory_that_the_host_needs_is_given_back_and_that_of_guests_stays() {
    let host = TestHost::new();
    host.stage(&[(MIB, 8)]);
    let _guests = host.take_web(mib(2)).reserved.assign("vm").expect("assigned");
    let reserved = host.take_web(mib(1));
    // The floor is enough to keep what there is; a byte less is not.
    host.gauge.set(Bytes(host.limits.floor.0 - 1));
    let only_requests = |accounts: &AllAccounts| accounts.host.living() == 3;
    assert!(host.wait_until(PATIENCE, only_requests));
    let accounts = host.balanced().host;
    assert_eq!((accounts.assigned.bytes, accounts.reserved.bytes), (mib(2), mib(1)));
    let stats = host.stats(&web()).expect("known");
    assert_eq!(stats.evicted_by_floor.blocks + stats.given_up.blocks, accounts.released.blocks);
    assert!(stats.evicted_by_floor.blocks >= 5);
    drop(reserved);
    assert!(
        host.wait_until(PATIENCE, |accounts| accounts.host.set_aside() == Bytes(0)),
        "what is put back goes as well"
    );
}

#[test]
fn a_population_stops_between_two_steps_when_the_host_is_in_need() {
    let host = TestHost::new();
    // Two of eight steps; before the third all is gone.
    host.gauge.fall_at_step(3);
    host.set_target(&web(), &[(mib(128), 1)]).expect("a target");
    assert!(host.wait_until(PATIENCE, |accounts| accounts.host.released.blocks == 1));
    let accounts = host.balanced().host;
    assert_eq!((accounts.staged.blocks, accounts.populating.blocks, accounts.created.blocks), (0, 0, 1));
    assert_eq!(host.stats(&web()).expect("known").given_up.blocks, 1);
    assert_eq!(host.take_web(mib(128)).missing, mib(128));
}

#[test]
fn a_group_that_is_removed_during_a_request_settles() {
    let host = TestHost::new();
    host.stage(&[(MIB, 5)]);
    let (kept, dropped) = (host.take_web(mib(2)), host.take_web(mib(1)));
    host.remove_group(&web()).expect("removed");
    let accounts = host.balanced().host;
    assert_eq!((accounts.staged.blocks, accounts.reserved.blocks), (0, 3), "what was staged is back at once");
    drop(dropped);
    assert!(
        host.wait_until(PATIENCE, |accounts| accounts.host.reserved.blocks == 2 && accounts.host.leaving.blocks == 0)
    );
    let blocks = kept.reserved.assign("vm").expect("a request that is under way is served");
    host.returned(blocks[0].id()).expect("returned");
    assert_eq!(host.vm_ended("vm").expect("ended"), 1);
    let accounts = host.balanced();
    assert_eq!((accounts.host.living(), accounts.groups.len()), (0, 0));
    host.add_group(web(), group_limits()).expect("it can come again");
    host.stage(&[(MIB, 1)]);
}

#[test]
fn a_group_that_is_removed_while_it_is_populated_settles() {
    let host = TestHost::new();
    host.set_target(&web(), &[(mib(64), 3)]).expect("a target");
    assert!(host.wait_until(PATIENCE, |accounts| accounts.host.created.blocks > 0));
    host.remove_group(&web()).expect("removed");
    assert!(host.wait_until(PATIENCE, |accounts| accounts.host.living() == 0));
    host.balanced();
}

#[test]
fn a_vm_that_dies_between_reserve_and_assign_costs_nothing() {
    let host = TestHost::new();
    host.stage(&[(MIB, 2)]);
    let reserved = host.take_web(mib(2)).reserved;
    assert_eq!(host.vm_ended("vm").expect("nothing is its own"), 0);
    drop(reserved);
    assert_eq!(host.balanced().host.released.blocks, 0);
    let assigned = host.take_web(mib(2)).reserved.assign("vm").expect("assigned");
    assert_eq!(host.vm_ended("vm").expect("ended"), 2);
    assert!(matches!(host.returned(assigned[0].id()), Err(StagingError::Imbalance(_))), "it was given back already");
    host.balanced();
}

#[test]
fn a_guest_that_takes_one_block_and_refuses_the_next_leaves_the_rest_to_others() {
    let host = TestHost::new();
    host.stage(&[(mib(2), 1), (MIB, 3)]);
    host.set_target(&web(), &[]).expect("nothing is staged anew");
    let mut reserved = host.take_web(mib(5)).reserved;
    let taken = reserved.assign_next("vm").expect("assigned").expect("the first");
    let refused = reserved.assign_next("vm").expect("assigned").expect("the second");
    assert_eq!((taken.size(), refused.size(), reserved.blocks().len()), (mib(2), MIB, 2));
    host.returned(refused.id()).expect("no guest has it");
    assert_eq!(host.balanced().host.reserved.blocks, 2);
    drop(reserved);
    let accounts = host.balanced().host;
    assert_eq!((accounts.assigned.bytes, accounts.reserved.blocks), (mib(2), 0));
    assert!(accounts.released.blocks >= 1);
}

#[test]
fn a_guest_that_asks_and_returns_in_a_loop_costs_no_more_than_the_refill() {
    let host = TestHost::new();
    let rate = 4 << 20;
    let limits = GroupLimits { budget: mib(4), refill: BytesPerSecond(rate), ..group_limits() };
    let began = std::time::Instant::now();
    host.set_group_limits(&web(), limits).expect("changed");
    host.stage(&[(MIB, 2)]);
    for _ in 0..400 {
        for block in host.take_web(mib(2)).reserved.assign("vm").expect("assigned") {
            host.returned(block.id()).expect("returned");
        }
        thread::yield_now();
    }
    let created = host.balanced().host.created.bytes;
    let most = limits.budget.0 + (rate as f64 * began.elapsed().as_secs_f64()) as u64;
    assert!(created.0 <= most, "{created}");
    assert!(host.stats(&web()).expect("known").requests == 400);
}

#[test]
fn requests_from_many_threads_get_each_block_once() {
    let host = TestHost::new();
    host.stage(&[(MIB, 24)]);
    host.set_target(&web(), &[]).expect("nothing is staged anew");
    let ask = |vm: String| {
        let host = &host;
        move || {
            let request = Request { bytes: mib(2), whole: false, slots: 2, step: Bytes(1) };
            let taken = (0..8).map(|_| host.take(&web(), request).expect("decided").reserved);
            taken
                .flat_map(|reserved| reserved.assign(&vm).expect("assigned"))
                .map(|block| block.id())
                .collect::<Vec<_>>()
        }
    };
    let mut ids: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|n| scope.spawn(ask(format!("vm{n}")))).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect()
    });
    let taken = ids.len();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), taken, "no block is at two guests");
    for n in 0..4 {
        host.vm_ended(&format!("vm{n}")).expect("ended");
    }
    assert_eq!(host.balanced().host.assigned.blocks, 0);
}

#[test]
fn large_pages_that_the_host_has_not_reserved_are_missing_and_nothing_else_is() {
    let host = TestHost::new();
    let huge = gnomon_memory::GroupName::new("huge").expect("a name");
    host.add_group(huge.clone(), GroupLimits { pages: PageKind::Huge, ..group_limits() }).expect("added");
    host.set_target(&huge, &[(mib(2), 1)]).expect("a target");
    host.stage(&[(MIB, 1)]);
    assert_eq!(
        host.take(&huge, Request { bytes: mib(2), whole: false, slots: 1, step: Bytes(1) }).expect("decided").missing,
        mib(2)
    );
    assert_eq!(host.balanced().groups.len(), 1, "none was begun");
}

#[test]
fn a_worker_that_has_stopped_leaves_blocks_to_their_holders() {
    let mut host = TestHost::new();
    host.stage(&[(MIB, 2)]);
    let reserved = host.take_web(mib(2)).reserved;
    let blocks: Vec<_> = reserved.blocks().map(Arc::clone).collect();
    host.kill();
    drop(reserved);
    host.open();
    assert!(host.balanced().host.staged.blocks >= 2, "found again, for no guest has seen them");
    assert!(blocks.iter().all(|block| block.is_whole()));
}

#[test]
fn whoever_populates_gives_way_to_others() {
    let host = TestHost::new();
    host.stage(&[(MIB, 1)]);
    assert_eq!(host.gauge.nicest(), (own_nice() + 5).min(19), "as the gauge saw it between two steps");
}
