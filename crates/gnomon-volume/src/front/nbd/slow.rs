//! Requests that may wait, carried out by a helper thread.

use super::{
    connection::{Link, PIECE, put_head},
    options::{BASE_ALLOCATION_ID, GNOMON_SHADOW_ID},
    reply::{conclusion, is_zero},
    wire::{self, Command, Request, request_flag, status_flag},
};
use crate::{
    disk::Segment,
    serve::{ServeError, Session, Span},
};

/// Block status looks at this much of the disk at once, so that a checkered disk cannot make it hold much memory.
const WINDOW: u64 = 256 << 20;

/// Extents told in one reply; the client asks again for the rest, as the protocol has it.
const EXTENTS: usize = 8192;

/// Everything but reads and writes.
pub(super) fn carry_out(link: &Link, request: Request, span: Span) {
    let session = &link.session;
    let durable = |done: Result<(), ServeError>| match request.has(request_flag::FUA) {
        true => done.and_then(|()| session.flush()),
        false => done,
    };
    let result = match request.command {
        Command::Flush => session.flush(),
        Command::Trim => durable(session.discard(span)),
        Command::WriteZeroes => durable(session.write_zeroes(span, !request.has(request_flag::NO_HOLE))),
        Command::Cache => session.prefetch(span, &mut vec![0; (span.len() as usize).min(PIECE)]),
        Command::BlockStatus => match block_status(link, &request, span) {
            Ok(reply) => return link.send(&reply),
            Err(error) => Err(error),
        },
        Command::Read | Command::Write | Command::Disconnect | Command::Unknown(_) => {
            unreachable!("the connection's thread serves {:?} by itself", request.command)
        }
    };
    link.send(&conclusion(link.terms, &request, result));
}

/// A write that waits: for another host or for durability.
pub(super) fn write(link: &Link, request: Request, span: Span, data: &[u8]) {
    let mut result = link.session.write(span, data);
    if request.has(request_flag::FUA) {
        result = result.and_then(|()| link.session.flush());
    }
    link.send(&conclusion(link.terms, &request, result));
}

/// A read whose reply has to be in one part.
pub(super) fn read_whole(link: &Link, request: Request, span: Span) {
    let head = if link.terms.structured { wire::DATA_CHUNK_LEN } else { wire::SIMPLE_REPLY_LEN };
    let mut reply = vec![0; head + span.len() as usize];
    match link.session.read(span, &mut reply[head..]) {
        Ok(()) => put_head(&mut reply[..head], request.cookie, span, true),
        Err(error) => reply = conclusion(link.terms, &request, Err(error)),
    }
    link.send(&reply);
}

/// A read whose reply may be sent in chunks; `span` is what is left of it.
pub(super) fn read_in_pieces(link: &Link, request: Request, span: Span) {
    const HEAD: usize = wire::DATA_CHUNK_LEN;
    let mut reply = vec![0; HEAD + (span.len() as usize).min(PIECE)];
    let mut done = 0;
    while done < span.len() {
        let piece = span.part(done, PIECE as u64);
        let bytes = &mut reply[..HEAD + piece.len() as usize];
        done += piece.len();
        let last = done == span.len();
        if let Err(error) = link.session.read(piece, &mut bytes[HEAD..]) {
            return link.send(&conclusion(link.terms, &request, Err(error)));
        }
        if is_zero(&bytes[HEAD..]) {
            link.send(&wire::hole_chunk(request.cookie, piece.at(), piece.len() as u32, last));
        } else {
            put_head(&mut bytes[..HEAD], request.cookie, piece, last);
            link.send(bytes);
        }
    }
}

fn block_status(link: &Link, request: &Request, span: Span) -> Result<Vec<u8>, ServeError> {
    let contexts = link.terms.contexts;
    let segments = look(&link.session, span, request.has(request_flag::REQ_ONE))?;
    let mut reply = Vec::new();
    if contexts.base_allocation {
        let extents = extents(&segments, allocation, request.has(request_flag::REQ_ONE));
        reply.extend(wire::status_chunk(request.cookie, BASE_ALLOCATION_ID, &extents, !contexts.gnomon_shadow));
    }
    if contexts.gnomon_shadow {
        let extents = extents(&segments, shadow, request.has(request_flag::REQ_ONE));
        reply.extend(wire::status_chunk(request.cookie, GNOMON_SHADOW_ID, &extents, true));
    }
    Ok(reply)
}

/// What the disk tells of the span, window by window until there is enough.
fn look(session: &Session, span: Span, one: bool) -> Result<Vec<Segment>, ServeError> {
    let mut segments = Vec::new();
    let mut done = 0;
    while done < span.len() && segments.len() < EXTENTS {
        let window = span.part(done, WINDOW);
        segments.extend(session.segments(window)?);
        done += window.len();
        if one && segments.len() > 1 {
            break;
        }
    }
    Ok(segments)
}

fn allocation(segment: &Segment) -> u32 {
    let flag = |set, flag| if set { flag } else { 0 };
    flag(segment.hole, status_flag::HOLE) | flag(segment.zero, status_flag::ZERO)
}

fn shadow(segment: &Segment) -> u32 {
    if segment.local { status_flag::LOCAL } else { 0 }
}

/// Lengths and flags, with equal neighbours merged.
fn extents(segments: &[Segment], flags: fn(&Segment) -> u32, one: bool) -> Vec<(u32, u32)> {
    let mut extents: Vec<(u32, u32)> = Vec::new();
    for segment in segments {
        let (len, flags) = (u32::try_from(segment.len).unwrap_or(u32::MAX), flags(segment));
        let told = extents.len();
        match extents.last_mut() {
            Some(last) if last.1 == flags && last.0.checked_add(len).is_some() => last.0 += len,
            Some(_) if one || told == EXTENTS => break,
            _ => extents.push((len, flags)),
        }
    }
    extents
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_merge_by_what_a_context_tells() {
        let segment = |len, hole, local| Segment { len, hole, zero: hole, local };
        let segments = [segment(1, true, true), segment(2, true, false), segment(4, false, false)];
        assert_eq!(extents(&segments, allocation, false), [(3, 3), (4, 0)]);
        assert_eq!(extents(&segments, shadow, false), [(1, 1), (6, 0)]);
        assert_eq!(extents(&segments, allocation, true), [(3, 3)]);
        assert_eq!(extents(&[], allocation, true), []);
    }

    #[test]
    fn a_checkered_disk_is_told_in_parts() {
        let segments: Vec<Segment> =
            (0..3 * EXTENTS as u64).map(|n| Segment { len: 1, hole: n % 2 == 0, zero: false, local: true }).collect();
        assert_eq!(extents(&segments, allocation, false).len(), EXTENTS);
        assert_eq!(extents(&segments, shadow, false), [(3 * EXTENTS as u32, 1)]);
    }
}
