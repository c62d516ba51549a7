//! The pool at a clock of its own, by hand.

use super::*;
use crate::{
    accounts::Accounts,
    groups::PageKind,
    guard::{Ruling, Verdict},
    stats::Why,
};

/// A unit of memory for blocks that are only on the books: as large as the guest's memory block.
pub(super) const UNIT: u64 = 128 << 20;

/// A host that has plenty.
pub(super) const PLENTY: Verdict =
    Verdict { small: Ruling::Stage(Bytes(u64::MAX)), huge: Bytes(0), nodes: Vec::new() };

pub(super) fn units(count: u64) -> Bytes {
    Bytes(count * UNIT)
}

pub(super) fn name(text: &str) -> GroupName {
    GroupName::new(text).expect("a name")
}

fn ask(bytes: Bytes) -> Request {
    Request { bytes, whole: false, slots: 256, step: Bytes(1) }
}

/// A pool, its clock, and what its worker has done.
pub(super) struct Desk {
    pub(super) pool: Pool<()>,
    pub(super) now: Instant,
    evicted: Vec<(BlockId, Why)>,
}

impl Desk {
    /// Budget of 64 units for the host and 32 for the group `web`, which refills a unit a second; 30 s of lingering.
    pub(super) fn new() -> Desk {
        let host = HostLimits { budget: units(64), floor: Bytes(0), linger: Duration::from_secs(30) };
        let mut desk = Desk { pool: Pool::new(host, 1, 10_000), now: Instant::ORIGIN, evicted: Vec::new() };
        desk.add("web");
        desk
    }

    fn add(&mut self, group: &str) {
        self.pool.add_group(self.now, name(group), limits()).expect("added");
    }

    pub(super) fn pass(&mut self, seconds: u64) {
        self.now = self.now.after(Duration::from_secs(seconds));
    }

    fn want(&mut self, group: &str, target: &[(u64, u32)]) {
        let target: Vec<(Bytes, u32)> = target.iter().map(|(size, count)| (units(*size), *count)).collect();
        self.pool.set_target(self.now, &name(group), &target).expect("a target");
    }

    fn take(&mut self, group: &str, size: u64) -> Grant<()> {
        self.pool.take(self.now, &name(group), ask(units(size)), None).expect("decided")
    }

    /// Does one chore; false when there is none.
    fn step(&mut self, verdict: Verdict) -> bool {
        let chore = self.pool.chore(self.now, &verdict).expect("a chore");
        match chore {
            Chore::LetGo { id, why } => {
                self.evicted.push((id, why));
                self.pool.released(id).expect("released");
            }
            Chore::Stage { id, group, .. } => {
                assert!(
                    self.pool.may_go_on(self.now, &group, (PageKind::Small, None), &PLENTY),
                    "it is not begun to be given up"
                );
                self.pool.populated(self.now, id, (), None, Duration::from_millis(100)).expect("populated");
            }
            Chore::Rest => return false,
        }
        self.pool.ledger().check().expect("balanced");
        true
    }

    /// Does all chores; returns how many.
    fn work(&mut self, verdict: Verdict) -> usize {
        (0..10_000).take_while(|_| self.step(verdict.clone())).count()
    }

    fn staged(&self, group: &str) -> u64 {
        self.pool.ledger().group(&name(group)).staged.bytes.0 / UNIT
    }

    pub(super) fn host(&self) -> Accounts {
        self.pool.ledger().host()
    }
}

pub(super) fn limits() -> GroupLimits {
    GroupLimits {
        budget: units(32),
        max_age: Duration::from_secs(3600),
        refill: gnomon_terms::BytesPerSecond(UNIT),
        pages: PageKind::Small,
        node: None,
    }
}

pub(super) fn give_back(bytes: Bytes) -> Verdict {
    Verdict { small: Ruling::GiveBack(bytes), huge: Bytes(0), nodes: Vec::new() }
}

#[test]
fn a_target_that_flaps_costs_one_staging() {
    let mut desk = Desk::new();
    for round in 0..1000 {
        desk.want("web", if round % 2 == 0 { &[(1, 8)] } else { &[] });
        desk.work(PLENTY);
        desk.pass(10);
    }
    assert_eq!((desk.host().created.blocks, desk.evicted.len()), (8, 0));
}

#[test]
fn what_is_too_much_for_long_goes_and_no_more_than_that() {
    let mut desk = Desk::new();
    desk.want("web", &[(4, 1), (1, 8)]);
    desk.work(PLENTY);
    desk.want("web", &[(1, 5)]);
    assert_eq!(desk.work(PLENTY), 0);
    desk.pass(29);
    assert_eq!(desk.work(PLENTY), 0, "it lingers");
    desk.pass(1);
    assert_eq!((desk.work(PLENTY), desk.staged("web")), (4, 5));
    assert!(desk.evicted.iter().all(|(_, why)| *why == Why::Target));
}

#[test]
fn what_was_found_again_waits_for_a_target() {
    let mut desk = Desk::new();
    let entry = |group: &str, pages| Entry {
        node: None,
        group: name(group),
        size: units(2),
        pages,
        state: State::Staged,
        block: Some(()),
    };
    assert_eq!(desk.pool.found_staged(desk.now, BlockId(90), entry("web", PageKind::Small)), Ok(true));
    for (id, group, pages) in [(91, "web", PageKind::Huge), (92, "unknown", PageKind::Small)] {
        assert_eq!(desk.pool.found_staged(desk.now, BlockId(id), entry(group, pages)), Ok(false));
        desk.pool.released(BlockId(id)).expect("it was leaving");
    }
    desk.pass(600);
    assert_eq!((desk.work(PLENTY), desk.staged("web")), (0, 2));
    desk.want("web", &[(2, 1)]);
    assert_eq!(desk.work(PLENTY), 0, "it is what is wanted");
    assert_eq!(desk.take("web", 2).hit, units(2));
}

#[test]
fn a_size_that_nobody_asks_for_goes_by_its_age_and_stays_away() {
    let mut desk = Desk::new();
    desk.want("web", &[(1, 2), (4, 1)]);
    desk.work(PLENTY);
    desk.pass(3000);
    let taken = desk.take("web", 1);
    desk.pool.put_back(desk.now, taken.blocks[0].0).expect("put back");
    desk.pass(601);
    desk.want("web", &[(1, 2), (4, 1)]);
    assert_eq!((desk.work(PLENTY), desk.staged("web")), (1, 2), "the small ones were of use");
    assert_eq!(desk.evicted, [(BlockId(1), Why::Age)]);
    desk.pass(3600);
    desk.work(PLENTY);
    assert_eq!(desk.staged("web"), 0);
    assert!(desk.take("web", 1).missing > Bytes(0));
    desk.work(PLENTY);
    assert_eq!(desk.staged("web"), 6, "a miss makes what is wanted of interest again");
}

#[test]
fn a_guest_that_asks_and_returns_costs_no_more_than_the_refill() {
    let mut desk = Desk::new();
    desk.want("web", &[(1, 4)]);
    desk.work(PLENTY);
    for _ in 0..1000 {
        for (id, ()) in desk.take("web", 4).blocks {
            desk.pool.assign(id, "vm").expect("assigned");
            desk.pool.returned(id).expect("returned");
            desk.pool.released(id).expect("released");
        }
        desk.work(PLENTY);
    }
    assert_eq!(desk.host().created.bytes, units(32), "a budget's worth, for no time has passed");
    desk.pass(10);
    desk.take("web", 4);
    desk.work(PLENTY);
    assert_eq!(desk.host().created.bytes, units(36), "four are wanted, and ten seconds allow ten");
    let stats = desk.pool.stats(desk.now, &name("web")).expect("known");
    assert_eq!((stats.returned.blocks, stats.staged.blocks), (32, 36));
}

#[test]
fn what_the_host_needs_leaves_oldest_first_and_no_more_than_that() {
    let mut desk = Desk::new();
    desk.add("db");
    desk.want("web", &[(1, 1)]);
    desk.work(PLENTY);
    desk.pass(10);
    desk.want("db", &[(1, 2)]);
    desk.work(PLENTY);
    desk.pass(10);
    desk.want("web", &[(1, 1), (2, 2)]);
    desk.work(PLENTY);
    // Staged: web 1 (id 1), db 1, 1 (ids 2, 3), web 2, 2 (ids 4, 5). Three units are needed, as long as they are.
    let mut needed = 3;
    while needed > 0 {
        let before = desk.host().staged.bytes.0;
        assert!(desk.step(give_back(units(needed))));
        needed = needed.saturating_sub((before - desk.host().staged.bytes.0) / UNIT);
    }
    assert_eq!(desk.evicted, [1, 2, 3].map(|id| (BlockId(id), Why::Floor)));
    assert_eq!(desk.work(PLENTY), 0, "and nothing comes at once");
    desk.pass(16);
    desk.work(PLENTY);
    assert_eq!((desk.staged("web"), desk.staged("db")), (5, 2));
}

#[test]
fn what_was_of_use_lately_leaves_last() {
    let mut desk = Desk::new();
    desk.want("web", &[(1, 1), (2, 1)]);
    desk.work(PLENTY);
    desk.pass(10);
    let taken = desk.take("web", 2);
    desk.pool.put_back(desk.now, taken.blocks[0].0).expect("put back");
    desk.step(give_back(units(1)));
    assert_eq!(desk.staged("web"), 2, "the larger one was asked for");
}

#[test]
fn budgets_hold_and_smaller_ones_take_effect() {
    let mut desk = Desk::new();
    desk.add("db");
    desk.want("web", &[(1, 100)]);
    desk.want("db", &[(8, 100)]);
    for _ in 0..100 {
        desk.work(PLENTY);
        desk.pass(1);
        assert!(desk.host().set_aside() <= units(64));
    }
    assert_eq!((desk.staged("web"), desk.staged("db")), (32, 32));
    desk.pool.set_group_limits(&name("web"), GroupLimits { budget: units(10), ..limits() }).expect("changed");
    desk.work(PLENTY);
    assert_eq!((desk.staged("web"), desk.staged("db")), (10, 32));
    desk.pool.set_host_limits(HostLimits { budget: units(20), ..HostLimits::default() });
    desk.work(PLENTY);
    let accounts = desk.host();
    assert!(accounts.staged.bytes <= units(20) && accounts.staged.bytes > units(10), "{accounts:?}");
    assert!(desk.evicted.iter().all(|(_, why)| *why == Why::Budget));
    let other = GroupLimits { pages: PageKind::Huge, ..limits() };
    let refused = desk.pool.set_group_limits(&name("web"), other);
    assert_eq!(refused, Err(PoolError::OtherPages { group: name("web") }));
}

#[test]
fn there_are_no_more_blocks_than_descriptors_for_them() {
    let mut desk = Desk::new();
    desk.pool.most_blocks = 5;
    desk.want("web", &[(1, 32)]);
    desk.work(PLENTY);
    for (id, ()) in desk.take("web", 3).blocks {
        desk.pool.assign(id, "vm").expect("assigned");
    }
    assert_eq!((desk.work(PLENTY), desk.host().living()), (0, 5), "those at guests are open here as well");
}

#[test]
fn what_is_reserved_counts_against_the_budget() {
    let mut desk = Desk::new();
    desk.want("web", &[(1, 32)]);
    desk.work(PLENTY);
    let taken = desk.take("web", 10);
    desk.pass(100);
    assert_eq!(desk.work(PLENTY), 0, "it may come back");
    for (id, ()) in taken.blocks {
        desk.pool.assign(id, "vm").expect("assigned");
    }
    assert_eq!((desk.work(PLENTY), desk.staged("web")), (10, 32));
}

#[test]
fn the_size_of_which_least_is_there_is_staged_first() {
    let mut desk = Desk::new();
    desk.add("db");
    desk.want("web", &[(1, 4), (2, 4)]);
    desk.want("db", &[(4, 1)]);
    let mut order = Vec::new();
    while let Chore::Stage { id, size, .. } = desk.pool.chore(desk.now, &PLENTY).expect("a chore") {
        desk.pool.populated(desk.now, id, (), None, Duration::ZERO).expect("populated");
        order.push(size.0 / UNIT);
    }
    assert_eq!(order, [4, 2, 1, 2, 1, 2, 1, 2, 1]);
}

#[test]
fn what_the_guard_does_not_allow_is_not_begun() {
    let may = |small, huge| Verdict { small, huge, nodes: Vec::new() };
    let table = [
        (may(Ruling::Hold, Bytes(0)), PageKind::Small, 0),
        (may(Ruling::Stage(units(1)), Bytes(0)), PageKind::Small, 0),
        (may(Ruling::Stage(units(2)), Bytes(0)), PageKind::Small, 1),
        (Verdict::UNKNOWN, PageKind::Small, 0),
        (may(Ruling::Stage(units(9)), units(1)), PageKind::Huge, 0),
        (may(Ruling::Hold, units(2)), PageKind::Huge, 1),
    ];
    for (verdict, pages, begun) in table {
        let mut desk = Desk::new();
        desk.pool.add_group(desk.now, name("other"), GroupLimits { pages, ..limits() }).expect("added");
        desk.want("other", &[(2, 1)]);
        desk.step(verdict.clone());
        assert_eq!(desk.host().created.blocks, begun, "{verdict:?} {pages:?}");
    }
}

#[test]
fn large_pages_are_not_given_back_to_a_host_that_gains_nothing_by_it() {
    let mut desk = Desk::new();
    desk.pool.add_group(desk.now, name("huge"), GroupLimits { pages: PageKind::Huge, ..limits() }).expect("added");
    desk.want("huge", &[(1, 2)]);
    desk.want("web", &[(1, 1)]);
    desk.work(Verdict { huge: units(9), ..PLENTY });
    assert_eq!(desk.pool.small_staged().all, units(1));
    desk.work(give_back(units(9)));
    assert_eq!((desk.staged("huge"), desk.staged("web")), (2, 0));
}

#[test]
fn a_population_that_is_given_up_leaves_nothing_and_is_counted() {
    let mut desk = Desk::new();
    desk.want("web", &[(1, 1)]);
    let Ok(Chore::Stage { id, group, .. }) = desk.pool.chore(desk.now, &PLENTY) else { panic!("one is wanted") };
    assert!(!desk.pool.may_go_on(desk.now, &group, (PageKind::Small, None), &Verdict::UNKNOWN));
    desk.pool.given_up(id).expect("given up");
    desk.pool.released(id).expect("released");
    assert_eq!(desk.work(PLENTY), 0, "another is not begun at once");
    desk.pass(15);
    assert_eq!((desk.work(PLENTY), desk.staged("web")), (1, 1));
    assert_eq!(desk.pool.stats(desk.now, &name("web")).expect("known").given_up.blocks, 1);
}

#[test]
fn a_block_of_a_group_that_is_gone_leaves_wherever_it_was() {
    let mut desk = Desk::new();
    desk.want("web", &[(1, 4)]);
    desk.work(PLENTY);
    let taken = desk.take("web", 2);
    let Ok(Chore::Stage { id, group, .. }) = desk.pool.chore(desk.now, &PLENTY) else { panic!("two are wanted") };
    let staged = desk.pool.remove_group(&name("web")).expect("removed");
    assert_eq!(staged.len(), 2);
    assert!(!desk.pool.may_go_on(desk.now, &group, (PageKind::Small, None), &PLENTY));
    assert_eq!(desk.pool.populated(desk.now, id, (), None, Duration::ZERO), Ok(false));
    assert_eq!(desk.pool.put_back(desk.now, taken.blocks[0].0), Ok(false));
    desk.pool.assign(taken.blocks[1].0, "vm").expect("a request under way is served");
    assert_eq!(desk.pool.ended("vm"), Ok(vec![taken.blocks[1].0]));
    for id in staged.into_iter().chain([id, taken.blocks[0].0, taken.blocks[1].0]) {
        desk.pool.released(id).expect("it was leaving");
    }
    assert_eq!((desk.host().living(), desk.pool.ledger().groups().count()), (0, 0));
    assert!(desk.pool.is_idle());
}
