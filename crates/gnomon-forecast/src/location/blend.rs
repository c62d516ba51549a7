//! Whom to believe about places: a hedge over all models, by their log loss on accesses that had not come yet.

use super::{
    BayesForecaster, BothForecaster, Chances, LastPlaceForecaster, LocationForecaster, LocationScore, MAX_PLACES,
    MarkovForecaster, Moment, PopularForecaster, RecentForecaster, RecurrentForecaster, Visit, Who, who::ByWho,
};
use crate::hedge::Hedge;

/// Models of the blend.
const N: usize = 7;
/// How strongly a loss counts, and the least weight.
const RATE: f32 = 0.2;
const FLOOR: f32 = 0.005;
/// The loss that counts as the worst, in nats: a place of which one in ten thousand was said.
const WORST: f64 = 9.2;
/// Visits of a user from which on it is known a little, and well: of a stranger others know more than of a regular, so
/// each kind has weights of its own.
const KNOWN: [u32; 2] = [8, 64];

/// One model, and what is known of it.
struct Expert {
    model: Box<dyn LocationForecaster + Send>,
    score: LocationScore,
}

/// An expert as reports show it.
#[derive(Clone, Debug, PartialEq)]
pub struct LocationExpert {
    /// Its name.
    pub name: &'static str,
    /// How much it is believed about strangers, users known a little, and users known well; each sums to one over experts.
    pub weights: [f32; KNOWN.len() + 1],
    /// How good it was, on accesses it had not seen.
    pub score: LocationScore,
    /// Bytes of state.
    pub bytes: usize,
}

/// All models of places, blended: the chance of a place is the weighted mean of what the models say.
///
/// "They stay where they are" is always among them.
pub struct LocationBlend {
    experts: [Expert; N],
    hedges: [Hedge<N>; KNOWN.len() + 1],
    visits: ByWho<u32>,
    places: usize,
    own: LocationScore,
}

/// All models, nothing learned yet.
pub(super) fn models() -> [Box<dyn LocationForecaster + Send>; N] {
    [
        Box::new(LastPlaceForecaster::default()),
        Box::new(PopularForecaster::default()),
        Box::new(RecentForecaster::default()),
        Box::new(MarkovForecaster::default()),
        Box::new(BayesForecaster::default()),
        Box::new(BothForecaster::default()),
        Box::new(RecurrentForecaster::default()),
    ]
}

impl Default for LocationBlend {
    fn default() -> LocationBlend {
        LocationBlend {
            experts: models().map(|model| Expert { model, score: LocationScore::default() }),
            hedges: std::array::from_fn(|_| Hedge::new(RATE, FLOOR)),
            visits: ByWho::default(),
            places: 1,
            own: LocationScore::default(),
        }
    }
}

impl LocationBlend {
    /// The experts, and how far each is believed.
    pub fn experts(&self) -> Vec<LocationExpert> {
        let view = |(at, expert): (usize, &Expert)| LocationExpert {
            name: expert.model.name(),
            weights: std::array::from_fn(|kind| self.hedges[kind].weights()[at]),
            score: expert.score.clone(),
            bytes: expert.model.bytes(),
        };
        self.experts.iter().enumerate().map(view).collect()
    }

    /// How good the blend was.
    pub fn score(&self) -> &LocationScore {
        &self.own
    }

    /// What each expert says by itself, by its name, and the blend last; for comparison.
    pub fn each_forecast(&self, visit: &Visit, places: usize) -> Vec<(&'static str, Chances)> {
        let Visit { who, profile, when, .. } = visit;
        let models = self.experts.iter().map(|expert| &*expert.model as &dyn LocationForecaster);
        let models = models.chain(std::iter::once(self as &dyn LocationForecaster));
        models.map(|model| (model.name(), model.forecast(*who, *profile, when, places))).collect()
    }

    fn kind(&self, who: Who) -> usize {
        let visits = self.visits.get(who).copied().unwrap_or(0);
        KNOWN.iter().filter(|known| visits >= **known).count()
    }

    /// Charges each model what its forecast of this visit cost.
    fn judge(&mut self, visit: &Visit) {
        let kind = self.kind(visit.who);
        let said: [Chances; N] = std::array::from_fn(|at| {
            self.experts[at].model.forecast(visit.who, visit.profile, &visit.when, self.places)
        });
        self.own.judge(&mix(&said, self.hedges[kind].weights()), visit.at);
        let losses = std::array::from_fn(|at| {
            let loss = self.experts[at].score.judge(&said[at], visit.at);
            (loss / WORST).clamp(0.0, 1.0) as f32
        });
        self.hedges[kind].charge(&losses);
    }
}

/// The weighted mean.
fn mix(said: &[Chances; N], weights: &[f32; N]) -> Chances {
    let mut sums = vec![0.0; said[0].all().len()];
    for (chances, weight) in said.iter().zip(weights) {
        sums.iter_mut().zip(chances.all()).for_each(|(sum, chance)| *sum += weight * chance);
    }
    Chances::of(sums)
}

impl LocationForecaster for LocationBlend {
    fn name(&self) -> &'static str {
        "blend"
    }

    fn observe(&mut self, visit: &Visit) {
        // A place that was never seen cannot be forecast: as many are judged as are known, this one included.
        self.places = self.places.max(visit.at.number() + 1);
        self.judge(visit);
        self.experts.iter_mut().for_each(|expert| expert.model.observe(visit));
        *self.visits.seen(visit.who) += 1;
    }

    fn forecast(&self, who: Who, profile: u8, when: &Moment, places: usize) -> Chances {
        let said = std::array::from_fn(|at| {
            self.experts[at].model.forecast(who, profile, when, places.clamp(1, MAX_PLACES))
        });
        mix(&said, self.hedges[self.kind(who)].weights())
    }

    fn bytes(&self) -> usize {
        size_of::<Self>()
            + self.visits.bytes()
            + self.experts.iter().map(|expert| expert.model.bytes()).sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::location::tests::{dice, visit};

    /// A user that goes round, one that has a place for each part of the day, one that stays.
    fn story(visits: usize, seed: &mut u64) -> Vec<Visit> {
        (0..visits)
            .map(|round| {
                let (who, hour) = (round as Who % 3, dice(seed, 24) as u8);
                let at = match who {
                    0 => [1, 2, 3, 4][round / 3 % 4],
                    1 => 5 + usize::from(hour / 8),
                    _ => 9,
                };
                visit(who, at, hour)
            })
            .collect()
    }

    #[test]
    fn it_is_about_as_good_as_the_best() {
        let mut blend = LocationBlend::default();
        story(6000, &mut 97).iter().for_each(|visit| blend.observe(visit));
        let best = blend.experts().iter().map(|expert| expert.score.log_loss()).fold(f64::INFINITY, f64::min);
        assert!(blend.score().log_loss() < best + 0.05, "{} {best}", blend.score().log_loss());
        assert!(blend.score().among_three() > 0.95);
        assert!(blend.experts().iter().all(|expert| expert.weights.iter().all(|weight| *weight > 0.004)));
    }

    #[test]
    fn shuffled_it_is_no_better_than_what_is_popular() {
        let mut seed = 101;
        let mut visits = story(6000, &mut seed);
        for at in (1..visits.len()).rev() {
            let with = dice(&mut seed, at + 1);
            let place = visits[at].at;
            visits[at].at = visits[with].at;
            visits[with].at = place;
        }
        let mut blend = LocationBlend::default();
        visits.iter().for_each(|visit| blend.observe(visit));
        let popular = blend.experts()[1].score.log_loss();
        assert!(blend.score().log_loss() > popular - 0.01, "something was learned of the future");
    }

    #[test]
    fn the_same_visits_give_the_same_chances() {
        let run = || {
            let mut blend = LocationBlend::default();
            story(2000, &mut 103).iter().for_each(|visit| blend.observe(visit));
            (0..4).map(|who| blend.forecast(who, 0, &Moment::default(), 12)).collect::<Vec<_>>()
        };
        assert_eq!(run(), run());
    }

    #[test]
    fn what_comes_is_not_known_before_it_came() {
        let seen = |future: usize| {
            let mut blend = LocationBlend::default();
            story(900, &mut 107).iter().for_each(|visit| blend.observe(visit));
            let said = blend.forecast(1, 0, &Moment::default(), 12);
            blend.observe(&visit(1, future, 0));
            said
        };
        assert_eq!(seen(5), seen(11));
    }
}
