//! The life of one pool of VMs: the real planner beside a static reserve and the rule "mean + k standard deviations".

use gnomon_cycle::staging::{Aim, GroupPlanner, Mode, Privacy, Request, StagingConfig, StepReport};
use gnomon_terms::Bytes;

use crate::{
    demands::Demands,
    knob::{BEYOND, Curve, DEVIATIONS, LEVELS, RESERVES, SETTINGS},
};

/// Traces are in MiB.
const MIB: f64 = (1 << 20) as f64;
/// Mean and deviation of the simple rule follow within fifty steps.
const FOLLOWS: f64 = 0.02;
/// What the planner aims at by itself: so much idle.
pub const AIM: f64 = 0.05;

/// What one pool showed, after its first third.
#[derive(Clone, Default)]
pub struct Shown {
    pub asked: f64,
    pub held: f64,
    pub steps: usize,
    pub planner: Curve,
    pub deviations: Curve,
    pub fixed: Curve,
    /// What came of the planner's own knob: bytes hit and idle, exact and in whole blocks; steps in silence.
    pub own: (f64, f64),
    pub blocks: (f64, f64),
    pub silent: usize,
}

impl Shown {
    pub fn add(mut self, other: &Shown) -> Shown {
        (self.asked, self.held, self.steps) =
            (self.asked + other.asked, self.held + other.held, self.steps + other.steps);
        self.planner.add(&other.planner);
        self.deviations.add(&other.deviations);
        self.fixed.add(&other.fixed);
        self.own = (self.own.0 + other.own.0, self.own.1 + other.own.1);
        self.blocks = (self.blocks.0 + other.blocks.0, self.blocks.1 + other.blocks.1);
        self.silent += other.silent;
        self
    }
}

impl Demands {
    /// The same in another unit.
    pub fn times(mut self, unit: f64) -> Demands {
        self.demand.iter_mut().flatten().chain(&mut self.most).for_each(|value| *value *= unit);
        self
    }
}

/// Lives through the trace with these VMs in one pool.
pub fn live(all: &Demands, members: &[usize], privacy: Privacy) -> Shown {
    let steps = all.demand[members[0]].len();
    let mut planner = planner(all, members, privacy);
    let mut bits = bits(members.len() as u64);
    let (mut shown, mut mean, mut follows) = (Shown::default(), 0.0, (0.0, 0.0));
    for step in 0..steps {
        let judged = step > steps / 3;
        let (report, asked) = report(all, members, step, planner.bytes());
        if judged {
            shown.held += members.iter().map(|vm| all.demand[*vm][step] * MIB).sum::<f64>();
            shown.judge(&planner, asked, follows, mean / (steps / 3) as f64);
        } else {
            mean += asked;
        }
        planner.end_step(&report, &mut bits);
        planner.tend();
        let off = asked - follows.0;
        follows = (follows.0 + FOLLOWS * off, (1.0 - FOLLOWS) * (follows.1 + FOLLOWS * off * off));
    }
    shown
}

fn planner(all: &Demands, members: &[usize], privacy: Privacy) -> GroupPlanner {
    let config =
        StagingConfig { budget: Bytes(u64::MAX >> 8), aim: Aim::Idle(AIM), privacy, ..StagingConfig::default() };
    let mut planner = GroupPlanner::new(config).expect("the default can be planned in");
    for vm in members {
        planner.join(*vm as u64, Bytes((all.most[*vm] * MIB) as u64)).expect("a pool is smaller than a group may be");
    }
    planner
}

/// What the step brings when so much is staged: rises are requests, served in the order of members.
fn report(all: &Demands, members: &[usize], step: usize, staged: Bytes) -> (StepReport, f64) {
    let (mut report, mut left, mut asked) = (StepReport::default(), staged.0, 0.0);
    for vm in members {
        let (now, before) = (all.demand[*vm][step], all.demand[*vm][step.saturating_sub(1)]);
        report.demands.push((*vm as u64, Bytes((now * MIB) as u64)));
        let size = Bytes(((now - before).max(0.0) * MIB) as u64);
        if size > Bytes(0) {
            let hit = Bytes(size.0.min(left));
            left -= hit.0;
            asked += size.0 as f64;
            report.requests.push(Request { member: *vm as u64, size, whole: false, hit });
        }
    }
    report.idle = Bytes(left);
    (report, asked)
}

impl Shown {
    fn judge(&mut self, planner: &GroupPlanner, asked: f64, follows: (f64, f64), mean: f64) {
        self.asked += asked;
        self.steps += 1;
        self.silent += usize::from(planner.mode() == Mode::Silent);
        let mut said = [0.0; SETTINGS];
        for (said, level) in said.iter_mut().zip(LEVELS) {
            *said = planner.would_stage(level).map_or(0.0, |bytes| bytes.0 as f64);
        }
        for (at, times) in BEYOND.into_iter().enumerate() {
            said[LEVELS.len() + at] = times * said[LEVELS.len() - 1];
        }
        self.planner.judge(&said, asked);
        self.deviations.judge(&DEVIATIONS.map(|times| (follows.0 + times * follows.1.sqrt()).max(0.0)), asked);
        self.fixed.judge(&RESERVES.map(|reserve| reserve * mean), asked);
        for (own, staged) in [(&mut self.own, planner.bytes()), (&mut self.blocks, planner.target().bytes())] {
            let hit = asked.min(staged.0 as f64);
            *own = (own.0 + hit, own.1 + staged.0 as f64 - hit);
        }
    }
}

/// Bits for noise, the same each time. Source: Steele, Lea and Flood, OOPSLA 2014 (SplitMix64).
pub fn bits(mut seed: u64) -> impl FnMut() -> u64 {
    move || {
        seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }
}
