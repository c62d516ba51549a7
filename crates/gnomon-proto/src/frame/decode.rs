//! Frames into messages.

use gnomon_terms::{BlockIndex, Epoch, Extent, Instant, Op};

use super::{
    Answer, Change, Content, FrameError, Header, Hello, Kind, MAX_HASHES, Mark, Message, Settlement, Step, Stream,
    TOUCH_LEN, Touch,
    encode::{DATA, DISCARD, PACKED, ZERO},
    kind::{HELLO_FIXED, MARK_LEN},
    rules::{self, ensure, malformed},
};
use crate::Class;

impl Message {
    /// The message that `header` and its `body` stand for. A payload is moved, not copied.
    ///
    /// # Errors
    /// [`FrameError::Malformed`] if a rule of the kind is broken, or a field it does not use is not zero.
    pub fn decode(header: &Header, body: Vec<u8>) -> Result<Message, FrameError> {
        let kind = header.kind;
        ensure(body.len() == header.body as usize, kind, "a body that is not as long as its header says")?;
        let message = read(header, body)?;
        // There is one way to write each message: whatever a kind does not use is zero. Comparing with what the
        // message encodes to checks every unused field of every kind at once.
        let (canonical, _) = message.frame()?;
        ensure(canonical == *header, kind, "a field that this kind does not use is not zero")?;
        Ok(message)
    }
}

/// One arm per kind.
fn read(header: &Header, body: Vec<u8>) -> Result<Message, FrameError> {
    let kind = header.kind;
    let [variant, encoding] = header.flags.to_le_bytes();
    let (stream, epoch, seq) = (Stream(header.stream), Epoch(header.epoch), header.seq);
    let extent = Extent::new(header.at, u64::from(header.count));
    Ok(match kind {
        Kind::Hello => Message::Hello(read_hello(variant, body)?),
        Kind::Request => Message::Request { id: seq, body },
        Kind::Reply => Message::Reply { id: seq, ok: flag(kind, variant)?, body },
        Kind::Ping => Message::Ping { seq },
        Kind::Pong => Message::Pong { seq },
        Kind::Goodbye => Message::Goodbye { reason: text(kind, body)? },
        Kind::Push => {
            let class = Class::from_code(variant).ok_or_else(|| malformed(kind, "an unknown class"))?;
            Message::Push { stream, epoch, seq, extent, class, content: content(kind, encoding, body)? }
        }
        Kind::PushAck => Message::PushAck { stream, seq, settled: settlement(variant)? },
        Kind::Fetch => Message::Fetch { stream, epoch, id: seq, extent },
        Kind::Fetched => Message::Fetched { stream, id: seq, extent, answer: answer(variant, encoding, body)? },
        Kind::Drop => Message::Drop { stream, epoch, seq, extent },
        Kind::Accesses => Message::Accesses { stream, touches: touches(header.count, &body)? },
        Kind::Mirror => {
            let change = change(encoding, body)?;
            Message::Mirror { stream, epoch, seq, at: header.at, len: header.count, change }
        }
        Kind::MirrorAck => {
            ensure(variant < 4, kind, "an unknown outcome")?;
            Message::MirrorAck { stream, seq, durable: variant & 1 != 0, ok: variant & 2 != 0 }
        }
        Kind::MirrorFlush => Message::MirrorFlush { stream, seq },
        Kind::Turn => Message::Turn { stream, epoch, turn: seq, last: header.at, whole: flag(kind, variant)? },
        Kind::Turned => Message::Turned { stream, turn: seq, ok: flag(kind, variant)? },
        Kind::Bitmap => Message::Bitmap { stream, epoch, which: variant, extent, bits: body },
        Kind::Ram => Message::Ram { stream, bytes: body },
        Kind::RamEnd => Message::RamEnd { stream, ok: flag(kind, variant)? },
        Kind::RamAck => Message::RamAck { stream, taken: header.at },
        Kind::Pages => {
            let packed = is_packed(encoding)?;
            Message::Pages { stream, epoch, checkpoint: seq, records: header.count, packed, body }
        }
        Kind::Device => Message::Device { stream, epoch, checkpoint: seq, at: header.at, bytes: body },
        Kind::Seal => {
            let (records, device, marks) = (header.at, header.count, marks(&body)?);
            Message::Seal { stream, epoch, checkpoint: seq, records, device, marks }
        }
        Kind::Sealed => Message::Sealed { stream, checkpoint: seq, ok: flag(kind, variant)? },
        Kind::Prepare | Kind::Prepared | Kind::Commit | Kind::Committed | Kind::Abort | Kind::Aborted => {
            Message::Handover { stream, epoch, step: step(header) }
        }
        Kind::HashRange => Message::HashRange { stream, id: seq, extent },
        Kind::Hashes => {
            Message::Hashes { stream, id: seq, start: BlockIndex(header.at), hashes: hashes(header.count, &body)? }
        }
    })
}

fn read_hello(class: u8, body: Vec<u8>) -> Result<Hello, FrameError> {
    let kind = Kind::Hello;
    let class = Class::from_code(class).ok_or_else(|| malformed(kind, "an unknown class"))?;
    let (Some(session), Some(boot)) = (body.first_chunk::<16>(), body.get(16..).and_then(|b| b.first_chunk::<16>()))
    else {
        return Err(malformed(kind, "a hello without its ids"));
    };
    let (session, boot) = (u128::from_le_bytes(*session), u128::from_le_bytes(*boot));
    let node = text(kind, body[HELLO_FIXED..].to_vec())?;
    Ok(Hello { node, boot, class, session })
}

fn content(kind: Kind, encoding: u8, body: Vec<u8>) -> Result<Content, FrameError> {
    match encoding {
        DATA => Ok(Content::Data(body)),
        ZERO => bodiless(kind, &body).map(|()| Content::Zero),
        _ => Err(malformed(kind, "an unknown encoding")),
    }
}

fn answer(status: u8, encoding: u8, body: Vec<u8>) -> Result<Answer, FrameError> {
    let kind = Kind::Fetched;
    match status {
        0 => content(kind, encoding, body).map(Answer::Blocks),
        1 => bodiless(kind, &body).map(|()| Answer::Refused),
        2 => bodiless(kind, &body).map(|()| Answer::Failed),
        _ => Err(malformed(kind, "an unknown status")),
    }
}

fn change(encoding: u8, body: Vec<u8>) -> Result<Change, FrameError> {
    let kind = Kind::Mirror;
    match encoding {
        DATA => Ok(Change::Data(body)),
        ZERO => bodiless(kind, &body).map(|()| Change::Zero),
        DISCARD => bodiless(kind, &body).map(|()| Change::Discard),
        _ => Err(malformed(kind, "an unknown encoding")),
    }
}

fn settlement(code: u8) -> Result<Settlement, FrameError> {
    match code {
        0 => Ok(Settlement::Done),
        1 => Ok(Settlement::Needless),
        2 => Ok(Settlement::Failed),
        3 => Ok(Settlement::Stale),
        _ => Err(malformed(Kind::PushAck, "an unknown settlement")),
    }
}

fn touches(count: u32, body: &[u8]) -> Result<Vec<Touch>, FrameError> {
    let kind = Kind::Accesses;
    let (records, rest) = body.as_chunks::<TOUCH_LEN>();
    ensure(rest.is_empty() && records.len() == count as usize, kind, "not as many accesses as it says")?;
    records.iter().map(touch).collect()
}

fn touch(record: &[u8; TOUCH_LEN]) -> Result<Touch, FrameError> {
    let kind = Kind::Accesses;
    let [at, start] = [&record[0..8], &record[8..16]]
        .map(|field| field.iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte)));
    let blocks = u32::from_le_bytes([record[16], record[17], record[18], record[19]]);
    let op = match record[20] {
        0 => Op::Read,
        1 => Op::Write,
        2 => Op::Discard,
        _ => return Err(malformed(kind, "an unknown operation")),
    };
    let stalled = flag(kind, record[21])?;
    ensure(record[22..] == [0, 0], kind, "padding that is not zero")?;
    Ok(Touch { at: Instant::from_nanos(at), extent: Extent::new(start, u64::from(blocks)), op, stalled })
}

fn is_packed(encoding: u8) -> Result<bool, FrameError> {
    match encoding {
        DATA => Ok(false),
        PACKED => Ok(true),
        _ => Err(malformed(Kind::Pages, "an unknown encoding")),
    }
}

fn marks(body: &[u8]) -> Result<Vec<Mark>, FrameError> {
    let (marks, rest) = body.as_chunks::<MARK_LEN>();
    ensure(rest.is_empty(), Kind::Seal, "a mark that is cut off")?;
    Ok(marks.iter().map(mark).collect())
}

fn mark(&[s0, s1, s2, s3, ref seq @ ..]: &[u8; MARK_LEN]) -> Mark {
    Mark { stream: Stream(u32::from_le_bytes([s0, s1, s2, s3])), seq: u64::from_le_bytes(*seq) }
}

fn step(header: &Header) -> Step {
    match header.kind {
        Kind::Prepare => Step::Prepare,
        Kind::Prepared => Step::Prepared,
        Kind::Commit => Step::Commit { lacking: header.at, check: header.seq },
        Kind::Committed => Step::Committed,
        Kind::Abort => Step::Abort,
        _ => Step::Aborted,
    }
}

fn hashes(count: u32, body: &[u8]) -> Result<Vec<[u8; 32]>, FrameError> {
    let (hashes, rest) = body.as_chunks::<32>();
    let right = rest.is_empty() && hashes.len() == count as usize && hashes.len() <= MAX_HASHES;
    ensure(right, Kind::Hashes, "not as many hashes as it says")?;
    Ok(hashes.to_vec())
}

fn flag(kind: Kind, code: u8) -> Result<bool, FrameError> {
    ensure(code < 2, kind, "a flag that is neither 0 nor 1")?;
    Ok(code == 1)
}

fn bodiless(kind: Kind, body: &[u8]) -> Result<(), FrameError> {
    ensure(body.is_empty(), kind, "a body where none belongs")
}

fn text(kind: Kind, bytes: Vec<u8>) -> Result<String, FrameError> {
    rules::ensure(bytes.len() <= kind.max_body(), kind, "text that is too long")?;
    String::from_utf8(bytes).map_err(|_| malformed(kind, "text that is not UTF-8"))
}
