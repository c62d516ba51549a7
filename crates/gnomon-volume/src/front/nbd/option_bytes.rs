//! Bytes of the NBD handshake: options in, replies out. Pure.
//!
//! Source: the NBD protocol, `doc/proto.md` of the NetworkBlockDevice project ("Option types", "Option reply types").

use std::str;

use super::wire::{GREETING_MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC, be16, be32, be64};
use crate::serve::NAME_LIMIT;

/// Bytes of an option before its data.
pub const OPTION_HEADER_LEN: usize = 16;
/// Longest data of an option: a name and a handful of context queries fit many times.
pub const OPTION_LIMIT: u32 = 64 << 10;
/// Bytes of the server's greeting.
pub const GREETING_LEN: usize = 18;
/// Bytes of the client's answer to the greeting.
pub const CLIENT_FLAGS_LEN: usize = 4;

/// Handshake flag, both ways: fixed newstyle.
pub(super) const FIXED_NEWSTYLE: u16 = 1 << 0;
/// Handshake flag, both ways: no padding after EXPORT_NAME.
pub(super) const NO_ZEROES: u16 = 1 << 1;

pub(super) mod option {
    pub const EXPORT_NAME: u32 = 1;
    pub const ABORT: u32 = 2;
    pub const LIST: u32 = 3;
    pub const STARTTLS: u32 = 5;
    pub const INFO: u32 = 6;
    pub const GO: u32 = 7;
    pub const STRUCTURED_REPLY: u32 = 8;
    pub const LIST_META_CONTEXT: u32 = 9;
    pub const SET_META_CONTEXT: u32 = 10;
}

pub(super) mod reply {
    pub const ACK: u32 = 1;
    pub const SERVER: u32 = 2;
    pub const INFO: u32 = 3;
    pub const META_CONTEXT: u32 = 4;
    pub const ERR_UNSUP: u32 = (1 << 31) | 1;
    pub const ERR_POLICY: u32 = (1 << 31) | 2;
    pub const ERR_INVALID: u32 = (1 << 31) | 3;
    pub const ERR_TLS_REQD: u32 = (1 << 31) | 5;
    pub const ERR_UNKNOWN: u32 = (1 << 31) | 6;
}

pub(super) mod info {
    pub const EXPORT: u16 = 0;
    pub const NAME: u16 = 1;
    pub const DESCRIPTION: u16 = 2;
    pub const BLOCK_SIZE: u16 = 3;
}

/// The client speaks something else, or too much: the only way out is to hang up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HandshakeError {
    /// Not an option.
    #[error("expected an option, got {found:#018x} instead of the magic: is this an NBD client?")]
    NotAnOption {
        /// What was there instead.
        found: u64,
    },
    /// An option with too much data.
    #[error("option {option} with {len} bytes of data; at most {OPTION_LIMIT} are taken")]
    TooLong {
        /// Which one.
        option: u32,
        /// Its length.
        len: u32,
    },
    /// Flags this server does not know.
    #[error("the client asks for unknown handshake flags ({flags:#010x})")]
    UnknownFlags {
        /// All it asks for.
        flags: u32,
    },
}

/// One option of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionFrame<'a> {
    /// Which.
    pub option: u32,
    /// Its data.
    pub data: &'a [u8],
}

impl<'a> OptionFrame<'a> {
    /// Reads the first option in `bytes` and tells how many of them it took; `None` while it is not complete.
    pub fn decode(bytes: &'a [u8]) -> Result<Option<(OptionFrame<'a>, usize)>, HandshakeError> {
        let Some((header, rest)) = bytes.split_at_checked(OPTION_HEADER_LEN) else { return Ok(None) };
        let found = be64(&header[0..8]);
        let (option, len) = (be32(&header[8..12]), be32(&header[12..16]));
        if found != OPTION_MAGIC {
            return Err(HandshakeError::NotAnOption { found });
        }
        if len > OPTION_LIMIT {
            return Err(HandshakeError::TooLong { option, len });
        }
        let data = rest.get(..len as usize);
        Ok(data.map(|data| (OptionFrame { option, data }, OPTION_HEADER_LEN + data.len())))
    }
}

/// The first bytes a server sends.
pub fn greeting() -> [u8; GREETING_LEN] {
    let mut bytes = [0; GREETING_LEN];
    bytes[0..8].copy_from_slice(&GREETING_MAGIC.to_be_bytes());
    bytes[8..16].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
    bytes[16..18].copy_from_slice(&(FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes());
    bytes
}

/// Export name and wanted kinds of INFO and GO; `None` when malformed.
pub(super) fn decode_info(data: &[u8]) -> Option<(&str, impl Iterator<Item = u16>)> {
    let (name, rest) = decode_string(data)?;
    let (count, kinds) = rest.split_at_checked(2)?;
    (kinds.len() == 2 * usize::from(be16(count))).then(|| (name, kinds.chunks_exact(2).map(be16)))
}

/// Export name and queries of LIST and SET_META_CONTEXT; `None` when malformed.
pub(super) fn decode_queries(data: &[u8]) -> Option<(&str, Vec<&str>)> {
    let (name, rest) = decode_string(data)?;
    let (count, mut rest) = rest.split_at_checked(4)?;
    let mut queries = Vec::new();
    for _ in 0..be32(count) {
        let (query, after) = decode_string(rest)?;
        queries.push(query);
        rest = after;
    }
    rest.is_empty().then_some((name, queries))
}

/// A length and that many bytes of UTF-8, at most [`NAME_LIMIT`].
fn decode_string(data: &[u8]) -> Option<(&str, &[u8])> {
    let (len, rest) = data.split_at_checked(4)?;
    let len = usize::try_from(be32(len)).ok().filter(|&len| len <= NAME_LIMIT)?;
    let (text, rest) = rest.split_at_checked(len)?;
    Some((str::from_utf8(text).ok()?, rest))
}

/// Replies to one option.
pub(super) struct Replies<'a> {
    pub(super) option: u32,
    pub(super) out: &'a mut Vec<u8>,
}

impl Replies<'_> {
    pub(super) fn send(&mut self, kind: u32, parts: &[&[u8]]) {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        self.out.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
        self.out.extend_from_slice(&self.option.to_be_bytes());
        self.out.extend_from_slice(&kind.to_be_bytes());
        self.out.extend_from_slice(&(len as u32).to_be_bytes());
        parts.iter().for_each(|part| self.out.extend_from_slice(part));
    }

    pub(super) fn ack(&mut self) {
        self.send(reply::ACK, &[]);
    }

    pub(super) fn error(&mut self, kind: u32, why: &str) {
        self.send(kind, &[why.as_bytes()]);
    }

    pub(super) fn info(&mut self, kind: u16, parts: &[&[u8]]) {
        let mut all: Vec<u8> = kind.to_be_bytes().to_vec();
        parts.iter().for_each(|part| all.extend_from_slice(part));
        self.send(reply::INFO, &[&all]);
    }
}
