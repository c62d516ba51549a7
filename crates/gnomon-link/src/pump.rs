//! The tasks of a session: per connection a reader and a writer, and one heartbeat.

use std::{io, sync::Arc, time::Duration};

use gnomon_proto::{
    Class,
    frame::{FrameError, HEADER_LEN, Header, MAX_REASON, Message},
};
use gnomon_terms::Bytes;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf},
    net::TcpStream,
    sync::mpsc,
};
use tokio_rustls::TlsStream;

use crate::{CloseReason, session::Shared};

/// How long the end of one connection waits for the goodbye that says why.
const GRACE: Duration = Duration::from_millis(500);
/// How long a goodbye may take to be written.
const PARTING: Duration = Duration::from_secs(1);
/// Frames whose bodies are at most this long are gathered and written together; longer ones are written from
/// where they are. 16 KiB is one TLS record: below it a frame of its own would be a record of its own.
const SMALL_BODY: usize = 16 << 10;
/// Gathered bytes after which they are written.
const GATHER: usize = 64 << 10;

type Stream = TlsStream<TcpStream>;

/// Starts the reader and the writer of one connection.
pub(crate) fn start(
    shared: &Arc<Shared>,
    class: Class,
    connection: Stream,
    outgoing: mpsc::Receiver<Message>,
    incoming: mpsc::Sender<Message>,
) {
    let (reading, writing) = tokio::io::split(connection);
    tokio::spawn(write_until_closed(shared.clone(), class, writing, outgoing));
    tokio::spawn(read_until_closed(shared.clone(), class, reading, incoming));
}

/// Starts the heartbeat: pings, and ends the session when nothing is heard.
pub(crate) fn start_pulse(shared: &Arc<Shared>) {
    let shared = shared.clone();
    tokio::spawn(async move {
        let closed = shared.closed();
        tokio::pin!(closed);
        loop {
            shared.pulse(Message::Ping { seq: shared.nanos().max(1) });
            tokio::select! {
                _ = &mut closed => return,
                () = tokio::time::sleep(shared.options.ping_every) => {}
            }
            let silent = shared.silence();
            if silent > shared.options.dead_after {
                shared.close(CloseReason::Dead { silent });
            }
        }
    });
}

async fn write_until_closed(
    shared: Arc<Shared>,
    class: Class,
    mut stream: WriteHalf<Stream>,
    mut outgoing: mpsc::Receiver<Message>,
) {
    let reason = tokio::select! {
        reason = shared.closed() => reason,
        error = write_frames(&shared, class, &mut stream, &mut outgoing) => {
            broke(&shared, class, error).await;
            return;
        }
    };
    if let (Class::Pulse, CloseReason::Local(reason)) = (class, reason) {
        let _ = tokio::time::timeout(PARTING, say_goodbye(&mut stream, reason)).await;
    }
}

/// Writes what is queued; returns only with the error that stopped it.
async fn write_frames(
    shared: &Shared,
    class: Class,
    stream: &mut WriteHalf<Stream>,
    outgoing: &mut mpsc::Receiver<Message>,
) -> io::Error {
    let mut gathered = Vec::with_capacity(GATHER);
    while let Some(message) = outgoing.recv().await {
        let mut next = Some(message);
        while let Some(message) = next {
            if let Err(error) = write_frame(shared, class, stream, &message, &mut gathered).await {
                return error;
            }
            next = outgoing.try_recv().ok();
        }
        if let Err(error) = write_gathered(stream, &mut gathered).await {
            return error;
        }
    }
    io::Error::other("the queue is gone")
}

/// Gathers a small frame, writes a large one.
async fn write_frame(
    shared: &Shared,
    class: Class,
    stream: &mut WriteHalf<Stream>,
    message: &Message,
    gathered: &mut Vec<u8>,
) -> io::Result<()> {
    // Checked when it was queued; a message that fails here is dropped rather than sent broken.
    let Ok((header, body)) = message.frame() else { return Ok(()) };
    let len = HEADER_LEN + body.len();
    shared.gate.pass(class, Bytes(len as u64)).await;
    gathered.extend_from_slice(&header.to_bytes());
    if body.len() <= SMALL_BODY {
        gathered.extend_from_slice(&body);
        if gathered.len() >= GATHER {
            write_gathered(stream, gathered).await?;
        }
    } else {
        write_both(stream, gathered, &body).await?;
        gathered.clear();
        stream.flush().await?;
    }
    shared.count_sent(class, len);
    Ok(())
}

async fn write_gathered(stream: &mut WriteHalf<Stream>, gathered: &mut Vec<u8>) -> io::Result<()> {
    if !gathered.is_empty() {
        stream.write_all(gathered).await?;
        gathered.clear();
        stream.flush().await?;
    }
    Ok(())
}

/// Writes `head` and `body` as one run of bytes, without joining them in memory.
async fn write_both<W: AsyncWrite + Unpin>(stream: &mut W, head: &[u8], body: &[u8]) -> io::Result<()> {
    let (mut head, mut body) = (head, body);
    while !head.is_empty() {
        let written = stream.write_vectored(&[io::IoSlice::new(head), io::IoSlice::new(body)]).await?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        let of_head = written.min(head.len());
        head = &head[of_head..];
        body = &body[written - of_head..];
    }
    stream.write_all(body).await
}

async fn say_goodbye(stream: &mut WriteHalf<Stream>, mut reason: String) -> io::Result<()> {
    let end = reason.floor_char_boundary(MAX_REASON);
    reason.truncate(end);
    let mut frame = Vec::new();
    if (Message::Goodbye { reason }).encode(&mut frame).is_ok() {
        stream.write_all(&frame).await?;
    }
    stream.shutdown().await
}

async fn read_until_closed(
    shared: Arc<Shared>,
    class: Class,
    mut stream: ReadHalf<Stream>,
    incoming: mpsc::Sender<Message>,
) {
    tokio::select! {
        _ = shared.closed() => {}
        stopped = read_frames(&shared, class, &mut stream, &incoming) => match stopped {
            Stopped::Broken(error) => broke(&shared, class, error).await,
            Stopped::Wrong(reason) => shared.close(reason),
        }
    }
}

/// Why a reader stopped.
enum Stopped {
    Broken(io::Error),
    Wrong(CloseReason),
}

/// Hands on what arrives, in order; waits while the receiver's queue is full, and so does the peer then.
async fn read_frames(
    shared: &Shared,
    class: Class,
    stream: &mut ReadHalf<Stream>,
    incoming: &mpsc::Sender<Message>,
) -> Stopped {
    loop {
        let (message, body) = match read_message(stream).await {
            Ok(read) => read,
            Err(ReadError::Io(error)) => return Stopped::Broken(error),
            Err(ReadError::Frame(error)) => return Stopped::Wrong(CloseReason::Violation { class, error }),
        };
        shared.count_received(class, body);
        match message {
            message if message.class() != class => return Stopped::Wrong(CloseReason::OutOfPlace { class }),
            Message::Hello(_) => return Stopped::Wrong(CloseReason::OutOfPlace { class }),
            Message::Ping { seq } => shared.pulse(Message::Pong { seq }),
            Message::Pong { seq } => shared.pong(seq),
            Message::Goodbye { reason } => return Stopped::Wrong(CloseReason::Goodbye(reason)),
            // A receiver that was dropped is not interested: the frames of its class are read and dropped.
            message => drop(incoming.send(message).await),
        }
    }
}

/// Why no message could be read.
pub(crate) enum ReadError {
    /// The stream ended or failed.
    Io(io::Error),
    /// The bytes are wrong.
    Frame(FrameError),
}

/// Reads one message and says how long its body was. The body is read into the buffer it stays in, which grows
/// no faster than bytes arrive.
pub(crate) async fn read_message<R: AsyncRead + Unpin>(stream: &mut R) -> Result<(Message, usize), ReadError> {
    let mut bytes = [0; HEADER_LEN];
    stream.read_exact(&mut bytes).await.map_err(ReadError::Io)?;
    let header = Header::from_bytes(&bytes).map_err(ReadError::Frame)?;
    let len = header.body as usize;
    // The length is within its kind's limit, at most 1 MiB.
    let mut body = Vec::with_capacity(len);
    stream.take(len as u64).read_to_end(&mut body).await.map_err(ReadError::Io)?;
    if body.len() < len {
        return Err(ReadError::Io(io::ErrorKind::UnexpectedEof.into()));
    }
    let message = Message::decode(&header, body).map_err(ReadError::Frame)?;
    Ok((message, len))
}

/// A connection broke. If the peer is leaving, its goodbye is on the way and says more.
async fn broke(shared: &Shared, class: Class, error: io::Error) {
    let _ = tokio::time::timeout(GRACE, shared.closed()).await;
    shared.close(CloseReason::Broken { class, what: error.to_string() });
}
