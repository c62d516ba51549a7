//! Events, handed to every subscriber through a bounded queue of its own.

use std::{
    collections::VecDeque,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};
use serde_json::Value;

use super::CloseReason;

/// How many events a subscriber may leave unread. QEMU limits the rate of the frequent ones itself, and a whole
/// migration makes about ten, so a queue this long only fills when its owner has stopped reading.
const QUEUE: usize = 1024;

/// Something happened in QEMU.
#[derive(Clone, Debug, PartialEq)]
pub struct QmpEvent {
    /// QEMU's name for it, such as `RESUME` or `MIGRATION`.
    pub name: String,
    /// What it says; `Null` when it says nothing more.
    pub data: Value,
    /// When, by the clock of QEMU's host since 1970, to the microsecond; zero when not told. For durations between
    /// events of one QEMU: it does not tell how late we are to read them. A clock that is set meanwhile falsifies it.
    pub at: Duration,
}

impl QmpEvent {
    /// An event that says nothing more.
    #[cfg(test)]
    pub(crate) fn new(name: &str) -> QmpEvent {
        QmpEvent { name: name.to_string(), data: Value::Null, at: Duration::ZERO }
    }
}

/// Why no event came.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EventError {
    /// None within the time allowed.
    #[error("nothing happened in QEMU within the time allowed")]
    Timeout,
    /// None will come any more.
    #[error("no more events: {0}")]
    Closed(CloseReason),
}

/// One subscriber's queue of events. When its owner leaves 1024 unread, the oldest are dropped and counted.
pub struct EventStream {
    queue: Arc<Queue>,
}

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    events: VecDeque<QmpEvent>,
    missed: u64,
    closed: Option<CloseReason>,
}

impl std::fmt::Debug for EventStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventStream").field("missed", &self.missed()).finish_non_exhaustive()
    }
}

impl EventStream {
    /// The next event. Blocks until there is one, the connection ends, or `timeout` has passed. Events that came
    /// before the end of the connection are still handed out.
    pub fn next(&self, timeout: Duration) -> Result<QmpEvent, EventError> {
        let deadline = Instant::now().checked_add(timeout);
        let mut state = self.queue.state.lock();
        loop {
            if let Some(event) = state.events.pop_front() {
                return Ok(event);
            }
            if let Some(reason) = &state.closed {
                return Err(EventError::Closed(reason.clone()));
            }
            match deadline {
                None => self.queue.changed.wait(&mut state),
                Some(at) if self.queue.changed.wait_until(&mut state, at).timed_out() && state.is_idle() => {
                    return Err(EventError::Timeout);
                }
                Some(_) => {}
            }
        }
    }

    /// Reads on until `pick` finds what it looks for. `timeout` is for the whole search.
    pub fn wait_for<T>(
        &self,
        timeout: Duration,
        mut pick: impl FnMut(&QmpEvent) -> Option<T>,
    ) -> Result<T, EventError> {
        let started = Instant::now();
        loop {
            let event = self.next(timeout.saturating_sub(started.elapsed()))?;
            if let Some(found) = pick(&event) {
                return Ok(found);
            }
        }
    }

    /// How many events were dropped because they were not read in time.
    pub fn missed(&self) -> u64 {
        self.queue.state.lock().missed
    }
}

impl State {
    fn is_idle(&self) -> bool {
        self.events.is_empty() && self.closed.is_none()
    }
}

/// The reader's side: everyone who has subscribed.
#[derive(Default)]
pub(super) struct Subscribers {
    queues: Vec<Weak<Queue>>,
    closed: Option<CloseReason>,
}

impl Subscribers {
    pub(super) fn add(&mut self) -> EventStream {
        let queue = Arc::new(Queue::default());
        queue.state.lock().closed = self.closed.clone();
        self.queues.push(Arc::downgrade(&queue));
        EventStream { queue }
    }

    /// Hands an event to everyone, and forgets who has gone.
    pub(super) fn publish(&mut self, event: &QmpEvent) {
        self.each(|state| {
            if state.events.len() == QUEUE {
                state.events.pop_front();
                state.missed += 1;
            }
            state.events.push_back(event.clone());
        });
    }

    /// Tells everyone, and whoever subscribes later, that no more will come.
    pub(super) fn close(&mut self, reason: &CloseReason) {
        self.closed = Some(reason.clone());
        self.each(|state| state.closed = Some(reason.clone()));
    }

    fn each(&mut self, mut change: impl FnMut(&mut State)) {
        self.queues.retain(|queue| {
            let Some(queue) = queue.upgrade() else { return false };
            change(&mut queue.state.lock());
            queue.changed.notify_all();
            true
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(name: &str) -> QmpEvent {
        QmpEvent::new(name)
    }

    #[test]
    fn everyone_gets_every_event_in_order() {
        let mut all = Subscribers::default();
        let (a, b) = (all.add(), all.add());
        all.publish(&event("ONE"));
        all.publish(&event("TWO"));
        for stream in [a, b] {
            assert_eq!(stream.next(Duration::ZERO), Ok(event("ONE")));
            assert_eq!(stream.next(Duration::ZERO), Ok(event("TWO")));
            assert_eq!(stream.next(Duration::ZERO), Err(EventError::Timeout));
        }
    }

    #[test]
    fn who_does_not_read_loses_the_oldest_and_knows_how_many() {
        let mut all = Subscribers::default();
        let stream = all.add();
        for n in 0..QUEUE + 3 {
            all.publish(&event(&n.to_string()));
        }
        assert_eq!(stream.missed(), 3);
        assert_eq!(stream.next(Duration::ZERO), Ok(event("3")));
    }

    #[test]
    fn the_end_is_told_after_the_last_event_and_to_late_subscribers() {
        let mut all = Subscribers::default();
        let early = all.add();
        all.publish(&event("SHUTDOWN"));
        all.close(&CloseReason::Ended);
        assert_eq!(early.next(Duration::MAX), Ok(event("SHUTDOWN")));
        assert_eq!(early.next(Duration::MAX), Err(EventError::Closed(CloseReason::Ended)));
        assert_eq!(all.add().next(Duration::MAX), Err(EventError::Closed(CloseReason::Ended)));
    }

    #[test]
    fn a_subscriber_who_has_gone_is_forgotten() {
        let mut all = Subscribers::default();
        drop(all.add());
        all.publish(&event("STOP"));
        assert!(all.queues.is_empty());
    }
}
