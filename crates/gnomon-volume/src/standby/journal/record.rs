//! A record of a standby's journal, as bytes.
//!
//! ```text
//!   0    8         16     20     21    24      40
//!   | pos | at/turn | len | kind | 0 0 0 | check | body: len bytes, of kind data only
//! ```
//! Little-endian. The check is the first half of a BLAKE3 hash, keyed with the journal's secret, of what is before it and
//! of the body: what a guest writes ends in a body, so it must not be able to write what looks like a record.

use gnomon_proto::frame::MAX_PAYLOAD;

/// Bytes before the body.
pub(super) const HEAD: usize = 40;
/// The longest body: that of a frame.
pub(super) const LONGEST: usize = MAX_PAYLOAD;
const CHECK_AT: usize = 24;
const DATA: u8 = 1;
const ZERO: u8 = 2;
const TURN: u8 = 3;
const VOID: u8 = 4;
const SEAL: u8 = 5;

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::standby) enum Say {
    /// These bytes of the disk are as the body.
    Data {
        /// First byte.
        at: u64,
        /// How many.
        len: u32,
    },
    /// These bytes of the disk are zero.
    Zero {
        /// First byte.
        at: u64,
        /// How many.
        len: u32,
    },
    /// The records so far make the disk of this turn.
    Turn {
        /// Which.
        turn: u64,
        /// Whether they do; if not, they belong to the next.
        whole: bool,
    },
    /// The records up to the end of this turn count.
    Seal {
        /// Which.
        turn: u64,
    },
}

/// A secret of one journal.
pub(super) type Key = [u8; 32];

impl Say {
    /// How many bytes of body it has.
    pub fn body(self) -> usize {
        match self {
            Say::Data { len, .. } => len as usize,
            _ => 0,
        }
    }

    fn fields(self) -> (u8, u64, u32) {
        match self {
            Say::Data { at, len } => (DATA, at, len),
            Say::Zero { at, len } => (ZERO, at, len),
            Say::Turn { turn, whole: true } => (TURN, turn, 0),
            Say::Turn { turn, whole: false } => (VOID, turn, 0),
            Say::Seal { turn } => (SEAL, turn, 0),
        }
    }
}

/// The bytes before the body of a record at `pos` in generation `generation`.
pub(super) fn head(key: &Key, generation: u64, pos: u64, say: Say, body: &[u8]) -> [u8; HEAD] {
    let (kind, at, len) = say.fields();
    let mut head = [0; HEAD];
    head[0..8].copy_from_slice(&pos.to_le_bytes());
    head[8..16].copy_from_slice(&at.to_le_bytes());
    head[16..20].copy_from_slice(&len.to_le_bytes());
    head[20] = kind;
    let check = check(key, generation, &head[..CHECK_AT], body);
    head[CHECK_AT..].copy_from_slice(&check);
    head
}

/// What the head of a record at `pos` says, if it may be one; its check is for later, when the body has been read.
pub(super) fn parse(head: &[u8; HEAD], pos: u64) -> Option<Say> {
    let word = |at: usize| head[at..at + 8].iter().rev().fold(0u64, |word, byte| word << 8 | u64::from(*byte));
    let at = word(8);
    let len = u32::from_le_bytes([head[16], head[17], head[18], head[19]]);
    if word(0) != pos || head[21..CHECK_AT] != [0; 3] {
        return None;
    }
    match (head[20], len) {
        (DATA, 1..) if len as usize <= LONGEST => Some(Say::Data { at, len }),
        (ZERO, 1..) => Some(Say::Zero { at, len }),
        (TURN, 0) => Some(Say::Turn { turn: at, whole: true }),
        (VOID, 0) => Some(Say::Turn { turn: at, whole: false }),
        (SEAL, 0) => Some(Say::Seal { turn: at }),
        _ => None,
    }
}

/// Whether a head and a body belong together, to this journal and this generation.
pub(super) fn is_true(key: &Key, generation: u64, head: &[u8; HEAD], body: &[u8]) -> bool {
    check(key, generation, &head[..CHECK_AT], body) == head[CHECK_AT..]
}

/// Half a hash: 128 bits.
pub(super) fn check(key: &Key, generation: u64, head: &[u8], body: &[u8]) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new_keyed(key);
    hasher.update(&generation.to_le_bytes()).update(head).update(body);
    let mut half = [0; 16];
    half.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    half
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn says() -> impl Strategy<Value = Say> {
        prop_oneof![
            (any::<u64>(), 1..=LONGEST as u32).prop_map(|(at, len)| Say::Data { at, len }),
            (any::<u64>(), 1u32..).prop_map(|(at, len)| Say::Zero { at, len }),
            (any::<u64>(), any::<bool>()).prop_map(|(turn, whole)| Say::Turn { turn, whole }),
            any::<u64>().prop_map(|turn| Say::Seal { turn }),
        ]
    }

    proptest! {
        #[test]
        fn what_was_said_is_read(say in says(), pos in any::<u64>(), generation in any::<u64>()) {
            let head = head(&[7; 32], generation, pos, say, b"body");
            prop_assert_eq!(parse(&head, pos), Some(say));
            prop_assert_eq!(parse(&head, pos ^ 1), None);
            prop_assert!(is_true(&[7; 32], generation, &head, b"body"));
            prop_assert!(!is_true(&[8; 32], generation, &head, b"body"));
            prop_assert!(!is_true(&[7; 32], generation ^ 1, &head, b"body"));
        }

        #[test]
        fn any_bytes_are_a_bounded_record_or_none(head in any::<[u8; HEAD]>(), kind in 0u8..8, fair in any::<bool>()) {
            let mut head = head;
            if fair {
                head[0..8].fill(0);
                head[20] = kind;
                head[21..24].fill(0);
            }
            if let Some(say) = parse(&head, 0) {
                prop_assert!(say.body() <= LONGEST);
            }
        }

        #[test]
        fn a_changed_bit_is_found(say in says(), bit in 0..HEAD * 8) {
            let mut head = head(&[7; 32], 3, 99, say, b"body");
            head[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(parse(&head, 99).is_none() || !is_true(&[7; 32], 3, &head, b"body"));
        }
    }
}
