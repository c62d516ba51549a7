//! A new predictor in thirty lines: it expects that a read goes on where the one before it went on to.
//!
//! `cargo run -p gnomon-forecast --example new_predictor`. docs/forecasting.md says how one is tried on recordings and
//! joins the blend.

use gnomon_forecast::{
    Geometry, UnitIndex,
    sequence::{Foreseen, SequenceExpert, SequencePredictor},
};
use gnomon_terms::{Access, BlockCount, Bytes, Extent, Instant, Op, ResourceId};

/// Expects the last step once more.
#[derive(Debug, Default)]
struct AgainExpert {
    last: Option<UnitIndex>,
    step: i64,
}

impl SequenceExpert for AgainExpert {
    fn name(&self) -> &'static str {
        "again"
    }

    fn read(&mut self, _: Instant, unit: UnitIndex) {
        let from = self.last.replace(unit).unwrap_or(unit);
        self.step = i64::from(unit.0) - i64::from(from.0);
    }

    fn foresee(&mut self, out: &mut Vec<Foreseen>) {
        let next = self.last.and_then(|unit| u32::try_from(i64::from(unit.0) + self.step).ok());
        out.extend(next.map(|unit| Foreseen { unit: UnitIndex(unit), sureness: 0.5 }));
    }

    fn bytes(&self) -> Bytes {
        Bytes(size_of::<AgainExpert>() as u64)
    }
}

fn main() {
    use gnomon_forecast::Predictor;
    let geometry = Geometry::new(BlockCount(1 << 20), 16).expect("a volume of 4 GiB");
    let mut predictor = SequencePredictor::new(geometry, Box::<AgainExpert>::default());
    let mut chances = Vec::new();
    for nth in 0..3 {
        let extent = Extent::new(nth * 160, 16);
        let access = Access { at: Instant::from_micros(nth), resource: ResourceId(0), extent, op: Op::Read };
        predictor.observe(&access);
        chances.clear();
        predictor.react(&access, &mut chances);
    }
    println!("after units 0, 10 and 20 it expects {:?}", chances[0].unit);
}
