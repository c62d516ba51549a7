//! A random life of a standby from a seed: two writers, marks, seals, cut links, and a shadow's host that is killed at
//! any byte it writes, or loses its power. After each death, and at the end, what would be taken over is the primary's
//! disk of a mark, byte for byte, and not older than what the primary was told.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use gnomon_terms::{Bytes, Extent};
use gnomon_volume::disk::{Disk, VolumeDisk};
use parking_lot::RwLock;

use super::rig::{BLOCKS, Rig};
use crate::{pair::pattern, seeded::Dice};

/// Seeds run by default; `GNOMON_SEEDS` runs more, `GNOMON_SEED` one.
const SEEDS: u64 = 8;

#[test]
fn a_takeover_is_always_of_a_mark_and_never_older_than_what_was_told() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("GNOMON_SEED") {
        Some(seed) => seed..=seed,
        None => 1..=number("GNOMON_SEEDS").unwrap_or(SEEDS),
    };
    let mut all = Tally::default();
    for seed in seeds {
        let tally = live(seed);
        println!("seed {seed}: {tally:?}");
        all.add(&tally);
    }
    let Tally { marks, seals, deaths, takeovers, untold } = all;
    assert!([marks, seals, deaths, takeovers, untold].iter().all(|count| *count > 0), "{all:?} tests nothing");
}

/// What has happened in a life.
#[derive(Debug, Default)]
struct Tally {
    marks: u64,
    seals: u64,
    /// The shadow's host died while it was written to.
    deaths: u64,
    takeovers: u64,
    /// Of them, at a turn that the primary was not told of.
    untold: u64,
}

impl Tally {
    fn add(&mut self, other: &Tally) {
        self.marks += other.marks;
        self.seals += other.seals;
        self.deaths += other.deaths;
        self.takeovers += other.takeovers;
        self.untold += other.untold;
    }
}

/// A guest that writes beside everything else; it stands while its lock is held.
struct Guest {
    stands: Arc<RwLock<()>>,
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Guest {
    fn start(disk: Arc<VolumeDisk>, seed: u64) -> Guest {
        let (stands, stop): (Arc<RwLock<()>>, Arc<AtomicBool>) = Default::default();
        let (lock, end) = (Arc::clone(&stands), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            let mut dice = Dice(seed | 1);
            while !end.load(Ordering::SeqCst) {
                {
                    let _running = lock.read();
                    write(&disk, &mut dice);
                }
                if dice.roll(4) == 0 {
                    thread::yield_now();
                }
            }
        });
        Guest { stands, stop, thread: Some(thread) }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(Err(_)) = self.thread.take().map(thread::JoinHandle::join) {
            eprintln!("the guest has panicked");
        }
    }
}

/// One request. Most are to a few blocks, as those of a guest are.
fn write(disk: &VolumeDisk, dice: &mut Dice) {
    let block = if dice.roll(3) > 0 { dice.roll(12) * 43 } else { dice.roll(BLOCKS - 8) };
    let (at, len) = (block * 4096 + dice.roll(2) * 100, 1 + dice.roll(9000));
    let written = match dice.roll(8) {
        0 => disk.discard(at, len),
        1 => disk.write_zeroes(at, len, true),
        _ => disk.write_at(&pattern(block, dice.roll(1 << 20)).repeat(3)[..len as usize], at),
    };
    written.expect("a guest is never held up or refused");
}

fn live(seed: u64) -> Tally {
    let mut dice = Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let mut rig = Rig::new();
    rig.copies = Bytes([1 << 20, 64 << 10][dice.roll(2) as usize]);
    (0..BLOCKS).step_by(3).for_each(|block| rig.write(block, seed));
    let guest = Guest::start(Arc::clone(&rig.primary), seed);
    let mut tally = Tally::default();
    for _ in 0..30 {
        if dice.roll(2) == 0 {
            let span = [300, 30_000, 3_000_000][dice.roll(3) as usize];
            rig.machine.dies_after(dice.roll(span));
        }
        let deeds = 1 + dice.roll(8);
        if rig.connect().is_ok() {
            for _ in 0..deeds {
                checkpoint(&mut rig, &guest, &mut dice, &mut tally);
            }
        }
        let power = (dice.roll(3) == 0).then_some(&mut dice);
        tally.deaths += u64::from(rig.machine.is_dead());
        rig.restart(power);
        let taken = rig.assert_takeover();
        tally.takeovers += u64::from(taken.is_some());
        tally.untold += u64::from(taken > rig.told);
    }
    let guest_stands = guest.stands.write();
    rig.connect().expect("a host that lives");
    rig.await_in_step();
    let turn = rig.checkpoint();
    assert_eq!(rig.assert_takeover(), Some(turn));
    assert!(rig.machine.volume.content() == rig.content() && rig.owed() == Bytes(0), "seed {seed}");
    drop(guest_stands);
    tally
}

/// Two standbys of one disk: each has a life of its own, and neither knows of the other's.
#[test]
fn two_standbys_of_one_disk_live_and_die_apart() {
    for seed in 1..=SEEDS / 2 {
        let mut dice = Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        let mut rigs = Rig::several(2);
        // The second one has less room for copies, and is void more often.
        rigs[1].copies = Bytes(64 << 10);
        (0..BLOCKS).step_by(3).for_each(|block| rigs[0].write(block, seed));
        let guest = Guest::start(Arc::clone(&rigs[0].primary), seed);
        let mut tallies = [Tally::default(), Tally::default()];
        for _ in 0..20 {
            let (one, span) = (dice.roll(2) as usize, [300, 30_000, 3_000_000][dice.roll(3) as usize]);
            rigs[one].machine.dies_after(dice.roll(span));
            let begun: Vec<bool> = rigs.iter_mut().map(|rig| rig.connect().is_ok()).collect();
            for _ in 0..1 + dice.roll(8) {
                for (number, rig) in rigs.iter_mut().enumerate().filter(|(number, _)| begun[*number]) {
                    checkpoint(rig, &guest, &mut dice, &mut tallies[number]);
                }
            }
            for (rig, tally) in rigs.iter_mut().zip(&mut tallies) {
                tally.deaths += u64::from(rig.machine.is_dead());
                let power = (dice.roll(3) == 0).then_some(&mut dice);
                rig.restart(power);
                tally.takeovers += u64::from(rig.assert_takeover().is_some());
            }
        }
        let guest_stands = guest.stands.write();
        for rig in &mut rigs {
            rig.connect().expect("a host that lives");
            rig.await_in_step();
            let turn = rig.checkpoint();
            assert_eq!(rig.assert_takeover(), Some(turn));
            assert!(rig.machine.volume.content() == rig.content() && rig.owed() == Bytes(0), "seed {seed}");
        }
        drop(guest_stands);
        println!("seed {seed}: {tallies:?}");
    }
}

/// A mark, and what becomes of it.
fn checkpoint(rig: &mut Rig, guest: &Guest, dice: &mut Dice, tally: &mut Tally) {
    let sender = Arc::clone(rig.sender.as_ref().expect("connected"));
    if !sender.await_in_step(super::LONG).unwrap_or(false) {
        return;
    }
    rig.shut.store(dice.roll(4) == 0, Ordering::SeqCst);
    let marked = {
        let _stands = guest.stands.write();
        rig.mark()
    };
    let Ok(turn) = marked else { return rig.shut.store(false, Ordering::SeqCst) };
    tally.marks += 1;
    for _ in 0..dice.roll(40) {
        write(&rig.primary, dice);
    }
    rig.shut.store(false, Ordering::SeqCst);
    if dice.roll(5) == 0 {
        return;
    }
    let sealed = rig.receiver.await_whole(turn, super::LONG).and_then(|()| rig.receiver.seal(turn));
    match (sealed, dice.roll(6)) {
        (Err(_), _) => {}
        (Ok(()), 0) => {
            let before = rig.assert_takeover();
            assert_eq!(before, Some(turn), "sealed is sealed");
        }
        (Ok(()), _) => tally.seals += u64::from(rig.receiver.apply(turn).is_ok()),
    }
}

/// The whole of a disk, so that a seed's life is about all of it.
#[test]
fn the_disk_of_a_life_is_more_than_a_stripe() {
    assert!(Extent::new(0, BLOCKS).len.0 > 2 * gnomon_volume::stripes::STRIPE_BLOCKS);
}
