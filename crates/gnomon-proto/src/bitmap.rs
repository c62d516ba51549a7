//! Bitmaps over blocks, and their form on the wire: raw or run lengths, whichever is shorter.
//!
//! ```text
//!   0x00  bits…                    one bit per block, lowest bit of the first byte first, padded with zeroes
//!   0x01  run run run…             lengths of clear, set, clear, set… runs, as LEB128; the first may be 0
//! ```
//!
//! The length in blocks is not in the encoding: the frame says it, and the decoder is told what to expect, so
//! that nothing is ever allocated on a peer's word alone. A [`Bitmap`] of a whole volume travels in pieces
//! ([`Bitmap::pieces`], [`Bitmap::adopt`]); [`Bitmap::check`] tells whether two are the same.

use gnomon_terms::{BlockIndex, ErrorKind, Extent};

use crate::frame::MAX_PAYLOAD;

const RAW: u8 = 0;
const RUNS: u8 = 1;
/// Blocks in one piece: 4 Mi blocks (16 GiB of volume) are 512 KiB raw, within a frame whatever the pattern.
pub const PIECE_BLOCKS: u64 = 4 << 20;
/// A LEB128 number of 64 bits has at most this many bytes. Source: DWARF 5, section 7.6.
const MAX_LEB: usize = 10;

const _: () = assert!((PIECE_BLOCKS / 8 + 1) as usize <= MAX_PAYLOAD);

/// Why bytes are not a bitmap.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BitmapError {
    /// The first byte is none of the encodings.
    #[error("bitmap encoding {code:?} is not known")]
    UnknownEncoding {
        /// The byte; none if there was not even one.
        code: Option<u8>,
    },
    /// The bits are not those of the blocks it is about.
    #[error("a bitmap of {expected} blocks does not have the length it should")]
    WrongLength {
        /// How many blocks it is about.
        expected: u64,
    },
    /// A piece that is larger than a frame carries, or lies outside the bitmap.
    #[error("a bitmap piece of {len} blocks at {start} does not belong into a bitmap of {blocks}")]
    OutOfPlace {
        /// First block of the piece.
        start: u64,
        /// Blocks in the piece.
        len: u64,
        /// Blocks in the bitmap.
        blocks: u64,
    },
}

impl BitmapError {
    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Corrupt
    }
}

/// One bit per block of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bitmap {
    blocks: u64,
    words: Vec<u64>,
}

impl Bitmap {
    /// All clear. Takes an eighth of a byte per block.
    pub fn new(blocks: u64) -> Bitmap {
        Bitmap { blocks, words: vec![0; blocks.div_ceil(64) as usize] }
    }

    /// How many blocks it is about.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// True if `block` is set; blocks past the end are clear.
    pub fn get(&self, block: BlockIndex) -> bool {
        let word = self.words.get((block.0 / 64) as usize).copied().unwrap_or(0);
        block.0 < self.blocks && word >> (block.0 % 64) & 1 == 1
    }

    /// Sets or clears the blocks of `extent`; what lies past the end is ignored.
    pub fn set(&mut self, extent: Extent, to: bool) {
        let end = extent.start.0.saturating_add(extent.len.0).min(self.blocks);
        let mut at = extent.start.0;
        while at < end {
            let (word, bit) = ((at / 64) as usize, at % 64);
            let count = (64 - bit).min(end - at);
            let mask = (u64::MAX >> (64 - count)) << bit;
            if to {
                self.words[word] |= mask
            } else {
                self.words[word] &= !mask
            }
            at += count;
        }
    }

    /// How many blocks are set.
    pub fn count(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// A check of length and bits: equal for equal bitmaps, and for others with a chance of 2^-64 each. It finds
    /// a piece that is missing or old, not an attacker: peers are authenticated.
    /// Source: the finaliser of MurmurHash3 (Appleby), over words with their place.
    pub fn check(&self) -> u64 {
        let set = self.words.iter().enumerate().filter(|(_, word)| **word != 0);
        set.fold(mix(self.blocks), |sum, (place, word)| sum.wrapping_add(mix(mix(*word) ^ place as u64)))
    }

    /// The extents to send it in: none if nothing is set, and no longer than a frame carries.
    pub fn pieces(&self) -> impl Iterator<Item = Extent> {
        let starts = (0..self.blocks).step_by(PIECE_BLOCKS as usize);
        let extents = starts.map(|start| Extent::new(start, PIECE_BLOCKS.min(self.blocks - start)));
        extents.filter(|extent| self.any(*extent))
    }

    /// The encoded piece over `extent`, which is one of [`Bitmap::pieces`].
    pub fn piece(&self, extent: Extent) -> Vec<u8> {
        let bits: Vec<bool> = extent.blocks().map(|block| self.get(block)).collect();
        encode(&bits)
    }

    /// Takes over a piece that a peer sent.
    ///
    /// # Errors
    /// A piece that does not belong here, or bits that are none. Nothing is changed then.
    pub fn adopt(&mut self, extent: Extent, bits: &[u8]) -> Result<(), BitmapError> {
        let (start, len) = (extent.start.0, extent.len.0);
        let fits = len <= PIECE_BLOCKS && start.checked_add(len).is_some_and(|end| end <= self.blocks);
        if !fits {
            return Err(BitmapError::OutOfPlace { start, len, blocks: self.blocks });
        }
        let bits = decode(bits, len)?;
        let mut at = start;
        for run in bits.chunk_by(|a, b| a == b) {
            self.set(Extent::new(at, run.len() as u64), run[0]);
            at += run.len() as u64;
        }
        Ok(())
    }

    fn any(&self, extent: Extent) -> bool {
        let words = (extent.start.0 / 64) as usize..extent.end().0.div_ceil(64) as usize;
        self.words[words].iter().any(|word| *word != 0)
    }
}

/// Encodes bits, raw or as run lengths, whichever is shorter (raw if equal).
pub fn encode(bits: &[bool]) -> Vec<u8> {
    let raw_len = 1 + bits.len().div_ceil(8);
    encode_runs(bits, raw_len).unwrap_or_else(|| encode_raw(bits))
}

/// Decodes `blocks` bits. Allocates one byte per block, so the caller bounds `blocks` first.
///
/// # Errors
/// Anything but exactly `blocks` bits.
pub fn decode(bytes: &[u8], blocks: u64) -> Result<Vec<bool>, BitmapError> {
    let wrong = BitmapError::WrongLength { expected: blocks };
    let Some(blocks) = usize::try_from(blocks).ok() else { return Err(wrong) };
    match bytes.split_first() {
        Some((&RAW, bits)) => decode_raw(bits, blocks).ok_or(wrong),
        Some((&RUNS, runs)) => decode_runs(runs, blocks).ok_or(wrong),
        other => Err(BitmapError::UnknownEncoding { code: other.map(|(code, _)| *code) }),
    }
}

fn encode_raw(bits: &[bool]) -> Vec<u8> {
    let byte = |bits: &[bool]| bits.iter().enumerate().fold(0, |byte, (at, bit)| byte | u8::from(*bit) << at);
    std::iter::once(RAW).chain(bits.chunks(8).map(byte)).collect()
}

/// `None` as soon as it is as long as `limit`.
fn encode_runs(bits: &[bool], limit: usize) -> Option<Vec<u8>> {
    let mut out = vec![RUNS];
    if bits.first() == Some(&true) {
        out.push(0);
    }
    for run in bits.chunk_by(|a, b| a == b) {
        push_leb(&mut out, run.len() as u64);
        if out.len() >= limit {
            return None;
        }
    }
    (out.len() < limit).then_some(out)
}

fn decode_raw(bytes: &[u8], blocks: usize) -> Option<Vec<bool>> {
    let padding_clear = match (bytes.last(), blocks % 8) {
        (Some(last), used @ 1..) => last >> used == 0,
        _ => true,
    };
    let right = bytes.len() == blocks.div_ceil(8) && padding_clear;
    right.then(|| (0..blocks).map(|at| bytes[at / 8] >> (at % 8) & 1 == 1).collect())
}

fn decode_runs(mut bytes: &[u8], blocks: usize) -> Option<Vec<bool>> {
    let mut bits = Vec::with_capacity(blocks);
    let mut value = false;
    while !bytes.is_empty() {
        let (run, rest) = pull_leb(bytes)?;
        let len = usize::try_from(run).ok().filter(|run| *run <= blocks - bits.len())?;
        // Only the first run may be empty: there is one way to write each bitmap.
        if len == 0 && (value || !bits.is_empty()) {
            return None;
        }
        bits.resize(bits.len() + len, value);
        (bytes, value) = (rest, !value);
    }
    (bits.len() == blocks).then_some(bits)
}

fn push_leb(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn pull_leb(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let len = bytes.iter().take(MAX_LEB).position(|byte| byte & 0x80 == 0)? + 1;
    let (number, rest) = bytes.split_at(len);
    let padded = len > 1 && number[len - 1] == 0;
    let overflows = len == MAX_LEB && number[len - 1] > 1;
    let value = number.iter().rev().fold(0u64, |value, byte| value << 7 | u64::from(byte & 0x7f));
    (!padded && !overflows).then_some((value, rest))
}

fn mix(mut word: u64) -> u64 {
    word ^= word >> 33;
    word = word.wrapping_mul(0xff51_afd7_ed55_8ccd);
    word ^= word >> 33;
    word = word.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    word ^ word >> 33
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_shorter_form_is_taken() {
        let table: [(&[bool], &[u8]); 4] = [
            (&[], &[RAW]),
            (&[true], &[RAW, 1]),
            (&[false, true, false, true, false, true, false, true, true], &[RAW, 0b1010_1010, 1]),
            (&[true; 100], &[RUNS, 0, 100]),
        ];
        for (bits, bytes) in table {
            assert_eq!(encode(bits), bytes);
            assert_eq!(decode(bytes, bits.len() as u64), Ok(bits.to_vec()));
        }
    }

    #[test]
    fn what_is_not_a_bitmap_is_refused() {
        let wrong = Err(BitmapError::WrongLength { expected: 9 });
        let table: [&[u8]; 9] = [
            &[RAW],
            &[RAW, 0xff],
            &[RAW, 0xff, 0x02],
            &[RAW, 0, 0, 0],
            &[RUNS, 8],
            &[RUNS, 10],
            &[RUNS, 4, 0, 5],
            &[RUNS, 0x89, 0x00],
            &[RUNS, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f],
        ];
        for bytes in table {
            assert_eq!(decode(bytes, 9), wrong, "{bytes:?}");
        }
        assert_eq!(decode(&[7], 9), Err(BitmapError::UnknownEncoding { code: Some(7) }));
        assert_eq!(decode(&[], 9), Err(BitmapError::UnknownEncoding { code: None }));
    }

    #[test]
    fn a_piece_outside_the_bitmap_changes_nothing() {
        let mut bitmap = Bitmap::new(100);
        let before = bitmap.clone();
        for extent in [Extent::new(90, 11), Extent::new(u64::MAX, 2), Extent::new(0, PIECE_BLOCKS + 1)] {
            assert!(bitmap.adopt(extent, &[RUNS, 0, 11]).is_err());
        }
        assert_eq!(bitmap, before);
    }

    fn some_bits() -> impl Strategy<Value = Vec<bool>> {
        prop::collection::vec((any::<bool>(), 1usize..200), 0..40)
            .prop_map(|runs| runs.into_iter().flat_map(|(bit, len)| vec![bit; len]).collect())
    }

    proptest! {
        #[test]
        fn encoding_is_undone_and_never_longer_than_raw(bits in some_bits()) {
            let bytes = encode(&bits);
            prop_assert!(bytes.len() <= 1 + bits.len().div_ceil(8));
            prop_assert_eq!(decode(&bytes, bits.len() as u64), Ok(bits));
        }

        #[test]
        fn whatever_decodes_is_bounded(bytes in prop::collection::vec(any::<u8>(), 0..64), blocks in 0u64..512) {
            if let Ok(bits) = decode(&bytes, blocks) {
                prop_assert_eq!(bits.len() as u64, blocks);
            }
        }

        #[test]
        fn a_bitmap_sent_in_pieces_arrives(extents in prop::collection::vec((0u64..9_000_000, 1u64..100_000), 0..8)) {
            let mut sent = Bitmap::new(9_000_000);
            for (start, len) in extents {
                sent.set(Extent::new(start, len), true);
            }
            let mut arrived = Bitmap::new(sent.blocks());
            for extent in sent.pieces() {
                arrived.adopt(extent, &sent.piece(extent)).expect("our own piece");
            }
            prop_assert_eq!(arrived.check(), sent.check());
            prop_assert_eq!(arrived, sent);
        }

        #[test]
        fn one_bit_more_changes_the_check(start in 0u64..5000, other in 0u64..5000) {
            let mut bitmap = Bitmap::new(5000);
            bitmap.set(Extent::new(start, 1), true);
            let before = bitmap.check();
            bitmap.set(Extent::new(other, 1), true);
            prop_assert_eq!(bitmap.check() == before, start == other);
        }
    }
}
