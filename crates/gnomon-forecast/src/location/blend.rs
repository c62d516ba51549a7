//! Whom to believe about places, and how far: a hedge over all models, by the chances that they gave to accesses that had
//! not come yet.
//!
//! ```text
//!   models ──► each its Chances ──► weighted mean ──► Sharpness ──► Chances
//!   what came ──► the weights of its kind of user, and the sharpness
//! ```

use super::{
    BayesForecaster, BothForecaster, Chances, LastPlaceForecaster, LocationForecaster, LocationScore, MAX_PLACES,
    MarkovForecaster, Moment, PopularForecaster, RecentForecaster, RecurrentForecaster, Region, Visit, Who,
    sharpness::Sharpness, who::ByWho,
};
use crate::hedge::Hedge;

/// Models of the blend.
const N: usize = 7;
/// The share of a weight that one visit deals out anew, and the least weight. From a quarter of it to thrice as much did
/// as well on check-ins.
const RATE: f32 = 0.02;
const FLOOR: f32 = 0.005;
/// Visits of a user from which on it is known a little, and well: of a stranger others know more than of a regular, so
/// each kind has weights of its own.
const KNOWN: [u32; 2] = [8, 64];

/// One model, and what is known of it.
struct Expert {
    model: Box<dyn LocationForecaster + Send>,
    score: LocationScore,
}

/// Whom to believe about one kind of user, and how far to believe what they say together.
#[derive(Clone, Debug)]
struct Belief {
    hedge: Hedge<N>,
    sharpness: Sharpness,
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

/// All models of places, blended: the chance of a place is the weighted mean of what the models say, made as sharp as
/// what came has shown it to deserve.
///
/// "They stay where they are" is always among them.
pub struct LocationBlend {
    experts: [Expert; N],
    beliefs: [Belief; KNOWN.len() + 1],
    visits: ByWho<u32>,
    places: usize,
    own: LocationScore,
}

/// All models that are blended, nothing learned yet.
pub fn models() -> [Box<dyn LocationForecaster + Send>; N] {
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
            beliefs: std::array::from_fn(|_| Belief::default()),
            visits: ByWho::default(),
            places: 1,
            own: LocationScore::default(),
        }
    }
}

impl Default for Belief {
    fn default() -> Belief {
        Belief { hedge: Hedge::new(RATE, FLOOR), sharpness: Sharpness::default() }
    }
}

impl Belief {
    /// What is to be told when the models say this.
    fn tell(&self, said: &[Chances; N]) -> Chances {
        self.sharpness.of(&mix(said, self.hedge.weights()))
    }

    /// They said this before something came.
    fn learn(&mut self, said: &[Chances; N], came: Region) {
        self.sharpness.learn(&mix(said, self.hedge.weights()), came);
        self.hedge.charge_chances(&std::array::from_fn(|at| said[at].at(came)));
    }
}

impl LocationBlend {
    /// The experts, and how far each is believed.
    pub fn experts(&self) -> Vec<LocationExpert> {
        let view = |(at, expert): (usize, &Expert)| LocationExpert {
            name: expert.model.name(),
            weights: std::array::from_fn(|kind| self.beliefs[kind].hedge.weights()[at]),
            score: expert.score.clone(),
            bytes: expert.model.bytes(),
        };
        self.experts.iter().enumerate().map(view).collect()
    }

    /// The power to which the mean of the models is raised, of each kind of user as in [`LocationExpert::weights`]: 0.5 to
    /// 2, and 1 where the mean is taken as it is.
    pub fn sharpness(&self) -> [f32; KNOWN.len() + 1] {
        std::array::from_fn(|kind| self.beliefs[kind].sharpness.power())
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

    /// Compares what was said of a visit with where it was.
    fn judge(&mut self, visit: &Visit) {
        let kind = self.kind(visit.who);
        let said: [Chances; N] = std::array::from_fn(|at| {
            self.experts[at].model.forecast(visit.who, visit.profile, &visit.when, self.places)
        });
        self.own.judge(&self.beliefs[kind].tell(&said), visit.at);
        for (expert, said) in self.experts.iter_mut().zip(&said) {
            expert.score.judge(said, visit.at);
        }
        self.beliefs[kind].learn(&said, visit.at);
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
        self.beliefs[self.kind(who)].tell(&said)
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
    use crate::location::tests::{dice, region, visit};

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
    fn where_each_knows_a_part_they_know_more_together() {
        let (mut blend, mut seed) = (LocationBlend::default(), 113);
        for mut visit in story(6000, &mut 97) {
            // A third of the visits are anywhere, which nobody can know.
            if dice(&mut seed, 3) == 0 {
                visit.at = region(dice(&mut seed, 12));
            }
            blend.observe(&visit);
        }
        let best = blend.experts().iter().map(|expert| expert.score.log_loss()).fold(f64::INFINITY, f64::min);
        assert!(blend.score().log_loss() < best - 0.05, "{} {best}", blend.score().log_loss());
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
