//! What an expert's forecasts were worth lately: counts in windows, two of which are looked at.

use std::time::Duration;

use gnomon_terms::Bytes;

use crate::gate::Ended;
use crate::history::TICKS_PER_SECOND;
use crate::predictor::ExpertScore;

/// Ends of forecasts that close a window, and reads that do. Some thousand: minutes of a busy disk.
const WINDOW: (u32, u32) = (1024, 8192);
/// Ends that a window needs for its precision to be compared with the one before.
const PROOF: u32 = 64;

#[derive(Clone, Copy, Debug, Default)]
struct Window {
    ended: u32,
    came_true: u32,
    /// Ticks from forecasts to the reads that made them true.
    lead: u64,
    reads: u32,
}

impl Window {
    fn precision(&self) -> f32 {
        self.came_true as f32 / self.ended.max(1) as f32
    }
}

/// The counts of one expert.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    before: Window,
    now: Window,
}

impl Tally {
    /// A forecast has ended. True when the window that closes with it is less than half as precise as the one before:
    /// what the expert knew is no longer so.
    pub fn ended(&mut self, ended: Ended) -> bool {
        self.now.ended += 1;
        if ended.came_true {
            self.now.came_true += 1;
            self.now.lead += u64::from(ended.lead);
        }
        self.now.ended >= WINDOW.0 && self.turn()
    }

    /// So many lacking units were read, foretold or not.
    pub fn read(&mut self, units: u32) {
        self.now.reads += units;
        if self.now.reads >= WINDOW.1 {
            self.turn();
        }
    }

    fn turn(&mut self) -> bool {
        let (before, now) = (self.before, self.now);
        (self.before, self.now) = (now, Window::default());
        before.ended >= PROOF && now.ended >= PROOF && now.precision() < before.precision() / 2.0
    }

    /// The counts as a score.
    pub fn score(&self, expert: &'static str, weight: f32, unit: Bytes, state: Bytes) -> ExpertScore {
        let sum = |of: fn(&Window) -> u64| of(&self.before) + of(&self.now);
        let (ended, came_true) = (sum(|w| u64::from(w.ended)), sum(|w| u64::from(w.came_true)));
        let share = |part: u64, of: u64| part as f32 / of.max(1) as f32;
        let lead = sum(|w| w.lead) as f32 / came_true.max(1) as f32 / TICKS_PER_SECOND;
        ExpertScore {
            expert,
            weight,
            ended,
            precision: share(came_true, ended),
            coverage: share(came_true, sum(|w| u64::from(w.reads))).min(1.0),
            lead: Duration::from_secs_f32(lead),
            wasted: Bytes((ended - came_true) * unit.0),
            state,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRUE: Ended = Ended { class: 0, came_true: true, lead: 60 };
    const FALSE: Ended = Ended { class: 0, came_true: false, lead: 600 };

    #[test]
    fn a_score_is_of_two_windows() {
        let mut tally = Tally::default();
        for _ in 0..300 {
            tally.ended(TRUE);
            tally.ended(FALSE);
            tally.read(4);
        }
        let score = tally.score("x", 0.5, Bytes(10), Bytes(7));
        assert_eq!((score.ended, score.precision, score.coverage), (600, 0.5, 0.25));
        assert_eq!((score.wasted, score.state, score.weight), (Bytes(3000), Bytes(7), 0.5));
        assert!((score.lead.as_secs_f32() - 1.0).abs() < 0.05, "{score:?}");
    }

    #[test]
    fn a_fall_is_noticed_once_and_a_rise_is_none() {
        let mut tally = Tally::default();
        let mut falls = |ended: Ended| (0..WINDOW.0).filter(|_| tally.ended(ended)).count();
        assert_eq!([falls(FALSE), falls(TRUE), falls(TRUE), falls(FALSE), falls(FALSE)], [0, 0, 0, 1, 0]);
    }
}
