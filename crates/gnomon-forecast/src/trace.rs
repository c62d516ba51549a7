//! Trace files: what guests did, written down.
//!
//! | format | what it is | clock | reads and writes told apart |
//! |---|---|---|---|
//! | [`Format::Csv`] | our own: `t_us,op,offset,length`, one line a request, `op` one of `R W Z D F` | yes | yes |
//! | [`Format::VscsiStats`] | VMware vscsiStats version 1: records of 32 bytes, little endian | yes | yes |
//! | [`Format::Arc`] | the ARC paper's `.lis`: `first_block blocks ignored sequence`, 512-byte blocks | no | no: all reads |
//! | [`Format::Msr`] | Microsoft Research's CSV: seven fields | yes | yes |
//! | [`Format::Blkparse`] | what blkparse prints | yes | yes |
//! | [`Format::Blktrace`] | what blktrace writes, version 7 | yes | yes |
//! | [`Format::Iolog`] | fio's iolog, versions 2 and 3 | version 3, or by waits | yes |
//! | [`Format::Nbdkit`] | the log of nbdkit's log filter | yes | yes |
//!
//! Decoders take bytes nobody vouches for: every field is bounded, nothing is allocated by a length that was read,
//! and an error names the line or record. Compression is the caller's business.
//!
//! Source: vscsiStats record {sequence u32, length u32, segments u32, command u16, version u16, block u64 of 512
//! bytes, time u64 in µs}, as published with SHARDS (FAST '15); `.lis` as published with ARC (FAST '03).

mod blkparse;
mod blktrace;
mod iolog;
mod msr;
mod nbdkit;

use std::fmt::Write;

use gnomon_terms::{Access, BLOCK_SIZE, ErrorKind, Extent, Instant, Op, ResourceId};

/// How far into an address space a request may reach: 16 TiB. Beyond it a file is taken to be damaged, and a reader
/// that sizes its maps by the largest address stays within bounds (two bits a block: 1 GiB).
pub const MAX_ADDRESS: u64 = 1 << 44;
/// The longest request believed: 1 GiB, and a block more for one that begins within a block; a discard may be that
/// long.
pub const MAX_REQUEST: u64 = 1 << 30;
/// What a request of [`MAX_REQUEST`] may touch.
const MAX_TOUCHED: u64 = MAX_REQUEST + BLOCK_SIZE;
/// The latest time that is told in nanoseconds: 584 years. Later ones are damage.
const LATEST_US: u64 = u64::MAX / 1000;
/// Time between two requests of a trace that has no clock: 1 ms, a disk of a thousand requests a second.
pub const STEP_WITHOUT_CLOCK_US: u64 = 1_000;

/// How a trace file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `t_us,op,offset,length`.
    Csv,
    /// vscsiStats version 1.
    VscsiStats,
    /// The ARC paper's list.
    Arc,
    /// The CSV of Microsoft Research, Cambridge.
    Msr,
    /// What blkparse prints.
    Blkparse,
    /// What blktrace writes.
    Blktrace,
    /// fio's iolog.
    Iolog,
    /// The log of nbdkit's log filter.
    Nbdkit,
}

/// Why a trace could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TraceError {
    /// A line is not what the format says.
    #[error("line {line}: {what}; expected `{expected}`")]
    Line {
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        what: &'static str,
        /// What a line looks like.
        expected: &'static str,
    },
    /// A record is not what the format says.
    #[error("record {record}: {what}; is the file of the format that its name, or --format, says?")]
    Record {
        /// Counted from 1.
        record: usize,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The file ends within a record.
    #[error("{0} bytes are left after the last whole record: the file was cut off; copy it again")]
    CutOff(usize),
    /// A text format holds bytes that are not text.
    #[error("byte {0} is not text: is the file compressed, or a vscsiStats file?")]
    NotText(usize),
}

impl TraceError {
    /// All of them: bytes that should be trustworthy are not.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Corrupt
    }
}

/// A decoded trace: requests in the order of the file, times from its first request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// What the guest did. `resource` is 0.
    pub accesses: Vec<Access>,
}

const CSV_LINE: &str = "t_us,op,offset,length";
const ARC_LINE: &str = "first_block blocks ignored sequence";

impl Format {
    /// Each format with the ending of its files, which is also its name.
    pub const ALL: [(Format, &'static str); 8] = [
        (Format::Csv, "csv"),
        (Format::VscsiStats, "vscsi"),
        (Format::Arc, "lis"),
        (Format::Msr, "msr"),
        (Format::Blkparse, "blkparse"),
        (Format::Blktrace, "blktrace"),
        (Format::Iolog, "iolog"),
        (Format::Nbdkit, "nbdkit"),
    ];

    /// The format of that name, in capitals or not.
    pub fn named(name: &str) -> Option<Format> {
        let known = Format::ALL.iter().find(|(_, ending)| name.eq_ignore_ascii_case(ending));
        known.map(|(format, _)| *format)
    }

    /// The format a file name ends in, `.zst` aside.
    pub fn of_name(name: &str) -> Option<Format> {
        let name = name.strip_suffix(".zst").unwrap_or(name);
        Format::named(name.rsplit_once('.')?.1)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        Format::ALL.iter().find(|(format, _)| *format == self).map_or("", |(_, ending)| ending)
    }
}

impl Trace {
    /// Reads a whole file. Flushes and commands that carry no data are left out. A CSV of seven fields is read as
    /// Microsoft Research's.
    pub fn decode(format: Format, bytes: &[u8]) -> Result<Trace, TraceError> {
        let (mut printed, mut logged) = (blkparse::Blkparse::default(), iolog::Iolog::default());
        let accesses = match format {
            Format::Csv if msr::is_one(bytes) => decode_lines(bytes, msr::line)?,
            Format::Csv => decode_lines(bytes, csv_line)?,
            Format::Arc => decode_lines(bytes, arc_line)?,
            Format::VscsiStats => decode_vscsi(bytes)?,
            Format::Msr => decode_lines(bytes, msr::line)?,
            Format::Blkparse => decode_lines(bytes, |_, line| printed.line(line))?,
            Format::Blktrace => blktrace::decode(bytes)?,
            Format::Iolog => decode_lines(bytes, |_, line| logged.line(line))?,
            Format::Nbdkit => decode_lines(bytes, nbdkit::line)?,
        };
        Ok(Trace { accesses: from_zero(accesses) })
    }

    /// The file in our own format. Lengths are whole blocks: what is kept of a request is the blocks it touched.
    pub fn encode(&self) -> String {
        let mut out = format!("{CSV_LINE}\n");
        self.accesses.iter().for_each(|access| encode_line(access, &mut out));
        out
    }
}

/// Appends `access` as one line of our own format, end of line included.
pub fn encode_line(access: &Access, out: &mut String) {
    let op = match access.op {
        Op::Read => 'R',
        Op::Write => 'W',
        Op::Discard => 'D',
    };
    let (time, extent) = (access.at.as_nanos() / 1000, access.extent);
    writeln!(out, "{time},{op},{},{}", extent.start.byte(), extent.bytes().0).expect("a String takes all text");
}

/// Times count from the first request, and never run backwards (two queues of a disk may log out of order).
fn from_zero(mut accesses: Vec<Access>) -> Vec<Access> {
    let Some(first) = accesses.first().map(|a| a.at) else { return accesses };
    let mut last = Instant::ORIGIN;
    for access in &mut accesses {
        last = last.max(Instant::ORIGIN.after(access.at.since(first)));
        access.at = last;
    }
    accesses
}

fn request(at_us: u64, op: Op, offset: u64, length: u64) -> Result<Access, &'static str> {
    const TOO_LONG: &str = "a request of more than 1 GiB";
    const TOO_FAR: &str = "an address beyond 16 TiB";
    const TOO_LATE: &str = "a time of more than 584 years";
    if at_us > LATEST_US {
        return Err(TOO_LATE);
    }
    if length > MAX_TOUCHED {
        return Err(TOO_LONG);
    }
    if offset >= MAX_ADDRESS {
        return Err(TOO_FAR);
    }
    // Judged by the blocks it touches, since those are what is kept and written again.
    let extent = Extent::touching(offset, length);
    match extent {
        _ if extent.bytes().0 > MAX_TOUCHED => Err(TOO_LONG),
        _ if extent.end().byte() > MAX_ADDRESS => Err(TOO_FAR),
        _ => Ok(Access { at: Instant::from_micros(at_us), resource: ResourceId(0), extent, op }),
    }
}

/// What is wrong with a line, and what one looks like.
type LineError = (&'static str, &'static str);

fn decode_lines(
    bytes: &[u8],
    mut decode: impl FnMut(usize, &str) -> Result<Option<Access>, LineError>,
) -> Result<Vec<Access>, TraceError> {
    let text = std::str::from_utf8(bytes).map_err(|error| TraceError::NotText(error.valid_up_to()))?;
    let mut accesses = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let error = |(what, expected)| TraceError::Line { line: index + 1, what, expected };
        accesses.extend(decode(index, line).map_err(error)?);
    }
    Ok(accesses)
}

fn csv_line(index: usize, line: &str) -> Result<Option<Access>, LineError> {
    if index == 0 && line == CSV_LINE {
        return Ok(None);
    }
    let mut fields = line.split(',');
    let [Some(time), Some(op), Some(offset), Some(length), None] = std::array::from_fn(|_| fields.next()) else {
        return Err(("not four fields", CSV_LINE));
    };
    let number = |text: &str| text.trim().parse::<u64>().map_err(|_| ("not a whole number", CSV_LINE));
    let (time, offset, length) = (number(time)?, number(offset)?, number(length)?);
    let op = match op.trim() {
        "R" => Op::Read,
        "W" => Op::Write,
        "D" | "Z" => Op::Discard,
        "F" => return Ok(None),
        _ => return Err(("an unknown op (R, W, Z, D or F)", CSV_LINE)),
    };
    if length == 0 {
        return Ok(None);
    }
    request(time, op, offset, length).map(Some).map_err(|what| (what, CSV_LINE))
}

fn arc_line(index: usize, line: &str) -> Result<Option<Access>, LineError> {
    let mut fields = line.split_ascii_whitespace().map(|text| text.parse::<u64>());
    let (Some(Ok(first)), Some(Ok(blocks))) = (fields.next(), fields.next()) else {
        return Err(("not two whole numbers at its start", ARC_LINE));
    };
    if blocks == 0 {
        return Ok(None);
    }
    let bytes = |count: u64| count.checked_mul(512).ok_or(("a number too large", ARC_LINE));
    let time = (index as u64).saturating_mul(STEP_WITHOUT_CLOCK_US);
    request(time, Op::Read, bytes(first)?, bytes(blocks)?).map(Some).map_err(|what| (what, ARC_LINE))
}

/// Bytes of a vscsiStats version 1 record.
const VSCSI_RECORD: usize = 32;

fn decode_vscsi(bytes: &[u8]) -> Result<Vec<Access>, TraceError> {
    let (records, rest) = bytes.as_chunks::<VSCSI_RECORD>();
    if !rest.is_empty() {
        return Err(TraceError::CutOff(rest.len()));
    }
    let mut accesses = Vec::new();
    for (index, record) in records.iter().enumerate() {
        let error = |what| TraceError::Record { record: index + 1, what };
        accesses.extend(vscsi_record(record).map_err(error)?);
    }
    Ok(accesses)
}

fn vscsi_record(record: &[u8; VSCSI_RECORD]) -> Result<Option<Access>, &'static str> {
    let [_, _, _, _, l0, l1, l2, l3, _, _, _, _, c0, c1, _, _, rest @ ..] = *record;
    let (block, time) = rest.split_at(8);
    let word = |bytes: &[u8]| bytes.iter().rev().fold(0u64, |word, byte| word << 8 | u64::from(*byte));
    let length = u64::from(u32::from_le_bytes([l0, l1, l2, l3]));
    // The SCSI READ and WRITE commands of 6, 10, 12 and 16 bytes, and UNMAP.
    let op = match u16::from_le_bytes([c0, c1]) {
        0x08 | 0x28 | 0xa8 | 0x88 => Op::Read,
        0x0a | 0x2a | 0xaa | 0x8a => Op::Write,
        0x42 => Op::Discard,
        command if command <= 0xff => return Ok(None),
        _ => return Err("not a SCSI command"),
    };
    if length == 0 {
        return Ok(None);
    }
    let offset = word(block).checked_mul(512).ok_or("an address beyond 16 TiB")?;
    request(word(time), op, offset, length).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn touched(trace: &Trace) -> Vec<(u64, u64, u64, Op)> {
        let row = |a: &Access| (a.at.as_nanos() / 1000, a.extent.start.0, a.extent.len.0, a.op);
        trace.accesses.iter().map(row).collect()
    }

    fn record(command: u16, block: u64, length: u32, time: u64) -> Vec<u8> {
        let mut bytes = vec![1, 0, 0, 0];
        bytes.extend(length.to_le_bytes());
        bytes.extend(1u32.to_le_bytes());
        bytes.extend(command.to_le_bytes());
        bytes.extend(1u16.to_le_bytes());
        bytes.extend(block.to_le_bytes());
        bytes.extend(time.to_le_bytes());
        bytes
    }

    #[test]
    fn our_own_format() {
        let text = "t_us,op,offset,length\n100,R,0,512\n150,F,0,0\n160,W,4096,8192\n# note\n170,Z,4095,2\n";
        let trace = Trace::decode(Format::Csv, text.as_bytes()).unwrap();
        let expected = [(0, 0, 1, Op::Read), (60, 1, 2, Op::Write), (70, 0, 2, Op::Discard)];
        assert_eq!(touched(&trace), expected);
    }

    #[test]
    fn lists_of_the_arc_paper() {
        let trace = Trace::decode(Format::Arc, b"16 8 0 0\n7 2 0 1\n").unwrap();
        assert_eq!(touched(&trace), [(0, 2, 1, Op::Read), (1000, 0, 2, Op::Read)]);
    }

    #[test]
    fn vscsi_records() {
        let bytes = [record(0x28, 8, 4096, 500), record(0x2a, 16, 512, 900), record(0x00, 0, 0, 901)].concat();
        let trace = Trace::decode(Format::VscsiStats, &bytes).unwrap();
        assert_eq!(touched(&trace), [(0, 1, 1, Op::Read), (400, 2, 1, Op::Write)]);
    }

    #[test]
    fn damage_is_named() {
        let csv = |text: &str| Trace::decode(Format::Csv, text.as_bytes()).unwrap_err().to_string();
        assert!(csv("t_us,op,offset,length\n1,R,0").starts_with("line 2: not four fields"));
        assert!(csv("1,R,0,1,1").contains("not four fields"));
        assert!(csv("1,X,0,1").contains("unknown op"));
        assert!(csv("1,R,-1,1").contains("not a whole number"));
        assert!(csv("1,R,18446744073709551615,1").contains("beyond 16 TiB"));
        assert!(csv("1,R,0,18446744073709551615").contains("more than 1 GiB"));
        assert!(csv("18446744073709551615,R,0,1").contains("584 years"));
        assert_eq!(Trace::decode(Format::Csv, &[b'1', 0xff]), Err(TraceError::NotText(1)));
        assert!(Trace::decode(Format::Arc, b"1").is_err());
        assert!(Trace::decode(Format::Arc, b"18446744073709551615 1 0 0").is_err());
        assert_eq!(Trace::decode(Format::VscsiStats, &[0; 33]), Err(TraceError::CutOff(1)));
        let bad = record(0x2828, 0, 512, 0);
        assert!(matches!(Trace::decode(Format::VscsiStats, &bad), Err(TraceError::Record { record: 1, .. })));
        let far = record(0x28, u64::MAX, 512, 0);
        assert_eq!(Trace::decode(Format::VscsiStats, &far).unwrap_err().kind(), ErrorKind::Corrupt);
    }

    #[test]
    fn the_longest_request_and_the_last_address_are_read_again() {
        let text = format!("9,D,1,{MAX_REQUEST}\n3,R,{},512\n", MAX_ADDRESS - 512);
        let trace = Trace::decode(Format::Csv, text.as_bytes()).unwrap();
        let last = MAX_ADDRESS / BLOCK_SIZE - 1;
        assert_eq!(touched(&trace), [(0, 0, MAX_REQUEST / BLOCK_SIZE + 1, Op::Discard), (0, last, 1, Op::Read)]);
        assert_eq!(Trace::decode(Format::Csv, trace.encode().as_bytes()), Ok(trace));
        let long = format!("1,D,1,{}", MAX_REQUEST + BLOCK_SIZE);
        assert!(Trace::decode(Format::Csv, long.as_bytes()).is_err());
        let far = format!("1,R,{},513", MAX_ADDRESS - 512);
        assert!(Trace::decode(Format::Csv, far.as_bytes()).is_err());
    }

    #[test]
    fn the_name_tells_the_format() {
        let table = [
            ("a/b.csv.zst", Some(Format::Csv)),
            ("x.lis", Some(Format::Arc)),
            ("x.iolog.zst", Some(Format::Iolog)),
            ("sda.blkparse", Some(Format::Blkparse)),
            ("D.VSCSI", Some(Format::VscsiStats)),
            ("x", None),
            ("x.txt", None),
        ];
        for (name, format) in table {
            assert_eq!(Format::of_name(name), format, "{name}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_safe(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            for (format, _) in Format::ALL {
                let _ = Trace::decode(format, &bytes);
            }
        }

        #[test]
        fn nearly_right_text_is_safe(text in "[0-9RWZDF,\n -]{0,120}") {
            for format in [Format::Csv, Format::Arc] {
                if let Ok(trace) = Trace::decode(format, text.as_bytes()) {
                    prop_assert!(trace.accesses.iter().all(|a| a.extent.end().byte() <= MAX_ADDRESS));
                }
            }
        }

        #[test]
        fn what_is_written_is_read(rows in prop::collection::vec((0u64..1000, 0u8..3, 0u64..1 << 30, 1u64..64), 0..20)) {
            let mut at = 0;
            let accesses = rows.into_iter().enumerate().map(|(index, (wait, op, start, len))| {
                at += if index == 0 { 0 } else { wait };
                let op = [Op::Read, Op::Write, Op::Discard][usize::from(op)];
                Access { at: Instant::from_micros(at), resource: ResourceId(0), extent: Extent::new(start, len), op }
            });
            let trace = Trace { accesses: accesses.collect() };
            prop_assert_eq!(Trace::decode(Format::Csv, trace.encode().as_bytes()), Ok(trace));
        }
    }
}
