//! Whom to believe about a series: a hedge over all models, by their pinball loss on steps that had not come yet.

use gnomon_terms::Instant;

use super::{
    BoostedForecaster, EwmaForecaster, GruForecaster, HoltWintersForecaster, LEVELS, LastForecaster,
    LinearForecaster, QuantileForecaster, Score, SeasonalForecaster, SeriesForecaster, Step, drift::Drift,
};
use crate::hedge::Hedge;

/// Models of the blend.
const N: usize = 8;
/// How strongly a loss counts. It is charged as a share of the worst there was: of bursts a mean loss is a tenth of that, and
/// the losses of two models differ by some hundredths, so the better of them has most of the weight after a thousand steps.
const RATE: f32 = 0.7;
/// The least weight: eight models that are all wrong but one cost it four hundredths.
const FLOOR: f32 = 0.005;
/// What is left of the worst loss after each step; half after two thousand. Losses are not cut off at so many times the
/// usual: that would hide what models are worth when a burst comes, which is when they are needed.
const FADES: f64 = 1.0 - 1.0 / 3000.0;
/// For drift a loss of four times the usual counts as the worst, so that one burst is no drift.
const WORST: f64 = 4.0;
/// The usual loss follows within some two hundred steps.
const USUAL: f64 = 1.0 / 256.0;
/// The level and the window of the two simplest: the last ten steps, the last two days of 5-minute steps.
const NEWEST: f64 = 0.1;
const WINDOW: usize = 576;

/// What the network's first weights come from: the same for all, so that the same steps give the same numbers.
const SEED: u64 = 1;

/// The place of the last value among the models.
const SILENCE: usize = 0;

/// What was said for [`LEVELS`].
type Said = [f64; LEVELS.len()];

/// One model, and what is known of it.
struct Expert {
    model: Box<dyn SeriesForecaster + Send>,
    /// What it says about the next step.
    said: Option<Said>,
    score: Score,
    /// Time spent in it, where a clock was at hand.
    nanos: u64,
    steps: u64,
}

/// An expert as reports show it.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpertView {
    /// Its name.
    pub name: &'static str,
    /// How much it is believed; weights sum to one.
    pub weight: f32,
    /// How good it was, on time it had not seen.
    pub score: Score,
    /// Mean time for each step, training included, in microseconds; 0.0 without a clock.
    pub micros: f64,
    /// Bytes of state.
    pub bytes: usize,
}

/// All models of a series, blended: each level is the weighted mean of what the models say for it.
///
/// A model is charged for what it said *before* the value came; one that says nothing yet is charged what the blend is.
/// The last value is always among them and has most of the weight to begin with; when the blend itself becomes wrong in a
/// new manner, all begin so again.
pub struct SeriesBlend {
    experts: [Expert; N],
    hedge: Hedge<N>,
    own: Score,
    usual: f64,
    worst: f64,
    drift: Drift,
    resets: u32,
}

impl SeriesBlend {
    /// Of a series with a `season` of so many steps (a day), to be asked up to `horizon` steps after the next.
    pub fn new(season: usize, horizon: usize) -> SeriesBlend {
        let models: [Box<dyn SeriesForecaster + Send>; N] = [
            Box::new(LastForecaster::default()),
            Box::new(EwmaForecaster::new(NEWEST)),
            Box::new(QuantileForecaster::new(WINDOW)),
            Box::new(SeasonalForecaster::new(season)),
            Box::new(HoltWintersForecaster::new(season)),
            Box::new(LinearForecaster::new(season, horizon)),
            Box::new(BoostedForecaster::new(season, horizon)),
            Box::new(GruForecaster::new(season, horizon, SEED)),
        ];
        SeriesBlend {
            experts: models.map(|model| Expert { model, said: None, score: Score::default(), nanos: 0, steps: 0 }),
            hedge: silent_first(),
            own: Score::default(),
            usual: 0.0,
            worst: 0.0,
            drift: Drift::default(),
            resets: 0,
        }
    }

    /// [`SeriesForecaster::observe`] and [`SeriesForecaster::tend`] at once, with each model's time taken by `clock`.
    pub fn observe_timed(&mut self, step: &Step, clock: &mut dyn FnMut() -> Instant) {
        self.judge(step);
        for expert in &mut self.experts {
            let begun = clock();
            expert.model.observe(step);
            expert.model.tend();
            expert.look();
            expert.nanos += u64::try_from(clock().since(begun).as_nanos()).unwrap_or(u64::MAX);
            expert.steps += 1;
        }
    }

    /// What each expert says about the next step by itself, in the order of [`SeriesBlend::experts`]; for comparison.
    pub fn experts_said(&self, levels: &[f64]) -> Vec<Option<Vec<f64>>> {
        self.experts.iter().map(|expert| expert.model.quantiles(0, levels)).collect()
    }

    /// The experts, and how far each is believed.
    pub fn experts(&self) -> Vec<ExpertView> {
        let view = |(expert, weight): (&Expert, &f32)| ExpertView {
            name: expert.model.name(),
            weight: *weight,
            score: expert.score,
            micros: expert.nanos as f64 / 1000.0 / expert.steps.max(1) as f64,
            bytes: expert.model.bytes(),
        };
        self.experts.iter().zip(self.hedge.weights()).map(view).collect()
    }

    /// How good the blend was.
    pub fn score(&self) -> &Score {
        &self.own
    }

    /// How often all began anew because the series had become another.
    pub fn resets(&self) -> u32 {
        self.resets
    }

    /// Charges each expert what its forecast of this step cost.
    fn judge(&mut self, step: &Step) {
        let (Some(value), Some(own)) = (step.value, self.said()) else { return };
        let own = self.own.judge(&own, value);
        let losses = self.experts.each_mut().map(|expert| match expert.said {
            Some(said) => expert.score.judge(&said, value),
            None => own,
        });
        self.worst = losses.iter().copied().fold(self.worst * FADES, f64::max);
        let worst = self.worst.max(f64::MIN_POSITIVE);
        self.hedge.charge(&losses.map(|loss| (loss / worst) as f32));
        self.usual += USUAL.max(1.0 / self.own.judged as f64) * (own - self.usual);
        if self.drift.note((own / (WORST * self.usual).max(f64::MIN_POSITIVE)).min(1.0)) {
            self.hedge = silent_first();
            self.resets += 1;
        }
    }

    /// What the blend says about the next step.
    fn said(&self) -> Option<Said> {
        let all: Vec<Option<Said>> = self.experts.iter().map(|expert| expert.said).collect();
        let mut sum = 0.0;
        let mut blend = [0.0; LEVELS.len()];
        for (said, weight) in all.iter().zip(self.hedge.weights()) {
            let Some(said) = said else { continue };
            sum += f64::from(*weight);
            blend.iter_mut().zip(said).for_each(|(blend, said)| *blend += f64::from(*weight) * said);
        }
        (sum > 0.0).then(|| blend.map(|value| value / sum))
    }
}

/// Weights to begin with: three fifths for the last value, for nobody else has earned any yet.
fn silent_first() -> Hedge<N> {
    let mut hedge = Hedge::new(RATE, FLOOR);
    let lost: [f32; N] = std::array::from_fn(|at| f32::from(u8::from(at != SILENCE)));
    (0..2).for_each(|_| hedge.charge(&lost));
    hedge
}

impl Expert {
    /// Asks it about the next step.
    fn look(&mut self) {
        self.said = self.model.quantiles(0, &LEVELS).and_then(|said| said.try_into().ok());
    }
}

impl SeriesForecaster for SeriesBlend {
    fn name(&self) -> &'static str {
        "blend"
    }

    fn observe(&mut self, step: &Step) {
        self.judge(step);
        for expert in &mut self.experts {
            expert.model.observe(step);
            expert.look();
        }
    }

    fn quantiles(&self, ahead: usize, levels: &[f64]) -> Option<Vec<f64>> {
        let mut sum = 0.0;
        let mut blend = vec![0.0; levels.len()];
        for (expert, weight) in self.experts.iter().zip(self.hedge.weights()) {
            let Some(said) = expert.model.quantiles(ahead, levels) else { continue };
            sum += f64::from(*weight);
            blend.iter_mut().zip(said).for_each(|(blend, said)| *blend += f64::from(*weight) * said);
        }
        blend.iter_mut().for_each(|value| *value /= sum);
        (sum > 0.0).then_some(blend)
    }

    fn tend(&mut self) -> bool {
        let mut learned = false;
        for expert in &mut self.experts {
            if expert.model.tend() {
                expert.look();
                learned = true;
            }
        }
        learned
    }

    fn bytes(&self) -> usize {
        size_of::<Self>() + self.experts.iter().map(|expert| expert.model.bytes()).sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::series::tests::{coverage, loss, noise};

    fn day(step: usize) -> f64 {
        50.0 + 40.0 * (step as f64 / 24.0 * std::f64::consts::TAU).sin()
    }

    fn weight(blend: &SeriesBlend, name: &str) -> f32 {
        blend.experts().iter().filter(|expert| expert.name == name).map(|expert| expert.weight).sum()
    }

    #[test]
    fn it_is_about_as_good_as_the_best_of_each_series() {
        let mut seed = 61;
        let noisy_days: Vec<f64> = (0..3000).map(|step| day(step) + 3.0 * noise(&mut seed)).collect();
        let bursts: Vec<f64> = (0..3000).map(|_| if noise(&mut seed) > 0.8 { 100.0 } else { 1.0 }).collect();
        let mut at = 0.0;
        let walk: Vec<f64> = (0..3000)
            .map(|_| {
                at += noise(&mut seed);
                at
            })
            .collect();
        for (name, values) in [("days", noisy_days), ("bursts", bursts), ("walk", walk)] {
            let mut blend = SeriesBlend::new(24, 0);
            let own = loss(&mut blend, &values, 0);
            let best = blend.experts().iter().map(|expert| expert.score.loss).fold(f64::INFINITY, f64::min);
            assert!(own < 1.15 * best, "{name}: blend {own}, best {best}: {:#?}", blend.experts());
            assert!(blend.score().covered > 0.8, "{name}: {:?}", blend.score());
        }
    }

    #[test]
    fn a_series_that_becomes_another_begins_anew() {
        let mut seed = 67;
        let values: Vec<f64> = (0..1500).map(|step| day(step) + noise(&mut seed)).collect();
        let mut blend = SeriesBlend::new(24, 0);
        coverage(&mut blend, &values, 0.9);
        assert_eq!(blend.resets(), 0);
        let wild: Vec<f64> = (0..400).map(|_| 500.0 + 400.0 * noise(&mut seed)).collect();
        coverage(&mut blend, &wild, 0.9);
        assert!(blend.resets() > 0);
        assert!(blend.experts().iter().all(|expert| expert.weight > 0.004), "silence and all others are still there");
    }

    #[test]
    fn shuffled_nothing_is_believed_that_claims_to_know_the_order() {
        let mut seed = 71;
        let mut values: Vec<f64> = (0..4000).map(|step| day(step) + noise(&mut seed)).collect();
        for at in (1..values.len()).rev() {
            values.swap(at, ((noise(&mut seed) + 1.0) / 2.0 * (at as f64 + 1.0)) as usize % (at + 1));
        }
        let mut blend = SeriesBlend::new(24, 0);
        let own = loss(&mut blend, &values, 1500);
        let known = loss(&mut QuantileForecaster::new(1024), &values, 1500);
        assert!(own > 0.97 * known, "{own} {known}: something was learned of the future");
        assert!(weight(&blend, "last") + weight(&blend, "seasonal") < 0.1, "{:#?}", blend.experts());
    }

    #[test]
    fn before_there_is_evidence_the_last_value_is_believed() {
        let blend = SeriesBlend::new(24, 0);
        let weight = weight(&blend, "last");
        assert!((0.55..0.65).contains(&weight), "{weight}");
    }

    #[test]
    fn a_clock_says_what_each_costs() {
        let mut blend = SeriesBlend::new(24, 0);
        let mut now = 0;
        let mut clock = || {
            now += 1;
            Instant::from_micros(now)
        };
        (0..50).for_each(|step| blend.observe_timed(&Step::of(day(step)), &mut clock));
        assert!(blend.experts().iter().all(|expert| expert.micros == 1.0 && expert.bytes > 0));
    }
}
