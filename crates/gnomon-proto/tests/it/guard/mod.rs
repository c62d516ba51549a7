//! Two guards and a store, walked exhaustively: whatever is cut, killed, delayed or skewed, and in whatever order. And three
//! of them, in shorter lives.

mod world;

use gnomon_proto::guard::GuardState;
use gnomon_terms::Epoch;
use stateright::{Checker, HasDiscoveries, Model, Property};
use world::{Acknowledges, Happening, SURE, Setting, TTL, World};

impl Model for Setting {
    type State = World;
    type Action = Happening;

    fn init_states(&self) -> Vec<World> {
        self.beginnings()
    }

    fn actions(&self, world: &World, happenings: &mut Vec<Happening>) {
        happenings.extend(self.happenings(world));
    }

    fn next_state(&self, world: &World, happening: Happening) -> Option<World> {
        self.after(world, happening)
    }

    fn properties(&self) -> Vec<Property<Setting>> {
        vec![
            Property::always(ONE_RUNS, |_, world: &World| !both_run(world)),
            Property::always(ONE_TAKES_OVER, |_, world: &World| !world.twice),
            Property::sometimes("the second shadow took over", |setting: &Setting, world: &World| {
                world.nodes[2].running || setting.shadows < 2
            }),
            Property::always(NOTHING_IS_LOST, |_, world: &World| !(world.acknowledged && world.nodes[1].running)),
            Property::sometimes("what the heir lacks was acknowledged", |setting: &Setting, world: &World| {
                world.acknowledged || setting.acknowledges == Acknowledges::Never
            }),
            Property::sometimes("the shadow took over", |_, world: &World| world.nodes[1].running),
            Property::sometimes("the primary holds and stands", |_, world: &World| {
                is_holding(world, 0) && !world.nodes[0].running
            }),
            Property::sometimes("the primary claimed anew", |_, world: &World| {
                world.nodes[0].running && world.store.term.is_some_and(|term| term.epoch > Epoch(1))
            }),
            Property::sometimes("the primary learned that it was superseded", |_, world: &World| {
                matches!(world.nodes[0].state(), Some(GuardState::Superseded { .. }))
            }),
        ]
    }
}

const ONE_RUNS: &str = "one runs the guest, or none";

const ONE_TAKES_OVER: &str = "one shadow takes over, or none, whatever becomes of it";

const NOTHING_IS_LOST: &str = "whoever runs the guest has all that was acknowledged";

fn both_run(world: &World) -> bool {
    world.nodes.iter().filter(|node| node.running).count() > 1
}

fn is_holding(world: &World, node: usize) -> bool {
    matches!(world.nodes[node].state(), Some(GuardState::Holding { .. }))
}

/// A lease lives for two steps: long enough for a primary to lose its own, a shadow to take over and lose it in turn,
/// and somebody to come back.
const STRICT: Setting = Setting {
    shadows: 1,
    heirs_end: true,
    strict: true,
    sure: SURE,
    from_before: true,
    steps: 6,
    crashes: 0,
    remembers: false,
    seizes: false,
    acknowledges: Acknowledges::Never,
};

/// The same, with a primary that goes on without its heir.
const WITHOUT_HEIR: Setting = Setting { steps: 5, acknowledges: Acknowledges::AfterTheAnswer, ..STRICT };

#[test]
fn in_strict_mode_one_node_runs_the_guest_or_none_and_nothing_is_lost() {
    let killed = Setting { crashes: 1, ..WITHOUT_HEIR };
    // What is lost then, the administrator has answered for; that one runs, he cannot answer for.
    let seized = Setting { seizes: true, remembers: true, acknowledges: Acknowledges::Never, ..killed };
    for setting in [STRICT, killed, Setting { remembers: true, ..killed }, seized] {
        let checked = setting.checker().threads(2).spawn_bfs().join();
        checked.assert_properties();
        assert!(checked.unique_state_count() > 100_000, "{} states are no walk", checked.unique_state_count());
    }
}

/// Two heirs race for the term; one of them is struck off, and lacks what the other has.
#[test]
fn of_two_heirs_one_takes_over_or_none_and_nothing_is_lost() {
    let two = Setting { shadows: 2, steps: 4, ..WITHOUT_HEIR };
    let checked = two.checker().threads(2).spawn_bfs().join();
    checked.assert_properties();
    assert!(checked.unique_state_count() > 100_000, "{} states are no walk", checked.unique_state_count());
}

/// The walk finds what a little less care would cost; else it would prove nothing.
#[test]
fn less_care_lets_two_run_or_loses_work() {
    let hasty = Setting { acknowledges: Acknowledges::AfterTheRequest, ..WITHOUT_HEIR };
    let careless = [
        ("relaxed", ONE_RUNS, Setting { strict: false, ..STRICT }),
        ("trusts the whole lease by its own clock", ONE_RUNS, Setting { sure: TTL, ..STRICT }),
        ("counts from the answer", ONE_RUNS, Setting { from_before: false, ..STRICT }),
        ("does not wait until its heir is struck off", NOTHING_IS_LOST, hasty),
        (
            "heirs stay when another one takes over",
            ONE_TAKES_OVER,
            Setting { shadows: 2, heirs_end: false, steps: 5, ..STRICT },
        ),
    ];
    for (what, broken, setting) in careless {
        let checked = setting.checker().threads(2).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
        let found = checked.discovery(broken);
        assert!(found.is_some(), "{what}: nothing was found in {} states", checked.unique_state_count());
    }
}
