//! Lives of a pool: whatever happens in whatever order, the accounts balance after each step.

use std::time::Duration;

use gnomon_terms::Bytes;
use proptest::prelude::*;

use super::{
    Chore,
    on_nodes::on_nodes,
    tests::{Desk, PLENTY, UNIT, give_back, limits, name, units},
};
use crate::{
    block::BlockId,
    fit::Request,
    groups::HostLimits,
    guard::{Ruling, Verdict},
    numa::NumaNode,
};

/// What may happen in a life.
#[derive(Clone, Debug)]
enum Deed {
    Want(usize, Vec<(u64, u32)>),
    Take(usize, u64, bool, u32, Option<NumaNode>),
    Home(usize, Option<NumaNode>),
    PutBack(usize),
    Assign(usize, usize),
    Return(usize),
    End(usize),
    Remove(usize),
    Add(usize),
    Chore(Verdict),
    Finish(bool),
    Budget(u64),
    Pass(u64),
}

fn verdict() -> impl Strategy<Value = Verdict> {
    prop_oneof![
        6 => Just(PLENTY),
        1 => Just(Verdict::UNKNOWN),
        1 => (1u64..9).prop_map(|count| give_back(units(count))),
        4 => (ruling(), ruling()).prop_map(|(first, second)| on_nodes(first, second)),
    ]
}

fn ruling() -> impl Strategy<Value = Ruling> {
    prop_oneof![
        3 => (1u64..9).prop_map(|count| Ruling::Stage(units(count))),
        1 => Just(Ruling::Hold),
        1 => (1u64..9).prop_map(|count| Ruling::GiveBack(units(count))),
    ]
}

fn node() -> impl Strategy<Value = Option<NumaNode>> {
    proptest::option::of((0u32..2).prop_map(NumaNode))
}

fn deed() -> impl Strategy<Value = Deed> {
    let group = 0usize..3;
    prop_oneof![
        2 => (group.clone(), proptest::collection::vec((1u64..9, 0u32..5), 0..4)).prop_map(|(g, t)| Deed::Want(g, t)),
        4 => (group.clone(), 0u64..12, any::<bool>(), 0u32..4, node())
            .prop_map(|(g, b, w, s, near)| Deed::Take(g, b, w, s, near)),
        1 => (group.clone(), node()).prop_map(|(g, home)| Deed::Home(g, home)),
        2 => any::<usize>().prop_map(Deed::PutBack),
        3 => (any::<usize>(), 0usize..3).prop_map(|(n, vm)| Deed::Assign(n, vm)),
        2 => any::<usize>().prop_map(Deed::Return),
        1 => (0usize..3).prop_map(Deed::End),
        1 => group.clone().prop_map(Deed::Remove),
        1 => group.prop_map(Deed::Add),
        8 => verdict().prop_map(Deed::Chore),
        6 => any::<bool>().prop_map(Deed::Finish),
        1 => (0u64..64).prop_map(Deed::Budget),
        3 => (0u64..4000).prop_map(Deed::Pass),
    ]
}

/// What a life knows beside the books.
#[derive(Default)]
struct World {
    populating: Option<(BlockId, Option<NumaNode>)>,
    reserved: Vec<BlockId>,
    assigned: Vec<(BlockId, usize)>,
    leaving: Vec<BlockId>,
}

impl World {
    fn live(&mut self, desk: &mut Desk, deed: Deed) {
        let groups = ["web", "db", "mail"].map(name);
        let vms = ["one", "two", "three"];
        let pick = |n: usize, of: usize| n.checked_rem(of);
        match deed {
            Deed::Want(group, target) => {
                let target: Vec<(Bytes, u32)> = target.into_iter().map(|(size, n)| (units(size), n)).collect();
                let _ = desk.pool.set_target(desk.now, &groups[group], &target);
            }
            Deed::Take(group, size, whole, slots, near) => {
                let request = Request { bytes: units(size), whole, slots, step: Bytes(1) };
                if let Ok(grant) = desk.pool.take(desk.now, &groups[group], request, near) {
                    assert_eq!(grant.hit.0 + grant.missing.0, size * UNIT);
                    assert!(grant.blocks.len() <= slots as usize);
                    self.reserved.extend(grant.blocks.iter().map(|(id, ())| *id));
                }
            }
            Deed::PutBack(n) => {
                if let Some(n) = pick(n, self.reserved.len()) {
                    let id = self.reserved.swap_remove(n);
                    if !desk.pool.put_back(desk.now, id).expect("it was reserved") {
                        self.leaving.push(id);
                    }
                }
            }
            Deed::Assign(n, vm) => {
                if let Some(n) = pick(n, self.reserved.len()) {
                    let id = self.reserved.swap_remove(n);
                    desk.pool.assign(id, vms[vm]).expect("it was reserved");
                    self.assigned.push((id, vm));
                }
            }
            Deed::Home(group, home) => drop(desk.pool.set_home(&groups[group], home)),
            Deed::Return(n) => {
                if let Some(n) = pick(n, self.assigned.len()) {
                    let (id, _) = self.assigned.swap_remove(n);
                    desk.pool.returned(id).expect("it was assigned");
                    self.leaving.push(id);
                }
            }
            Deed::End(vm) => {
                let mut ended = desk.pool.ended(vms[vm]).expect("told");
                let mut expected: Vec<BlockId> =
                    self.assigned.extract_if(.., |(_, of)| *of == vm).map(|(id, _)| id).collect();
                ended.sort();
                expected.sort();
                assert_eq!(ended, expected);
                self.leaving.extend(ended);
            }
            Deed::Remove(group) => self.leaving.extend(desk.pool.remove_group(&groups[group]).unwrap_or_default()),
            Deed::Add(group) => drop(desk.pool.add_group(desk.now, groups[group].clone(), limits())),
            Deed::Chore(verdict) if self.populating.is_none() => {
                match desk.pool.chore(desk.now, &verdict).expect("a chore") {
                    Chore::LetGo { id, .. } => self.leaving.push(id),
                    Chore::Stage { id, node, .. } => self.populating = Some((id, node)),
                    Chore::Rest => {}
                }
            }
            Deed::Chore(_) => self.leaving.drain(..).for_each(|id| desk.pool.released(id).expect("it was leaving")),
            Deed::Finish(whole) => {
                if let Some((id, node)) = self.populating.take() {
                    let shelved = match whole {
                        true => desk.pool.populated(desk.now, id, (), node, Duration::from_secs(1)).expect("it was"),
                        false => desk.pool.given_up(id).map(|()| false).expect("it was"),
                    };
                    if !shelved {
                        self.leaving.push(id);
                    }
                }
            }
            Deed::Budget(count) => {
                desk.pool.set_host_limits(HostLimits { budget: units(count), ..desk.pool.limits() })
            }
            Deed::Pass(seconds) => desk.pass(seconds),
        }
    }

    /// The books against what is known here.
    fn check(&self, desk: &Desk) {
        desk.pool.ledger().check().expect("balanced");
        let accounts = desk.host();
        let counts = [
            (accounts.populating.blocks, self.populating.iter().len()),
            (accounts.reserved.blocks, self.reserved.len()),
            (accounts.assigned.blocks, self.assigned.len()),
            (accounts.leaving.blocks, self.leaving.len()),
        ];
        for (told, known) in counts {
            assert_eq!(told, known as u64, "{accounts:?}");
        }
        let shelved: usize = desk.pool.groups.values().map(|group| group.waiting().count()).sum();
        assert_eq!(accounts.staged.blocks, shelved as u64, "what is staged is on a shelf");
        let staged = desk.pool.small_staged();
        let on_nodes: u64 = staged.nodes.values().map(|bytes| bytes.0).sum();
        assert!(staged.all == accounts.staged.bytes && on_nodes <= staged.all.0, "{staged:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_accounts_balance_after_every_step_of_any_life(deeds in proptest::collection::vec(deed(), 1..120)) {
        let (mut desk, mut world) = (Desk::new(), World::default());
        for deed in deeds {
            world.live(&mut desk, deed);
            world.check(&desk);
        }
    }
}
