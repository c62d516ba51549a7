//! Readers that wait for blocks of the other host.
//!
//! Readers of the same extent wait for one answer. A fetch outlives the session it was asked in: it is asked again
//! in the next one, until it is answered or the reader's patience with a peer that is gone runs out.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant as Clock},
};

use gnomon_proto::frame::{Answer, Content};
use gnomon_terms::{Bytes, Extent};
use parking_lot::{Condvar, Mutex};

use crate::disk::layered::fits;

/// The fetches under way.
#[derive(Default)]
pub(super) struct Fetches {
    table: Mutex<Table>,
    changed: Condvar,
}

struct Table {
    waiting: HashMap<Extent, Waiting>,
    next_id: u64,
    /// Since when there is no session; `None` while there is one.
    detached: Option<Clock>,
    stopped: bool,
}

impl Default for Table {
    fn default() -> Table {
        Table { waiting: HashMap::new(), next_id: 1, detached: Some(Clock::now()), stopped: false }
    }
}

struct Waiting {
    id: u64,
    readers: usize,
    answer: Option<Option<Arc<Content>>>,
}

impl Fetches {
    /// Notes a reader of `extent`, which must call [`Fetches::wait`] next. Returns the id under which the peer has to
    /// be asked; `None` if it has been asked already, or cannot be before the next session.
    ///
    /// A reader that comes while others still take their answer away shares it: what the peer has of a block that
    /// is missing here does not change while draining, and while priming nobody but a probing QEMU reads here.
    pub fn enter(&self, extent: Extent) -> Option<u64> {
        let mut table = self.table.lock();
        if let Some(waiting) = table.waiting.get_mut(&extent) {
            waiting.readers += 1;
            return None;
        }
        let id = table.next_id;
        table.next_id += 1;
        table.waiting.insert(extent, Waiting { id, readers: 1, answer: None });
        table.detached.is_none().then_some(id)
    }

    /// Waits for the answer. `None`: refused, the move is over, or the peer has been gone longer than `patience`.
    pub fn wait(&self, extent: Extent, patience: Duration) -> Option<Arc<Content>> {
        let mut table = self.table.lock();
        loop {
            let stopped = table.stopped;
            let detached = table.detached;
            let answer = table.waiting.get(&extent)?.answer.clone();
            let lost = stopped || detached.is_some_and(|since| since.elapsed() >= patience);
            if answer.is_some() || lost {
                self.leave(&mut table, extent);
                return answer.flatten();
            }
            match detached {
                Some(since) => _ = self.changed.wait_until(&mut table, since + patience),
                None => self.changed.wait(&mut table),
            }
        }
    }

    fn leave(&self, table: &mut Table, extent: Extent) {
        if let Some(waiting) = table.waiting.get_mut(&extent) {
            waiting.readers -= 1;
            if waiting.readers == 0 {
                table.waiting.remove(&extent);
            }
        }
    }

    /// The peer's answer to fetch `id`. An answer nobody waits for, or to another question, is ignored.
    pub fn answer(&self, id: u64, extent: Extent, answer: Answer, size: Bytes) {
        let content = match answer {
            Answer::Blocks(content) if fits(&content, extent, size) => Some(Arc::new(content)),
            Answer::Blocks(_) | Answer::Refused | Answer::Failed => None,
        };
        let mut table = self.table.lock();
        if let Some(waiting) = table.waiting.get_mut(&extent)
            && waiting.id == id
        {
            waiting.answer = Some(content);
            self.changed.notify_all();
        }
    }

    /// A session has begun; returns what has to be asked in it.
    pub fn attach(&self) -> Vec<(u64, Extent)> {
        let mut table = self.table.lock();
        table.detached = None;
        self.changed.notify_all();
        table.waiting.iter().filter(|(_, w)| w.answer.is_none()).map(|(extent, w)| (w.id, *extent)).collect()
    }

    /// The session has ended.
    pub fn detach(&self) {
        let mut table = self.table.lock();
        table.detached.get_or_insert_with(Clock::now);
        self.changed.notify_all();
    }

    /// Whoever waits now is refused.
    pub fn refuse(&self) {
        let mut table = self.table.lock();
        for waiting in table.waiting.values_mut() {
            waiting.answer.get_or_insert(None);
        }
        self.changed.notify_all();
    }

    /// Nothing will be answered any more.
    pub fn stop(&self) {
        self.table.lock().stopped = true;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXTENT: Extent = Extent::new(0, 1);
    const SIZE: Bytes = Bytes(1 << 20);

    #[test]
    fn who_is_refused_does_not_wait_for_another_session() {
        let fetches = Fetches::default();
        assert!(fetches.attach().is_empty());
        fetches.enter(EXTENT).expect("it asks");
        fetches.detach();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| fetches.wait(EXTENT, Duration::MAX));
            fetches.refuse();
            assert!(waiting.join().expect("a reader").is_none());
        });
        assert!(fetches.attach().is_empty(), "nothing is left to be asked");
    }

    #[test]
    fn readers_of_one_extent_ask_once() {
        let fetches = Fetches::default();
        assert!(fetches.attach().is_empty());
        let id = fetches.enter(EXTENT).expect("first asks");
        assert!(fetches.enter(EXTENT).is_none());
        fetches.answer(id, EXTENT, Answer::Blocks(Content::Zero), SIZE);
        for _ in 0..2 {
            assert_eq!(fetches.wait(EXTENT, Duration::ZERO).as_deref(), Some(&Content::Zero));
        }
        assert!(fetches.enter(EXTENT).is_some(), "a later reader asks anew");
    }

    #[test]
    fn a_fetch_is_asked_again_in_the_next_session() {
        let fetches = Fetches::default();
        assert!(fetches.enter(EXTENT).is_none(), "no session to ask in");
        let asked = fetches.attach();
        assert_eq!(asked.len(), 1);
        fetches.detach();
        assert_eq!(fetches.attach(), asked);
    }

    #[test]
    fn patience_ends_and_wrong_answers_count_for_nothing() {
        let fetches = Fetches::default();
        fetches.enter(EXTENT);
        assert!(fetches.wait(EXTENT, Duration::ZERO).is_none());
        fetches.attach();
        let id = fetches.enter(EXTENT).expect("asks");
        fetches.answer(id + 7, EXTENT, Answer::Blocks(Content::Zero), SIZE);
        fetches.answer(id, EXTENT, Answer::Blocks(Content::Data(vec![1; 5])), SIZE);
        assert!(fetches.wait(EXTENT, Duration::from_secs(60)).is_none(), "a cut payload is a failed fetch");
    }

    #[test]
    fn a_stopped_move_lets_readers_go() {
        let fetches = Fetches::default();
        fetches.attach();
        fetches.enter(EXTENT);
        fetches.stop();
        assert!(fetches.wait(EXTENT, Duration::from_secs(60)).is_none());
    }
}
