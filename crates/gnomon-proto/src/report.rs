//! What the agent in a guest says: one line of text for each beat, on a virtio-serial port.
//!
//! ```text
//! gnomon1 seq=17 up_ms=90211 total_kib=498324 available_kib=401220 free_kib=380016 cpu=12 memory=0 stalled=0 io=350\n
//! ```
//! `seq` rises by one with each beat, so whoever hears it knows what it has missed. Pressure is the share of the last
//! ten seconds in which something waited, in hundredths of a percent; a kernel without it sends none. Unknown keys are
//! skipped: a newer agent may say more. Guests are not trusted: a line is bounded, and one that is no report is counted.
//!
//! Source of the numbers: Linux, Documentation/filesystems/proc.rst (meminfo) and Documentation/accounting/psi.rst.

use std::{fmt, time::Duration};

use gnomon_terms::Bytes;

/// The longest line. Ours are 150 bytes.
pub const LINE_LIMIT: usize = 512;
/// The first word of each line: who speaks, and which version of this.
const NAME: &str = "gnomon1";
/// All of the time, in hundredths of a percent.
const WHOLE: u32 = 10_000;

/// One beat of a guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Its number, from 0 when the agent began.
    pub seq: u64,
    /// How long the guest is up.
    pub up: Duration,
    /// Its memory.
    pub total: Bytes,
    /// What it could give to programs without swapping.
    pub available: Bytes,
    /// What nothing uses.
    pub free: Bytes,
    /// How much it waits; `None` when its kernel does not say.
    pub pressure: Option<Pressure>,
}

/// The share of the last ten seconds in which something waited, in hundredths of a percent: 0 to 10,000.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    /// Some task waited for a processor.
    pub cpu: u32,
    /// Some task waited for memory.
    pub memory: u32,
    /// All tasks waited for memory: nothing was done.
    pub stalled: u32,
    /// Some task waited for a disk.
    pub io: u32,
}

/// Why a line is no report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReportError {
    /// It is longer than any report.
    #[error("a line of more than {LINE_LIMIT} bytes")]
    TooLong,
    /// It does not begin as a report does.
    #[error("a line that is no report of an agent")]
    Foreign,
    /// A number is missing, no number, or cannot be.
    #[error("a report without a plausible {0}")]
    Implausible(&'static str),
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kib = |bytes: Bytes| bytes.0 >> 10;
        let (total, available, free) = (kib(self.total), kib(self.available), kib(self.free));
        write!(f, "{NAME} seq={} up_ms={} total_kib={total}", self.seq, self.up.as_millis())?;
        write!(f, " available_kib={available} free_kib={free}")?;
        match self.pressure {
            Some(Pressure { cpu, memory, stalled, io }) => {
                write!(f, " cpu={cpu} memory={memory} stalled={stalled} io={io}")
            }
            None => Ok(()),
        }
    }
}

impl Report {
    /// Reads a line, without its end.
    pub fn parse(line: &[u8]) -> Result<Report, ReportError> {
        if line.len() > LINE_LIMIT {
            return Err(ReportError::TooLong);
        }
        let text = std::str::from_utf8(line).map_err(|_| ReportError::Foreign)?;
        let mut words = text.split(' ');
        if words.next() != Some(NAME) {
            return Err(ReportError::Foreign);
        }
        let pairs: Vec<(&str, &str)> = words.filter_map(|word| word.split_once('=')).collect();
        let report = Report {
            seq: number(&pairs, "seq")?,
            up: Duration::from_millis(number(&pairs, "up_ms")?),
            total: kib(&pairs, "total_kib")?,
            available: kib(&pairs, "available_kib")?,
            free: kib(&pairs, "free_kib")?,
            pressure: pressure(&pairs)?,
        };
        match report.available <= report.total && report.free <= report.total {
            true => Ok(report),
            false => Err(ReportError::Implausible("available_kib")),
        }
    }
}

fn number(pairs: &[(&str, &str)], key: &'static str) -> Result<u64, ReportError> {
    let found = pairs.iter().find(|(name, _)| *name == key).and_then(|(_, value)| value.parse().ok());
    found.ok_or(ReportError::Implausible(key))
}

fn kib(pairs: &[(&str, &str)], key: &'static str) -> Result<Bytes, ReportError> {
    number(pairs, key)?.checked_mul(1024).map(Bytes).ok_or(ReportError::Implausible(key))
}

fn pressure(pairs: &[(&str, &str)]) -> Result<Option<Pressure>, ReportError> {
    if !pairs.iter().any(|(name, _)| *name == "cpu") {
        return Ok(None);
    }
    let share = |key| match number(pairs, key)? {
        value if value <= u64::from(WHOLE) => Ok(value as u32),
        _ => Err(ReportError::Implausible(key)),
    };
    let (cpu, memory, stalled, io) = (share("cpu")?, share("memory")?, share("stalled")?, share("io")?);
    Ok(Some(Pressure { cpu, memory, stalled, io }))
}

/// Cuts what comes from a port into lines. Holds a line at most, whatever comes.
#[derive(Debug, Default)]
pub struct Lines {
    line: Vec<u8>,
    is_too_long: bool,
}

impl Lines {
    /// Takes in some bytes; what became of each line that they end.
    pub fn take_in(&mut self, bytes: &[u8]) -> Vec<Result<Report, ReportError>> {
        let mut told = Vec::new();
        for &byte in bytes {
            match byte {
                b'\n' => told.push(self.end()),
                _ if self.line.len() == LINE_LIMIT => self.is_too_long = true,
                _ => self.line.push(byte),
            }
        }
        told
    }

    fn end(&mut self) -> Result<Report, ReportError> {
        let (line, is_too_long) = (std::mem::take(&mut self.line), std::mem::take(&mut self.is_too_long));
        if is_too_long { Err(ReportError::TooLong) } else { Report::parse(&line) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn reports() -> impl Strategy<Value = Report> {
        let share = 0..=WHOLE;
        let pressure = (share.clone(), share.clone(), share.clone(), share)
            .prop_map(|(cpu, memory, stalled, io)| Pressure { cpu, memory, stalled, io });
        (any::<u64>(), any::<u32>(), 0..1u64 << 40, 0..=100u64, 0..=100u64, proptest::option::of(pressure)).prop_map(
            |(seq, up, total, available, free, pressure)| Report {
                seq,
                up: Duration::from_millis(up.into()),
                total: Bytes(total << 10),
                available: Bytes((total * available / 100) << 10),
                free: Bytes((total * free / 100) << 10),
                pressure,
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again_however_it_is_cut(
            sent in proptest::collection::vec(reports(), 0..5), cut in 1..200usize
        ) {
            let text: String = sent.iter().map(|report| format!("{report}\n")).collect();
            let mut lines = Lines::default();
            let heard: Vec<_> = text.as_bytes().chunks(cut).flat_map(|part| lines.take_in(part)).collect();
            prop_assert_eq!(heard, sent.into_iter().map(Ok).collect::<Vec<_>>());
        }

        #[test]
        fn any_bytes_are_borne(bytes in proptest::collection::vec(any::<u8>(), 0..4000)) {
            let mut lines = Lines::default();
            let ends = bytes.iter().filter(|byte| **byte == b'\n').count();
            prop_assert_eq!(lines.take_in(&bytes).len(), ends);
            prop_assert!(lines.line.len() <= LINE_LIMIT);
            // And it is of use again with the next line.
            lines.take_in(b"\n");
            let good = Report::default();
            prop_assert_eq!(lines.take_in(format!("{good}\n").as_bytes()), vec![Ok(good)]);
        }

        #[test]
        fn a_changed_report_is_refused_or_plausible(report in reports(), at in 0..200usize, byte in any::<u8>()) {
            let mut line = report.to_string().into_bytes();
            let at = at % line.len();
            line[at] = byte;
            if let Ok(read) = Report::parse(&line) {
                prop_assert!(read.available <= read.total && read.free <= read.total);
            }
        }
    }

    #[test]
    fn lines_that_are_no_report_are_told_apart() {
        let long = vec![b'x'; LINE_LIMIT + 1];
        let table: [(&[u8], ReportError); 8] = [
            (b"", ReportError::Foreign),
            (b"hello", ReportError::Foreign),
            (b"\xff\xfe", ReportError::Foreign),
            (&long, ReportError::TooLong),
            (b"gnomon1 seq=1", ReportError::Implausible("up_ms")),
            (b"gnomon1 seq=-1 up_ms=1", ReportError::Implausible("seq")),
            (
                b"gnomon1 seq=1 up_ms=1 total_kib=1 available_kib=2 free_kib=0",
                ReportError::Implausible("available_kib"),
            ),
            (
                b"gnomon1 seq=1 up_ms=1 total_kib=99999999999999999 available_kib=2 free_kib=0",
                ReportError::Implausible("total_kib"),
            ),
        ];
        for (line, error) in table {
            assert_eq!(Report::parse(line), Err(error), "{}", String::from_utf8_lossy(line));
        }
        let newer = b"gnomon1 seq=1 up_ms=2 total_kib=4 available_kib=3 free_kib=2 colour=red swap_kib=9";
        assert!(Report::parse(newer).is_ok_and(|report| report.seq == 1 && report.pressure.is_none()));
    }
}
