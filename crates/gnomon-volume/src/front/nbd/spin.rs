//! Waiting for the next request: first look again and again for a moment, then sleep.
//!
//! Being woken costs more than serving a 4 KiB read from memory. A client at queue depth 1 sends its next request a
//! few microseconds after a reply, so looking for that long is cheaper than sleeping. It must not harm anyone else:
//! a thread looks only while requests have been following replies this closely, only while another core is left
//! for the client, and stops for a while when the system takes the core away from it.

use std::{
    hint, io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use super::stream::Stream;

/// How long to look. A wake-up costs 10–50 µs; looking longer than it would cost is a loss.
const LOOK_FOR: Duration = Duration::from_micros(40);

/// A look takes about 1 µs. A longer gap means that another thread wanted this core.
const PUSHED_ASIDE: Duration = Duration::from_micros(150);

/// How long not to look after having been pushed aside.
const STAND_BACK: Duration = Duration::from_millis(5);

/// Longest wait that enters the average, so that one pause does not take dozens of requests to forget.
const LONGEST: Duration = Duration::from_micros(400);

/// Threads of one server that may look at the same time.
#[derive(Clone)]
pub(super) struct Lookouts {
    free: Arc<AtomicUsize>,
}

impl Lookouts {
    /// All cores but one.
    pub(super) fn of_this_host() -> Lookouts {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        Lookouts { free: Arc::new(AtomicUsize::new(cores - 1)) }
    }

    fn take(&self) -> bool {
        self.free.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |free| free.checked_sub(1)).is_ok()
    }

    fn give_back(&self) {
        self.free.fetch_add(1, Ordering::Relaxed);
    }
}

/// One connection's habit of waiting.
pub(super) struct Spin {
    lookouts: Lookouts,
    /// Moving average of how long requests took to arrive.
    usual: Duration,
    not_before: Option<Instant>,
}

impl Spin {
    pub(super) fn new(lookouts: Lookouts) -> Spin {
        Spin { lookouts, usual: LONGEST, not_before: None }
    }

    /// Receives at least one byte into `into`, or 0 when the client has closed. Blocks.
    pub(super) fn recv(&mut self, stream: &Stream, into: &mut [u8]) -> io::Result<usize> {
        let from = Instant::now();
        if self.is_worth_it(from) && self.lookouts.take() {
            let seen = self.look(stream, into, from);
            self.lookouts.give_back();
            if let Some(received) = seen {
                return received;
            }
        }
        let received = stream.recv(into, true);
        self.learn(from.elapsed());
        received
    }

    /// `None` when nothing came.
    fn look(&mut self, stream: &Stream, into: &mut [u8], from: Instant) -> Option<io::Result<usize>> {
        let mut before = from;
        loop {
            let received = stream.recv(into, false);
            let now = Instant::now();
            if now - before > PUSHED_ASIDE {
                self.not_before = Some(now + STAND_BACK);
            }
            match received {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => {
                    self.learn(now - from);
                    return Some(done);
                }
            }
            if now - from > LOOK_FOR {
                return None;
            }
            before = now;
            hint::spin_loop();
        }
    }

    fn is_worth_it(&mut self, now: Instant) -> bool {
        if self.not_before.is_some_and(|then| now < then) {
            return false;
        }
        self.not_before = None;
        self.usual < LOOK_FOR
    }

    fn learn(&mut self, waited: Duration) {
        self.usual = (self.usual * 7 + waited.min(LONGEST)) / 8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looking_begins_when_requests_follow_closely_and_ends_when_they_do_not() {
        let mut spin = Spin::new(Lookouts::of_this_host());
        let now = Instant::now();
        assert!(!spin.is_worth_it(now), "nothing is known yet");
        (0..40).for_each(|_| spin.learn(Duration::from_micros(10)));
        assert!(spin.is_worth_it(now));
        spin.learn(Duration::from_secs(1));
        assert!(!spin.is_worth_it(now), "one pause is enough to sleep");
        (0..8).for_each(|_| spin.learn(Duration::from_micros(10)));
        assert!(spin.is_worth_it(now), "and soon forgotten");
        spin.not_before = Some(now + STAND_BACK);
        assert!(!spin.is_worth_it(now), "someone else needs the core");
        assert!(spin.is_worth_it(now + STAND_BACK));
    }

    #[test]
    fn one_core_is_left_for_the_client() {
        let lookouts = Lookouts { free: Arc::new(AtomicUsize::new(1)) };
        assert!(lookouts.take());
        assert!(!lookouts.take());
        lookouts.give_back();
        assert!(lookouts.take());
    }
}
