//! A session of one move, taken apart: what arrives in each class goes to the engine of its stream.
//!
//! Each class has a thread of its own, because engines block for the local disk and a full class must not hold up
//! another. Questions, handovers and bitmaps go to the driver of the move instead; memory goes to the guest's relay.
//!
//! A destination asks and mirrors from the moment on in which it has found its volume, and the source has to compare
//! first: what comes before its engine is there waits for it, in the order it came. A request that was dropped here
//! would never be answered.
//!
//! [`Hub::end`] returns when no frame of the session is being handled any more: a push of an old session must never
//! land after a push of the next one.

use std::{collections::HashMap, sync::Arc, thread};

use gnomon_link::{Session, SessionSender};
use gnomon_proto::{
    Class,
    frame::{Message, Stream},
};
use gnomon_volume::wire::{Wire, WireClosed};
use parking_lot::{Condvar, Mutex};
use tokio::sync::{mpsc, oneshot};

use super::{rpc::Rpc, window::Window};

/// Takes in the messages of one stream.
pub type Engine = Arc<dyn Fn(Message) + Send + Sync>;

/// One end of a move's session.
pub struct Hub {
    session: Arc<Session>,
    /// Asks the other side.
    pub rpc: Arc<Rpc>,
    engines: Arc<Engines>,
    window: Arc<Window>,
    ended: Vec<oneshot::Receiver<()>>,
}

/// The engines of a session, by stream.
struct Engines {
    /// `None` once the session is over: nobody waits for an engine any more.
    known: Mutex<Option<HashMap<Stream, Engine>>>,
    changed: Condvar,
}

impl Engines {
    fn new() -> Engines {
        Engines { known: Mutex::new(Some(HashMap::new())), changed: Condvar::new() }
    }

    fn serve(&self, stream: Stream, engine: Engine) {
        if let Some(known) = &mut *self.known.lock() {
            known.insert(stream, engine);
        }
        self.changed.notify_all();
    }

    fn end(&self) {
        self.known.lock().take();
        self.changed.notify_all();
    }

    /// The engine of a stream; waits for it unless the class is the one in which answers come, which it may take to
    /// get there.
    fn of(&self, stream: Stream, class: Class) -> Option<Engine> {
        let mut known = self.known.lock();
        loop {
            match known.as_ref()?.get(&stream) {
                Some(engine) => return Some(Arc::clone(engine)),
                None if class == Class::Control => return None,
                None => self.changed.wait(&mut known),
            }
        }
    }
}

/// What the driver of the move reads by itself.
pub struct Inbox {
    /// Requests, handovers and bitmaps, in the order they came.
    pub control: mpsc::UnboundedReceiver<Message>,
    /// The guest's memory.
    pub ram: mpsc::Receiver<Message>,
}

impl Hub {
    /// Takes the session over.
    pub fn start(session: Session) -> (Hub, Inbox) {
        let session = Arc::new(session);
        let rpc = Arc::new(Rpc::new(session.sender()));
        let (engines, window) = (Arc::new(Engines::new()), Arc::new(Window::default()));
        let (to_driver, control) = mpsc::unbounded_channel();
        let take = |class| session.take_receiver(class).expect("a new session has all its receivers");
        let ram = take(Class::Ram);
        let mut ended = Vec::new();
        for class in [Class::Control, Class::Demand, Class::Mirror, Class::Prefetch, Class::Background] {
            let receiver = take(class);
            let (tell, end) = oneshot::channel();
            let (engines, rpc, to_driver) = (Arc::clone(&engines), Arc::clone(&rpc), to_driver.clone());
            let window = Arc::clone(&window);
            thread::spawn(move || {
                pump(class, receiver, &engines, &window, &rpc, &to_driver);
                rpc.end();
                window.end();
                let _ = tell.send(());
            });
            ended.push(end);
        }
        (Hub { session, rpc, engines, window, ended }, Inbox { control, ram })
    }

    /// From now on messages of `stream` go to `engine`.
    pub fn serve(&self, stream: Stream, engine: Engine) {
        self.engines.serve(stream, engine);
    }

    /// Sends to the other side.
    pub fn sender(&self) -> SessionSender {
        self.session.sender()
    }

    /// For engines.
    pub fn wire(&self) -> Arc<dyn Wire> {
        Arc::new(LinkWire(self.session.sender()))
    }

    /// How much of a guest's memory may be on its way.
    pub fn window(&self) -> &Arc<Window> {
        &self.window
    }

    /// The session.
    pub fn session(&self) -> &Arc<Session> {
        &self.session
    }

    /// Ends the session and waits until nothing of it is being handled.
    pub async fn end(self, reason: &str) {
        self.session.close(reason);
        self.engines.end();
        for end in self.ended {
            // A thread that is gone is an ended one.
            let _ = end.await;
        }
    }
}

/// Hands messages of one class on until the session is over.
fn pump(
    class: Class,
    mut receiver: mpsc::Receiver<Message>,
    engines: &Engines,
    window: &Window,
    rpc: &Rpc,
    to_driver: &mpsc::UnboundedSender<Message>,
) {
    while let Some(message) = receiver.blocking_recv() {
        match message {
            Message::Reply { id, ok, body } => rpc.replied(id, ok, body),
            Message::RamAck { taken, .. } => window.acknowledge(taken),
            Message::Request { .. } | Message::Handover { .. } | Message::Bitmap { .. } => {
                // A driver that is gone has ended the session, or is about to.
                let _ = to_driver.send(message);
            }
            message => {
                let engine = stream_of(&message).and_then(|stream| engines.of(stream, class));
                match engine {
                    Some(engine) => engine(message),
                    None => tracing::warn!(kind = %message.kind(), "a message of no known stream was ignored"),
                }
            }
        }
    }
}

/// Which stream a message for an engine belongs to.
fn stream_of(message: &Message) -> Option<Stream> {
    match message {
        Message::Push { stream, .. }
        | Message::PushAck { stream, .. }
        | Message::Fetch { stream, .. }
        | Message::Fetched { stream, .. }
        | Message::Drop { stream, .. }
        | Message::Accesses { stream, .. }
        | Message::Mirror { stream, .. }
        | Message::MirrorAck { stream, .. }
        | Message::MirrorFlush { stream, .. }
        | Message::HashRange { stream, .. }
        | Message::Hashes { stream, .. }
        | Message::Sealed { stream, .. }
        | Message::Turn { stream, .. }
        | Message::Turned { stream, .. } => Some(*stream),
        _ => None,
    }
}

/// A session's sender, for engines that run on plain threads.
struct LinkWire(SessionSender);

impl Wire for LinkWire {
    fn send(&self, message: Message) -> Result<(), WireClosed> {
        self.0.blocking_send(message).map_err(|_| WireClosed)
    }
}
