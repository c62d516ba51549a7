//! Readahead over many streams: the reactive predictor for reads that go through an extent in order.
//!
//! ```text
//!   read at `next` ──► run grows, window doubles (64 KiB … 1 MiB) ──► chances for what the window adds
//!   read elsewhere ──► the stream that rested longest starts anew here, without a forecast
//! ```

use gnomon_terms::{Access, Extent, Instant, Op};
use std::time::Duration;

use crate::predictor::DEFAULT_HORIZON;
use crate::{BlockMap, Chance, Geometry, Predictor, UnitIndex};

/// Streams told apart. A guest with more sequential readers than this is reading at random as far as we can see.
const STREAMS: usize = 64;
/// The window never exceeds 1 MiB, counted in blocks: at 1 Gbit/s that is 8 ms of link.
const MAX_WINDOW: u64 = 256;
/// A read may skip this many blocks (64 KiB) or go back as many and still belong to the stream: requests of one
/// reader overtake each other in a queue.
const SLACK: u64 = 16;

/// One reader that goes through an extent.
#[derive(Clone, Copy, Debug, Default)]
struct Stream {
    /// The block after the last one read.
    next: u64,
    /// Reads that continued the stream, saturating.
    run: u32,
    /// Blocks to look ahead.
    window: u64,
    /// The block up to which chances were already given.
    told: u64,
    /// When it last moved, in accesses.
    used: u64,
}

/// What the readahead expects after a read: `units` ahead of a stream that was continued `run` times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ahead {
    /// The blocks the window adds.
    pub extent: Extent,
    /// How often the stream was continued.
    pub run: u32,
}

/// The streams of one resource, without an opinion on how good they are.
#[derive(Clone, Debug)]
pub struct Streams {
    streams: [Stream; STREAMS],
    accesses: u64,
    /// Whether the last read continued one.
    goes_on: bool,
}

impl Default for Streams {
    fn default() -> Streams {
        let streams = [Stream { next: u64::MAX / 2, ..Stream::default() }; STREAMS];
        Streams { streams, accesses: 0, goes_on: false }
    }
}

impl Streams {
    /// Notes a read; what it makes one expect, if it continues a stream.
    pub fn read(&mut self, extent: Extent) -> Option<Ahead> {
        self.accesses += 1;
        let (start, end) = (extent.start.0, extent.start.0.saturating_add(extent.len.0));
        let found = self.streams.iter_mut().find(|s| start.abs_diff(s.next) <= SLACK);
        self.goes_on = found.is_some();
        let Some(stream) = found else {
            self.start(end);
            return None;
        };
        stream.used = self.accesses;
        stream.next = stream.next.max(end);
        stream.run = stream.run.saturating_add(1);
        stream.window = (stream.window * 2).min(MAX_WINDOW);
        let from = stream.told.max(stream.next);
        let to = stream.next.saturating_add(stream.window);
        // Telling at least half a window at once keeps the number of moves, and our cost, down.
        if to < from.saturating_add(stream.window / 2) {
            return None;
        }
        stream.told = to;
        Some(Ahead { extent: Extent::new(from, to - from), run: stream.run })
    }

    /// Whether the last read continued a stream.
    pub fn goes_on(&self) -> bool {
        self.goes_on
    }

    fn start(&mut self, next: u64) {
        let used = self.accesses;
        let oldest = self.streams.iter_mut().min_by_key(|s| s.used).expect("there are 64 streams");
        *oldest = Stream { next, run: 0, window: SLACK, told: next, used };
    }
}

/// Expects each stream to go on.
#[derive(Clone, Debug)]
pub struct ReadaheadPredictor {
    geometry: Geometry,
    streams: Streams,
    horizon: Duration,
    ahead: Option<Ahead>,
}

impl ReadaheadPredictor {
    /// For a resource cut as `geometry` says.
    pub fn new(geometry: Geometry) -> ReadaheadPredictor {
        ReadaheadPredictor { geometry, streams: Streams::default(), horizon: DEFAULT_HORIZON, ahead: None }
    }
}

impl Predictor for ReadaheadPredictor {
    fn name(&self) -> &'static str {
        "readahead"
    }

    fn observe(&mut self, access: &Access) {
        self.ahead = if access.op == Op::Read { self.streams.read(access.extent) } else { None };
    }

    fn rank(&mut self, _: Instant, _: &BlockMap, _: &mut Vec<UnitIndex>) {}

    fn react(&mut self, access: &Access, out: &mut Vec<Chance>) {
        let Some(ahead) = self.ahead.take() else { return };
        let due = access.at.after(self.horizon);
        // A stream that went on n times goes on once more with n of n+1 (Laplace's rule without its prior).
        let probability = ahead.run as f32 / (ahead.run as f32 + 1.0);
        out.extend(self.geometry.units_of(ahead.extent).map(|unit| Chance { unit, probability, due }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gnomon_terms::{BlockCount, ResourceId};

    fn units_after(starts: &[u64]) -> Vec<u32> {
        let mut predictor = ReadaheadPredictor::new(Geometry::new(BlockCount(10_000), 16).unwrap());
        let mut out = Vec::new();
        for start in starts {
            let extent = Extent::new(*start, 16);
            let access = Access { at: Instant::ORIGIN, resource: ResourceId(1), extent, op: Op::Read };
            predictor.observe(&access);
            predictor.react(&access, &mut out);
        }
        out.iter().map(|c| c.unit.0).collect()
    }

    #[test]
    fn a_stream_is_seen_at_its_second_read_and_doubles() {
        assert_eq!(units_after(&[0]), [0; 0]);
        assert_eq!(units_after(&[0, 16]), [2, 3]);
        assert_eq!(units_after(&[0, 16, 32]), [2, 3, 4, 5, 6]);
    }

    #[test]
    fn streams_do_not_disturb_each_other() {
        assert_eq!(units_after(&[0, 4000, 16, 4016]), [2, 3, 252, 253]);
    }

    #[test]
    fn nothing_is_expected_past_the_end() {
        assert_eq!(units_after(&[9968, 9984]), [0; 0]);
        assert_eq!(units_after(&[u64::MAX - 40, u64::MAX - 24]), [0; 0]);
    }
}
