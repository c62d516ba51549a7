//! What members do goes in, sums come out: the only part that knows one member from another.
//!
//! ```text
//!   demands, requests ──► capped, per member ──► sums of the step ──► (noise) ──► models
//!   of each member        (forgotten when        │
//!                          it leaves)            └──► noise, once a step ──► Shown: reports, metrics
//! ```
//! Kept of each member, in memory only, until it leaves: what it needs now, its peaks of the last hour and day, its mean, how
//! much it asked for in the mean after each of 12 states and in each of 12 places of the hour
//! ([`gnomon_forecast::series::GroupDemand`]), and how many bytes in blocks of which size ([`Sizes`]). No addresses, no
//! contents, no times. [`KEPT_OF_A_MEMBER`] is the same list for reports.
//!
//! A member adds at most its cap to the sum of a step, whatever it asks for and how often; so it moves its own group within
//! that, and no other group at all. A group of fewer than [`LEAST_MEMBERS`] shows no sums of steps.

use std::collections::BTreeMap;

use gnomon_forecast::series::{BESIDE, GroupDemand, GroupError, MemberId, Step};
use gnomon_terms::Bytes;

use super::{
    Sizes,
    noise::{Bits, noised},
};

/// Groups with fewer members show no sums of steps: of two, each could take its own off and read the other's.
pub const LEAST_MEMBERS: usize = 3;

/// What is kept of a member while it is one, as reports say it.
pub const KEPT_OF_A_MEMBER: [&str; 6] = [
    "what it needs now",
    "what it needed in each of the last 12 steps",
    "its peak and its mean, fading over a day",
    "what it asks for in the mean, over a day",
    "what it asked for in the mean after each of 12 states and in each of 12 places of the hour",
    "bytes asked for by size of block (10 classes, 16 exact sizes of starts), fading over half a day",
];

/// What is told of members, and with how much noise.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Privacy {
    /// A member adds at most this to the sum of a step, or what it may have at most if that is less.
    pub cap: Bytes,
    /// The ε of sums that are shown, for each number and step.
    pub shown: f64,
    /// The ε of sums that models learn from, for each number and step; `None`: they learn from exact sums, which are kept
    /// where the models are and nowhere else.
    pub learned: Option<f64>,
}

impl Default for Privacy {
    /// Shown with ε = 1 for what one member may add; models learn from exact sums.
    fn default() -> Privacy {
        Privacy { cap: Bytes(64 << 30), shown: 1.0, learned: None }
    }
}

/// Memory that a member asked for, and what became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Who asked.
    pub member: MemberId,
    /// How much.
    pub size: Bytes,
    /// Whether it has to be one block: the start of a VM.
    pub whole: bool,
    /// How many of its bytes were staged.
    pub hit: Bytes,
}

/// What happened in a step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepReport {
    /// What members need now; one of whom nothing is said needs what it did.
    pub demands: Vec<(MemberId, Bytes)>,
    /// What they asked for.
    pub requests: Vec<Request>,
    /// Bytes that stood staged and were not asked for.
    pub idle: Bytes,
    /// Bytes that were asked for while they were being populated: the target was right, its blocks were late.
    pub late: Bytes,
    /// Bytes that were given back to the host without having been of use.
    pub unused: Bytes,
}

/// What a step came to, for the models' side.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Sums {
    /// Bytes asked for, each member within its cap.
    pub asked: f64,
    /// Of these, bytes that were staged.
    pub hit: f64,
    /// What members need together.
    pub held: f64,
}

/// Sums of the last step as they may be told: with noise, drawn once, so that asking again does not wear it off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Bytes asked for.
    pub asked: Bytes,
    /// What members need together.
    pub held: Bytes,
}

struct Member {
    most: Bytes,
    demand: Bytes,
    sizes: Sizes,
    /// Bytes asked for in the step that is open, and of these hit, within the cap.
    asked: u64,
    hit: u64,
}

/// The collector of one group.
pub(super) struct Collector {
    privacy: Privacy,
    group: GroupDemand,
    members: BTreeMap<MemberId, Member>,
    shown: Option<Shown>,
    refused: u64,
}

impl Collector {
    pub(super) fn new(season: usize, privacy: Privacy) -> Collector {
        let group = GroupDemand::new(season, 0);
        Collector { privacy, group, members: BTreeMap::new(), shown: None, refused: 0 }
    }

    pub(super) fn join(&mut self, id: MemberId, most: Bytes) -> Result<(), GroupError> {
        self.group.join(id, most.0 as f64)?;
        let member = Member { most, demand: Bytes(0), sizes: Sizes::default(), asked: 0, hit: 0 };
        self.members.entry(id).or_insert(member).most = most;
        Ok(())
    }

    pub(super) fn leave(&mut self, id: MemberId) -> Result<(), GroupError> {
        self.group.leave(id)?;
        self.members.remove(&id);
        self.shown = None;
        Ok(())
    }

    /// Takes a step in; models are shown its sums.
    pub(super) fn end_step(&mut self, report: &StepReport, bits: &mut Bits) -> Sums {
        for (id, demand) in &report.demands {
            self.demand(*id, *demand);
        }
        for request in &report.requests {
            self.request(request);
        }
        let sums = self.sums();
        let (cap, privacy) = (self.cap(), self.privacy);
        self.group.end_step_as(|step| match privacy.learned {
            None => step,
            Some(epsilon) => blurred(step, cap, epsilon, bits),
        });
        self.show(&sums, bits);
        sums
    }

    /// Sums of the last step as they may be told; `None` of too few members, or right after one left.
    pub(super) fn shown(&self) -> Option<Shown> {
        self.shown
    }

    /// How often something was said of who is no member.
    pub(super) fn refused(&self) -> u64 {
        self.refused
    }

    pub(super) fn group(&self) -> &GroupDemand {
        &self.group
    }

    pub(super) fn group_mut(&mut self) -> &mut GroupDemand {
        &mut self.group
    }

    /// In which sizes the members that are there ask.
    pub(super) fn sizes(&self) -> Sizes {
        self.members.values().fold(Sizes::default(), |mut sum, member| {
            sum.add(&member.sizes);
            sum
        })
    }

    fn demand(&mut self, id: MemberId, demand: Bytes) {
        match self.members.get_mut(&id) {
            Some(member) => member.demand = demand.min(member.most),
            None => self.refused = self.refused.saturating_add(1),
        }
    }

    fn request(&mut self, request: &Request) {
        let cap = self.privacy.cap;
        let Some(member) = self.members.get_mut(&request.member) else {
            self.refused = self.refused.saturating_add(1);
            return;
        };
        let counted = request.size.0.min(cap.min(member.most).0.saturating_sub(member.asked));
        member.asked += counted;
        member.hit += request.hit.0.min(counted);
        // What is beyond the cap leaves no trace in the sizes either.
        if counted == request.size.0 {
            member.sizes.note(request.size, request.whole);
        } else {
            member.sizes.note(Bytes(counted), false);
        }
    }

    /// Ends the step of each member. The group takes what it is told: it is within its bounds by now.
    fn sums(&mut self) -> Sums {
        let mut sums = Sums::default();
        for (id, member) in &mut self.members {
            let (asked, hit) = (std::mem::take(&mut member.asked) as f64, std::mem::take(&mut member.hit) as f64);
            let told = self.group.demand(*id, member.demand.0 as f64).and_then(|()| self.group.asked(*id, asked));
            self.refused = self.refused.saturating_add(u64::from(told.is_err()));
            member.sizes.fade();
            sums = Sums { asked: sums.asked + asked, hit: sums.hit + hit, held: sums.held + member.demand.0 as f64 };
        }
        sums
    }

    /// The most any member adds to a step.
    fn cap(&self) -> Bytes {
        self.members.values().map(|member| member.most).max().unwrap_or(Bytes(0)).min(self.privacy.cap)
    }

    fn show(&mut self, sums: &Sums, bits: &mut Bits) {
        let (cap, epsilon) = (self.cap(), self.privacy.shown);
        let most = self.members.values().map(|member| member.most).max().unwrap_or(Bytes(0));
        self.shown = (self.members.len() >= LEAST_MEMBERS).then(|| Shown {
            asked: Bytes(noised(sums.asked, cap, epsilon, bits) as u64),
            held: Bytes(noised(sums.held, most, epsilon, bits) as u64),
        });
    }
}

/// The sums of a step with noise; what is known beside is left out, for it would need noise of its own, more than it is worth.
fn blurred(step: Step, cap: Bytes, epsilon: f64, bits: &mut Bits) -> Step {
    Step { value: step.value.map(|value| noised(value, cap, epsilon, bits)), beside: [0.0; BESIDE] }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::staging::noise::tests::seeded;

    const GIB: u64 = 1 << 30;

    fn collector(members: u64) -> Collector {
        let mut collector = Collector::new(24, Privacy::default());
        (0..members).for_each(|id| collector.join(id, Bytes(4 * GIB)).expect("there is room"));
        collector
    }

    fn asks(member: MemberId, gib: u64) -> Request {
        Request { member, size: Bytes(gib * GIB), whole: false, hit: Bytes(gib * GIB) }
    }

    #[test]
    fn a_member_adds_at_most_its_cap_however_often_it_asks() {
        let mut collector = collector(3);
        let mut bits = seeded(1);
        let requests = (0..1000).map(|_| asks(0, 3)).chain([asks(1, 1), asks(77, 1)]).collect();
        let report =
            StepReport { requests, demands: vec![(2, Bytes(u64::MAX)), (78, Bytes(1))], ..StepReport::default() };
        let sums = collector.end_step(&report, &mut bits);
        assert_eq!(sums, Sums { asked: 5.0 * GIB as f64, hit: 5.0 * GIB as f64, held: 4.0 * GIB as f64 });
        assert_eq!(collector.refused(), 2, "two are no members");
        let asked: f64 = collector.sizes().shares().iter().map(|(_, share)| share).sum();
        assert!((asked - 1.0).abs() < 1e-9);
        assert_eq!(collector.end_step(&StepReport::default(), &mut bits).asked, 0.0);
    }

    #[test]
    fn fewer_than_three_show_no_sums_and_asking_again_shows_the_same() {
        let mut bits = seeded(2);
        for members in 1..5 {
            let mut collector = collector(members);
            collector.end_step(&StepReport { requests: vec![asks(0, 2)], ..StepReport::default() }, &mut bits);
            assert_eq!(collector.shown().is_some(), members >= 3, "{members}");
            assert_eq!(collector.shown(), collector.shown());
            collector.leave(0).expect("it is a member");
            assert_eq!(collector.shown(), None, "what differs between two steps would be the leaver");
        }
    }

    #[test]
    fn what_is_shown_is_around_the_truth_and_hides_a_member() {
        let mut bits = seeded(3);
        let mut collector = collector(20);
        let mut shown = Vec::new();
        for _ in 0..4000 {
            let requests = (0..20).map(|id| asks(id, 1)).collect();
            collector.end_step(&StepReport { requests, ..StepReport::default() }, &mut bits);
            shown.push(collector.shown().expect("enough members").asked.0 as f64 / GIB as f64);
        }
        let mean = shown.iter().sum::<f64>() / shown.len() as f64;
        let off = shown.iter().map(|gib| (gib - 20.0).abs()).sum::<f64>() / shown.len() as f64;
        assert!((mean - 20.0).abs() < 0.5, "{mean}");
        assert!((off - 4.0).abs() < 0.4, "noise of one member's cap of 4 GiB: {off}");
    }

    #[test]
    fn a_leaver_takes_its_sizes_with_it() {
        let mut bits = seeded(4);
        let mut collector = collector(3);
        collector
            .end_step(&StepReport { requests: vec![asks(0, 4), asks(1, 1)], ..StepReport::default() }, &mut bits);
        assert_eq!(collector.sizes().shares().len(), 2);
        collector.leave(0).expect("it is a member");
        assert_eq!(collector.sizes().shares(), [(Bytes(GIB), 1.0)]);
        assert!(collector.leave(0).is_err());
    }

    #[test]
    fn what_is_kept_of_a_member_is_what_the_list_says() {
        // Each field by its name: whoever adds one finds this test, and says in the list what it is.
        let mut collector = collector(1);
        collector.end_step(&StepReport { requests: vec![asks(0, 1)], ..StepReport::default() }, &mut seeded(6));
        let Member { most, demand, sizes, asked, hit } = &collector.members[&0];
        // Its limit is the host's, not the member's; what it asked for is nobody's when the step has ended.
        assert_eq!((*most, *asked, *hit), (Bytes(4 * GIB), 0, 0));
        assert_eq!((*demand, sizes.shares()), (Bytes(0), vec![(Bytes(GIB), 1.0)]));
        assert!(KEPT_OF_A_MEMBER[0].contains("needs now") && KEPT_OF_A_MEMBER[5].contains("by size of block"));
    }

    #[test]
    fn models_can_learn_from_sums_with_noise() {
        let privacy = Privacy { cap: Bytes(GIB / 2), learned: Some(1.0), ..Privacy::default() };
        let mut collector = Collector::new(24, privacy);
        (0..20).for_each(|id| collector.join(id, Bytes(4 * GIB)).expect("there is room"));
        let mut bits = seeded(5);
        for _ in 0..200 {
            let requests = (0..20).map(|id| asks(id, 4)).collect();
            assert_eq!(
                collector.end_step(&StepReport { requests, ..StepReport::default() }, &mut bits).asked,
                10.0 * GIB as f64
            );
        }
        let said = collector.group().will_ask(0, &[0.05, 0.5, 0.95]).expect("seen enough");
        assert!((said[1] / GIB as f64 - 10.0).abs() < 0.5, "{said:?}");
        assert!(said[2] - said[0] > GIB as f64, "an exact sum would be certain: {said:?}");
    }
}
