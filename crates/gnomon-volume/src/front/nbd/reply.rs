//! Replies on their way out: the shared outlet of a connection, and the buffer its own thread gathers them in.

use std::io;

use gnomon_terms::ErrorKind;
use parking_lot::Mutex;

use super::{
    options::Terms,
    stream::Stream,
    wire::{self, Command, Errno, Request},
};
use crate::{disk::DiskError, serve::ServeError};

/// What all threads of a connection send through, one at a time.
pub(super) struct Outlet {
    stream: Stream,
    turn: Mutex<()>,
}

impl Outlet {
    pub(super) fn new(stream: Stream) -> Outlet {
        Outlet { stream, turn: Mutex::new(()) }
    }

    /// For receiving; only one thread does.
    pub(super) fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Sends whole replies or chunks. Blocks while the client does not read.
    pub(super) fn send(&self, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let _turn = self.turn.lock();
        self.stream.send_all(bytes)
    }
}

/// Replies that leave together. A fixed buffer: reads are served straight into it.
pub(super) struct Outbox {
    bytes: Box<[u8]>,
    len: usize,
}

impl Outbox {
    pub(super) fn new(capacity: usize) -> Outbox {
        Outbox { bytes: vec![0; capacity].into_boxed_slice(), len: 0 }
    }

    pub(super) fn gathered(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    pub(super) fn clear(&mut self) {
        self.len = 0;
    }

    pub(super) fn has_room(&self, len: usize) -> bool {
        self.bytes.len() - self.len >= len
    }

    /// The next `len` bytes, to be filled and then kept with [`Outbox::keep`].
    pub(super) fn spare(&mut self, len: usize) -> &mut [u8] {
        &mut self.bytes[self.len..self.len + len]
    }

    pub(super) fn keep(&mut self, len: usize) {
        self.len += len;
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.spare(bytes.len()).copy_from_slice(bytes);
        self.keep(bytes.len());
    }
}

/// The reply to a request that carries no data.
pub(super) fn conclusion(terms: Terms, request: &Request, result: Result<(), ServeError>) -> Vec<u8> {
    match result {
        // A read must be answered in chunks once they are agreed on; other successes may stay simple and short.
        Ok(()) if terms.structured && request.command == Command::Read => {
            wire::chunk(wire::Chunk::None, request.cookie, 0, true).to_vec()
        }
        Ok(()) => wire::simple_reply(request.cookie, None).to_vec(),
        Err(error) => refusal(terms, request, errno(&error, request.command), &error.to_string()),
    }
}

/// The reply that says no.
pub(super) fn refusal(terms: Terms, request: &Request, errno: Errno, why: &str) -> Vec<u8> {
    match terms.structured {
        true => wire::error_chunk(request.cookie, errno, why),
        false => wire::simple_reply(request.cookie, Some(errno)).to_vec(),
    }
}

/// How the protocol calls an error.
fn errno(error: &ServeError, command: Command) -> Errno {
    match (error, error.kind()) {
        (ServeError::Removed | ServeError::Unknown { .. }, _) => Errno::Shutdown,
        (ServeError::OutOfRange { .. }, _) => match command {
            Command::Write | Command::WriteZeroes => Errno::NoSpc,
            _ => Errno::Inval,
        },
        (ServeError::Disk(DiskError::Full { .. }), _) => Errno::NoSpc,
        (_, ErrorKind::Refused) => Errno::Perm,
        (_, ErrorKind::Unavailable | ErrorKind::Corrupt) => Errno::Io,
    }
}

/// Whether all bytes are zero. The first words decide for almost all data that is not.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(4096).all(|page| {
        let (head, tail) = page.split_at(page.len().min(16));
        head.iter().all(|&byte| byte == 0) && tail.iter().fold(0, |all, &byte| all | byte) == 0
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeroes_are_recognised() {
        for len in [0, 1, 15, 16, 17, 4096, 70_000] {
            let mut bytes = vec![0; len];
            assert!(is_zero(&bytes));
            for at in [0, len / 2, len.saturating_sub(1)] {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = 1;
                    assert!(!is_zero(&bytes), "{at} of {len}");
                    bytes[at] = 0;
                }
            }
        }
    }

    #[test]
    fn errors_have_their_number() {
        let range = || ServeError::OutOfRange { at: 9, len: 9, size: 9 };
        let disk = ServeError::Disk;
        let io = io::Error::other("broken");
        let table = [
            (ServeError::Removed, Command::Read, Errno::Shutdown),
            (ServeError::ReadOnly, Command::Write, Errno::Perm),
            (range(), Command::Read, Errno::Inval),
            (range(), Command::Trim, Errno::Inval),
            (range(), Command::Write, Errno::NoSpc),
            (range(), Command::WriteZeroes, Errno::NoSpc),
            (disk(DiskError::Full { at: 0, len: 1 }), Command::Write, Errno::NoSpc),
            (disk(DiskError::Fenced { why: "a newer epoch".into() }), Command::Write, Errno::Perm),
            (disk(DiskError::Io { deed: "read", at: 0, len: 1, source: io }), Command::Read, Errno::Io),
            (disk(DiskError::Unreachable { at: 0, len: 1, place: "p1".into() }), Command::Read, Errno::Io),
        ];
        for (error, command, want) in table {
            assert_eq!(errno(&error, command), want, "{error}");
        }
    }
}
