//! A guest's memory on its way: what QEMU writes into a socket at the source comes out of one at the destination.

use std::{
    io::{Read, Write},
    os::{fd::OwnedFd, unix::net::UnixStream},
    sync::Arc,
    thread,
};

use gnomon_link::SessionSender;
use gnomon_proto::frame::{Message, Stream};
use tokio::sync::mpsc;

use super::window::Window;
use crate::api::ApiError;

/// Bytes read at once: what the window is counted in.
const CHUNK: usize = 32 << 10;

/// At the source: returns the end for QEMU to write into; a thread sends what comes out of the other one.
pub fn outgoing(stream: Stream, sender: SessionSender, window: Arc<Window>) -> Result<OwnedFd, ApiError> {
    let (theirs, mut ours) = UnixStream::pair()?;
    thread::spawn(move || {
        let mut bytes = vec![0; CHUNK];
        let ok = loop {
            match ours.read(&mut bytes) {
                Ok(0) => break true,
                Ok(len) => {
                    let message = Message::Ram { stream, bytes: bytes[..len].to_vec() };
                    if !window.enter(len) || sender.blocking_send(message).is_err() {
                        // QEMU sees the socket close and gives the migration up.
                        return;
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "QEMU's migration stream cannot be read");
                    break false;
                }
            }
        };
        let _ = sender.blocking_send(Message::RamEnd { stream, ok });
    });
    Ok(theirs.into())
}

/// At the destination: returns the end for QEMU to read from; a thread fills the other one with what arrives.
pub fn incoming(mut arriving: mpsc::Receiver<Message>, sender: SessionSender) -> Result<OwnedFd, ApiError> {
    let (theirs, mut ours) = UnixStream::pair()?;
    thread::spawn(move || {
        let mut taken = 0;
        while let Some(message) = arriving.blocking_recv() {
            match message {
                Message::Ram { stream, bytes } => {
                    if ours.write_all(&bytes).is_err() {
                        // QEMU is gone, which its watcher tells.
                        return;
                    }
                    taken += bytes.len() as u64;
                    // A session that is over takes no more memory either.
                    let _ = sender.blocking_send(Message::RamAck { stream, taken });
                }
                Message::RamEnd { .. } => return,
                other => tracing::warn!(kind = %other.kind(), "not a part of a guest's memory"),
            }
        }
    });
    Ok(theirs.into())
}
