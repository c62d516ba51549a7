//! Handovers with a partner who says anything at any time: whatever it is, a promise that was written down is kept.
//!
//! The exploration beside the machines shows that two honest ones, over a network that loses and repeats, come to one
//! writer. Here the other side is not honest; the seed is all a failure needs to be repeated.

use gnomon_proto::{
    frame::Step,
    handover::{Given, Giver, GiverState, Lacking, Taker, TakerRecord, TakerState},
};
use gnomon_terms::Epoch;

/// SplitMix64. Source: Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    /// Mostly epochs that mean something, and the ends of what can be said.
    fn epoch(&mut self) -> Epoch {
        Epoch([0, 1, 2, 2, 2, 3, 3, u64::MAX - 1, u64::MAX][self.below(9) as usize])
    }

    fn lacking(&mut self) -> Lacking {
        Lacking { count: self.below(2), check: self.below(2) }
    }

    fn step(&mut self) -> Step {
        let Lacking { count: lacking, check } = self.lacking();
        let commit = Step::Commit { lacking, check };
        [Step::Prepare, Step::Prepared, commit, commit, Step::Committed, Step::Abort, Step::Aborted]
            [self.below(7) as usize]
    }
}

fn rounds() -> u64 {
    std::env::var("GNOMON_FUZZ_ITERATIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(20_000)
}

#[test]
fn a_giver_that_has_given_never_writes_again() {
    let mut given = 0;
    for seed in 0..rounds() {
        let mut chance = Chance(seed);
        let mut giver = Giver::new(Epoch(chance.below(3)));
        let (mut record, mut asked): (Option<Given>, bool) = (None, false);
        for _ in 0..chance.below(24) {
            match chance.below(7) {
                0 => asked |= giver.begin().is_ok(),
                1 => _ = giver.decide(chance.lacking()),
                2 => _ = giver.give_up(),
                3 => giver.connected(),
                // It crashes: what is on record is all it knows.
                4 => giver = record.map_or_else(|| Giver::new(Epoch(giver.epoch().0 - 1)), Giver::resume),
                _ => giver.hear(chance.epoch(), chance.step()),
            }
            if chance.below(2) == 0
                && let Some(wanted) = giver.poll_record()
            {
                record = Some(wanted);
                giver.recorded();
            }
            let said = giver.poll_transmit();
            assert!(record.is_none() || !giver.may_write(), "seed {seed}: it writes after it gave");
            assert!(record.is_some() || !matches!(said, Some(Step::Commit { .. })), "seed {seed}: said, not written");
            assert!(asked || giver.may_write(), "seed {seed}: given without having been asked to");
            assert!(record.is_none() || said != Some(Step::Abort), "seed {seed}: given and called off");
        }
        given += u64::from(giver.state() == GiverState::Given || giver.state() == GiverState::Done);
    }
    assert!(given > 0, "no life has come that far");
}

#[test]
fn a_taker_writes_only_what_it_was_told_with_the_right_bitmap() {
    let (mut taken, mut prepared) = (0, 0);
    for seed in 0..rounds() {
        let mut chance = Chance(seed);
        let mut taker = Taker::new(Epoch(1));
        let (mut record, mut told): (Option<TakerRecord>, bool) = (None, false);
        for _ in 0..chance.below(24) {
            match chance.below(6) {
                0 => _ = taker.hear_abort(chance.epoch()),
                1 => taker = record.map_or_else(|| Taker::new(Epoch(1)), Taker::resume),
                _ => {
                    let (epoch, step, have) = (chance.epoch(), chance.step(), Some(chance.lacking()));
                    let have = have.filter(|_| chance.below(3) > 0);
                    let right = matches!((step, have), (Step::Commit { lacking, check }, Some(have))
                        if have == Lacking { count: lacking, check });
                    told |= right && epoch > Epoch(1);
                    taker.hear(epoch, step, have);
                }
            }
            let before = record;
            if chance.below(2) == 0
                && let Some(wanted) = taker.poll_record()
            {
                record = Some(wanted);
                taker.recorded();
            }
            let said = taker.poll_transmit();
            if let Some(TakerRecord::Taken(_)) = before {
                assert_eq!(record, before, "seed {seed}: the writer took its word back");
            }
            assert!(!taker.may_write() || told, "seed {seed}: it writes without having been told");
            assert!(
                !taker.may_write() || record == Some(TakerRecord::Taken(taker.epoch().0)),
                "seed {seed}: unwritten"
            );
            assert!(said != Some(Step::Committed) || taker.may_write(), "seed {seed}: said, not true");
        }
        taken += u64::from(taker.may_write());
        prepared += u64::from(taker.state() == TakerState::Prepared);
    }
    assert!(taken > 0 && prepared > 0, "no life has come that far");
}
