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

use super::{
    option_bytes::{
        CLIENT_FLAGS_LEN, FIXED_NEWSTYLE, HandshakeError, NO_ZEROES, OptionFrame, Replies, decode_info,
        decode_queries, info, option, reply,
    },
    wire::{PAYLOAD_LIMIT, export_flag},
};
use crate::serve::{Exports, Facts};

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

/// Padding after the answer to EXPORT_NAME, for clients of 2005.
const EXPORT_NAME_PADDING: usize = 124;

/// Smallest, preferred and largest request, as told in the answer to INFO and GO.
const BLOCK_SIZES: [u32; 3] = [1, gnomon_terms::BLOCK_SIZE as u32, PAYLOAD_LIMIT];

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
    /// Begins; the first bytes to send are [`super::greeting`].
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

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(haggle: &mut Haggle, option: u32) -> (Next, Option<u32>) {
        let mut out = Vec::new();
        let next = haggle.handle(OptionFrame { option, data: b"" }, &Exports::default(), &mut out);
        // The kind is the third field of a reply, after the magic and the option.
        (next, out.get(12..16).map(|kind| u32::from_be_bytes(kind.try_into().expect("four bytes"))))
    }

    #[test]
    fn nothing_is_told_before_tls_when_it_is_required() {
        let mut haggle = Haggle::new(TlsState::Required);
        for asked in [option::LIST, option::INFO, option::GO, option::STRUCTURED_REPLY, option::SET_META_CONTEXT] {
            assert_eq!(answers(&mut haggle, asked), (Next::Option, Some(reply::ERR_TLS_REQD)), "option {asked}");
        }
        assert_eq!(answers(&mut haggle, option::EXPORT_NAME), (Next::HangUp, None));
        assert_eq!(answers(&mut haggle, option::STARTTLS), (Next::StartTls, Some(reply::ACK)));
        haggle.tls_started();
        assert_eq!(answers(&mut haggle, option::LIST), (Next::Option, Some(reply::ACK)));
        assert_eq!(answers(&mut haggle, option::STARTTLS), (Next::Option, Some(reply::ERR_INVALID)));
    }

    #[test]
    fn what_was_agreed_in_the_clear_is_forgotten_under_tls() {
        let mut haggle = Haggle::new(TlsState::Offered);
        assert_eq!(answers(&mut haggle, option::STRUCTURED_REPLY).1, Some(reply::ACK));
        assert!(haggle.structured);
        haggle.tls_started();
        assert!(!haggle.structured && haggle.chosen.is_none());
    }

    #[test]
    fn flags_of_the_client_are_known_or_refused() {
        let mut haggle = Haggle::new(TlsState::Unavailable);
        for flags in 0..4u32 {
            assert_eq!(haggle.client_flags(flags.to_be_bytes()), Ok(()));
        }
        assert_eq!(haggle.client_flags(4u32.to_be_bytes()), Err(HandshakeError::UnknownFlags { flags: 4 }));
    }
}
