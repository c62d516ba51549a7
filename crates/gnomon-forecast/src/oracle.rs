//! The oracle: given the future, it ranks by it. Nothing can beat it, so it is the other end of every scale.

use std::collections::HashSet;

use gnomon_terms::{Access, Instant, Op};

use crate::{BlockMap, Geometry, Predictor, UnitIndex};

/// Knows which units will be read next, and in which order.
#[derive(Clone, Debug)]
pub struct OraclePredictor {
    order: Vec<UnitIndex>,
}

impl OraclePredictor {
    /// Reads the order off `future`: units by the first read that needs a block of them which was not overwritten
    /// before. Units that are never read, or are overwritten first, are left out.
    pub fn new<'a>(geometry: Geometry, future: impl IntoIterator<Item = &'a Access>) -> OraclePredictor {
        let mut written = BlockMap::empty(geometry.blocks());
        let mut named = HashSet::new();
        let mut order = Vec::new();
        for access in future {
            if access.op != Op::Read {
                written.insert(access.extent);
                continue;
            }
            for unit in geometry.units_of(access.extent) {
                let needed = access.extent.overlap(geometry.extent_of(unit));
                if !written.contains_all(needed) && named.insert(unit) {
                    order.push(unit);
                }
            }
        }
        OraclePredictor { order }
    }
}

impl Predictor for OraclePredictor {
    fn name(&self) -> &'static str {
        "oracle"
    }
    fn observe(&mut self, _: &Access) {}
    fn rank(&mut self, _: Instant, _: &BlockMap, out: &mut Vec<UnitIndex>) {
        out.extend_from_slice(&self.order);
    }
    fn probability(&self, _: Instant, unit: UnitIndex) -> f32 {
        if self.order.contains(&unit) { 1.0 } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gnomon_terms::{BlockCount, Extent, ResourceId};

    #[test]
    fn the_order_is_that_of_the_first_needed_read() {
        let geometry = Geometry::new(BlockCount(64), 16).unwrap();
        let story = [(48, 1, Op::Read), (0, 16, Op::Write), (3, 2, Op::Read), (20, 1, Op::Write), (20, 2, Op::Read)];
        let future = story.map(|(start, len, op)| Access {
            at: Instant::ORIGIN,
            resource: ResourceId(1),
            extent: Extent::new(start, len),
            op,
        });
        let mut out = Vec::new();
        let lacking = BlockMap::full(BlockCount(64));
        OraclePredictor::new(geometry, &future).rank(Instant::ORIGIN, &lacking, &mut out);
        assert_eq!(out, [UnitIndex(3), UnitIndex(1)]);
    }
}
