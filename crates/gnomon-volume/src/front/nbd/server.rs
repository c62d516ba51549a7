//! Listening, accepting, and stopping.

use std::{
    collections::HashMap,
    fmt, fs, io,
    net::{SocketAddr, TcpListener},
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};
use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, eventfd, poll},
    io::{Errno, retry_on_intr},
    net::{AddressFamily, SocketFlags, accept_with, sockopt},
};
use rustls::ServerConfig;

use super::{
    connection::{Common, attend},
    spin::Lookouts,
    stream::{hang_up, stop_receiving},
};
use crate::{front::socket, serve::Exports};

/// Whether a client must use TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsMode {
    /// It may; without it everything is served in the clear.
    Offered,
    /// It must; without it nothing is told.
    Required,
}

/// Where a server listens.
#[derive(Clone)]
pub enum NbdAddress {
    /// A unix socket. A stale socket file is replaced; the file is removed when the server stops.
    Unix(PathBuf),
    /// TCP in the clear: for networks that are trusted as a whole.
    Tcp(SocketAddr),
    /// TCP with TLS by STARTTLS. Client certificates are checked as `config` says.
    TcpTls {
        /// Address and port; port 0 takes any.
        at: SocketAddr,
        /// Certificate, key and demands on clients.
        config: Arc<ServerConfig>,
        /// Whether clients must use it.
        mode: TlsMode,
    },
}

impl fmt::Display for NbdAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NbdAddress::Unix(path) => write!(f, "nbd+unix:///?socket={}", path.display()),
            NbdAddress::Tcp(at) => write!(f, "nbd://{at}"),
            NbdAddress::TcpTls { at, .. } => write!(f, "nbds://{at}"),
        }
    }
}

impl fmt::Debug for NbdAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NbdAddress({self})")
    }
}

/// Bounds of one server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NbdLimits {
    /// Connections at once; more are closed at once. Each takes under 1 MiB, and up to 36 MiB while long requests
    /// wait.
    pub clients: usize,
}

impl Default for NbdLimits {
    fn default() -> NbdLimits {
        NbdLimits { clients: 256 }
    }
}

/// How long [`NbdServer::stop`] lets clients take the replies to what they have sent.
const GRACE: Duration = Duration::from_millis(500);

/// A running NBD server. Dropping it stops it.
pub struct NbdServer {
    address: NbdAddress,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

struct Shared {
    common: Common,
    limits: NbdLimits,
    /// Written once, to end the acceptor.
    stop: OwnedFd,
    connections: Mutex<Connections>,
    left: Condvar,
}

#[derive(Default)]
struct Connections {
    next: u64,
    open: HashMap<u64, Arc<OwnedFd>>,
}

impl NbdServer {
    /// Listens at `address` and serves `exports` with the default limits. Returns when clients can connect.
    pub fn bind(address: NbdAddress, exports: Arc<Exports>) -> io::Result<NbdServer> {
        NbdServer::bind_with(address, exports, NbdLimits::default())
    }

    /// As [`NbdServer::bind`], with other limits.
    pub fn bind_with(address: NbdAddress, exports: Arc<Exports>, limits: NbdLimits) -> io::Result<NbdServer> {
        let (listener, address) = listen(address)?;
        let tls = match &address {
            NbdAddress::TcpTls { config, mode, .. } => Some((config.clone(), *mode)),
            NbdAddress::Unix(_) | NbdAddress::Tcp(_) => None,
        };
        let shared = Arc::new(Shared {
            common: Common { exports, tls, lookouts: Lookouts::of_this_host() },
            limits,
            stop: eventfd(0, EventfdFlags::CLOEXEC)?,
            connections: Mutex::default(),
            left: Condvar::new(),
        });
        let acceptor = thread::Builder::new().name("nbd-accept".into()).spawn({
            let shared = shared.clone();
            move || shared.accept(&listener)
        })?;
        Ok(NbdServer { address, shared, acceptor: Some(acceptor) })
    }

    /// Where it listens; with the port that was taken when 0 was asked for.
    pub fn address(&self) -> &NbdAddress {
        &self.address
    }

    /// How many clients are connected.
    pub fn clients(&self) -> usize {
        self.shared.connections.lock().open.len()
    }

    /// Stops: accepts and receives no more, lets what has been received be answered for at most half a second,
    /// hangs up, and returns when no thread of the server is left. Blocks as long as the slowest disk operation.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let Some(acceptor) = self.acceptor.take() else { return };
        rustix::io::write(&self.shared.stop, &1u64.to_ne_bytes()).expect("an eventfd takes a 1");
        acceptor.join().expect("the acceptor does not panic");
        if let NbdAddress::Unix(path) = &self.address {
            // Gone already when someone tidied up; a successor replaces a stale one.
            let _ = fs::remove_file(path);
        }
        self.shared.disperse();
    }
}

impl Drop for NbdServer {
    fn drop(&mut self) {
        self.end();
    }
}

impl Shared {
    fn accept(self: &Arc<Self>, listener: &OwnedFd) {
        loop {
            let mut ready = [PollFd::new(listener, PollFlags::IN), PollFd::new(&self.stop, PollFlags::IN)];
            if let Err(error) = retry_on_intr(|| poll(&mut ready, None)) {
                tracing::error!(%error, "cannot wait for clients any more");
                return;
            }
            if !ready[1].revents().is_empty() {
                return;
            }
            match accept_with(listener, SocketFlags::CLOEXEC) {
                Ok(socket) => self.welcome(socket),
                Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => {}
                Err(error) => {
                    // Mostly out of file descriptors. Waiting on `stop` gives connections time to end.
                    tracing::warn!(%error, "cannot accept a client: raise the limit of open files");
                    let pause = rustix::event::Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
                    // A signal only shortens the pause.
                    let _ = poll(&mut [PollFd::new(&self.stop, PollFlags::IN)], Some(&pause));
                }
            }
        }
    }

    fn welcome(self: &Arc<Self>, socket: OwnedFd) {
        let socket = Arc::new(socket);
        let number = {
            let mut connections = self.connections.lock();
            if connections.open.len() >= self.limits.clients {
                tracing::warn!(limit = self.limits.clients, "a client was turned away: too many are connected");
                return;
            }
            let number = connections.next;
            connections.next += 1;
            connections.open.insert(number, socket.clone());
            number
        };
        let shared = self.clone();
        let started = thread::Builder::new().name(format!("nbd-{number}")).spawn(move || {
            let _leaving = Leaving { shared: &shared, number };
            tune(&socket);
            match attend(&shared.common, socket) {
                Ok(()) => tracing::debug!(number, "a client left"),
                Err(error) => tracing::info!(number, %error, "a client was lost"),
            }
        });
        if let Err(error) = started {
            tracing::warn!(%error, "a client was turned away: no thread for it");
            self.connections.lock().open.remove(&number);
        }
    }

    fn disperse(&self) {
        let mut connections = self.connections.lock();
        connections.open.values().for_each(|socket| stop_receiving(socket));
        let until = Instant::now() + GRACE;
        self.left.wait_while_until(&mut connections, |connections| !connections.open.is_empty(), until);
        connections.open.values().for_each(|socket| hang_up(socket));
        self.left.wait_while(&mut connections, |connections| !connections.open.is_empty());
    }
}

/// Strikes a connection off the list when its thread ends, however it ends.
struct Leaving<'a> {
    shared: &'a Shared,
    number: u64,
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.shared.connections.lock().open.remove(&self.number);
        self.shared.left.notify_all();
    }
}

fn listen(address: NbdAddress) -> io::Result<(OwnedFd, NbdAddress)> {
    match address {
        NbdAddress::Unix(path) => {
            let listener = socket::listen(&path)?;
            listener.set_nonblocking(true)?;
            Ok((listener.into(), NbdAddress::Unix(path)))
        }
        NbdAddress::Tcp(at) => {
            let (listener, at) = listen_tcp(at)?;
            Ok((listener, NbdAddress::Tcp(at)))
        }
        NbdAddress::TcpTls { at, config, mode } => {
            let (listener, at) = listen_tcp(at)?;
            Ok((listener, NbdAddress::TcpTls { at, config, mode }))
        }
    }
}

fn listen_tcp(at: SocketAddr) -> io::Result<(OwnedFd, SocketAddr)> {
    let listener = TcpListener::bind(at)?;
    listener.set_nonblocking(true)?;
    let at = listener.local_addr()?;
    Ok((listener.into(), at))
}

/// Replies leave at once, a vanished client is noticed, and a long reply fits the socket.
fn tune(socket: &OwnedFd) {
    const BUFFER: usize = 1 << 20;
    // Each is a matter of speed only, and a system may refuse it.
    let _ = sockopt::set_socket_send_buffer_size(socket, BUFFER);
    let _ = sockopt::set_socket_recv_buffer_size(socket, BUFFER);
    if !matches!(sockopt::socket_domain(socket.as_fd()), Ok(AddressFamily::UNIX)) {
        let _ = sockopt::set_tcp_nodelay(socket, true);
        let _ = sockopt::set_socket_keepalive(socket, true);
    }
}
