//! Option haggling: what client and server agree on before requests flow. Pure: bytes in, bytes out.
//!
//! ```text
//! greeting ─▶ client flags ─▶ option ─┬─ LIST, INFO, STRUCTURED_REPLY, *_META_CONTEXT ─▶ replies ─▶ option …
//!                                     ├─ STARTTLS ─▶ ack ─▶ (TLS handshake; everything agreed is forgotten) ─▶ option …
//!                                     ├─ GO, EXPORT_NAME ─▶ [`Next::Open`]: transmission
//!                                     └─ ABORT, or nonsense ─▶ [`Next::HangUp`]
//! ```
//!
//! Source: the NBD protocol, `doc/proto.md` of the NetworkBlockDevice project ("Fixed newstyle negotiation").

use std::str;

use super::wire::{GREETING_MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC, PAYLOAD_LIMIT, be16, be32, be64, export_flag};
use crate::serve::{Exports, Facts, NAME_LIMIT};

/// Bytes of an option before its data.
pub const OPTION_HEADER_LEN: usize = 16;
/// Longest data of an option: a name and a handful of context queries fit many times.
pub const OPTION_LIMIT: u32 = 64 << 10;
/// Bytes of the server's greeting.
pub const GREETING_LEN: usize = 18;
/// Bytes of the client's answer to the greeting.
pub const CLIENT_FLAGS_LEN: usize = 4;

/// The context that tells holes and zeroes; see [`super::wire::status_flag`].
pub const BASE_ALLOCATION: &str = "base:allocation";
/// The context that tells which blocks have a valid copy on this host; see [`super::wire::status_flag::LOCAL`].
pub const GNOMON_SHADOW: &str = "gnomon:shadow";
/// All contexts with the ids that stand for them in replies.
pub const CONTEXTS: [(u32, &str); 2] = [(BASE_ALLOCATION_ID, BASE_ALLOCATION), (GNOMON_SHADOW_ID, GNOMON_SHADOW)];
/// Stands for [`BASE_ALLOCATION`].
pub const BASE_ALLOCATION_ID: u32 = 1;
/// Stands for [`GNOMON_SHADOW`].
pub const GNOMON_SHADOW_ID: u32 = 2;

/// Handshake flag, both ways: fixed newstyle.
const FIXED_NEWSTYLE: u16 = 1 << 0;
/// Handshake flag, both ways: no padding after EXPORT_NAME.
const NO_ZEROES: u16 = 1 << 1;
/// Padding after the answer to EXPORT_NAME, for clients of 2005.
const EXPORT_NAME_PADDING: usize = 124;

mod option {
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

mod reply {
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

mod info {
    pub const EXPORT: u16 = 0;
    pub const NAME: u16 = 1;
    pub const DESCRIPTION: u16 = 2;
    pub const BLOCK_SIZE: u16 = 3;
}

/// Smallest, preferred and largest request, as told in the answer to INFO and GO.
const BLOCK_SIZES: [u32; 3] = [1, gnomon_terms::BLOCK_SIZE as u32, PAYLOAD_LIMIT];

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

/// How the connection stands to TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsState {
    /// Plain, and this server has no certificate.
    Unavailable,
    /// Plain; the client may start TLS.
    Offered,
    /// Plain; nothing is told before the client has started TLS.
    Required,
    /// Under TLS.
    Active,
}

/// Contexts a client wants to see in block status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Contexts {
    /// [`BASE_ALLOCATION`].
    pub base_allocation: bool,
    /// [`GNOMON_SHADOW`].
    pub gnomon_shadow: bool,
}

impl Contexts {
    /// Whether any is wanted.
    pub fn any(self) -> bool {
        self.base_allocation || self.gnomon_shadow
    }

    fn insert(&mut self, id: u32) {
        self.base_allocation |= id == BASE_ALLOCATION_ID;
        self.gnomon_shadow |= id == GNOMON_SHADOW_ID;
    }
}

/// What was agreed on for the transmission phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// Reads are answered in chunks.
    pub structured: bool,
    /// What block status tells; any only when `structured`.
    pub contexts: Contexts,
}

/// What comes after an option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Send the replies and read the next option.
    Option,
    /// Send the replies and begin the TLS handshake.
    StartTls,
    /// Send the replies and serve this export.
    Open {
        /// Its facts as the client was told.
        facts: Facts,
        /// What was agreed on.
        terms: Terms,
    },
    /// Send the replies, if any, and close the connection.
    HangUp,
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

/// The server's side of the haggling with one client.
#[derive(Clone, Debug)]
pub struct Haggle {
    tls: TlsState,
    no_zeroes: bool,
    structured: bool,
    /// Chosen contexts hold only for the export they were chosen for.
    chosen: Option<(String, Contexts)>,
}

impl Haggle {
    /// Begins; the first bytes to send are [`greeting`].
    pub fn new(tls: TlsState) -> Haggle {
        Haggle { tls, no_zeroes: false, structured: false, chosen: None }
    }

    /// Takes the client's answer to the greeting.
    pub fn client_flags(&mut self, bytes: [u8; CLIENT_FLAGS_LEN]) -> Result<(), HandshakeError> {
        let flags = u32::from_be_bytes(bytes);
        self.no_zeroes = flags & u32::from(NO_ZEROES) != 0;
        if flags & !u32::from(FIXED_NEWSTYLE | NO_ZEROES) != 0 {
            return Err(HandshakeError::UnknownFlags { flags });
        }
        Ok(())
    }

    /// The TLS handshake has succeeded: what was agreed on in the clear is forgotten.
    pub fn tls_started(&mut self) {
        *self = Haggle { no_zeroes: self.no_zeroes, ..Haggle::new(TlsState::Active) };
    }

    /// Answers one option: appends the replies to `out` and tells what comes next.
    pub fn handle(&mut self, frame: OptionFrame<'_>, exports: &Exports, out: &mut Vec<u8>) -> Next {
        let OptionFrame { option, data } = frame;
        let mut replies = Replies { option, out };
        match option {
            option::ABORT => {
                replies.ack();
                Next::HangUp
            }
            option::STARTTLS => self.start_tls(data, &mut replies),
            // EXPORT_NAME has no way to say no.
            option::EXPORT_NAME if self.tls == TlsState::Required => Next::HangUp,
            _ if self.tls == TlsState::Required => {
                replies.error(reply::ERR_TLS_REQD, "this server needs STARTTLS first");
                Next::Option
            }
            option::EXPORT_NAME => self.export_name(data, exports, replies.out),
            option::LIST => list(data, exports, &mut replies),
            option::INFO | option::GO => self.go(data, exports, &mut replies),
            option::STRUCTURED_REPLY => self.structured_reply(data, &mut replies),
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => self.meta_context(data, exports, &mut replies),
            _ => {
                replies.error(reply::ERR_UNSUP, "this server does not know the option");
                Next::Option
            }
        }
    }

    fn start_tls(&mut self, data: &[u8], replies: &mut Replies<'_>) -> Next {
        match self.tls {
            _ if !data.is_empty() => replies.error(reply::ERR_INVALID, "STARTTLS takes no data"),
            TlsState::Active => replies.error(reply::ERR_INVALID, "TLS is active already"),
            TlsState::Unavailable => replies.error(reply::ERR_POLICY, "this server has no certificate"),
            TlsState::Offered | TlsState::Required => {
                replies.ack();
                return Next::StartTls;
            }
        }
        Next::Option
    }

    fn structured_reply(&mut self, data: &[u8], replies: &mut Replies<'_>) -> Next {
        if data.is_empty() {
            self.structured = true;
            replies.ack();
        } else {
            replies.error(reply::ERR_INVALID, "STRUCTURED_REPLY takes no data");
        }
        Next::Option
    }

    fn export_name(&self, data: &[u8], exports: &Exports, out: &mut Vec<u8>) -> Next {
        let Some(facts) = str::from_utf8(data).ok().and_then(|name| exports.describe(name)) else {
            return Next::HangUp;
        };
        out.extend_from_slice(&facts.size.0.to_be_bytes());
        out.extend_from_slice(&self.export_flags(&facts).to_be_bytes());
        if !self.no_zeroes {
            out.resize(out.len() + EXPORT_NAME_PADDING, 0);
        }
        self.open(facts, data)
    }

    fn go(&self, data: &[u8], exports: &Exports, replies: &mut Replies<'_>) -> Next {
        let Some((name, wanted)) = decode_info(data) else {
            replies.error(reply::ERR_INVALID, "malformed INFO or GO");
            return Next::Option;
        };
        let Some(facts) = exports.describe(name) else {
            replies.error(reply::ERR_UNKNOWN, "there is no such export");
            return Next::Option;
        };
        let flags = self.export_flags(&facts).to_be_bytes();
        replies.info(info::EXPORT, &[&facts.size.0.to_be_bytes(), &flags]);
        for kind in wanted {
            match kind {
                info::NAME => replies.info(kind, &[facts.name.as_bytes()]),
                info::DESCRIPTION if !facts.description.is_empty() => {
                    replies.info(kind, &[facts.description.as_bytes()]);
                }
                _ => {}
            }
        }
        // Told to all: a client that did not ask may ignore it, and one that forgot to ask is better off.
        replies.info(
            info::BLOCK_SIZE,
            &BLOCK_SIZES.each_ref().map(|size| size.to_be_bytes()).each_ref().map(|b| &b[..]),
        );
        replies.ack();
        if replies.option == option::GO { self.open(facts, name.as_bytes()) } else { Next::Option }
    }

    fn meta_context(&mut self, data: &[u8], exports: &Exports, replies: &mut Replies<'_>) -> Next {
        let set = replies.option == option::SET_META_CONTEXT;
        if set {
            self.chosen = None;
        }
        let Some((name, queries)) = decode_queries(data).filter(|_| self.structured) else {
            replies.error(reply::ERR_INVALID, "malformed query, or structured replies were not agreed on first");
            return Next::Option;
        };
        if exports.describe(name).is_none() {
            replies.error(reply::ERR_UNKNOWN, "there is no such export");
            return Next::Option;
        }
        let mut chosen = Contexts::default();
        for (id, context) in CONTEXTS {
            let wanted = match set {
                true => queries.contains(&context),
                false => queries.is_empty() || queries.iter().any(|query| lists(query, context)),
            };
            if wanted {
                chosen.insert(id);
                replies.send(reply::META_CONTEXT, &[&id.to_be_bytes(), context.as_bytes()]);
            }
        }
        if set {
            self.chosen = Some((name.to_string(), chosen));
        }
        replies.ack();
        Next::Option
    }

    fn open(&self, facts: Facts, asked: &[u8]) -> Next {
        let chosen = self.chosen.as_ref().filter(|(name, _)| name.as_bytes() == asked);
        let contexts = chosen.map_or(Contexts::default(), |(_, contexts)| *contexts);
        Next::Open { facts, terms: Terms { structured: self.structured, contexts } }
    }

    fn export_flags(&self, facts: &Facts) -> u16 {
        use export_flag::*;
        let mut flags = HAS_FLAGS | SEND_FLUSH | SEND_FUA | CAN_MULTI_CONN | SEND_CACHE;
        flags |= if facts.read_only { READ_ONLY } else { SEND_TRIM | SEND_WRITE_ZEROES };
        flags | if self.structured { SEND_DF } else { 0 }
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

fn list(data: &[u8], exports: &Exports, replies: &mut Replies<'_>) -> Next {
    if !data.is_empty() {
        replies.error(reply::ERR_INVALID, "LIST takes no data");
        return Next::Option;
    }
    for (name, description) in exports.list() {
        let len = (name.len() as u32).to_be_bytes();
        replies.send(reply::SERVER, &[&len, name.as_bytes(), description.as_bytes()]);
    }
    replies.ack();
    Next::Option
}

/// Whether a LIST query names the context: in full, or its namespace ("base:").
fn lists(query: &str, context: &str) -> bool {
    query == context || (query.ends_with(':') && context.starts_with(query))
}

/// Export name and wanted kinds of INFO and GO; `None` when malformed.
fn decode_info(data: &[u8]) -> Option<(&str, impl Iterator<Item = u16>)> {
    let (name, rest) = decode_string(data)?;
    let (count, kinds) = rest.split_at_checked(2)?;
    (kinds.len() == 2 * usize::from(be16(count))).then(|| (name, kinds.chunks_exact(2).map(be16)))
}

/// Export name and queries of LIST and SET_META_CONTEXT; `None` when malformed.
fn decode_queries(data: &[u8]) -> Option<(&str, Vec<&str>)> {
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
struct Replies<'a> {
    option: u32,
    out: &'a mut Vec<u8>,
}

impl Replies<'_> {
    fn send(&mut self, kind: u32, parts: &[&[u8]]) {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        self.out.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
        self.out.extend_from_slice(&self.option.to_be_bytes());
        self.out.extend_from_slice(&kind.to_be_bytes());
        self.out.extend_from_slice(&(len as u32).to_be_bytes());
        parts.iter().for_each(|part| self.out.extend_from_slice(part));
    }

    fn ack(&mut self) {
        self.send(reply::ACK, &[]);
    }

    fn error(&mut self, kind: u32, why: &str) {
        self.send(kind, &[why.as_bytes()]);
    }

    fn info(&mut self, kind: u16, parts: &[&[u8]]) {
        let mut all: Vec<u8> = kind.to_be_bytes().to_vec();
        parts.iter().for_each(|part| all.extend_from_slice(part));
        self.send(reply::INFO, &[&all]);
    }
}
