//! Everything that two or three guards, their drivers and a store can do, step by step.
//!
//! ```text
//!   node 0 (primary)  ──ask──► the store: a term, leases ──► the answer to a claim is under way ──► node
//!   nodes 1, 2 (shadows)        └ a claim may arrive late, also after its driver has given up or died
//! ```
//! The second shadow is there only if the setting says so. It is never struck off: it has what the first one lacks.
//! What cannot make things worse is left out, so that the rest can be walked whole:
//! - A node asks when it likes, so a request that is lost is one that was not made yet.
//! - A look is answered at once: what it saw is of use only while it is still so. A renewal is answered at once, and so
//!   a guest runs as long as it ever may. One that reaches the store later makes the lease end later, and the store may
//!   let leases end as late as it likes anyway.
//! - A guest runs as soon as its guard allows, and stands as late as its driver may.
//! - Each clock has one rate for life. A lease is a difference of two readings, and the mean rate between them is within
//!   the same bounds. The store's is fast: a slow one ends leases later.

use std::time::Duration;

use gnomon_proto::guard::{Ask, Claimed, Guard, GuardState, Renewed, Rules, Sight, Will};
use gnomon_terms::{Epoch, Instant};

/// What clocks say for each step of time: a slow one and a fast one, half as fast again.
pub const RATES: [u64; 2] = [2, 3];

/// A lease's time to live by the store's clock: two steps of a fast one.
pub const TTL: u64 = 6;

/// How much of it a holder may trust by its own clock: two steps of a slow one.
pub const SURE: u64 = 4;

/// Renewing, looking and standing each take less than a step.
const STEP: Duration = Duration::from_nanos(1);

/// The primary and two shadows.
pub const NODES: usize = 3;

/// How a life is set up.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// One shadow, or two.
    pub shadows: usize,
    /// Whether the heirs of a term that somebody else claims are none, as they must be.
    pub heirs_end: bool,
    /// Whether guests stand rather than run unsure of their lease.
    pub strict: bool,
    /// How much of a lease a holder trusts.
    pub sure: u64,
    /// Whether a holder counts from before it asked, as it must, or from when it was answered.
    pub from_before: bool,
    /// How long a life is.
    pub steps: u64,
    /// How many daemons are killed in it.
    pub crashes: u8,
    /// Whether a primary's daemon that comes back has on record what it held.
    pub remembers: bool,
    /// Whether an administrator has the shadow take over, heir or not.
    pub seizes: bool,
    /// Whether the primary acknowledges what its heir lacks, and after what.
    pub acknowledges: Acknowledges,
}

/// When a primary acknowledges what its heir lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acknowledges {
    Never,
    /// Once the store has said that the heir is struck off, as it must.
    AfterTheAnswer,
    /// Once it has asked for that.
    AfterTheRequest,
}

/// How far the heir is from being struck off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Strike {
    No,
    /// If the term has that version still.
    Sent(u64),
    Done,
    /// And the primary knows.
    Known,
}

/// Everything at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    pub step: u64,
    /// Of the nodes, and of the store.
    rates: [u64; NODES + 1],
    pub nodes: [Node; NODES],
    pub store: TermStore,
    /// Claims that nobody waits for any more, and which may arrive all the same; the last of each node.
    late: [Option<Claim>; NODES],
    /// The first shadow that ran, and whether another one has since.
    pub took_over: Option<usize>,
    pub twice: bool,
    strike: Strike,
    /// Something was acknowledged that the shadow lacks.
    pub acknowledged: bool,
    crashes: u8,
}

/// A node: its guard, and what its driver does.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    /// `None`: its daemon is dead, and its guest has neither disk nor network.
    pub guard: Option<Guard>,
    pub running: bool,
    waits: Option<Waits>,
    lease: Option<u8>,
    /// The epoch that it held when it was killed.
    recorded: Option<Epoch>,
}

/// How far the claim is that a driver waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Waits {
    /// It has not reached the store.
    Sent(Claim),
    /// The store has decided for it.
    Won(Claim),
    /// The store has decided against it.
    Lost,
}

/// A claim: its lease is granted, and now the term is to be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Claim {
    epoch: Epoch,
    over: Option<u64>,
    lease: u8,
    /// By the clock of its node, before the lease was asked for.
    began: u64,
}

/// The store: never wrong, and as slow as it likes to let a lease end.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TermStore {
    pub term: Option<Term>,
    version: u64,
    /// Leases that live, and from when each may end by the store's clock.
    leases: Vec<(u8, u64)>,
}

/// A VM's term at the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Term {
    pub epoch: Epoch,
    holder: usize,
    /// `None` when it has ended.
    lease: Option<u8>,
    /// Shadows that have a whole state.
    heirs: [bool; NODES],
}

/// What can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Happening {
    /// Time goes on for everybody.
    Tick,
    /// A driver does what its guard asks for.
    Ask(usize),
    /// A claim comes to the store, or the answer comes back.
    Come(usize),
    /// A driver gives up waiting for what becomes of its claim.
    GiveUp(usize),
    /// A claim that was given up arrives.
    ComeLate(usize),
    /// The store lets a lease end.
    End(u8),
    /// The primary strikes its heir off, or hears what came of it.
    Strike,
    /// The request to do so reaches the store, or is refused there.
    StrikeComes,
    /// The primary acknowledges what its heir lacks.
    Acknowledge,
    /// A daemon is killed.
    Crash(usize),
    /// A daemon comes back, and knows nothing but what it held, if that.
    Restart(usize),
}

impl Setting {
    fn rules(&self) -> Rules {
        let strict = self.strict;
        Rules { strict, renew_every: STEP, look_every: STEP, retry_after: STEP, stand_within: STEP }
    }

    fn fresh(&self, node: usize, now: Instant) -> Guard {
        Guard::new(self.rules(), self.will(node), now)
    }

    fn will(&self, node: usize) -> Will {
        match (node, self.seizes) {
            (0, _) => Will::Found,
            (_, true) => Will::Seize,
            (_, false) => Will::Inherit,
        }
    }

    /// The nodes there are.
    fn nodes(&self) -> std::ops::RangeInclusive<usize> {
        0..=self.shadows
    }

    /// The primary has just got its first lease, and its guest runs; for each set of rates of it and the first shadow. Of two
    /// shadows the first one is slow and the second one fast.
    pub fn beginnings(&self) -> Vec<World> {
        let rates = |bits: usize| [RATES[bits & 1], RATES[bits >> 1], RATES[1], RATES[1]];
        let sets = if self.shadows == 2 { 2 } else { 4 };
        (0..sets).map(|bits| self.beginning(rates(bits))).collect()
    }

    fn beginning(&self, rates: [u64; NODES + 1]) -> World {
        let now = Instant::ORIGIN;
        let mut primary = self.fresh(0, now);
        assert_eq!(primary.poll(now), Some(Ask::Look));
        primary.saw(now, Ok(None));
        assert_eq!(primary.poll(now), Some(Ask::Claim { epoch: Epoch(1), over: None }));
        primary.claimed(now, Claimed::Won(Instant::from_nanos(self.sure)));
        let node = |guard, running, lease| Node { guard, running, waits: None, lease, recorded: None };
        let heirs = [false, true, self.shadows == 2];
        let term = Some(Term { epoch: Epoch(1), holder: 0, lease: Some(0), heirs });
        let shadow = |number| node((number <= self.shadows).then(|| self.fresh(number, now)), false, None);
        World {
            step: 0,
            rates,
            nodes: [node(Some(primary), true, Some(0)), shadow(1), shadow(2)],
            store: TermStore { term, version: 1, leases: vec![(0, TTL)] },
            late: [None; NODES],
            took_over: None,
            twice: false,
            strike: Strike::No,
            acknowledged: false,
            crashes: self.crashes,
        }
    }

    /// Everything that could be tried; [`Setting::after`] knows what is possible.
    pub fn happenings(&self, world: &World) -> Vec<Happening> {
        let mut all = vec![Happening::Tick];
        if self.acknowledges != Acknowledges::Never {
            all.extend([Happening::Strike, Happening::StrikeComes, Happening::Acknowledge]);
        }
        all.extend(world.store.leases.iter().map(|(lease, _)| Happening::End(*lease)));
        for node in self.nodes() {
            all.extend([Happening::Ask, Happening::Come].map(|kind| kind(node)));
            all.extend([Happening::GiveUp, Happening::ComeLate].map(|kind| kind(node)));
            all.extend([Happening::Crash, Happening::Restart].map(|kind| kind(node)));
        }
        all
    }

    /// The world after `happening`; `None` when that cannot happen.
    pub fn after(&self, before: &World, happening: Happening) -> Option<World> {
        let mut world = before.clone();
        let happened = match happening {
            Happening::Tick => world.tick(self.steps),
            Happening::Ask(node) => world.ask(node, self),
            Happening::Come(node) => world.come(node, self),
            Happening::GiveUp(node) => world.give_up(node),
            Happening::ComeLate(node) => world.come_late(node, self),
            Happening::End(lease) => world.end(lease),
            Happening::Strike => world.strike(),
            Happening::StrikeComes => world.strike_comes(),
            Happening::Acknowledge => world.acknowledge(self.acknowledges),
            Happening::Crash(node) => world.crash(node),
            Happening::Restart(node) => world.restart(node, self),
        };
        happened.then(|| {
            world.run_whom_they_let();
            if self.shadows > 1 {
                world.note_who_took_over();
            }
            world.forget_what_is_over();
            world
        })
    }
}

impl World {
    fn clock(&self, node: usize) -> u64 {
        self.step * self.rates[node]
    }

    fn now(&self, node: usize) -> Instant {
        Instant::from_nanos(self.clock(node))
    }

    /// Whether a node's guard lets its guest run.
    pub fn may_run(&self, node: usize) -> bool {
        self.nodes[node].guard.as_ref().is_some_and(|guard| guard.may_run(self.now(node)))
    }

    fn run_whom_they_let(&mut self) {
        for node in 0..NODES {
            let gone =
                !matches!(self.nodes[node].state(), Some(GuardState::Holding { .. } | GuardState::Lapsed { .. }));
            self.nodes[node].running = self.may_run(node) || (self.nodes[node].running && !gone);
        }
    }

    fn note_who_took_over(&mut self) {
        for node in (1..NODES).filter(|node| self.nodes[*node].running) {
            self.twice |= *self.took_over.get_or_insert(node) != node;
        }
    }

    /// Who was told to stand does so at the last moment that its driver has promised.
    fn tick(&mut self, steps: u64) -> bool {
        self.step += 1;
        for node in 0..NODES {
            let told = self.nodes[node].guard.as_ref().and_then(Guard::stands_at);
            let too_late = told.is_some_and(|told| self.now(node) >= told.after(STEP));
            self.nodes[node].running &= !too_late;
        }
        self.step <= steps
    }

    /// A renewal, or a look and the claim that it allows. A look that changes nothing is none.
    fn ask(&mut self, number: usize, setting: &Setting) -> bool {
        let (now, began, store_clock) = (self.now(number), self.clock(number), self.clock(NODES));
        let before = self.nodes[number].state();
        let node = &mut self.nodes[number];
        let Some(guard) = node.guard.as_mut() else { return false };
        match guard.poll(now) {
            Some(Ask::Renew) => {
                let alive = node.lease.is_some_and(|lease| self.store.renew(lease, store_clock));
                let until = Instant::from_nanos(began + setting.sure);
                guard.renewed(now, if alive { Renewed::Until(until) } else { Renewed::Ended });
                true
            }
            Some(Ask::Look) => {
                guard.saw(now, Ok(self.store.sight(number)));
                let claim = guard.poll(now);
                self.claim(number, claim) || self.nodes[number].state() != before
            }
            Some(Ask::Claim { .. }) => panic!("a claim without a look"),
            None => false,
        }
    }

    fn claim(&mut self, number: usize, ask: Option<Ask>) -> bool {
        let Some(Ask::Claim { epoch, over }) = ask else { return false };
        let (lease, began) = (self.free_name(), self.clock(number));
        self.store.grant(lease, self.clock(NODES));
        self.nodes[number].waits = Some(Waits::Sent(Claim { epoch, over, lease, began }));
        true
    }

    fn come(&mut self, number: usize, setting: &Setting) -> bool {
        let (now, clock) = (self.now(number), self.clock(number));
        let node = &mut self.nodes[number];
        let (Some(waits), Some(guard)) = (node.waits.take(), node.guard.as_mut()) else { return false };
        match waits {
            Waits::Sent(claim) => {
                let won = self.store.set(number, claim, setting.heirs_end);
                node.waits = Some(if won { Waits::Won(claim) } else { Waits::Lost });
            }
            Waits::Won(claim) => {
                let from = if setting.from_before { claim.began } else { clock };
                node.lease = Some(claim.lease);
                guard.claimed(now, Claimed::Won(Instant::from_nanos(from + setting.sure)));
            }
            Waits::Lost => guard.claimed(now, Claimed::Lost),
        }
        true
    }

    fn give_up(&mut self, number: usize) -> bool {
        let now = self.now(number);
        let node = &mut self.nodes[number];
        let (Some(waits), Some(guard)) = (node.waits.take(), node.guard.as_mut()) else { return false };
        guard.claimed(now, Claimed::Unknown);
        self.leave_behind(number, waits);
        true
    }

    /// A claim that is under way stays so.
    fn leave_behind(&mut self, number: usize, waits: Waits) {
        if let Waits::Sent(claim) = waits {
            self.late[number] = Some(claim);
        }
    }

    fn come_late(&mut self, number: usize, setting: &Setting) -> bool {
        let Some(claim) = self.late[number].take() else { return false };
        self.store.set(number, claim, setting.heirs_end);
        true
    }

    fn end(&mut self, lease: u8) -> bool {
        let (clock, before) = (self.clock(NODES), self.store.leases.len());
        self.store.leases.retain(|(known, ends)| *known != lease || clock < *ends);
        self.store.leases.len() < before
    }

    fn strike(&mut self) -> bool {
        let holds = self.nodes[0].guard.as_ref().is_some_and(|guard| guard.epoch().is_some());
        let before = self.strike;
        self.strike = match (before, self.store.term) {
            // What was seen is of before this: whoever has changed the term since makes it void.
            (Strike::No, Some(term)) if holds && term.holder == 0 => Strike::Sent(self.store.version),
            (Strike::Done, _) if holds => Strike::Known,
            _ => before,
        };
        self.strike != before
    }

    fn strike_comes(&mut self) -> bool {
        let Strike::Sent(over) = self.strike else { return false };
        let unchanged = over == self.store.version;
        self.strike = if unchanged { Strike::Done } else { Strike::No };
        if let Some(term) = self.store.term.as_mut().filter(|_| unchanged) {
            term.heirs[1] = false;
            self.store.version += 1;
        }
        true
    }

    fn acknowledge(&mut self, when: Acknowledges) -> bool {
        let struck = match when {
            Acknowledges::Never => false,
            Acknowledges::AfterTheAnswer => self.strike == Strike::Known,
            Acknowledges::AfterTheRequest => self.strike != Strike::No,
        };
        let can = struck && self.nodes[0].running && !self.acknowledged;
        self.acknowledged |= can;
        can
    }

    fn crash(&mut self, number: usize) -> bool {
        if self.crashes == 0 || self.nodes[number].guard.is_none() {
            return false;
        }
        self.crashes -= 1;
        if let Some(waits) = self.nodes[number].waits {
            self.leave_behind(number, waits);
        }
        let recorded = self.nodes[number].guard.as_ref().and_then(Guard::epoch).or(self.nodes[number].recorded);
        self.nodes[number] = Node { guard: None, running: false, waits: None, lease: None, recorded };
        if number == 0 && matches!(self.strike, Strike::Done | Strike::Known) {
            // Nobody remembers; the term does.
            self.strike = Strike::No;
        }
        true
    }

    fn restart(&mut self, number: usize, setting: &Setting) -> bool {
        let (now, dead) = (self.now(number), self.nodes[number].guard.is_none());
        self.nodes[number].guard = Some(match self.nodes[number].recorded.filter(|_| setting.remembers) {
            Some(epoch) => Guard::resumed(setting.rules(), setting.will(number), epoch, now),
            None => setting.fresh(number, now),
        });
        dead
    }

    /// Claims that cannot win any more, leases that have ended or that nobody speaks of, and when a lease that may end
    /// began to: lives that differ in nothing else are one.
    fn forget_what_is_over(&mut self) {
        let version = self.store.term.map(|_| self.store.version);
        for late in &mut self.late {
            *late = late.filter(|claim| claim.over == version);
        }
        for node in &mut self.nodes {
            if matches!(node.waits, Some(Waits::Sent(claim)) if claim.over != version) {
                node.waits = Some(Waits::Lost);
            }
            node.lease = node.lease.filter(|lease| self.store.lives(*lease));
        }
        let clock = self.clock(NODES);
        if let Some(term) = &mut self.store.term {
            term.lease = term.lease.filter(|lease| self.store.leases.iter().any(|(known, _)| known == lease));
        }
        let named = self.store.leases.iter().copied().filter(|(lease, _)| self.is_named(*lease));
        self.store.leases = named.map(|(lease, ends)| (lease, if ends <= clock { 0 } else { ends })).collect();
    }

    fn is_named(&self, lease: u8) -> bool {
        let of_nodes = self.nodes.iter().any(|node| node.names(lease));
        let of_late = self.late.iter().flatten().any(|claim| claim.lease == lease);
        of_nodes || of_late || self.store.term.is_some_and(|term| term.lease == Some(lease))
    }

    /// A name for a lease. Names are used again here once nobody speaks of them, so that lives which differ in nothing
    /// else are one.
    fn free_name(&self) -> u8 {
        (0..=u8::MAX).find(|lease| !self.is_named(*lease)).expect("there are a few leases")
    }
}

impl Node {
    pub fn state(&self) -> Option<GuardState> {
        self.guard.as_ref().map(Guard::state)
    }

    fn names(&self, lease: u8) -> bool {
        let waited = match self.waits {
            Some(Waits::Sent(claim) | Waits::Won(claim)) => Some(claim.lease),
            Some(Waits::Lost) | None => None,
        };
        self.lease == Some(lease) || waited == Some(lease)
    }
}

impl TermStore {
    fn sight(&self, node: usize) -> Option<Sight> {
        self.term.map(|term| Sight {
            epoch: term.epoch,
            version: self.version,
            mine: term.holder == node,
            heir: term.heirs[node],
            held: term.lease.is_some(),
        })
    }

    fn grant(&mut self, lease: u8, clock: u64) {
        self.leases.push((lease, clock + TTL));
        self.leases.sort_unstable();
    }

    fn lives(&self, lease: u8) -> bool {
        self.leases.iter().any(|(known, _)| *known == lease)
    }

    fn renew(&mut self, lease: u8, clock: u64) -> bool {
        let found = self.leases.iter_mut().find(|(known, _)| *known == lease);
        found.map(|(_, ends)| *ends = clock + TTL).is_some()
    }

    /// Heirs stay with their holder, and go with another.
    fn set(&mut self, holder: usize, claim: Claim, heirs_end: bool) -> bool {
        let version = self.term.map(|_| self.version);
        if version != claim.over {
            return false;
        }
        let stay = |term: &Term| term.holder == holder || !heirs_end;
        let heirs = self.term.filter(stay).map(|term| term.heirs).unwrap_or_default();
        self.term = Some(Term {
            epoch: claim.epoch,
            holder,
            lease: Some(claim.lease).filter(|lease| self.lives(*lease)),
            heirs,
        });
        self.version += 1;
        true
    }
}
