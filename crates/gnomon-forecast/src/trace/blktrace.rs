//! What `blktrace` writes: records of 48 bytes, each followed by as many bytes more as it says. Requests count when they
//! are queued. Files of several processors may be one after the other: requests are put in the order of their times.
//!
//! Source: Linux, include/uapi/linux/blktrace_api.h: `struct blk_io_trace`, magic 0x65617407 for version 7.

use gnomon_terms::{Access, Op};

use super::{TraceError, request};

/// Magic and version, as the writer's processor had them in memory.
const MAGIC: u32 = 0x6561_7407;
const RECORD: usize = 48;
/// The low half of the action: what happened. 1: a request was queued.
const QUEUED: u32 = 1;
/// Bits of the high half: what it was.
const READ: u32 = 1 << 16;
const WRITE: u32 = 1 << 17;
const NOTIFY: u32 = 1 << 26;
const DISCARD: u32 = 1 << 29;

/// All requests of a file.
pub(super) fn decode(bytes: &[u8]) -> Result<Vec<Access>, TraceError> {
    let (mut accesses, mut rest, mut number, mut device) = (Vec::new(), bytes, 0, None);
    while !rest.is_empty() {
        number += 1;
        let error = |what| TraceError::Record { record: number, what };
        let (record, after) = rest.split_first_chunk::<RECORD>().ok_or(TraceError::CutOff(rest.len()))?;
        let record = Record::read(record).ok_or_else(|| error("no blktrace record of version 7"))?;
        rest = after.get(record.more..).ok_or(TraceError::CutOff(rest.len()))?;
        if let Some(op) = record.op() {
            if *device.get_or_insert(record.device) != record.device {
                return Err(error("a second device; trace one at a time"));
            }
            let offset = record.sector.checked_mul(512).ok_or_else(|| error("an address beyond 16 TiB"))?;
            accesses.push(request(record.time / 1000, op, offset, record.bytes).map_err(error)?);
        }
    }
    accesses.sort_by_key(|access| access.at);
    Ok(accesses)
}

struct Record {
    time: u64,
    sector: u64,
    bytes: u64,
    action: u32,
    device: u32,
    /// Bytes that follow.
    more: usize,
}

impl Record {
    /// In either byte order, which the magic tells.
    fn read(bytes: &[u8; RECORD]) -> Option<Record> {
        let [m0, m1, m2, m3, ..] = *bytes;
        let swapped = match (u32::from_le_bytes([m0, m1, m2, m3]), u32::from_be_bytes([m0, m1, m2, m3])) {
            (MAGIC, _) => false,
            (_, MAGIC) => true,
            _ => return None,
        };
        let word = |from: usize, len: usize| {
            let part = &bytes[from..from + len];
            let add = |sum: u64, byte: &u8| sum << 8 | u64::from(*byte);
            if swapped { part.iter().fold(0, add) } else { part.iter().rev().fold(0, add) }
        };
        Some(Record {
            time: word(8, 8),
            sector: word(16, 8),
            bytes: word(24, 4),
            action: word(28, 4) as u32,
            device: word(36, 4) as u32,
            more: word(46, 2) as usize,
        })
    }

    /// What was asked for; nothing for other events, flushes and messages.
    fn op(&self) -> Option<Op> {
        if self.action & 0xffff != QUEUED || self.action & NOTIFY != 0 || self.bytes == 0 {
            return None;
        }
        match self.action {
            action if action & DISCARD != 0 => Some(Op::Discard),
            action if action & WRITE != 0 => Some(Op::Write),
            action if action & READ != 0 => Some(Op::Read),
            _ => None,
        }
    }
}
