//! Neighbourhoods: 64 units each, which of them are allocated and which were ever touched.
//!
//! Units that were never touched have no past, but they have neighbours: where much was touched, more will be.
//! Two bits a unit.

use crate::{BlockMap, Geometry, UnitIndex};

/// Units in a region: one machine word of bits; 4 MiB at 64 KiB a unit.
pub const UNITS_PER_REGION: u32 = 64;

/// What is known of one region.
#[derive(Clone, Copy, Debug, Default)]
pub struct Region {
    allocated: u64,
    touched: u64,
}

impl Region {
    /// Units ever touched.
    pub fn touched(self) -> u8 {
        self.touched.count_ones() as u8
    }

    /// Units that are allocated and were never touched.
    pub fn untouched(self) -> u8 {
        (self.allocated & !self.touched).count_ones() as u8
    }

    /// Units that are allocated or were touched.
    pub fn allocated(self) -> u8 {
        self.allocated.count_ones() as u8
    }
}

/// The regions of one resource.
#[derive(Clone, Debug)]
pub struct Regions(Vec<Region>);

impl Regions {
    /// Marks the units that hold any allocated block.
    pub fn new(geometry: Geometry, allocated: &BlockMap) -> Regions {
        let mut regions = Regions(vec![Region::default(); geometry.units().div_ceil(UNITS_PER_REGION) as usize]);
        for unit in crate::lacking_units(geometry, allocated) {
            let (region, bit) = place(unit);
            regions.0[region].allocated |= bit;
        }
        regions
    }

    /// Notes that `unit`, which is one of the resource's, was touched; it is allocated from then on.
    pub fn touch(&mut self, unit: UnitIndex) {
        let (region, bit) = place(unit);
        self.0[region].allocated |= bit;
        self.0[region].touched |= bit;
    }

    /// Every touched unit, in address order. Costs O(regions) and what is touched.
    pub fn touched_units(&self) -> impl Iterator<Item = UnitIndex> {
        self.0.iter().enumerate().filter(|(_, region)| region.touched != 0).flat_map(|(number, region)| {
            let bits = (0..UNITS_PER_REGION).filter(|bit| region.touched >> bit & 1 == 1);
            bits.map(move |bit| UnitIndex(number as u32 * UNITS_PER_REGION + bit))
        })
    }

    /// Bytes of memory.
    pub fn bytes(&self) -> usize {
        self.0.len() * size_of::<Region>()
    }

    /// The regions in address order.
    pub fn as_slice(&self) -> &[Region] {
        &self.0
    }
}

/// Number of the region that holds `unit`.
pub fn region_of(unit: UnitIndex) -> usize {
    (unit.0 / UNITS_PER_REGION) as usize
}

fn place(unit: UnitIndex) -> (usize, u64) {
    (region_of(unit), 1 << (unit.0 % UNITS_PER_REGION))
}

#[cfg(test)]
mod tests {
    use super::*;
    use gnomon_terms::{BlockCount, Extent};

    #[test]
    fn a_region_knows_its_units() {
        let geometry = Geometry::new(BlockCount(16 * 70), 16).unwrap();
        let mut allocated = BlockMap::empty(geometry.blocks());
        allocated.insert(Extent::new(16 * 62 + 3, 40));
        let mut regions = Regions::new(geometry, &allocated);
        regions.touch(UnitIndex(63));
        regions.touch(UnitIndex(5));
        let seen: Vec<_> = regions.as_slice().iter().map(|r| (r.allocated(), r.touched(), r.untouched())).collect();
        assert_eq!(seen, [(3, 2, 1), (1, 0, 1)]);
        assert_eq!(regions.touched_units().collect::<Vec<_>>(), [UnitIndex(5), UnitIndex(63)]);
    }
}
