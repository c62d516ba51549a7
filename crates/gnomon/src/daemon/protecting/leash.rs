//! Whether the guest's processors may run on this node, as its guard says.
//!
//! ```text
//!   the guard:  hold ── then it stops the guest ─►  │  ◄── let_run ── then it lets the guest go on
//!   whoever makes a guest run that it made stand:   └── run(deed): waits while it is held
//! ```
//! A checkpoint makes the guest stand and go on many times a second, on another thread than the guard's. Between the two
//! words of the guard nothing of that may make it run.

use std::{sync::Arc, time::Duration};

use gnomon_machine::primary::{Hypervisor, QemuHypervisor};
use gnomon_qemu::{Qemu, RunState, StateError};
use parking_lot::{Condvar, Mutex};

use crate::api::ApiError;

/// The guard's last word on a guest. A guest without a guard may always run.
#[derive(Default)]
pub struct Leash {
    word: Mutex<Word>,
    changed: Condvar,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Word {
    /// It may run.
    #[default]
    Run,
    /// It has to stand until there is another word.
    Stand,
    /// There will be none, for the protection is over or the daemon stops: it is left as it was then.
    Over {
        /// Whether it might run.
        runs: bool,
    },
}

impl Leash {
    /// From now on nobody makes the guest run. One that runs is stopped by the caller, afterwards.
    pub fn hold(&self) {
        self.say(Word::Stand);
    }

    /// From now on it may run.
    pub fn let_run(&self) {
        self.say(Word::Run);
    }

    /// Nobody waits any more; a guest that is held is left standing.
    pub fn end(&self) {
        self.say_after(|before| Word::Over { runs: before.lets_run() });
    }

    /// Whether the guest may run now.
    pub fn lets_run(&self) -> bool {
        self.word.lock().lets_run()
    }

    /// Waits until the guest may run, and does what makes it run; `None`, and nothing done, when it is over. A guest that
    /// is to stand meanwhile is held as soon as this is done.
    pub fn run<T>(&self, deed: impl FnOnce() -> T) -> Option<T> {
        let mut word = self.word.lock();
        self.changed.wait_while(&mut word, |word| *word == Word::Stand);
        word.lets_run().then(deed)
    }

    fn say(&self, new: Word) {
        self.say_after(|_| new);
    }

    fn say_after(&self, new: impl FnOnce(Word) -> Word) {
        let mut word = self.word.lock();
        if !matches!(*word, Word::Over { .. }) {
            *word = new(*word);
        }
        self.changed.notify_all();
    }
}

impl Word {
    fn lets_run(self) -> bool {
        matches!(self, Word::Run | Word::Over { runs: true })
    }
}

/// A guest in a QEMU of ours that runs only while it may.
pub struct Leashed {
    qemu: Arc<Qemu>,
    inner: QemuHypervisor,
    leash: Arc<Leash>,
}

impl Leashed {
    /// The guest of `qemu`.
    pub fn new(qemu: Arc<Qemu>, inner: QemuHypervisor, leash: Arc<Leash>) -> Leashed {
        Leashed { qemu, inner, leash }
    }
}

impl Hypervisor for Leashed {
    fn stand(&mut self) -> Result<(), StateError> {
        // A guest that stands has nothing new to say.
        self.leash.run(|| ());
        let stood = self.inner.stand();
        if stood.is_err()
            && !self.leash.lets_run()
            && let Err(error) = self.qemu.qmp().stop()
        {
            // A capture that fails lets the guest run as before.
            tracing::error!(pid = self.qemu.record().pid, %error, "a guest that has to stand may run");
        }
        stood
    }

    fn go_on(&mut self) -> Result<Duration, StateError> {
        let inner = &mut self.inner;
        match self.leash.run(|| inner.go_on()) {
            Some(went) => went,
            None => {
                self.inner.hand_over();
                Ok(Duration::ZERO)
            }
        }
    }

    fn device(&self) -> Result<Vec<u8>, StateError> {
        self.inner.device()
    }

    fn hand_over(&mut self) {
        self.inner.hand_over();
    }
}

/// Makes a guest go on that stands because its guard held it.
pub fn let_go_on(leash: &Leash, qemu: &Qemu) -> Result<(), ApiError> {
    let went = leash.run(|| match qemu.qmp().query_status()?.state {
        RunState::Paused => qemu.qmp().cont(),
        _ => Ok(()),
    });
    Ok(went.unwrap_or(Ok(()))?)
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread};

    use super::*;

    #[test]
    fn what_makes_a_guest_run_waits_for_the_word() {
        let leash = Arc::new(Leash::default());
        assert_eq!(leash.run(|| 1), Some(1), "without a guard");
        leash.hold();
        let (tell, told) = mpsc::channel();
        let held = Arc::clone(&leash);
        let waiting = thread::spawn(move || {
            tell.send(()).expect("sent");
            held.run(|| held.word.try_lock().is_none())
        });
        told.recv().expect("it begins");
        assert!(!leash.lets_run());
        leash.let_run();
        assert_eq!(waiting.join().expect("done"), Some(true), "nobody holds it in the midst of it");
    }

    #[test]
    fn when_it_is_over_nobody_waits_and_it_is_left_as_it_was() {
        let leash = Leash::default();
        leash.end();
        leash.hold();
        assert_eq!(leash.run(|| ()), Some(()), "a checkpoint that is under way ends");
        let leash = Leash::default();
        leash.hold();
        leash.end();
        assert_eq!(leash.run(|| ()), None);
        leash.let_run();
        assert_eq!(leash.run(|| ()), None, "for good");
    }
}
