//! The tap: notes in passing what a guest does, so that the loop can read it later.
//!
//! The data path must never wait for thought, so noting is one short lock and one clock reading, and a full tap
//! drops accesses instead of growing: the forecast gets a little worse, nothing else changes. Facts (a move has
//! settled, an extent is covered) change the inventory and therefore get four times the room.
//!
//! The loop's thread sleeps in [`Tap::wait`]. Accesses wake it in batches, facts at once: a wake-up costs more
//! than serving a 4 KiB read from memory.

use std::time::Duration;

use gnomon_terms::{Access, Event, Extent, Instant, Op, ResourceId};
use parking_lot::{Condvar, Mutex};

/// Accesses kept. At 100,000 requests a second this is 0.65 s of a loop that does not turn; 64 Ki × 56 B = 3.5 MiB.
pub const ACCESSES_KEPT: usize = 65_536;

/// Events kept when the newest is a fact: room for facts after accesses have filled theirs.
pub const FACTS_KEPT: usize = 4 * ACCESSES_KEPT;

/// Accesses that are worth waking the loop for before its timeout.
const WAKE_AT: usize = 256;

/// A bounded queue of events between the data path and the loop. Shared by many threads.
pub struct Tap {
    clock: Box<dyn Fn() -> Instant + Send + Sync>,
    queue: Mutex<Queue>,
    filled: Condvar,
}

#[derive(Default)]
struct Queue {
    events: Vec<Event>,
    /// Set by facts and by [`Tap::wake`]: the sleeper should look now.
    urgent: bool,
    sleepers: usize,
    dropped: u64,
    lost: u64,
}

impl Tap {
    /// A tap that stamps accesses with what `clock` says. The clock is called once for each access.
    pub fn new(clock: impl Fn() -> Instant + Send + Sync + 'static) -> Tap {
        Tap { clock: Box::new(clock), queue: Mutex::default(), filled: Condvar::new() }
    }

    /// A tap that stamps accesses with the time since `origin`.
    pub fn since(origin: std::time::Instant) -> Tap {
        Tap::new(move || Instant::ORIGIN.after(origin.elapsed()))
    }

    /// The time by this tap's clock.
    pub fn now(&self) -> Instant {
        (self.clock)()
    }

    /// Notes that a guest touched `extent`. Never blocks; dropped and counted when the tap is full.
    pub fn note(&self, resource: ResourceId, extent: Extent, op: Op) {
        self.push(Event::Accessed(Access { at: self.now(), resource, extent, op }));
    }

    /// Hands any event to the loop and, unless it is an access, wakes it. Never blocks.
    pub fn tell(&self, event: Event) {
        self.push(event);
    }

    /// Moves what has gathered into `into`, oldest first. Never blocks.
    pub fn drain(&self, into: &mut Vec<Event>) {
        let mut queue = self.queue.lock();
        queue.urgent = false;
        into.append(&mut queue.events);
    }

    /// Waits until there is a fact, a batch of accesses or a [`Tap::wake`], for at most `timeout`.
    /// True when there is something to drain.
    pub fn wait(&self, timeout: Duration) -> bool {
        let mut queue = self.queue.lock();
        queue.sleepers += 1;
        self.filled.wait_while_for(&mut queue, |queue| !queue.is_ripe(), timeout);
        queue.sleepers -= 1;
        queue.urgent = false;
        !queue.events.is_empty()
    }

    /// Makes a [`Tap::wait`] that is under way, or else the next one, return at once.
    pub fn wake(&self) {
        self.queue.lock().urgent = true;
        self.filled.notify_all();
    }

    /// Accesses that were not kept because the tap was full.
    pub fn dropped(&self) -> u64 {
        self.queue.lock().dropped
    }

    /// Facts that were not kept. When it rises the inventory must be read anew from the plane.
    pub fn lost(&self) -> u64 {
        self.queue.lock().lost
    }

    fn push(&self, event: Event) {
        let mut queue = self.queue.lock();
        queue.keep(event);
        let wake = queue.sleepers > 0 && queue.is_ripe();
        drop(queue);
        if wake {
            self.filled.notify_all();
        }
    }
}

impl Queue {
    fn keep(&mut self, event: Event) {
        let access = matches!(event, Event::Accessed(_) | Event::Stalled(_));
        match (access, self.events.len()) {
            (true, ACCESSES_KEPT..) => self.dropped += 1,
            (false, FACTS_KEPT..) => self.lost += 1,
            _ => self.events.push(event),
        }
        self.urgent |= !matches!(event, Event::Accessed(_));
    }

    fn is_ripe(&self) -> bool {
        self.urgent || self.events.len() >= WAKE_AT
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, thread};

    use gnomon_terms::Place;

    use super::*;

    const R: ResourceId = ResourceId(7);

    fn fact(at: u64) -> Event {
        Event::Covered { resource: R, extent: Extent::new(at, 1), place: Place(0) }
    }

    #[test]
    fn events_come_out_in_order_with_their_time() {
        let tap = Tap::new(|| Instant::from_micros(5));
        tap.note(R, Extent::new(1, 2), Op::Read);
        tap.tell(fact(9));
        let mut events = Vec::new();
        tap.drain(&mut events);
        let read = Access { at: Instant::from_micros(5), resource: R, extent: Extent::new(1, 2), op: Op::Read };
        assert_eq!(events, [Event::Accessed(read), fact(9)]);
        events.clear();
        tap.drain(&mut events);
        assert_eq!(events, []);
    }

    #[test]
    fn a_full_tap_drops_accesses_first_and_counts_them() {
        let tap = Tap::new(|| Instant::ORIGIN);
        for at in 0..ACCESSES_KEPT as u64 + 10 {
            tap.note(R, Extent::new(at, 1), Op::Write);
        }
        assert_eq!((tap.dropped(), tap.lost()), (10, 0));
        for at in 0..(FACTS_KEPT - ACCESSES_KEPT) as u64 + 3 {
            tap.tell(fact(at));
        }
        assert_eq!((tap.dropped(), tap.lost()), (10, 3));
        let mut events = Vec::new();
        tap.drain(&mut events);
        assert_eq!(events.len(), FACTS_KEPT);
    }

    #[test]
    fn a_fact_wakes_the_loop_and_an_access_does_not() {
        let tap = Arc::new(Tap::new(|| Instant::ORIGIN));
        let sleeper = thread::spawn({
            let tap = tap.clone();
            move || tap.wait(Duration::from_secs(60))
        });
        tap.note(R, Extent::new(1, 1), Op::Read);
        assert!(!tap.queue.lock().is_ripe());
        tap.tell(fact(1));
        assert!(sleeper.join().expect("the sleeper does not panic"));
    }

    #[test]
    fn waking_is_remembered_and_needs_no_event() {
        let tap = Tap::new(|| Instant::ORIGIN);
        tap.wake();
        assert!(!tap.wait(Duration::from_secs(60)));
    }
}
