//! How a resource is cut: blocks of 4 KiB, units of some blocks.
//!
//! A *unit* is what is carried at once and what forecasts speak of; a *block* is the grain of validity. The unit
//! size is as strong a lever as the predictor (64 KiB against 4 KiB halves the stalled reads of a database guest),
//! so it is a setting; validity below the unit keeps small writes from ever needing a remote read.

use gnomon_terms::{BlockCount, Bytes, Extent};

/// Which unit of a resource, counted from 0. 32 bits: at 64 KiB a unit, resources up to 256 TiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UnitIndex(pub u32);

/// Blocks in a unit unless told otherwise: 16 × 4 KiB = 64 KiB.
pub const DEFAULT_BLOCKS_PER_UNIT: u32 = 16;

/// Largest number of blocks in a unit: 256 × 4 KiB = 1 MiB. A larger unit would hold a link for so long that a
/// demand behind it is felt.
pub const MAX_BLOCKS_PER_UNIT: u32 = 256;

/// The size of a resource in blocks and of a unit in blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    blocks: u64,
    per_unit: u32,
}

/// Why a resource cannot be cut as asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GeometryError {
    /// Units must be between one block and 1 MiB.
    #[error("a unit of {0} blocks is not possible: choose 1 to {MAX_BLOCKS_PER_UNIT} blocks of 4 KiB")]
    UnitSize(u32),
    /// More units than 32 bits can count.
    #[error("{blocks} blocks in units of {per_unit} are more units than can be counted: choose larger units")]
    TooLarge {
        /// Blocks of the resource.
        blocks: u64,
        /// Blocks in a unit.
        per_unit: u32,
    },
}

impl GeometryError {
    /// Both mean: not as asked.
    pub fn kind(&self) -> gnomon_terms::ErrorKind {
        gnomon_terms::ErrorKind::Refused
    }
}

impl Geometry {
    /// A resource of `size` blocks, cut into units of `per_unit` blocks (1 to 256); the last may be short.
    pub fn new(size: BlockCount, per_unit: u32) -> Result<Geometry, GeometryError> {
        if per_unit == 0 || per_unit > MAX_BLOCKS_PER_UNIT {
            return Err(GeometryError::UnitSize(per_unit));
        }
        if size.0.div_ceil(u64::from(per_unit)) >= u64::from(u32::MAX) {
            return Err(GeometryError::TooLarge { blocks: size.0, per_unit });
        }
        Ok(Geometry { blocks: size.0, per_unit })
    }

    /// Blocks of the resource.
    pub fn blocks(self) -> BlockCount {
        BlockCount(self.blocks)
    }

    /// Blocks in a unit.
    pub fn blocks_per_unit(self) -> u32 {
        self.per_unit
    }

    /// Bytes of a whole unit.
    pub fn unit_bytes(self) -> Bytes {
        BlockCount(u64::from(self.per_unit)).bytes()
    }

    /// Number of units.
    pub fn units(self) -> u32 {
        self.blocks.div_ceil(u64::from(self.per_unit)) as u32
    }

    /// The whole resource.
    pub fn whole(self) -> Extent {
        Extent::new(0, self.blocks)
    }

    /// The blocks of `unit`; empty past the end.
    pub fn extent_of(self, unit: UnitIndex) -> Extent {
        let start = (u64::from(unit.0) * u64::from(self.per_unit)).min(self.blocks);
        Extent::new(start, u64::from(self.per_unit).min(self.blocks - start))
    }

    /// `extent` without what lies past the end of the resource. Safe for any extent.
    pub fn clip(self, extent: Extent) -> Extent {
        let start = extent.start.0.min(self.blocks);
        Extent::new(start, extent.len.0.min(self.blocks - start))
    }

    /// The units that hold any block of `extent`, in order; none for an empty extent.
    pub fn units_of(self, extent: Extent) -> impl Iterator<Item = UnitIndex> + use<> {
        let extent = self.clip(extent);
        let per = u64::from(self.per_unit);
        let first = extent.start.0 / per;
        let end = if extent.is_empty() { first } else { extent.end().0.div_ceil(per) };
        (first as u32..end as u32).map(UnitIndex)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_cover_the_resource_once() {
        let geometry = Geometry::new(BlockCount(35), 16).unwrap();
        assert_eq!(geometry.units(), 3);
        let extents: Vec<_> = (0..4).map(|u| geometry.extent_of(UnitIndex(u))).collect();
        let expected = [Extent::new(0, 16), Extent::new(16, 16), Extent::new(32, 3), Extent::new(35, 0)];
        assert_eq!(extents, expected);
    }

    #[test]
    fn an_extent_names_the_units_it_touches() {
        let geometry = Geometry::new(BlockCount(64), 16).unwrap();
        let units = |start, len| geometry.units_of(Extent::new(start, len)).map(|u| u.0).collect::<Vec<_>>();
        assert_eq!(units(15, 2), [0, 1]);
        assert_eq!(units(16, 16), [1]);
        assert_eq!(units(5, 0), [0; 0]);
        assert_eq!(units(60, u64::MAX), [3]);
        assert_eq!(units(u64::MAX, 1), [0; 0]);
    }

    #[test]
    fn impossible_cuts_are_refused() {
        assert_eq!(Geometry::new(BlockCount(1), 0), Err(GeometryError::UnitSize(0)));
        assert_eq!(Geometry::new(BlockCount(1), 257), Err(GeometryError::UnitSize(257)));
        let huge = Geometry::new(BlockCount(u64::MAX), 16);
        assert_eq!(huge, Err(GeometryError::TooLarge { blocks: u64::MAX, per_unit: 16 }));
    }
}
