//! Three orders for the background clock, each a key computed from a unit's [`Past`]; the largest key goes first.
//!
//! None of them counts a write as heat: a written unit is not thereby more likely to be read, and after the write
//! the copy has to be made again. A write after the last read demotes the unit ([`demoted`]).

use gnomon_terms::{Access, Instant};

use crate::history::{TICKS_PER_SECOND, Tick};
use crate::{BlockMap, Geometry, History, Past, Predictor, UnitIndex};

/// How a unit with this past ranks at a time; larger is sooner. Finite for every past.
pub type Key = fn(&Past, Tick) -> f32;

/// A predictor that ranks touched units by a [`Key`]. Units without reads are left out.
#[derive(Clone, Debug)]
struct KeyedPredictor {
    history: History,
    key: Key,
}

impl KeyedPredictor {
    fn rank(&self, now: Instant, lacking: &BlockMap, out: &mut Vec<UnitIndex>) {
        let (now, geometry) = (Tick::at(now), self.history.geometry());
        let read = self.history.iter().filter(|(_, past)| past.reads > 0);
        let wanted = read.filter(|(unit, _)| lacking.contains_any(geometry.extent_of(*unit)));
        let mut keyed: Vec<(f32, UnitIndex)> = wanted.map(|(unit, past)| ((self.key)(past, now), unit)).collect();
        keyed.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        out.extend(keyed.into_iter().map(|(_, unit)| unit));
    }

    /// A chance that falls with the distance to the next read; good enough to show, not calibrated.
    fn probability(&self, now: Instant, unit: UnitIndex) -> f32 {
        let now = Tick::at(now);
        self.history.past(unit).filter(|p| p.reads > 0).map_or(0.0, |past| {
            let wait = (next_read_wait(past, now) / TICKS_PER_SECOND).max(0.0);
            60.0 / (60.0 + wait)
        })
    }
}

macro_rules! keyed {
    ($(#[$doc:meta])* $name:ident, $label:literal, $key:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug)]
        pub struct $name(KeyedPredictor);

        impl $name {
            /// For a resource cut as `geometry` says, with nothing seen yet.
            pub fn new(geometry: Geometry) -> Self {
                Self(KeyedPredictor { history: History::new(geometry), key: $key })
            }
        }

        impl Predictor for $name {
            fn name(&self) -> &'static str {
                $label
            }
            fn observe(&mut self, access: &Access) {
                self.0.history.observe(access);
            }
            fn rank(&mut self, now: Instant, lacking: &BlockMap, out: &mut Vec<UnitIndex>) {
                self.0.rank(now, lacking, out);
            }
            fn probability(&self, now: Instant, unit: UnitIndex) -> f32 {
                self.0.probability(now, unit)
            }
        }
    };
}

keyed!(
    /// Most often read first.
    FrequencyPredictor, "frequency", frequency_key
);
keyed!(
    /// Most often read lately first: frequency and recency in one number that halves every ten minutes.
    DecayPredictor, "decay", decay_key
);
keyed!(
    /// Soonest expected read first: a renewal estimate, last read plus mean interval, O(1) a unit.
    NextReadPredictor, "next-read", next_read_key
);

/// Reads of the unit.
pub fn frequency_key(past: &Past, _: Tick) -> f32 {
    f32::from(past.reads) * demoted(past)
}

/// Decayed reads of the unit.
pub fn decay_key(past: &Past, now: Tick) -> f32 {
    past.heat_at(now) * demoted(past)
}

/// Minus the ticks until the next read is expected.
pub fn next_read_key(past: &Past, now: Tick) -> f32 {
    -next_read_wait(past, now) / demoted(past)
}

/// A quarter when the last touch was a write, else one: what was just replaced is most often in the guest's own
/// cache, and is written again before it is read.
pub fn demoted(past: &Past) -> f32 {
    if past.last_write > past.last_read { 0.25 } else { 1.0 }
}

/// Ticks until the next read is expected, never negative. A read that is overdue by some time is expected after
/// the same time again (the longer one has waited, the longer one will); a unit read once is expected after as
/// long as it has not been read.
pub fn next_read_wait(past: &Past, now: Tick) -> f32 {
    let age = now.since(past.last_read) as f32;
    let interval = if past.reads > 1 { past.interval } else { 2.0 * age };
    (interval - age).abs()
}

#[cfg(test)]
mod tests {
    use super::*;
    use gnomon_terms::{BlockCount, Extent, Op, ResourceId};

    fn access(second: u64, unit: u64, op: Op) -> Access {
        let at = Instant::from_micros(second * 1_000_000);
        Access { at, resource: ResourceId(1), extent: Extent::new(unit * 16, 16), op }
    }

    /// Unit 1 is read every 100 s, unit 2 often but long ago, unit 3 once lately, unit 4 read and then written.
    fn story(predictor: &mut dyn Predictor) -> Vec<u32> {
        let mut accesses: Vec<Access> = (1..=9).map(|i| access(i * 100, 1, Op::Read)).collect();
        accesses.extend((0..20).map(|i| access(i, 2, Op::Read)));
        accesses.extend([access(940, 3, Op::Read), access(800, 4, Op::Read), access(950, 4, Op::Write)]);
        accesses.sort_by_key(|a| a.at);
        accesses.iter().for_each(|a| predictor.observe(a));
        let mut out = Vec::new();
        let lacking = BlockMap::full(BlockCount(96));
        predictor.rank(Instant::from_micros(990_000_000), &lacking, &mut out);
        out.into_iter().map(|u| u.0).collect()
    }

    #[test]
    fn each_order_has_its_own_idea() {
        let geometry = Geometry::new(BlockCount(96), 16).unwrap();
        assert_eq!(story(&mut FrequencyPredictor::new(geometry)), [2, 1, 3, 4]);
        assert_eq!(story(&mut DecayPredictor::new(geometry)), [2, 1, 3, 4]);
        assert_eq!(story(&mut NextReadPredictor::new(geometry))[..2], [1, 3]);
    }

    #[test]
    fn keys_are_finite_for_every_past() {
        let extremes = [0, 1, u32::MAX];
        for last_read in extremes {
            for last_write in extremes {
                for now in extremes {
                    let (last_read, last_write) = (Tick(last_read), Tick(last_write));
                    let past = Past { last_read, last_write, interval: 3e9, heat: 65535.0, reads: 9, writes: 1 };
                    for key in [frequency_key, decay_key, next_read_key] {
                        assert!(key(&past, Tick(now)).is_finite());
                    }
                }
            }
        }
    }
}
