//! Helper threads of one client: they carry out what would make its own thread wait.
//!
//! They belong to one connection, so a client whose requests all wait for a silent host holds up nobody else. They
//! are started when there is work and none is idle, and leave after a while without work. The queue is bounded in
//! requests and in bytes; when it is full the connection stops receiving, and TCP tells the client to slow down.

use std::{collections::VecDeque, sync::Arc, thread, time::Duration};

use parking_lot::{Condvar, Mutex};

/// Threads of one connection: as many requests wait at once, which hides a WAN's latency at queue depths in use.
pub(in crate::front) const THREADS: usize = 16;

/// Requests that wait for a thread.
const QUEUE: usize = 64;

/// Bytes of payload that all requests of one connection hold: one of the longest writes, or many short ones.
pub(in crate::front) const BUDGET: usize = 32 << 20;

/// How long a thread stays without work.
const IDLE: Duration = Duration::from_secs(5);

/// What a helper does, and how many bytes of memory it holds until then.
pub(in crate::front) struct Job {
    pub(in crate::front) bytes: usize,
    pub(in crate::front) work: Box<dyn FnOnce() + Send>,
}

/// The helpers of one connection. Dropping it waits until all work is done.
pub(in crate::front) struct Helpers {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    work: Condvar,
    room: Condvar,
    left: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Job>,
    /// Held by requests in the queue and in the threads' hands.
    bytes: usize,
    /// Requests in the queue and in the threads' hands.
    pending: usize,
    idle: usize,
    threads: usize,
    closing: bool,
}

impl State {
    fn has_room(&self, bytes: usize) -> bool {
        // A request larger than the budget passes alone.
        self.queue.len() < QUEUE && (self.bytes == 0 || self.bytes + bytes <= BUDGET)
    }
}

impl Helpers {
    pub(in crate::front) fn new() -> Helpers {
        Helpers { shared: Arc::default() }
    }

    /// Whether [`Helpers::hand_over`] would return at once. Only the connection's thread adds, so yes stays yes.
    pub(in crate::front) fn has_room(&self, bytes: usize) -> bool {
        self.shared.state.lock().has_room(bytes)
    }

    /// Hands work to a thread. Blocks while the queue is full.
    pub(in crate::front) fn hand_over(&self, job: Job) {
        let mut state = self.shared.state.lock();
        self.shared.room.wait_while(&mut state, |state| !state.has_room(job.bytes));
        state.bytes += job.bytes;
        state.pending += 1;
        state.queue.push_back(job);
        if state.queue.len() > state.idle && state.threads < THREADS {
            state.threads += 1;
            drop(state);
            self.start_thread();
        } else {
            self.shared.work.notify_one();
        }
    }

    /// Blocks until all work handed over so far is done. Only for the thread that hands it over.
    pub(in crate::front) fn wait_until_idle(&self) {
        let mut state = self.shared.state.lock();
        self.shared.room.wait_while(&mut state, |state| state.pending > 0);
    }

    fn start_thread(&self) {
        let shared = self.shared.clone();
        if let Err(error) = thread::Builder::new().name("nbd-helper".into()).spawn(move || shared.help()) {
            tracing::warn!(%error, "no thread for a waiting request: it is carried out by its connection's thread");
            self.shared.carry_out_one();
            self.shared.leave(&mut self.shared.state.lock());
        }
    }
}

impl Drop for Helpers {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        state.closing = true;
        self.shared.work.notify_all();
        self.shared.left.wait_while(&mut state, |state| state.threads > 0);
    }
}

impl Shared {
    fn help(&self) {
        let mut state = self.state.lock();
        loop {
            while let Some(job) = state.queue.pop_front() {
                drop(state);
                (job.work)();
                state = self.state.lock();
                state.bytes -= job.bytes;
                state.pending -= 1;
                self.room.notify_all();
            }
            if state.closing {
                break;
            }
            state.idle += 1;
            let timed_out = self.work.wait_for(&mut state, IDLE).timed_out();
            state.idle -= 1;
            if timed_out && state.queue.is_empty() {
                break;
            }
        }
        self.leave(&mut state);
    }

    fn carry_out_one(&self) {
        let job = self.state.lock().queue.pop_front();
        if let Some(job) = job {
            (job.work)();
            let mut state = self.state.lock();
            state.bytes -= job.bytes;
            state.pending -= 1;
        }
    }

    fn leave(&self, state: &mut State) {
        state.threads -= 1;
        self.left.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Barrier,
        atomic::{AtomicUsize, Ordering},
    };

    use super::*;

    #[test]
    fn all_work_is_done_before_the_helpers_go() {
        let done = Arc::new(AtomicUsize::new(0));
        let helpers = Helpers::new();
        for _ in 0..500 {
            let done = done.clone();
            let work = Box::new(move || {
                done.fetch_add(1, Ordering::Relaxed);
            });
            helpers.hand_over(Job { bytes: BUDGET / 3, work });
        }
        drop(helpers);
        assert_eq!(done.load(Ordering::Relaxed), 500);
    }

    #[test]
    fn requests_wait_side_by_side() {
        let together = Arc::new(Barrier::new(THREADS));
        let helpers = Helpers::new();
        for _ in 0..THREADS {
            let together = together.clone();
            // Ends only when all of them are under way at once.
            let work = Box::new(move || {
                together.wait();
            });
            helpers.hand_over(Job { bytes: 0, work });
        }
    }

    #[test]
    fn memory_is_bounded_and_one_large_request_still_passes() {
        let state = State { bytes: BUDGET - 10, ..State::default() };
        assert!(state.has_room(10) && !state.has_room(11));
        assert!(State::default().has_room(2 * BUDGET));
    }
}
