//! How much memory the host has, as its kernel says.
//!
//! Source: proc_meminfo(5); Documentation/accounting/psi.rst.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use gnomon_terms::{Bytes, ErrorKind};

use crate::numa::{NumaMemory, memory_of_nodes};

const MEMINFO: &str = "/proc/meminfo";
const PRESSURE: &str = "/proc/pressure/memory";

/// The most that is read of a file: the longest here has 2 KiB.
const LONGEST: u64 = 64 << 10;

/// The memory of a host at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HostMemory {
    /// All of it that the kernel can use.
    pub total: Bytes,
    /// What can be allocated without swapping.
    pub available: Bytes,
    /// Large pages that are free and promised to nobody.
    pub huge_free: Bytes,
    /// How much was waited for memory; `None` when the kernel does not count it.
    pub pressure: Option<Pressure>,
    /// Each node's own, by number; empty on a host with one.
    pub nodes: Vec<NumaMemory>,
}

/// Shares of the last ten seconds in which memory was waited for, in percent: 0 to 100.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pressure {
    /// By some task.
    pub some: f64,
    /// By all tasks that had something to do.
    pub full: f64,
}

/// Says how much memory the host has.
pub trait Gauge: Send + Sync {
    /// Reads it now. Takes some 50 µs, and as much again for each node of several.
    fn read(&self) -> Result<HostMemory, GaugeError>;
}

/// The gauge of the host that this process runs on.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProcGauge;

/// Why the host's memory is not known.
#[derive(Debug, thiserror::Error)]
pub enum GaugeError {
    /// The kernel did not say.
    #[error("cannot read {}: {source}; nothing is staged while it is not known", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// It said something that is not understood.
    #[error("{} has no {field} that is understood; nothing is staged while it is not known", path.display())]
    Strange {
        /// Which file.
        path: PathBuf,
        /// What was looked for in it.
        field: &'static str,
    },
}

impl GaugeError {
    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            GaugeError::Read { .. } => ErrorKind::Unavailable,
            GaugeError::Strange { .. } => ErrorKind::Corrupt,
        }
    }
}

impl Gauge for ProcGauge {
    fn read(&self) -> Result<HostMemory, GaugeError> {
        let meminfo = read(Path::new(MEMINFO))?;
        // A kernel built or started without PSI has no such file, or one that cannot be read.
        let pressure = read(Path::new(PRESSURE)).ok().map(|text| parse_pressure(&text)).transpose();
        let pressure = pressure.map_err(|field| strange(PRESSURE, field))?;
        Ok(HostMemory { pressure, nodes: memory_of_nodes()?, ..memory_of(&meminfo)? })
    }
}

fn memory_of(meminfo: &str) -> Result<HostMemory, GaugeError> {
    parse_meminfo(meminfo).map_err(|field| strange(MEMINFO, field))
}

fn strange(path: &str, field: &'static str) -> GaugeError {
    GaugeError::Strange { path: PathBuf::from(path), field }
}

/// Reads one of the kernel's files, but no more of it than any of them has.
pub(crate) fn read(path: &Path) -> Result<String, GaugeError> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(LONGEST).read_to_string(&mut text));
    read.map_err(|source| GaugeError::Read { path: path.to_path_buf(), source })?;
    Ok(text)
}

/// Reads the text of `/proc/meminfo`. Says which field is missing or strange. Without pressure and nodes.
fn parse_meminfo(text: &str) -> Result<HostMemory, &'static str> {
    // A kernel without large pages has none of their fields.
    let optional = |name| field(text, name).unwrap_or(Some(0));
    let kib = |value: u64| value.checked_mul(1024).map(Bytes);
    let needed = |name: &'static str| field(text, name).flatten().and_then(kib).ok_or(name);
    let huge = || {
        let free = optional("HugePages_Free")?.saturating_sub(optional("HugePages_Rsvd")?);
        kib(free.checked_mul(optional("Hugepagesize")?)?)
    };
    Ok(HostMemory {
        total: needed("MemTotal")?,
        available: needed("MemAvailable")?,
        huge_free: huge().ok_or("HugePages_Free")?,
        ..HostMemory::default()
    })
}

/// The number in the line of a field: KiB mostly. `None` when there is no such line, `Some(None)` when it has no number.
pub(crate) fn field(text: &str, name: &str) -> Option<Option<u64>> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(rest.split_whitespace().next().and_then(|number| number.parse().ok()))
}

/// Reads the text of `/proc/pressure/memory`. Says which line is missing or strange.
fn parse_pressure(text: &str) -> Result<Pressure, &'static str> {
    let average = |kind: &'static str| {
        let line = text.lines().find_map(|line| line.strip_prefix(kind)?.strip_prefix(' '));
        let average = line.and_then(|line| line.split_whitespace().find_map(|word| word.strip_prefix("avg10=")));
        let share = average.and_then(|share| share.parse::<f64>().ok());
        share.filter(|share| (0.0..=100.0).contains(share)).ok_or(kind)
    };
    Ok(Pressure { some: average("some")?, full: average("full")? })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SEEN: &str = "MemTotal:       24683520 kB\nMemFree:        20531200 kB\nMemAvailable:   23409664 kB\n\
        HugePages_Total:      12\nHugePages_Free:       10\nHugePages_Rsvd:        4\nHugepagesize:       2048 kB\n";

    #[test]
    fn meminfo_is_read() {
        let memory = parse_meminfo(SEEN).expect("understood");
        let expected = HostMemory {
            total: Bytes(24_683_520 << 10),
            available: Bytes(23_409_664 << 10),
            huge_free: Bytes(12 << 20),
            ..HostMemory::default()
        };
        assert_eq!(memory, expected);
        assert_eq!(parse_meminfo("MemTotal: 5 kB\nMemAvailable: 3 kB\n").expect("enough").huge_free, Bytes(0));
    }

    #[test]
    fn meminfo_that_is_not_understood_is_told() {
        let table = [
            ("", "MemTotal"),
            ("MemTotal: 5 kB\n", "MemAvailable"),
            ("MemTotal: -5 kB\nMemAvailable: 3 kB", "MemTotal"),
            ("MemTotal: 18446744073709551615 kB\nMemAvailable: 3 kB", "MemTotal"),
            ("MemTotal: 5 kB\nMemAvailable:\n", "MemAvailable"),
            ("MemTotal: 5 kB\nMemAvailable: 3 kB\nHugePages_Free: x\n", "HugePages_Free"),
        ];
        for (text, field) in table {
            assert_eq!(parse_meminfo(text), Err(field), "{text}");
        }
    }

    #[test]
    fn pressure_is_read() {
        let text =
            "some avg10=1.25 avg60=0.50 avg300=0.10 total=4711\nfull avg10=0.75 avg60=0.00 avg300=0.00 total=1\n";
        assert_eq!(parse_pressure(text), Ok(Pressure { some: 1.25, full: 0.75 }));
        let bad =
            ["", "some avg10=1\n", "some avg10=NaN\nfull avg10=0", "some avg10=-1\nfull avg10=0", "some avg10=101\n"];
        for text in bad {
            assert!(parse_pressure(text).is_err(), "{text}");
        }
    }

    #[test]
    fn this_host_says_how_much_it_has() {
        let memory = ProcGauge.read().expect("read");
        assert!(memory.available.0 > 0 && memory.available <= memory.total);
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in "(Mem|Huge|some|full|avg10=|[A-Za-z_:= 0-9.\n-]){0,60}") {
            let _ = (parse_meminfo(&text), parse_pressure(&text));
        }
    }
}
