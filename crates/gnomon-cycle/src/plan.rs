//! In which order lacking units are asked for.
//!
//! ```text
//!   prefetch (reactive, while due) ─► queue (ranked) ─► cursor (the rest, by address) ─► again (came back)
//! ```
//! Every unit that lacks something is on its way, in the queue, past the cursor, or in `again`: so everything is
//! asked for in the end, whatever a predictor says or leaves out.

use std::collections::VecDeque;

use gnomon_forecast::{BlockMap, Chance, Geometry, UnitIndex};
use gnomon_terms::{BlockIndex, Instant};

use crate::again::Again;
use crate::flights::Flights;

pub(crate) use crate::again::Rest;

/// Reactive forecasts kept at most: 1,024 units of 64 KiB are half a second of 1 Gbit/s; what is older is not worth
/// more than what is newer.
const PREFETCHES: usize = 1024;

/// The units that are still to be asked for.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    geometry: Geometry,
    prefetch: VecDeque<Chance>,
    queue: Vec<UnitIndex>,
    at: usize,
    cursor: BlockIndex,
    again: Again,
}

impl Plan {
    pub(crate) fn new(geometry: Geometry) -> Plan {
        let (prefetch, queue, again) = (VecDeque::new(), Vec::new(), Again::new(geometry.units()));
        Plan { geometry, prefetch, queue, at: 0, cursor: BlockIndex(0), again }
    }

    /// Starts over with a new ranking; what it leaves out follows by address.
    pub(crate) fn rerank(&mut self, queue: Vec<UnitIndex>) {
        (self.queue, self.at, self.cursor) = (queue, 0, BlockIndex(0));
        self.again.clear();
    }

    /// A vector to rank into.
    pub(crate) fn take_queue(&mut self) -> Vec<UnitIndex> {
        let mut queue = std::mem::take(&mut self.queue);
        queue.clear();
        queue
    }

    /// `unit` lacks something again and is asked for once more, after a rest.
    pub(crate) fn again(&mut self, unit: UnitIndex, now: Instant, rest: Rest) {
        self.again.add(unit, now, rest);
    }

    pub(crate) fn prefetch(&mut self, chance: Chance) {
        if self.prefetch.len() == PREFETCHES {
            self.prefetch.pop_front();
        }
        self.prefetch.push_back(chance);
    }

    /// How full the queue of reactive forecasts is, 0 to 1.
    pub(crate) fn backlog(&self) -> f32 {
        self.prefetch.len() as f32 / PREFETCHES as f32
    }

    /// The first `most` units of the background order that are still to be asked for.
    pub(crate) fn ahead(&self, lacking: &BlockMap, flights: &Flights, most: usize) -> Vec<UnitIndex> {
        let waiting = self.queue[self.at..].iter().copied();
        waiting.filter(|unit| wanted(self.geometry, *unit, lacking, flights)).take(most).collect()
    }

    /// The next reactive forecast that is still due and lacking; the same again until it is on its way.
    pub(crate) fn next_prefetch(&mut self, now: Instant, lacking: &BlockMap, flights: &Flights) -> Option<Chance> {
        while let Some(chance) = self.prefetch.front() {
            if chance.due >= now && wanted(self.geometry, chance.unit, lacking, flights) {
                return Some(*chance);
            }
            self.prefetch.pop_front();
        }
        None
    }

    /// `unit` is on its way: from here on it comes back only through [`Plan::again`].
    pub(crate) fn begun(&mut self, unit: UnitIndex) {
        if self.queue.get(self.at) == Some(&unit) {
            self.at += 1;
        }
        let extent = self.geometry.extent_of(unit);
        if extent.start <= self.cursor && self.cursor < extent.end() {
            self.cursor = extent.end();
        }
        self.again.begun(unit);
    }

    /// The next unit of the background order; asked again, the same, until it is on its way.
    pub(crate) fn next_background(
        &mut self,
        now: Instant,
        lacking: &BlockMap,
        flights: &Flights,
    ) -> Option<UnitIndex> {
        while let Some(unit) = self.queue.get(self.at).copied() {
            if wanted(self.geometry, unit, lacking, flights) {
                return Some(unit);
            }
            self.at += 1;
        }
        while let Some(block) = lacking.next_from(self.cursor) {
            let unit = UnitIndex((block.0 / u64::from(self.geometry.blocks_per_unit())) as u32);
            self.cursor = block;
            if !flights.over(unit) {
                return Some(unit);
            }
            self.cursor = self.geometry.extent_of(unit).end();
        }
        self.cursor = self.geometry.whole().end();
        self.again.next(now, |unit| wanted(self.geometry, unit, lacking, flights))
    }
}

/// True if `unit` lacks something and nothing is under way.
fn wanted(geometry: Geometry, unit: UnitIndex, lacking: &BlockMap, flights: &Flights) -> bool {
    !flights.over(unit) && lacking.contains_any(geometry.extent_of(unit))
}
