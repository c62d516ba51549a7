//! They stay where they are: silence about movement, the baseline of all others.

use super::{Chances, LocationForecaster, Moment, Region, Visit, Who, who::ByWho};

/// The last place of each user, with the chance to stay that all of them together show.
#[derive(Clone, Debug, Default)]
pub struct LastPlaceForecaster {
    last: ByWho<Option<Region>>,
    stayed: f32,
    moved: f32,
}

impl LocationForecaster for LastPlaceForecaster {
    fn name(&self) -> &'static str {
        "last"
    }

    fn observe(&mut self, visit: &Visit) {
        match self.last.seen(visit.who).replace(visit.at) {
            Some(last) if last == visit.at => self.stayed += 1.0,
            Some(_) => self.moved += 1.0,
            None => {}
        }
    }

    fn forecast(&self, who: Who, _profile: u8, _when: &Moment, places: usize) -> Chances {
        let Some(last) = self.last.get(who).copied().flatten() else { return Chances::even(places) };
        // One imagined stay and one imagined move.
        let stays = (self.stayed + 1.0) / (self.stayed + self.moved + 2.0);
        let mut weights = vec![(1.0 - stays) / places.max(2) as f32; places.max(1)];
        if let Some(weight) = weights.get_mut(last.number()) {
            *weight = stays;
        }
        Chances::of(weights)
    }

    fn bytes(&self) -> usize {
        size_of::<Self>() + self.last.bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::location::tests::visit;

    #[test]
    fn the_chance_to_stay_is_what_was_seen() {
        let mut last = LastPlaceForecaster::default();
        for round in 0..100 {
            // Two visits at each place, then the next: half stays.
            last.observe(&visit(1, round / 2 % 5, 0));
        }
        let chances = last.forecast(1, 0, &Moment::default(), 5);
        assert_eq!(chances.top(1)[0].0.number(), 4);
        assert!((chances.all()[4] - 0.5).abs() < 0.15, "{chances:?}");
        assert_eq!(last.forecast(2, 0, &Moment::default(), 5), Chances::even(5), "of a stranger nothing is known");
    }
}
