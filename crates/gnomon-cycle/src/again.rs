//! Units that came back: they lack something once more and rest a while before they are asked for.

use std::collections::VecDeque;
use std::time::Duration;

use gnomon_forecast::{BlockMap, UnitIndex};
use gnomon_terms::{BlockCount, Extent, Instant};

/// Why a unit came back, which says how long it rests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rest {
    /// Its copy arrived, and something in it had been written meanwhile.
    Spoiled,
    /// Its move failed.
    Failed,
    /// The guest wrote the original, or the copy was given up.
    Outdated,
}

impl Rest {
    const ALL: [Rest; 3] = [Rest::Spoiled, Rest::Failed, Rest::Outdated];

    fn wait(self) -> Duration {
        match self {
            Rest::Spoiled => Duration::ZERO,
            // A tenth of a second: whatever failed may be over, and trying ten times a second costs nothing.
            Rest::Failed => Duration::from_millis(100),
            // Most writes come in bursts to the same unit.
            Rest::Outdated => Duration::from_secs(1),
        }
    }
}

/// The units that came back, each at most once: bounded by the number of units, however often they come and go.
#[derive(Clone, Debug)]
pub(crate) struct Again {
    /// One queue for each [`Rest`]: all in it rest as long, so the front is due first.
    queues: [VecDeque<(Instant, UnitIndex)>; Rest::ALL.len()],
    /// Units (not blocks) that are in a queue.
    queued: BlockMap,
}

impl Again {
    pub(crate) fn new(units: u32) -> Again {
        Again { queues: Default::default(), queued: BlockMap::empty(BlockCount(u64::from(units))) }
    }

    /// `unit` came back at `now`, which never goes back. One that is resting already keeps its place: it has lacked
    /// something before, and waiting anew each time could make it wait forever.
    pub(crate) fn add(&mut self, unit: UnitIndex, now: Instant, rest: Rest) {
        if self.queued.insert(one(unit)).0 > 0 {
            self.queues[rest as usize].push_back((now.after(rest.wait()), unit));
        }
    }

    /// The unit that is due first, if it is due at `now`; the same again until it has begun. Units that are no longer
    /// wanted are forgotten when they are found at a front.
    pub(crate) fn next(&mut self, now: Instant, wanted: impl Fn(UnitIndex) -> bool) -> Option<UnitIndex> {
        for queue in &mut self.queues {
            while let Some((_, unit)) = queue.front().copied().filter(|(_, unit)| !wanted(*unit)) {
                queue.pop_front();
                self.queued.remove(one(unit));
            }
        }
        let (due, unit) = self.queues.iter().filter_map(VecDeque::front).min_by_key(|(due, _)| *due)?;
        (*due <= now).then_some(*unit)
    }

    /// `unit` is on its way; forgotten if it is at a front, and else when it comes there.
    pub(crate) fn begun(&mut self, unit: UnitIndex) {
        for queue in &mut self.queues {
            if queue.front().is_some_and(|(_, front)| *front == unit) {
                queue.pop_front();
                self.queued.remove(one(unit));
            }
        }
    }

    /// Forgets all.
    pub(crate) fn clear(&mut self) {
        self.queues.iter_mut().for_each(VecDeque::clear);
        self.queued.remove(Extent::new(0, self.queued.size().0));
    }
}

/// A unit as an element of a map of units.
fn one(unit: UnitIndex) -> Extent {
    Extent::new(u64::from(unit.0), 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Instant {
        Instant::from_micros(millis * 1000)
    }

    #[test]
    fn a_short_rest_does_not_wait_behind_a_long_one() {
        let mut again = Again::new(4);
        again.add(UnitIndex(0), at(0), Rest::Outdated);
        again.add(UnitIndex(1), at(10), Rest::Failed);
        again.add(UnitIndex(2), at(20), Rest::Spoiled);
        let mut order = Vec::new();
        for millis in [19, 20, 109, 110, 999, 1000, 2000] {
            if let Some(unit) = again.next(at(millis), |_| true) {
                order.push((millis, unit.0));
                again.begun(unit);
            }
        }
        assert_eq!(order, [(20, 2), (110, 1), (1000, 0)]);
    }

    #[test]
    fn each_unit_rests_once_however_often_it_comes_back() {
        let mut again = Again::new(3);
        for millis in 0..10_000 {
            let rest = Rest::ALL[millis as usize % 3];
            again.add(UnitIndex(millis as u32 % 3), at(millis), rest);
        }
        assert_eq!(again.queues.iter().map(VecDeque::len).sum::<usize>(), 3);
        // Forgotten when it is not wanted at the front, and then it can come back.
        assert_eq!(again.next(at(20_000), |_| false), None);
        again.add(UnitIndex(1), at(20_000), Rest::Spoiled);
        assert_eq!(again.next(at(20_000), |_| true), Some(UnitIndex(1)));
        again.clear();
        assert_eq!(again.next(at(20_000), |_| true), None);
        again.add(UnitIndex(1), at(20_000), Rest::Spoiled);
        assert_eq!(again.next(at(20_000), |_| true), Some(UnitIndex(1)));
    }
}
