//! What `blkparse` prints of a block device's events, in its default form. Requests count when they are queued (`Q`).
//!
//! ```text
//!   8,0    3        1     0.000000000   697  Q   W 223490 + 8 [kjournald]
//!   device cpu sequence  seconds       pid  what how sector + sectors
//! ```
//! Other events, and the summary at the end, are passed over. One device at a time: addresses of two would be mixed up.
//!
//! Source: blkparse(1), "Output description" and the letters of RWBS.

use gnomon_terms::{Access, Op};

use super::{LineError, request};

const LINE: &str = "8,0 cpu sequence seconds.nanoseconds pid Q RWBS sector + sectors [process]";

/// Reads lines of one device.
#[derive(Debug, Default)]
pub(super) struct Blkparse {
    device: Option<String>,
}

impl Blkparse {
    pub(super) fn line(&mut self, line: &str) -> Result<Option<Access>, LineError> {
        let fields: Vec<&str> = line.split_ascii_whitespace().take(10).collect();
        let [device, _, _, time, _, "Q", rwbs, rest @ ..] = &fields[..] else { return Ok(None) };
        if !device.split(',').all(|number| number.parse::<u32>().is_ok()) {
            return Ok(None);
        }
        // A flush has no extent.
        let [sector, "+", sectors] = rest else { return Ok(None) };
        if self.device.get_or_insert_with(|| (*device).to_owned()) != device {
            return Err(("a second device; print one at a time (blkparse -i)", LINE));
        }
        let op = match *rwbs {
            kind if kind.contains('D') => Op::Discard,
            kind if kind.contains('W') => Op::Write,
            kind if kind.contains('R') => Op::Read,
            _ => return Ok(None),
        };
        let bytes = |text: &str| text.parse::<u64>().ok().and_then(|n| n.checked_mul(512)).ok_or(("no sector", LINE));
        let time = micros(time).ok_or(("no time", LINE))?;
        match bytes(sectors)? {
            0 => Ok(None),
            length => request(time, op, bytes(sector)?, length).map(Some).map_err(|what| (what, LINE)),
        }
    }
}

/// `seconds.nanoseconds` in microseconds.
fn micros(text: &str) -> Option<u64> {
    let (seconds, nanos) = text.split_once('.')?;
    let nanos: u64 = nanos.parse().ok().filter(|_| nanos.len() == 9)?;
    seconds.parse::<u64>().ok()?.checked_mul(1_000_000)?.checked_add(nanos / 1000)
}
