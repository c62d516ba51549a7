//! One client, once it has opened an export: transmission.
//!
//! The hot path is [`Transmission::run`]: take the next request from the inbox, serve it, gather the reply; when the
//! inbox is empty send what has gathered and receive again. Everything that may wait is made a [`Job`] and answered
//! by a helper thread.

use std::{io, os::fd::OwnedFd, sync::Arc};

use gnomon_terms::Op;
use rustls::ServerConfig;

use super::{
    handshake::{Handshake, Opened},
    inbox::Inbox,
    option_bytes::HandshakeError,
    options::Terms,
    reply::{Outbox, Outlet, conclusion, is_zero, refusal},
    server::TlsMode,
    slow,
    spin::{Lookouts, Spin},
    wire::{self, Command, Errno, NotARequest, Request, request_flag},
};
use crate::{
    front::helpers::{Helpers, Job},
    serve::{Exports, ServeError, Session, Span},
};

/// Long reads are served in pieces of this size: a piece stays in the core's cache between disk and socket, and the
/// client takes the first while the next is read. Measured: 64 KiB lose a third to 256 KiB, 1 MiB wins nothing.
pub(super) const PIECE: usize = 256 << 10;

/// Long writes are carried out in pieces of this size while the rest is still arriving. Measured: 128 KiB beat
/// 256 KiB by a quarter, because a piece is still in cache when it is written.
pub(super) const WRITE_PIECE: usize = 128 << 10;

/// Replies gathered before they leave even though more requests are at hand: the client works meanwhile.
const SEND_AT: usize = 64 << 10;

/// The outbox holds what may have gathered and one more piece with its header.
const OUTBOX: usize = SEND_AT + PIECE + wire::DATA_CHUNK_LEN;

/// Why a connection ended before its client said goodbye.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectionError {
    #[error("the connection broke")]
    Io(#[from] io::Error),
    #[error("the client closed in the middle of a message")]
    CutShort,
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    #[error("the client sent something after STARTTLS and before TLS: someone may be tampering")]
    Injected,
    #[error("the client did not open an export in time")]
    TooSlow,
    #[error(transparent)]
    NotARequest(#[from] NotARequest),
    #[error(transparent)]
    Serve(#[from] ServeError),
}

/// What every connection of a server needs.
pub(super) struct Common {
    pub(super) exports: Arc<Exports>,
    pub(super) tls: Option<(Arc<ServerConfig>, TlsMode)>,
    pub(super) lookouts: Lookouts,
}

/// Serves one client until it leaves. Blocks.
pub(super) fn attend(common: &Common, socket: Arc<OwnedFd>) -> Result<(), ConnectionError> {
    let Some(Opened { stream, inbox, session, terms }) = Handshake::new(common, socket).run()? else {
        return Ok(());
    };
    let link = Arc::new(Link { outlet: Outlet::new(stream), session, terms });
    let result = Transmission::new(link.clone(), inbox, common.lookouts.clone()).run();
    link.outlet.stream().say_goodbye();
    result
}

/// What the threads of a connection share.
pub(super) struct Link {
    pub(super) outlet: Outlet,
    pub(super) session: Session,
    pub(super) terms: Terms,
}

impl Link {
    /// Sends from a helper thread. When the connection is broken its own thread notices and ends it.
    pub(super) fn send(&self, bytes: &[u8]) {
        if let Err(error) = self.outlet.send(bytes) {
            tracing::debug!(%error, "a late reply found its client gone");
        }
    }
}

/// The transmission phase of one connection.
struct Transmission {
    link: Arc<Link>,
    inbox: Inbox,
    outbox: Outbox,
    helpers: Helpers,
    spin: Spin,
}

type Served = Result<(), ConnectionError>;

impl Transmission {
    fn new(link: Arc<Link>, inbox: Inbox, lookouts: Lookouts) -> Transmission {
        Transmission { link, inbox, outbox: Outbox::new(OUTBOX), helpers: Helpers::new(), spin: Spin::new(lookouts) }
    }

    fn run(mut self) -> Served {
        loop {
            while let Some(bytes) = self.inbox.take() {
                let request = Request::decode(&bytes)?;
                if request.command == Command::Disconnect {
                    return self.flush();
                }
                self.serve(request)?;
                if self.outbox.gathered().len() >= SEND_AT {
                    self.flush()?;
                }
            }
            self.flush()?;
            let (spin, stream) = (&mut self.spin, self.link.outlet.stream());
            if self.inbox.receive(|into| spin.recv(stream, into))? == 0 {
                return if self.inbox.bytes().is_empty() { Ok(()) } else { Err(ConnectionError::CutShort) };
            }
        }
    }

    fn serve(&mut self, request: Request) -> Served {
        let terms = self.link.terms;
        if let Err(errno) = request.check(terms.structured, terms.contexts.any()) {
            return self.refuse(&request, errno, "this server does not take such a request");
        }
        let op = match request.command {
            Command::Read => Some(Op::Read),
            Command::Write => Some(Op::Write),
            Command::Trim | Command::WriteZeroes => Some(Op::Discard),
            _ => None,
        };
        let (session, at, len) = (&self.link.session, request.at, u64::from(request.len));
        let admitted = match (op, request.command) {
            (Some(op), _) => session.admit(op, at, len),
            // FLUSH has no range; its offset and length mean nothing.
            (None, Command::Flush) => session.span(0, 0),
            (None, _) => session.span(at, len),
        };
        match (admitted, request.command) {
            (Err(error), _) => {
                self.skip(request.payload_len())?;
                self.conclude(&request, Err(error))
            }
            (Ok(span), Command::Read) => self.read(request, span),
            (Ok(span), Command::Write) => self.write(request, span),
            (Ok(span), _) => self.hand_over(0, move |link| slow::carry_out(link, request, span)),
        }
    }

    fn read(&mut self, request: Request, span: Span) -> Served {
        let in_pieces = self.link.terms.structured && !request.has(request_flag::DF);
        if span.len() > PIECE as u64 && !in_pieces {
            return self.hand_over(request.len as usize, move |link| slow::read_whole(link, request, span));
        }
        let mut done = 0;
        loop {
            let piece = span.part(done, PIECE as u64);
            let last = done + piece.len() == span.len();
            match self.read_piece(&request, piece, last)? {
                Piece::Gathered if last => return Ok(()),
                Piece::Gathered => done += piece.len(),
                Piece::Refused => return Ok(()),
                Piece::Waits => break,
            }
        }
        if done > 0 {
            // The pieces gathered here must be on the wire before a helper sends the last one.
            self.flush()?;
        }
        let rest = span.part(done, span.len());
        match in_pieces {
            true => self.hand_over(PIECE, move |link| slow::read_in_pieces(link, request, rest)),
            false => self.hand_over(request.len as usize, move |link| slow::read_whole(link, request, rest)),
        }
    }

    /// Serves a piece of a read straight into the outbox.
    fn read_piece(&mut self, request: &Request, piece: Span, last: bool) -> Result<Piece, ConnectionError> {
        let terms = self.link.terms;
        let head = if terms.structured { wire::DATA_CHUNK_LEN } else { wire::SIMPLE_REPLY_LEN };
        let room = head.max(wire::CHUNK_LEN + 12) + piece.len() as usize;
        if !self.outbox.has_room(room) || self.outbox.gathered().len() >= SEND_AT {
            self.flush()?;
        }
        let len = head + piece.len() as usize;
        let spare = self.outbox.spare(len);
        match self.link.session.read_now(piece, &mut spare[head..]) {
            Ok(false) => return Ok(Piece::Waits),
            Err(error) => {
                self.conclude(request, Err(error))?;
                return Ok(Piece::Refused);
            }
            Ok(true) if terms.structured && piece.is_empty() => self.conclude(request, Ok(()))?,
            Ok(true) if terms.structured && is_zero(&spare[head..]) => {
                self.outbox.push(&wire::hole_chunk(request.cookie, piece.at(), piece.len() as u32, last));
            }
            Ok(true) => {
                put_head(&mut spare[..head], request.cookie, piece, last);
                self.outbox.keep(len);
            }
        }
        Ok(Piece::Gathered)
    }

    fn write(&mut self, request: Request, span: Span) -> Served {
        let fua = request.has(request_flag::FUA);
        if fua || !self.link.session.is_local(span) {
            let data = self.whole_payload(request.len as usize)?;
            return self.hand_over(data.len(), move |link| slow::write(link, request, span, &data));
        }
        let mut done = 0;
        let mut result = Ok(());
        while done < span.len() {
            // Pieces end where blocks of the disk end, so that no page is written in two parts.
            let step = WRITE_PIECE as u64 - (span.at() + done) % WRITE_PIECE as u64;
            let piece = span.part(done, step);
            let len = piece.len() as usize;
            self.need(len)?;
            if result.is_ok() {
                result = self.link.session.write(piece, &self.inbox.bytes()[..len]);
            }
            self.inbox.consume(len);
            done += piece.len();
        }
        self.conclude(&request, result)
    }

    fn whole_payload(&mut self, len: usize) -> Result<Vec<u8>, ConnectionError> {
        let mut data = Vec::with_capacity(len);
        while data.len() < len {
            let step = (len - data.len()).min(WRITE_PIECE);
            self.need(step)?;
            data.extend_from_slice(&self.inbox.bytes()[..step]);
            self.inbox.consume(step);
        }
        Ok(data)
    }

    fn skip(&mut self, len: u64) -> Served {
        let mut left = len;
        while left > 0 {
            let step = left.min(WRITE_PIECE as u64) as usize;
            self.need(step)?;
            self.inbox.consume(step);
            left -= step as u64;
        }
        Ok(())
    }

    /// Receives until `len` bytes of payload are at hand, and no byte more: what follows a long payload would have
    /// to be moved.
    fn need(&mut self, len: usize) -> Served {
        while self.inbox.bytes().len() < len {
            self.flush()?;
            let (spin, stream) = (&mut self.spin, self.link.outlet.stream());
            if self.inbox.receive_up_to(len, |into| spin.recv(stream, into))? == 0 {
                return Err(ConnectionError::CutShort);
            }
        }
        Ok(())
    }

    fn refuse(&mut self, request: &Request, errno: Errno, why: &str) -> Served {
        self.skip(request.payload_len())?;
        self.gather(&refusal(self.link.terms, request, errno, why))
    }

    fn conclude(&mut self, request: &Request, result: Result<(), ServeError>) -> Served {
        self.gather(&conclusion(self.link.terms, request, result))
    }

    fn gather(&mut self, reply: &[u8]) -> Served {
        if !self.outbox.has_room(reply.len()) {
            self.flush()?;
        }
        self.outbox.push(reply);
        Ok(())
    }

    fn flush(&mut self) -> Served {
        self.link.outlet.send(self.outbox.gathered())?;
        self.outbox.clear();
        Ok(())
    }

    /// Has a helper do `work`, which holds `bytes` of memory.
    fn hand_over(&mut self, bytes: usize, work: impl FnOnce(&Link) + Send + 'static) -> Served {
        if !self.helpers.has_room(bytes) {
            self.flush()?;
        }
        let link = self.link.clone();
        self.helpers.hand_over(Job { bytes, work: Box::new(move || work(&link)) });
        Ok(())
    }
}

/// What became of a piece of a read.
enum Piece {
    Gathered,
    Refused,
    Waits,
}

/// Writes the header of a read's data in front of it.
pub(super) fn put_head(head: &mut [u8], cookie: u64, piece: Span, last: bool) {
    match head.len() {
        wire::DATA_CHUNK_LEN => head.copy_from_slice(&wire::data_chunk(cookie, piece.at(), piece.len() as u32, last)),
        _ => head.copy_from_slice(&wire::simple_reply(cookie, None)),
    }
}
