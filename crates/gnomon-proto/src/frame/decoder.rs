//! A byte stream into messages, whatever the pieces it arrives in.

use super::{FrameError, HEADER_LEN, Header, Message};

/// Cuts a byte stream into messages. Keeps at most one frame and whatever one `feed` brought beyond it; memory
/// for a body is taken as its bytes arrive, not when a header announces it.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    /// Bytes at the front of `buffer` that have been consumed.
    used: usize,
    /// The header at the front, once it has been checked.
    header: Option<Header>,
    /// The error that ended the stream. It has lost its place; nothing after it means anything.
    failed: Option<FrameError>,
}

impl Decoder {
    /// At the start of a stream.
    pub fn new() -> Decoder {
        Decoder::default()
    }

    /// Takes the next bytes of the stream. Drain [`Decoder::next`] before feeding more: what is kept is then
    /// bounded by one frame plus one feed.
    pub fn feed(&mut self, bytes: &[u8]) {
        if self.used > 0 {
            self.buffer.drain(..self.used);
            self.used = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message; `None` until more bytes are fed.
    ///
    /// # Errors
    /// The first violation; the same error again ever after.
    #[expect(clippy::should_implement_trait, reason = "a decoder that is fed is no iterator: None is not the end")]
    pub fn next(&mut self) -> Result<Option<Message>, FrameError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let next = self.cut();
        if let Err(error) = &next {
            self.failed = Some(error.clone());
            self.buffer = Vec::new();
            self.used = 0;
        }
        next
    }

    /// Says that the stream is at its end.
    ///
    /// # Errors
    /// [`FrameError::Truncated`] if that is within a frame.
    pub fn finish(&self) -> Result<(), FrameError> {
        let need = HEADER_LEN + self.header.map_or(0, |header| header.body as usize);
        let have = self.buffered() + self.header.map_or(0, |_| HEADER_LEN);
        if have == 0 { Ok(()) } else { Err(FrameError::Truncated { have, need }) }
    }

    /// Bytes that are kept.
    pub fn buffered(&self) -> usize {
        self.buffer.len() - self.used
    }

    fn cut(&mut self) -> Result<Option<Message>, FrameError> {
        let header = match self.header {
            Some(header) => header,
            None => {
                let Some(bytes) = self.buffer[self.used..].first_chunk::<HEADER_LEN>() else { return Ok(None) };
                let header = Header::from_bytes(bytes)?;
                self.used += HEADER_LEN;
                *self.header.insert(header)
            }
        };
        let len = header.body as usize;
        if self.buffered() < len {
            return Ok(None);
        }
        let body = self.buffer[self.used..self.used + len].to_vec();
        self.used += len;
        self.header = None;
        Message::decode(&header, body).map(Some)
    }
}
