//! Messages into frames.

use std::borrow::Cow;

use gnomon_terms::{Epoch, Extent, Op};

use super::{
    Answer, Change, Content, FrameError, Header, Hello, Kind, MAX_ACCESSES, MAX_HASHES, MAX_MARKS, Mark, Message,
    Step, Stream, TOUCH_LEN, Touch, rules,
};
use crate::Class;

/// Flags: the variant in the low byte, how the body is encoded in the high byte.
fn flags(variant: u8, encoding: u8) -> u16 {
    u16::from_le_bytes([variant, encoding])
}

/// Encoding: the bytes themselves.
pub(super) const DATA: u8 = 0;
/// Encoding: all zero, no body.
pub(super) const ZERO: u8 = 1;
/// Encoding: given up, no body.
pub(super) const DISCARD: u8 = 2;

/// Encoding: packed by zstd.
pub(super) const PACKED: u8 = 3;

/// A frame in the making: the header, and the body where it already is.
type Parts<'a> = (Header, Cow<'a, [u8]>);

impl Message {
    /// Appends the frame to `out`.
    ///
    /// # Errors
    /// A message that breaks a rule of its kind (too long, an empty extent…); `out` is then as it was.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), FrameError> {
        let (header, body) = self.frame()?;
        out.reserve(header.to_bytes().len() + body.len());
        out.extend_from_slice(&header.to_bytes());
        out.extend_from_slice(&body);
        Ok(())
    }

    /// The frame in two parts, without copying a payload: write the header's bytes, then the body.
    ///
    /// # Errors
    /// As [`Message::encode`].
    pub fn frame(&self) -> Result<(Header, Cow<'_, [u8]>), FrameError> {
        let (mut header, body) = self.parts()?;
        let (kind, len, max) = (header.kind, body.len(), header.kind.max_body());
        if len > max {
            return Err(FrameError::TooLong { kind, len: len as u64, max });
        }
        header.body = len as u32;
        Ok((header, body))
    }

    /// Whether the message keeps the rules of its kind, and so can be encoded.
    pub fn check(&self) -> Result<(), FrameError> {
        self.frame().map(|_| ())
    }

    /// One arm per kind; the length of the body is filled in by the caller.
    fn parts(&self) -> Result<Parts<'_>, FrameError> {
        let kind = self.kind();
        let head = Header::of(kind);
        Ok(match self {
            Message::Hello(hello) => return hello_parts(hello),
            Message::Request { id, body } => (Header { seq: *id, ..head }, Cow::Borrowed(body)),
            Message::Reply { id, ok, body } => {
                (Header { seq: *id, flags: flags(u8::from(*ok), 0), ..head }, Cow::Borrowed(body))
            }
            Message::Ping { seq } | Message::Pong { seq } => bare(Header { seq: *seq, ..head }),
            Message::Goodbye { reason } => (head, Cow::Borrowed(reason.as_bytes())),
            Message::Push { stream, epoch, seq, extent, class, content } => {
                let head = on(kind, *stream, Some(*epoch), *seq, Some(*extent))?;
                push_parts(head, rules::bulk_class(kind, *class)?, content)?
            }
            Message::PushAck { stream, seq, settled } => {
                let head = on(kind, *stream, None, *seq, None)?;
                bare(Header { flags: flags(*settled as u8, 0), ..head })
            }
            Message::Fetch { stream, epoch, id, extent } | Message::Drop { stream, epoch, seq: id, extent } => {
                bare(on(kind, *stream, Some(*epoch), *id, Some(*extent))?)
            }
            Message::Fetched { stream, id, extent, answer } => {
                fetched_parts(on(kind, *stream, None, *id, Some(*extent))?, answer)?
            }
            Message::Accesses { stream, touches } => access_parts(*stream, touches)?,
            Message::Mirror { stream, epoch, seq, at, len, change } => {
                rules::byte_run(kind, *at, *len)?;
                let head = on(kind, *stream, Some(*epoch), *seq, None)?;
                mirror_parts(Header { at: *at, count: *len, ..head }, change)?
            }
            Message::MirrorAck { stream, seq, durable, ok } => {
                let head = on(kind, *stream, None, *seq, None)?;
                bare(Header { flags: flags(u8::from(*durable) | u8::from(*ok) << 1, 0), ..head })
            }
            Message::MirrorFlush { stream, seq } => bare(on(kind, *stream, None, *seq, None)?),
            Message::Turn { stream, epoch, turn, last, whole } => {
                let head = on(kind, *stream, Some(*epoch), *turn, None)?;
                bare(Header { at: *last, flags: flags(u8::from(*whole), 0), ..head })
            }
            Message::Turned { stream, turn, ok } => {
                let head = on(kind, *stream, None, *turn, None)?;
                bare(Header { flags: flags(u8::from(*ok), 0), ..head })
            }
            Message::Bitmap { stream, epoch, which, extent, bits } => {
                let head = on(kind, *stream, Some(*epoch), 0, Some(*extent))?;
                (Header { flags: flags(*which, 0), ..head }, Cow::Borrowed(bits))
            }
            Message::Ram { stream, bytes } => (Header { stream: stream.0, ..head }, Cow::Borrowed(bytes)),
            Message::RamEnd { stream, ok } => {
                bare(Header { stream: stream.0, flags: flags(u8::from(*ok), 0), ..head })
            }
            Message::RamAck { stream, taken } => bare(Header { stream: stream.0, at: *taken, ..head }),
            Message::Pages { stream, epoch, checkpoint, records, packed, body } => {
                rules::ensure(*records > 0 && !body.is_empty(), kind, "no pages")?;
                let head = on(kind, *stream, Some(*epoch), *checkpoint, None)?;
                let encoding = if *packed { PACKED } else { DATA };
                (Header { count: *records, flags: flags(0, encoding), ..head }, Cow::Borrowed(body))
            }
            Message::Device { stream, epoch, checkpoint, at, bytes } => {
                rules::byte_run(kind, *at, bytes.len() as u32)?;
                (Header { at: *at, ..on(kind, *stream, Some(*epoch), *checkpoint, None)? }, Cow::Borrowed(bytes))
            }
            Message::Seal { stream, epoch, checkpoint, records, device, marks } => {
                let head = on(kind, *stream, Some(*epoch), *checkpoint, None)?;
                (Header { at: *records, count: *device, ..head }, Cow::Owned(mark_bytes(marks)?))
            }
            Message::Sealed { stream, checkpoint, ok } => {
                let head = on(kind, *stream, None, *checkpoint, None)?;
                bare(Header { flags: flags(u8::from(*ok), 0), ..head })
            }
            Message::Handover { stream, epoch, step } => {
                bare(step_header(on(kind, *stream, Some(*epoch), 0, None)?, *step))
            }
            Message::HashRange { stream, id, extent } => bare(on(kind, *stream, None, *id, Some(*extent))?),
            Message::Hashes { stream, id, start, hashes } => {
                rules::ensure(hashes.len() <= MAX_HASHES, kind, "too many hashes")?;
                let head = on(kind, *stream, None, *id, None)?;
                (Header { at: start.0, count: hashes.len() as u32, ..head }, Cow::Owned(hashes.concat()))
            }
        })
    }
}

/// A frame without a body.
fn bare(header: Header) -> Parts<'static> {
    (header, Cow::Borrowed(&[]))
}

/// The header of a frame about a stream.
fn on(
    kind: Kind,
    stream: Stream,
    epoch: Option<Epoch>,
    seq: u64,
    extent: Option<Extent>,
) -> Result<Header, FrameError> {
    let (at, count) = match extent {
        Some(extent) => rules::extent(kind, extent)?,
        None => (0, 0),
    };
    Ok(Header { stream: stream.0, epoch: epoch.unwrap_or_default().0, seq, at, count, ..Header::of(kind) })
}

fn hello_parts(hello: &Hello) -> Result<Parts<'_>, FrameError> {
    rules::node_name(Kind::Hello, &hello.node)?;
    let mut body = Vec::with_capacity(super::kind::HELLO_FIXED + hello.node.len());
    body.extend_from_slice(&hello.session.to_le_bytes());
    body.extend_from_slice(&hello.boot.to_le_bytes());
    body.extend_from_slice(hello.node.as_bytes());
    Ok((Header { flags: flags(hello.class.code(), 0), ..Header::of(Kind::Hello) }, Cow::Owned(body)))
}

fn push_parts(head: Header, class: Class, content: &Content) -> Result<Parts<'_>, FrameError> {
    let (encoding, body) = content_body(&head, content)?;
    Ok((Header { flags: flags(class.code(), encoding), ..head }, body))
}

fn fetched_parts(head: Header, answer: &Answer) -> Result<Parts<'_>, FrameError> {
    match answer {
        Answer::Blocks(content) => {
            let (encoding, body) = content_body(&head, content)?;
            Ok((Header { flags: flags(0, encoding), ..head }, body))
        }
        Answer::Refused => Ok(bare(Header { flags: flags(1, 0), ..head })),
        Answer::Failed => Ok(bare(Header { flags: flags(2, 0), ..head })),
    }
}

fn content_body<'a>(head: &Header, content: &'a Content) -> Result<(u8, Cow<'a, [u8]>), FrameError> {
    match content {
        Content::Data(data) => {
            rules::block_data(head.kind, head.count, data.len())?;
            Ok((DATA, Cow::Borrowed(data)))
        }
        Content::Zero => Ok((ZERO, Cow::Borrowed(&[]))),
    }
}

fn mirror_parts(head: Header, change: &Change) -> Result<Parts<'_>, FrameError> {
    let (encoding, body): (u8, &[u8]) = match change {
        Change::Data(data) => {
            rules::ensure(data.len() == head.count as usize, head.kind, "data that is not as long as its write")?;
            (DATA, data)
        }
        Change::Zero => (ZERO, &[]),
        Change::Discard => (DISCARD, &[]),
    };
    Ok((Header { flags: flags(0, encoding), ..head }, Cow::Borrowed(body)))
}

fn access_parts(stream: Stream, touches: &[Touch]) -> Result<Parts<'static>, FrameError> {
    let kind = Kind::Accesses;
    rules::ensure(!touches.is_empty() && touches.len() <= MAX_ACCESSES, kind, "no accesses, or too many")?;
    let mut body = Vec::with_capacity(touches.len() * TOUCH_LEN);
    for touch in touches {
        let (start, blocks) = rules::extent(kind, touch.extent)?;
        body.extend_from_slice(&touch.at.as_nanos().to_le_bytes());
        body.extend_from_slice(&start.to_le_bytes());
        body.extend_from_slice(&blocks.to_le_bytes());
        body.extend_from_slice(&[op_code(touch.op), u8::from(touch.stalled), 0, 0]);
    }
    Ok((Header { stream: stream.0, count: touches.len() as u32, ..Header::of(kind) }, Cow::Owned(body)))
}

fn mark_bytes(marks: &[Mark]) -> Result<Vec<u8>, FrameError> {
    rules::ensure(marks.len() <= MAX_MARKS, Kind::Seal, "too many marks")?;
    Ok(marks.iter().flat_map(|mark| mark.stream.0.to_le_bytes().into_iter().chain(mark.seq.to_le_bytes())).collect())
}

/// The number that stands for an operation on the wire.
fn op_code(op: Op) -> u8 {
    match op {
        Op::Read => 0,
        Op::Write => 1,
        Op::Discard => 2,
    }
}

fn step_header(head: Header, step: Step) -> Header {
    match step {
        Step::Commit { lacking, check } => Header { at: lacking, seq: check, ..head },
        _ => head,
    }
}
