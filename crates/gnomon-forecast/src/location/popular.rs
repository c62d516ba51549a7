//! Where most read from at this hour, whoever it is: what is known of a stranger.

use super::{Chances, LocationForecaster, MAX_PLACES, Moment, Visit, Who};

/// How fast a count is forgotten: a tenth is left after some 50,000 visits.
const KEPT: f32 = 1.0 - 1.0 / 20_000.0;
/// Visits of the whole day that are imagined in each hour.
const PRIOR: f32 = 50.0;

/// Counts by place, for each hour and for all.
#[derive(Clone, Debug)]
pub struct PopularForecaster {
    by_hour: Box<[[f32; MAX_PLACES]; 24]>,
    all: Box<[f32; MAX_PLACES]>,
}

impl Default for PopularForecaster {
    fn default() -> PopularForecaster {
        PopularForecaster { by_hour: Box::new([[0.0; MAX_PLACES]; 24]), all: Box::new([0.0; MAX_PLACES]) }
    }
}

impl LocationForecaster for PopularForecaster {
    fn name(&self) -> &'static str {
        "popular"
    }

    fn observe(&mut self, visit: &Visit) {
        let hour = &mut self.by_hour[usize::from(visit.when.hour % 24)];
        hour.iter_mut().for_each(|count| *count *= KEPT);
        self.all.iter_mut().for_each(|count| *count *= KEPT);
        hour[visit.at.number()] += 1.0;
        self.all[visit.at.number()] += 1.0;
    }

    fn forecast(&self, _who: Who, _profile: u8, when: &Moment, places: usize) -> Chances {
        let sum = self.all.iter().sum::<f32>().max(1.0);
        let hour = &self.by_hour[usize::from(when.hour % 24)];
        let weights = hour.iter().zip(self.all.iter()).map(|(hour, all)| hour + PRIOR * all / sum);
        Chances::of(weights.take(places).collect())
    }

    fn bytes(&self) -> usize {
        size_of::<Self>() + size_of_val(&*self.by_hour) + size_of_val(&*self.all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::location::tests::visit;

    #[test]
    fn hours_are_told_apart_once_they_have_shown_themselves() {
        let mut popular = PopularForecaster::default();
        for round in 0..2000 {
            popular.observe(&visit(round, if round % 2 == 0 { 3 } else { 7 }, if round % 2 == 0 { 9 } else { 21 }));
        }
        let at = |hour| {
            let chances = popular.forecast(9999, 0, &Moment { hour, ..Moment::default() }, 10);
            chances.top(1)[0].0.number()
        };
        assert_eq!((at(9), at(21)), (3, 7));
        let unseen = popular.forecast(0, 0, &Moment { hour: 4, ..Moment::default() }, 10);
        assert!((unseen.all()[3] - 0.5).abs() < 0.01 && (unseen.all()[7] - 0.5).abs() < 0.01);
    }
}
