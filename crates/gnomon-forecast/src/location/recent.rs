//! Where somebody was often and lately.

use super::{Chances, LocationForecaster, Moment, PopularForecaster, Region, Visit, Who, who::ByWho};

/// Places that are remembered of each user; the least of them makes room.
const KEPT: usize = 16;
/// How much of a place's weight is left after each visit elsewhere: half after thirteen.
const FADES: f32 = 0.95;
/// How much the crowd counts beside a user's own visits: as one visit and a half.
const CROWD: f32 = 1.5;

/// A user's places.
#[derive(Clone, Debug, Default)]
struct Places {
    all: Vec<(Region, f32)>,
}

/// Frequency and recency in one number: each visit adds one to its place and lets all others fade. What is left open is
/// the crowd's.
///
/// Source: D. Lee et al., "LRFU: a spectrum of policies that subsumes the LRU and LFU policies", 2001.
#[derive(Clone, Debug, Default)]
pub struct RecentForecaster {
    places: ByWho<Places>,
    crowd: PopularForecaster,
}

impl Places {
    fn note(&mut self, place: Region) {
        self.all.iter_mut().for_each(|(_, weight)| *weight *= FADES);
        if let Some((_, weight)) = self.all.iter_mut().find(|(known, _)| *known == place) {
            *weight += 1.0;
            return;
        }
        let least = (0..self.all.len()).min_by(|a, b| self.all[*a].1.total_cmp(&self.all[*b].1));
        if let Some(least) = least.filter(|_| self.all.len() == KEPT) {
            self.all.swap_remove(least);
        }
        self.all.push((place, 1.0));
    }
}

impl LocationForecaster for RecentForecaster {
    fn name(&self) -> &'static str {
        "recent"
    }

    fn observe(&mut self, visit: &Visit) {
        self.places.seen(visit.who).note(visit.at);
        self.crowd.observe(visit);
    }

    fn forecast(&self, who: Who, profile: u8, when: &Moment, places: usize) -> Chances {
        let crowd = self.crowd.forecast(who, profile, when, places);
        let mut weights: Vec<f32> = crowd.all().iter().map(|chance| CROWD * chance).collect();
        for (place, weight) in self.places.get(who).map_or(&[][..], |places| &places.all) {
            if let Some(sum) = weights.get_mut(place.number()) {
                *sum += weight;
            }
        }
        Chances::of(weights)
    }

    fn bytes(&self) -> usize {
        let places: usize =
            self.places.values().map(|places| places.all.capacity() * size_of::<(Region, f32)>()).sum();
        self.places.bytes() + places + self.crowd.bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::location::tests::visit;

    #[test]
    fn often_counts_until_lately_counts_more() {
        let mut recent = RecentForecaster::default();
        (0..20).for_each(|_| recent.observe(&visit(1, 3, 0)));
        (0..4).for_each(|_| recent.observe(&visit(1, 8, 0)));
        let top = |recent: &RecentForecaster| recent.forecast(1, 0, &Moment::default(), 20).top(1)[0].0.number();
        assert_eq!(top(&recent), 3);
        (0..8).for_each(|_| recent.observe(&visit(1, 8, 0)));
        assert_eq!(top(&recent), 8);
    }

    #[test]
    fn no_more_places_are_kept_than_there_is_room_for() {
        let mut recent = RecentForecaster::default();
        (0..100).for_each(|place| recent.observe(&visit(1, place, 0)));
        assert_eq!(recent.places.get(1).map(|places| places.all.len()), Some(KEPT));
    }
}
