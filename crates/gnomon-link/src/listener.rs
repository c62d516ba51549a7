//! Being connected to: connections are greeted side by side and joined into sessions by one task.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use gnomon_proto::{Class, frame::Hello};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Mutex, Semaphore, mpsc},
    task::JoinHandle,
    time::Instant,
};
use tokio_rustls::{TlsAcceptor, TlsStream};

use crate::{
    Identity, LinkError, Options, Session,
    dial::{hear_hello, say_hello},
    session::Peer,
    tls,
};

/// Handshakes at the same time. More wait in the kernel's queue: a stranger cannot make us hold more than this.
const HANDSHAKES: usize = 64;
/// Sessions that have some of their connections. When there are more, the newcomer is turned away.
const HALF_OPEN: usize = 64;
/// Sessions that wait to be accepted.
const BACKLOG: usize = 16;
/// The pause after the operating system refused a connection (out of descriptors): trying at once would spin, and nobody
/// tells when another program has given one back.
const BREATHER: Duration = Duration::from_millis(50);

/// Accepts sessions. Dropping it stops listening; sessions go on.
pub struct Listener {
    local: SocketAddr,
    sessions: Mutex<mpsc::Receiver<Session>>,
    refused: Arc<AtomicU64>,
    tasks: [JoinHandle<()>; 2],
}

/// A connection that has said hello.
struct Arrival {
    hello: Hello,
    stream: TlsStream<TcpStream>,
}

/// A session that has some of its connections.
struct HalfOpen {
    since: Instant,
    boot: u128,
    connections: [Option<TlsStream<TcpStream>>; Class::COUNT],
}

impl Listener {
    /// Listens at `addr` ("host:port"; port 0 takes a free one). Must be called within a tokio runtime.
    pub async fn bind(addr: &str, identity: &Identity) -> Result<Listener, LinkError> {
        Listener::bind_with(addr, identity, Options::default()).await
    }

    /// As [`Listener::bind`], with options for the sessions.
    pub async fn bind_with(addr: &str, identity: &Identity, options: Options) -> Result<Listener, LinkError> {
        let io = |source| LinkError::Io { what: "listening at", addr: addr.to_string(), source };
        let socket = TcpListener::bind(addr).await.map_err(io)?;
        let local = socket.local_addr().map_err(io)?;
        let config =
            tls::server_config(identity).map_err(|source| LinkError::Tls { addr: addr.to_string(), source })?;
        let (arrivals, arrived) = mpsc::channel(HANDSHAKES);
        let (ready, sessions) = mpsc::channel(BACKLOG);
        let refused = Arc::new(AtomicU64::new(0));
        let greeter = Greeter {
            acceptor: TlsAcceptor::from(Arc::new(config)),
            identity: identity.clone(),
            within: options.handshake_within,
            refused: refused.clone(),
        };
        let tasks = [
            tokio::spawn(greet_all(socket, Arc::new(greeter), arrivals)),
            tokio::spawn(join_all(arrived, options, ready, refused.clone())),
        ];
        Ok(Listener { local, sessions: Mutex::new(sessions), refused, tasks })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Waits for the next whole session. Connections that fail on the way are counted, logged and dropped.
    /// `None` if the runtime is shutting down.
    pub async fn accept(&self) -> Option<Session> {
        self.sessions.lock().await.recv().await
    }

    /// How many connections were turned away or failed on the way.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// What every handshake needs.
struct Greeter {
    acceptor: TlsAcceptor,
    identity: Identity,
    within: Duration,
    refused: Arc<AtomicU64>,
}

async fn greet_all(socket: TcpListener, greeter: Arc<Greeter>, arrivals: mpsc::Sender<Arrival>) {
    let permits = Arc::new(Semaphore::new(HANDSHAKES));
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
        let (tcp, from) = match socket.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accepting a connection");
                tokio::time::sleep(BREATHER).await;
                continue;
            }
        };
        let (greeter, arrivals) = (greeter.clone(), arrivals.clone());
        tokio::spawn(async move {
            match greeter.greet(tcp, &from.to_string()).await {
                Ok(arrival) => drop(arrivals.send(arrival).await),
                Err(error) => {
                    greeter.refused.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!(%error, "a connection was refused");
                }
            }
            drop(permit);
        });
    }
}

impl Greeter {
    /// TLS and hellos, within the time there is.
    async fn greet(&self, tcp: TcpStream, addr: &str) -> Result<Arrival, LinkError> {
        let greeting = async {
            let io =
                |source| LinkError::Io { what: "setting up the connection from", addr: addr.to_string(), source };
            tcp.set_nodelay(true).map_err(io)?;
            let stream = self.acceptor.accept(tcp).await.map_err(|error| tls::explain("TLS with", addr, error))?;
            let mut stream = TlsStream::from(stream);
            let hello = hear_hello(&mut stream, addr).await?;
            say_hello(&mut stream, addr, &self.identity, hello.session, hello.class).await?;
            Ok(Arrival { hello, stream })
        };
        match tokio::time::timeout(self.within, greeting).await {
            Ok(arrival) => arrival,
            Err(_) => Err(LinkError::Timeout { addr: addr.to_string(), after: self.within }),
        }
    }
}

/// Joins connections into sessions; forgets those that do not become whole in time.
async fn join_all(
    mut arrived: mpsc::Receiver<Arrival>,
    options: Options,
    ready: mpsc::Sender<Session>,
    refused: Arc<AtomicU64>,
) {
    let mut half_open: HashMap<(String, u128), HalfOpen> = HashMap::new();
    while let Some(arrival) = arrived.recv().await {
        half_open.retain(|_, half| half.since.elapsed() < options.handshake_within);
        let key = (arrival.hello.node.clone(), arrival.hello.session);
        if !admit(&mut half_open, arrival) {
            refused.fetch_add(1, Ordering::Relaxed);
            continue;
        }
        if let Some((peer, connections)) = take_whole(&mut half_open, &key) {
            let session = Session::start(peer, options, connections);
            if ready.send(session).await.is_err() {
                return;
            }
        }
    }
}

/// Adds a connection to its session. False if there are too many sessions on the way, the session has that
/// connection already, or the peer restarted in between.
fn admit(half_open: &mut HashMap<(String, u128), HalfOpen>, arrival: Arrival) -> bool {
    let Arrival { hello, stream } = arrival;
    let key = (hello.node, hello.session);
    if half_open.len() >= HALF_OPEN && !half_open.contains_key(&key) {
        return false;
    }
    let fresh = || HalfOpen { since: Instant::now(), boot: hello.boot, connections: std::array::from_fn(|_| None) };
    let half = half_open.entry(key).or_insert_with(fresh);
    let place = &mut half.connections[hello.class.index()];
    if place.is_some() || half.boot != hello.boot {
        return false;
    }
    *place = Some(stream);
    true
}

/// Takes the session out if it has all its connections.
fn take_whole(
    half_open: &mut HashMap<(String, u128), HalfOpen>,
    key: &(String, u128),
) -> Option<(Peer, [TlsStream<TcpStream>; Class::COUNT])> {
    if !half_open.get(key)?.connections.iter().all(Option::is_some) {
        return None;
    }
    let half = half_open.remove(key)?;
    let peer = Peer { name: key.0.clone(), boot: half.boot, session: key.1 };
    let connections: Vec<_> = half.connections.into_iter().flatten().collect();
    Some((peer, connections.try_into().ok()?))
}
