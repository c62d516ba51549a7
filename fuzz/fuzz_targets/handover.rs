//! Both sides of a handover take any steps of any epochs in any order, and crash in between: what was written down is
//! kept, and nobody writes who has not been told to.
//!
//! Each life is a run of three bytes: what happens, of which epoch, and with which bitmap.

#![no_main]

use gnomon_proto::{
    frame::Step,
    handover::{Giver, Lacking, Taker, TakerRecord},
};
use gnomon_terms::Epoch;
use libfuzzer_sys::fuzz_target;

fn lacking(bits: u8) -> Lacking {
    Lacking { count: u64::from(bits & 1), check: u64::from(bits >> 1 & 1) }
}

fn step(bits: u8) -> Step {
    let Lacking { count, check } = lacking(bits);
    let commit = Step::Commit { lacking: count, check };
    [Step::Prepare, Step::Prepared, commit, Step::Committed, Step::Abort, Step::Aborted][usize::from(bits >> 2) % 6]
}

fn epoch(bits: u8) -> Epoch {
    Epoch([0, 1, 2, 3, u64::MAX][usize::from(bits) % 5])
}

fn give(lives: &[[u8; 3]]) {
    let (mut giver, mut record) = (Giver::new(Epoch(1)), None);
    for [deed, whose, bits] in lives {
        match deed % 7 {
            0 => _ = giver.begin(),
            1 => _ = giver.decide(lacking(*bits)),
            2 => _ = giver.give_up(),
            3 => giver.connected(),
            4 => giver = record.map_or_else(|| Giver::new(Epoch(1)), Giver::resume),
            5 => {
                record = giver.poll_record().or(record);
                giver.recorded();
            }
            _ => giver.hear(epoch(*whose), step(*bits)),
        }
        let said = giver.poll_transmit();
        assert!(record.is_none() || !giver.may_write());
        assert!(record.is_some() || !matches!(said, Some(Step::Commit { .. })));
    }
}

fn take(lives: &[[u8; 3]]) {
    let (mut taker, mut record) = (Taker::new(Epoch(1)), None);
    for [deed, whose, bits] in lives {
        match deed % 5 {
            0 => _ = taker.hear_abort(epoch(*whose)),
            1 => taker = record.map_or_else(|| Taker::new(Epoch(1)), Taker::resume),
            2 => {
                record = taker.poll_record().or(record);
                taker.recorded();
            }
            _ => taker.hear(epoch(*whose), step(*bits), Some(lacking(bits >> 5))),
        }
        assert!(!taker.may_write() || record == Some(TakerRecord::Taken(taker.epoch().0)));
        assert!(taker.poll_transmit() != Some(Step::Committed) || taker.may_write());
    }
}

fuzz_target!(|bytes: &[u8]| {
    let lives = bytes.as_chunks::<3>().0;
    give(lives);
    take(lives);
});
