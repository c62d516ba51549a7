//! Bytes in order, counted, from any reader.

use std::io::{self, BufReader, ErrorKind, Read};

use super::StreamError;

/// Bytes asked of the reader at once.
const BUFFER: usize = 64 << 10;

/// A reader that knows where it is and tells what was cut off. It allocates for names, and for what [`Source::rest`] is
/// asked to hold.
pub(super) struct Source<R> {
    from: BufReader<R>,
    at: u64,
    peeked: Option<u8>,
}

impl<R: Read> Source<R> {
    pub(super) fn new(from: R) -> Source<R> {
        Source::beginning_at(from, 0)
    }

    /// A source whose first byte is byte `at` of the stream.
    pub(super) fn beginning_at(from: R, at: u64) -> Source<R> {
        Source { from: BufReader::with_capacity(BUFFER, from), at, peeked: None }
    }

    /// How many bytes have been read.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// The next byte, which stays the next; `None` at the end.
    pub(super) fn peek(&mut self) -> Result<Option<u8>, StreamError> {
        if self.peeked.is_none() {
            let mut byte = [0];
            match read_whole(&mut self.from, &mut byte)? {
                true => self.peeked = Some(byte[0]),
                false => return Ok(None),
            }
        }
        Ok(self.peeked)
    }

    pub(super) fn fill(&mut self, into: &mut [u8], within: &'static str) -> Result<(), StreamError> {
        let mut filled = 0;
        if let (Some(byte), Some(first)) = (self.peeked, into.first_mut()) {
            (*first, self.peeked, filled) = (byte, None, 1);
        }
        if !read_whole(&mut self.from, &mut into[filled..])? {
            return Err(StreamError::CutShort { at: self.at, within });
        }
        self.at += into.len() as u64;
        Ok(())
    }

    pub(super) fn u8(&mut self, within: &'static str) -> Result<u8, StreamError> {
        self.array::<1>(within).map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self, within: &'static str) -> Result<u16, StreamError> {
        self.array(within).map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self, within: &'static str) -> Result<u32, StreamError> {
        self.array(within).map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self, within: &'static str) -> Result<u64, StreamError> {
        self.array(within).map(u64::from_be_bytes)
    }

    fn array<const N: usize>(&mut self, within: &'static str) -> Result<[u8; N], StreamError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes, within)?;
        Ok(bytes)
    }

    /// A text with its length in one byte before it.
    pub(super) fn name(&mut self, within: &'static str) -> Result<String, StreamError> {
        let length = self.u8(within)?;
        self.text(usize::from(length), within)
    }

    /// A text without control characters. The caller has limited its length.
    pub(super) fn text(&mut self, length: usize, what: &'static str) -> Result<String, StreamError> {
        let mut bytes = vec![0; length];
        self.fill(&mut bytes, what)?;
        match String::from_utf8(bytes) {
            Ok(text) if !text.chars().any(char::is_control) => Ok(text),
            _ => Err(StreamError::NoText { at: self.at, what }),
        }
    }

    /// Refuses a number that is too large to be believed.
    pub(super) fn limit(&self, what: &'static str, value: u64, most: u64) -> Result<(), StreamError> {
        match value <= most {
            true => Ok(()),
            false => Err(StreamError::TooMuch { at: self.at, what, value, most }),
        }
    }

    /// Passes over bytes.
    pub(super) fn skip(&mut self, length: u64, within: &'static str) -> Result<(), StreamError> {
        let mut chunk = [0; 4096];
        let mut left = length;
        while left > 0 {
            let now = left.min(chunk.len() as u64);
            self.fill(&mut chunk[..now as usize], within)?;
            left -= now;
        }
        Ok(())
    }

    /// Appends everything up to the end, which must come within `most` bytes.
    pub(super) fn rest(mut self, into: &mut Vec<u8>, most: u64) -> Result<(), StreamError> {
        into.extend(self.peeked.take());
        let read = (&mut self.from).take(most + 1).read_to_end(into);
        let read = read.map_err(|source| StreamError::Read { source })? as u64;
        self.limit("the length of the devices", read, most)
    }

    /// Passes over everything up to the end, which must come within `most` bytes; returns the stream's length.
    pub(super) fn drain(mut self, most: u64) -> Result<u64, StreamError> {
        let peeked = u64::from(self.peeked.is_some());
        let read = io::copy(&mut (&mut self.from).take(most + 1), &mut io::sink());
        let read = read.map_err(|source| StreamError::Read { source })?;
        self.limit("the length of the description", read, most)?;
        Ok(self.at + peeked + read)
    }
}

/// Fills `into`, or says that the end came first.
fn read_whole(from: &mut impl Read, into: &mut [u8]) -> Result<bool, StreamError> {
    match from.read_exact(into) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == ErrorKind::UnexpectedEof => Ok(false),
        Err(source) => Err(StreamError::Read { source }),
    }
}
