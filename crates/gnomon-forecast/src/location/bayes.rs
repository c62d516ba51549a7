//! The long run: a discrete Bayesian network over hour, weekday, profile, neighbours and the world outside.
//!
//! ```text
//!    Profile ──► Who ──► Region ──┬──► Weekday ──► Hour
//!                                 ├──► Neighbours
//!                                 └──► Feed 0 … Feed 3     (weather, events)
//! ```
//!
//! The structure is fixed. Tables are counts with a Dirichlet prior whose mean is the table one step more general: a
//! user's places over its profile's over everybody's, a user's hours at a place over everybody's hours there. What is not
//! known at a moment is left out, which in this network is what summing over it would give: all that is observed hangs
//! below Region. So `P(region | all) ∝ P(region | who) · Π P(what is known | region)`.
//!
//! Source: D. Heckerman, "A Tutorial on Learning with Bayesian Networks", 1995; nested priors: D. MacKay, L. Peto,
//! "A Hierarchical Dirichlet Language Model", 1995.

use super::{
    Chances, LocationForecaster, MAX_FEEDS, MAX_PLACES, Moment, Region, Visit, Who, feed::MAX_SYMBOLS, who::ByWho,
};

/// Profiles that are told apart; others share the last.
const PROFILES: usize = 16;
/// Places that are counted for each user; a new one takes the place of the rarest.
const OWN: usize = 24;
/// Parts of a day at the grain of which a user's own hours are counted: four hours each.
const PARTS: usize = 6;
const HOURS_OF_A_PART: usize = 24 / PARTS;

/// The strength of each prior, as so many visits imagined in the shape of the more general table.
const USER: f32 = 3.0;
const PROFILE: f32 = 20.0;
const OWN_HOURS: f32 = 8.0;
const EVIDENCE: f32 = 60.0;
const ANYWHERE: f32 = 1.0;

/// A user's places: how often, and in which part of the day.
#[derive(Clone, Debug, Default)]
struct Own {
    places: Vec<(Region, f32, [f32; PARTS])>,
}

/// Counts of one node below Region: by place and value, and by value for all places.
#[derive(Clone, Debug)]
struct Table {
    values: usize,
    by_place: Vec<f32>,
    all: Vec<f32>,
}

/// The network.
#[derive(Clone, Debug)]
pub struct BayesForecaster {
    own: ByWho<Own>,
    by_profile: Box<[[f32; MAX_PLACES]; PROFILES]>,
    anywhere: Box<[f32; MAX_PLACES]>,
    weekday: Table,
    hour: Table,
    neighbours: Table,
    feeds: [Table; MAX_FEEDS],
}

impl Default for BayesForecaster {
    fn default() -> BayesForecaster {
        BayesForecaster {
            own: ByWho::default(),
            by_profile: Box::new([[0.0; MAX_PLACES]; PROFILES]),
            anywhere: Box::new([0.0; MAX_PLACES]),
            weekday: Table::new(7),
            // An hour of a working day is not that of a weekend.
            hour: Table::new(2 * 24),
            neighbours: Table::new(MAX_PLACES),
            feeds: std::array::from_fn(|_| Table::new(MAX_SYMBOLS)),
        }
    }
}

impl Table {
    fn new(values: usize) -> Table {
        Table { values, by_place: vec![0.0; values * MAX_PLACES], all: vec![0.0; values] }
    }

    fn count(&mut self, place: usize, value: usize) {
        let value = value.min(self.values - 1);
        self.by_place[place * self.values + value] += 1.0;
        self.all[value] += 1.0;
    }

    /// `P(value | place)` among the values of its `group`.
    fn chance(&self, place: usize, value: usize, group: std::ops::Range<usize>) -> f32 {
        let value = value.min(self.values - 1);
        let row = &self.by_place[place * self.values..][group.clone()];
        let all = &self.all[group.clone()];
        let general = (self.all[value] + 1.0) / (all.iter().sum::<f32>() + group.len() as f32);
        (self.by_place[place * self.values + value] + EVIDENCE * general) / (row.iter().sum::<f32>() + EVIDENCE)
    }

    fn bytes(&self) -> usize {
        (self.by_place.len() + self.all.len()) * size_of::<f32>()
    }
}

impl Own {
    fn note(&mut self, place: Region, part: usize) {
        if let Some((_, count, parts)) = self.places.iter_mut().find(|(known, ..)| *known == place) {
            *count += 1.0;
            parts[part] += 1.0;
            return;
        }
        if self.places.len() == OWN {
            let rarest = (0..OWN).min_by(|a, b| self.places[*a].1.total_cmp(&self.places[*b].1));
            rarest.map(|rarest| self.places.swap_remove(rarest));
        }
        let mut parts = [0.0; PARTS];
        parts[part] = 1.0;
        self.places.push((place, 1.0, parts));
    }
}

/// The hours of the same kind of day: of working days, or of the weekend (the last two days of a week).
fn hours_of(when: &Moment) -> (usize, std::ops::Range<usize>) {
    let first = if when.weekday % 7 >= 5 { 24 } else { 0 };
    (first + usize::from(when.hour % 24), first..first + 24)
}

fn part(when: &Moment) -> usize {
    usize::from(when.hour % 24) / HOURS_OF_A_PART
}

impl BayesForecaster {
    /// `P(region | who)` for each place, and of the user's own visits there how many, and how many in this part of the day.
    fn prior(&self, who: Who, profile: u8, when: &Moment, places: usize) -> Vec<(f32, f32, f32)> {
        let profile = &self.by_profile[usize::from(profile).min(PROFILES - 1)];
        let (all, of_profile) = (self.anywhere.iter().sum::<f32>(), profile.iter().sum::<f32>());
        let own = self.own.get(who).map_or(&[][..], |own| &own.places);
        let visits: f32 = own.iter().map(|(_, count, _)| count).sum();
        let mut prior: Vec<(f32, f32, f32)> = (0..places)
            .map(|place| {
                let anywhere = (self.anywhere[place] + ANYWHERE / places as f32) / (all + ANYWHERE);
                let typical = (profile[place] + PROFILE * anywhere) / (of_profile + PROFILE);
                (USER * typical / (visits + USER), 0.0, 0.0)
            })
            .collect();
        for (place, count, parts) in own {
            if let Some(known) = prior.get_mut(place.number()) {
                *known = (known.0 + count / (visits + USER), *count, parts[part(when)]);
            }
        }
        prior
    }

    /// `P(region | all that is known)`. Where `from` says the chance of each place by another way than by who it is, it takes
    /// the place of `P(region | who)`.
    pub(super) fn given(
        &self,
        from: Option<&Chances>,
        who: Who,
        profile: u8,
        when: &Moment,
        places: usize,
    ) -> Chances {
        let places = places.clamp(1, MAX_PLACES);
        let prior = self.prior(who, profile, when, places);
        let weigh = |(place, (prior, own, in_part)): (usize, (f32, f32, f32))| {
            let prior = from.and_then(|from| from.all().get(place).copied()).unwrap_or(prior);
            prior * self.hour(place, when, own, in_part) * self.evidence(place, when)
        };
        let mut weights: Vec<f32> = prior.into_iter().enumerate().map(weigh).collect();
        // Products of many chances are small; only their ratios count.
        let most = weights.iter().copied().fold(f32::MIN_POSITIVE, f32::max);
        weights.iter_mut().for_each(|weight| *weight /= most);
        Chances::of(weights)
    }

    /// `P(hour | region, who)`.
    fn hour(&self, place: usize, when: &Moment, own: f32, in_part: f32) -> f32 {
        let (hour, of_day) = hours_of(when);
        let general = self.hour.chance(place, hour, of_day);
        (in_part / HOURS_OF_A_PART as f32 + OWN_HOURS * general) / (own + OWN_HOURS)
    }

    /// The product of what is known outside the user, given a place.
    fn evidence(&self, place: usize, when: &Moment) -> f32 {
        let mut product = self.weekday.chance(place, usize::from(when.weekday % 7), 0..7);
        if let Some(neighbours) = when.neighbours {
            product *= self.neighbours.chance(place, neighbours.number(), 0..MAX_PLACES);
        }
        for (feed, known) in self.feeds.iter().zip(when.feeds) {
            if let Some(symbol) = known {
                product *= feed.chance(place, usize::from(symbol), 0..MAX_SYMBOLS);
            }
        }
        product
    }
}

impl LocationForecaster for BayesForecaster {
    fn name(&self) -> &'static str {
        "bayes"
    }

    fn observe(&mut self, visit: &Visit) {
        let place = visit.at.number();
        self.own.seen(visit.who).note(visit.at, part(&visit.when));
        self.by_profile[usize::from(visit.profile).min(PROFILES - 1)][place] += 1.0;
        self.anywhere[place] += 1.0;
        self.weekday.count(place, usize::from(visit.when.weekday % 7));
        self.hour.count(place, hours_of(&visit.when).0);
        if let Some(neighbours) = visit.when.neighbours {
            self.neighbours.count(place, neighbours.number());
        }
        for (feed, known) in self.feeds.iter_mut().zip(visit.when.feeds) {
            if let Some(symbol) = known {
                feed.count(place, usize::from(symbol));
            }
        }
    }

    fn forecast(&self, who: Who, profile: u8, when: &Moment, places: usize) -> Chances {
        self.given(None, who, profile, when, places)
    }

    fn bytes(&self) -> usize {
        let own: usize =
            self.own.values().map(|own| own.places.capacity() * size_of::<(Region, f32, [f32; PARTS])>()).sum();
        let tables = [&self.weekday, &self.hour, &self.neighbours].into_iter().chain(&self.feeds).map(Table::bytes);
        let priors = size_of_val(&*self.by_profile) + size_of_val(&*self.anywhere);
        self.own.bytes() + own + priors + tables.sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::location::tests::{dice, region, visit};

    /// In the rain (feed 0 says 1) all go to 4, else to 1 or 2 by the hour.
    fn rainy(bayes: &mut BayesForecaster, visits: usize) {
        let mut seed = 89;
        for round in 0..visits {
            let (rain, hour) = (dice(&mut seed, 4) == 0, dice(&mut seed, 24) as u8);
            let at = if rain { 4 } else { 1 + usize::from(hour >= 12) };
            let mut visit = visit(round as Who % 20, at, hour);
            visit.when.feeds[0] = Some(u8::from(rain));
            bayes.observe(&visit);
        }
    }

    fn top(bayes: &BayesForecaster, who: Who, when: &Moment) -> usize {
        bayes.forecast(who, 0, when, 10).top(1)[0].0.number()
    }

    #[test]
    fn hour_and_weather_are_asked_and_what_is_unknown_is_left_out() {
        let mut bayes = BayesForecaster::default();
        rainy(&mut bayes, 4000);
        let when = |hour, rain| Moment { hour, feeds: [rain, None, None, None], ..Moment::default() };
        for (hour, rain, at) in [(3, Some(0), 1), (15, Some(0), 2), (3, Some(1), 4), (15, Some(1), 4), (3, None, 1)] {
            assert_eq!(top(&bayes, 5, &when(hour, rain)), at, "hour {hour}, rain {rain:?}");
            assert_eq!(top(&bayes, 999, &when(hour, rain)), at, "a stranger, hour {hour}, rain {rain:?}");
        }
    }

    #[test]
    fn a_user_that_is_known_is_not_as_all_are() {
        let mut bayes = BayesForecaster::default();
        rainy(&mut bayes, 1000);
        (0..30).for_each(|_| bayes.observe(&visit(77, 8, 15)));
        assert_eq!(top(&bayes, 77, &Moment { hour: 15, ..Moment::default() }), 8);
        let mut of_profile = visit(500, 9, 15);
        of_profile.profile = 3;
        for who in 0..200 {
            bayes.observe(&Visit { who: 1000 + who, ..of_profile });
        }
        let chances = bayes.forecast(5555, 3, &Moment { hour: 15, ..Moment::default() }, 10);
        assert_eq!(chances.top(1)[0].0, region(9), "a stranger of a profile is as the profile");
    }

    #[test]
    fn tables_are_chances() {
        let mut table = Table::new(7);
        for round in 0..50 {
            table.count(round % 3, round % 7);
        }
        for place in 0..4 {
            let sum: f32 = (0..7).map(|value| table.chance(place, value, 0..7)).sum();
            assert!((sum - 1.0).abs() < 1e-4, "{place}: {sum}");
        }
    }
}
