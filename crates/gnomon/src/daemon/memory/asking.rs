//! Questions to many QEMUs at once, so that one that hangs holds up nobody else.
//!
//! ```text
//!   all ──► asked, each on a thread ──answers soon──► told
//!                      └── not soon: left out, and not asked again before it has answered that question
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// How long all of them may take together. A monitor answers within a millisecond, and within tens on a busy host.
const SOON: Duration = Duration::from_secs(2);

/// Who owes an answer, by name.
#[derive(Debug)]
pub(super) struct Asking {
    patience: Duration,
    owing: Arc<Mutex<BTreeSet<String>>>,
}

impl Default for Asking {
    fn default() -> Asking {
        Asking { patience: SOON, owing: Arc::default() }
    }
}

impl Asking {
    /// Asks each of these, and tells who has answered what. Blocks for two seconds at most.
    pub(super) fn all<Q, T>(
        &self,
        whom: impl IntoIterator<Item = (String, Q)>,
        question: fn(&Q) -> T,
    ) -> BTreeMap<String, T>
    where
        Q: Send + 'static,
        T: Send + 'static,
    {
        let (tell, told) = mpsc::channel();
        for (name, one) in whom {
            if !self.owing.lock().insert(name.clone()) {
                continue;
            }
            let (tell, owing) = (tell.clone(), Arc::clone(&self.owing));
            thread::spawn(move || {
                let answer = question(&one);
                owing.lock().remove(&name);
                // Whoever has asked may have left.
                let _ = tell.send((name, answer));
            });
        }
        drop(tell);
        let until = Instant::now() + self.patience;
        let next = || told.recv_timeout(until.saturating_duration_since(Instant::now())).ok();
        std::iter::from_fn(next).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(120);

    /// Answers with a number once it is given one.
    type Gate = Mutex<mpsc::Receiver<u32>>;

    fn ask(asking: &Asking, gates: Vec<(&str, Gate)>) -> Vec<(String, u32)> {
        let gates = gates.into_iter().map(|(name, gate)| (name.to_string(), gate));
        let answers = asking.all(gates, |gate| gate.lock().recv());
        answers.into_iter().map(|(name, answer)| (name, answer.expect("given"))).collect()
    }

    fn open(number: u32) -> Gate {
        let (open, gate) = mpsc::channel();
        open.send(number).expect("it listens");
        Mutex::new(gate)
    }

    #[test]
    fn one_that_hangs_is_left_out_and_not_asked_again_before_it_has_answered() {
        let mut asking = Asking { patience: Duration::ZERO, ..Asking::default() };
        let (answers, hangs) = mpsc::channel();
        assert_eq!(ask(&asking, vec![("web", Mutex::new(hangs))]), []);
        asking.patience = LONG;
        // This question would be answered.
        assert_eq!(ask(&asking, vec![("web", open(2)), ("db", open(3))]), [("db".to_string(), 3)]);
        answers.send(4).expect("it listens");
        while !asking.owing.lock().is_empty() {
            thread::yield_now();
        }
        let both = [("db".to_string(), 6), ("web".to_string(), 5)];
        assert_eq!(ask(&asking, vec![("web", open(5)), ("db", open(6))]), both);
    }
}
