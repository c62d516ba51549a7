//! Records of pages in a frame's body.
//!
//! ```text
//!   record: LEB128 ((page − the page after the record before) × 4 + coding) · what the coding needs
//!   coding: 0 Zero – · 1 Same: LEB128 page · 2 Delta: LEB128 length, bytes · 3 Raw: 4096 bytes
//! ```
//! Pages rise within a batch, so a record's number is mostly one byte. A batch may travel packed ([`super::pack`]): worth
//! it when the link is slower than the compressor.

use gnomon_proto::frame::MAX_PAYLOAD;
use gnomon_terms::{PAGE_SIZE, PageCount, PageNumber};

use super::{Coding, Page, delta};

/// The longest batch, unpacked: what a frame may carry, with room for what packing adds to noise.
pub const LONGEST: usize = MAX_PAYLOAD - PAGE_SIZE as usize;

/// Bytes of the longest record: a number, a page.
const LONGEST_RECORD: usize = 10 + PAGE_SIZE as usize;

/// Why a batch cannot be read. Nothing of it beyond the records before may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// It ends within a record.
    #[error("a batch of pages ends within a record")]
    Cut,
    /// A number does not fit, or is longer than it needs to be.
    #[error("a batch of pages holds a number that is none")]
    BadNumber,
    /// A page is beyond the guest's memory.
    #[error("a batch speaks of page {page}, and the guest has {pages}")]
    TooFar {
        /// The page.
        page: u64,
        /// How many there are.
        pages: u64,
    },
    /// A delta is longer than any may be.
    #[error("a batch holds a delta of {len} bytes")]
    LongDelta {
        /// Its length.
        len: u64,
    },
    /// It was packed and cannot be unpacked into [`LONGEST`] bytes.
    #[error("a packed batch of pages cannot be unpacked")]
    BadPack,
}

/// A batch in the making.
#[derive(Debug, Default)]
pub struct Writer {
    body: Vec<u8>,
    next: u64,
    records: u32,
}

impl Writer {
    /// Whether another record may not fit.
    pub fn is_full(&self) -> bool {
        self.body.len() + LONGEST_RECORD > LONGEST
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// Appends a record, of a page after those before. Only while it is not full.
    pub fn push(&mut self, page: PageNumber, coding: Coding<'_>) {
        debug_assert!(!self.is_full() && page.0 >= self.next, "batches are taken when full, and pages rise");
        let (code, rest): (u64, &[u8]) = match &coding {
            Coding::Zero => (0, &[]),
            Coding::Same(_) => (1, &[]),
            Coding::Delta(bytes) => (2, bytes),
            Coding::Raw(bytes) => (3, &bytes[..]),
        };
        put_number((page.0 - self.next) << 2 | code, &mut self.body);
        match &coding {
            Coding::Same(other) => put_number(other.0, &mut self.body),
            Coding::Delta(bytes) => put_number(bytes.len() as u64, &mut self.body),
            Coding::Zero | Coding::Raw(_) => {}
        }
        self.body.extend_from_slice(rest);
        self.next = page.0 + 1;
        self.records += 1;
    }

    /// The batch and how many records it has; another begins.
    pub fn take(&mut self) -> (Vec<u8>, u32) {
        let done = std::mem::take(self);
        (done.body, done.records)
    }
}

/// Reads a batch, record by record; ends at the first error.
#[derive(Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
    next: u64,
    pages: PageCount,
}

impl<'a> Reader<'a> {
    /// The records in `body`, of a guest of so many pages.
    pub fn new(body: &'a [u8], pages: PageCount) -> Reader<'a> {
        Reader { rest: body, next: 0, pages }
    }

    fn record(&mut self) -> Result<(PageNumber, Coding<'a>), BatchError> {
        let head = take_number(&mut self.rest)?;
        let page = self.page(self.next.saturating_add(head >> 2))?;
        let coding = match head & 3 {
            0 => Coding::Zero,
            1 => {
                let other = take_number(&mut self.rest)?;
                Coding::Same(self.page(other)?)
            }
            2 => {
                let len = take_number(&mut self.rest)?;
                if len > delta::LONGEST as u64 {
                    return Err(BatchError::LongDelta { len });
                }
                Coding::Delta(self.bytes(len as usize)?)
            }
            _ => {
                let (raw, rest) = self.rest.split_first_chunk::<{ PAGE_SIZE as usize }>().ok_or(BatchError::Cut)?;
                self.rest = rest;
                Coding::Raw(raw as &Page)
            }
        };
        self.next = page.0 + 1;
        Ok((page, coding))
    }

    fn page(&self, page: u64) -> Result<PageNumber, BatchError> {
        match page < self.pages.0 {
            true => Ok(PageNumber(page)),
            false => Err(BatchError::TooFar { page, pages: self.pages.0 }),
        }
    }

    fn bytes(&mut self, len: usize) -> Result<&'a [u8], BatchError> {
        let (bytes, rest) = self.rest.split_at_checked(len).ok_or(BatchError::Cut)?;
        self.rest = rest;
        Ok(bytes)
    }
}

impl<'a> Iterator for Reader<'a> {
    type Item = Result<(PageNumber, Coding<'a>), BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let record = self.record();
        if record.is_err() {
            self.rest = &[];
        }
        Some(record)
    }
}

fn put_number(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// A LEB128 of at most 63 bits, written the shortest way.
fn take_number(rest: &mut &[u8]) -> Result<u64, BatchError> {
    let mut number = 0u64;
    for shift in (0..63).step_by(7) {
        let (&byte, after) = rest.split_first().ok_or(BatchError::Cut)?;
        *rest = after;
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return if byte == 0 && shift > 0 { Err(BatchError::BadNumber) } else { Ok(number) };
        }
    }
    Err(BatchError::BadNumber)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PAGES: PageCount = PageCount(1 << 20);

    #[derive(Clone, Debug, PartialEq)]
    enum Owned {
        Zero,
        Same(u64),
        Delta(Vec<u8>),
        Raw(u8),
    }

    fn records() -> impl Strategy<Value = Vec<(u64, Owned)>> {
        let owned = prop_oneof![
            Just(Owned::Zero),
            (0..PAGES.0).prop_map(Owned::Same),
            prop::collection::vec(any::<u8>(), 0..delta::LONGEST).prop_map(Owned::Delta),
            any::<u8>().prop_map(Owned::Raw),
        ];
        prop::collection::btree_map(0..PAGES.0, owned, 0..40).prop_map(|map| map.into_iter().collect())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn what_is_written_is_read(records in records()) {
            let mut writer = Writer::default();
            for (page, owned) in &records {
                let raw;
                let coding = match owned {
                    Owned::Zero => Coding::Zero,
                    Owned::Same(other) => Coding::Same(PageNumber(*other)),
                    Owned::Delta(bytes) => Coding::Delta(bytes),
                    Owned::Raw(byte) => { raw = [*byte; PAGE_SIZE as usize]; Coding::Raw(&raw) }
                };
                writer.push(PageNumber(*page), coding);
            }
            let (body, count) = writer.take();
            prop_assert_eq!(count as usize, records.len());
            let read: Vec<(u64, Owned)> = Reader::new(&body, PAGES).map(|record| {
                let (page, coding) = record.unwrap();
                (page.0, match coding {
                    Coding::Zero => Owned::Zero,
                    Coding::Same(other) => Owned::Same(other.0),
                    Coding::Delta(bytes) => Owned::Delta(bytes.to_vec()),
                    Coding::Raw(bytes) => Owned::Raw(bytes[0]),
                })
            }).collect();
            prop_assert_eq!(read, records);
        }

        #[test]
        fn any_bytes_are_read_or_refused(body in prop::collection::vec(any::<u8>(), 0..256), pages in 1u64..100) {
            let mut last = None;
            for record in Reader::new(&body, PageCount(pages)) {
                let Ok((page, _)) = record else { break };
                prop_assert!(page.0 < pages && last < Some(page));
                last = Some(page);
            }
        }
    }

    #[test]
    fn a_full_writer_says_so_in_time() {
        let mut writer = Writer::default();
        let page = [1; PAGE_SIZE as usize];
        let mut pages = 0;
        while !writer.is_full() {
            writer.push(PageNumber(pages << 40), Coding::Raw(&page));
            pages += 1;
        }
        assert!((253..=255).contains(&pages), "{pages}");
        assert!(writer.take().0.len() <= LONGEST && writer.is_empty());
    }
}
