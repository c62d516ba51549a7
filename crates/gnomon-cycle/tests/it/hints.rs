//! `hints_only`: whatever is forecast, the same data is there in the end.

use gnomon_cycle::{Cycle, CycleConfig, Forecast, PREDICTORS, turn};
use gnomon_forecast::sequence::{About, Cell, Knowledge, Model, Network, Recording, Shape, Vocabulary};
use gnomon_forecast::{BlockMap, Chance, Predictor, UnitIndex};
use gnomon_terms::{Access, BlockCount, Bytes, Extent, Instant, Move, Op};
use proptest::prelude::*;
use std::time::Duration;

use crate::plane::{RESOURCE, SHADOW, TestPlane};

const BLOCKS: u64 = 500;

/// Names units that do not exist, the same ones over and over, and is sure of everything.
struct HostilePredictor(u32);

impl Predictor for HostilePredictor {
    fn name(&self) -> &'static str {
        "hostile"
    }
    fn observe(&mut self, _: &Access) {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
    }
    fn rank(&mut self, _: Instant, _: &BlockMap, out: &mut Vec<UnitIndex>) {
        out.extend([u32::MAX, 3, 3, self.0, 3, u32::MAX - 1].map(UnitIndex));
    }
    fn react(&mut self, access: &Access, out: &mut Vec<Chance>) {
        let due = access.at.after(Duration::MAX);
        for unit in [self.0, self.0 % 40, u32::MAX] {
            out.push(Chance { unit: UnitIndex(unit), probability: f32::INFINITY, due });
        }
        out.push(Chance { unit: UnitIndex(1), probability: f32::NAN, due });
    }
    fn probability(&self, _: Instant, _: UnitIndex) -> f32 {
        f32::NAN
    }
}

/// Networks that are sure of nonsense and that are no numbers, and boots that never were.
fn hostile_knowledge() -> [Knowledge; 2] {
    let shape = Shape { cell: Cell::Lstm, tokens: 4, hidden: 2 };
    let vocabulary = || Vocabulary::new(vec![1, i32::MIN, i32::MAX]).unwrap();
    let recordings = || vec![Recording::of(&[0, u32::MAX, 3, 3, 31, 500].map(UnitIndex)); 9];
    [f32::NAN, 1e30].map(|value| {
        let network = Network::of(shape, vec![value; shape.weights()]).unwrap();
        let model = Model { network, vocabulary: vocabulary(), blocks_per_unit: 16, about: About::default() };
        Knowledge { model: Some(model), recordings: recordings(), learns: true, ..Knowledge::default() }
    })
}

/// What a guest does, in the order it does it.
type Story = Vec<(u8, u64, u64)>;

/// Tells `story` with the switch in its middle and carries on until the shadow is whole. The shadow's data and the
/// moves.
fn tell(story: &Story, forecast: Forecast, budget: Option<Bytes>) -> (Vec<Option<u32>>, Vec<Move>) {
    let mut config = CycleConfig::new(RESOURCE, BlockMap::full(BlockCount(BLOCKS)));
    config.forecast = forecast;
    let mut cycle = Cycle::new(config).unwrap();
    let mut plane = TestPlane::new(BLOCKS as usize);
    plane.fail_each = 5;
    cycle.begin_shadow(SHADOW, BlockMap::full(BlockCount(BLOCKS))).unwrap();
    cycle.set_window(Bytes(256 << 10));
    cycle.set_space_budget(budget);
    let mut events = Vec::new();
    let mut now = Instant::ORIGIN;
    for (nth, (op, start, len)) in story.iter().enumerate() {
        now = now.after(Duration::from_millis(700));
        if nth == story.len() / 2 {
            turn(&mut cycle, &mut plane, now, &mut events);
            plane.switched = true;
            cycle.switched(now);
        }
        let op = [Op::Read, Op::Write, Op::Discard][usize::from(*op)];
        plane.guest(now, op, Extent::new(*start, (*len).min(BLOCKS - start)));
        turn(&mut cycle, &mut plane, now, &mut events);
        plane.carry(2);
    }
    if !plane.switched {
        plane.switched = true;
        cycle.switched(now);
    }
    for _ in 0..10_000 {
        if cycle.is_whole() && plane.flying() == 0 {
            break;
        }
        now = now.after(Duration::from_millis(50));
        turn(&mut cycle, &mut plane, now, &mut events);
        plane.carry(usize::MAX);
    }
    turn(&mut cycle, &mut plane, now, &mut events);
    assert!(cycle.is_whole(), "{} blocks are still lacking", cycle.lacking().0);
    (plane.shadow, plane.begun)
}

fn stories() -> impl Strategy<Value = Story> {
    prop::collection::vec((0u8..3, 0..BLOCKS, 1u64..80), 0..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn every_predictor_ends_with_the_same_data(story in stories(), budget in prop::option::of(0u64..3_000_000)) {
        let expected = tell(&story, Forecast::Named("sequential"), None).0;
        prop_assert!(expected.iter().all(Option::is_some));
        for name in PREDICTORS {
            let data = tell(&story, Forecast::Named(name), budget.map(Bytes)).0;
            prop_assert_eq!(&data, &expected, "{}", name);
        }
        let hostile = Box::new(HostilePredictor(1));
        let data = tell(&story, Forecast::Given(hostile), budget.map(Bytes)).0;
        prop_assert_eq!(&data, &expected);
        for knowledge in hostile_knowledge() {
            let data = tell(&story, Forecast::Knowing(Box::new(knowledge)), budget.map(Bytes)).0;
            prop_assert_eq!(&data, &expected);
        }
    }

    #[test]
    fn same_events_in_same_moves_out(story in stories()) {
        let moves = || tell(&story, Forecast::Blend, Some(Bytes(1 << 20))).1;
        prop_assert_eq!(moves(), moves());
    }
}
