//! A session: two nodes, one connection per class, one bounded queue each way per class.
//!
//! ```text
//!            ┌──────────── open ─────────────┐
//!   made ──▶ │ send · receive · ping         │ ──close()──────────────▶ Local
//!            │                               │ ──goodbye heard────────▶ Goodbye
//!            │                               │ ──silence──────────────▶ Dead
//!            └───────────────────────────────┘ ──error, wrong frame───▶ Broken, Violation, OutOfPlace
//! ```
//!
//! The first reason stays. When a session is over, sends fail with the reason and receivers end after what had
//! arrived. What was sent but not acknowledged may be lost: wait for acknowledgements before closing.
//!
//! What happens when a queue is full: `send` waits, `try_send` says so; and a reader that is not drained stops
//! reading its connection, so that the peer's queue of that class fills in turn. No other class is affected,
//! and heartbeats have a connection of their own. Serve [`Class::Demand`] and [`Class::Control`] promptly, and
//! never wait for room in a bulk class while holding up their receivers.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant as Clock},
};

use gnomon_proto::{
    Class,
    frame::{HEADER_LEN, Message},
};
use gnomon_terms::{Bytes, BytesPerSecond};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsStream;

use crate::{CloseReason, SendError, gate::Gate, pump};

/// What can be set about a session.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How fast bulk may be sent; `None` is no limit. [`Session::set_rate`] changes it later.
    pub rate: Option<BytesPerSecond>,
    /// How often a heartbeat is sent.
    pub ping_every: Duration,
    /// Silence after which the peer is taken for dead. Ten heartbeats: a loaded host skips a few.
    pub dead_after: Duration,
    /// How long connecting, TLS and hellos may take together.
    pub handshake_within: Duration,
    /// Frames in the queues of bulk classes, each way; of up to 1 MiB each. Others have [`Options::SMALL`].
    pub bulk_queue: usize,
}

impl Options {
    /// Frames in the queues of pulse and control, each way: they are small, and waiting for room in them would
    /// hold up acknowledgements.
    pub const SMALL: usize = 1024;

    /// The length of the queue of `class`, each way.
    pub fn queue(&self, class: Class) -> usize {
        match class {
            Class::Pulse | Class::Control => Options::SMALL,
            _ => self.bulk_queue.max(1),
        }
    }
}

impl Default for Options {
    fn default() -> Options {
        Options {
            rate: None,
            ping_every: Duration::from_secs(1),
            dead_after: Duration::from_secs(10),
            handshake_within: Duration::from_secs(10),
            bulk_queue: 32,
        }
    }
}

/// A session with a peer. Dropping it closes it; senders that outlive it fail.
pub struct Session {
    shared: Arc<Shared>,
    receivers: Mutex<[Option<mpsc::Receiver<Message>>; Class::COUNT]>,
}

/// Sends on a session. Cheap to clone, usable from any task or thread.
#[derive(Clone)]
pub struct SessionSender {
    shared: Arc<Shared>,
}

/// Who is at the other end, as its certificate and hello say.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) name: String,
    pub(crate) boot: u128,
    pub(crate) session: u128,
}

/// What the tasks of a session share.
pub(crate) struct Shared {
    peer: Peer,
    pub(crate) options: Options,
    pub(crate) gate: Gate,
    queues: [mpsc::Sender<Message>; Class::COUNT],
    closed: watch::Sender<Option<CloseReason>>,
    opened: Clock,
    /// Nanoseconds after `opened` at which the last frame was heard.
    heard: AtomicU64,
    /// Nanoseconds; 0 is "not measured yet".
    rtt: AtomicU64,
    sent: [AtomicU64; Class::COUNT],
    received: [AtomicU64; Class::COUNT],
}

impl Session {
    /// Starts the tasks of a session over its connections, in the order of [`Class::ALL`]. Must be called within
    /// a tokio runtime.
    pub(crate) fn start(
        peer: Peer,
        options: Options,
        connections: [TlsStream<tokio::net::TcpStream>; Class::COUNT],
    ) -> Session {
        let queues = Class::ALL.map(|class| mpsc::channel(options.queue(class)));
        let (senders, outgoing) = unzip(queues);
        let (incoming, receivers) = unzip(Class::ALL.map(|class| mpsc::channel(options.queue(class))));
        let shared = Arc::new(Shared::new(peer, options, senders));
        let lanes = Class::ALL.into_iter().zip(connections).zip(outgoing.into_iter().zip(incoming));
        for ((class, connection), (outgoing, incoming)) in lanes {
            pump::start(&shared, class, connection, outgoing, incoming);
        }
        pump::start_pulse(&shared);
        let mut receivers = receivers.map(Some);
        receivers[Class::Pulse.index()] = None;
        Session { shared, receivers: Mutex::new(receivers) }
    }

    /// The peer's node name, as its certificate says.
    pub fn peer(&self) -> &str {
        &self.shared.peer.name
    }

    /// Drawn at random when the peer's process started: tells a restart from a reconnection.
    pub fn peer_boot(&self) -> u128 {
        self.shared.peer.boot
    }

    /// The session's id, the same on both sides.
    pub fn id(&self) -> u128 {
        self.shared.peer.session
    }

    /// A handle to send with.
    pub fn sender(&self) -> SessionSender {
        SessionSender { shared: self.shared.clone() }
    }

    /// What the peer sends in `class`, in its order. `None` if it was taken before, and for [`Class::Pulse`].
    pub fn take_receiver(&self, class: Class) -> Option<mpsc::Receiver<Message>> {
        self.receivers.lock()[class.index()].take()
    }

    /// Waits for the end of the session and says why.
    pub async fn closed(&self) -> CloseReason {
        self.shared.closed().await
    }

    /// True if the session is over.
    pub fn is_closed(&self) -> bool {
        self.close_reason().is_some()
    }

    /// Why the session is over; `None` while it is not.
    pub fn close_reason(&self) -> Option<CloseReason> {
        self.shared.close_reason()
    }

    /// Ends the session and tells the peer `reason` (cut to 1024 bytes). Does not wait; what is queued is dropped.
    pub fn close(&self, reason: &str) {
        self.shared.close(CloseReason::Local(reason.to_string()));
    }

    /// The last measured round trip; `None` until the first pong, about a second after the start.
    pub fn rtt(&self) -> Option<Duration> {
        match self.shared.rtt.load(Ordering::Relaxed) {
            0 => None,
            nanos => Some(Duration::from_nanos(nanos)),
        }
    }

    /// Changes how fast bulk may be sent, at once; `None` is no limit, zero stops it.
    pub fn set_rate(&self, rate: Option<BytesPerSecond>) {
        self.shared.gate.set_rate(rate);
    }

    /// Bytes of frames sent in `class` (headers included, TLS not).
    pub fn sent_bytes(&self, class: Class) -> Bytes {
        Bytes(self.shared.sent[class.index()].load(Ordering::Relaxed))
    }

    /// Bytes of frames received in `class` (headers included, TLS not).
    pub fn received_bytes(&self, class: Class) -> Bytes {
        Bytes(self.shared.received[class.index()].load(Ordering::Relaxed))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.close("the session was dropped");
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Session({} {:032x})", self.peer(), self.id())
    }
}

impl SessionSender {
    /// Queues `message` in its class; waits while that queue is full.
    ///
    /// # Errors
    /// [`SendError::Closed`] if the session is over (also while waiting), [`SendError::Frame`] if the message
    /// breaks a rule of its kind.
    pub async fn send(&self, message: Message) -> Result<(), SendError> {
        let queue = self.queue_for(&message)?;
        tokio::select! {
            sent = queue.send(message) => sent.map_err(|_| self.over()),
            reason = self.shared.closed() => Err(SendError::Closed(reason)),
        }
    }

    /// As [`SessionSender::send`], for plain threads: blocks the thread while the queue is full. Must not be
    /// called from a task.
    pub fn blocking_send(&self, message: Message) -> Result<(), SendError> {
        let queue = self.queue_for(&message)?;
        queue.blocking_send(message).map_err(|_| self.over())
    }

    /// As [`SessionSender::send`], but never waits: [`SendError::Full`] gives the message back.
    pub fn try_send(&self, message: Message) -> Result<(), SendError> {
        let queue = self.queue_for(&message)?;
        queue.try_send(message).map_err(|error| match error {
            mpsc::error::TrySendError::Full(message) => SendError::Full(Box::new(message)),
            mpsc::error::TrySendError::Closed(_) => self.over(),
        })
    }

    /// The peer's node name.
    pub fn peer(&self) -> &str {
        &self.shared.peer.name
    }

    /// True if the session is over.
    pub fn is_closed(&self) -> bool {
        self.shared.close_reason().is_some()
    }

    fn queue_for(&self, message: &Message) -> Result<&mpsc::Sender<Message>, SendError> {
        if let Some(reason) = self.shared.close_reason() {
            return Err(SendError::Closed(reason));
        }
        message.check()?;
        Ok(&self.shared.queues[message.class().index()])
    }

    /// The queue is gone: a writer has ended, which it does only when the session is over.
    fn over(&self) -> SendError {
        let unsaid = || CloseReason::Local("the runtime stopped".to_string());
        SendError::Closed(self.shared.close_reason().unwrap_or_else(unsaid))
    }
}

impl Shared {
    fn new(peer: Peer, options: Options, queues: [mpsc::Sender<Message>; Class::COUNT]) -> Shared {
        let zeroes = || std::array::from_fn(|_| AtomicU64::new(0));
        Shared {
            peer,
            options,
            gate: Gate::new(options.rate),
            queues,
            closed: watch::Sender::new(None),
            opened: Clock::now(),
            heard: AtomicU64::new(0),
            rtt: AtomicU64::new(0),
            sent: zeroes(),
            received: zeroes(),
        }
    }

    /// Ends the session for `reason`, unless it is over already.
    pub(crate) fn close(&self, reason: CloseReason) {
        self.closed.send_if_modified(|current| {
            let first = current.is_none();
            if first {
                tracing::info!(peer = %self.peer.name, %reason, "session closed");
                *current = Some(reason);
            }
            first
        });
    }

    pub(crate) fn close_reason(&self) -> Option<CloseReason> {
        self.closed.borrow().clone()
    }

    /// Waits for the end of the session.
    pub(crate) async fn closed(&self) -> CloseReason {
        let mut watcher = self.closed.subscribe();
        let reason = watcher.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
        reason.unwrap_or_else(|| CloseReason::Local("the session is gone".to_string()))
    }

    /// Queues one of the link's own frames; dropped if there is no room, since the next one says the same.
    pub(crate) fn pulse(&self, message: Message) {
        let _ = self.queues[Class::Pulse.index()].try_send(message);
    }

    pub(crate) fn count_sent(&self, class: Class, bytes: usize) {
        self.sent[class.index()].fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// A frame with a body of `body` bytes was heard.
    pub(crate) fn count_received(&self, class: Class, body: usize) {
        self.received[class.index()].fetch_add((HEADER_LEN + body) as u64, Ordering::Relaxed);
        self.heard.store(self.nanos(), Ordering::Relaxed);
    }

    /// How long nothing was heard.
    pub(crate) fn silence(&self) -> Duration {
        Duration::from_nanos(self.nanos().saturating_sub(self.heard.load(Ordering::Relaxed)))
    }

    /// Nanoseconds since the session was opened; what a ping carries, so that its pong tells the round trip.
    pub(crate) fn nanos(&self) -> u64 {
        u64::try_from(self.opened.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// The pong to the ping that was sent at `nanos` has come.
    pub(crate) fn pong(&self, nanos: u64) {
        let now = self.nanos();
        if (1..=now).contains(&nanos) {
            self.rtt.store((now - nanos).max(1), Ordering::Relaxed);
        }
    }
}

/// An array of pairs into a pair of arrays.
fn unzip<A, B>(pairs: [(A, B); Class::COUNT]) -> ([A; Class::COUNT], [B; Class::COUNT]) {
    let (mut left, mut right) = (pairs.map(|(a, b)| (Some(a), Some(b))), std::array::from_fn(|_| None));
    for (pair, right) in left.iter_mut().zip(&mut right) {
        *right = pair.1.take();
    }
    let whole = "each place is filled exactly once";
    (left.map(|pair| pair.0.expect(whole)), right.map(|b: Option<B>| b.expect(whole)))
}
