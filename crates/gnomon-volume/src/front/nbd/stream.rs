//! The bytes of one connection, in the clear or under TLS, with one set of calls for both.
//!
//! One thread receives and several send (one at a time, see `reply::Outlet`). Under TLS the socket is read without
//! holding the session's lock, so a reply can leave while the receiver waits.

use std::{
    io::{self, ErrorKind, IoSlice, Read, Write},
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use rustix::{
    io::Errno,
    net::{RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, recv, send, sendmsg, shutdown, sockopt},
};
use rustls::{ServerConfig, ServerConnection};

/// Ciphertext read at once: several TLS records of 16 KiB.
const CIPHERTEXT: usize = 256 << 10;

/// Plaintext that rustls takes before it has to be sent.
const TLS_SEND_BUFFER: usize = 256 << 10;

/// A connected socket, perhaps under TLS.
pub(super) struct Stream {
    socket: Arc<OwnedFd>,
    tls: Option<Box<Tls>>,
}

struct Tls {
    session: Mutex<ServerConnection>,
    incoming: Mutex<Ciphertext>,
}

/// Received and not yet decrypted: `bytes[start..end]`. Only the receiver locks it.
struct Ciphertext {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Stream {
    pub(super) fn plain(socket: Arc<OwnedFd>) -> Stream {
        Stream { socket, tls: None }
    }

    /// Shakes hands over TLS. Blocks on the client, within the socket's timeouts.
    pub(super) fn start_tls(self, config: Arc<ServerConfig>) -> io::Result<Stream> {
        let mut session = ServerConnection::new(config).map_err(io::Error::other)?;
        session.set_buffer_limit(Some(TLS_SEND_BUFFER));
        let mut raw = Raw(&self.socket);
        while session.is_handshaking() {
            session.complete_io(&mut raw)?;
        }
        let incoming = Ciphertext { bytes: vec![0; CIPHERTEXT].into_boxed_slice(), start: 0, end: 0 };
        let tls = Box::new(Tls { session: Mutex::new(session), incoming: Mutex::new(incoming) });
        Ok(Stream { socket: self.socket, tls: Some(tls) })
    }

    /// Receives at least one byte, or 0 when the client has closed. Without `wait`, fails with `WouldBlock` when
    /// there is nothing.
    pub(super) fn recv(&self, into: &mut [u8], wait: bool) -> io::Result<usize> {
        match &self.tls {
            None => receive(&self.socket, into, wait),
            Some(tls) => tls.recv(&self.socket, into, wait),
        }
    }

    /// Sends everything. Blocks while the client does not read. Callers take turns.
    pub(super) fn send_all(&self, bytes: &[u8]) -> io::Result<()> {
        match &self.tls {
            None => Raw(&self.socket).write_all(bytes),
            Some(tls) => tls.send_all(&self.socket, bytes),
        }
    }

    /// Tells a client under TLS that the end is meant, not an attack.
    pub(super) fn say_goodbye(&self) {
        let Some(tls) = &self.tls else { return };
        let mut session = tls.session.lock();
        session.send_close_notify();
        // The client may be gone already; nothing depends on its hearing this.
        let _ = push(&mut session, &self.socket);
    }

    /// Limits how long a receive or send may wait; `None` for ever.
    pub(super) fn set_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        sockopt::set_socket_timeout(&self.socket, sockopt::Timeout::Recv, timeout)?;
        Ok(sockopt::set_socket_timeout(&self.socket, sockopt::Timeout::Send, timeout)?)
    }
}

/// Ends a connection from any thread: what waits in a receive or send returns at once.
pub(super) fn hang_up(socket: &OwnedFd) {
    // Fails only when the client has gone already.
    let _ = shutdown(socket, Shutdown::Both);
}

/// Lets a connection finish what it has received: its next receive returns 0.
pub(super) fn stop_receiving(socket: &OwnedFd) {
    // Fails only when the client has gone already.
    let _ = shutdown(socket, Shutdown::Read);
}

impl Tls {
    fn recv(&self, socket: &OwnedFd, into: &mut [u8], wait: bool) -> io::Result<usize> {
        let mut incoming = self.incoming.lock();
        loop {
            match self.session.lock().reader().read(into) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                done => return done,
            }
            if incoming.start == incoming.end {
                // Empty before the call, which may fail for having nothing.
                (incoming.start, incoming.end) = (0, 0);
                incoming.end = receive(socket, &mut incoming.bytes, wait)?;
                if incoming.end == 0 {
                    return Ok(0);
                }
            }
            self.decrypt(socket, &mut incoming)?;
        }
    }

    fn decrypt(&self, socket: &OwnedFd, incoming: &mut Ciphertext) -> io::Result<()> {
        let mut session = self.session.lock();
        let Ciphertext { bytes, start, end } = incoming;
        *start += session.read_tls(&mut &bytes[*start..*end])?;
        if let Err(error) = session.process_new_packets() {
            // The alert that tells the client why; it may not want to hear it.
            let _ = push(&mut session, socket);
            return Err(io::Error::new(ErrorKind::InvalidData, error));
        }
        Ok(())
    }

    fn send_all(&self, socket: &OwnedFd, bytes: &[u8]) -> io::Result<()> {
        let mut session = self.session.lock();
        let mut left = bytes;
        while !left.is_empty() {
            let taken = session.writer().write(left)?;
            left = &left[taken..];
            push(&mut session, socket)?;
        }
        Ok(())
    }
}

/// Sends what the TLS session has to say.
fn push(session: &mut ServerConnection, socket: &OwnedFd) -> io::Result<()> {
    while session.wants_write() {
        session.write_tls(&mut Raw(socket))?;
    }
    Ok(())
}

fn receive(socket: &OwnedFd, into: &mut [u8], wait: bool) -> io::Result<usize> {
    let flags = if wait { RecvFlags::empty() } else { RecvFlags::DONTWAIT };
    loop {
        match recv(socket.as_fd(), &mut *into, flags) {
            Ok((received, _)) => return Ok(received),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Blocking reads and writes of the bare socket that never raise SIGPIPE.
struct Raw<'a>(&'a OwnedFd);

impl Read for Raw<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        receive(self.0, into, true)
    }
}

impl Write for Raw<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(send(self.0, bytes, SendFlags::NOSIGNAL)?)
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(sendmsg(self.0, parts, &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
