//! How much of a guest's memory may be on its way: enough to keep the link busy, and little more.
//!
//! QEMU lets the guest stand once what is left to send fits into the time it may stand, and it counts as sent what it
//! has written. Whatever waits in queues and socket buffers behind its back is time that the guest stands longer
//! (measured at 400 Mbit/s: 200 ms of a gap of 280). So the receiver says how much it has taken, and the sender keeps
//! no more on its way than the link holds by itself and [`STANDING`] more, which also makes QEMU's own estimate of the
//! rate a true one.
//!
//! Source: N. Cardwell et al., "BBR: Congestion-Based Congestion Control", ACM Queue 2016 (the rate as a maximum, the
//! round trip as a minimum, of what was measured lately).

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};

/// How long the queue on the link may be, in time: below it the link may run dry between two wake-ups of a thread.
const STANDING: Duration = Duration::from_millis(8);
/// The share of a round trip's worth of bytes that is allowed beyond it: the window grows by it each round trip while
/// the link takes more.
const GROWTH: f64 = 0.25;
/// The window before anything is known: eight chunks of the relay.
const FIRST: u64 = 256 << 10;
/// The least window: two chunks, so that one is on its way while the other is acknowledged.
const LEAST: u64 = 64 << 10;
/// The most: 100 ms at 100 Gbit/s would be ten times that, and a guest's memory never fills such a link.
const MOST: u64 = 128 << 20;
/// A rate is measured over at least this long: acknowledgements come in bunches.
const SPAN: Duration = Duration::from_millis(20);
/// Measured rates that are remembered: one second of them.
const RATES: usize = 50;
/// How long a shortest round trip is believed: a path may become longer.
const BELIEVED: Duration = Duration::from_secs(10);

/// The window's arithmetic. Times count from any one moment.
#[derive(Debug, Default)]
struct Flow {
    sent: u64,
    taken: u64,
    /// Ends of what was sent and not taken yet, and when each was sent.
    on_the_way: VecDeque<(u64, Duration)>,
    /// The shortest round trip of this spell of [`BELIEVED`] and of the one before, and when this one began.
    round_trips: (Option<Duration>, Option<Duration>, Duration),
    /// When the measurement under way began, and what had been taken then.
    since: Option<(Duration, u64)>,
    /// Bytes a second.
    rates: VecDeque<f64>,
}

impl Flow {
    /// How much may be on its way.
    fn allowance(&self) -> u64 {
        let rate = self.rates.iter().copied().fold(0.0, f64::max);
        let Some(round_trip) = self.round_trip() else { return FIRST };
        let time = round_trip.as_secs_f64() * (1.0 + GROWTH) + STANDING.as_secs_f64();
        ((rate * time) as u64).clamp(LEAST, MOST)
    }

    fn round_trip(&self) -> Option<Duration> {
        let (this, before, _) = self.round_trips;
        [this, before].into_iter().flatten().min()
    }

    fn note_round_trip(&mut self, now: Duration, took: Duration) {
        let (this, before, began) = &mut self.round_trips;
        if now.saturating_sub(*began) > BELIEVED {
            (*before, *this, *began) = (this.take(), None, now);
        }
        *this = Some(this.map_or(took, |least| least.min(took)));
    }

    fn has_room(&self) -> bool {
        self.sent - self.taken < self.allowance()
    }

    fn send(&mut self, now: Duration, bytes: u64) {
        if self.sent == self.taken {
            // The link was idle, and idleness says nothing about its rate.
            self.since = Some((now, self.taken));
        }
        self.sent += bytes;
        self.on_the_way.push_back((self.sent, now));
    }

    /// The receiver has taken everything up to `taken`. What it cannot have is not believed.
    fn acknowledge(&mut self, now: Duration, taken: u64) {
        if taken <= self.taken || taken > self.sent {
            return;
        }
        self.taken = taken;
        while let Some((end, sent_at)) = self.on_the_way.front().copied().filter(|(end, _)| *end <= taken) {
            self.on_the_way.pop_front();
            if end == taken {
                self.note_round_trip(now, now.saturating_sub(sent_at).max(Duration::from_micros(1)));
            }
        }
        self.measure(now);
    }

    fn measure(&mut self, now: Duration) {
        let Some((since, then)) = self.since else { return };
        let span = now.saturating_sub(since);
        if span >= SPAN {
            if self.rates.len() == RATES {
                self.rates.pop_front();
            }
            self.rates.push_back((self.taken - then) as f64 / span.as_secs_f64());
            self.since = Some((now, self.taken));
        }
    }
}

/// The window of one session's memory stream, shared by the relay and whoever hears the receiver.
pub struct Window {
    began: Instant,
    state: Mutex<(Flow, bool)>,
    changed: Condvar,
}

impl Default for Window {
    fn default() -> Window {
        Window { began: Instant::now(), state: Mutex::default(), changed: Condvar::new() }
    }
}

impl Window {
    /// Waits until `bytes` more may be sent, and counts them as sent. False: the session is over.
    pub fn enter(&self, bytes: usize) -> bool {
        let mut state = self.state.lock();
        while !state.1 && !state.0.has_room() {
            self.changed.wait(&mut state);
        }
        state.0.send(self.began.elapsed(), bytes as u64);
        !state.1
    }

    /// Waits until the receiver has taken all that was sent. False: the session is over.
    pub fn drain(&self) -> bool {
        let mut state = self.state.lock();
        while !state.1 && state.0.taken < state.0.sent {
            self.changed.wait(&mut state);
        }
        !state.1
    }

    /// The receiver has taken so many bytes since the stream began.
    pub fn acknowledge(&self, taken: u64) {
        self.state.lock().0.acknowledge(self.began.elapsed(), taken);
        self.changed.notify_all();
    }

    /// The session is over: nobody waits any more.
    pub fn end(&self) {
        self.state.lock().1 = true;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A link of `rate` bytes a second and `delay` each way, and a sender that always has more, for `seconds`. Returns
    /// the rate that came through and the longest queue in the second half of the time.
    fn run(rate: f64, delay: Duration, seconds: u64) -> (f64, Duration) {
        const CHUNK: u64 = 32 << 10;
        const STEP: Duration = Duration::from_micros(100);
        let mut flow = Flow::default();
        let (mut now, end) = (Duration::ZERO, Duration::from_secs(seconds));
        let mut free_at = Duration::ZERO;
        let mut arriving: VecDeque<(Duration, u64)> = VecDeque::new();
        let (mut longest, mut at_half) = (Duration::ZERO, 0);
        while now < end {
            while let Some((_, taken)) = arriving.front().copied().filter(|(at, _)| *at <= now) {
                arriving.pop_front();
                flow.acknowledge(now, taken);
            }
            while flow.has_room() {
                flow.send(now, CHUNK);
                free_at = free_at.max(now) + Duration::from_secs_f64(CHUNK as f64 / rate);
                arriving.push_back((free_at + delay * 2, flow.sent));
            }
            match now < end / 2 {
                true => at_half = flow.taken,
                false => longest = longest.max(free_at.saturating_sub(now)),
            }
            now += STEP;
        }
        ((flow.taken - at_half) as f64 / (end / 2).as_secs_f64(), longest)
    }

    #[test]
    fn the_link_is_full_and_its_queue_short() {
        let table = [(1.25e6, 1, 8), (50e6, 1, 4), (50e6, 20, 8), (1.25e9, 1, 4), (12.5e6, 5, 8), (125e6, 50, 20)];
        for (rate, delay_ms, seconds) in table {
            let (got, queue) = run(rate, Duration::from_millis(delay_ms), seconds);
            assert!(got > 0.93 * rate, "{rate} B/s, {delay_ms} ms: {got}");
            // The least window is longer than the aim on a slow link; beyond that a quarter of a round trip and the aim.
            let least = Duration::from_secs_f64(LEAST as f64 / rate);
            let aim = STANDING * 2 + Duration::from_millis(delay_ms);
            assert!(queue <= aim.max(least * 2), "{rate} B/s, {delay_ms} ms: {queue:?}");
        }
    }

    #[test]
    fn what_cannot_be_is_not_believed() {
        let mut flow = Flow::default();
        flow.send(Duration::ZERO, 100);
        flow.acknowledge(Duration::from_millis(1), 101);
        assert_eq!((flow.taken, flow.round_trip()), (0, None));
        flow.acknowledge(Duration::from_millis(2), 100);
        flow.acknowledge(Duration::from_millis(3), 50);
        assert_eq!((flow.taken, flow.round_trip()), (100, Some(Duration::from_millis(2))));
    }

    #[test]
    fn a_path_that_becomes_longer_is_noticed() {
        let mut flow = Flow::default();
        let (near, far) = (Duration::from_millis(1), Duration::from_millis(50));
        for second in 0..40 {
            let (now, round_trip) = (Duration::from_secs(second), if second < 10 { near } else { far });
            flow.send(now, 1000);
            flow.acknowledge(now + round_trip, flow.sent);
        }
        assert_eq!(flow.round_trip(), Some(far));
    }

    #[test]
    fn what_is_on_its_way_is_waited_for() {
        let window = Window::default();
        assert!(window.drain(), "nothing is");
        assert!(window.enter(10) && window.enter(20));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| window.drain());
            window.acknowledge(10);
            assert!(!waiting.is_finished(), "the rest is on its way");
            window.acknowledge(30);
            assert!(waiting.join().expect("a thread"));
        });
        assert!(window.enter(1));
        window.end();
        assert!(!window.drain(), "it will never be taken");
    }

    #[test]
    fn an_end_lets_everybody_go() {
        let window = Window::default();
        assert!(window.enter(FIRST as usize));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| window.enter(1));
            window.end();
            assert!(!waiting.join().expect("a thread"));
        });
    }
}
