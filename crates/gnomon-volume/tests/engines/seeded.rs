//! A random life of a move from a seed: writes, reads, discards, copies, flushes and cut links in any order.

use gnomon_terms::{BlockCount, Extent};
use gnomon_volume::disk::Disk;

use crate::pair::{BLOCKS, Pair};

/// Seeds run by default; `GNOMON_SEEDS` runs more, `GNOMON_SEED` one.
const SEEDS: u64 = 24;

/// A small generator for tests: the same seed, the same life.
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self, sides: u64) -> u64 {
        // Source: Marsaglia, "Xorshift RNGs", Journal of Statistical Software 8(14), 2003.
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

#[test]
fn whatever_happens_nothing_acknowledged_is_lost() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("GNOMON_SEED") {
        Some(seed) => seed..=seed,
        None => 1..=number("GNOMON_SEEDS").unwrap_or(SEEDS),
    };
    for seed in seeds {
        println!("seed {seed}");
        live(seed);
    }
}

fn live(seed: u64) {
    let mut dice = Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let mut pair = Pair::new();
    pair.fill(seed);
    pair.connect();
    for step in 0..400 {
        match dice.roll(8) {
            0..=3 => pair.copy(unit(&mut dice)),
            4..=6 => pair.write_at_source(dice.roll(BLOCKS), step),
            _ if dice.roll(12) == 0 => {
                pair.cut();
                pair.connect();
            }
            _ => pair.read_at_destination(dice.roll(BLOCKS)),
        }
    }
    pair.hand_over();
    for step in 400..900 {
        match dice.roll(10) {
            0..=2 => pair.copy(unit(&mut dice)),
            3..=5 => pair.write_at_destination(dice.roll(BLOCKS), step),
            6 => pair.write_bytes_at_destination(dice.roll(BLOCKS - 3) * 4096 + dice.roll(4096), &[step as u8; 7000]),
            7 => pair.discard_at_destination(dice.roll(BLOCKS)),
            8 if dice.roll(6) == 0 => {
                pair.cut();
                pair.connect();
            }
            8 => pair.destination.flush().expect("flush"),
            _ => pair.read_at_destination(dice.roll(BLOCKS)),
        }
    }
    pair.settle();
    pair.destination.flush().expect("flush");
    assert_eq!(pair.owed_back(), BlockCount(0), "seed {seed}: a flush returned while writes were owed");
    pair.assert_destination_reads_what_was_written();
    assert_eq!(pair.missing(), BlockCount(0));
    for block in 0..BLOCKS {
        pair.assert_source_has(block);
    }
}

fn unit(dice: &mut Dice) -> Extent {
    Extent::new(dice.roll(BLOCKS / 16) * 16, 16)
}
