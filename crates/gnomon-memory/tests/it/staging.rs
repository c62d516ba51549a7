//! The ordinary days.

use std::{fs::File, os::unix::fs::FileExt, sync::Arc};

use gnomon_memory::{Block, GroupName, Request, StagingError};
use gnomon_terms::{Bytes, ErrorKind};

use crate::host::{MIB, PATIENCE, TestHost, group_limits, web};

/// A descriptor of the same memory, as a QEMU has one.
pub fn another_descriptor(block: &Block) -> File {
    use std::os::fd::{AsFd, AsRawFd};
    let path = format!("/proc/self/fd/{}", block.as_fd().as_raw_fd());
    File::options().read(true).write(true).open(path).expect("opened again")
}

fn mib(count: u64) -> Bytes {
    Bytes(count << 20)
}

#[test]
fn what_a_target_wants_is_staged_and_what_a_request_wants_is_taken() {
    let host = TestHost::new();
    host.stage(&[(mib(4), 1), (mib(1), 3)]);
    let taken = host.take_web(mib(6));
    assert_eq!((taken.hit, taken.missing), (mib(6), Bytes(0)));
    let sizes: Vec<Bytes> = taken.reserved.blocks().map(|block| block.size()).collect();
    assert_eq!(sizes, [mib(4), mib(1), mib(1)]);
    assert!(taken.reserved.blocks().all(|block| block.is_whole()));
    let blocks = taken.reserved.assign("vm").expect("assigned");
    assert_eq!(host.balanced().host.assigned.bytes, mib(6));
    assert_eq!(host.assigned_to("vm").len(), 3);
    host.returned(blocks[0].id()).expect("returned");
    assert_eq!(host.vm_ended("vm").expect("ended"), 2);
    let accounts = host.balanced().host;
    assert_eq!((accounts.assigned.blocks, accounts.released.bytes), (0, mib(6)));
    assert!(blocks.iter().all(|block| block.allocated().expect("told") == Bytes(0)), "the host has it back");
}

#[test]
fn what_was_taken_is_staged_anew() {
    let host = TestHost::new();
    host.stage(&[(MIB, 2)]);
    let blocks = host.take_web(mib(2)).reserved.assign("vm").expect("assigned");
    assert!(host.wait_until(PATIENCE, |accounts| accounts.host.staged.blocks == 2));
    let again = host.take_web(mib(2)).reserved;
    let inodes = |blocks: &[&Arc<Block>]| blocks.iter().map(|block| block.inode()).collect::<Vec<_>>();
    let (old, new) = (inodes(&blocks.iter().collect::<Vec<_>>()), inodes(&again.blocks().collect::<Vec<_>>()));
    assert!(new.iter().all(|inode| !old.contains(inode)), "no block is used twice");
}

#[test]
fn a_request_that_is_dropped_puts_its_blocks_back() {
    let host = TestHost::new();
    host.stage(&[(MIB, 2)]);
    let taken = host.take_web(mib(2));
    assert_eq!(host.balanced().host.reserved.blocks, 2);
    drop(taken);
    assert_eq!(host.balanced().host.reserved.blocks, 0);
    assert_eq!(host.take_web(mib(2)).hit, mib(2));
}

#[test]
fn what_is_not_there_is_missing_and_counted() {
    let host = TestHost::new();
    host.stage(&[(mib(2), 1)]);
    assert_eq!(host.take_web(mib(3)).missing, mib(1));
    let whole = Request { bytes: mib(3), whole: true, slots: 1, step: Bytes(1) };
    assert_eq!(host.take(&web(), whole).expect("decided").missing, mib(3));
    let stats = host.stats(&web()).expect("known");
    assert_eq!((stats.requests, stats.hit, stats.missed), (2, mib(2), mib(4)));
    assert_eq!(stats.hit_ratio(), Some(1.0 / 3.0));
    assert!(stats.decision_p99 >= stats.decision_p50 && stats.decision_p50.is_some());
    assert!(stats.populate_per_gib.is_some());
}

#[test]
fn nothing_a_guest_wrote_is_ever_seen_again() {
    let host = TestHost::new();
    host.stage(&[(MIB, 1)]);
    let first = host.take_web(MIB).reserved.assign("one").expect("assigned").remove(0);
    let kept = another_descriptor(&first);
    kept.write_all_at(&vec![0xa5; MIB.0 as usize], 0).expect("the guest writes");
    host.returned(first.id()).expect("returned");
    assert_eq!(std::os::unix::fs::MetadataExt::blocks(&kept.metadata().expect("open")), 0, "no memory is left in it");
    assert!(host.wait_until(PATIENCE, |accounts| accounts.host.staged.blocks == 1));
    let second = host.take_web(MIB).reserved.assign("two").expect("assigned").remove(0);
    assert_ne!(second.inode(), first.inode());
    let mut bytes = vec![1; MIB.0 as usize];
    another_descriptor(&second).read_exact_at(&mut bytes, 0).expect("read");
    assert!(bytes.iter().all(|byte| *byte == 0), "every byte of it is zero");
}

#[test]
fn one_group_never_has_what_was_staged_for_another() {
    let host = TestHost::new();
    let other = GroupName::new("other").expect("a name");
    host.add_group(other.clone(), group_limits()).expect("added");
    host.stage(&[(MIB, 4)]);
    let taken =
        host.take(&other, Request { bytes: mib(4), whole: false, slots: 9, step: Bytes(1) }).expect("decided");
    assert_eq!((taken.hit, taken.missing), (Bytes(0), mib(4)));
    assert_eq!(host.balanced().host.staged.blocks, 4);
}

#[test]
fn what_cannot_be_is_refused() {
    let host = TestHost::new();
    let unknown = GroupName::new("unknown").expect("a name");
    let request = Request { bytes: MIB, whole: false, slots: 1, step: Bytes(1) };
    let many: Vec<(Bytes, u32)> = (1..100).map(|n| (mib(n), 1)).collect();
    let errors: Vec<StagingError> = vec![
        host.take(&unknown, request).map(drop).expect_err("no group"),
        host.set_target(&unknown, &[]).expect_err("no group"),
        host.remove_group(&unknown).expect_err("no group"),
        host.add_group(web(), group_limits()).expect_err("there is one"),
        host.set_target(&web(), &[(Bytes(5), 1)]).expect_err("no size"),
        host.set_target(&web(), &many).expect_err("too many"),
    ];
    for error in errors {
        assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    }
    host.stage(&[(MIB, 1)]);
    let block = Arc::clone(host.take_web(MIB).reserved.blocks().next().expect("one"));
    assert!(host.returned(block.id()).is_err(), "it was not at a guest");
    assert_eq!(host.balanced().host.staged.blocks, 1);
}

#[test]
fn a_smaller_target_gives_back_what_is_too_much() {
    let host = TestHost::new();
    host.stage(&[(mib(2), 2), (MIB, 3)]);
    host.stage(&[(MIB, 1)]);
    let accounts = host.balanced().host;
    assert_eq!((accounts.staged.bytes, accounts.created.blocks), (MIB, 5), "nothing was made anew");
    assert_eq!(host.stats(&web()).expect("known").evicted_by_target.blocks, 4);
}
