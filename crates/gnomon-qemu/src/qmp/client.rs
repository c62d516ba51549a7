//! The connection: who writes, who waits, who reads.

use std::{
    collections::HashMap,
    fmt,
    io::{self, IoSlice, Write},
    mem::MaybeUninit,
    net::Shutdown,
    os::{fd::BorrowedFd, unix::net::UnixStream},
    path::Path,
    sync::{
        Arc,
        mpsc::{RecvTimeoutError, SyncSender, sync_channel},
    },
    thread,
    time::Duration,
};

use parking_lot::Mutex;
use rustix::{
    io::Errno,
    net::{
        AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
    },
};
use serde_json::{Value, json};

use super::{
    CloseReason, EventStream, QmpError,
    events::Subscribers,
    line::{LINE_LIMIT, Lines, Message, parse},
};

/// How long a monitor may take to greet and to answer `qmp_capabilities`. QEMU greets once its main loop runs,
/// which on a loaded host can take seconds after exec.
pub(crate) const GREETING_TIMEOUT: Duration = Duration::from_secs(20);

/// How long a monitor may refuse to read what we write before the connection counts as lost.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection to a QEMU monitor. Cheap to clone; may be used from several threads at once. The connection ends
/// when the last clone is dropped (QEMU and its guest are not disturbed by that) or when QEMU ends.
#[derive(Clone)]
pub struct Qmp {
    /// The reader thread holds `Shared` only, so this count is that of the callers.
    handle: Arc<Handle>,
}

/// What callers share. Dropping it closes the socket, which ends the reader thread.
struct Handle {
    shared: Arc<Shared>,
    greeting: Value,
}

/// What callers share with the reader thread.
struct Shared {
    socket: UnixStream,
    /// Held while one command is written, so that lines never interleave.
    writing: Mutex<()>,
    waiters: Mutex<Waiters>,
    subscribers: Mutex<Subscribers>,
}

#[derive(Default)]
struct Waiters {
    last_id: u64,
    by_id: HashMap<u64, SyncSender<Reply>>,
    closed: Option<CloseReason>,
}

enum Reply {
    Return(Value),
    Error { class: String, desc: String },
    Closed(CloseReason),
}

impl Qmp {
    /// Connects to the monitor socket at `path` and negotiates. Blocks for up to 20 s when nobody greets.
    pub fn connect(path: &Path) -> Result<Qmp, QmpError> {
        Qmp::over(dial(path)?, GREETING_TIMEOUT)
    }

    /// Takes over a connected socket: waits for the greeting and negotiates. Both must be done within `timeout`
    /// each. No capability is asked for: out-of-band commands would change the order of replies for nothing we use.
    pub fn over(socket: UnixStream, timeout: Duration) -> Result<Qmp, QmpError> {
        let opening = |reason: CloseReason| QmpError::Closed { command: "greeting".into(), reason };
        let io_error = |e: io::Error| opening(CloseReason::socket(&e));
        socket.set_write_timeout(Some(WRITE_TIMEOUT)).map_err(io_error)?;
        let reading = socket.try_clone().map_err(io_error)?;
        let (greet, greeted) = sync_channel(1);
        let shared = Arc::new(Shared {
            socket,
            writing: Mutex::new(()),
            waiters: Mutex::default(),
            subscribers: Mutex::default(),
        });
        let reader = Arc::clone(&shared);
        thread::Builder::new()
            .name("qmp-reader".into())
            .spawn(move || reader.read(Lines::new(reading, LINE_LIMIT), &greet))
            .map_err(io_error)?;
        // From here on, dropping the handle ends the reader.
        let mut handle = Handle { shared, greeting: Value::Null };
        handle.greeting = match greeted.recv_timeout(timeout) {
            Ok(Ok(greeting)) => greeting,
            Ok(Err(reason)) => return Err(opening(reason)),
            Err(_) => return Err(QmpError::NoGreeting { after: timeout }),
        };
        let qmp = Qmp { handle: Arc::new(handle) };
        qmp.execute("qmp_capabilities", json!({}), timeout)?;
        Ok(qmp)
    }

    /// What QEMU said of itself when we connected: `{"version": …, "capabilities": […]}`.
    pub fn greeting(&self) -> &Value {
        &self.handle.greeting
    }

    /// Runs one command and waits for its result. Blocks for up to `timeout`; other threads may run theirs
    /// meanwhile. After [`QmpError::Timeout`] and [`QmpError::Closed`] the command may have taken effect or still
    /// take it.
    pub fn execute(&self, command: &str, arguments: Value, timeout: Duration) -> Result<Value, QmpError> {
        self.run(command, arguments, None, timeout)
    }

    /// Like [`Qmp::execute`], with a file descriptor sent beside the command (for `getfd` and `add-fd`). QEMU gets
    /// its own copy; the caller may close its own afterwards.
    pub fn execute_with_fd(
        &self,
        command: &str,
        arguments: Value,
        fd: BorrowedFd<'_>,
        timeout: Duration,
    ) -> Result<Value, QmpError> {
        self.run(command, arguments, Some(fd), timeout)
    }

    /// Subscribes: the stream gets every event from now on.
    pub fn events(&self) -> EventStream {
        self.handle.shared.subscribers.lock().add()
    }

    /// Why the connection is over, or `None` while it is not.
    pub fn closed(&self) -> Option<CloseReason> {
        self.handle.shared.waiters.lock().closed.clone()
    }

    fn run(
        &self,
        command: &str,
        arguments: Value,
        fd: Option<BorrowedFd<'_>>,
        timeout: Duration,
    ) -> Result<Value, QmpError> {
        let shared = &self.handle.shared;
        let closed = |reason| QmpError::Closed { command: command.to_string(), reason };
        let (tell, told) = sync_channel(1);
        let id = shared.waiters.lock().add(tell).map_err(closed)?;
        let mut line = json!({ "execute": command, "arguments": arguments, "id": id }).to_string();
        line.push('\n');
        shared.send(line.as_bytes(), fd);
        let reply = told.recv_timeout(timeout);
        shared.waiters.lock().by_id.remove(&id);
        match reply {
            Ok(Reply::Return(value)) => Ok(value),
            Ok(Reply::Error { class, desc }) => Err(QmpError::Refused { command: command.to_string(), class, desc }),
            Ok(Reply::Closed(reason)) => Err(closed(reason)),
            Err(RecvTimeoutError::Disconnected) => Err(closed(CloseReason::Ended)),
            Err(RecvTimeoutError::Timeout) => Err(QmpError::Timeout { command: command.to_string(), after: timeout }),
        }
    }
}

impl fmt::Debug for Qmp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Qmp").field("closed", &self.closed()).finish_non_exhaustive()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.close(CloseReason::ByUs);
    }
}

impl Waiters {
    fn add(&mut self, tell: SyncSender<Reply>) -> Result<u64, CloseReason> {
        if let Some(reason) = &self.closed {
            return Err(reason.clone());
        }
        self.last_id += 1;
        self.by_id.insert(self.last_id, tell);
        Ok(self.last_id)
    }
}

impl Shared {
    /// Writes one line, the descriptor with its first byte. A failure may have cut the line, after which nothing
    /// that follows could be read, so it closes the connection (which also tells the waiter of this very line).
    fn send(&self, line: &[u8], fd: Option<BorrowedFd<'_>>) {
        let result = {
            let _order = self.writing.lock();
            match fd {
                None => (&self.socket).write_all(line),
                Some(fd) => send_fd(&self.socket, line, fd).and_then(|n| (&self.socket).write_all(&line[n..])),
            }
        };
        if let Err(e) = result {
            self.close(CloseReason::socket(&e));
        }
    }

    /// The life of the reader thread.
    fn read(&self, mut lines: Lines<UnixStream>, greet: &SyncSender<Result<Value, CloseReason>>) {
        let reason = loop {
            match lines.next().and_then(|line| parse(&line)) {
                Ok(message) => self.deliver(message, greet),
                Err(reason) => break reason,
            }
        };
        self.close(reason);
        let reason = self.waiters.lock().closed.clone().unwrap_or(CloseReason::Ended);
        let _ = greet.try_send(Err(reason));
    }

    fn deliver(&self, message: Message, greet: &SyncSender<Result<Value, CloseReason>>) {
        match message {
            // A second greeting finds the channel full or its receiver gone, and is dropped.
            Message::Greeting(greeting) => drop(greet.try_send(Ok(greeting))),
            Message::Return { id, value } => self.answer(id, Reply::Return(value)),
            Message::Error { id: Some(id), class, desc } => self.answer(id, Reply::Error { class, desc }),
            Message::Event(event) => {
                tracing::trace!(name = event.name, data = %event.data, "QEMU event");
                self.subscribers.lock().publish(&event);
            }
            Message::Error { id: None, desc, .. } => tracing::debug!(desc, "QEMU reports an error of no command"),
            Message::Stray => tracing::debug!("QEMU sent a reply to no command"),
        }
    }

    /// The channel holds one reply and each waiter is removed by its first, so this never blocks. A reply for an id
    /// unknown here came after its deadline, or was made up.
    fn answer(&self, id: u64, reply: Reply) {
        match self.waiters.lock().by_id.remove(&id) {
            Some(waiter) => drop(waiter.try_send(reply)),
            None => tracing::debug!(id, "QEMU answered a command nobody waits for"),
        }
    }

    /// Ends the connection once: the first reason stays, all waiters and subscribers are told.
    fn close(&self, reason: CloseReason) {
        let waiting: Vec<_> = {
            let mut waiters = self.waiters.lock();
            if waiters.closed.is_some() {
                return;
            }
            waiters.closed = Some(reason.clone());
            waiters.by_id.drain().collect()
        };
        // The socket may be gone already, which is what is wanted.
        let _ = self.socket.shutdown(Shutdown::Both);
        for (_, waiter) in waiting {
            let _ = waiter.try_send(Reply::Closed(reason.clone()));
        }
        self.subscribers.lock().close(&reason);
    }
}

/// Connects without waiting. The queue of a monitor holds one or two; once it is full, a plain connect would block
/// for as long as its first client stays.
pub(crate) fn dial(path: &Path) -> Result<UnixStream, QmpError> {
    let failed = |source: io::Error| QmpError::Connect { path: path.to_path_buf(), source };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .map_err(|e| failed(e.into()))?;
    let address = SocketAddrUnix::new(path).map_err(|e| failed(e.into()))?;
    match rustix::net::connect(&socket, &address) {
        Ok(()) => {}
        Err(Errno::AGAIN) => return Err(QmpError::NoGreeting { after: Duration::ZERO }),
        Err(e) => return Err(failed(e.into())),
    }
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false).map_err(failed)?;
    Ok(stream)
}

/// Sends the beginning of `line` with `fd` beside its first byte, and says how much of it went.
fn send_fd(socket: &UnixStream, line: &[u8], fd: BorrowedFd<'_>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    let fds = [fd];
    let fits = beside.push(SendAncillaryMessage::ScmRights(&fds));
    debug_assert!(fits, "the space is sized for one descriptor");
    Ok(rustix::net::sendmsg(socket, &[IoSlice::new(line)], &mut beside, SendFlags::NOSIGNAL)?)
}
