//! The short run and the long run in one: where one goes from here, as far as it fits the hour and the world outside.

use super::{BayesForecaster, Chances, LocationForecaster, MarkovForecaster, Moment, Visit, Who};

/// The network of [`BayesForecaster`] in which Region hangs below the two regions before: what [`MarkovForecaster`] says
/// takes the place of `P(region | who)`. A mean of the two cannot say "from here never at this hour"; a product can.
///
/// Source: K. Murphy, "Dynamic Bayesian Networks", 2002.
#[derive(Clone, Debug, Default)]
pub struct BothForecaster {
    short: MarkovForecaster,
    long: BayesForecaster,
}

impl LocationForecaster for BothForecaster {
    fn name(&self) -> &'static str {
        "both"
    }

    fn observe(&mut self, visit: &Visit) {
        self.short.observe(visit);
        self.long.observe(visit);
    }

    fn forecast(&self, who: Who, profile: u8, when: &Moment, places: usize) -> Chances {
        let short = self.short.forecast(who, profile, when, places);
        self.long.given(Some(&short), who, profile, when, places)
    }

    fn bytes(&self) -> usize {
        self.short.bytes() + self.long.bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::location::{
        LocationScore,
        tests::{dice, visit},
    };

    #[test]
    fn where_both_are_needed_it_is_better_than_each() {
        let (mut both, mut markov, mut bayes) =
            (BothForecaster::default(), MarkovForecaster::default(), BayesForecaster::default());
        let mut scores: [LocationScore; 3] = Default::default();
        let (mut seed, mut at) = (109, 1);
        for round in 0..3000 {
            // From 1 and 2 it goes to 3 in the morning and to 4 in the evening, from there back to 1 or 2.
            let hour = dice(&mut seed, 24) as u8;
            at = match (at, hour < 12) {
                (1 | 2, morning) => {
                    if morning {
                        3
                    } else {
                        4
                    }
                }
                (_, morning) => {
                    if morning {
                        1
                    } else {
                        2
                    }
                }
            };
            let visit = visit(1, at, hour);
            let models: [&mut dyn LocationForecaster; 3] = [&mut both, &mut markov, &mut bayes];
            for (model, score) in models.into_iter().zip(&mut scores) {
                if round > 500 {
                    score.judge(&model.forecast(1, 0, &visit.when, 8), visit.at);
                }
                model.observe(&visit);
            }
        }
        let [both, markov, bayes] = scores.map(|score| score.log_loss());
        assert!(both < 0.7 * markov && both < 0.7 * bayes, "{both} {markov} {bayes}");
    }
}
