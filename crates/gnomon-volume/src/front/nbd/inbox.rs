//! Received bytes that are not yet understood: a fixed buffer with a window that moves on.

use std::io;

/// Received bytes, oldest first.
pub(super) struct Inbox {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

/// Room beyond the longest message, so that a message seldom has to be moved to fit.
const SLACK: usize = 64 << 10;

impl Inbox {
    /// Holds messages of up to `longest` bytes.
    pub(super) fn new(longest: usize) -> Inbox {
        Inbox { buffer: vec![0; longest + SLACK].into_boxed_slice(), start: 0, end: 0 }
    }

    /// What is there.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// The first `N` bytes, taken out; `None` while fewer are there.
    pub(super) fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let taken = *self.bytes().first_chunk()?;
        self.consume(N);
        Some(taken)
    }

    /// Takes out the first `len` bytes, which must be there.
    pub(super) fn consume(&mut self, len: usize) {
        self.start += len;
        debug_assert!(self.start <= self.end);
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Adds what `recv` writes into as much room as there is; returns what it returns.
    pub(super) fn receive(&mut self, recv: impl FnOnce(&mut [u8]) -> io::Result<usize>) -> io::Result<usize> {
        if self.buffer.len() - self.end < SLACK / 2 {
            self.move_to_front();
        }
        let received = recv(&mut self.buffer[self.end..])?;
        self.end += received;
        Ok(received)
    }

    /// As [`Inbox::receive`], but does not let more than `len` bytes be there.
    pub(super) fn receive_up_to(
        &mut self,
        len: usize,
        recv: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        if self.start + len > self.buffer.len() {
            self.move_to_front();
        }
        let until = self.start + len;
        let received = recv(&mut self.buffer[self.end..until])?;
        self.end += received;
        Ok(received)
    }

    fn move_to_front(&mut self) {
        self.buffer.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Writes the next numbers of an endless count.
    fn count(next: &mut u8, at_most: usize) -> impl FnOnce(&mut [u8]) -> io::Result<usize> {
        move |into| {
            let len = into.len().min(at_most);
            for byte in &mut into[..len] {
                *byte = *next;
                *next = next.wrapping_add(1);
            }
            Ok(len)
        }
    }

    proptest! {
        #[test]
        fn bytes_come_out_as_they_went_in(steps in proptest::collection::vec((0usize..100_000, 0usize..100_000, any::<bool>()), 1..200)) {
            let mut inbox = Inbox::new(70_000);
            let (mut sent, mut seen) = (0u8, 0u8);
            for (put, take, bounded) in steps {
                let had = inbox.bytes().len();
                if bounded && take.min(70_000) > had {
                    let got = inbox.receive_up_to(take.min(70_000), count(&mut sent, put)).unwrap();
                    prop_assert!(had + got <= take.min(70_000));
                } else if had < 70_000 {
                    let got = inbox.receive(count(&mut sent, put)).unwrap();
                    prop_assert!(put == 0 || got > 0);
                }
                let take = take.min(inbox.bytes().len());
                for &byte in &inbox.bytes()[..take] {
                    prop_assert_eq!(byte, seen);
                    seen = seen.wrapping_add(1);
                }
                inbox.consume(take);
            }
        }
    }
}
