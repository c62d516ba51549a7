//! What a guest felt after its switch, over time: how many of its reads had to wait, in bounded memory.
//!
//! ```text
//!   each read ──note──► every first, then every second, fourth, … read is kept: 288 points at most, evenly spread
//! ```
//! Which reads are kept depends on their number alone. So the same reads, told in another order of moves, are kept at the
//! same places, and what would have been felt can be compared point by point ([`gap_over_time`]).

use std::time::Duration;

use gnomon_terms::Instant;

/// Points of a curve at most: finer than a picture shows, and 7 KiB.
pub const MOST_POINTS: usize = 288;

/// Of the first `reads` reads after the switch, `stalled` had to wait; the next one came at `at`, or none has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Felt {
    /// When.
    pub at: Instant,
    /// Reads so far.
    pub reads: u64,
    /// Of these, those that waited.
    pub stalled: u64,
}

/// What was felt over time, thinned by halving.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Curve {
    kept: Vec<Felt>,
    /// Every so many reads one is kept; a power of two.
    stride: u64,
    latest: Option<Felt>,
}

impl Default for Curve {
    fn default() -> Curve {
        Curve { kept: Vec::new(), stride: 1, latest: None }
    }
}

impl Curve {
    /// Notes what was felt; `reads` never becomes fewer. O(1) on the mean.
    pub fn note(&mut self, felt: Felt) {
        self.latest = Some(felt);
        if !felt.reads.is_multiple_of(self.stride) || self.kept.last().is_some_and(|last| last.reads >= felt.reads) {
            return;
        }
        // One place is left for the latest.
        if self.kept.len() + 1 == MOST_POINTS {
            self.stride *= 2;
            self.kept.retain(|felt| felt.reads.is_multiple_of(self.stride));
        }
        if felt.reads.is_multiple_of(self.stride) {
            self.kept.push(felt);
        }
    }

    /// What was kept, oldest first, and the latest.
    pub fn points(&self) -> Vec<Felt> {
        let latest = self.latest.filter(|latest| self.kept.last() != Some(latest));
        self.kept.iter().copied().chain(latest).collect()
    }
}

/// A moment after a switch: what was felt so far, and what would have been.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GapPoint {
    /// Time since the first read after the switch.
    pub since: Duration,
    /// Reads so far.
    pub reads: u64,
    /// Of these, those that waited.
    pub stalled: u64,
    /// Those that would have waited in address order.
    pub sequential: u64,
    /// Those that would have waited had the future been known.
    pub oracle: u64,
}

impl GapPoint {
    /// The share of the way from address order (0) to a known future (1) so far; none while these are the same, and below 0
    /// where it was worse than address order.
    pub fn closed(&self) -> Option<f64> {
        let [stalled, sequential, oracle] = [self.stalled, self.sequential, self.oracle].map(|count| count as f64);
        (sequential > oracle).then(|| (sequential - stalled) / (sequential - oracle))
    }
}

/// Compares what was felt with what would have been on the very same reads. What is not told by all three is left out.
pub fn gap_over_time(own: &[Felt], sequential: &[Felt], oracle: &[Felt]) -> Vec<GapPoint> {
    let Some(first) = own.first() else { return Vec::new() };
    let point = |felt: &Felt| {
        let (sequential, oracle) = (stalled_of(sequential, felt.reads)?, stalled_of(oracle, felt.reads)?);
        let Felt { at, reads, stalled } = *felt;
        Some(GapPoint { since: at.since(first.at), reads, stalled, sequential, oracle })
    };
    own.iter().filter_map(point).collect()
}

/// How many of the first `reads` reads waited, as far as a curve tells.
fn stalled_of(curve: &[Felt], reads: u64) -> Option<u64> {
    let after = curve.partition_point(|felt| felt.reads <= reads);
    let known = curve.last().is_some_and(|last| last.reads >= reads);
    curve.get(after.checked_sub(1)?).filter(|_| known).map(|felt| felt.stalled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn felt(reads: u64, stalled: u64) -> Felt {
        Felt { at: Instant::from_micros(reads * 1000), reads, stalled }
    }

    /// Reads of which every `each`th waits.
    fn curve(reads: u64, each: u64) -> Curve {
        let mut curve = Curve::default();
        (0..=reads).for_each(|read| curve.note(felt(read, read / each)));
        curve
    }

    #[test]
    fn the_gap_is_told_at_each_point_where_there_is_one() {
        let [own, sequential, oracle] = [4, 2, 1000].map(|each| curve(8, each).points());
        let gaps = gap_over_time(&own, &sequential, &oracle);
        let closed: Vec<Option<f64>> = gaps.iter().map(GapPoint::closed).collect();
        let third = Some(2.0 / 3.0);
        assert_eq!(closed, [None, None, Some(1.0), Some(1.0), Some(0.5), Some(0.5), third, third, Some(0.5)]);
        assert_eq!(gaps[8].since, Duration::from_millis(8));
        assert_eq!(GapPoint { stalled: 7, sequential: 5, oracle: 1, ..GapPoint::default() }.closed(), Some(-0.5));
        assert_eq!(
            gap_over_time(&own, &sequential[..5], &oracle).len(),
            5,
            "nothing is told of what one does not know"
        );
        assert_eq!(gap_over_time(&[], &sequential, &oracle), []);
    }

    proptest! {
        #[test]
        fn a_curve_is_bounded_even_and_true(reads in 0u64..40_000, each in 1u64..50) {
            let points = curve(reads, each).points();
            prop_assert!(points.len() <= MOST_POINTS);
            prop_assert!(points.len() as u64 > reads.min(MOST_POINTS as u64 / 2 - 2), "{} points", points.len());
            prop_assert!(points.iter().all(|point| *point == felt(point.reads, point.reads / each)));
            prop_assert_eq!((points[0].reads, points[points.len() - 1].reads), (0, reads));
            let steps: Vec<u64> = points.windows(2).map(|pair| pair[1].reads - pair[0].reads).collect();
            let (last, even) = steps.split_last().map_or((0, &[][..]), |(last, even)| (*last, even));
            prop_assert!(even.windows(2).all(|pair| pair[0] == pair[1]) && even.iter().all(|step| last <= *step));
        }

        #[test]
        fn curves_of_the_same_reads_have_the_same_places(reads in 0u64..40_000) {
            let places = |each| curve(reads, each).points().iter().map(|point| point.reads).collect::<Vec<_>>();
            prop_assert_eq!(places(1), places(7));
        }
    }
}
