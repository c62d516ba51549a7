//! What a standby's journal says of the volume beside it, and where its log begins: one of two slots.
//!
//! Each slot that is written has a number above the other's, and the newest that is durable is never written over: so a
//! slot that is torn leaves one to go by.

use gnomon_terms::{Bytes, Epoch};

use super::record::{Key, check};
use crate::blockmap::BootId;

/// First bytes of a slot.
const MAGIC: &[u8; 8] = b"gnomonsj";
/// Layout of slots and records.
const VERSION: u32 = 1;
/// Bytes of a slot that are used.
pub(super) const SLOT: usize = 152;
const CHECK_AT: usize = 136;

/// Names a line of copies: a standby that was made in another one shares nothing with the primary's book.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lineage(pub u128);

impl Lineage {
    /// The line with this name: a protection, and the node that has the copy.
    pub fn of(name: &str) -> Lineage {
        let hash = blake3::hash(name.as_bytes());
        Lineage(hash.as_bytes()[..16].iter().fold(0, |word, byte| word << 8 | u128::from(*byte)))
    }
}

/// What the volume is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::standby) enum Stand {
    /// Nothing that is known of.
    Nothing,
    /// A copy of no moment, in the making while this kernel runs: what was copied is in its hands.
    Filling(BootId),
    /// The disk as it was at this turn, durably, once the log has been applied.
    Sealed(u64),
}

/// A slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::standby) struct Slot {
    /// Slots are numbered as they are written.
    pub number: u64,
    /// Records of another generation are of a log that is over.
    pub generation: u64,
    /// Whose copy it is.
    pub lineage: Lineage,
    /// The newest epoch a session was begun with.
    pub epoch: Epoch,
    /// What the volume is.
    pub stand: Stand,
    /// The volume's size.
    pub size: Bytes,
    /// Where the log begins.
    pub tail: u64,
    /// Where it had got when a turn was sealed last: up to there it is durable.
    pub sealed_to: u64,
    /// The journal's secret.
    pub key: Key,
}

impl Slot {
    /// As it stands in the file.
    pub fn to_bytes(self) -> [u8; SLOT] {
        let (stand, turn, boot) = match self.stand {
            Stand::Nothing => (0u32, 0, BootId([0; 16])),
            Stand::Filling(boot) => (1, 0, boot),
            Stand::Sealed(turn) => (2, turn, BootId([0; 16])),
        };
        let mut bytes = [0; SLOT];
        let mut at = 0;
        let mut put = |field: &[u8]| {
            bytes[at..at + field.len()].copy_from_slice(field);
            at += field.len();
        };
        put(MAGIC);
        put(&VERSION.to_le_bytes());
        put(&stand.to_le_bytes());
        put(&self.number.to_le_bytes());
        put(&self.generation.to_le_bytes());
        put(&self.lineage.0.to_le_bytes());
        put(&self.epoch.0.to_le_bytes());
        put(&turn.to_le_bytes());
        put(&boot.0);
        put(&self.size.0.to_le_bytes());
        put(&self.tail.to_le_bytes());
        put(&self.sealed_to.to_le_bytes());
        put(&self.key);
        let check = check(&self.key, 0, &bytes[..CHECK_AT], &[]);
        bytes[CHECK_AT..].copy_from_slice(&check);
        bytes
    }

    /// The slot in `bytes`, if there is a whole one.
    pub fn of_bytes(bytes: &[u8; SLOT]) -> Option<Slot> {
        let word = |at: usize| bytes[at..at + 8].iter().rev().fold(0u64, |word, byte| word << 8 | u64::from(*byte));
        let key: Key = bytes[104..136].try_into().ok()?;
        let is_one = bytes[..8] == *MAGIC && bytes[CHECK_AT..] == check(&key, 0, &bytes[..CHECK_AT], &[]);
        if !is_one || bytes[8..12] != VERSION.to_le_bytes() {
            return None;
        }
        let boot = BootId(bytes[64..80].try_into().ok()?);
        let stand = match word(8) >> 32 {
            0 => Stand::Nothing,
            1 => Stand::Filling(boot),
            2 => Stand::Sealed(word(56)),
            _ => return None,
        };
        Some(Slot {
            number: word(16),
            generation: word(24),
            lineage: Lineage(u128::from(word(40)) << 64 | u128::from(word(32))),
            epoch: Epoch(word(48)),
            stand,
            size: Bytes(word(80)),
            tail: word(88),
            sealed_to: word(96),
            key,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(stand: Stand) -> Slot {
        let (lineage, epoch, size) = (Lineage::of("a@b"), Epoch(3), Bytes(1 << 30));
        Slot { number: 9, generation: 4, lineage, epoch, stand, size, tail: 77, sealed_to: 99, key: [5; 32] }
    }

    #[test]
    fn a_slot_comes_back_and_a_changed_one_does_not() {
        for stand in [Stand::Nothing, Stand::Filling(BootId([6; 16])), Stand::Sealed(1 << 50)] {
            let bytes = slot(stand).to_bytes();
            assert_eq!(Slot::of_bytes(&bytes), Some(slot(stand)));
            for bit in 0..SLOT * 8 {
                let mut changed = bytes;
                changed[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(Slot::of_bytes(&changed), None, "{stand:?}, bit {bit}");
            }
        }
        assert_eq!(Slot::of_bytes(&[0; SLOT]), None);
    }
}
