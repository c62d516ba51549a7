//! Comparing two copies of one host: the questions are answered where they are asked.

use gnomon_proto::frame::{Message, Stream};
use gnomon_terms::Bytes;

use super::{Asker, Compared, Replies, Side, VerifyError};
use crate::wire::{Wire, WireClosed};

/// Compares `ours` with `theirs`, which is of the same size and on this host too. Blocks until it is done; `watch` is
/// told the bytes gone through and says whether to go on.
pub fn compare_here(ours: Side, theirs: Side, watch: &mut dyn FnMut(Bytes) -> bool) -> Result<Compared, VerifyError> {
    let replies = Replies::default();
    let echo = Echo { theirs, replies: &replies };
    Asker { ours, replies: &replies, wire: &echo, stream: Stream(0) }.compare(watch)
}

/// A wire whose other end is here.
struct Echo<'a> {
    theirs: Side,
    replies: &'a Replies,
}

impl Wire for Echo<'_> {
    fn send(&self, message: Message) -> Result<(), WireClosed> {
        if let Message::HashRange { id, extent, .. } = message {
            self.replies.answer(id, extent.start, self.theirs.answer(extent));
        }
        Ok(())
    }
}
