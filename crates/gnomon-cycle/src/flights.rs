//! Moves that were asked for and have not ended.

use std::collections::HashMap;

use gnomon_forecast::UnitIndex;
use gnomon_terms::{Bytes, Extent, MoveId, Priority, Verb};

/// One move on its way.
#[derive(Clone, Debug)]
pub(crate) struct Flight {
    pub(crate) unit: UnitIndex,
    pub(crate) extent: Extent,
    pub(crate) verb: Verb,
    pub(crate) priority: Priority,
    /// What the original was changed in since: these blocks are not believed when the move ends.
    spoiled: Vec<Extent>,
}

impl Flight {
    pub(crate) fn new(unit: UnitIndex, extent: Extent, verb: Verb, priority: Priority) -> Flight {
        Flight { unit, extent, verb, priority, spoiled: Vec::new() }
    }

    /// The parts of the extent that are believed.
    pub(crate) fn sound(mut self) -> Vec<Extent> {
        self.spoiled.sort_unstable();
        let mut sound = Vec::new();
        let mut from = self.extent.start.0;
        for spoiled in self.spoiled {
            if spoiled.start.0 > from {
                sound.push(Extent::new(from, spoiled.start.0 - from));
            }
            from = from.max(spoiled.end().0);
        }
        let end = self.extent.end().0;
        if from < end {
            sound.push(Extent::new(from, end - from));
        }
        sound
    }
}

/// All moves on their way; at most one for each unit.
#[derive(Clone, Debug, Default)]
pub(crate) struct Flights {
    by_id: HashMap<MoveId, Flight>,
    units: HashMap<UnitIndex, MoveId>,
    copying: u64,
    dropping: u64,
    next: u64,
}

impl Flights {
    pub(crate) fn over(&self, unit: UnitIndex) -> bool {
        self.units.contains_key(&unit)
    }

    /// Bytes of copies on their way. Drops carry nothing.
    pub(crate) fn copying(&self) -> Bytes {
        Bytes(self.copying)
    }

    /// Bytes of copies that are being given up.
    pub(crate) fn dropping(&self) -> Bytes {
        Bytes(self.dropping)
    }

    fn sum(&mut self, verb: Verb) -> &mut u64 {
        match verb {
            Verb::Copy => &mut self.copying,
            Verb::Drop => &mut self.dropping,
        }
    }

    pub(crate) fn begin(&mut self, flight: Flight) -> MoveId {
        let id = MoveId(self.next);
        self.next += 1;
        *self.sum(flight.verb) += flight.extent.bytes().0;
        self.units.insert(flight.unit, id);
        self.by_id.insert(id, flight);
        id
    }

    pub(crate) fn end(&mut self, id: MoveId) -> Option<Flight> {
        let flight = self.by_id.remove(&id)?;
        self.units.remove(&flight.unit);
        *self.sum(flight.verb) -= flight.extent.bytes().0;
        Some(flight)
    }

    /// The original of `extent`, within `unit`, has changed: what is on its way there may be old.
    pub(crate) fn spoil(&mut self, unit: UnitIndex, extent: Extent) {
        let Some(flight) = self.units.get(&unit).and_then(|id| self.by_id.get_mut(id)) else { return };
        let extent = flight.extent.overlap(extent);
        if !extent.is_empty() && !flight.spoiled.contains(&extent) {
            flight.spoiled.push(extent);
        }
    }

    /// Forgets all moves; ids are not used again, so late outcomes find nothing.
    pub(crate) fn clear(&mut self) {
        *self = Flights { next: self.next, ..Flights::default() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_meanwhile_is_not_believed() {
        let mut flights = Flights::default();
        let unit = UnitIndex(1);
        let id = flights.begin(Flight::new(unit, Extent::new(16, 16), Verb::Copy, Priority::Background));
        assert_eq!((flights.copying(), flights.over(unit)), (Bytes(65536), true));
        for extent in [Extent::new(20, 2), Extent::new(10, 8), Extent::new(21, 3), Extent::new(40, 1)] {
            flights.spoil(unit, extent);
        }
        let sound = flights.end(id).unwrap().sound();
        assert_eq!(sound, [Extent::new(18, 2), Extent::new(24, 8)]);
        assert!(flights.end(id).is_none());
        assert_eq!((flights.copying(), flights.over(unit)), (Bytes(0), false));
    }
}
