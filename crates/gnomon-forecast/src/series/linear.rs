//! A line through the recent past for each level, learned step by step.

use super::{
    LEVELS, SeriesForecaster, Step, between,
    lags::{FEATURES, Features, Lags},
    rows::{Past, at_distance, distances},
};

/// How far one step moves a weight at first; each weight slows down by what it has moved.
const RATE: f32 = 0.05;
/// What a weight is taken to have moved before the first step: the first steps are small too.
const MOVED: f32 = 1.0;

/// Weights of all levels for one distance.
#[derive(Clone, Debug)]
struct Head {
    ahead: usize,
    weights: [Features; LEVELS.len()],
    moved: [Features; LEVELS.len()],
}

/// Linear quantile regression over lags and calendar by stochastic descent on the pinball loss, with a step size of its
/// own for each weight. It learns two distances, the next step and the horizon; between them it draws a line.
///
/// Source: Koenker and Bassett 1978 (see [`super::pinball`]); J. Duchi, E. Hazan, Y. Singer, "Adaptive Subgradient
/// Methods", 2011.
#[derive(Clone, Debug)]
pub struct LinearForecaster {
    lags: Lags,
    heads: Vec<Head>,
    past: Past,
}

impl LinearForecaster {
    /// Of a series with a `season` of so many steps, to be asked up to `horizon` steps after the next.
    pub fn new(season: usize, horizon: usize) -> LinearForecaster {
        let heads = distances(horizon).map(|ahead| Head {
            ahead,
            weights: [[0.0; FEATURES]; LEVELS.len()],
            moved: [[MOVED; FEATURES]; LEVELS.len()],
        });
        LinearForecaster { lags: Lags::new(season), heads: heads.collect(), past: Past::default() }
    }

    /// One that begins with what a sibling has learned, and with no past: the cold start of a new member of a group.
    pub fn like(sibling: &LinearForecaster) -> LinearForecaster {
        LinearForecaster { lags: Lags::new(sibling.lags.season), heads: sibling.heads.clone(), past: Past::default() }
    }
}

impl Head {
    fn learn(&mut self, features: &Features, distance: f32) {
        for ((level, weights), moved) in LEVELS.iter().zip(&mut self.weights).zip(&mut self.moved) {
            let slope = *level as f32 - f32::from(u8::from(distance < dot(weights, features)));
            for ((weight, moved), feature) in weights.iter_mut().zip(moved).zip(features) {
                let step = slope * feature;
                *moved += step * step;
                *weight += RATE * step / moved.sqrt();
            }
        }
    }
}

impl SeriesForecaster for LinearForecaster {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn observe(&mut self, step: &Step) {
        if let Some(value) = step.value {
            let seen = self.lags.squash(value);
            for (place, head) in self.heads.iter_mut().enumerate() {
                if let Some(then) = self.past.about_now(place, head.ahead) {
                    head.learn(&then.features, seen - then.centre);
                }
            }
        }
        self.lags.observe(step);
        let distances: Vec<usize> = self.heads.iter().map(|head| head.ahead).collect();
        self.past.note(&self.lags, &distances);
    }

    fn quantiles(&self, ahead: usize, levels: &[f64]) -> Option<Vec<f64>> {
        let told = |head: &Head| -> Option<Vec<f64>> {
            let features = self.lags.features(head.ahead)?;
            let centre = self.lags.centre();
            let mut said: Vec<f64> =
                head.weights.iter().map(|weights| self.lags.stretch(centre + dot(weights, &features))).collect();
            // Lines of different levels may cross where nothing was learned.
            said.sort_by(f64::total_cmp);
            Some(levels.iter().map(|level| between(&LEVELS, &said, *level)).collect())
        };
        let near = told(self.heads.first()?)?;
        let far = self.heads.get(1).and_then(|head| Some((head.ahead, told(head)?)));
        Some(at_distance(ahead, near, far))
    }

    fn bytes(&self) -> usize {
        self.lags.bytes() + self.heads.len() * size_of::<Head>() + self.past.bytes()
    }
}

fn dot(weights: &Features, features: &Features) -> f32 {
    weights.iter().zip(features).map(|(weight, feature)| weight * feature).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::series::{
        EwmaForecaster, LastForecaster,
        tests::{coverage, loss, noise},
    };

    /// Noise around half of the last value and a day.
    fn story(seed: &mut u64, steps: usize) -> Vec<f64> {
        let mut last = 100.0;
        (0..steps)
            .map(|step| {
                let day = 40.0 * ((step % 24) as f64 / 24.0 * std::f64::consts::TAU).sin();
                last = 50.0 + 0.5 * last + day + 5.0 * noise(seed);
                last
            })
            .collect()
    }

    #[test]
    fn it_learns_what_follows_from_what() {
        let values = story(&mut 17, 4000);
        let linear = loss(&mut LinearForecaster::new(24, 0), &values, 2000);
        for (name, other) in [
            ("last", loss(&mut LastForecaster::default(), &values, 2000)),
            ("ewma", loss(&mut EwmaForecaster::new(0.2), &values, 2000)),
        ] {
            assert!(linear < 0.7 * other, "{name}: {other}, linear {linear}");
        }
        let held = coverage(&mut LinearForecaster::new(24, 0), &values, 0.9);
        assert!((held - 0.9).abs() < 0.08, "{held}");
    }

    #[test]
    fn a_sibling_begins_with_what_was_learned() {
        let (taught, fresh) = (story(&mut 23, 4000), story(&mut 29, 200));
        let mut teacher = LinearForecaster::new(24, 0);
        taught.iter().for_each(|value| teacher.observe(&Step::of(*value)));
        let cold = loss(&mut LinearForecaster::new(24, 0), &fresh, 30);
        let warm = loss(&mut LinearForecaster::like(&teacher), &fresh, 30);
        assert!(warm < 0.8 * cold, "{warm} {cold}");
    }

    #[test]
    fn shuffled_it_is_no_better_than_the_distribution() {
        let mut values = story(&mut 31, 4000);
        let mut seed = 37;
        for at in (1..values.len()).rev() {
            values.swap(at, ((noise(&mut seed) + 1.0) / 2.0 * (at as f64 + 1.0)) as usize % (at + 1));
        }
        let linear = loss(&mut LinearForecaster::new(24, 0), &values, 2000);
        let known = loss(&mut crate::series::QuantileForecaster::new(512), &values, 2000);
        assert!(linear > 0.97 * known, "{linear} {known}: something was learned of the future");
    }
}
