//! The guest's writes on their way back to the source, so that it stays a whole volume until it is released.
//!
//! Writes are offered as extents, in the order they were made, and sent in that order on one connection. What is
//! sent is the content of now, so writes to the same blocks in quick succession are sent once. A flush waits for
//! an acknowledged [`Message::MirrorFlush`] that followed everything offered before it.
//!
//! The truth about what is owed is the outbox; the queue here only says in which order to send. It may be lost, and
//! is rebuilt from the outbox at each new session.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    time::{Duration, Instant as Clock},
};

use gnomon_proto::frame::{Change, Content, Message};
use gnomon_terms::{BlockCount, Epoch, Extent};
use parking_lot::{Condvar, Mutex};

use super::ShadowParts;
use crate::{
    disk::{
        Disk,
        layered::{FETCH_BLOCKS, FlushTicket},
    },
    mover::read_content,
    outbox::Outbox,
    stripes::{Stripes, split},
};

/// Extents offered and not yet sent. Past it the queue is dropped and rebuilt from the outbox: it then is in address
/// order, which costs nothing but locality. 64 Ki × 16 B = 1 MiB.
const QUEUE_LIMIT: usize = 65_536;

/// Sent and not yet acknowledged. 64 × 1 MiB would be too much for slow links, but mirrored writes are mostly a few
/// KiB; the bound keeps the acknowledgement's overlap check short.
const IN_FLIGHT_LIMIT: usize = 64;

/// Mirroring of one volume. Lock order: stripes before the queue.
#[derive(Default)]
pub(super) struct Mirror {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    items: VecDeque<Item>,
    in_flight: BTreeMap<u64, Flight>,
    next_seq: u64,
    next_ticket: u64,
    /// Flushes that nobody has answered yet.
    flushing: HashSet<u64>,
    attached: bool,
    detached_since: Option<Clock>,
    overflowed: bool,
    /// The source could not store something: it is no whole volume until a new session has sent it again.
    broken: bool,
    stopped: bool,
}

enum Item {
    Write(Extent),
    Flush(u64),
}

enum Flight {
    Write(Extent),
    Flush(u64),
}

impl Mirror {
    /// The guest wrote `extent`.
    pub fn offer(&self, extent: Extent) {
        let mut queue = self.queue.lock();
        if !queue.attached {
            return;
        }
        if queue.items.len() >= QUEUE_LIMIT {
            queue.overflowed = true;
            return;
        }
        queue.items.push_back(Item::Write(extent));
        self.changed.notify_all();
    }

    /// Asks for a flush of everything offered before.
    pub fn ask_flush(&self) -> FlushTicket {
        let mut queue = self.queue.lock();
        let ticket = queue.next_ticket;
        queue.next_ticket += 1;
        queue.flushing.insert(ticket);
        queue.items.push_back(Item::Flush(ticket));
        self.changed.notify_all();
        FlushTicket(ticket)
    }

    /// Waits until the flush is answered, or the peer has been gone longer than `patience`.
    pub fn wait_flush(&self, ticket: FlushTicket, patience: Duration) {
        let mut queue = self.queue.lock();
        while queue.flushing.contains(&ticket.0) && !queue.stopped {
            match queue.detached_since {
                _ if queue.attached => self.changed.wait(&mut queue),
                Some(since) if since.elapsed() < patience => {
                    self.changed.wait_until(&mut queue, since + patience);
                }
                _ => break,
            }
        }
        queue.flushing.remove(&ticket.0);
    }

    /// Forgets what was in flight in an old session and lines up everything owed. Flushes that are waited for come
    /// last, so they cover all of it.
    pub fn restart(&self, owed: Vec<Extent>) {
        let mut queue = self.queue.lock();
        queue.in_flight.clear();
        (queue.overflowed, queue.broken) = (false, false);
        queue.items = owed.into_iter().map(Item::Write).collect();
        let waiting: Vec<u64> = queue.flushing.iter().copied().collect();
        queue.items.extend(waiting.into_iter().map(Item::Flush));
    }

    /// A session has begun.
    pub fn attach(&self) {
        let mut queue = self.queue.lock();
        queue.attached = true;
        queue.detached_since = None;
        self.changed.notify_all();
    }

    /// The session has ended.
    pub fn detach(&self) {
        let mut queue = self.queue.lock();
        queue.attached = false;
        queue.detached_since.get_or_insert_with(Clock::now);
        self.changed.notify_all();
    }

    /// Whoever waits for a flush is let go.
    pub fn stop(&self) {
        self.queue.lock().stopped = true;
        self.changed.notify_all();
    }

    /// Whether flushes no longer mean that the source is whole: it has been gone for long, or could not store.
    pub fn is_degraded(&self, patience: Duration) -> bool {
        let queue = self.queue.lock();
        queue.broken || !queue.attached && queue.detached_since.is_some_and(|since| since.elapsed() >= patience)
    }

    /// What to send next; waits for at most `patience` for something to do. `None` when stopped.
    pub fn next(&self, parts: &ShadowParts, epoch: impl Fn() -> Epoch, patience: Duration) -> Option<Vec<Message>> {
        let item = {
            let mut queue = self.queue.lock();
            if !queue.is_ready() && !queue.stopped {
                self.changed.wait_for(&mut queue, patience);
            }
            if queue.stopped {
                return None;
            }
            if queue.overflowed && queue.items.is_empty() {
                queue.overflowed = false;
                queue.items = parts.outbox.owed_runs(parts.valid.whole()).into_iter().map(Item::Write).collect();
            }
            if !queue.is_ready() {
                return Some(Vec::new());
            }
            queue.items.pop_front()
        };
        match item {
            None => Some(Vec::new()),
            Some(Item::Flush(ticket)) => Some(vec![self.flush_message(parts, ticket)]),
            Some(Item::Write(extent)) => Some(self.write_messages(parts, epoch(), extent)),
        }
    }

    fn flush_message(&self, parts: &ShadowParts, ticket: u64) -> Message {
        let mut queue = self.queue.lock();
        let seq = queue.number(Flight::Flush(ticket));
        Message::MirrorFlush { stream: parts.stream, seq }
    }

    /// Messages for what is still owed of `extent`: what was sent meanwhile with a neighbour is not sent again.
    fn write_messages(&self, parts: &ShadowParts, epoch: Epoch, extent: Extent) -> Vec<Message> {
        let mut messages = Vec::new();
        for run in parts.outbox.owed_runs(extent).into_iter().flat_map(split) {
            debug_assert!(run.len.0 <= FETCH_BLOCKS, "a stripe fits a frame");
            let seq = {
                let _guard = parts.stripes.lock(run);
                parts.outbox.take(run);
                self.queue.lock().number(Flight::Write(run))
            };
            let at = run.start.byte();
            let len = run.bytes().0.min(parts.local.size().0 - at) as u32;
            let change = match read_content(&*parts.local, run) {
                Ok(Content::Data(data)) => Change::Data(data),
                Ok(Content::Zero) => Change::Zero,
                Err(error) => {
                    // Still owed: the next session tries again, and a flush here fails by itself.
                    tracing::error!(%error, "what the guest wrote cannot be read back");
                    self.queue.lock().in_flight.remove(&seq);
                    continue;
                }
            };
            messages.push(Message::Mirror { stream: parts.stream, epoch, seq, at, len, change });
        }
        messages
    }

    /// The source has everything up to `seq`; a flush among it counts when the answer says `durable`.
    pub fn acknowledge(&self, seq: u64, durable: bool, ok: bool, outbox: &Outbox, stripes: &Stripes) {
        let done = {
            let mut queue = self.queue.lock();
            let later = queue.in_flight.split_off(&seq.saturating_add(1));
            std::mem::replace(&mut queue.in_flight, later)
        };
        if ok {
            for piece in done.values().filter_map(Flight::extent).flat_map(split) {
                // Under the stripe's lock nothing of it is taken anew, so what is in flight now is all there is.
                let _guard = stripes.lock(piece);
                let again: Vec<Extent> = self.queue.lock().in_flight.values().filter_map(Flight::extent).collect();
                for run in without(piece, &again) {
                    outbox.acknowledge(run);
                }
            }
        }
        let mut queue = self.queue.lock();
        queue.broken |= !ok;
        for flight in done.values() {
            if let Flight::Flush(ticket) = flight
                && (durable || !ok)
            {
                queue.flushing.remove(ticket);
            }
        }
        self.changed.notify_all();
    }
}

impl Queue {
    fn is_ready(&self) -> bool {
        self.attached && self.in_flight.len() < IN_FLIGHT_LIMIT && (!self.items.is_empty() || self.overflowed)
    }

    fn number(&mut self, flight: Flight) -> u64 {
        self.next_seq += 1;
        self.in_flight.insert(self.next_seq, flight);
        self.next_seq
    }
}

impl Flight {
    fn extent(&self) -> Option<Extent> {
        match self {
            Flight::Write(extent) => Some(*extent),
            Flight::Flush(_) => None,
        }
    }
}

/// The parts of `extent` that none of `others` touches: newer content of those is still in flight.
fn without(extent: Extent, others: &[Extent]) -> Vec<Extent> {
    let mut parts = vec![extent];
    for other in others {
        parts = parts.into_iter().flat_map(|part| subtract(part, *other)).collect();
    }
    parts
}

fn subtract(part: Extent, other: Extent) -> Vec<Extent> {
    let common = part.overlap(other);
    if common.is_empty() {
        return vec![part];
    }
    let before = Extent { start: part.start, len: BlockCount(common.start.0 - part.start.0) };
    let after = Extent { start: common.end(), len: BlockCount(part.end().0 - common.end().0) };
    [before, after].into_iter().filter(|piece| !piece.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_flight_again_is_not_acknowledged() {
        let table: [(&[Extent], &[Extent]); 4] = [
            (&[], &[Extent::new(10, 10)]),
            (&[Extent::new(12, 2)], &[Extent::new(10, 2), Extent::new(14, 6)]),
            (&[Extent::new(0, 12), Extent::new(18, 9)], &[Extent::new(12, 6)]),
            (&[Extent::new(0, 100)], &[]),
        ];
        for (others, expect) in table {
            assert_eq!(without(Extent::new(10, 10), others), expect, "{others:?}");
        }
    }
}
