//! What is known of one member of a group: a few numbers, fading, and no times.

use std::collections::VecDeque;

use super::{
    BESIDE,
    rises::{KNOWN, Known, MOST_KNOWN, Rise, Rises},
};

/// Steps over which a member's peak is remembered: what it had an hour ago it may ask for again.
pub(super) const HOUR: usize = 12;
/// How fast a day's peak is forgotten, as the share that is left after each step: a third after a day.
const DAY: f64 = 1.0 - 1.0 / 288.0;
/// What a member did last and where it stands in its last hour: three ways times four quarters.
pub(super) const STATES: usize = 12;
/// How fast what follows a state, or a place of the hour, is learned: within some hundred steps there, or a day's hours.
const LEARNS: f64 = 1.0 / 64.0;
const HOURS: f64 = 1.0 / 24.0;
/// Its scale is its mean rise over some thousand steps, but never less than a 4,096th of what it may have.
const SCALE: f64 = 1.0 / 1024.0;
const LEAST_SCALE: f64 = 1.0 / 4096.0;
/// Its mean rise lately, at three paces.
const RATES: [f64; 3] = [1.0 / 4.0, 1.0 / 16.0, 1.0 / 64.0];
/// A burst is a rise of more than three times the root of the mean square; so many steps after one it is long ago.
const BURST: f64 = 3.0;
const LONG_AGO: u32 = 500;

/// Where the hands of the clock stand at the step after this one, and its place in the hour.
pub(super) struct Clock {
    place: usize,
    hands: [f64; 4],
}

impl Clock {
    pub(super) fn at(step: usize, season: usize) -> Clock {
        let hand = |cycle: usize| {
            let turn = ((step + 1) % cycle) as f64 / cycle as f64 * std::f64::consts::TAU;
            [turn.sin(), turn.cos()]
        };
        let ([day, noon], [hour, half]) = (hand(season.max(1)), hand(HOUR));
        Clock { place: step % HOUR, hands: [day, noon, hour, half] }
    }
}

/// What a step brought of one member.
pub(super) struct Turn {
    /// Whether anything was said of it.
    pub(super) heard: bool,
    /// What it asked for.
    pub(super) rise: f64,
    /// What tells of rises to come: how far it is below its peak of the last hour, below that of the day, below its mean;
    /// what it has; and how much it rose in the mean when it was as it is, and at this step of the hour (programs are started
    /// by the clock).
    pub(super) known: [f64; BESIDE - 2],
    /// What it is expected to ask for in the next step.
    pub(super) expected: Rise,
}

/// What is known of one member.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) most: f64,
    pub(super) demand: Option<f64>,
    pub(super) next: Option<f64>,
    /// What it asked for in the step that is open, where requests are seen themselves.
    pub(super) asked: Option<f64>,
    /// What it asks for in a step, and the square of that, over a day; and in the mean over its scale and its paces.
    pub(super) asks: f64,
    pub(super) squares: f64,
    pub(super) scale: f64,
    pub(super) rates: [f64; RATES.len()],
    /// Steps it was there, and steps since its last burst.
    pub(super) steps: u32,
    pub(super) burst: u32,
    pub(super) lately: VecDeque<f64>,
    pub(super) day: f64,
    pub(super) mean: f64,
    /// Its mean rise after each state, and at each step of the hour.
    pub(super) after: [f64; STATES],
    pub(super) hourly: [f64; HOUR],
    pub(super) state: usize,
    /// What was known of it a step ago, and its scale then.
    pub(super) then: Option<(Known, f64)>,
}

impl Member {
    pub(super) fn new(most: f64) -> Member {
        Member {
            most,
            demand: None,
            next: None,
            asked: None,
            asks: 0.0,
            squares: 0.0,
            scale: 0.0,
            rates: [0.0; RATES.len()],
            steps: 0,
            burst: LONG_AGO,
            lately: VecDeque::new(),
            day: 0.0,
            mean: 0.0,
            after: [0.0; STATES],
            hourly: [0.0; HOUR],
            state: 0,
            then: None,
        }
    }

    /// Ends the step; `None` before it is first heard of.
    pub(super) fn turn(&mut self, clock: &Clock, rises: &mut Rises) -> Option<Turn> {
        let heard = self.next.is_some() || self.asked.is_some();
        let asked = self.asked.take();
        let now = self.next.take().or(self.demand).or(asked)?;
        let before = self.demand.unwrap_or(now);
        let rise = asked.unwrap_or((now - before).max(0.0));
        if let Some((then, scale)) = &self.then {
            rises.note(then, rise / scale);
        }
        self.after[self.state] += LEARNS * (rise - self.after[self.state]);
        self.hourly[clock.place] += HOURS * (rise - self.hourly[clock.place]);
        self.note(now, rise);
        let (least, peak) = self.range(now);
        self.state = self.state_of((before, now), (least, peak));
        let usual = [self.after[self.state], self.hourly[(clock.place + 1) % HOUR]];
        let known = [peak - now, self.day - now, (self.mean - now).max(0.0), now, usual[0], usual[1]];
        Some(Turn { heard, rise, known, expected: self.expect(now - least, &known, clock, rises) })
    }

    fn note(&mut self, now: f64, rise: f64) {
        self.demand = Some(now);
        if self.lately.len() == HOUR {
            self.lately.pop_front();
        }
        self.lately.push_back(now);
        self.day = (self.day * DAY).max(now);
        self.mean += (1.0 - DAY) * (now - self.mean);
        self.burst =
            if rise > BURST * self.squares.sqrt() && rise > 0.0 { 0 } else { (self.burst + 1).min(LONG_AGO) };
        self.asks += (1.0 - DAY) * (rise - self.asks);
        self.squares += (1.0 - DAY) * (rise * rise - self.squares);
        self.steps = self.steps.saturating_add(1);
        self.scale += SCALE.max(1.0 / f64::from(self.steps)) * (rise - self.scale);
        self.rates.iter_mut().zip(RATES).for_each(|(mean, rate)| *mean += rate * (rise - *mean));
    }

    /// What the group's network expects of it; before that has learned, what was usual.
    fn expect(&mut self, above: f64, known: &[f64; BESIDE - 2], clock: &Clock, rises: &mut Rises) -> Rise {
        let scale = self.scale.max(LEAST_SCALE * self.most).max(f64::MIN_POSITIVE);
        let seen = self.seen(above, known, clock, scale);
        self.then = Some((seen, scale));
        let usual = || Rise { mean: self.asks, variance: (self.squares - self.asks * self.asks).max(0.0) };
        rises.expects(&seen, scale).unwrap_or_else(usual)
    }

    /// What the network sees: amounts in the member's scale, squashed, and the clock.
    fn seen(&self, above: f64, known: &[f64; BESIDE - 2], clock: &Clock, scale: f64) -> Known {
        let mut seen = [0.0; KNOWN];
        let mut at = 0;
        let mut put = |value: f64| {
            seen[at] = value as f32;
            at += 1;
        };
        let squash = |amount: f64| amount.signum() * ((amount.abs() / scale).ln_1p() / 2.0).min(MOST_KNOWN);
        known.iter().chain([&above, &self.asks]).chain(&self.rates).for_each(|amount| put(squash(*amount)));
        let newest = self.lately.iter().rev();
        let mut changes = newest.clone().zip(newest.skip(1)).map(|(now, before)| now - before);
        (0..HOUR - 1).for_each(|_| put(squash(changes.next().unwrap_or(0.0))));
        put(f64::from(self.burst).ln_1p() / 3.0);
        clock.hands.into_iter().chain([1.0]).for_each(put);
        seen
    }

    fn range(&self, now: f64) -> (f64, f64) {
        self.lately.iter().fold((now, now), |(least, most), value| (least.min(*value), most.max(*value)))
    }

    /// Which of [`STATES`]: fell, stayed or rose by a tenth, and to which quarter of what it had in the last hour.
    fn state_of(&self, (before, now): (f64, f64), (least, peak): (f64, f64)) -> usize {
        let way = usize::from(now > before * 0.9) + usize::from(now > before * 1.1);
        let quarter = ((now - least) / (peak - least).max(f64::MIN_POSITIVE) * 4.0) as usize;
        way * 4 + quarter.min(3)
    }
}
