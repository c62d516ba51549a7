//! The version table: what the writer has written, for each record, so that every read and the whole disk can be judged.
//!
//! Each entry is two counters: `begun` is raised before the write is issued, `done` after it is complete. A reader
//! that sees them differ, or `begun` change under its read, overlapped a write and judges nothing.
//!
//! Dump format (little endian, LEB128 for all numbers): `"GNVERS1\n"`, seed, records, entries, then for each rewritten
//! record in order: distance from the one before, version; last eight bytes: word-wise FNV over all numbers.

use std::{
    fmt,
    sync::atomic::{AtomicU32, Ordering},
};

use crate::record::fold;

const MAGIC: &[u8; 8] = b"GNVERS1\n";

/// More records than this (1 TiB of disk, a table of 1 GiB) is taken for damage: a dump never makes us allocate without bound.
pub const MAX_RECORDS: u64 = 1 << 28;

/// The versions of all records, shared by one writer and any number of readers.
#[derive(Debug)]
pub struct Versions {
    entries: Vec<Entry>,
}

#[derive(Debug, Default)]
struct Entry {
    begun: AtomicU32,
    done: AtomicU32,
}

impl Versions {
    /// All records as the fill left them: version 0.
    pub fn new(records: u64) -> Versions {
        Versions { entries: (0..records).map(|_| Entry::default()).collect() }
    }

    /// How many records there are.
    pub fn len(&self) -> u64 {
        self.entries.len() as u64
    }

    /// The version a read of `index` must find, or nothing while a write is under way.
    pub fn settled(&self, index: u64) -> Option<u32> {
        let entry = &self.entries[index as usize];
        let done = entry.done.load(Ordering::Acquire);
        (entry.begun.load(Ordering::Acquire) == done).then_some(done)
    }

    /// Announces the next write of `index` and says which version it is.
    pub fn begin(&self, index: u64) -> u32 {
        self.entries[index as usize].begun.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// The write announced for `index` is complete.
    pub fn finish(&self, index: u64, version: u32) {
        self.entries[index as usize].done.store(version, Ordering::Release);
    }

    /// The sum of all versions, which is the number of writes.
    pub fn sum(&self) -> u64 {
        self.iter().map(u64::from).sum()
    }

    /// The version of each record in order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.entries.iter().map(|entry| entry.done.load(Ordering::Acquire))
    }

    /// The dump format of the table.
    pub fn dump(&self, seed: u64) -> Vec<u8> {
        let rewritten: Vec<(u64, u32)> = (0u64..).zip(self.iter()).filter(|&(_, version)| version > 0).collect();
        let mut writer = Writer { bytes: MAGIC.to_vec(), hash: 0 };
        for number in [seed, self.len(), rewritten.len() as u64] {
            writer.number(number);
        }
        let mut last = 0;
        for (index, version) in rewritten {
            writer.number(index - last);
            writer.number(u64::from(version));
            last = index;
        }
        writer.bytes.extend(writer.hash.to_le_bytes());
        writer.bytes
    }

    /// Reads a dump: the seed and the version of each record.
    pub fn parse(bytes: &[u8]) -> Result<(u64, Vec<u32>), DumpFault> {
        let rest = bytes.strip_prefix(MAGIC).ok_or(DumpFault::Magic)?;
        let mut reader = Reader { rest, hash: 0 };
        let (seed, records, entries) = (reader.number()?, reader.number()?, reader.number()?);
        if records > MAX_RECORDS || entries > records {
            return Err(DumpFault::TooLarge { records, entries });
        }
        let mut versions = vec![0u32; records as usize];
        let mut index = 0u64;
        for _ in 0..entries {
            index = index.saturating_add(reader.number()?);
            let version = u32::try_from(reader.number()?).map_err(|_| DumpFault::Number)?;
            *versions.get_mut(index as usize).ok_or(DumpFault::Outside { index, records })? = version;
        }
        let carried: [u8; 8] = reader.rest.try_into().map_err(|_| DumpFault::Short)?;
        if u64::from_le_bytes(carried) != reader.hash {
            return Err(DumpFault::Checksum);
        }
        Ok((seed, versions))
    }
}

/// Why a dump cannot be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DumpFault {
    /// It does not start like one.
    Magic,
    /// It ends early, or something follows it.
    Short,
    /// A number does not fit its place.
    Number,
    /// It speaks of more records than any disk of ours has.
    TooLarge {
        /// Records claimed.
        records: u64,
        /// Entries claimed.
        entries: u64,
    },
    /// An entry lies outside the disk.
    Outside {
        /// The entry's record.
        index: u64,
        /// Records of the disk.
        records: u64,
    },
    /// The bytes were changed.
    Checksum,
}

impl fmt::Display for DumpFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DumpFault::Magic => f.write_str("not a version dump"),
            DumpFault::Short => f.write_str("the dump is cut short or has a tail"),
            DumpFault::Number => f.write_str("a number in the dump does not fit"),
            DumpFault::TooLarge { records, entries } => write!(f, "{records} records, {entries} entries: too many"),
            DumpFault::Outside { index, records } => write!(f, "record {index} of a disk with {records}"),
            DumpFault::Checksum => f.write_str("the dump's checksum does not match"),
        }
    }
}

struct Writer {
    bytes: Vec<u8>,
    hash: u64,
}

impl Writer {
    fn number(&mut self, number: u64) {
        self.hash = fold(self.hash, number);
        let mut rest = number;
        while rest >= 0x80 {
            self.bytes.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        self.bytes.push(rest as u8);
    }
}

struct Reader<'a> {
    rest: &'a [u8],
    hash: u64,
}

impl Reader<'_> {
    fn number(&mut self) -> Result<u64, DumpFault> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.rest.split_first().ok_or(DumpFault::Short)?;
            self.rest = rest;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                self.hash = fold(self.hash, number);
                return Ok(number);
            }
        }
        Err(DumpFault::Number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Versions {
        let versions = Versions::new(1000);
        for index in [0, 1, 500, 999, 500, 500] {
            let version = versions.begin(index);
            versions.finish(index, version);
        }
        versions
    }

    #[test]
    fn dump_and_parse_agree() {
        let versions = sample();
        let (seed, parsed) = Versions::parse(&versions.dump(42)).unwrap();
        assert_eq!(seed, 42);
        assert_eq!(parsed, versions.iter().collect::<Vec<_>>());
        assert_eq!((versions.sum(), parsed[500], parsed[2]), (6, 3, 0));
    }

    #[test]
    fn a_write_under_way_is_not_settled() {
        let versions = Versions::new(2);
        let version = versions.begin(1);
        assert_eq!((versions.settled(0), versions.settled(1)), (Some(0), None));
        versions.finish(1, version);
        assert_eq!(versions.settled(1), Some(1));
    }

    #[test]
    fn damage_is_an_error_at_every_length_and_byte() {
        let good = sample().dump(42);
        for cut in 0..good.len() {
            assert!(Versions::parse(&good[..cut]).is_err(), "cut to {cut}");
        }
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(Versions::parse(&bad).is_err(), "flip at {at}");
        }
    }

    #[test]
    fn a_hostile_length_allocates_nothing() {
        let mut writer = Writer { bytes: MAGIC.to_vec(), hash: 0 };
        for number in [1, u64::MAX, 0] {
            writer.number(number);
        }
        assert!(matches!(Versions::parse(&writer.bytes), Err(DumpFault::TooLarge { .. })));
    }
}
