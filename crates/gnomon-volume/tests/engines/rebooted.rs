//! A host of the move reboots while the volume drains: what it had in memory only is lost, and the other makes up for
//! it before it calls anything durable.

use gnomon_proto::frame::{Message, Stream};
use gnomon_terms::{BlockCount, Extent};
use gnomon_volume::disk::Disk;

use crate::pair::{BLOCKS, Pair};

fn draining() -> Pair {
    let mut pair = Pair::new();
    pair.fill(1);
    pair.connect();
    pair.copy(Extent::new(0, 64));
    pair.settle();
    pair.hand_over();
    pair
}

/// The destination's map of what it owes says "everything" after its reboot; it has a part of the volume only.
#[test]
fn a_destination_that_rebooted_sends_nothing_back_that_it_does_not_have() {
    let mut pair = draining();
    pair.write_at_destination(3, 7);
    pair.cut();
    pair.destination_forgets_what_it_owed();
    pair.connect();
    pair.destination.flush().expect("flush");
    assert_eq!(pair.owed_back(), BlockCount(0), "what is not here is not owed");
    for block in 0..BLOCKS {
        pair.assert_source_has(block);
    }
    pair.assert_destination_reads_what_was_written();
}

#[test]
fn what_a_source_lost_in_a_reboot_is_sent_again_before_a_flush_returns() {
    let mut pair = draining();
    pair.write_at_destination(3, 7);
    pair.flush_at_destination();
    pair.write_at_destination(3, 8);
    pair.write_at_destination(5, 9);
    pair.await_nothing_owed_back();
    pair.cut();
    let mut lost = Vec::new();
    pair.source_loses_power(|block| {
        lost.push(block);
        false
    });
    assert_eq!(lost, [3, 5], "acknowledged and not made durable");
    pair.connect();
    pair.destination.flush().expect("flush");
    pair.assert_source_has(3);
    pair.assert_source_has(5);
}

#[test]
fn what_was_durable_at_a_source_is_not_sent_again_after_its_reboot() {
    let mut pair = draining();
    for block in 0..40 {
        pair.write_at_destination(block, block + 1);
    }
    pair.flush_at_destination();
    pair.write_at_destination(50, 1);
    pair.await_nothing_owed_back();
    pair.cut();
    pair.source_loses_power(|_| false);
    assert_eq!(pair.owed_back(), BlockCount(1), "only what the last flush did not cover");
    pair.connect();
    pair.flush_at_destination();
    pair.cut();
    pair.source_loses_power(|_| false);
    assert_eq!(pair.owed_back(), BlockCount(0), "the next flush covers that too");
}

/// A volume is given back only when nothing of it is at risk, or a reboot of the source right after it would take what
/// nobody has any more.
#[test]
fn a_write_is_at_risk_until_the_source_has_made_it_durable() {
    let mut pair = draining();
    pair.write_at_destination(3, 7);
    pair.await_nothing_owed_back();
    assert_eq!(pair.at_risk(), BlockCount(1), "the source has it in memory only");
    pair.make_durable_at_source();
    pair.assert_source_has(3);
}

#[test]
fn a_flush_that_fails_at_the_source_makes_nothing_durable_and_all_of_it_is_sent_again() {
    let mut pair = draining();
    pair.write_at_destination(3, 7);
    pair.await_nothing_owed_back();
    let answer = |durable, ok| Message::MirrorAck { stream: Stream(1), seq: u64::MAX, durable, ok };
    pair.tell_destination(answer(true, true));
    assert_eq!(pair.at_risk(), BlockCount(1), "nobody asked for a flush: what is said of it is not believed");
    pair.tell_destination(answer(false, false));
    assert_eq!(pair.owed_back(), BlockCount(1), "owed again");
    pair.cut();
    pair.connect();
    pair.make_durable_at_source();
    pair.assert_source_has(3);
}
