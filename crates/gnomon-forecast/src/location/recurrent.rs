//! What the last places of a user say of the next, learned: a small recurrent network, one for all users.
//!
//! ```text
//!   last 16 visits ──Past──► steps ──► GRU ──► a score for each place ─┐
//!   RecentForecaster ──► a chance of each place ──► its logarithm ─────┴─(+)──► softmax ──► Chances
//!
//!   visit ──► a lesson: what was known before it, and where it was ──► one update with three lessons of before
//! ```
//! Where a user is often and lately nobody has to learn; the network learns only what is to be added to that, and begins
//! with adding nothing. What it learns of one user's ways it knows of all others: a stranger gains from whoever went the
//! same way. State and cost do not depend on how much was observed.
//!
//! Source: B. Hidasi et al., "Session-based Recommendations with Recurrent Neural Networks", 2016, for a network over
//! short visits of many users; L.-J. Lin, "Self-improving reactive agents based on reinforcement learning, planning and
//! teaching", 1992, for learning again from what was kept.

use super::{
    Chances, LocationForecaster, MAX_PLACES, Moment, RecentForecaster, Region, Visit, Who,
    past::{Past, Step, TOKENS},
    who::ByWho,
};
use crate::sequence::{Adam, Cell, Dice, Network, Shape, Tape, Work};

/// Numbers that the network remembers. With 24 it was no better on check-ins.
const HIDDEN: usize = 16;
/// How far a weight moves at an update. At three times as far it had learned by heart what it was to forecast.
const RATE: f32 = 0.0006;
/// Lessons that are kept, a ring: at most 1,024 × (128 B of steps + 512 B of chances) = 640 KiB.
const KEPT: usize = 1024;
/// Kept lessons that are learned from again with each visit: a visit costs four ways of 16 steps there and back, and no
/// more than that.
const AGAIN: usize = 3;

/// What could be known before a visit, and where it was.
#[derive(Clone, Debug)]
struct Lesson {
    steps: Vec<Step>,
    below: Chances,
    at: Region,
}

/// A gated recurrent unit over the last visits of each user, over what [`RecentForecaster`] says.
///
/// It learns at each visit. Of somebody of whom no visit is remembered it says what is popular.
#[derive(Clone, Debug)]
pub struct RecurrentForecaster {
    network: Network,
    pasts: ByWho<Past>,
    below: RecentForecaster,
    learning: Learning,
    /// Places seen so far: others could not be forecast, so nothing is learned of them.
    places: usize,
}

/// What learning needs besides the weights.
#[derive(Clone, Debug)]
struct Learning {
    adam: Adam,
    tape: Tape,
    gradient: Vec<f32>,
    kept: Vec<Lesson>,
    /// Where the next lesson goes.
    next: usize,
    dice: Dice,
}

impl RecurrentForecaster {
    /// Knows nothing yet; a seed sets the first weights and which lessons are repeated.
    pub fn new(seed: u64) -> RecurrentForecaster {
        let network = Network::silent(Shape { cell: Cell::Gru, tokens: TOKENS, hidden: HIDDEN }, seed);
        let learning = Learning::new(network.values().len(), Dice(seed));
        let (pasts, below) = (ByWho::default(), RecentForecaster::default());
        RecurrentForecaster { network, pasts, below, learning, places: 1 }
    }
}

impl Default for RecurrentForecaster {
    fn default() -> RecurrentForecaster {
        RecurrentForecaster::new(1)
    }
}

impl LocationForecaster for RecurrentForecaster {
    fn name(&self) -> &'static str {
        "recurrent"
    }

    fn observe(&mut self, visit: &Visit) {
        self.places = self.places.max(visit.at.number() + 1);
        let past = self.pasts.seen(visit.who);
        let steps = past.steps(&visit.when);
        past.note(visit);
        if !steps.is_empty() {
            let below = self.below.forecast(visit.who, visit.profile, &visit.when, self.places);
            self.learning.learn(&mut self.network, Lesson { steps, below, at: visit.at });
        }
        self.below.observe(visit);
    }

    fn forecast(&self, who: Who, profile: u8, when: &Moment, places: usize) -> Chances {
        let below = self.below.forecast(who, profile, when, places.clamp(1, MAX_PLACES));
        let Some(past) = self.pasts.get(who) else { return below };
        let (mut state, mut work) = (self.network.start(), Work::default());
        past.steps(when).iter().for_each(|step| self.network.read_together(step, &mut state, &mut work));
        let told = self.network.chances_over(&known(&below), &state, &mut work);
        Chances::of(told[..below.all().len()].to_vec())
    }

    fn bytes(&self) -> usize {
        let pasts: usize = self.pasts.values().map(Past::bytes).sum();
        self.network.bytes() + self.pasts.bytes() + pasts + self.below.bytes() + self.learning.bytes()
    }
}

impl Learning {
    fn new(weights: usize, dice: Dice) -> Learning {
        let (adam, gradient) = (Adam::new(weights), vec![0.0; weights]);
        Learning { adam, tape: Tape::default(), gradient, kept: Vec::new(), next: 0, dice }
    }

    /// One update with a new lesson and some that were kept; the new one is kept as well.
    fn learn(&mut self, network: &mut Network, lesson: Lesson) {
        let Learning { tape, gradient, kept, dice, .. } = self;
        gradient.fill(0.0);
        let share = 1.0 / (1 + AGAIN) as f32;
        let mut hear = |Lesson { steps, below, at }: &Lesson| {
            tape.learn_last(network, steps, (at.number() as u16, &known(below)), share, gradient);
        };
        hear(&lesson);
        (0..AGAIN.min(kept.len())).for_each(|_| hear(&kept[dice.below(kept.len())]));
        self.adam.follow(network.values_mut(), &self.gradient, RATE);
        self.keep(lesson);
    }

    fn keep(&mut self, lesson: Lesson) {
        match self.kept.len() < KEPT {
            true => self.kept.push(lesson),
            false => self.kept[self.next] = lesson,
        }
        self.next = (self.next + 1) % KEPT;
    }

    fn bytes(&self) -> usize {
        let lesson =
            |lesson: &Lesson| size_of::<Lesson>() + size_of_val(&lesson.steps[..]) + size_of_val(lesson.below.all());
        3 * size_of_val(&self.gradient[..]) + self.kept.iter().map(lesson).sum::<usize>()
    }
}

/// What is known of each token without the network, as logarithms; what is no place, or none that is asked for, cannot
/// come.
fn known(below: &Chances) -> Vec<f32> {
    let mut known: Vec<f32> = below.all().iter().map(|chance| chance.ln()).collect();
    known.resize(TOKENS, f32::NEG_INFINITY);
    known
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::location::{
        LocationScore, MarkovForecaster, PopularForecaster,
        tests::{dice, region, visit},
    };

    /// How models do on the second half of some visits.
    fn scores<const N: usize>(mut models: [Box<dyn LocationForecaster>; N], visits: &[Visit]) -> [LocationScore; N] {
        let mut scores = std::array::from_fn(|_| LocationScore::default());
        for (nth, visit) in visits.iter().enumerate() {
            for (model, score) in models.iter_mut().zip(&mut scores) {
                if nth >= visits.len() / 2 {
                    score.judge(&model.forecast(visit.who, visit.profile, &visit.when, 8), visit.at);
                }
                model.observe(visit);
            }
        }
        scores
    }

    fn learned(seed: u64, visits: &[Visit]) -> RecurrentForecaster {
        let mut model = RecurrentForecaster::new(seed);
        visits.iter().for_each(|visit| model.observe(visit));
        model
    }

    /// Round and round: after 1 1 1 it is 2 or 3, by what was four visits before.
    fn rounds(users: usize, visits: usize) -> Vec<Visit> {
        let round = [1, 1, 1, 2, 1, 1, 1, 3];
        (0..visits).map(|nth| visit((nth % users) as Who, round[nth / users % round.len()], 0)).collect()
    }

    #[test]
    fn it_learns_what_two_places_before_do_not_tell() {
        let [recurrent, markov] = scores(
            [Box::new(RecurrentForecaster::default()), Box::new(MarkovForecaster::default())],
            &rounds(3, 6000),
        );
        assert!(recurrent.first() > 0.95, "{recurrent:?}");
        assert!(markov.first() < 0.85, "{markov:?}");
        assert!(recurrent.log_loss() < 0.5 * markov.log_loss(), "{recurrent:?} {markov:?}");
    }

    #[test]
    fn a_stranger_gains_from_the_ways_of_others() {
        let model = learned(1, &rounds(250, 6000));
        let stranger = |places: &[usize]| {
            let mut model = model.clone();
            places.iter().for_each(|place| model.observe(&visit(99, *place, 0)));
            model.forecast(99, 0, &Moment::default(), 8)
        };
        let (two, three) = (stranger(&[1, 1, 1, 3, 1, 1, 1]), stranger(&[1, 1, 1, 2, 1, 1, 1]));
        assert!(two.at(region(2)) > 2.0 * two.at(region(3)), "{two:?}");
        assert!(three.at(region(3)) > 2.0 * three.at(region(2)), "{three:?}");
    }

    #[test]
    fn of_somebody_never_seen_it_says_what_is_popular() {
        let visits = rounds(3, 600);
        let mut popular = PopularForecaster::default();
        visits.iter().for_each(|visit| popular.observe(visit));
        let told = learned(1, &visits).forecast(77, 0, &Moment::default(), 8);
        let apart = told.all().iter().zip(popular.forecast(77, 0, &Moment::default(), 8).all().to_vec());
        assert!(apart.into_iter().all(|(told, popular)| (told - popular).abs() < 1e-3));
        assert!(RecurrentForecaster::default().forecast(1, 0, &Moment::default(), 8).top_if(3, 0.8).is_none());
    }

    #[test]
    fn shuffled_it_is_no_better_than_what_is_popular() {
        let (mut visits, mut seed) = (rounds(3, 6000), 127);
        for at in (1..visits.len()).rev() {
            let with = dice(&mut seed, at + 1);
            (visits[at].at, visits[with].at) = (visits[with].at, visits[at].at);
        }
        let [recurrent, popular] =
            scores([Box::new(RecurrentForecaster::default()), Box::new(PopularForecaster::default())], &visits);
        assert!(recurrent.log_loss() > popular.log_loss() - 0.01, "something was learned of the future");
        assert!(recurrent.first() < popular.first() + 0.02, "{recurrent:?} {popular:?}");
    }

    #[test]
    fn a_seed_sets_all_of_it() {
        let told = |seed| learned(seed, &rounds(2, 400)).forecast(1, 0, &Moment::default(), 8);
        assert_eq!(told(5), told(5));
        assert_ne!(told(5), told(6));
    }

    #[test]
    fn what_comes_is_not_known_before_it_came() {
        let told = |next: usize, hour: u8| {
            let mut model = learned(1, &rounds(2, 400));
            let told = model.forecast(1, 0, &Moment::default(), 8);
            model.observe(&visit(1, next, hour));
            let after = model.forecast(1, 0, &Moment::default(), 8);
            (told, after)
        };
        let ((before, after), (same, other)) = (told(3, 2), told(1, 23));
        assert_eq!(before, same);
        assert_ne!(after, other, "what came is known afterwards");
    }

    #[test]
    fn lessons_are_bounded_and_weights_are_none_that_are_not_numbers() {
        let mut seed = 131;
        let any =
            |round: usize, seed: &mut u64| visit(round as Who % 5, dice(seed, MAX_PLACES), dice(seed, 256) as u8);
        let visits: Vec<Visit> = (0..KEPT + 300).map(|round| any(round, &mut seed)).collect();
        let model = learned(1, &visits);
        assert_eq!((model.learning.kept.len(), model.learning.next), (KEPT, 295));
        assert!(model.network.values().iter().all(|weight| weight.is_finite()));
        assert!(model.bytes() < 2 << 20, "{} bytes", model.bytes());
    }

    #[test]
    fn hostile_weights_say_nothing() {
        let mut model = learned(1, &rounds(2, 40));
        model.network.values_mut().fill(f32::NAN);
        assert_eq!(model.forecast(1, 0, &Moment::default(), 8), Chances::even(8));
        model.observe(&visit(1, 3, 0));
        assert_eq!(model.forecast(1, 0, &Moment::default(), 8), Chances::even(8));
    }
}
