//! How much a trust group will ask for: its members' demand, aggregated, and one blend for all of them.
//!
//! A pool that is shared serves whoever asks, so what has to be known is the *sum* of what members will ask for, and that
//! is far steadier than what each will. Only sums leave this file: nobody can read one member's demand off a forecast of
//! a group of more than one. A group's members move the models of their own group and of no other.

use std::collections::BTreeMap;

use gnomon_terms::{ErrorKind, Instant};

use super::{
    BESIDE, SeriesBlend, SeriesForecaster, Step,
    member::{Clock, Member},
    rises::Rises,
};

/// Members of a group: with 1,024 a step costs some 50 µs.
pub const MAX_MEMBERS: usize = 1024;
/// How long what a leaver asked for still shapes the models: a week of 5-minute steps, of which half is gone after five days.
const RECALLED: f64 = 1.0 / 2016.0;
/// With less than this left of the history it was that of leavers, and the models begin anew.
const LEFT: f64 = 1.0 / 64.0;

/// Who, within a group. Opaque: the caller numbers its members.
pub type MemberId = u64;

/// Why something was refused. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum GroupError {
    /// One member too many.
    #[error("the group has {MAX_MEMBERS} members: make a second group")]
    Full,
    /// Not a member.
    #[error("{0} is not a member of the group: add it first")]
    Unknown(MemberId),
    /// A demand that cannot be.
    #[error("member {member} is said to need {demand}, and 0 to {most} is what it can: look at what measures it")]
    Impossible {
        /// Whose.
        member: MemberId,
        /// What was said.
        demand: f64,
        /// What it may have at most.
        most: f64,
    },
    /// There is one for this step.
    #[error("a second demand of member {0} in one step: end the step first")]
    Repeated(MemberId),
}

impl GroupError {
    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            GroupError::Impossible { .. } => ErrorKind::Corrupt,
            GroupError::Full | GroupError::Unknown(_) | GroupError::Repeated(_) => ErrorKind::Refused,
        }
    }
}

/// A group and what it will ask for: the sum of what its members said to have asked for ([`GroupDemand::asked`]), or, of
/// those of whom only the demand is known, of its rises from one step to the next.
///
/// A member that leaves takes the weight of its history with it. What is learned from sums cannot be taken out of a model;
/// but of the sums its share is known, so from then on the models are shown the group as if they had never seen the leaver:
/// what they say is multiplied by what is left, and what comes is divided by it. That goes back to 1 within two weeks, as the
/// models forget the sums that the leaver was in.
pub struct GroupDemand {
    members: BTreeMap<MemberId, Member>,
    steps: usize,
    season: usize,
    horizon: usize,
    blend: SeriesBlend,
    rises: Rises,
    history: f64,
}

impl GroupDemand {
    /// An empty group; a day is `season` steps, and it is asked up to `horizon` steps after the next.
    pub fn new(season: usize, horizon: usize) -> GroupDemand {
        let blend = SeriesBlend::new(season, horizon);
        GroupDemand { members: BTreeMap::new(), steps: 0, season, horizon, blend, rises: Rises::new(), history: 1.0 }
    }

    /// Adds a member that can need up to `most`; that of one which is there already is changed.
    pub fn join(&mut self, id: MemberId, most: f64) -> Result<(), GroupError> {
        if let Some(member) = self.members.get_mut(&id) {
            member.most = most;
            return Ok(());
        }
        if self.members.len() == MAX_MEMBERS {
            return Err(GroupError::Full);
        }
        self.members.insert(id, Member::new(most));
        Ok(())
    }

    /// Removes a member. What was known of it is forgotten, and the group's history counts less by its share of what was
    /// asked for in the last day or so; the rules that models learned from sums stay.
    pub fn leave(&mut self, id: MemberId) -> Result<(), GroupError> {
        let share = self.share(id);
        self.members.remove(&id).ok_or(GroupError::Unknown(id))?;
        self.history *= 1.0 - share;
        if self.history < LEFT {
            (self.blend, self.history) = (SeriesBlend::new(self.season, self.horizon), 1.0);
        }
        Ok(())
    }

    /// How much of what the group asked for in the last day or so was asked for by this member: 0.0 to 1.0.
    pub fn share(&self, id: MemberId) -> f64 {
        let all: f64 = self.members.values().map(|member| member.asks).sum();
        self.members.get(&id).map_or(0.0, |member| (member.asks / all.max(f64::MIN_POSITIVE)).clamp(0.0, 1.0))
    }

    /// How much of the models' history is that of members who are still there: 1.0 when nobody left lately.
    pub fn history(&self) -> f64 {
        self.history
    }

    /// Members at present.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether nobody is a member.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// What a member needs in the step that is open. One of whom nothing is said needs what it did.
    pub fn demand(&mut self, id: MemberId, demand: f64) -> Result<(), GroupError> {
        let member = self.members.get_mut(&id).ok_or(GroupError::Unknown(id))?;
        if !(0.0..=member.most).contains(&demand) {
            return Err(GroupError::Impossible { member: id, demand, most: member.most });
        }
        if member.next.is_some() {
            return Err(GroupError::Repeated(id));
        }
        member.next = Some(demand);
        Ok(())
    }

    /// What a member asked for in the step that is open, where requests are seen themselves: it counts in the place of the
    /// rise of its demand. Several add up, and together count no more than the most it may have.
    pub fn asked(&mut self, id: MemberId, bytes: f64) -> Result<(), GroupError> {
        let member = self.members.get_mut(&id).ok_or(GroupError::Unknown(id))?;
        if !(0.0..f64::INFINITY).contains(&bytes) {
            return Err(GroupError::Impossible { member: id, demand: bytes, most: member.most });
        }
        member.asked = Some((member.asked.unwrap_or(0.0) + bytes).min(member.most));
        Ok(())
    }

    /// Ends the step: what members asked for in it, together, and what the models were told.
    pub fn end_step(&mut self) -> Step {
        self.end_step_as(|step| step)
    }

    /// The same, where the models are shown what `shown` makes of the sums: sums with noise. Returned is what they were shown.
    pub fn end_step_as(&mut self, shown: impl FnOnce(Step) -> Step) -> Step {
        let step = shown(self.gather());
        self.blend.observe(&self.as_if_alone(step));
        step
    }

    /// The same, with the models tended and each one's time taken by `clock`.
    pub fn end_step_timed(&mut self, clock: &mut dyn FnMut() -> Instant) -> Step {
        let step = self.gather();
        self.rises.tend();
        self.blend.observe_timed(&self.as_if_alone(step), clock);
        step
    }

    /// The step in terms of a history that leavers were part of.
    fn as_if_alone(&self, step: Step) -> Step {
        Step {
            value: step.value.map(|value| value / self.history),
            beside: step.beside.map(|known| known / self.history),
        }
    }

    fn gather(&mut self) -> Step {
        let clock = Clock::at(self.steps, self.season);
        let mut heard = false;
        let (mut asked, mut beside, mut variance) = (0.0, [0.0; BESIDE], 0.0);
        for member in self.members.values_mut() {
            let Some(turn) = member.turn(&clock, &mut self.rises) else { continue };
            heard |= turn.heard;
            asked += turn.rise;
            variance += turn.expected.variance;
            let known = turn.known.into_iter().chain([turn.expected.mean]);
            beside.iter_mut().zip(known).for_each(|(sum, known)| *sum += known);
        }
        beside[BESIDE - 1] = variance.sqrt();
        self.steps += 1;
        self.history += RECALLED * (1.0 - self.history);
        Step { value: heard.then_some(asked), beside }
    }

    /// Bytes of what the group learned and keeps, without its members' records.
    pub fn bytes(&self) -> usize {
        self.blend.bytes() + self.rises.bytes()
    }

    /// [`SeriesForecaster::tend`] of all that learns from the group.
    pub fn tend(&mut self) -> bool {
        self.rises.tend() | self.blend.tend()
    }

    /// The models.
    pub fn blend(&self) -> &SeriesBlend {
        &self.blend
    }

    /// How much the group will ask for in the step after the next `ahead` ones, for each of `levels`; never less than
    /// nothing. `None` while too little is known.
    pub fn will_ask(&self, ahead: usize, levels: &[f64]) -> Option<Vec<f64>> {
        let said = self.blend.quantiles(ahead, levels)?;
        Some(said.into_iter().map(|value| value.max(0.0) * self.history).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::series::{
        LEVELS,
        member::{HOUR, STATES},
        tests::noise,
    };

    fn group() -> GroupDemand {
        let mut group = GroupDemand::new(24, 0);
        (0..3).for_each(|id| group.join(id, 1000.0).expect("there is room"));
        group
    }

    #[test]
    fn what_is_asked_for_is_the_sum_of_rises() {
        let mut group = group();
        // (demands of three members, asked for together)
        let table = [([10.0, 10.0, 10.0], 0.0), ([15.0, 5.0, 10.0], 5.0), ([15.0, 25.0, 11.0], 21.0)];
        for (demands, asked) in table {
            for (id, demand) in demands.into_iter().enumerate() {
                group.demand(id as MemberId, demand).expect("good demands");
            }
            assert_eq!(group.end_step().value, Some(asked));
        }
        assert_eq!(group.end_step().value, None, "nobody was heard");
        group.demand(0, 100.0).expect("a good demand");
        assert_eq!(group.end_step().value, Some(85.0), "the others need what they did");
    }

    #[test]
    fn requests_that_were_seen_count_in_the_place_of_rises() {
        let mut group = group();
        for (demand, asked, counted) in
            [(10.0, &[][..], 0.0), (90.0, &[16.0, 8.0], 24.0), (90.0, &[900.0, 900.0], 1000.0)]
        {
            group.demand(0, demand).expect("a good demand");
            asked.iter().for_each(|bytes| group.asked(0, *bytes).expect("a good request"));
            assert_eq!(group.end_step().value, Some(counted));
        }
        group.asked(1, 64.0).expect("a guest that starts asks before it needs anything");
        assert_eq!(group.end_step().value, Some(64.0));
        assert!(group.asked(1, f64::NAN).is_err() && group.asked(1, -1.0).is_err() && group.asked(9, 1.0).is_err());
    }

    #[test]
    fn a_leaver_takes_the_weight_of_its_history_with_it() {
        let mut group = group();
        let mut seed = 5;
        let mut live = |group: &mut GroupDemand, steps: usize, members: u64| {
            for _ in 0..steps {
                (0..members).for_each(|id| group.asked(id, [10.0, 10.0, 60.0][id as usize]).expect("a good request"));
                group.asked(0, 1.0 + noise(&mut seed)).expect("a good request");
                group.end_step();
            }
        };
        live(&mut group, 900, 3);
        let middle = |group: &GroupDemand| group.will_ask(0, &[0.5]).expect("seen enough")[0];
        assert!((middle(&group) - 81.0).abs() < 5.0, "{}", middle(&group));
        assert!((group.share(2) - 60.0 / 81.0).abs() < 0.05, "{}", group.share(2));
        group.leave(2).expect("it is a member");
        assert!((middle(&group) - 21.0).abs() < 3.0, "right after it left: {}", middle(&group));
        live(&mut group, 900, 2);
        assert!((middle(&group) - 21.0).abs() < 3.0, "and on: {}", middle(&group));
        assert!(group.history() > 0.4 && group.history() < 1.0, "{}", group.history());
    }

    #[test]
    fn when_all_that_was_learned_was_the_leavers_the_models_begin_anew() {
        let mut group = group();
        for _ in 0..50 {
            group.asked(1, 500.0).expect("a good request");
            group.end_step();
        }
        assert!(group.will_ask(0, &[0.5]).is_some());
        group.leave(1).expect("it is a member");
        assert_eq!((group.will_ask(0, &[0.5]), group.history(), group.len()), (None, 1.0, 2));
    }

    #[test]
    fn of_a_member_a_few_numbers_are_kept_and_no_times() {
        // Each field by its name: what is kept is documented (docs/memory.md), and so is what is added here.
        let mut group = group();
        (0..100).for_each(|_| {
            group.asked(0, 1.0).expect("a good request");
            group.end_step();
        });
        let Member {
            most: _,
            demand: _,
            next,
            asked,
            asks: _,
            squares: _,
            scale: _,
            rates: _,
            steps: _,
            burst: _,
            lately,
            day: _,
            mean: _,
            after,
            hourly,
            state,
            then,
        } = &group.members[&0];
        assert_eq!((*next, *asked), (None, None), "the step has ended");
        assert!(
            then.is_some()
                && lately.len() <= HOUR
                && after.len() == STATES
                && hourly.len() == HOUR
                && *state < STATES
        );
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let mut group = group();
        group.demand(1, 7.0).expect("a good demand");
        for (id, demand) in [(0, f64::NAN), (0, -1.0), (0, 1001.0), (1, 8.0), (9, 1.0)] {
            assert!(group.demand(id, demand).is_err(), "{id} {demand}");
        }
        assert_eq!(group.leave(9), Err(GroupError::Unknown(9)));
        assert_eq!(group.demand(1, 8.0).map_err(|error| error.kind()), Err(ErrorKind::Refused));
        (3..MAX_MEMBERS as MemberId).for_each(|id| group.join(id, 1.0).expect("there is room"));
        assert_eq!(group.join(u64::MAX, 1.0), Err(GroupError::Full));
    }

    #[test]
    fn a_hostile_member_moves_its_own_group_only_and_that_by_no_more_than_it_may_have() {
        let run = |hostile: bool| {
            let (mut theirs, mut ours) = (group(), group());
            let mut seed = 73;
            for step in 0..600 {
                for id in 0..3 {
                    let demand = 100.0 + 50.0 * noise(&mut seed);
                    ours.demand(id, demand).expect("good demands");
                    let lie = if step % 2 == 0 { 1000.0 } else { 0.0 };
                    theirs.demand(id, if hostile && id == 0 { lie } else { demand }).expect("demands within bounds");
                }
                theirs.end_step();
                ours.end_step();
            }
            (theirs.will_ask(0, &LEVELS).expect("seen enough"), ours.will_ask(0, &LEVELS).expect("seen enough"))
        };
        let ((honest, before), (lied, after)) = (run(false), run(true));
        assert_eq!(before, after, "another group's forecast was moved");
        assert_ne!(honest, lied);
        assert!(lied.iter().all(|value| *value <= 3000.0), "{lied:?}");
    }
}
