//! Are the forecasts worth anything? A static reserve of the same idle bytes says so.
//!
//! ```text
//!   Cold ──enough was asked for──► Forecast ──lately worse than the rival──► Silent
//!                                      ▲                                       │
//!                                      └────────lately better again────────────┘
//! ```
//! The rival stages the same at all times. How much follows from what the forecasts leave idle, so that both spend the same;
//! then whoever hits more is worth more. Both are judged on what they *would* have staged, acted on or not, before the step
//! came. `Cold` and `Silent` stage what is static.

use gnomon_terms::Bytes;

/// Steps in which something was asked for, before forecasts are acted on: two hours of a group that asks in each 5 minutes.
const ENOUGH: u32 = 24;
/// Steps over which both are judged: two days of 5-minute steps.
const OVER: f64 = 1.0 / 576.0;
/// How fast the rival's size follows what the forecasts leave idle: some sixty steps.
const FOLLOWS: f64 = 1.0 / 64.0;
/// Silence begins when forecasts hit so much less than the rival, and ends when they hit as much.
const WORSE: f64 = 0.97;
/// Steps after which the two can be told apart: chance alone moves the share of hits by some hundredths over a day.
const JUDGED: u32 = 288;

/// What is staged, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Too little is known: the floor that was set.
    Cold,
    /// What the forecast says.
    Forecast,
    /// The forecasts were worth less than a static reserve: that is staged, until they are worth more.
    Silent,
}

/// The forecasts and their rival.
#[derive(Clone, Debug, PartialEq)]
pub struct Contest {
    mode: Mode,
    size: f64,
    asking_steps: u32,
    judged: u32,
    asked: f64,
    forecast: Side,
    rival: Side,
}

/// What one of them did lately, in bytes a step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Side {
    hit: f64,
    idle: f64,
}

impl Contest {
    /// With nothing known; the rival begins with the floor.
    pub fn new(floor: Bytes) -> Contest {
        Contest {
            mode: Mode::Cold,
            size: floor.0 as f64,
            asking_steps: 0,
            judged: 0,
            asked: 0.0,
            forecast: Side::default(),
            rival: Side::default(),
        }
    }

    /// What is staged at present.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// What the rival stages.
    pub fn size(&self) -> Bytes {
        Bytes(self.size as u64)
    }

    /// By how much the forecasts hit more bytes than the static reserve that leaves as many idle: 0.1 is a tenth more.
    /// `None` before it can be told.
    pub fn gain(&self) -> Option<f64> {
        (self.judged >= JUDGED && self.rival.hit >= 1.0).then(|| self.forecast.hit / self.rival.hit - 1.0)
    }

    /// The share of bytes that the rival would have had ready; `None` before it can be told.
    pub fn static_hit_share(&self) -> Option<f64> {
        (self.judged >= JUDGED && self.asked >= 1.0).then(|| self.rival.hit / self.asked)
    }

    /// A step is over in which `asked` was asked for, and for which forecasts would have staged `planned`; `None` when they
    /// said nothing.
    pub fn note(&mut self, asked: f64, planned: Option<f64>) {
        self.asking_steps = self.asking_steps.saturating_add(u32::from(asked > 0.0));
        let Some(planned) = planned else { return };
        self.judged = self.judged.saturating_add(1);
        let rate = OVER.max(1.0 / f64::from(self.judged));
        self.asked += rate * (asked - self.asked);
        let idle = [(&mut self.forecast, planned), (&mut self.rival, self.size)]
            .map(|(side, staged)| side.note(asked, staged, rate));
        self.size = (self.size + FOLLOWS * (idle[0] - idle[1])).max(0.0);
        self.turn();
    }

    /// A member left that so much less is asked for without: what is left of each step before, 0.0–1.0.
    pub fn weigh(&mut self, left: f64) {
        let sides =
            [&mut self.forecast, &mut self.rival].into_iter().flat_map(|side| [&mut side.hit, &mut side.idle]);
        sides.chain([&mut self.size, &mut self.asked]).for_each(|bytes| *bytes *= left);
    }

    fn turn(&mut self) {
        let (ours, theirs) = (self.forecast.hit, self.rival.hit);
        self.mode = match self.mode {
            Mode::Cold if self.asking_steps >= ENOUGH => Mode::Forecast,
            Mode::Forecast if self.judged >= JUDGED && ours < WORSE * theirs => Mode::Silent,
            Mode::Silent if ours >= theirs => Mode::Forecast,
            mode => mode,
        };
    }
}

impl Side {
    /// Notes a step; the bytes that were idle in it.
    fn note(&mut self, asked: f64, staged: f64, rate: f64) -> f64 {
        let hit = staged.min(asked);
        self.hit += rate * (hit - self.hit);
        self.idle += rate * (staged - hit - self.idle);
        staged - hit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: f64 = (1 << 20) as f64;

    /// Asked for: 100 MiB in each tenth step.
    fn live(contest: &mut Contest, steps: usize, planned: impl Fn(f64) -> f64) {
        for step in 0..steps {
            let asked = if step % 10 == 0 { 100.0 * MIB } else { 0.0 };
            contest.note(asked, Some(planned(asked)));
        }
    }

    #[test]
    fn forecasts_are_acted_on_when_enough_was_asked_for() {
        let mut contest = Contest::new(Bytes(1 << 30));
        (0..50).for_each(|_| contest.note(0.0, Some(0.0)));
        (0..50).for_each(|_| contest.note(MIB, None));
        assert_eq!(contest.mode(), Mode::Cold, "they say nothing");
        contest.note(MIB, Some(MIB));
        assert_eq!((contest.mode(), contest.gain()), (Mode::Forecast, None));
    }

    #[test]
    fn those_that_are_worth_nothing_fall_silent_and_come_back() {
        let mut contest = Contest::new(Bytes(0));
        let (wrong, right) = (|asked: f64| if asked > 0.0 { 0.0 } else { 30.0 * MIB }, |asked: f64| asked);
        live(&mut contest, 1000, wrong);
        assert_eq!(contest.mode(), Mode::Silent);
        assert!(contest.gain().is_some_and(|gain| gain < -0.9), "{contest:?}");
        // As many bytes idle: 27 of 30 steps' worth.
        assert!((contest.size().0 as f64 / MIB - 30.0).abs() < 4.0, "{contest:?}");
        live(&mut contest, 3000, right);
        assert_eq!(contest.mode(), Mode::Forecast);
        assert!(contest.gain().is_some_and(|gain| gain > 1.0), "{contest:?}");
    }

    #[test]
    fn without_a_member_the_reserve_is_as_much_smaller() {
        let mut contest = Contest::new(Bytes(0));
        live(&mut contest, 2000, |_| 40.0 * MIB);
        let (gain, share, size) = (contest.gain(), contest.static_hit_share(), contest.size().0 as f64);
        contest.weigh(0.25);
        assert!((contest.size().0 as f64 / size - 0.25).abs() < 0.001);
        for (before, after) in [(gain, contest.gain()), (share, contest.static_hit_share())] {
            assert!((before.expect("judged") - after.expect("judged")).abs() < 1e-9);
        }
    }

    #[test]
    fn who_says_always_the_same_is_no_worse_than_the_rival() {
        let mut contest = Contest::new(Bytes(0));
        live(&mut contest, 5000, |_| 40.0 * MIB);
        assert_eq!(contest.mode(), Mode::Forecast);
        assert!(contest.gain().is_some_and(|gain| gain.abs() < 0.03), "{:?}", contest.gain());
    }
}
