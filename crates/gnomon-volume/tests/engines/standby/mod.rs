//! A standby is the primary's disk of a mark, whatever happens: the two ends against each other, with a shadow's host
//! that dies at any byte.

mod files;
mod machine;
mod rig;
mod seeded;

use std::sync::{Arc, atomic::Ordering};

use gnomon_proto::frame::{Change, Content, Message, Stream};
use gnomon_terms::{Bytes, Epoch, ErrorKind, Extent};
use gnomon_volume::{
    disk::Disk,
    standby::{JournalError, Lineage, SenderError, SenderPhase, StandbyError},
    wire::{Wire, WireClosed},
};
use rig::{BLOCKS, EPOCH, LONG, Rig};

/// A primary with something on its disk, and a standby that has sealed turn 1.
fn in_step() -> Rig {
    let mut rig = Rig::new();
    for block in 0..BLOCKS {
        rig.write(block, 1);
    }
    let has = rig.connect().expect("begun");
    assert_eq!((has.sealed, has.kept), (None, false));
    rig.await_in_step();
    rig.checkpoint();
    rig
}

#[test]
fn a_standby_is_the_disk_of_the_sealed_mark_and_not_of_what_came_after() {
    let mut rig = in_step();
    rig.write(3, 2);
    rig.primary.write_zeroes(40_960, 8192, true).expect("zeroes");
    let turn = rig.checkpoint();
    rig.write(3, 3);
    rig.write(4, 3);
    let newer = rig.mark().expect("marked");
    rig.receiver.await_whole(newer, LONG).expect("it has arrived");
    assert_eq!(rig.assert_takeover(), Some(turn), "what has arrived is not sealed");
    rig.receiver.seal(newer).expect("sealed");
    assert_eq!(rig.assert_takeover(), Some(newer), "sealed, and not yet in the volume");
    rig.receiver.apply(newer).expect("applied");
    let mut block = [0; 4096];
    rig.receiver.read_at(&mut block, 3 * 4096).expect("read");
    assert!(block == rig.marks[&newer][3 * 4096..4 * 4096]);
}

#[test]
fn nothing_can_be_taken_over_before_the_first_seal() {
    let mut rig = Rig::new();
    rig.write(7, 1);
    assert!(matches!(rig.receiver.take_over(), Err(StandbyError::NothingSealed)));
    rig.connect().expect("begun");
    rig.await_in_step();
    let turn = rig.mark().expect("marked");
    rig.receiver.await_whole(turn, LONG).expect("arrived");
    assert_eq!(rig.assert_takeover(), None);
    rig.receiver.seal(turn).expect("sealed");
    assert_eq!(rig.assert_takeover(), Some(turn));
}

#[test]
fn what_is_overwritten_before_it_is_sent_is_still_of_its_turn() {
    let mut rig = in_step();
    rig.shut.store(true, Ordering::SeqCst);
    for block in 0..60 {
        rig.write(block, 2);
    }
    let first = rig.mark().expect("marked");
    for block in 20..80 {
        rig.write(block, 3);
    }
    let second = rig.mark().expect("marked");
    for block in 40..100 {
        rig.write(block, 4);
    }
    assert!(rig.sender.as_ref().unwrap().state().kept > Bytes(0), "nothing was copied: this tests nothing");
    rig.shut.store(false, Ordering::SeqCst);
    rig.seal(first).expect("sealed");
    assert_eq!(rig.assert_takeover(), Some(first));
    rig.seal(second).expect("sealed");
    assert_eq!(rig.assert_takeover(), Some(second));
    rig.checkpoint();
    rig.assert_takeover();
    assert_eq!(rig.owed(), Bytes(0), "all of it is sealed");
}

#[test]
fn a_turn_with_too_much_to_keep_is_void_and_the_next_one_is_whole() {
    let mut rig = in_step();
    rig.cut();
    rig.copies = Bytes(16 << 10);
    rig.connect().expect("begun");
    rig.await_in_step();
    rig.shut.store(true, Ordering::SeqCst);
    for value in 2..4 {
        // In two stripes: the sender may hold a piece of one already.
        (150..350).for_each(|block| rig.write(block, value));
        if value == 2 {
            rig.mark().expect("marked");
        }
    }
    rig.shut.store(false, Ordering::SeqCst);
    let void = rig.turn;
    let error = rig.receiver.await_whole(void, LONG).expect_err("void");
    assert!(matches!(error, StandbyError::NotWhole { turn } if turn == void), "{error}");
    assert!(matches!(rig.receiver.seal(void), Err(StandbyError::NotWhole { .. })));
    assert_eq!(rig.assert_takeover(), Some(1));
    let next = rig.checkpoint();
    assert_eq!(rig.assert_takeover(), Some(next));
}

#[test]
fn a_lost_session_costs_what_was_owed_and_no_more() {
    let mut rig = in_step();
    rig.write(9, 5);
    let lost = rig.mark().expect("marked");
    rig.receiver.await_whole(lost, LONG).expect("arrived");
    rig.cut();
    assert_eq!(rig.owed(), Bytes(4096), "it was not sealed");
    rig.write(10, 5);
    let has = rig.connect().expect("begun");
    assert_eq!((has.sealed, has.kept), (Some(1), true));
    rig.await_in_step();
    let turn = rig.checkpoint();
    let state = rig.sender.as_ref().unwrap().state();
    assert_eq!((state.carried, state.owed.0, state.sealed), (Bytes(2 * 4096), 0, Some(turn)));
    assert_eq!(rig.assert_takeover(), Some(turn));
}

#[test]
fn a_sealed_turn_can_be_gone_back_from_until_it_is_applied() {
    let mut rig = in_step();
    rig.write(9, 5);
    let turn = rig.mark().expect("marked");
    rig.receiver.await_whole(turn, LONG).expect("arrived");
    rig.receiver.seal(turn).expect("sealed");
    rig.restart(None);
    assert_eq!(rig.receiver.sealed(), Some(turn), "a restart finds it");
    rig.receiver.go_back(Some(1)).expect("another volume of the guest has not got as far");
    assert_eq!(rig.assert_takeover(), Some(1));
    assert!(matches!(rig.receiver.go_back(Some(turn)), Err(StandbyError::OutOfTurn { .. })));
    rig.connect().expect("begun");
    rig.await_in_step();
    let next = rig.checkpoint();
    assert_eq!(rig.assert_takeover(), Some(next));
    let error = rig.receiver.go_back(Some(1)).expect_err("it is applied");
    assert!(matches!(error, StandbyError::OutOfTurn { said: 1, .. }), "{error}");
    rig.receiver.go_back(None).expect("given up");
    rig.cut();
    rig.told = None;
    assert_eq!(rig.assert_takeover(), None);
}

#[test]
fn a_standby_of_another_line_or_another_boot_gets_everything() {
    let mut rig = in_step();
    rig.cut();
    rig.lineage = Lineage::of("q@shadow");
    let has = rig.connect().expect("begun");
    assert_eq!((has.sealed, has.kept), (None, false));
    rig.await_in_step();
    rig.restart(None);
    let has = rig.connect().expect("begun");
    assert_eq!((has.sealed, has.kept), (None, true), "the kernel has what was copied");
    rig.await_in_step();
    rig.restart(Some(&mut crate::seeded::Dice(99)));
    let has = rig.connect().expect("begun");
    assert_eq!((has.sealed, has.kept), (None, false), "it may have lost what was copied");
    rig.await_in_step();
    let turn = rig.checkpoint();
    assert_eq!(rig.assert_takeover(), Some(turn));
}

/// Found by the seeded lives: a standby that had lost its copy said so, the primary never heard it, and the next session
/// took what was there for a copy.
#[test]
fn a_copy_is_begun_anew_until_the_primary_has_heard_of_it() {
    let mut rig = in_step();
    rig.cut();
    rig.lineage = Lineage::of("q@shadow");
    struct Deaf;
    impl Wire for Deaf {
        fn send(&self, _message: Message) -> Result<(), WireClosed> {
            Err(WireClosed)
        }
    }
    for _ in 0..2 {
        let unheard = rig.receiver.begin(rig.lineage, EPOCH, Bytes(0), Arc::new(Deaf)).expect("begun");
        assert_eq!((unheard.sealed, unheard.kept), (None, false));
        rig.restart(None);
    }
    let has = rig.connect().expect("begun");
    assert_eq!((has.sealed, has.kept), (None, false));
    rig.await_in_step();
    rig.cut();
    assert!(rig.connect().expect("begun").kept, "now it has");
    rig.await_in_step();
    let turn = rig.checkpoint();
    assert_eq!(rig.assert_takeover(), Some(turn));
}

#[test]
fn more_than_the_journal_holds_ends_the_session_and_the_next_one_begins_anew() {
    let mut rig = in_step();
    (0..BLOCKS).for_each(|block| rig.write(block, 2));
    let turn = rig.mark().expect("marked");
    rig.receiver.await_whole(turn, LONG).expect("one disk full of writes fits");
    let sender = rig.sender.clone().expect("connected");
    (0..BLOCKS).for_each(|block| rig.write(block, 3));
    // The sender hears of it before the receiver has returned its error.
    while sender.phase() != SenderPhase::Ended || rig.faults.lock().is_empty() {
        std::thread::yield_now();
    }
    assert!(sender.state().fault.is_some() && matches!(sender.mark(99), Err(SenderError::NotInStep)));
    let faults = std::mem::take(&mut *rig.faults.lock());
    assert!(
        matches!(faults[0], StandbyError::Journal(JournalError::Full { .. }))
            && faults[0].kind() == ErrorKind::Unavailable,
        "{faults:?}"
    );
    assert_eq!(rig.assert_takeover(), Some(1));
    rig.cut();
    let has = rig.connect().expect("begun");
    assert_eq!((has.sealed, has.kept), (None, true), "what is owed cannot be staged");
    rig.await_in_step();
    let turn = rig.checkpoint();
    assert_eq!(rig.assert_takeover(), Some(turn));
}

#[test]
fn a_primary_that_was_taken_over_from_is_refused() {
    let mut rig = in_step();
    rig.receiver.take_over().expect("taken over");
    rig.write(3, 9);
    let turn = rig.mark().expect("it does not know yet");
    let error = rig.receiver.await_whole(turn, LONG).expect_err("no frame is taken");
    assert!(matches!(error, StandbyError::NoSession), "{error}");
    rig.cut();
    assert!(matches!(rig.connect(), Err(StandbyError::TakenOver)));
    assert!(rig.machine.volume.content() == rig.marks[&1]);
}

#[test]
fn marks_are_made_in_step_and_upwards() {
    let mut rig = in_step();
    let sender = rig.sender.clone().expect("connected");
    assert!(matches!(sender.mark(1), Err(SenderError::OutOfTurn { turn: 1, newest: 1 })));
    rig.cut();
    assert!(matches!(sender.mark(5), Err(SenderError::NotInStep)));
}

/// Frames that are not as they must be: none is applied, and the session is over.
#[test]
fn a_frame_that_does_not_fit_ends_the_session_and_changes_nothing() {
    let stream = Stream(4);
    let mirror =
        |epoch, seq, at| Message::Mirror { stream, epoch, seq, at, len: 5, change: Change::Data(vec![9; 5]) };
    let turn = |turn, last| Message::Turn { stream, epoch: EPOCH, turn, last, whole: true };
    let extent = Extent::new(0, 1);
    let (class, content) = (gnomon_proto::Class::Background, Content::Zero);
    let frames: Vec<(&str, Message, ErrorKind)> = vec![
        ("an old epoch", mirror(Epoch(2), 1, 0), ErrorKind::Refused),
        ("an epoch to come", mirror(Epoch(4), 1, 0), ErrorKind::Corrupt),
        ("a write is missing", mirror(EPOCH, 2, 0), ErrorKind::Corrupt),
        ("past the end", mirror(EPOCH, 1, u64::MAX - 2), ErrorKind::Corrupt),
        ("a turn of writes that are missing", turn(2, 7), ErrorKind::Corrupt),
        ("a turn again", turn(1, 0), ErrorKind::Corrupt),
        ("a first copy", Message::Push { stream, epoch: EPOCH, seq: 1, extent, class, content }, ErrorKind::Corrupt),
        ("something else", Message::Ping { seq: 1 }, ErrorKind::Corrupt),
    ];
    let mut rig = in_step();
    for (name, frame, kind) in frames {
        rig.cut();
        rig.connect().expect("begun");
        rig.await_in_step();
        let error = rig.receiver.handle(frame).expect_err(name);
        assert_eq!(error.kind(), kind, "{name}: {error}");
        let after = rig.receiver.handle(mirror(EPOCH, 1, 0)).expect_err(name);
        assert!(matches!(after, StandbyError::NoSession), "{name}: {after}");
        assert_eq!(rig.assert_takeover(), Some(1), "{name}");
    }
}

#[test]
fn a_standby_and_its_primary_can_be_compared() {
    let mut rig = in_step();
    rig.write(5, 7);
    let sender = rig.sender.clone().expect("connected");
    let compared = sender.verify(&mut |_| true).expect("compared");
    assert!(compared.differences.is_empty(), "{compared:?}");
    rig.checkpoint();
    let mut other = [0; 1];
    rig.receiver.read_at(&mut other, 4096 * 9).expect("read");
    Disk::write_at(&rig.machine.volume, &[other[0] ^ 1], 4096 * 9).expect("behind everybody's back");
    let compared = sender.verify(&mut |_| true).expect("compared");
    assert!(!compared.differences.is_empty());
}
