//! When the next checkpoint is due.

use std::time::{Duration, Instant};

use gnomon_terms::BytesPerSecond;

use super::Told;
use crate::interval::{Adaptive, Allowance, Cost};

/// How often a guest is checkpointed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// So long from the beginning of one to that of the next.
    Every(Duration),
    /// As its pauses and the link allow.
    Adaptive(Allowance),
}

/// When the next one is due.
pub(super) struct Rhythm {
    pace: Pace,
    adaptive: Adaptive,
    /// How fast the link is.
    pub link: Option<BytesPerSecond>,
    began: Option<Instant>,
}

impl Rhythm {
    /// None was taken yet.
    pub fn new(pace: Pace) -> Rhythm {
        let allowance = match pace {
            Pace::Every(_) => Allowance::default(),
            Pace::Adaptive(allowance) => allowance,
        };
        Rhythm { pace, adaptive: Adaptive::new(allowance), link: None, began: None }
    }

    /// Another pace. What was learned of the guest is learned anew.
    pub fn set_pace(&mut self, pace: Pace) {
        *self = Rhythm { link: self.link, began: self.began, ..Rhythm::new(pace) };
    }

    /// How long it has been since the last one began; zero before the first.
    pub fn since_last(&self, now: Instant) -> Duration {
        self.began.map_or(Duration::ZERO, |before| now - before)
    }

    /// One was taken, begun at `began`.
    pub fn begin(&mut self, began: Instant) {
        self.began = Some(began);
    }

    /// One has cost this. The first one that a shadow gets carries all of the memory, and says nothing of the next: it is
    /// not told of here.
    pub fn observe(&mut self, told: &Told) {
        self.adaptive.observe(Cost { pause: told.pause, bytes: told.bytes, after: told.after });
    }

    /// How long until the next one.
    pub fn due_in(&self, now: Instant) -> Duration {
        let interval = match self.pace {
            Pace::Every(interval) => interval,
            Pace::Adaptive(_) => self.adaptive.interval(self.link),
        };
        self.began.map_or(Duration::ZERO, |began| (began + interval).saturating_duration_since(now))
    }
}

#[cfg(test)]
mod tests {
    use gnomon_terms::Bytes;

    use super::*;

    #[test]
    fn the_next_one_is_an_interval_after_the_last_began() {
        let (start, ms) = (Instant::now(), Duration::from_millis);
        let mut rhythm = Rhythm::new(Pace::Every(ms(100)));
        assert_eq!(rhythm.due_in(start), Duration::ZERO, "the first is due at once");
        rhythm.begin(start);
        assert_eq!(rhythm.due_in(start + ms(30)), ms(70));
        assert_eq!(rhythm.due_in(start + ms(300)), Duration::ZERO, "late is not made up for");
        assert_eq!(rhythm.since_last(start + ms(30)), ms(30));
    }

    #[test]
    fn what_one_cost_sets_the_pace_of_the_next() {
        let (start, ms) = (Instant::now(), Duration::from_millis);
        let mut rhythm = Rhythm::new(Pace::Adaptive(Allowance::default()));
        rhythm.begin(start);
        let before = rhythm.due_in(start);
        rhythm.observe(&Told { pause: ms(5), bytes: Bytes(9), after: ms(100), ..Told::default() });
        assert_eq!((before, rhythm.due_in(start)), (ms(100), ms(50)));
    }
}
