//! Frames that are well formed and out of turn: of an older epoch, of one that has never been, acknowledgements in
//! another order, twice, or of nothing. What was acknowledged to a guest stays, and what is owed stays owed.

use gnomon_proto::{
    Class,
    frame::{Answer, Change, Content, Message, Settlement, Stream},
};
use gnomon_terms::{BLOCK_SIZE, BlockCount, Epoch, Extent};
use gnomon_volume::disk::Disk;

use crate::pair::{BLOCKS, Pair};

const STREAM: Stream = Stream(1);
const LAST: u64 = u64::MAX;

fn junk(blocks: u64) -> Vec<u8> {
    vec![0xee; (blocks * BLOCK_SIZE) as usize]
}

fn mirror(epoch: u64, seq: u64, block: u64) -> Message {
    let change = Change::Data(junk(1));
    Message::Mirror { stream: STREAM, epoch: Epoch(epoch), seq, at: block * BLOCK_SIZE, len: 4096, change }
}

fn push(epoch: u64, seq: u64, extent: Extent) -> Message {
    let content = Content::Data(junk(extent.len.0));
    Message::Push { stream: STREAM, epoch: Epoch(epoch), seq, extent, class: Class::Background, content }
}

fn filled() -> Pair {
    let mut pair = Pair::new();
    pair.fill(1);
    pair.connect();
    pair
}

#[test]
fn a_writer_of_another_epoch_does_not_write() {
    let mut pair = filled();
    pair.tell_source(mirror(1, 1, 3));
    pair.assert_source_has(3);
    pair.hand_over();
    pair.write_at_destination(3, 5);
    pair.destination.flush().expect("flush");
    for epoch in [0, 1, 3, LAST] {
        pair.tell_source(mirror(epoch, 1, 3));
        pair.assert_source_has(3);
        pair.tell_destination(push(epoch, 1, Extent::new(0, 16)));
        pair.tell_destination(Message::Drop {
            stream: STREAM,
            epoch: Epoch(epoch),
            seq: 1,
            extent: Extent::new(0, 16),
        });
    }
    pair.assert_destination_reads_what_was_written();
}

#[test]
fn what_lies_outside_the_volume_is_refused() {
    let mut pair = filled();
    for extent in [Extent::new(BLOCKS - 1, 2), Extent::new(LAST, 1), Extent::new(LAST / BLOCK_SIZE, 1)] {
        pair.tell_destination(push(1, 1, extent));
        pair.tell_destination(Message::Drop { stream: STREAM, epoch: Epoch(1), seq: 1, extent });
        pair.tell_source(Message::Fetch { stream: STREAM, epoch: Epoch(1), id: 1, extent });
    }
    pair.tell_destination(Message::Drop { stream: STREAM, epoch: Epoch(1), seq: 1, extent: Extent::new(1, LAST) });
    pair.copy_all_owed();
    pair.hand_over();
    for at in [BLOCKS * BLOCK_SIZE - 1, LAST] {
        let change = Change::Discard;
        pair.tell_source(Message::Mirror { stream: STREAM, epoch: Epoch(2), seq: 1, at, len: 4096, change });
    }
    (0..BLOCKS).for_each(|block| pair.assert_source_has(block));
    pair.assert_destination_reads_what_was_written();
}

#[test]
fn acknowledgements_out_of_turn_settle_nothing() {
    let mut pair = filled();
    pair.copy(Extent::new(0, 16));
    pair.settle();
    pair.write_at_source(3, 9);
    let owed = pair.owed();
    // Of what has been settled, and of what has never been sent; in no order.
    for seq in [2, 1, LAST, 1, 0, 1000] {
        pair.tell_source(Message::PushAck { stream: STREAM, seq, settled: Settlement::Done });
    }
    assert!(pair.owes(3) && pair.owed() == owed, "{} were owed, {} are", owed.0, pair.owed().0);
    pair.copy_all_owed();
    pair.hand_over();
    for seq in [LAST, 7, 1, 0] {
        pair.tell_destination(Message::MirrorAck { stream: STREAM, seq, durable: true, ok: true });
        let answer = Answer::Blocks(Content::Data(junk(16)));
        pair.tell_destination(Message::Fetched { stream: STREAM, id: seq, extent: Extent::new(0, 16), answer });
    }
    pair.write_at_destination(5, 6);
    pair.destination.flush().expect("flush");
    pair.assert_source_has(5);
    assert_eq!(pair.owed_back(), BlockCount(0));
    pair.assert_destination_reads_what_was_written();
}

#[test]
fn questions_of_epochs_that_never_were_are_refused() {
    let mut pair = filled();
    pair.hand_over();
    for epoch in [0, 7, LAST - 1, LAST] {
        let (epoch, extent) = (Epoch(epoch), Extent::new(16, 16));
        pair.tell_source(Message::Fetch { stream: STREAM, epoch, id: LAST, extent });
    }
    assert_eq!(pair.missing(), BlockCount(BLOCKS), "nobody asked for what was answered");
    pair.assert_destination_reads_what_was_written();
}
