//! Comparing the two copies of a move: what differs is listed and nothing else, whatever the guest does meanwhile.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

use gnomon_proto::frame::{Message, Stream};
use gnomon_terms::{BLOCK_SIZE, BlockIndex, Bytes, ErrorKind, Extent};
use gnomon_volume::{
    disk::{Disk, FileDisk, VolumeDisk},
    verify::{Asker, Replies, Side, VerifyError},
    wire::{Wire, WireClosed},
};

use crate::pair::{BLOCKS, Pair};

const WHOLE: Bytes = Bytes(BLOCKS * BLOCK_SIZE);

/// Compares from both sides; both must find the same.
fn differing(pair: &Pair) -> Vec<Extent> {
    let [found, there] =
        [pair.verify_at_source(), pair.verify_at_destination()].map(|found| found.expect("compared"));
    assert_eq!(found, there, "both sides see the same");
    let seen = found.same.0 + found.lacking.0 + found.unsettled.0 + found.differences.bytes().0;
    assert_eq!(Bytes(seen), WHOLE, "every byte is accounted for: {found:?}");
    found.differences.extents()
}

#[test]
fn exactly_the_corrupted_blocks_are_listed_in_both_phases() {
    let mut pair = Pair::new();
    pair.fill(1);
    pair.connect();
    pair.copy_all_owed();
    assert_eq!(differing(&pair), []);
    for block in [0, 517, 518, BLOCKS - 1] {
        pair.corrupt_destination(block);
    }
    let expected = [Extent::new(0, 1), Extent::new(517, 2), Extent::new(BLOCKS - 1, 1)];
    assert_eq!(differing(&pair), expected);
    pair.hand_over();
    assert_eq!(differing(&pair), expected);
}

#[test]
fn what_is_owed_or_not_there_is_left_out_and_counted() {
    let mut pair = Pair::new();
    pair.fill(1);
    pair.connect();
    for start in (0..BLOCKS).step_by(32) {
        pair.copy(Extent::new(start, 16));
    }
    pair.settle();
    pair.write_at_source(5, 2);
    pair.corrupt_destination(5);
    pair.corrupt_destination(20);
    assert_eq!(differing(&pair), []);
    let found = pair.verify_at_source().expect("compared");
    assert_eq!(found.lacking, Bytes((BLOCKS / 2 + 1) * BLOCK_SIZE), "{found:?}");
    pair.corrupt_destination(33);
    assert_eq!(differing(&pair), [Extent::new(33, 1)]);
}

#[test]
fn a_cut_session_ends_a_comparison_and_the_next_one_is_asked_again() {
    let mut pair = Pair::new();
    pair.connect();
    pair.cut();
    assert!(matches!(pair.verify_at_destination(), Err(VerifyError::Link(_))));
    pair.connect();
    pair.copy_all_owed();
    assert_eq!(differing(&pair), []);
}

#[test]
fn a_comparison_that_is_not_wanted_any_more_ends_and_another_can_begin() {
    let mut pair = Pair::new();
    pair.fill(1);
    pair.connect();
    pair.copy_all_owed();
    assert!(matches!(pair.verify_cancelled(), Err(VerifyError::Cancelled)));
    assert_eq!(differing(&pair), []);
}

/// Writes to a few blocks as fast as it can while `compare` runs, again and again.
fn while_writing(disk: &Arc<VolumeDisk>, mut compare: impl FnMut()) {
    let (stop, written) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let step = written.fetch_add(1, Ordering::Relaxed);
                let content = vec![(step / 64) as u8; BLOCK_SIZE as usize];
                disk.write_at(&content, step * 37 % BLOCKS * BLOCK_SIZE).expect("written");
            }
        });
        while written.load(Ordering::Relaxed) == 0 {
            thread::yield_now();
        }
        for _ in 0..5 {
            compare();
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_guest_that_writes_meanwhile_makes_no_difference() {
    let mut pair = Pair::new();
    pair.fill(1);
    pair.connect();
    pair.copy_all_owed();
    let source = Arc::clone(&pair.source);
    while_writing(&source, || {
        pair.copy_some_owed();
        assert!(pair.verify_at_source().expect("compared").differences.is_empty(), "while priming");
        assert!(pair.verify_at_destination().expect("compared").differences.is_empty(), "while priming");
    });
    pair.hand_over();
    let destination = Arc::clone(&pair.destination);
    while_writing(&destination, || {
        assert!(pair.verify_at_source().expect("compared").differences.is_empty(), "while draining");
        assert!(pair.verify_at_destination().expect("compared").differences.is_empty(), "while draining");
    });
    pair.copy_all_owed();
    destination.flush().expect("flushed");
    assert_eq!(differing(&pair), []);
    pair.corrupt_destination(7);
    assert_eq!(differing(&pair), [Extent::new(7, 1)]);
}

/// Answers every question with as many hashes as it likes, from where it likes.
struct Liar<'a> {
    replies: &'a Replies,
    shift: u64,
    hashes: usize,
}

impl Wire for Liar<'_> {
    fn send(&self, message: Message) -> Result<(), WireClosed> {
        let Message::HashRange { id, extent, .. } = message else { panic!("only questions are sent") };
        let start = BlockIndex(extent.start.0.wrapping_add(self.shift));
        self.replies.answer(id, start, vec![[7; 32]; self.hashes]);
        Ok(())
    }
}

/// A copy of 4 MiB and a part of a block: the first question is about 64 units, the second about a block.
fn lone() -> (tempfile::TempDir, Side) {
    let dir = tempfile::tempdir().expect("dir");
    let local = FileDisk::create(&dir.path().join("copy"), Bytes((4 << 20) + 100)).expect("disk");
    let side = Side { local: Arc::new(local), stripes: Arc::default(), valid: None, outbox: None };
    (dir, side)
}

#[test]
fn an_answer_that_is_none_is_a_typed_error() {
    let (_dir, ours) = lone();
    let refused = |shift, hashes| {
        let replies = Replies::default();
        let liar = Liar { replies: &replies, shift, hashes };
        let asker = Asker { ours: ours.clone(), replies: &replies, wire: &liar, stream: Stream(1) };
        asker.compare(&mut |_| true).expect_err("a lie is believed")
    };
    for (shift, hashes) in [(0, 63), (0, 65), (0, 8192), (16, 64), (u64::MAX, 64), (1 << 40, 1)] {
        let error = refused(shift, hashes);
        assert!(matches!(error, VerifyError::Foreign { expected: 64, .. }), "{error:?}");
        assert_eq!(error.kind(), ErrorKind::Corrupt);
    }
    assert!(matches!(refused(0, 0), VerifyError::Declined { .. }));
    assert!(matches!(refused(0, 64), VerifyError::Foreign { expected: 1, hashes: 64, .. }));
}

#[test]
fn a_question_that_is_none_is_declined() {
    let (_dir, ours) = lone();
    for extent in [
        Extent::new(0, 0),
        Extent::new(1025, 1),
        Extent::new(1024, 2),
        Extent::new(0, 1025),
        Extent::new(u64::MAX, 2),
        Extent::new(0, u64::MAX),
    ] {
        assert!(ours.answer(extent).is_empty(), "{extent:?}");
    }
    assert_eq!(ours.answer(Extent::new(1024, 1)), [*blake3::hash(&[0; 100]).as_bytes()]);
    assert_eq!(ours.answer(Extent::new(0, 1024)).len(), 64);
}
