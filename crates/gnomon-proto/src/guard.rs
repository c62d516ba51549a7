//! The guard of a protected VM: whether its guest may run on this node, as far as a lease at a shared store can say.
//!
//! ```text
//!              the holder's lease has ended, or nobody held it          the lease is sure
//!   Watching ───────────────── claim the next epoch ──────────────────► Holding ◄──┐ renewed
//!                                                                       │    │     │
//!                                       the lease has ended at the store│    └─────┘
//!   Superseded ◄─── another node holds a later epoch ─── Lapsed ◄───────┘
//!                                                          └── claim the next epoch ──► Holding
//! ```
//! At the store a VM has one *term*: its epoch, the node that holds it, that node's lease, and the *heirs*, who may take
//! over. It is changed by compare-and-set only, and each change of the holder raises the epoch. A term may be claimed by
//! its own holder at any time, and by an heir once the store has let the holder's lease end. A lease never comes back,
//! so what was seen ended stays ended, and of several who claim at once one wins.
//!
//! The holder reckons by its own clock from before it asked the store, so it knows the end of its lease before anybody
//! else can see it. In *strict* mode its guest stands by then: at every moment one node or none runs it. In *relaxed*
//! mode it runs on until it learns that it was superseded; a node whose cable was cut then runs for nothing.
//!
//! The guard is asked what it wants to know ([`Guard::poll`]) and told what came of it; time is an argument. Whoever
//! drives it keeps the promise that a guest stands within [`Rules::stand_within`] of being told to.
//!
//! Source: C. Gray and D. Cheriton, "Leases: An Efficient Fault-Tolerant Mechanism for Distributed File Cache
//! Consistency", 1989; for the epoch as a fencing token, M. Burrows, "The Chubby lock service for loosely-coupled
//! distributed systems", 2006, section 2.4.

use std::time::Duration;

use gnomon_terms::{Epoch, Instant};

/// What a guard goes by. The same on all nodes of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rules {
    /// Whether the guest stands rather than run unsure of its lease.
    pub strict: bool,
    /// From one renewal to the next; a third of the lease's time to live leaves room for two that fail.
    pub renew_every: Duration,
    /// From one look at the store to the next, when nobody nudges.
    pub look_every: Duration,
    /// From a request that failed to the next.
    pub retry_after: Duration,
    /// The longest it takes until a guest that was told to stand does so.
    pub stand_within: Duration,
}

impl Rules {
    /// The rules for leases of `ttl`.
    pub fn of(ttl: Duration, strict: bool) -> Rules {
        let (third, tenth) = (ttl / 3, ttl / 10);
        Rules { strict, renew_every: third, look_every: third, retry_after: tenth, stand_within: tenth }
    }
}

/// A term as it was seen at the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sight {
    /// Its epoch.
    pub epoch: Epoch,
    /// The version of its record.
    pub version: u64,
    /// Whether this node holds it.
    pub mine: bool,
    /// Whether this node may take it over.
    pub heir: bool,
    /// Whether the holder's lease lives. Looked at after the record was read.
    pub held: bool,
}

/// What a guard wants done at the store. One thing at a time; each is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ask {
    /// Look at the term: answer with [`Guard::saw`].
    Look,
    /// Get a lease, and with it make this node the holder of `epoch`, if the term's record still has the version
    /// `over` (`None`: if there is none): answer with [`Guard::claimed`].
    Claim {
        /// The next epoch.
        epoch: Epoch,
        /// What was seen.
        over: Option<u64>,
    },
    /// Keep the lease alive: answer with [`Guard::renewed`].
    Renew,
}

/// What came of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Claimed {
    /// This node is the holder, and until then its lease has surely not ended.
    Won(Instant),
    /// The term was not as it was seen.
    Lost,
    /// Nobody knows; the lease that was granted for it is not used.
    Unknown,
}

/// What came of a renewal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Renewed {
    /// The lease has surely not ended until then.
    Until(Instant),
    /// It has ended.
    Ended,
    /// Nobody knows.
    Unknown,
}

/// Where a guard is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GuardState {
    /// This node does not hold the VM; the guest does not run here.
    Watching,
    /// It holds the VM at `epoch`, and its lease has surely not ended until `sure_until`.
    Holding {
        /// The epoch it holds.
        epoch: Epoch,
        /// By this node's clock.
        sure_until: Instant,
    },
    /// Its lease has ended, and whether somebody else holds the VM is not known yet.
    Lapsed {
        /// The epoch it held.
        epoch: Epoch,
    },
    /// Another node holds a later epoch: for good, the guest does not run here any more.
    Superseded {
        /// The epoch of the other.
        by: Epoch,
    },
}

/// How far a node goes to hold a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Will {
    /// It only looks: a shadow whose administrator decides, or one that has no whole state.
    Watch,
    /// It takes the VM over as soon as it may: a shadow with automatic failover.
    Inherit,
    /// It takes the VM over, and also begins its first term: the primary. A term that is gone from the store, which
    /// somebody must have wiped, does not make a shadow believe that nobody runs the VM.
    Found,
    /// It takes the VM over once its holder's lease has ended, heir or not: an administrator has said that what it lacks
    /// may be lost.
    Seize,
}

/// The guard of one VM on one node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Guard {
    rules: Rules,
    state: GuardState,
    will: Will,
    /// The latest epoch it knows of: what it claims comes after.
    known: Epoch,
    /// What is under way at the store.
    asked: Option<Ask>,
    /// A claim that the last look allows.
    claim: Option<(Epoch, Option<u64>)>,
    /// When to look or renew next.
    next: Instant,
    /// Something changed at the store while it was asked: what it answers may be of before.
    nudged: bool,
}

impl Guard {
    /// A guard that holds nothing yet.
    pub fn new(rules: Rules, will: Will, now: Instant) -> Guard {
        let known = Epoch::default();
        let state = GuardState::Watching;
        Guard { rules, state, will, known, asked: None, claim: None, next: now, nudged: false }
    }

    /// A guard of a node that held `epoch` before its daemon was restarted. Whether it still does is not known: what is
    /// at the store tells, and until then it is as if its lease had ended.
    pub fn resumed(rules: Rules, will: Will, epoch: Epoch, now: Instant) -> Guard {
        Guard { state: GuardState::Lapsed { epoch }, known: epoch, ..Guard::new(rules, will, now) }
    }

    /// Where it is.
    pub fn state(&self) -> GuardState {
        self.state
    }

    /// The epoch at which this node may write; `None` when it holds none.
    pub fn epoch(&self) -> Option<Epoch> {
        match self.state {
            GuardState::Holding { epoch, .. } | GuardState::Lapsed { epoch } => Some(epoch),
            GuardState::Watching | GuardState::Superseded { .. } => None,
        }
    }

    /// From now on it goes that far: a failover by hand is `Seize`, and a shadow that has fallen behind is `Watch`.
    pub fn set_will(&mut self, will: Will, now: Instant) {
        (self.will, self.claim, self.next) = (will, None, now);
    }

    /// It no longer holds the VM, and claims it no more. The caller has made sure that the guest stands and that its
    /// writes are out; next it ends the lease, and an heir may take over at once.
    pub fn let_go(&mut self, now: Instant) {
        if self.epoch().is_some() {
            (self.state, self.asked) = (GuardState::Watching, None);
        }
        self.set_will(Will::Watch, now);
    }

    /// Something may have changed at the store: it is looked at without delay.
    pub fn nudge(&mut self, now: Instant) {
        if !matches!(self.state, GuardState::Holding { .. }) {
            self.next = self.next.min(now);
            self.nudged = self.asked.is_some();
        }
    }

    /// Whether the guest may run here at `now`. In strict mode this ends [`Rules::stand_within`] before the lease is
    /// unsure, so that a guest that is then told to stand does stand in time.
    pub fn may_run(&self, now: Instant) -> bool {
        match (self.state, self.stands_at()) {
            (GuardState::Holding { .. }, Some(stands_at)) => now < stands_at,
            (GuardState::Holding { .. }, None) => true,
            (GuardState::Lapsed { .. }, _) => !self.rules.strict,
            (GuardState::Watching | GuardState::Superseded { .. }, _) => false,
        }
    }

    /// When the guest has to be told to stand, unless the lease is renewed before; `None`: not by the clock.
    pub fn stands_at(&self) -> Option<Instant> {
        match self.state {
            GuardState::Holding { sure_until, .. } if self.rules.strict => Some(self.told_by(sure_until)),
            _ => None,
        }
    }

    /// When [`Guard::poll`] has something to ask for, if nothing is told before; `None`: not by the clock.
    pub fn asks_at(&self) -> Option<Instant> {
        match (self.state, self.asked) {
            (GuardState::Superseded { .. }, _) | (_, Some(_)) => None,
            (_, None) if self.claim.is_some() => Some(Instant::ORIGIN),
            (_, None) => Some(self.next),
        }
    }

    /// What is to be done at the store now. Nothing more is asked for until it is answered.
    pub fn poll(&mut self, now: Instant) -> Option<Ask> {
        if self.asked.is_some() {
            return None;
        }
        let ask = match (self.state, self.claim.take()) {
            (GuardState::Superseded { .. }, _) => return None,
            (GuardState::Watching | GuardState::Lapsed { .. }, Some((epoch, over))) => Ask::Claim { epoch, over },
            _ if now < self.next => return None,
            (GuardState::Holding { .. }, _) => Ask::Renew,
            (GuardState::Watching | GuardState::Lapsed { .. }, None) => Ask::Look,
        };
        self.asked = Some(ask);
        Some(ask)
    }

    /// What a look saw: `Ok(None)` when the VM has no term, `Err` when the store did not answer.
    pub fn saw(&mut self, now: Instant, sight: Result<Option<Sight>, Unanswered>) {
        if self.asked != Some(Ask::Look) {
            return;
        }
        let Ok(sight) = sight else { return self.answered(now, self.rules.retry_after) };
        self.answered(now, self.rules.look_every);
        self.known = self.known.max(sight.map_or(self.known, |sight| sight.epoch));
        match (self.state, sight) {
            (GuardState::Lapsed { epoch }, Some(sight)) if !sight.mine && sight.epoch > epoch => {
                self.state = GuardState::Superseded { by: sight.epoch };
            }
            _ if may_claim(self.will, sight) => {
                self.claim = Some((self.known.next(), sight.map(|sight| sight.version)));
            }
            _ => {}
        }
    }

    /// What came of a claim.
    pub fn claimed(&mut self, now: Instant, claimed: Claimed) {
        let Some(Ask::Claim { epoch, .. }) = self.asked else { return };
        match claimed {
            // It was told meanwhile not to take the VM over: whoever drives it gives the lease back.
            Claimed::Won(_) if self.will == Will::Watch => self.answered(now, self.rules.look_every),
            Claimed::Won(sure_until) => {
                (self.state, self.known) = (GuardState::Holding { epoch, sure_until }, epoch);
                self.answered(now, self.rules.renew_every);
            }
            // Somebody was faster: who, a look tells.
            Claimed::Lost => self.answered(now, Duration::ZERO),
            Claimed::Unknown => self.answered(now, self.rules.retry_after),
        }
    }

    /// What came of a renewal.
    pub fn renewed(&mut self, now: Instant, renewed: Renewed) {
        let (Some(Ask::Renew), GuardState::Holding { epoch, sure_until }) = (self.asked, self.state) else { return };
        match renewed {
            Renewed::Until(until) => {
                // Answers of slow members may come out of order; what was sure stays sure.
                self.state = GuardState::Holding { epoch, sure_until: sure_until.max(until) };
                self.answered(now, self.rules.renew_every);
            }
            Renewed::Ended => {
                self.state = GuardState::Lapsed { epoch };
                self.answered(now, Duration::ZERO);
            }
            Renewed::Unknown => self.answered(now, self.rules.retry_after),
        }
    }

    fn answered(&mut self, now: Instant, wait: Duration) {
        let wait = if self.nudged { Duration::ZERO } else { wait };
        (self.asked, self.nudged, self.next) = (None, false, now.after(wait));
    }

    fn told_by(&self, sure_until: Instant) -> Instant {
        let stand_within = Instant::ORIGIN.after(self.rules.stand_within);
        Instant::ORIGIN.after(sure_until.since(stand_within))
    }
}

/// The store did not answer a look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Unanswered;

/// Who may claim: the holder always, an heir once the holder's lease has ended, and where there is no term its founder.
fn may_claim(will: Will, sight: Option<Sight>) -> bool {
    match (will, sight) {
        (Will::Watch, _) | (Will::Inherit | Will::Seize, None) => false,
        (Will::Seize, Some(sight)) => sight.mine || !sight.held,
        (Will::Found, None) => true,
        (Will::Inherit | Will::Found, Some(sight)) => sight.mine || (sight.heir && !sight.held),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TTL: Duration = Duration::from_secs(10);

    fn at(seconds: u64) -> Instant {
        Instant::ORIGIN.after(Duration::from_secs(seconds))
    }

    fn sight(epoch: u64, mine: bool, heir: bool, held: bool) -> Option<Sight> {
        Some(Sight { epoch: Epoch(epoch), version: epoch * 10, mine, heir, held })
    }

    /// A guard that holds epoch 1 since the origin, surely for 10 s.
    fn holder(strict: bool) -> Guard {
        let mut guard = Guard::new(Rules::of(TTL, strict), Will::Found, at(0));
        assert_eq!(guard.poll(at(0)), Some(Ask::Look));
        guard.saw(at(0), Ok(None));
        assert_eq!(guard.poll(at(0)), Some(Ask::Claim { epoch: Epoch(1), over: None }));
        guard.claimed(at(0), Claimed::Won(at(10)));
        guard
    }

    #[test]
    fn a_daemon_that_comes_back_learns_what_became_of_its_term() {
        let table = [
            (sight(3, true, false, true), GuardState::Lapsed { epoch: Epoch(3) }, Some(Epoch(4)), "still its own"),
            (sight(4, false, false, true), GuardState::Superseded { by: Epoch(4) }, None, "an heir was faster"),
            (None, GuardState::Lapsed { epoch: Epoch(3) }, Some(Epoch(4)), "wiped"),
        ];
        for (seen, state, claims, what) in table {
            for strict in [true, false] {
                let mut guard = Guard::resumed(Rules::of(TTL, strict), Will::Found, Epoch(3), at(5));
                assert_eq!(guard.may_run(at(5)), !strict, "{what}");
                assert_eq!(guard.poll(at(5)), Some(Ask::Look), "{what}");
                guard.saw(at(5), Ok(seen));
                let claimed = match guard.poll(at(5)) {
                    Some(Ask::Claim { epoch, .. }) => Some(epoch),
                    _ => None,
                };
                assert_eq!((guard.state(), claimed), (state, claims), "{what}");
            }
        }
    }

    #[test]
    fn who_claims_what_it_sees() {
        let over = |epoch, version| Some(Ask::Claim { epoch: Epoch(epoch), over: Some(version) });
        let table = [
            (Will::Found, None, Some(Ask::Claim { epoch: Epoch(1), over: None }), "a primary begins"),
            (Will::Inherit, None, None, "a term that is gone was wiped; nobody knows who runs"),
            (Will::Watch, sight(3, false, true, false), None, "by hand only"),
            (Will::Inherit, sight(3, false, true, true), None, "its holder lives"),
            (Will::Inherit, sight(3, false, true, false), over(4, 30), "its holder is gone"),
            (Will::Inherit, sight(3, false, false, false), None, "this shadow has no whole state"),
            (Will::Seize, sight(3, false, false, true), None, "its holder lives, whatever an administrator says"),
            (Will::Seize, sight(3, false, false, false), over(4, 30), "an administrator answers for what it lacks"),
            (Will::Seize, None, None, "a term that is gone was wiped; nobody knows who runs"),
            (Will::Found, sight(3, true, false, true), over(4, 30), "a daemon that was restarted"),
            (Will::Found, sight(3, false, false, false), None, "a primary that others succeeded"),
        ];
        for (will, seen, expected, why) in table {
            let mut guard = Guard::new(Rules::of(TTL, true), will, at(0));
            assert_eq!(guard.poll(at(0)), Some(Ask::Look));
            assert_eq!(guard.poll(at(0)), None, "one thing at a time");
            guard.saw(at(0), Ok(seen));
            assert_eq!(guard.poll(at(0)), expected, "{why}");
            assert!(!guard.may_run(at(0)));
        }
    }

    #[test]
    fn a_strict_guest_stands_before_its_lease_is_unsure_and_a_relaxed_one_runs_on() {
        let (mut strict, mut relaxed) = (holder(true), holder(false));
        assert_eq!(strict.stands_at(), Some(at(9)), "a second to stand");
        assert_eq!(relaxed.stands_at(), None);
        assert!(strict.may_run(at(8)) && !strict.may_run(at(9)) && relaxed.may_run(at(100)));
        for guard in [&mut strict, &mut relaxed] {
            assert_eq!(guard.poll(at(3)), None, "not yet");
            assert_eq!(guard.poll(at(4)), Some(Ask::Renew));
            guard.renewed(at(9), Renewed::Unknown);
            assert_eq!(guard.poll(at(10)), Some(Ask::Renew), "asked again, also while the guest stands");
            guard.renewed(at(10), Renewed::Until(at(20)));
            assert!(guard.may_run(at(18)), "the lease never ended, so nobody took over");
        }
    }

    #[test]
    fn a_lease_that_ended_is_claimed_anew_or_somebody_else_has_it() {
        for (strict, seen, claims) in [
            (true, sight(1, true, false, false), true),
            (false, sight(1, true, false, false), true),
            (true, sight(2, false, false, true), false),
            (false, sight(2, false, false, true), false),
        ] {
            let mut guard = holder(strict);
            assert_eq!(guard.poll(at(11)), Some(Ask::Renew));
            guard.renewed(at(11), Renewed::Ended);
            assert_eq!((guard.state(), guard.may_run(at(11))), (GuardState::Lapsed { epoch: Epoch(1) }, !strict));
            assert_eq!(guard.poll(at(11)), Some(Ask::Look));
            guard.saw(at(11), Ok(seen));
            match claims {
                true => assert_eq!(guard.poll(at(11)), Some(Ask::Claim { epoch: Epoch(2), over: Some(10) })),
                false => {
                    assert_eq!(guard.state(), GuardState::Superseded { by: Epoch(2) });
                    assert!(!guard.may_run(at(11)) && guard.poll(at(99)).is_none(), "for good");
                }
            }
        }
    }

    #[test]
    fn it_says_when_it_has_something_to_ask_for() {
        let mut guard = Guard::new(Rules::of(TTL, true), Will::Inherit, at(1));
        assert_eq!(guard.asks_at(), Some(at(1)));
        guard.poll(at(1));
        assert_eq!(guard.asks_at(), None, "one thing at a time");
        guard.saw(at(2), Err(Unanswered));
        assert_eq!(guard.asks_at(), Some(at(3)));
        guard.poll(at(3));
        guard.nudge(at(3));
        guard.saw(at(4), Ok(sight(1, false, true, true)));
        assert_eq!(guard.asks_at(), Some(at(4)), "what it saw may be of before the nudge");
        guard.poll(at(4));
        guard.saw(at(4), Ok(sight(1, false, true, false)));
        assert!(guard.asks_at() <= Some(at(4)), "a claim waits for nothing");
        let mut unsure = holder(true);
        assert_eq!(unsure.poll(at(9)), Some(Ask::Renew));
        unsure.renewed(at(9), Renewed::Unknown);
        assert_eq!(unsure.asks_at(), Some(at(10)), "not when the guest has to stand: that has passed");
    }

    #[test]
    fn a_term_that_was_wiped_does_not_bring_old_epochs_back() {
        let mut guard = holder(true);
        guard.poll(at(11));
        guard.renewed(at(11), Renewed::Ended);
        guard.poll(at(11));
        guard.saw(at(11), Ok(None));
        assert_eq!(guard.poll(at(11)), Some(Ask::Claim { epoch: Epoch(2), over: None }));
    }

    #[test]
    fn what_was_let_go_is_not_held_and_late_answers_change_nothing() {
        let mut guard = holder(true);
        assert_eq!(guard.poll(at(4)), Some(Ask::Renew));
        guard.let_go(at(5));
        guard.renewed(at(5), Renewed::Until(at(15)));
        assert_eq!((guard.state(), guard.may_run(at(5))), (GuardState::Watching, false));
        let mut shadow = Guard::new(Rules::of(TTL, true), Will::Inherit, at(0));
        shadow.poll(at(0));
        shadow.saw(at(0), Ok(sight(1, false, true, false)));
        assert!(matches!(shadow.poll(at(0)), Some(Ask::Claim { .. })));
        shadow.set_will(Will::Watch, at(1));
        shadow.claimed(at(1), Claimed::Won(at(10)));
        assert_eq!(shadow.state(), GuardState::Watching, "it fell behind while its claim was under way");
    }

    fn told() -> impl Strategy<Value = (u64, u8, u64)> {
        (0..4u64, 0..12u8, 0..30u64)
    }

    proptest! {
        /// Whatever is told, in whatever order: a strict guest runs only while its lease is sure, epochs only rise, and
        /// who was superseded stays so.
        #[test]
        fn no_story_makes_a_strict_guest_run_unsure(story in prop::collection::vec(told(), 0..40)) {
            let mut guard = Guard::new(Rules::of(TTL, true), Will::Found, at(0));
            let (mut now, mut last) = (0, Epoch(0));
            for (wait, what, number) in story {
                now += wait;
                let superseded = matches!(guard.state(), GuardState::Superseded { .. });
                match what {
                    0..=3 => _ = guard.poll(at(now)),
                    4 => guard.saw(at(now), Ok(sight(number, number % 2 == 0, number % 3 == 0, number % 5 == 0))),
                    5 => guard.saw(at(now), if number % 2 == 0 { Ok(None) } else { Err(Unanswered) }),
                    6 => guard.claimed(at(now), Claimed::Won(at(number))),
                    7 => guard.claimed(at(now), if number % 2 == 0 { Claimed::Lost } else { Claimed::Unknown }),
                    8 => guard.renewed(at(now), Renewed::Until(at(number))),
                    9 => guard.renewed(at(now), if number % 2 == 0 { Renewed::Ended } else { Renewed::Unknown }),
                    10 => guard.set_will([Will::Watch, Will::Inherit, Will::Found][number as usize % 3], at(now)),
                    _ => guard.nudge(at(now)),
                }
                let sure = matches!(guard.state(), GuardState::Holding { sure_until, .. }
                    if at(now).after(guard.rules.stand_within) < sure_until);
                prop_assert!(!guard.may_run(at(now)) || sure);
                prop_assert!(guard.epoch().is_none_or(|epoch| epoch >= last));
                last = guard.epoch().unwrap_or(last);
                let stays_so = matches!(guard.state(), GuardState::Superseded { .. });
                prop_assert!(!superseded || stays_so);
            }
        }
    }
}
