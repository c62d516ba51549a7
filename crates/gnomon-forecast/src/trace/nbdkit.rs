//! The log of nbdkit's log filter: a line when a request comes (it ends with three dots), and one when it is answered.
//!
//! ```text
//!   2020-08-06 02:07:23.080907 connection=1 Read id=1 offset=0x0 count=0x200 ...
//!   2020-08-06 02:07:23.080927 connection=1 ...Read id=1 return=0
//! ```
//! Source: nbdkit-log-filter(1), "Log file format".

use gnomon_terms::{Access, Op};

use super::{LineError, request};

const LINE: &str = "YYYY-MM-DD HH:MM:SS.uuuuuu connection=N Read|Write|Zero|Trim id=N offset=0xN count=0xN ...";

/// One line; what is no request of data is passed over.
pub(super) fn line(_: usize, line: &str) -> Result<Option<Access>, LineError> {
    let mut fields = line.split_ascii_whitespace();
    let (Some(date), Some(clock)) = (fields.next(), fields.next()) else { return Err(("no date and time", LINE)) };
    let at = micros(date, clock).ok_or(("no date and time", LINE))?;
    let mut fields = fields.skip_while(|field| field.starts_with("connection="));
    let op = match fields.next() {
        Some("Read") => Op::Read,
        Some("Write") => Op::Write,
        Some("Zero" | "Trim") => Op::Discard,
        _ => return Ok(None),
    };
    let (mut offset, mut count) = (None, None);
    for field in fields {
        match field.split_once('=') {
            Some(("offset", text)) => offset = hex(text),
            Some(("count", text)) => count = hex(text),
            _ => {}
        }
    }
    let (Some(offset), Some(count)) = (offset, count) else { return Err(("no offset and count", LINE)) };
    match count {
        0 => Ok(None),
        count => request(at, op, offset, count).map(Some).map_err(|what| (what, LINE)),
    }
}

fn hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

/// Microseconds since 1970, in a calendar where each month has 31 days and each year twelve: enough to tell how long a
/// recording lasted within a month, and times never run backwards across one.
fn micros(date: &str, clock: &str) -> Option<u64> {
    let numbers = |text: &str, by: char| -> Option<[u64; 3]> {
        let numbers: Option<Vec<u64>> = text.split(by).map(|part| part.parse().ok()).collect();
        numbers?.try_into().ok()
    };
    let ([year, month, day], (clock, fraction)) = (numbers(date, '-')?, clock.split_once('.')?);
    let [hour, minute, second] = numbers(clock, ':')?;
    let fraction: u64 = fraction.parse().ok().filter(|_| fraction.len() == 6)?;
    let sane = (1970..2400).contains(&year) && (1..=12).contains(&month) && (1..=31).contains(&day);
    let days = sane.then(|| ((year - 1970) * 12 + month) * 31 + day)?;
    (hour < 24 && minute < 60 && second < 61)
        .then(|| ((days * 24 + hour) * 60 + minute) * 60 + second)?
        .checked_mul(1_000_000)?
        .checked_add(fraction)
}
