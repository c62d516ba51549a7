//! What the learned models look at: the recent past, in numbers that mean the same for a series of bytes and of requests.
//!
//! Values are squashed to `sign · ln(1 + |x| / scale)`, where the scale is the series' own mean size: demand comes in
//! bursts of a thousand times the usual, and a quantile of the logarithm is the logarithm of the quantile, so nothing is
//! lost by learning there. All features but the hour are told as the distance from a moving average, and so is what is
//! to be learned: a model that knows nothing says the average.

use std::collections::VecDeque;

use super::{BESIDE, Step};

/// Numbers a model sees of the past.
pub(super) const FEATURES: usize = 24 + BESIDE;
/// What a model sees.
pub(super) type Features = [f32; FEATURES];

/// Values of so many steps ago: the last hour of 5-minute steps.
const AGES: [usize; 8] = [0, 1, 2, 3, 5, 7, 9, 11];
/// Moving averages: how much the newest value weighs. The second is what all is told against.
const RATES: [f64; 4] = [1.0 / 4.0, 1.0 / 16.0, 1.0 / 64.0, 1.0 / 288.0];
const CENTRE: usize = 1;
/// The scale follows within some thousand steps, so that what was learned in its terms stays true meanwhile.
const SCALE: f64 = 1.0 / 1024.0;
/// What is usual at a place of the hour and of the day: means over a day's hours, and over a week's days.
const HOURS: f64 = 1.0 / 24.0;
const DAYS: f64 = 1.0 / 7.0;
/// Steps without which there are no features.
const ENOUGH: u64 = 12;

/// The past of a series: one season and a few numbers.
#[derive(Clone, Debug)]
pub(super) struct Lags {
    pub(super) season: usize,
    /// One season, the newest last; what was not measured is there as the value before it.
    last: VecDeque<f32>,
    means: [f64; RATES.len()],
    hour: Usual,
    day: Usual,
    swing: f64,
    scale: f64,
    measured: u64,
    steps: u64,
    beside: [f64; BESIDE],
}

impl Lags {
    /// Of a series with a season of so many steps; at least one.
    pub(super) fn new(season: usize) -> Lags {
        Lags {
            season: season.max(1),
            last: VecDeque::new(),
            means: [0.0; RATES.len()],
            hour: Usual::new(season / 24, HOURS),
            day: Usual::new(season, DAYS),
            swing: 0.0,
            scale: 0.0,
            measured: 0,
            steps: 0,
            beside: [0.0; BESIDE],
        }
    }

    /// Notes a step.
    pub(super) fn observe(&mut self, step: &Step) {
        if let Some(value) = step.value {
            self.hour.note(self.steps, value);
            self.day.note(self.steps, value);
        }
        self.steps += 1;
        self.beside = step.beside;
        let before = self.last.back().copied();
        let Some(kept) = step.value.map(|value| value as f32).or(before) else { return };
        if self.last.len() == self.season.max(AGES[AGES.len() - 1] + 1) {
            self.last.pop_front();
        }
        self.last.push_back(kept);
        if let Some(value) = step.value {
            self.note(value, before);
        }
    }

    fn note(&mut self, value: f64, before: Option<f32>) {
        self.measured += 1;
        // The first values count as in a plain mean, so that one of them does not stay for long.
        let at_least = 1.0 / self.measured as f64;
        for (mean, rate) in self.means.iter_mut().zip(RATES) {
            *mean += rate.max(at_least) * (value - *mean);
        }
        let swing = (value - before.map_or(value, f64::from)).abs();
        self.swing += RATES[CENTRE].max(at_least) * (swing - self.swing);
        self.scale += SCALE.max(at_least) * (value.abs() - self.scale);
    }

    /// A value as models see it.
    pub(super) fn squash(&self, value: f64) -> f32 {
        let size = (value.abs() / self.scale.max(f64::MIN_POSITIVE)).min(1e12);
        (size.ln_1p() as f32).copysign(value as f32)
    }

    /// The value that models see as this.
    pub(super) fn stretch(&self, seen: f32) -> f64 {
        // e^28 is 1e12, the most that squash lets through.
        let size = f64::from(seen.abs()).min(28.0).exp_m1() * self.scale;
        if seen < 0.0 { -size } else { size }
    }

    /// What all is told against.
    pub(super) fn centre(&self) -> f32 {
        self.squash(self.means[CENTRE])
    }

    /// What is known now about the step after the next `ahead` ones; `None` while too little has been seen.
    pub(super) fn features(&self, ahead: usize) -> Option<Features> {
        if self.measured < ENOUGH || self.last.len() <= AGES[AGES.len() - 1] {
            return None;
        }
        let centre = self.centre();
        let mut features = [0.0; FEATURES];
        let mut at = 0;
        let mut put = |feature: f32| {
            features[at] = feature;
            at += 1;
        };
        AGES.iter().for_each(|age| put(self.squash(self.ago(*age)) - centre));
        self.means.iter().for_each(|mean| put(self.squash(*mean) - centre));
        put(self.squash(self.swing));
        put(centre);
        put(self.squash(self.most()) - centre);
        let day = |beside: usize| self.squash(self.season_ago(ahead + beside)) - centre;
        put(day(0));
        put((day(1) + day(2) + day(3)) / 3.0);
        [&self.hour, &self.day].into_iter().for_each(|usual| {
            let usual = usual.at(self.steps + ahead as u64).unwrap_or(self.means[CENTRE]);
            put(self.squash(usual) - centre);
        });
        self.clock(ahead).iter().for_each(|hand| put(*hand));
        self.beside.iter().for_each(|known| put(self.squash(*known) - centre));
        put(1.0);
        Some(features)
    }

    /// Bytes of state.
    pub(super) fn bytes(&self) -> usize {
        let usual = (self.hour.by_place.len() + self.day.by_place.len()) * size_of::<Option<f32>>();
        size_of::<Self>() + self.last.capacity() * size_of::<f32>() + usual
    }

    fn ago(&self, age: usize) -> f64 {
        self.last.len().checked_sub(age + 1).and_then(|at| self.last.get(at)).copied().map_or(0.0, f64::from)
    }

    /// The most of the last steps.
    fn most(&self) -> f64 {
        self.last.iter().rev().take(ENOUGH as usize).copied().map(f64::from).fold(f64::MIN, f64::max)
    }

    /// The value a season before the step after the next `ahead` ones; before a season has been seen, the average.
    fn season_ago(&self, ahead: usize) -> f64 {
        match self.last.len() >= self.season {
            true => f64::from(self.last[self.last.len() - self.season + ahead % self.season]),
            false => self.means[CENTRE],
        }
    }

    /// The hands of a clock that goes round in a season, and of one that takes seven.
    fn clock(&self, ahead: usize) -> [f32; 4] {
        let hand = |season: usize| {
            let turn = ((self.steps as usize + ahead) % season) as f32 / season as f32 * std::f32::consts::TAU;
            [turn.sin(), turn.cos()]
        };
        let ([day, noon], [week, midweek]) = (hand(self.season), hand(self.season * 7));
        [day, noon, week, midweek]
    }
}

/// What is usual at each place of a cycle.
#[derive(Clone, Debug)]
struct Usual {
    rate: f64,
    by_place: Vec<Option<f32>>,
}

impl Usual {
    fn new(places: usize, rate: f64) -> Usual {
        Usual { rate, by_place: vec![None; places.max(1)] }
    }

    fn note(&mut self, step: u64, value: f64) {
        let place = (step % self.by_place.len() as u64) as usize;
        let before = self.by_place[place].map_or(value, f64::from);
        self.by_place[place] = Some((before + self.rate * (value - before)) as f32);
    }

    /// What is usual at a step; of a day's places with its neighbours, for a day is seen seldom.
    fn at(&self, step: u64) -> Option<f64> {
        let places = self.by_place.len() as u64;
        let around = [0, 1, places - 1].map(|beside| self.by_place[((step + beside) % places) as usize]);
        let [here, after, before] = around.map(|usual| usual.map(f64::from));
        match self.rate == DAYS {
            true => Some(0.5 * here? + 0.25 * (after? + before?)),
            false => here,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_squashed_can_be_stretched(values in prop::collection::vec(-1e9f64..1e9, 20..40), value in -1e9f64..1e9) {
            let mut lags = Lags::new(24);
            values.iter().for_each(|value| lags.observe(&Step::of(*value)));
            let back = lags.stretch(lags.squash(value));
            prop_assert!((back - value).abs() <= 1e-3 * value.abs() + 1e-3, "{value} {back}");
            prop_assert!(lags.features(5).expect("seen enough").iter().all(|feature| feature.is_finite()));
        }
    }

    #[test]
    fn no_feature_knows_what_comes() {
        let past: Vec<f64> = (0..100).map(|step| f64::from(step * step % 37)).collect();
        let seen = |future: f64| {
            let mut lags = Lags::new(24);
            past.iter().for_each(|value| lags.observe(&Step::of(*value)));
            let features = [0, 3, 30].map(|ahead| lags.features(ahead));
            lags.observe(&Step::of(future));
            features
        };
        assert_eq!(seen(0.0), seen(1e6));
    }

    #[test]
    fn the_season_is_that_of_the_step_that_is_asked_for() {
        let mut lags = Lags::new(24);
        (0..48).for_each(|step| lags.observe(&Step::of(f64::from(step % 24))));
        for ahead in [0, 5, 23, 24] {
            assert_eq!(lags.season_ago(ahead), (ahead % 24) as f64);
        }
    }
}
