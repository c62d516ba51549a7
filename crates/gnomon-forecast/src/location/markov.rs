//! Where one goes from here, and from there to here.

use std::collections::BTreeMap;

use super::{Chances, LocationForecaster, MAX_PLACES, Moment, RecentForecaster, Region, Visit, Who, who::ByWho};

/// Transitions of two places that are remembered, of all users together; beyond it new ones are left out until some fade.
const MAX_PAIRS: usize = 16_384;
/// Visits after which every count is halved, and what is left with next to nothing is forgotten.
const FADES: u64 = 65_536;
/// Own steps from a place that are remembered of each user.
const OWN: usize = 64;
/// How much the order below counts: as so many steps.
const BACKOFF: f32 = 2.0;

/// One user: the last two places, and its own last steps.
#[derive(Clone, Debug, Default)]
struct Path {
    last: Option<Region>,
    before: Option<Region>,
    steps: Vec<(Region, Region)>,
    next: usize,
}

/// Chains of order two over one over a user's own steps over what it does often and lately: each order says what it has
/// seen, and leaves the rest to the one below.
///
/// Source: the mixing of orders is that of I. Witten, T. Bell, "The zero-frequency problem", 1991, with a fixed weight.
#[derive(Clone, Debug)]
pub struct MarkovForecaster {
    paths: ByWho<Path>,
    /// Steps of all, by place.
    one: Box<[[f32; MAX_PLACES]; MAX_PLACES]>,
    /// Steps of all, by two places.
    two: BTreeMap<(Region, Region), BTreeMap<Region, f32>>,
    pairs: usize,
    visits: u64,
    below: RecentForecaster,
}

impl Default for MarkovForecaster {
    fn default() -> MarkovForecaster {
        MarkovForecaster {
            paths: ByWho::default(),
            one: Box::new([[0.0; MAX_PLACES]; MAX_PLACES]),
            two: BTreeMap::new(),
            pairs: 0,
            visits: 0,
            below: RecentForecaster::default(),
        }
    }
}

impl Path {
    fn note(&mut self, place: Region) {
        if let Some(last) = self.last {
            match self.steps.len() < OWN {
                true => self.steps.push((last, place)),
                false => self.steps[self.next % OWN] = (last, place),
            }
            self.next += 1;
        }
        (self.before, self.last) = (self.last, Some(place));
    }
}

impl MarkovForecaster {
    fn count(&mut self, before: Option<Region>, last: Region, at: Region) {
        self.one[last.number()][at.number()] += 1.0;
        if let Some(before) = before {
            let known = self.two.get(&(before, last)).is_some_and(|next| next.contains_key(&at));
            if known || self.pairs < MAX_PAIRS {
                *self.two.entry((before, last)).or_default().entry(at).or_default() += 1.0;
                self.pairs += usize::from(!known);
            }
        }
        self.visits += 1;
        if self.visits.is_multiple_of(FADES) {
            self.fade();
        }
    }

    fn fade(&mut self) {
        self.one.iter_mut().flatten().for_each(|count| *count /= 2.0);
        for next in self.two.values_mut() {
            next.values_mut().for_each(|count| *count /= 2.0);
            next.retain(|_, count| *count >= 0.5);
        }
        self.two.retain(|_, next| !next.is_empty());
        self.pairs = self.two.values().map(BTreeMap::len).sum();
    }
}

/// Counts over what the order below says.
fn over(below: &Chances, counts: impl Iterator<Item = (usize, f32)>) -> Chances {
    let mut weights: Vec<f32> = below.all().iter().map(|chance| BACKOFF * chance).collect();
    for (place, count) in counts {
        if let Some(weight) = weights.get_mut(place) {
            *weight += count;
        }
    }
    Chances::of(weights)
}

impl LocationForecaster for MarkovForecaster {
    fn name(&self) -> &'static str {
        "markov"
    }

    fn observe(&mut self, visit: &Visit) {
        let path = self.paths.seen(visit.who);
        let (before, last) = (path.before, path.last);
        path.note(visit.at);
        if let Some(last) = last {
            self.count(before, last, visit.at);
        }
        self.below.observe(visit);
    }

    fn forecast(&self, who: Who, profile: u8, when: &Moment, places: usize) -> Chances {
        let below = self.below.forecast(who, profile, when, places);
        let Some((path, last)) = self.paths.get(who).and_then(|path| Some((path, path.last?))) else { return below };
        // The steps of all, as many as two of one's own at most: they know the ways, not the user.
        let row = &self.one[last.number()];
        let scale = BACKOFF / row.iter().sum::<f32>().max(BACKOFF);
        let crowd = over(&below, row.iter().enumerate().map(|(place, count)| (place, count * scale)));
        let own = path.steps.iter().filter(|(from, _)| *from == last).map(|(_, to)| (to.number(), 1.0));
        let first = over(&crowd, own);
        let pairs = path.before.and_then(|before| self.two.get(&(before, last)));
        let Some(pairs) = pairs else { return first };
        let scale = BACKOFF / pairs.values().sum::<f32>().max(BACKOFF);
        over(&first, pairs.iter().map(|(to, count)| (to.number(), count * scale)))
    }

    fn bytes(&self) -> usize {
        let steps: usize =
            self.paths.values().map(|path| path.steps.capacity() * size_of::<(Region, Region)>()).sum();
        let two = self.pairs * size_of::<(Region, f32)>() * 2
            + self.two.len() * size_of::<((Region, Region), BTreeMap<Region, f32>)>();
        self.paths.bytes() + steps + size_of_val(&*self.one) + two + self.below.bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::location::tests::visit;

    #[test]
    fn a_round_trip_is_known_after_a_few() {
        let mut markov = MarkovForecaster::default();
        // From 2 it goes to 3 or to 5, by where it came from.
        let round = [1, 2, 3, 4, 2, 5];
        for step in 0..120 {
            let next = round[step % round.len()];
            if step > 90 {
                let top = markov.forecast(1, 0, &Moment::default(), 10).top(1)[0];
                assert_eq!(top.0.number(), next, "step {step}");
            }
            markov.observe(&visit(1, next, 0));
        }
    }

    #[test]
    fn a_stranger_goes_where_all_go() {
        let mut markov = MarkovForecaster::default();
        for who in 0..50 {
            (0..6).for_each(|step| markov.observe(&visit(who, [1, 2, 3][step % 3], 0)));
        }
        markov.observe(&visit(99, 2, 0));
        assert_eq!(markov.forecast(99, 0, &Moment::default(), 10).top(1)[0].0.number(), 3);
    }

    #[test]
    fn pairs_are_bounded_and_fade() {
        let mut markov = MarkovForecaster::default();
        let mut seed = 83;
        for _ in 0..(FADES + 1000) {
            markov.observe(&visit(1, crate::location::tests::dice(&mut seed, MAX_PLACES), 0));
        }
        assert!(markov.pairs <= MAX_PAIRS);
        assert_eq!(markov.pairs, markov.two.values().map(BTreeMap::len).sum::<usize>());
    }
}
