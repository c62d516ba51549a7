//! The 48 bytes before every body.

use super::{FrameError, Kind};

/// Bytes of a header.
pub const HEADER_LEN: usize = 48;
/// The first four bytes of every frame.
pub const MAGIC: [u8; 4] = *b"GNMN";
/// The version of the protocol. Nodes of different versions do not talk: a move is no place for guesses.
pub const VERSION: u8 = 1;

/// Where the check stands: over everything before it.
const CHECK_AT: usize = HEADER_LEN - 4;

/// The fixed part of a frame, little-endian on the wire:
///
/// ```text
///  0        4    5     6       8        12       16      24     32     40      44      48
///  | "GNMN" |ver |kind | flags | stream | body   | epoch | seq  | at   | count | check |
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What it is.
    pub kind: Kind,
    /// Small variants of the kind: low byte "which", high byte "how encoded".
    pub flags: u16,
    /// Which volume or memory of the session.
    pub stream: u32,
    /// Bytes that follow the header; within [`Kind::max_body`].
    pub body: u32,
    /// The writer's epoch.
    pub epoch: u64,
    /// Sequence number or id.
    pub seq: u64,
    /// First block, or byte.
    pub at: u64,
    /// How many blocks, or bytes.
    pub count: u32,
}

impl Header {
    /// A header of `kind` with everything else zero.
    pub(super) fn of(kind: Kind) -> Header {
        Header { kind, flags: 0, stream: 0, body: 0, epoch: 0, seq: 0, at: 0, count: 0 }
    }

    /// The bytes on the wire.
    pub fn to_bytes(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[0..4].copy_from_slice(&MAGIC);
        bytes[4] = VERSION;
        bytes[5] = self.kind.code();
        bytes[6..8].copy_from_slice(&self.flags.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.stream.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.body.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.seq.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.at.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.count.to_le_bytes());
        let check = fnv1a(&bytes[..CHECK_AT]);
        bytes[CHECK_AT..].copy_from_slice(&check.to_le_bytes());
        bytes
    }

    /// Reads a header. The order of the checks is the order in which a wrong peer should be told what is wrong:
    /// not a gnomon, another version, damaged, unknown kind, too long.
    pub fn from_bytes(bytes: &[u8; HEADER_LEN]) -> Result<Header, FrameError> {
        let magic = array(bytes, 0);
        if magic != MAGIC {
            return Err(FrameError::BadMagic { got: magic });
        }
        if bytes[4] != VERSION {
            return Err(FrameError::BadVersion { got: bytes[4] });
        }
        let (said, is) = (u32::from_le_bytes(array(bytes, CHECK_AT)), fnv1a(&bytes[..CHECK_AT]));
        if said != is {
            return Err(FrameError::BadCheck { said, is });
        }
        let kind = Kind::from_code(bytes[5]).ok_or(FrameError::UnknownKind { code: bytes[5] })?;
        let body = u32::from_le_bytes(array(bytes, 12));
        if body as usize > kind.max_body() {
            return Err(FrameError::TooLong { kind, len: u64::from(body), max: kind.max_body() });
        }
        Ok(Header {
            kind,
            flags: u16::from_le_bytes(array(bytes, 6)),
            stream: u32::from_le_bytes(array(bytes, 8)),
            body,
            epoch: u64::from_le_bytes(array(bytes, 16)),
            seq: u64::from_le_bytes(array(bytes, 24)),
            at: u64::from_le_bytes(array(bytes, 32)),
            count: u32::from_le_bytes(array(bytes, 40)),
        })
    }
}

/// `N` bytes of a header from `at`; both are constants within it.
fn array<const N: usize>(bytes: &[u8; HEADER_LEN], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

/// FNV-1a, 32 bits. It finds a stream that lost its place; TLS beneath finds tampering.
/// Source: draft-eastlake-fnv, "The FNV Non-Cryptographic Hash Algorithm".
fn fnv1a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_check_is_fnv1a() {
        for (text, hash) in [("", 0x811c_9dc5), ("a", 0xe40c_292c), ("foobar", 0xbf9c_f968)] {
            assert_eq!(fnv1a(text.as_bytes()), hash, "{text}");
        }
    }

    #[test]
    fn any_single_flipped_bit_is_refused() {
        let header = Header { stream: 3, body: 7, epoch: 9, seq: 11, at: 13, count: 15, ..Header::of(Kind::Push) };
        let bytes = header.to_bytes();
        assert_eq!(Header::from_bytes(&bytes), Ok(header));
        for bit in 0..HEADER_LEN * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::from_bytes(&bad).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_body_over_the_kind_s_limit_is_refused_before_it_is_read() {
        let header = Header { body: 1, ..Header::of(Kind::Ping) };
        let refused = Header::from_bytes(&header.to_bytes());
        assert_eq!(refused, Err(FrameError::TooLong { kind: Kind::Ping, len: 1, max: 0 }));
    }
}
