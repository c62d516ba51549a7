//! The inventory of one shadow: what it lacks, what is on its way, what has changed.

use gnomon_forecast::{BlockMap, Geometry, UnitIndex};
use gnomon_terms::{BlockCount, Extent, Place};

use crate::flights::Flights;
use crate::plan::Plan;
use crate::spare::Spares;

/// One shadow of the resource.
#[derive(Clone, Debug)]
pub(crate) struct Shadow {
    pub(crate) place: Place,
    pub(crate) geometry: Geometry,
    /// Allocated blocks that are not valid at the place.
    pub(crate) lacking: BlockMap,
    /// The guest runs at the place.
    pub(crate) switched: bool,
    pub(crate) flights: Flights,
    pub(crate) plan: Plan,
    pub(crate) spares: Spares,
    /// Units (not blocks) that a move brought and no read has found yet.
    unread: BlockMap,
    /// Units (not blocks) whose coverage changed since last asked.
    changed: BlockMap,
}

impl Shadow {
    pub(crate) fn new(place: Place, geometry: Geometry, lacking: BlockMap, flights: Flights) -> Shadow {
        let units = BlockCount(u64::from(geometry.units()));
        Shadow {
            place,
            geometry,
            lacking,
            switched: false,
            flights,
            plan: Plan::new(geometry),
            spares: Spares::default(),
            unread: BlockMap::empty(units),
            changed: BlockMap::full(units),
        }
    }

    /// `extent` is valid at the place.
    pub(crate) fn cover(&mut self, extent: Extent) {
        if self.lacking.remove(extent).0 > 0 {
            self.mark_changed(extent);
        }
    }

    /// `extent` is not valid at the place; the units that lacked nothing before, and the blocks that were valid.
    pub(crate) fn uncover(&mut self, extent: Extent) -> (Vec<UnitIndex>, BlockCount) {
        let units = self.geometry.units_of(extent);
        let whole = units.filter(|unit| !self.lacking.contains_any(self.geometry.extent_of(*unit))).collect();
        let lost = self.lacking.insert(extent);
        if lost.0 > 0 {
            self.mark_changed(extent);
        }
        (whole, lost)
    }

    /// A move brought the unit.
    pub(crate) fn brought(&mut self, unit: UnitIndex) {
        self.unread.insert(one(unit));
    }

    /// The unit was read or lost; true if a move had brought it and no read had found it.
    pub(crate) fn take_unread(&mut self, unit: UnitIndex) -> bool {
        self.unread.remove(one(unit)).0 > 0
    }

    /// The next unit that changed since it was last taken.
    pub(crate) fn take_changed(&mut self) -> Option<UnitIndex> {
        let unit = UnitIndex(self.changed.next_from(gnomon_terms::BlockIndex(0))?.0 as u32);
        self.changed.remove(one(unit));
        Some(unit)
    }

    fn mark_changed(&mut self, extent: Extent) {
        self.geometry.units_of(extent).for_each(|unit| {
            self.changed.insert(one(unit));
        });
    }
}

/// A unit as an element of a map of units.
fn one(unit: UnitIndex) -> Extent {
    Extent::new(u64::from(unit.0), 1)
}
