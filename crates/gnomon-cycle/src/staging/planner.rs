//! How much memory to keep staged for a trust group, step by step.

use std::time::Duration;

use gnomon_forecast::series::MemberId;
use gnomon_terms::Bytes;

use super::{
    Aim, Contest, GroupView, Mode, Reserve, StagingConfig, StagingError, StepOutcome, StepReport, Target,
    ahead::Ahead,
    collector::Collector,
    noise::Bits,
    view::{Totals, look},
};

/// The planner of one group.
///
/// [`GroupPlanner::end_step`] takes microseconds for each member; [`GroupPlanner::tend`] trains, up to tenths of a second,
/// and is called where nobody waits. A request never waits for either: it is served from what is staged.
pub struct GroupPlanner {
    pub(super) config: StagingConfig,
    pub(super) collector: Collector,
    pub(super) reserve: Reserve,
    pub(super) contest: Contest,
    pub(super) totals: Totals,
    /// What is expected within the horizon; `None` while models know too little.
    pub(super) ahead: Option<Ahead>,
    /// What forecasts would stage, and whether the budget cut it.
    planned: Option<f64>,
    capped: bool,
}

impl GroupPlanner {
    /// Of a group without members.
    pub fn new(config: StagingConfig) -> Result<GroupPlanner, StagingError> {
        config.check()?;
        Ok(GroupPlanner {
            collector: Collector::new(config.day(), config.privacy),
            reserve: Reserve::new(config.aim),
            contest: Contest::new(config.floor),
            totals: Totals::default(),
            ahead: None,
            planned: None,
            capped: false,
            config,
        })
    }

    /// Adds a member that may have at most so much memory; that of one which is there already is changed.
    pub fn join(&mut self, id: MemberId, most: Bytes) -> Result<(), StagingError> {
        Ok(self.collector.join(id, most)?)
    }

    /// Removes a member: what is known of it is forgotten, and the group's history counts less by its share.
    pub fn leave(&mut self, id: MemberId) -> Result<(), StagingError> {
        let share = self.collector.group().share(id);
        self.collector.leave(id)?;
        self.contest.weigh(1.0 - share);
        self.look_ahead();
        Ok(())
    }

    /// For how long what is staged should last.
    pub fn set_horizon(&mut self, horizon: Duration) -> Result<(), StagingError> {
        self.config.check_horizon(horizon)?;
        self.config.horizon = horizon;
        self.look_ahead();
        Ok(())
    }

    /// What the reserve is turned towards.
    pub fn set_aim(&mut self, aim: Aim) {
        self.config.aim = aim;
        self.reserve.set_aim(aim);
    }

    /// The most that is ever staged, and what is staged while too little is known.
    pub fn set_bounds(&mut self, floor: Bytes, budget: Bytes) {
        (self.config.floor, self.config.budget) = (floor, budget);
    }

    /// Ends a step: what happened in it, and what should be staged now. `bits` are for noise.
    pub fn end_step(&mut self, report: &StepReport, bits: &mut Bits) -> Target {
        let sums = self.collector.end_step(report, bits);
        self.totals.note(&sums, report);
        self.contest.note(sums.asked, self.planned);
        if self.contest.mode() == Mode::Forecast {
            let idle = report.idle.0 as f64;
            let step = StepOutcome { asked: sums.asked, hit: sums.hit, idle, held: sums.held, capped: self.capped };
            self.reserve.note(&step);
        }
        self.look_ahead();
        self.target()
    }

    /// What should be staged, by what is known: whole blocks of the sizes that are asked for, within the budget.
    pub fn target(&self) -> Target {
        self.collector.sizes().blocks(self.bytes(), self.config.budget)
    }

    /// What is staged at present, and why.
    pub fn mode(&self) -> Mode {
        self.contest.mode()
    }

    /// What should be staged in bytes, before it is cut into blocks.
    pub fn bytes(&self) -> Bytes {
        let wanted = match (self.contest.mode(), self.planned) {
            (Mode::Forecast, Some(planned)) => Bytes(planned as u64),
            (Mode::Silent, _) => self.contest.size(),
            (Mode::Cold, _) | (Mode::Forecast, None) => self.config.floor,
        };
        wanted.min(self.config.budget)
    }

    /// What forecasts would stage at `level`, whatever the reserve's knob says and whatever is staged; `None` while models
    /// know too little. For comparison.
    pub fn would_stage(&self, level: f64) -> Option<Bytes> {
        self.ahead.as_ref().map(|ahead| Bytes(ahead.at(level) as u64))
    }

    /// Trains the models when it is due; `true` when something was learned. Takes up to tenths of a second.
    pub fn tend(&mut self) -> bool {
        let learned = self.collector.group_mut().tend();
        if learned {
            self.look_ahead();
        }
        learned
    }

    /// What is expected, how good it was, and what it was worth.
    pub fn view(&self) -> GroupView {
        look(self)
    }

    fn look_ahead(&mut self) {
        let group = self.collector.group();
        self.ahead = Ahead::over(self.config.steps_ahead(), |ahead, levels| group.will_ask(ahead, levels));
        let wanted = self.ahead.as_ref().map(|ahead| self.reserve.of(ahead.at(self.reserve.level())));
        self.capped = wanted.is_some_and(|wanted| wanted > self.config.budget);
        self.planned = wanted.map(|wanted| wanted.min(self.config.budget).0 as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::staging::{Privacy, Request, noise::tests::seeded};

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    fn planner(aim: Aim) -> GroupPlanner {
        let config = StagingConfig { floor: Bytes(GIB), budget: Bytes(64 * GIB), aim, ..StagingConfig::default() };
        let mut planner = GroupPlanner::new(config).expect("a good configuration");
        (0..4).for_each(|id| planner.join(id, Bytes(8 * GIB)).expect("there is room"));
        planner
    }

    /// A group as a pool would serve it: what is asked for is hit as far as it is staged.
    struct Life {
        planner: GroupPlanner,
        staged: u64,
        asked: u64,
        hit: u64,
    }

    impl Life {
        fn of(planner: GroupPlanner) -> Life {
            let staged = planner.target().bytes().0;
            Life { planner, staged, asked: 0, hit: 0 }
        }

        fn step(&mut self, asked: &[(MemberId, u64)], bits: &mut Bits) {
            let mut left = self.staged;
            let mut report = StepReport::default();
            for (member, size) in asked {
                let hit = left.min(*size);
                left -= hit;
                report.requests.push(Request { member: *member, size: Bytes(*size), whole: false, hit: Bytes(hit) });
                (self.asked, self.hit) = (self.asked.saturating_add(*size), self.hit + hit);
            }
            report.demands = (0..4).map(|id| (id, Bytes(4 * GIB))).collect();
            report.idle = Bytes(left);
            self.staged = self.planner.end_step(&report, bits).bytes().0;
            self.planner.tend();
        }

        fn hit_share(&mut self) -> f64 {
            let share = self.hit as f64 / self.asked as f64;
            (self.asked, self.hit) = (0, 0);
            share
        }
    }

    /// Bursts: in one step of five a member asks for 1 to 4 GiB.
    fn burst(bits: &mut Bits) -> Vec<(MemberId, u64)> {
        match bits() % 5 {
            0 => vec![(bits() % 4, (1 + bits() % 4) * GIB)],
            _ => Vec::new(),
        }
    }

    #[test]
    fn it_can_be_tended_on_a_thread_of_its_own() {
        fn is_send<T: Send>(_: &T) {}
        is_send(&planner(Aim::Idle(0.05)));
    }

    #[test]
    fn cold_it_stages_the_floor_and_then_what_is_expected() {
        let (mut life, mut bits) = (Life::of(planner(Aim::Hit(0.8))), seeded(1));
        assert_eq!(life.planner.target(), Target { blocks: vec![(Bytes(128 * MIB), 8)] });
        assert_eq!(life.planner.view().mode, Mode::Cold);
        for _ in 0..600 {
            let asked = burst(&mut bits);
            life.step(&asked, &mut bits);
        }
        assert_ne!(life.planner.view().mode, Mode::Cold);
        assert!(
            life.planner.target().blocks.iter().all(|(size, _)| size.0 <= 4 * GIB),
            "{:?}",
            life.planner.target()
        );
    }

    #[test]
    fn the_aim_is_met_through_blocks_and_models() {
        for aim in [0.6, 0.9] {
            let (mut life, mut bits) = (Life::of(planner(Aim::Hit(aim))), seeded(2));
            for step in 0..5000 {
                let asked = burst(&mut bits);
                life.step(&asked, &mut bits);
                if step == 2500 {
                    life.hit_share();
                }
            }
            let share = life.hit_share();
            assert!((share - aim).abs() < 0.06, "{aim}: {share}");
        }
    }

    #[test]
    fn more_is_staged_for_a_longer_horizon_and_never_more_than_the_budget() {
        let (mut life, mut bits) = (Life::of(planner(Aim::Hit(0.8))), seeded(3));
        for _ in 0..400 {
            let asked = burst(&mut bits);
            life.step(&asked, &mut bits);
        }
        let before = life.planner.would_stage(0.9).expect("seen enough");
        life.planner.set_horizon(Duration::from_secs(3600)).expect("an hour can be planned");
        let after = life.planner.would_stage(0.9).expect("seen enough");
        assert!(after.0 > 2 * before.0 && after.0 < 12 * before.0, "{before} {after}");
        life.planner.set_bounds(Bytes(GIB), Bytes(3 * GIB / 2));
        assert!(life.planner.target().bytes() <= Bytes(3 * GIB / 2));
        life.planner.set_bounds(Bytes(GIB), Bytes(0));
        assert_eq!(life.planner.target(), Target::default());
        assert!(life.planner.set_horizon(Duration::ZERO).is_err());
    }

    #[test]
    fn a_hostile_member_moves_its_own_group_only_and_that_within_its_cap() {
        let run = |hostile: bool| {
            let mut lives = [Life::of(planner(Aim::Idle(0.05))), Life::of(planner(Aim::Idle(0.05)))];
            let mut bits = seeded(4);
            for step in 0..700 {
                let mut asked = burst(&mut bits);
                lives[1].step(&asked, &mut seeded(step));
                if hostile {
                    // As often as it likes, as much as it likes.
                    asked.extend((0..50).map(|_| (0, u64::MAX / 64)));
                }
                lives[0].step(&asked, &mut seeded(step));
            }
            lives.map(|life| (life.planner.bytes(), life.planner.would_stage(0.99).expect("seen enough")))
        };
        let ([_, other], [(planned, most), other_lied]) = (run(false), run(true));
        assert_eq!(other, other_lied, "another group was moved");
        // Its own cap of 8 GiB and what the others ask for, of whom each may have 8 GiB.
        assert!(most <= Bytes(32 * GIB) && planned <= Bytes(9 * 32 * GIB), "{planned} {most}");
    }

    #[test]
    fn who_leaves_takes_its_history_along() {
        let (mut life, mut bits) = (Life::of(planner(Aim::Hit(0.9))), seeded(6));
        for _ in 0..600 {
            life.step(&[(0, 512 * MIB), (1, 512 * MIB), (2, 512 * MIB), (3, 4 * GIB)], &mut bits);
        }
        let expected = |planner: &GroupPlanner| planner.would_stage(0.5).expect("seen enough").0 as f64 / GIB as f64;
        assert!((expected(&life.planner) - 5.5).abs() < 0.3, "{}", expected(&life.planner));
        life.planner.leave(3).expect("it is a member");
        assert!((expected(&life.planner) - 1.5).abs() < 0.2, "{}", expected(&life.planner));
        let sizes: Vec<Bytes> = life.planner.target().blocks.into_iter().map(|(size, _)| size).collect();
        assert!(sizes.iter().all(|size| size.0 <= 512 * MIB), "nobody asks for 4 GiB any more: {sizes:?}");
        let view = life.planner.view();
        assert!((view.history - 1.5 / 5.5).abs() < 0.02 && view.members == 3, "{view:?}");
    }

    #[test]
    fn two_members_see_no_sums_and_three_do() {
        let mut planner = planner(Aim::Hit(0.9));
        let mut bits = seeded(7);
        let mut shows = |planner: &mut GroupPlanner| {
            for _ in 0..20 {
                let request = Request { member: 1, size: Bytes(GIB), whole: false, hit: Bytes(0) };
                planner.end_step(&StepReport { requests: vec![request], ..StepReport::default() }, &mut bits);
            }
            let view = planner.view();
            (view.shown.is_some(), view.expected.is_some())
        };
        planner.leave(3).expect("it is a member");
        assert_eq!(shows(&mut planner), (true, true));
        planner.leave(2).expect("it is a member");
        assert_eq!(shows(&mut planner), (false, false));
    }

    #[test]
    fn what_is_said_of_strangers_changes_nothing() {
        let mut planner = planner(Aim::Idle(0.05));
        let request = Request { member: 99, size: Bytes(GIB), whole: true, hit: Bytes(0) };
        let report = StepReport { demands: vec![(98, Bytes(1))], requests: vec![request], ..StepReport::default() };
        planner.end_step(&report, &mut seeded(5));
        let view = planner.view();
        assert_eq!((view.asked, view.refused), (Bytes(0), 2));
        assert!(planner.leave(99).is_err());
        let bad = StagingConfig { privacy: Privacy::default(), step: Duration::ZERO, ..StagingConfig::default() };
        assert!(GroupPlanner::new(bad).is_err());
    }
}
