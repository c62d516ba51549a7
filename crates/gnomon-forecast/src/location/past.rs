//! The last places of a user as a network reads them: step by step, each with what is known of the time of the next.
//!
//! ```text
//!   visits    A, Monday 9 h    B, Monday 13 h    C, Monday 20 h         asked: Tuesday 8 h
//!   steps     A, 13 h, Monday, 4 h later ► B, 20 h, Monday, 7 h later ► C, 8 h, Tuesday, 12 h later ► where?
//! ```
//! Visits carry an hour and a weekday and no date, so a gap is what fits into a week: somebody who comes back after eight
//! days was away for one. A clock that runs backwards is a gap of nearly a week. Nothing of a visit is in the step that
//! is to foretell it but its hour and weekday, which are asked for.

use std::collections::VecDeque;

use super::{MAX_PLACES, Moment, Region, Visit};

/// Visits that are remembered of each user: beyond some days, where somebody was says less than how often.
pub(super) const MAX_PAST: usize = 16;

const HOURS_OF_A_DAY: usize = 24;
const HOURS_OF_A_WEEK: usize = 7 * HOURS_OF_A_DAY;
/// Hours from which on a gap is a longer one: a step or two, a meal, half a day, a night, two days.
const GAPS: [usize; 7] = [1, 2, 3, 6, 12, 24, 48];

/// Tokens: places, then hours, weekdays and gaps.
const HOUR: usize = MAX_PLACES;
const WEEKDAY: usize = HOUR + HOURS_OF_A_DAY;
const GAP: usize = WEEKDAY + 7;
/// How many tokens there are: 167.
pub(super) const TOKENS: usize = GAP + GAPS.len() + 1;

/// What is read in one step: a place, and the hour, weekday and gap of what comes next.
pub(super) type Step = [u16; 4];

/// A user's last visits, the oldest first: where, and at which hour of the week.
#[derive(Clone, Debug, Default)]
pub(super) struct Past {
    visits: VecDeque<(Region, u8)>,
}

impl Past {
    /// A visit came.
    pub(super) fn note(&mut self, visit: &Visit) {
        if self.visits.len() == MAX_PAST {
            self.visits.pop_front();
        }
        self.visits.push_back((visit.at, hour_of_week(&visit.when)));
    }

    /// The steps that lead to a visit at `when`; none of somebody who was never seen.
    pub(super) fn steps(&self, when: &Moment) -> Vec<Step> {
        let next = self.visits.iter().skip(1).map(|(_, hour)| *hour).chain([hour_of_week(when)]);
        self.visits.iter().zip(next).map(|((at, hour), next)| step(*at, *hour, next)).collect()
    }

    /// Bytes of it.
    pub(super) fn bytes(&self) -> usize {
        self.visits.capacity() * size_of::<(Region, u8)>()
    }
}

fn step(at: Region, hour: u8, next: u8) -> Step {
    let (hour, next) = (usize::from(hour), usize::from(next));
    let gap = (HOURS_OF_A_WEEK + next - hour) % HOURS_OF_A_WEEK;
    let longer = GAPS.iter().filter(|from| gap >= **from).count();
    // All are below `TOKENS`.
    [at.number(), HOUR + next % HOURS_OF_A_DAY, WEEKDAY + next / HOURS_OF_A_DAY, GAP + longer]
        .map(|token| token as u16)
}

/// 0 to 167.
fn hour_of_week(when: &Moment) -> u8 {
    when.weekday % 7 * HOURS_OF_A_DAY as u8 + when.hour % HOURS_OF_A_DAY as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::location::tests::{region, visit};
    use proptest::prelude::*;

    fn at(weekday: u8, hour: u8) -> Moment {
        Moment { weekday, hour, ..Moment::default() }
    }

    fn past(visits: &[(usize, Moment)]) -> Past {
        let mut past = Past::default();
        visits.iter().for_each(|(place, when)| past.note(&Visit { when: *when, ..visit(1, *place, 0) }));
        past
    }

    #[test]
    fn a_step_is_a_place_and_the_time_of_what_comes_next() {
        let past = past(&[(5, at(0, 9)), (6, at(0, 13))]);
        let token = |from: usize, nth: usize| (from + nth) as u16;
        let steps = [
            [5, token(HOUR, 13), token(WEEKDAY, 0), token(GAP, 3)],
            [6, token(HOUR, 8), token(WEEKDAY, 1), token(GAP, 5)],
        ];
        assert_eq!(past.steps(&at(1, 8)), steps);
        assert_eq!(Past::default().steps(&at(1, 8)), [[0u16; 4]; 0]);
    }

    #[test]
    fn gaps_are_told_apart_as_far_as_a_week_goes() {
        let gap = |from: (u8, u8), to: (u8, u8)| past(&[(1, at(from.0, from.1))]).steps(&at(to.0, to.1))[0][3];
        for (from, to, bucket) in [
            ((0, 0), (0, 0), 0),
            ((0, 23), (1, 0), 1),
            ((6, 23), (0, 1), 2),
            ((2, 4), (2, 9), 3),
            ((2, 4), (3, 4), 6),
            // An hour back is a week less an hour, and a clock out of its range is one within.
            ((3, 5), (3, 4), 7),
            ((7, 24), (0, 0), 0),
        ] {
            assert_eq!(usize::from(gap(from, to)), GAP + bucket, "{from:?} {to:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_comes_steps_are_few_and_of_known_tokens(
            visits in prop::collection::vec((0..MAX_PLACES, any::<u8>(), any::<u8>()), 0..60),
            asked in any::<(u8, u8)>(),
        ) {
            let visits: Vec<(usize, Moment)> = visits.into_iter().map(|(place, day, hour)| (place, at(day, hour))).collect();
            let steps = past(&visits).steps(&at(asked.0, asked.1));
            prop_assert_eq!(steps.len(), visits.len().min(MAX_PAST));
            prop_assert!(steps.iter().flatten().all(|token| usize::from(*token) < TOKENS));
            // The last of them is where the user is, and no visit is in a step before it.
            if let (Some(step), Some((place, _))) = (steps.last(), visits.last()) {
                prop_assert_eq!(usize::from(step[0]), region(*place).number());
            }
        }
    }
}
