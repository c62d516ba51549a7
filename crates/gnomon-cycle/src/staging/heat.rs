//! Where a guest's memory is used: how often each of 64 ranges of it is touched, lately most.
//!
//! A tracker of written pages says runs of pages and how often; what is kept of a guest is 64 numbers, and of those only what
//! they are worth: which ranges to keep populated, and which to back with huge pages. Ranges are parts of the guest, not
//! addresses: guests of different sizes can be added up.
//!
//! What leaves a group is one picture of all its members together: each adds at most 1 to it, spread over the ranges as its
//! touches are, and the picture is told with noise that hides what any one adds. It says where a new member's memory will be
//! wanted first.

use gnomon_terms::{PageCount, PageNumber, PageRun};

use super::{
    LEAST_MEMBERS,
    noise::{Bits, noised_number},
};

/// Ranges of a guest: of one with 8 GiB, 128 MiB each.
pub const RANGES: usize = 64;
/// How much of a count is left after each look.
const KEPT: f64 = 0.9;
/// What a member adds to the picture of its group, in parts.
const PARTS: f64 = 1024.0;

/// How often each range of one guest was touched.
#[derive(Clone, Debug, PartialEq)]
pub struct Heat {
    pages: PageCount,
    touches: [f64; RANGES],
}

impl Heat {
    /// Of a guest of so many pages, untouched.
    pub fn new(pages: PageCount) -> Heat {
        Heat { pages, touches: [0.0; RANGES] }
    }

    /// Each page of a run was touched so many times. Pages that the guest does not have are left out.
    pub fn note(&mut self, run: PageRun, times: u32) {
        let end = run.end().0.min(self.pages.0);
        let mut at = run.start.0;
        while at < end {
            let range = self.range_of(at);
            let until = self.start_of(range + 1).0.min(end);
            self.touches[range] += (until - at) as f64 * f64::from(times);
            at = until;
        }
    }

    /// A look is over: what was touched before it counts a little less.
    pub fn fade(&mut self) {
        self.touches.iter_mut().for_each(|touches| *touches *= KEPT);
    }

    /// The pages of a range, 0 to [`RANGES`].
    pub fn pages_of(&self, range: usize) -> PageRun {
        let (start, end) = (self.start_of(range), self.start_of(range + 1));
        PageRun { start, len: PageCount(end.0.saturating_sub(start.0)) }
    }

    /// The fewest ranges that together have this share of all touches (0.0–1.0), the hottest first; none of a guest that
    /// was not touched.
    pub fn hottest(&self, share: f64) -> Vec<usize> {
        let all: f64 = self.touches.iter().sum();
        let mut ranges: Vec<usize> = (0..RANGES).filter(|range| self.touches[*range] > 0.0).collect();
        ranges.sort_by(|one, other| self.touches[*other].total_cmp(&self.touches[*one]));
        let mut sum = 0.0;
        ranges.retain(|range| {
            let wanted = sum < share * all;
            sum += self.touches[*range];
            wanted
        });
        ranges
    }

    fn range_of(&self, page: u64) -> usize {
        // The last range whose start is not beyond the page.
        let guess = (u128::from(page) * RANGES as u128 / u128::from(self.pages.0.max(1))) as usize;
        guess.min(RANGES - 1)
    }

    /// Rounded up, so that the page before it is of the range before it.
    fn start_of(&self, range: usize) -> PageNumber {
        PageNumber((u128::from(self.pages.0) * range as u128).div_ceil(RANGES as u128) as u64)
    }
}

/// Where the members of a group use their memory, in members for each range, with noise; `None` of fewer than
/// [`LEAST_MEMBERS`]. Noise is new each time: who asks keeps the answer, and asks again when enough has changed.
pub fn picture<'a>(
    group: impl IntoIterator<Item = &'a Heat>,
    epsilon: f64,
    bits: &mut Bits,
) -> Option<[f64; RANGES]> {
    let (mut members, mut sums) = (0, [0.0; RANGES]);
    for heat in group {
        members += 1;
        let all: f64 = heat.touches.iter().sum();
        let shares = heat.touches.iter().map(|touches| (touches / all.max(f64::MIN_POSITIVE) * PARTS).floor());
        sums.iter_mut().zip(shares).for_each(|(sum, share)| *sum += share);
    }
    let told = || sums.map(|sum| noised_number(sum, PARTS as u64, epsilon, bits) / PARTS);
    (members >= LEAST_MEMBERS).then(told)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::staging::noise::tests::seeded;

    const GIB: u64 = 1 << 18;

    #[test]
    fn touches_are_counted_where_they_are() {
        let mut heat = Heat::new(PageCount(GIB));
        heat.note(PageRun::new(0, 4096), 1);
        heat.note(PageRun::new(4095, 2), 10);
        heat.note(PageRun::new(GIB - 1, u64::MAX), 3);
        heat.note(PageRun::new(GIB, 5), 3);
        heat.note(PageRun::new(u64::MAX, 5), 3);
        assert_eq!((heat.touches[0], heat.touches[1], heat.touches[63]), (4106.0, 10.0, 3.0));
        assert_eq!(heat.hottest(0.9), [0]);
        assert_eq!(heat.hottest(1.0), [0, 1, 63]);
        assert_eq!(heat.pages_of(1), PageRun::new(4096, 4096));
        assert!(Heat::new(PageCount(0)).hottest(1.0).is_empty());
    }

    #[test]
    fn what_was_hot_cools() {
        let mut heat = Heat::new(PageCount(GIB));
        heat.note(PageRun::new(0, 4096), 100);
        (0..50).for_each(|_| heat.fade());
        heat.note(PageRun::new(8192, 4096), 1);
        assert_eq!(heat.hottest(0.5), [2]);
    }

    proptest! {
        #[test]
        fn each_page_is_in_one_range(pages in 1u64..5_000_000, page in 0u64..5_000_000) {
            let heat = Heat::new(PageCount(pages));
            let page = page % pages;
            let within = |range: &usize| (heat.pages_of(*range).start.0..heat.pages_of(*range).end().0).contains(&page);
            let ranges: Vec<usize> = (0..RANGES).filter(within).collect();
            prop_assert_eq!(&ranges, &[heat.range_of(page)]);
            prop_assert_eq!((0..RANGES).map(|range| heat.pages_of(range).len.0).sum::<u64>(), pages);
        }
    }

    #[test]
    fn a_member_adds_one_to_its_groups_picture_however_busy_it_is() {
        let quiet = |range: u64| {
            let mut heat = Heat::new(PageCount(GIB));
            heat.note(PageRun::new(range * 4096, 4096), 1);
            heat
        };
        let mut group: Vec<Heat> = (0..40).map(|_| quiet(5)).collect();
        let mut busy = quiet(9);
        busy.note(PageRun::new(9 * 4096, 4096), u32::MAX);
        group.push(busy);
        let (mut bits, mut mean) = (seeded(1), [0.0; RANGES]);
        for _ in 0..200 {
            let told = picture(&group, 1.0, &mut bits).expect("enough members");
            mean.iter_mut().zip(told).for_each(|(mean, told)| *mean += told / 200.0);
        }
        assert!((mean[5] - 40.0).abs() < 0.5 && mean[9] < 2.0, "{mean:?}");
        assert_eq!(picture(&group[..2], 1.0, &mut bits), None);
    }
}
