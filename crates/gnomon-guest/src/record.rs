//! The record: 4 KiB that knows its place, its version and its seed, and carries a checksum over all of it.
//!
//! ```text
//!    0  magic     "GNOMREC1"
//!    8  index     u64 le   which record of the disk
//!   16  version   u64 le   0 by the host's fill, +1 at each rewrite
//!   24  seed      u64 le   which run wrote it
//!   32  pattern   4056 B   pseudo-random words of (seed, index, version): not compressible, nowhere alike
//! 4088  checksum  u64 le   over bytes 0..4088
//! ```
//! A misplaced block shows as a wrong index, a lost write as an old version, a torn one as a wrong checksum.

use std::fmt;

use crate::chance::{Dice, scramble};

/// Bytes in a record: the block of the volume plane and of virtio-blk with `logical_block_size=4096` or less.
pub const RECORD_SIZE: usize = 4096;

const MAGIC: u64 = u64::from_le_bytes(*b"GNOMREC1");
const HEADER_WORDS: usize = 4;
const CHECKSUM_AT: usize = RECORD_SIZE - 8;

/// What a record claims to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label {
    /// Which record of the disk, from 0.
    pub index: u64,
    /// How many times it was rewritten since the fill.
    pub version: u64,
    /// The run that wrote it.
    pub seed: u64,
}

/// Why bytes are not the record that was expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Not a record at all: the first eight bytes are these.
    Magic(u64),
    /// The checksum does not match: torn, or bytes were changed.
    Checksum {
        /// What the record carries.
        carried: u64,
        /// What its bytes give.
        computed: u64,
    },
    /// A whole record, but not the one asked for.
    Label {
        /// What was asked for.
        expected: Label,
        /// What is there.
        found: Label,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Magic(word) => write!(f, "not a record (starts with {word:#018x})"),
            Fault::Checksum { carried, computed } => {
                write!(f, "checksum {carried:#018x} carried, {computed:#018x} computed")
            }
            Fault::Label { expected, found } => write!(f, "expected {expected:?}, found {found:?}"),
        }
    }
}

/// Writes the record `label` into `bytes` (exactly [`RECORD_SIZE`] of them).
pub fn write(label: Label, bytes: &mut [u8]) {
    let mut dice = Dice::new(scramble(label.seed ^ scramble(label.index ^ scramble(label.version))));
    let header = [MAGIC, label.index, label.version, label.seed];
    let (body, tail) = bytes.split_at_mut(CHECKSUM_AT);
    for (place, word) in body.chunks_exact_mut(8).enumerate() {
        let value = header.get(place).copied().unwrap_or_else(|| dice.roll());
        word.copy_from_slice(&value.to_le_bytes());
    }
    tail.copy_from_slice(&checksum(body).to_le_bytes());
}

/// Reads the label of the record in `bytes`, or says why it is none.
pub fn read(bytes: &[u8]) -> Result<Label, Fault> {
    let (body, tail) = bytes.split_at(CHECKSUM_AT);
    let mut header = [0u64; HEADER_WORDS];
    for (slot, word) in header.iter_mut().zip(words(body)) {
        *slot = word;
    }
    let [magic, index, version, seed] = header;
    if magic != MAGIC {
        return Err(Fault::Magic(magic));
    }
    let (carried, computed) = (words(tail).next().unwrap_or(0), checksum(body));
    if carried != computed {
        return Err(Fault::Checksum { carried, computed });
    }
    Ok(Label { index, version, seed })
}

/// Checks that `bytes` hold exactly the record `expected`.
pub fn check(expected: Label, bytes: &[u8]) -> Result<(), Fault> {
    let found = read(bytes)?;
    if found == expected { Ok(()) } else { Err(Fault::Label { expected, found }) }
}

/// FNV-1a over 64-bit words with a final scramble: eight bytes a step, so that a fill is bound by the disk.
fn checksum(body: &[u8]) -> u64 {
    scramble(words(body).fold(0xcbf2_9ce4_8422_2325, fold))
}

/// One step of the word-wise FNV-1a; also chains the journal of writes.
pub fn fold(hash: u64, word: u64) -> u64 {
    (hash ^ word).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23)
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u64> + '_ {
    bytes.chunks_exact(8).map(|chunk| chunk.iter().rev().fold(0, |word, &byte| (word << 8) | u64::from(byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LABEL: Label = Label { index: 77, version: 3, seed: 42 };

    fn sample() -> Vec<u8> {
        let mut bytes = vec![0; RECORD_SIZE];
        write(LABEL, &mut bytes);
        bytes
    }

    #[test]
    fn reads_what_it_wrote() {
        assert_eq!(read(&sample()), Ok(LABEL));
        assert_eq!(check(LABEL, &sample()), Ok(()));
    }

    #[test]
    fn any_changed_byte_is_seen() {
        for at in (0..RECORD_SIZE).step_by(61).chain([RECORD_SIZE - 1]) {
            let mut bytes = sample();
            bytes[at] ^= 0x10;
            assert!(check(LABEL, &bytes).is_err(), "flip at {at} not seen");
        }
    }

    #[test]
    fn a_torn_record_is_seen() {
        let mut newer = vec![0; RECORD_SIZE];
        write(Label { version: 4, ..LABEL }, &mut newer);
        for sector in 1..8 {
            let mut torn = newer.clone();
            torn[sector * 512..].copy_from_slice(&sample()[sector * 512..]);
            assert!(matches!(read(&torn), Err(Fault::Checksum { .. })), "torn at sector {sector}");
        }
    }

    #[test]
    fn a_wrong_place_version_or_seed_is_seen() {
        for expected in [Label { index: 78, ..LABEL }, Label { version: 2, ..LABEL }, Label { seed: 1, ..LABEL }] {
            assert_eq!(check(expected, &sample()), Err(Fault::Label { expected, found: LABEL }));
        }
        assert_eq!(read(&vec![0; RECORD_SIZE]), Err(Fault::Magic(0)));
    }
}
