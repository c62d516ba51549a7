//! The block traces of Microsoft Research, Cambridge: CSV with seven fields, times in steps of 100 ns since 1601.
//!
//! Source: Narayanan, Donnelly and Rowstron, "Write off-loading" (FAST '08), and the read-me of its traces.

use gnomon_terms::{Access, Op};

use super::{LineError, request};

pub(super) const LINE: &str = "timestamp,host,disk,Read|Write,offset,size,response";

/// Whether a CSV file is one of these and not of our own format: its first line has seven fields.
pub(super) fn is_one(bytes: &[u8]) -> bool {
    let first = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    first.split(|byte| *byte == b',').count() == 7
}

/// One line; the header that some copies of the traces have is passed over.
pub(super) fn line(index: usize, line: &str) -> Result<Option<Access>, LineError> {
    let mut fields = line.split(',').map(str::trim);
    let fields: [Option<&str>; 8] = std::array::from_fn(|_| fields.next());
    let [Some(time), Some(_), Some(_), Some(op), Some(offset), Some(size), Some(_), None] = fields else {
        return Err(("not seven fields", LINE));
    };
    if index == 0 && time.eq_ignore_ascii_case("timestamp") {
        return Ok(None);
    }
    let number = |text: &str| text.parse::<u64>().map_err(|_| ("not a whole number", LINE));
    let op = match op {
        "Read" => Op::Read,
        "Write" => Op::Write,
        _ => return Err(("neither Read nor Write", LINE)),
    };
    match number(size)? {
        0 => Ok(None),
        size => request(number(time)? / 10, op, number(offset)?, size).map(Some).map_err(|what| (what, LINE)),
    }
}
