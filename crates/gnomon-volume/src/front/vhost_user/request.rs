//! One request of a guest: a descriptor chain of header, data and status.
//!
//! ```text
//! readable:  type u32 | reserved u32 | sector u64 | data of a write, segments of a discard …
//! writable:  data of a read …                                                  | status u8
//! ```
//!
//! The guest can change its memory at any time, so the header is read once and becomes a [`Task`]; what is carried
//! out later is the task, with lengths that were checked.

use std::io::{Read, Write};

use gnomon_terms::Op;
use virtio_queue::{DescriptorChain, Reader, Writer};
use vm_memory::{GuestMemoryLoadGuard, GuestMemoryMmap};

use crate::serve::{ServeError, Session, Span};

/// The unit of addresses in virtio-blk.
pub(super) const SECTOR: u64 = 512;
/// Segments of one discard or write-zeroes.
pub(super) const SEGMENTS: usize = 32;
/// Longest read or write: 32 MiB, as in the NBD front.
const LIMIT: usize = 32 << 20;
const HEADER_LEN: usize = 16;
const SEGMENT_LEN: usize = 16;
const ID_LEN: usize = 20;

mod kind {
    pub const IN: u32 = 0;
    pub const OUT: u32 = 1;
    pub const FLUSH: u32 = 4;
    pub const GET_ID: u32 = 8;
    pub const DISCARD: u32 = 11;
    pub const WRITE_ZEROES: u32 = 13;
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

impl From<ServeError> for Status {
    fn from(error: ServeError) -> Status {
        tracing::debug!(%error, "a guest's request failed");
        Status::IoError
    }
}

impl From<std::io::Error> for Status {
    /// The chain is shorter than what it should hold.
    fn from(_: std::io::Error) -> Status {
        Status::IoError
    }
}

/// What a guest asked for, checked.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Task {
    Read(Span),
    Write(Span),
    Flush,
    Id([u8; ID_LEN]),
    Discard(Vec<Span>),
    /// Each with whether its storage may be given back.
    WriteZeroes(Vec<(Span, bool)>),
}

/// A chain split into its three parts.
pub(super) struct Parts<'a> {
    input: Reader<'a>,
    output: Writer<'a>,
    status: Writer<'a>,
}

impl<'a> Parts<'a> {
    /// `None` when the chain is malformed or has no room for a status.
    pub(super) fn of(
        memory: &'a GuestMemoryMmap,
        chain: DescriptorChain<GuestMemoryLoadGuard<GuestMemoryMmap>>,
    ) -> Option<Parts<'a>> {
        let input = Reader::new(memory, chain.clone()).ok()?;
        let mut output = Writer::new(memory, chain).ok()?;
        let status = output.split_at(output.available_bytes().checked_sub(1)?).ok()?;
        Some(Parts { input, output, status })
    }

    /// Reads the header and checks the request against the disk.
    pub(super) fn admit(&mut self, session: &Session) -> Result<Task, Status> {
        let mut header = [0; HEADER_LEN];
        self.input.read_exact(&mut header)?;
        let kind = u32::from_le_bytes(*header.first_chunk().expect("16 bytes hold 4"));
        let sector = u64::from_le_bytes(*header.last_chunk().expect("16 bytes hold 8"));
        match kind {
            kind::IN => Ok(Task::Read(admit(session, Op::Read, sector, self.output.available_bytes())?)),
            kind::OUT => Ok(Task::Write(admit(session, Op::Write, sector, self.input.available_bytes())?)),
            kind::FLUSH => Ok(Task::Flush),
            kind::GET_ID => Ok(Task::Id(id(session.name()))),
            kind::DISCARD => {
                let segments = self.segments(session)?;
                // The unmap flag means nothing for a discard, which always may.
                Ok(Task::Discard(segments.into_iter().map(|(span, _)| span).collect()))
            }
            kind::WRITE_ZEROES => Ok(Task::WriteZeroes(self.segments(session)?)),
            _ => Err(Status::Unsupported),
        }
    }

    /// The segments of a discard or write-zeroes, each with its unmap flag.
    fn segments(&mut self, session: &Session) -> Result<Vec<(Span, bool)>, Status> {
        const UNMAP: u32 = 1 << 0;
        let len = self.input.available_bytes();
        if len == 0 || !len.is_multiple_of(SEGMENT_LEN) || len / SEGMENT_LEN > SEGMENTS {
            return Err(Status::IoError);
        }
        let mut segments = Vec::with_capacity(len / SEGMENT_LEN);
        for _ in 0..len / SEGMENT_LEN {
            let mut bytes = [0; SEGMENT_LEN];
            self.input.read_exact(&mut bytes)?;
            let sector = u64::from_le_bytes(bytes[0..8].try_into().expect("8 bytes"));
            let sectors = u32::from_le_bytes(bytes[8..12].try_into().expect("4 bytes"));
            let flags = u32::from_le_bytes(bytes[12..16].try_into().expect("4 bytes"));
            if flags & !UNMAP != 0 {
                return Err(Status::Unsupported);
            }
            let at = sector.checked_mul(SECTOR).ok_or(Status::IoError)?;
            segments.push((session.admit(Op::Discard, at, u64::from(sectors) * SECTOR)?, flags & UNMAP != 0));
        }
        Ok(segments)
    }

    /// Writes the status; returns how many bytes of the chain were written in all.
    pub(super) fn finish(mut self, status: Status) -> u32 {
        match self.status.write_all(&[status as u8]) {
            // Bounded by LIMIT and one.
            Ok(()) => self.output.bytes_written() as u32 + 1,
            Err(_) => 0,
        }
    }
}

impl Task {
    /// Carries the task out if it needs no waiting. `None` when it does: then [`Task::carry_out`] does it from the
    /// beginning, with parts made anew.
    pub(super) fn carry_out_now(
        &self,
        session: &Session,
        parts: &mut Parts<'_>,
        scratch: &mut [u8],
    ) -> Option<Status> {
        match self {
            Task::Read(span) => self.read(*span, parts, scratch, |piece, into| session.read_now(piece, into)),
            Task::Write(span) if session.is_local(*span) => Some(self.carry_out(session, parts, scratch)),
            Task::Id(_) => Some(self.carry_out(session, parts, scratch)),
            Task::Write(_) | Task::Flush | Task::Discard(_) | Task::WriteZeroes(_) => None,
        }
    }

    /// Carries the task out. Blocks until done.
    pub(super) fn carry_out(&self, session: &Session, parts: &mut Parts<'_>, scratch: &mut [u8]) -> Status {
        let done = match self {
            Task::Read(span) => {
                let status = self.read(*span, parts, scratch, |piece, into| session.read(piece, into).map(|()| true));
                return status.unwrap_or(Status::IoError);
            }
            Task::Write(span) => write(session, *span, parts, scratch),
            Task::Flush => session.flush().map_err(Status::from),
            Task::Id(id) => {
                parts.output.write_all(&id[..ID_LEN.min(parts.output.available_bytes())]).map_err(Status::from)
            }
            Task::Discard(spans) => spans.iter().try_for_each(|span| Ok(session.discard(*span)?)),
            Task::WriteZeroes(spans) => {
                spans.iter().try_for_each(|(span, punch)| Ok(session.write_zeroes(*span, *punch)?))
            }
        };
        done.err().unwrap_or(Status::Ok)
    }

    /// Reads piece by piece; `None` as soon as `fill` says that a piece has to wait.
    fn read(
        &self,
        span: Span,
        parts: &mut Parts<'_>,
        scratch: &mut [u8],
        fill: impl Fn(Span, &mut [u8]) -> Result<bool, ServeError>,
    ) -> Option<Status> {
        let mut done = 0;
        while done < span.len() {
            let piece = span.part(done, scratch.len() as u64);
            let bytes = &mut scratch[..piece.len() as usize];
            match fill(piece, bytes) {
                Ok(true) => {}
                Ok(false) => return None,
                Err(error) => return Some(error.into()),
            }
            if let Err(error) = parts.output.write_all(bytes) {
                return Some(error.into());
            }
            done += piece.len();
        }
        Some(Status::Ok)
    }
}

fn write(session: &Session, span: Span, parts: &mut Parts<'_>, scratch: &mut [u8]) -> Result<(), Status> {
    // Parts made anew begin with the header again.
    if parts.input.bytes_read() == 0 {
        parts.input.read_exact(&mut [0; HEADER_LEN])?;
    }
    let mut done = 0;
    while done < span.len() {
        let piece = span.part(done, scratch.len() as u64);
        let bytes = &mut scratch[..piece.len() as usize];
        parts.input.read_exact(bytes)?;
        session.write(piece, bytes)?;
        done += piece.len();
    }
    Ok(())
}

fn admit(session: &Session, op: Op, sector: u64, len: usize) -> Result<Span, Status> {
    let at = sector.checked_mul(SECTOR).filter(|_| len <= LIMIT).ok_or(Status::IoError)?;
    Ok(session.admit(op, at, len as u64)?)
}

/// The serial number: the beginning of the export's name. What follows an `@` says to whom a disk is lent, and is
/// another one each time.
fn id(name: &str) -> [u8; ID_LEN] {
    let name = name.split('@').next().unwrap_or(name);
    let mut id = [0; ID_LEN];
    let len = name.len().min(ID_LEN);
    id[..len].copy_from_slice(&name.as_bytes()[..len]);
    id
}
