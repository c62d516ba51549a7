//! The pacer with a clock and sleepers: each connection's writer passes here before each frame.

use std::time::Instant as Clock;

use gnomon_proto::Class;
use gnomon_terms::{Bytes, BytesPerSecond, Instant};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::Pacer;

/// The pacer of one session.
pub(crate) struct Gate {
    origin: Clock,
    state: Mutex<State>,
    /// Wakes the writer of a class: it has been granted, or should look again.
    wake: [Notify; Class::COUNT],
}

struct State {
    pacer: Pacer,
    granted: [bool; Class::COUNT],
}

impl Gate {
    pub(crate) fn new(rate: Option<BytesPerSecond>) -> Gate {
        let state = State { pacer: Pacer::new(rate, Instant::ORIGIN), granted: [false; Class::COUNT] };
        Gate { origin: Clock::now(), state: Mutex::new(state), wake: std::array::from_fn(|_| Notify::new()) }
    }

    /// Changes the rate; waiting frames look again.
    pub(crate) fn set_rate(&self, rate: Option<BytesPerSecond>) {
        self.state.lock().pacer.set_rate(rate, self.now());
        self.wake.iter().for_each(Notify::notify_one);
    }

    /// Waits until a frame of `class` may go. One caller per class: its writer.
    pub(crate) async fn pass(&self, class: Class, bytes: Bytes) {
        self.state.lock().pacer.want(class, bytes);
        loop {
            let (granted, due) = self.grant(class);
            if granted {
                return;
            }
            let woken = self.wake[class.index()].notified();
            match due {
                None => woken.await,
                Some(due) => {
                    let due = tokio::time::Instant::from_std(self.origin + due.since(Instant::ORIGIN));
                    let _ = tokio::time::timeout_at(due, woken).await;
                }
            }
        }
    }

    /// Hands out every grant there is; says whether `class` has one, and if not, when to look again.
    fn grant(&self, class: Class) -> (bool, Option<Instant>) {
        let mut state = self.state.lock();
        let now = self.now();
        while let Some(next) = state.pacer.poll(now) {
            state.granted[next.index()] = true;
            if next != class {
                self.wake[next.index()].notify_one();
            }
        }
        let granted = std::mem::take(&mut state.granted[class.index()]);
        (granted, state.pacer.poll_timeout())
    }

    fn now(&self) -> Instant {
        Instant::ORIGIN.after(self.origin.elapsed())
    }
}
