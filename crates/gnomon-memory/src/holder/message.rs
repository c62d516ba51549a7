//! What a daemon and the holder say: packets of 16 bytes, one answer to each request.
//!
//! ```text
//!   0       4         6       8                16
//!   | GNHM  | version | kind  | block, or count |      little-endian
//! ```

use crate::block::BlockId;

/// Bytes of a packet.
pub(super) const LENGTH: usize = 16;

/// What every packet begins with.
const MAGIC: [u8; 4] = *b"GNHM";

/// Raised when a packet's meaning changes. A daemon that meets a holder of another version takes over what it has and
/// starts one of its own.
const VERSION: u16 = 1;

/// What a daemon says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// I am here.
    Hello,
    /// Keep this block; its descriptor is beside the packet.
    Keep(BlockId),
    /// Let this block go.
    Forget(BlockId),
    /// Let everything go and end.
    End,
}

/// What the holder answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Done. So many blocks are held now.
    Done(u64),
    /// Another daemon is connected.
    Busy,
    /// No more blocks can be kept.
    Full,
    /// That is no block, or not a whole one, or one with this id is held.
    Strange,
}

impl Request {
    pub(super) fn encode(self) -> [u8; LENGTH] {
        match self {
            Request::Hello => packet(1, 0),
            Request::Keep(id) => packet(2, id.0),
            Request::Forget(id) => packet(3, id.0),
            Request::End => packet(4, 0),
        }
    }

    /// `None` when it is no request of this version.
    pub(super) fn decode(packet: &[u8]) -> Option<Request> {
        match parts(packet)? {
            (1, _) => Some(Request::Hello),
            (2, id) => Some(Request::Keep(BlockId(id))),
            (3, id) => Some(Request::Forget(BlockId(id))),
            (4, _) => Some(Request::End),
            _ => None,
        }
    }
}

impl Answer {
    pub(super) fn encode(self) -> [u8; LENGTH] {
        match self {
            Answer::Done(held) => packet(128, held),
            Answer::Busy => packet(129, 0),
            Answer::Full => packet(130, 0),
            Answer::Strange => packet(131, 0),
        }
    }

    /// `None` when it is no answer of this version.
    pub(super) fn decode(packet: &[u8]) -> Option<Answer> {
        match parts(packet)? {
            (128, held) => Some(Answer::Done(held)),
            (129, _) => Some(Answer::Busy),
            (130, _) => Some(Answer::Full),
            (131, _) => Some(Answer::Strange),
            _ => None,
        }
    }
}

fn packet(kind: u16, value: u64) -> [u8; LENGTH] {
    let mut packet = [0; LENGTH];
    packet[..4].copy_from_slice(&MAGIC);
    packet[4..6].copy_from_slice(&VERSION.to_le_bytes());
    packet[6..8].copy_from_slice(&kind.to_le_bytes());
    packet[8..].copy_from_slice(&value.to_le_bytes());
    packet
}

fn parts(packet: &[u8]) -> Option<(u16, u64)> {
    let packet: &[u8; LENGTH] = packet.try_into().ok()?;
    let (head, value) = packet.split_first_chunk::<8>()?;
    let known = head[..4] == MAGIC && head[4..6] == VERSION.to_le_bytes();
    known.then(|| Some((u16::from_le_bytes([head[6], head[7]]), u64::from_le_bytes(value.try_into().ok()?))))?
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_said_is_understood() {
        let id = BlockId(0x0102_0304_0506_0708);
        for request in [Request::Hello, Request::Keep(id), Request::Forget(id), Request::End] {
            assert_eq!(Request::decode(&request.encode()), Some(request));
            assert_eq!(Answer::decode(&request.encode()), None, "a request is no answer");
        }
        for answer in [Answer::Done(7), Answer::Busy, Answer::Full, Answer::Strange] {
            assert_eq!(Answer::decode(&answer.encode()), Some(answer));
            assert_eq!(Request::decode(&answer.encode()), None);
        }
    }

    #[test]
    fn the_bytes_are_these() {
        assert_eq!(&Request::Keep(BlockId(5)).encode(), b"GNHM\x01\0\x02\0\x05\0\0\0\0\0\0\0");
        assert_eq!(&Answer::Done(1).encode(), b"GNHM\x01\0\x80\0\x01\0\0\0\0\0\0\0");
    }

    #[test]
    fn another_version_is_not_understood() {
        let mut packet = Request::Hello.encode();
        packet[4] = 2;
        assert_eq!(Request::decode(&packet), None);
    }

    proptest! {
        #[test]
        fn no_packet_makes_the_reader_panic(packet in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _ = (Request::decode(&packet), Answer::decode(&packet));
        }
    }
}
