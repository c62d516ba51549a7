//! Units. An index, a count and a size are three types, so the compiler keeps them apart.

use std::{fmt, str::FromStr, time::Duration};

/// Bytes in one block: the grain at which validity is kept. 4 KiB is the page of every guest we serve and the
/// smallest write that a guest file system issues; below it, coverage maps grow and nothing is won.
pub const BLOCK_SIZE: u64 = 4096;

/// Bytes in one page of a guest's memory: the grain at which it is tracked and carried, whatever the guest maps with.
pub const PAGE_SIZE: u64 = 4096;

/// A number of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Bytes(pub u64);

/// A rate. Zero means "nothing may pass"; the absence of a limit is an `Option`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BytesPerSecond(pub u64);

/// Which 4 KiB block of a resource, counted from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockIndex(pub u64);

/// How many 4 KiB blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockCount(pub u64);

/// Which 4 KiB page of a guest's memory, counted from 0 at the start of its backing file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PageNumber(pub u64);

/// How many 4 KiB pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PageCount(pub u64);

impl PageNumber {
    /// Offset of the page's first byte.
    pub fn byte(self) -> u64 {
        self.0 * PAGE_SIZE
    }
}

impl PageCount {
    /// Size of this many pages.
    pub fn bytes(self) -> Bytes {
        Bytes(self.0 * PAGE_SIZE)
    }
}

impl Bytes {
    /// How many blocks it takes to hold this many bytes (the last one may be partly used).
    pub fn blocks(self) -> BlockCount {
        BlockCount(self.0.div_ceil(BLOCK_SIZE))
    }
}

impl BlockIndex {
    /// The block that holds byte `at`.
    pub fn of_byte(at: u64) -> BlockIndex {
        BlockIndex(at / BLOCK_SIZE)
    }

    /// Offset of the block's first byte.
    pub fn byte(self) -> u64 {
        self.0 * BLOCK_SIZE
    }

    /// The block `count` further on.
    pub fn plus(self, count: BlockCount) -> BlockIndex {
        BlockIndex(self.0 + count.0)
    }
}

impl BlockCount {
    /// Size of this many blocks.
    pub fn bytes(self) -> Bytes {
        Bytes(self.0 * BLOCK_SIZE)
    }
}

impl BytesPerSecond {
    /// How long `bytes` take at this rate; `Duration::MAX` when the rate is zero and there is something to carry.
    pub fn time_for(self, bytes: Bytes) -> Duration {
        match (bytes.0, self.0) {
            (0, _) => Duration::ZERO,
            (_, 0) => Duration::MAX,
            (bytes, rate) => Duration::from_secs_f64(bytes as f64 / rate as f64),
        }
    }
}

/// Why a size or rate could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseUnitError {
    /// What was written.
    pub text: String,
    /// What would have been understood.
    pub expected: &'static str,
}

impl fmt::Display for ParseUnitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "'{}' is not understood: write {}", self.text, self.expected)
    }
}

impl std::error::Error for ParseUnitError {}

/// Splits `text` into a number and its suffix; the number may have a fraction.
fn split_number(text: &str) -> Option<(f64, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number: f64 = text[..end].parse().ok()?;
    number.is_finite().then(|| (number, text[end..].trim()))
}

impl FromStr for Bytes {
    type Err = ParseUnitError;

    /// `4096`, `64K`, `2GiB` (powers of 1024, as QEMU reads them) or `2GB` (powers of 1000).
    fn from_str(text: &str) -> Result<Bytes, ParseUnitError> {
        let error = || ParseUnitError {
            text: text.to_string(),
            expected: "bytes such as 4096, 64K, 512MiB or 2G (1024-based; 2GB is 1000-based)",
        };
        let (number, suffix) = split_number(text).ok_or_else(error)?;
        let factor: u64 = match suffix.to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "k" | "kib" => 1 << 10,
            "m" | "mib" => 1 << 20,
            "g" | "gib" => 1 << 30,
            "t" | "tib" => 1 << 40,
            "kb" => 1_000,
            "mb" => 1_000_000,
            "gb" => 1_000_000_000,
            "tb" => 1_000_000_000_000,
            _ => return Err(error()),
        };
        let bytes = number * factor as f64;
        // f64 is exact to 2^53; past it a size would be silently rounded, and no disk is that large.
        if bytes > (1u64 << 53) as f64 {
            return Err(error());
        }
        Ok(Bytes(bytes as u64))
    }
}

impl FromStr for BytesPerSecond {
    type Err = ParseUnitError;

    /// `400mbit`, `10gbit`, or a size per second: `50MB/s`, `100MiB`.
    fn from_str(text: &str) -> Result<BytesPerSecond, ParseUnitError> {
        let error = || ParseUnitError {
            text: text.to_string(),
            expected: "a rate such as 400mbit, 10gbit, 50MB/s or 100MiB/s",
        };
        let lower = text.trim().to_ascii_lowercase();
        let lower = lower.strip_suffix("/s").or_else(|| lower.strip_suffix("ps")).unwrap_or(&lower);
        let (number, suffix) = split_number(lower).ok_or_else(error)?;
        let bits: Option<f64> = match suffix {
            "bit" => Some(1.0),
            "kbit" => Some(1e3),
            "mbit" => Some(1e6),
            "gbit" => Some(1e9),
            _ => None,
        };
        match bits {
            Some(factor) => Ok(BytesPerSecond((number * factor / 8.0) as u64)),
            None => lower.parse::<Bytes>().map(|b| BytesPerSecond(b.0)).map_err(|_| error()),
        }
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const STEPS: [(&str, u64); 4] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
        for (name, size) in STEPS {
            if self.0 >= size {
                return write!(f, "{:.1} {name}", self.0 as f64 / size as f64);
            }
        }
        write!(f, "{} B", self.0)
    }
}

impl fmt::Display for BytesPerSecond {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/s", Bytes(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        let table =
            [("4096", 4096), ("64K", 65536), ("2GiB", 2 << 30), ("2GB", 2_000_000_000), ("1.5G", 3 << 29), ("0", 0)];
        for (text, bytes) in table {
            assert_eq!(text.parse(), Ok(Bytes(bytes)), "{text}");
        }
        for bad in ["", "G", "-1", "2 apples", "1e400", "99999999T"] {
            assert!(bad.parse::<Bytes>().is_err(), "{bad}");
        }
    }

    #[test]
    fn rates_are_read_in_bits_or_bytes() {
        let table = [("400mbit", 50_000_000), ("10gbit", 1_250_000_000), ("50MB/s", 50_000_000), ("1MiB/s", 1 << 20)];
        for (text, rate) in table {
            assert_eq!(text.parse(), Ok(BytesPerSecond(rate)), "{text}");
        }
        assert!("fast".parse::<BytesPerSecond>().is_err());
    }

    #[test]
    fn a_partly_used_block_counts() {
        assert_eq!(Bytes(1).blocks(), BlockCount(1));
        assert_eq!(Bytes(4096).blocks(), BlockCount(1));
        assert_eq!(Bytes(4097).blocks(), BlockCount(2));
    }

    #[test]
    fn no_rate_means_never() {
        assert_eq!(BytesPerSecond(0).time_for(Bytes(1)), Duration::MAX);
        assert_eq!(BytesPerSecond(0).time_for(Bytes(0)), Duration::ZERO);
        assert_eq!(BytesPerSecond(1000).time_for(Bytes(500)), Duration::from_millis(500));
    }
}
