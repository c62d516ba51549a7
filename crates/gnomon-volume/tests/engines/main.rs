//! The two engines of a move against each other, over a link made of channels that can be cut at any frame.
//!
//! And the two ends of a standby, which die at any byte (`standby`).
//!
//! Each test ends with the same questions: does the destination's guest read what was last acknowledged, and is the
//! source (which mirrors) byte for byte the same volume?

mod hostile;
mod pair;
mod seeded;
mod standby;
mod standing;
mod verifying;

use std::time::Duration;

use gnomon_terms::{BlockCount, Extent};
use gnomon_volume::disk::{Disk, DiskError};
use pair::{BLOCKS, Pair};

#[test]
fn a_whole_volume_arrives_while_its_guest_writes() {
    let mut pair = Pair::new();
    pair.fill(1);
    pair.connect();
    for step in 0..BLOCKS / 16 {
        pair.copy(Extent::new(step * 16, 16));
        pair.write_at_source(step * 7 % BLOCKS, step);
    }
    pair.settle();
    pair.write_at_source(3, 99);
    assert!(pair.owes(3), "what is written after it was sent is owed again");
    pair.copy_all_owed();
    assert_eq!(pair.owed(), BlockCount(0));
    pair.hand_over();
    pair.assert_destination_reads_what_was_written();
}

#[test]
fn a_read_of_what_is_not_here_is_fetched_and_stays() {
    let mut pair = Pair::new();
    pair.fill(1);
    pair.connect();
    pair.hand_over();
    let before = pair.missing();
    pair.read_at_destination(5);
    assert_eq!(pair.missing(), BlockCount(before.0 - 16), "the unit around it is here now");
    pair.assert_destination_reads_what_was_written();
    assert_eq!(pair.missing(), BlockCount(0));
}

#[test]
fn a_late_copy_never_replaces_what_the_guest_wrote() {
    let mut pair = Pair::new();
    pair.fill(1);
    pair.connect();
    pair.hand_over();
    pair.write_at_destination(3, 77);
    pair.copy(Extent::new(0, 16));
    pair.settle();
    pair.assert_destination_reads_what_was_written();
}

#[test]
fn a_write_of_part_of_a_block_keeps_the_rest() {
    let mut pair = Pair::new();
    pair.fill(1);
    pair.connect();
    pair.hand_over();
    pair.write_bytes_at_destination(4096 * 9 + 100, &[0xAB; 5000]);
    pair.assert_destination_reads_what_was_written();
}

#[test]
fn a_flush_returns_when_both_sides_have_everything() {
    let mut pair = Pair::new();
    pair.fill(1);
    pair.connect();
    pair.hand_over();
    for block in 0..40 {
        pair.write_at_destination(block * 3, block);
    }
    pair.destination.flush().expect("flush");
    for block in 0..40 {
        pair.assert_source_has(block * 3);
    }
}

#[test]
fn the_old_writer_is_fenced() {
    let mut pair = Pair::new();
    pair.connect();
    pair.hand_over();
    let refused = pair.source.write_at(&[1; 4096], 0);
    assert!(matches!(refused, Err(DiskError::Fenced { .. })), "{refused:?}");
}

#[test]
fn a_shadow_refuses_writes_and_reads_through() {
    let mut pair = Pair::new();
    pair.fill(1);
    pair.connect();
    let refused = pair.destination.write_at(&[1; 4096], 0);
    assert!(matches!(refused, Err(DiskError::Fenced { .. })), "{refused:?}");
    pair.write_at_source(2, 5);
    pair.assert_destination_reads_what_was_written();
}

#[test]
fn a_reader_waits_for_the_next_session_and_not_for_ever() {
    let mut pair = Pair::new();
    pair.fill(1);
    pair.connect();
    pair.hand_over();
    pair.cut();
    let lost = pair.destination_with_patience(Duration::ZERO);
    let mut block = vec![0; 4096];
    let failed = lost.read_at(&mut block, 0);
    assert!(matches!(failed, Err(DiskError::Unreachable { .. })), "{failed:?}");
    pair.read_across_a_reconnection(8);
}

#[test]
fn a_dropped_copy_is_owed_again() {
    let mut pair = Pair::new();
    pair.fill(1);
    pair.connect();
    pair.copy(Extent::new(0, 32));
    pair.settle();
    let owed = pair.owed();
    pair.drop_copy(Extent::new(16, 16));
    pair.settle();
    assert_eq!(pair.owed(), BlockCount(owed.0 + 16));
    pair.hand_over();
    pair.assert_destination_reads_what_was_written();
}

#[test]
fn thin_stays_thin() {
    let mut pair = Pair::new();
    pair.write_at_source(100, 1);
    pair.connect();
    pair.copy_all_owed();
    pair.hand_over();
    let allocated = pair.destination_allocated();
    assert!(allocated <= 16 * 4096, "{allocated} bytes are allocated for one block of data");
}
