//! Where the answers of the other side arrive, and who waits for which.

use std::{
    collections::HashMap,
    sync::mpsc::{Receiver, Sender, channel},
};

use gnomon_terms::{BlockIndex, Extent};
use parking_lot::Mutex;

use super::{Digest, VerifyError, grains};

/// An answer as it came: believed by nobody yet.
#[derive(Debug)]
pub struct Reply {
    start: BlockIndex,
    hashes: Vec<Digest>,
}

impl Reply {
    /// The hashes, if this is an answer to the question about `extent`.
    pub(super) fn to(self, extent: Extent) -> Result<Vec<Digest>, VerifyError> {
        let expected = grains(extent).count();
        if self.start == extent.start && self.hashes.is_empty() {
            return Err(VerifyError::Declined { extent });
        }
        if self.start != extent.start || self.hashes.len() != expected {
            let (start, hashes) = (self.start.0, self.hashes.len());
            return Err(VerifyError::Foreign { extent, expected, start, hashes });
        }
        Ok(self.hashes)
    }
}

/// The questions of one copy that wait for an answer.
#[derive(Default)]
pub struct Replies {
    /// Held by the comparison under way.
    pub(super) turn: Mutex<()>,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    next_id: u64,
    by_id: HashMap<u64, Sender<Reply>>,
}

impl Replies {
    /// Names a question, and gives the place where its answer will be.
    pub(super) fn expect(&self) -> (u64, Receiver<Reply>) {
        let (tell, answer) = channel();
        let mut waiting = self.waiting.lock();
        waiting.next_id += 1;
        let id = waiting.next_id;
        waiting.by_id.insert(id, tell);
        (id, answer)
    }

    /// An answer has come. One that nobody waits for is passed over.
    pub fn answer(&self, id: u64, start: BlockIndex, hashes: Vec<Digest>) {
        match self.waiting.lock().by_id.remove(&id) {
            // Whoever asked may have given up.
            Some(tell) => _ = tell.send(Reply { start, hashes }),
            None => tracing::debug!(id, "hashes that nobody asked for were ignored"),
        }
    }

    /// No answer will come any more: the session is over.
    pub fn end(&self) {
        self.waiting.lock().by_id.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_fits_its_question_or_is_told_apart() {
        let whole = Extent::new(32, 64);
        let reply = |start, count| Reply { start: BlockIndex(start), hashes: vec![[1; 32]; count] };
        assert_eq!(reply(32, 4).to(whole).expect("one a unit").len(), 4);
        assert_eq!(reply(32, 7).to(Extent::new(32, 7)).expect("one a block").len(), 7);
        for (start, count) in [(32, 3), (32, 5), (32, 64), (16, 4), (48, 4), (u64::MAX, 4), (0, 0)] {
            let refused = reply(start, count).to(whole);
            assert!(matches!(refused, Err(VerifyError::Foreign { expected: 4, .. })), "{start} {count}: {refused:?}");
        }
        assert!(matches!(reply(32, 0).to(whole), Err(VerifyError::Declined { .. })));
    }

    #[test]
    fn an_answer_to_nobody_changes_nothing() {
        let replies = Replies::default();
        let (id, answer) = replies.expect();
        replies.answer(id + 1, BlockIndex(0), vec![]);
        assert!(answer.try_recv().is_err());
        replies.answer(id, BlockIndex(0), vec![[2; 32]]);
        assert_eq!(answer.try_recv().expect("ours").hashes, [[2; 32]]);
    }
}
