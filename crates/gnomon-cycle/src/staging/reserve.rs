//! How sure to be: the one knob of a group's reserve, turned until what the user picked is reached.
//!
//! ```text
//!   outcome of a step ──► off the aim by how much? ──► within the inner band: rest
//!                                                      beyond the outer band: turn, a little at a time, until within
//! ```
//! The knob is the level of the quantile that is staged, the same for all times: of all ways to spend the same idle bytes the
//! one where the chance to be of use is the same everywhere hits most. Above 0.99 a level says little that was seen, so from
//! there on the knob multiplies. Turning follows the integral of what was missed, so the aim is met over time and no burst
//! moves it far.

use gnomon_terms::Bytes;

/// What the user picks: the other follows from it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Aim {
    /// This share of the bytes that are asked for should be there: 0.0–1.0.
    Hit(f64),
    /// So much should be kept idle, as a share of what the group's members have: 0.0 and more.
    Idle(f64),
}

/// The knob's ends: a level of 0.02, and nine times what is said for 0.99.
const ENDS: (f64, f64) = (-3.891_820_298_110_627, TOP + 2.197_224_577_336_219);
/// ln(0.99 / 0.01): from here on the knob multiplies.
const TOP: f64 = 4.595_119_850_134_589;
/// Where it begins: a level of 0.9.
const BEGIN: f64 = 2.197_224_577_336_219;
/// How far a step that was off by all it could be turns the knob. The step from a level of 0.9 to one of 0.95 is 0.75, or
/// fifty steps that missed everything: four hours of 5-minute steps.
const GAIN: f64 = 0.015;
/// No single step counts for more than this many: a burst of thirty times the usual is no reason to change everything.
const MOST: f64 = 10.0;
/// What was reached is judged over so many steps, and what is usual over the same.
const OVER: f64 = 1.0 / 144.0;
/// Turning begins when what was reached is so far off the aim, as a share of it or of what is left to one, and ends within
/// the half of that.
const BAND: f64 = 0.1;

/// The knob, and what it is turned by.
#[derive(Clone, Debug, PartialEq)]
pub struct Reserve {
    aim: Aim,
    knob: f64,
    turning: bool,
    asked: f64,
    hit: f64,
    idle: f64,
    held: f64,
}

/// What became of a step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepOutcome {
    /// Bytes that were asked for.
    pub asked: f64,
    /// Of these, bytes that were there.
    pub hit: f64,
    /// Bytes that stood ready and were not asked for.
    pub idle: f64,
    /// Bytes that members have.
    pub held: f64,
    /// Whether more was wanted than the budget allowed: then there is no sense in wanting still more.
    pub capped: bool,
}

impl Reserve {
    /// At the level of 0.9, which is turned from there.
    pub fn new(aim: Aim) -> Reserve {
        Reserve { aim: aim.bounded(), knob: BEGIN, turning: false, asked: 0.0, hit: 0.0, idle: 0.0, held: 0.0 }
    }

    /// Another aim; the knob stays where it is and is turned from there.
    pub fn set_aim(&mut self, aim: Aim) {
        self.aim = aim.bounded();
    }

    /// What is aimed at.
    pub fn aim(&self) -> Aim {
        self.aim
    }

    /// The level of the quantile that is staged, 0.02–0.99.
    pub fn level(&self) -> f64 {
        1.0 / (1.0 + (-self.knob.min(TOP)).exp())
    }

    /// What the quantile is multiplied by, 1–9.
    pub fn scale(&self) -> f64 {
        (self.knob - TOP).max(0.0).exp()
    }

    /// The share of bytes that were there, over the last half day or so; `None` before anything was asked for.
    pub fn hit_share(&self) -> Option<f64> {
        (self.asked > 0.0).then(|| self.hit / self.asked)
    }

    /// What was idle as a share of what members have, over the same time; `None` before they have anything.
    pub fn idle_share(&self) -> Option<f64> {
        (self.held > 0.0).then(|| self.idle / self.held)
    }

    /// What the next quantile would stage.
    pub fn of(&self, quantile: f64) -> Bytes {
        Bytes((quantile.max(0.0) * self.scale()) as u64)
    }

    /// Notes what became of a step, and turns the knob when it is time.
    pub fn note(&mut self, step: &StepOutcome) {
        for (mean, now) in [
            (&mut self.asked, step.asked),
            (&mut self.hit, step.hit),
            (&mut self.idle, step.idle),
            (&mut self.held, step.held),
        ] {
            *mean += OVER * (now.max(0.0) - *mean);
        }
        let Some((off, now)) = self.off(step) else { return };
        self.turning = off.abs() > if self.turning { BAND / 2.0 } else { BAND };
        if self.turning && !(step.capped && now > 0.0) {
            self.knob = (self.knob + GAIN * now.clamp(-MOST, MOST)).clamp(ENDS.0, ENDS.1);
        }
    }

    /// How much too little was staged lately, and in this step, as a share of the aim or of what is left to one.
    fn off(&self, step: &StepOutcome) -> Option<(f64, f64)> {
        match self.aim {
            Aim::Hit(aim) => {
                let scale = (aim.min(1.0 - aim)).max(0.01);
                let now = (aim * step.asked - step.hit) / self.asked.max(1.0);
                Some(((aim - self.hit_share()?) / scale, now))
            }
            Aim::Idle(aim) => {
                let wanted = (aim * self.held).max(1.0);
                let now = (aim * step.held - step.idle) / wanted;
                Some(((aim - self.idle_share()?) / aim.max(0.001), now))
            }
        }
    }
}

impl Aim {
    /// Within what can be; a number that is none is nothing.
    fn bounded(self) -> Aim {
        let bounded = |share: f64, most: f64| if share.is_finite() { share.clamp(0.0, most) } else { 0.0 };
        match self {
            Aim::Hit(share) => Aim::Hit(bounded(share, 1.0)),
            Aim::Idle(share) => Aim::Idle(bounded(share, 10.0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Requests by chance, exponential with a mean of 100, out of members that have 2,000; the true quantile is staged.
    fn live(reserve: &mut Reserve, steps: usize, seed: &mut u64, staged: impl Fn(f64, f64) -> f64) -> (f64, f64) {
        let (mut asked, mut hit, mut idle) = (0.0, 0.0, 0.0);
        for _ in 0..steps {
            let now = -100.0 * (1.0 - chance(seed)).ln();
            let ready = staged(-100.0 * (1.0 - reserve.level()).ln(), reserve.scale());
            let step = StepOutcome {
                asked: now,
                hit: now.min(ready),
                idle: (ready - now).max(0.0),
                held: 2000.0,
                capped: false,
            };
            reserve.note(&step);
            (asked, hit, idle) = (asked + step.asked, hit + step.hit, idle + step.idle);
        }
        (hit / asked, idle / steps as f64 / 2000.0)
    }

    fn chance(seed: &mut u64) -> f64 {
        *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*seed >> 11) as f64 / (1u64 << 53) as f64
    }

    #[test]
    fn what_is_aimed_at_is_reached() {
        for (aim, expected) in [
            (Aim::Hit(0.8), 0.8),
            (Aim::Hit(0.95), 0.95),
            (Aim::Hit(0.3), 0.3),
            (Aim::Idle(0.02), 0.02),
            (Aim::Idle(0.1), 0.1),
        ] {
            let (mut reserve, mut seed) = (Reserve::new(aim), 7);
            live(&mut reserve, 4000, &mut seed, |quantile, scale| quantile * scale);
            let (hit, idle) = live(&mut reserve, 8000, &mut seed, |quantile, scale| quantile * scale);
            let reached = if matches!(aim, Aim::Hit(_)) { hit } else { idle };
            assert!((reached / expected - 1.0).abs() < 0.1, "{aim:?}: {reached}");
        }
    }

    #[test]
    fn a_forecast_that_says_too_little_is_made_up_for() {
        let (mut reserve, mut seed) = (Reserve::new(Aim::Hit(0.9)), 11);
        live(&mut reserve, 6000, &mut seed, |quantile, scale| quantile * scale / 4.0);
        let (hit, _) = live(&mut reserve, 6000, &mut seed, |quantile, scale| quantile * scale / 4.0);
        assert!((hit - 0.9).abs() < 0.05 && reserve.scale() > 1.0, "{hit} {reserve:?}");
    }

    #[test]
    fn it_ends_at_its_bounds_and_comes_back() {
        let (mut reserve, mut seed) = (Reserve::new(Aim::Hit(1.0)), 13);
        live(&mut reserve, 5000, &mut seed, |_, _| 0.0);
        assert!((reserve.scale() - 9.0).abs() < 1e-9 && (reserve.level() - 0.99).abs() < 1e-9, "{reserve:?}");
        reserve.set_aim(Aim::Idle(0.0));
        live(&mut reserve, 5000, &mut seed, |quantile, scale| quantile * scale);
        assert!(reserve.level() < 0.05 && reserve.scale() == 1.0, "{reserve:?}");
    }

    #[test]
    fn within_the_band_it_rests_and_beyond_the_budget_it_wants_no_more() {
        let mut reserve = Reserve::new(Aim::Hit(0.8));
        let step = |hit, capped| StepOutcome { asked: 100.0, hit, idle: 0.0, held: 2000.0, capped };
        (0..1000).for_each(|_| reserve.note(&step(81.0, false)));
        assert_eq!(
            reserve.level(),
            Reserve::new(Aim::Hit(0.8)).level(),
            "one point above the aim is within its band"
        );
        (0..1000).for_each(|_| reserve.note(&step(0.0, true)));
        assert_eq!(reserve.level(), Reserve::new(Aim::Hit(0.8)).level(), "the budget is what limits, not the knob");
        (0..100).for_each(|_| reserve.note(&step(0.0, false)));
        assert!(reserve.level() > 0.95, "{reserve:?}");
    }

    #[test]
    fn an_aim_that_is_no_number_is_bounded() {
        for (given, bounded) in
            [(Aim::Hit(f64::NAN), Aim::Hit(0.0)), (Aim::Hit(7.0), Aim::Hit(1.0)), (Aim::Idle(-1.0), Aim::Idle(0.0))]
        {
            assert_eq!(Reserve::new(given).aim(), bounded);
        }
    }
}
