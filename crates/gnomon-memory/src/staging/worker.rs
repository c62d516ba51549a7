//! The worker: one thread that does one chore after the other, and populates at a low priority.
//!
//! It sleeps until something on the books changes, and looks at the host's memory once a second while there is anything
//! to look after. At most one block is populated at a time: populating is bound by memory bandwidth, and two at once
//! would only disturb the guests more. While it populates it gives way to others; otherwise it does not, because it
//! holds locks that requests wait for.

use std::{
    io,
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use gnomon_terms::Bytes;
use rustix::{
    process::{getpriority_process, setpriority_process},
    thread::gettid,
};

use super::shared::{Shared, log_imbalance};
use crate::{
    block::{Block, BlockId, POPULATE_STEP, Populated},
    groups::{GroupName, PageKind},
    holder::Holder,
    numa::NumaNode,
    pool::Chore,
};

/// How often the host's memory is looked at while something is staged or wanted. Pressure is told in averages of ten
/// seconds, and a guest that was started takes longer than one to touch its memory.
const LOOK: Duration = Duration::from_secs(1);

/// Between two looks that found nothing to do there is at least this time: thousands of requests a second are answered
/// by a hundred looks.
const BREATH: Duration = Duration::from_millis(10);

/// After a holder could not be started it is not tried for this time: a program that is not there, or a limit of
/// processes, is not mended within a second.
const HOLDER_PAUSE: Duration = Duration::from_secs(10);

/// How much nicer than the rest of this process a population is: a third of a share beside an ordinary task. What it
/// takes of the host is bounded by the groups' refill already (64 MiB a second are a twentieth of a processor). At the
/// lowest priority half a GiB took 100 s on a host with five tasks to a processor, against 4 s at the ordinary one: later
/// than it is of use. Source: sched(7), setpriority(2).
const NICER: i32 = 5;

/// A block to be populated.
struct Job {
    id: BlockId,
    group: GroupName,
    size: Bytes,
    pages: PageKind,
    node: Option<NumaNode>,
}

/// The thread's own state.
struct Worker<'a> {
    shared: &'a Shared,
    /// When a holder may be started again: after a failure not at once.
    holder_due: Instant,
    /// When it last looked for a chore.
    looked: Instant,
    /// The priority of the rest of this process.
    nice: i32,
}

/// Starts the thread.
pub(super) fn start(shared: Arc<Shared>) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name("memory-staging".into()).spawn(move || {
        // Of this thread alone: on Linux a priority belongs to a thread.
        let nice = getpriority_process(Some(gettid())).unwrap_or(0);
        Worker { shared: &shared, holder_due: Instant::now(), looked: Instant::now(), nice }.run();
    })
}

impl Worker<'_> {
    fn run(&mut self) {
        while !self.shared.books.lock().stopping {
            if !self.work() {
                self.rest();
            }
        }
    }

    /// One chore. False when there was none.
    fn work(&mut self) -> bool {
        self.looked = Instant::now();
        self.look_after_the_holder();
        let leaving = self.shared.leaving();
        if !leaving.is_empty() {
            return self.let_go(&leaving);
        }
        let verdict = self.shared.judge();
        let chore = self.shared.books.lock().pool.chore(self.shared.clock.now(), &verdict);
        // What is begun is a change for whoever waits for one, and none for this thread.
        self.shared.changed.notify_all();
        match chore {
            Ok(Chore::LetGo { id, why }) => {
                tracing::debug!(%id, ?why, "a staged block goes back to the host");
                self.let_go(&[id])
            }
            Ok(Chore::Stage { id, group, size, pages, node }) => {
                self.stage(Job { id, group, size, pages, node });
                true
            }
            Ok(Chore::Rest) => false,
            Err(error) => {
                log_imbalance(Err(error));
                false
            }
        }
    }

    /// Sleeps until the books change, or until the next look.
    fn rest(&mut self) {
        let mut books = self.shared.books.lock();
        let breath = self.looked + BREATH;
        while !books.stopping && !self.shared.changed.wait_until(&mut books, breath).timed_out() {}
        if books.stopping {
            return;
        }
        if !books.unseen {
            if books.pool.is_idle() && books.leaving.is_empty() {
                self.shared.changed.wait(&mut books);
            } else {
                self.shared.changed.wait_for(&mut books, LOOK);
            }
        }
        books.unseen = false;
    }

    /// False when a block could not be given back: the next look tries again.
    fn let_go(&mut self, ids: &[BlockId]) -> bool {
        match self.shared.let_go(ids) {
            Ok(()) => true,
            Err(error) => {
                tracing::error!(%error, "a block could not be given back to the host");
                false
            }
        }
    }

    /// A holder that has died is replaced, and is given what it had.
    fn look_after_the_holder(&mut self) {
        let mut holder = self.shared.holder.lock();
        if !holder.is_up() && !self.shared.books.lock().pool.unseen().is_empty() {
            self.ensure(&mut holder);
        }
    }

    /// Makes sure that there is a holder and that it has what no guest has seen. False when there is none.
    fn ensure(&mut self, holder: &mut Holder) -> bool {
        if holder.is_up() {
            return true;
        }
        if Instant::now() < self.holder_due {
            return false;
        }
        match holder.ensure() {
            Ok(is_new) => {
                if is_new {
                    self.shared.hold_again(holder);
                }
                true
            }
            Err(error) => {
                tracing::warn!(%error, "staged memory would not outlive this daemon");
                self.holder_due = Instant::now() + HOLDER_PAUSE;
                false
            }
        }
    }

    /// Makes a block, populates it, has it held, and puts it on its shelf.
    fn stage(&mut self, job: Job) {
        let began = Instant::now();
        set_priority(self.nice + NICER);
        let populated = Block::create(&job.group, job.id, job.size, job.pages).map(Arc::new).and_then(|block| {
            let populated = block.populate(job.node, POPULATE_STEP, &mut || self.may_go_on(&job));
            Ok((block, populated?))
        });
        set_priority(self.nice);
        let took = began.elapsed();
        match populated {
            Ok((block, Populated::Whole)) => self.finish(&job, block, took),
            Ok((block, Populated::GivenUp)) => {
                drop(block);
                tracing::debug!(id = %job.id, group = %job.group, "a population was given up");
                self.give_up(&job);
            }
            Err(error) => {
                tracing::warn!(group = %job.group, %error, "a block could not be staged");
                self.shared.books.lock().pool.hold_off(self.shared.clock.now());
                self.give_up(&job);
            }
        }
    }

    /// Asked between two steps of a population.
    fn may_go_on(&mut self, job: &Job) -> bool {
        let (verdict, now) = (self.shared.judge(), self.shared.clock.now());
        let mut books = self.shared.books.lock();
        !books.stopping && books.pool.may_go_on(now, &job.group, (job.pages, job.node), &verdict)
    }

    /// Held first, then on its shelf: from there on it may be taken at any moment, and forgotten.
    fn finish(&mut self, job: &Job, block: Arc<Block>, took: Duration) {
        let node = self.shared.node_of(&block);
        let mut holder = self.shared.holder.lock();
        if self.ensure(&mut holder)
            && let Err(error) = holder.keep(&block)
        {
            tracing::warn!(%error, "a staged block would not outlive this daemon");
        }
        drop(holder);
        let now = self.shared.clock.now();
        match self.shared.change(|books| books.pool.populated(now, job.id, block, node, took)) {
            Ok(true) => {}
            Ok(false) => drop(self.let_go(&[job.id])),
            Err(error) => log_imbalance(Err(error)),
        }
    }

    /// The block was dropped, and nobody else had it: its memory is back at the host.
    fn give_up(&mut self, job: &Job) {
        let released = self.shared.change(|books| {
            books.pool.given_up(job.id)?;
            books.pool.released(job.id)
        });
        log_imbalance(released);
    }
}

/// Of this thread. Without the right to raise it again it stays low, and without either staging works all the same. Beyond
/// the lowest the kernel takes the lowest.
fn set_priority(nice: i32) {
    if let Err(error) = setpriority_process(Some(gettid()), nice) {
        tracing::debug!(%error, nice, "the priority of staging stays as it is");
    }
}
