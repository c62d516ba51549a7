//! What is remembered of each unit that was ever touched.
//!
//! One table of units (4 bytes a unit of the resource) points into a compact arena of [`Past`] records (20 bytes a
//! touched unit, and at most an eighth in reserve). With the regions, the windows and the loop's own maps a tracked
//! unit costs less than 32 bytes; a test of the ensemble adds it up.
//!
//! Time is kept in ticks of 2^24 ns (16.8 ms), counted from 1 so that 0 means "never": 32 bits last 2.28 years,
//! after which all times are equal and forecasts go by counts alone.

use std::time::Duration;

use gnomon_terms::{Access, Instant, Op};

use crate::{Geometry, UnitIndex};

/// Nanoseconds in a tick, as a power of two: 16.8 ms is finer than any wait between two bursts.
const TICK_SHIFT: u32 = 24;

/// Ticks in one second.
pub const TICKS_PER_SECOND: f32 = 1e9 / (1u64 << TICK_SHIFT) as f32;

/// A point in time, coarsely; 0 is never.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tick(pub u32);

impl Tick {
    /// The tick that holds `at`, at least 1.
    pub fn at(at: Instant) -> Tick {
        Tick(u32::try_from(at.as_nanos() >> TICK_SHIFT).unwrap_or(u32::MAX - 1).min(u32::MAX - 1) + 1)
    }

    /// Ticks since `earlier`; zero when it is not earlier.
    pub fn since(self, earlier: Tick) -> u32 {
        self.0.saturating_sub(earlier.0)
    }

    /// The same as a time.
    pub fn after(self, earlier: Tick) -> Duration {
        Duration::from_nanos(u64::from(self.since(earlier)) << TICK_SHIFT)
    }
}

/// What was seen of one unit. Times in ticks.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Past {
    /// The last read; never, if none.
    pub last_read: Tick,
    /// The last write or discard; never, if none.
    pub last_write: Tick,
    /// Mean ticks between two reads; 0 while fewer than two reads were seen.
    pub interval: f32,
    /// Reads, each worth half after ten minutes, as of the last read.
    pub heat: f32,
    /// Reads, saturating.
    pub reads: u16,
    /// Writes and discards, saturating.
    pub writes: u16,
}

/// Seconds after which a read counts half in [`Past::heat`]: ten minutes, the scale of a working set of a guest.
pub const HEAT_HALF_LIFE_S: f32 = 600.0;

impl Past {
    /// The last touch of any kind.
    pub fn last_touch(&self) -> Tick {
        self.last_read.max(self.last_write)
    }

    /// [`Past::heat`] as of `now`.
    pub fn heat_at(&self, now: Tick) -> f32 {
        self.heat * (-(now.since(self.last_read) as f32) / (HEAT_HALF_LIFE_S * TICKS_PER_SECOND)).exp2()
    }

    /// Notes a touch.
    fn note(&mut self, now: Tick, op: Op) {
        match op {
            Op::Read => self.note_read(now),
            Op::Write | Op::Discard => {
                self.writes = self.writes.saturating_add(1);
                self.last_write = now;
            }
        }
    }

    /// Notes a read: the mean interval is exact for the first 8 reads and then moves by an eighth, so that a change
    /// of habit shows within a few reads.
    fn note_read(&mut self, now: Tick) {
        let wait = now.since(self.last_read) as f32;
        self.heat = if self.reads == 0 { 1.0 } else { self.heat_at(now) + 1.0 };
        if self.reads > 0 {
            self.interval += (wait - self.interval) / f32::from(self.reads.min(8));
        }
        self.reads = self.reads.saturating_add(1);
        self.last_read = now;
    }
}

/// The past of every unit of one resource.
#[derive(Clone, Debug)]
pub struct History {
    geometry: Geometry,
    /// Slot in `pasts` plus one; 0 for a unit never touched.
    slots: Vec<u32>,
    pasts: Vec<Past>,
}

impl History {
    /// Nothing seen yet.
    pub fn new(geometry: Geometry) -> History {
        History { geometry, slots: vec![0; geometry.units() as usize], pasts: Vec::new() }
    }

    /// How the resource is cut.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The past of `unit`, if it was ever touched.
    pub fn past(&self, unit: UnitIndex) -> Option<&Past> {
        match self.slots.get(unit.0 as usize) {
            None | Some(0) => None,
            Some(slot) => Some(&self.pasts[*slot as usize - 1]),
        }
    }

    /// Notes `access` in every unit it touches.
    pub fn observe(&mut self, access: &Access) {
        let now = Tick::at(access.at);
        for unit in self.geometry.units_of(access.extent) {
            self.note(unit, now, access.op);
        }
    }

    /// Notes one touch of one unit and says what was known of it before.
    pub fn note(&mut self, unit: UnitIndex, now: Tick, op: Op) -> Option<Past> {
        let slot = self.slots.get_mut(unit.0 as usize)?;
        let before = (*slot != 0).then(|| self.pasts[*slot as usize - 1]);
        if before.is_none() {
            if self.pasts.len() == self.pasts.capacity() {
                // By an eighth instead of by double: the arena is most of what a tracked unit costs.
                self.pasts.reserve_exact(self.pasts.len() / 8 + 64);
            }
            self.pasts.push(Past::default());
            *slot = self.pasts.len() as u32;
        }
        self.pasts[*slot as usize - 1].note(now, op);
        before
    }

    /// How many units were ever touched.
    pub fn tracked(&self) -> usize {
        self.pasts.len()
    }

    /// Bytes of memory.
    pub fn bytes(&self) -> usize {
        self.slots.len() * size_of::<u32>() + self.pasts.capacity() * size_of::<Past>()
    }

    /// Every touched unit with its past, in address order.
    pub fn iter(&self) -> impl Iterator<Item = (UnitIndex, &Past)> {
        let touched = self.slots.iter().enumerate().filter(|(_, slot)| **slot != 0);
        touched.map(|(unit, slot)| (UnitIndex(unit as u32), &self.pasts[*slot as usize - 1]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gnomon_terms::{BlockCount, Extent, ResourceId};

    fn read(second: u64, start: u64) -> Access {
        let at = Instant::from_nanos(second << TICK_SHIFT);
        Access { at, resource: ResourceId(1), extent: Extent::new(start, 1), op: Op::Read }
    }

    #[test]
    fn the_mean_interval_is_learned() {
        let mut history = History::new(Geometry::new(BlockCount(64), 16).unwrap());
        for tick in [10, 20, 40] {
            history.observe(&read(tick, 0));
        }
        let past = history.past(UnitIndex(0)).unwrap();
        assert_eq!((past.reads, past.interval, past.last_read), (3, 15.0, Tick(41)));
        assert_eq!(history.past(UnitIndex(1)), None);
        assert_eq!(history.past(UnitIndex(99)), None);
        assert_eq!(history.tracked(), 1);
    }

    #[test]
    fn a_record_is_twenty_bytes() {
        assert_eq!(size_of::<Past>(), 20);
        let mut history = History::new(Geometry::new(BlockCount(16 * 10_000), 16).unwrap());
        (0..10_000).for_each(|unit| history.observe(&read(unit, unit * 16)));
        assert!(history.bytes() <= 10_000 * (4 + 20 + 20 / 8) + 64 * 20);
    }

    #[test]
    fn time_saturates() {
        assert_eq!(Tick::at(Instant::from_nanos(u64::MAX)), Tick(u32::MAX));
        assert_eq!(Tick::at(Instant::ORIGIN), Tick(1));
        assert_eq!(Tick(5).since(Tick(9)), 0);
    }
}
