//! From a fresh connection to an export that both sides agree on: the rim around [`super::options`].

use std::{
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    connection::{Common, ConnectionError, WRITE_PIECE},
    inbox::Inbox,
    option_bytes::{CLIENT_FLAGS_LEN, OPTION_HEADER_LEN, OPTION_LIMIT, OptionFrame, greeting},
    options::{Haggle, Next, Terms, TlsState},
    server::TlsMode,
    stream::{Stream, hang_up},
};
use crate::serve::{Facts, ServeError, Session};

/// A client must have opened an export by then.
const HANDSHAKE_TIME: Duration = Duration::from_secs(30);

/// Options a client may send before it opens an export.
const OPTIONS_LIMIT: usize = 256;

/// A connection that has agreed on an export.
pub(super) struct Opened {
    pub(super) stream: Stream,
    pub(super) inbox: Inbox,
    pub(super) session: Session,
    pub(super) terms: Terms,
}

/// The server's side until then.
pub(super) struct Handshake<'a> {
    common: &'a Common,
    socket: Arc<OwnedFd>,
    until: Instant,
}

impl<'a> Handshake<'a> {
    pub(super) fn new(common: &'a Common, socket: Arc<OwnedFd>) -> Handshake<'a> {
        Handshake { common, socket, until: Instant::now() + HANDSHAKE_TIME }
    }

    /// Agrees on an export; `None` when the client left politely. Blocks on the client.
    pub(super) fn run(self) -> Result<Option<Opened>, ConnectionError> {
        let stream = Stream::plain(self.socket.clone());
        stream.set_timeout(Some(HANDSHAKE_TIME))?;
        let opened = self.haggle(stream)?;
        if let Some(opened) = &opened {
            opened.stream.set_timeout(None)?;
        }
        Ok(opened)
    }

    fn haggle(&self, mut stream: Stream) -> Result<Option<Opened>, ConnectionError> {
        let mut haggle = Haggle::new(match &self.common.tls {
            None => TlsState::Unavailable,
            Some((_, TlsMode::Offered)) => TlsState::Offered,
            Some((_, TlsMode::Required)) => TlsState::Required,
        });
        let mut inbox = Inbox::new(WRITE_PIECE.max(OPTION_HEADER_LEN + OPTION_LIMIT as usize));
        stream.send_all(&greeting())?;
        self.need(&stream, &mut inbox, CLIENT_FLAGS_LEN)?;
        haggle.client_flags(inbox.take().expect("as many bytes were waited for"))?;
        for _ in 0..OPTIONS_LIMIT {
            let (next, replies) = self.option(&stream, &mut inbox, &mut haggle)?;
            if let Next::Open { facts, terms } = next {
                // Opened before the client is told so: what it was told holds until it leaves or is sent away.
                let session = self.open(&facts)?;
                stream.send_all(&replies)?;
                return Ok(Some(Opened { stream, inbox, session, terms }));
            }
            stream.send_all(&replies)?;
            match next {
                Next::HangUp => return Ok(None),
                Next::StartTls => {
                    stream = self.start_tls(stream, &inbox)?;
                    haggle.tls_started();
                }
                Next::Option | Next::Open { .. } => {}
            }
        }
        Err(ConnectionError::TooSlow)
    }

    /// Receives one option; returns what comes next and the replies to send before.
    fn option(
        &self,
        stream: &Stream,
        inbox: &mut Inbox,
        haggle: &mut Haggle,
    ) -> Result<(Next, Vec<u8>), ConnectionError> {
        loop {
            if let Some((frame, len)) = OptionFrame::decode(inbox.bytes())? {
                let mut replies = Vec::new();
                let next = haggle.handle(frame, &self.common.exports, &mut replies);
                inbox.consume(len);
                return Ok((next, replies));
            }
            self.need(stream, inbox, inbox.bytes().len() + 1)?;
        }
    }

    fn open(&self, facts: &Facts) -> Result<Session, ServeError> {
        let socket = self.socket.clone();
        let session = self.common.exports.open(&facts.name, move || hang_up(&socket))?;
        // Another disk may have taken the name since the client was told of it.
        if session.size() == facts.size { Ok(session) } else { Err(ServeError::Removed) }
    }

    fn start_tls(&self, stream: Stream, inbox: &Inbox) -> Result<Stream, ConnectionError> {
        match &self.common.tls {
            Some((config, _)) if inbox.bytes().is_empty() => Ok(stream.start_tls(config.clone())?),
            _ => Err(ConnectionError::Injected),
        }
    }

    fn need(&self, stream: &Stream, inbox: &mut Inbox, len: usize) -> Result<(), ConnectionError> {
        while inbox.bytes().len() < len {
            if Instant::now() > self.until {
                return Err(ConnectionError::TooSlow);
            }
            if inbox.receive(|into| stream.recv(into, true))? == 0 {
                return Err(ConnectionError::CutShort);
            }
        }
        Ok(())
    }
}
