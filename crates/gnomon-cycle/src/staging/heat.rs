//! Where a guest's memory is used: how often each of 64 ranges of it is touched, lately most.
//!
//! Runs of pages go in: written since the last look, where somebody follows the guest's writes, else touched for the first time.
//! What is kept of a guest is 64 numbers for what it began with, and for each DIMM. Ranges are parts of the memory, not
//! addresses: guests of different sizes can be added up.
//!
//! A guest that is to give memory back gives first what it has touched least of ([`coldest_first`]): those pages are the fewest
//! that it can have to move.
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

/// How often each range of a guest's memory, or of a part of it, was touched.
#[derive(Clone, Debug, PartialEq)]
pub struct Heat {
    pages: PageCount,
    touches: [f64; RANGES],
}

impl Heat {
    /// Of so many pages, untouched.
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

    /// Notes what one look has found that the one before had not: pages touched for the first time. Of another size, nothing.
    pub fn note_growth(&mut self, before: &Heat, now: &Heat) {
        if [before.pages, now.pages] != [self.pages; 2] {
            return;
        }
        let grown = now.touches.iter().zip(&before.touches).map(|(now, before)| (now - before).max(0.0));
        self.touches.iter_mut().zip(grown).for_each(|(touches, grown)| *touches += grown);
    }

    /// Touches of a page, on average: of one look, the share of pages that it has found.
    pub fn mean(&self) -> f64 {
        self.touches.iter().sum::<f64>() / self.pages.0.max(1) as f64
    }

    /// The share of all touches that each range has (0.0–1.0); all zero when nothing was touched.
    pub fn shares(&self) -> [f64; RANGES] {
        let all: f64 = self.touches.iter().sum();
        self.touches.map(|touches| touches / all.max(f64::MIN_POSITIVE))
    }

    /// A look is over: what was touched before it counts a little less.
    pub fn fade(&mut self) {
        self.touches.iter_mut().for_each(|touches| *touches *= KEPT);
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
        let shares = heat.shares().map(|share| (share * PARTS).floor());
        sums.iter_mut().zip(shares).for_each(|(sum, share)| *sum += share);
    }
    let told = || sums.map(|sum| noised_number(sum, PARTS as u64, epsilon, bits) / PARTS);
    (members >= LEAST_MEMBERS).then(told)
}

/// In which order DIMMs are asked back: by the share of each that the guest has touched, in whole percent, the least first; of
/// equals the newest first. One of which it is not known counts as touched. DIMMs are told from the oldest on, and answered by
/// their places.
pub fn coldest_first(touched: &[Option<f64>]) -> Vec<usize> {
    let percent = |place: &usize| touched[*place].map_or(100, |share| (share.clamp(0.0, 1.0) * 100.0).round() as u32);
    let mut places: Vec<usize> = (0..touched.len()).rev().collect();
    // Stable: what is equal stays as it was.
    places.sort_by_key(percent);
    places
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
        assert_eq!((heat.start_of(1), heat.start_of(2)), (PageNumber(4096), PageNumber(8192)));
        assert_eq!((heat.mean(), heat.shares()[1]), (4119.0 / GIB as f64, 10.0 / 4119.0));
        let none = Heat::new(PageCount(0));
        assert_eq!((none.hottest(1.0), none.mean(), none.shares()), (Vec::new(), 0.0, [0.0; RANGES]));
    }

    #[test]
    fn what_was_hot_cools() {
        let mut heat = Heat::new(PageCount(GIB));
        heat.note(PageRun::new(0, 4096), 100);
        (0..50).for_each(|_| heat.fade());
        heat.note(PageRun::new(8192, 4096), 1);
        assert_eq!(heat.hottest(0.5), [2]);
    }

    #[test]
    fn what_is_there_is_touched_once_however_often_it_is_looked() {
        let look = |runs: &[(u64, u64)]| {
            let mut found = Heat::new(PageCount(GIB));
            runs.iter().for_each(|(start, len)| found.note(PageRun::new(*start, *len), 1));
            found
        };
        let looks =
            [look(&[]), look(&[(0, 10)]), look(&[(0, 10)]), look(&[(5, 2), (4096, 7)]), look(&[(0, 10), (4096, 7)])];
        let mut heat = Heat::new(PageCount(GIB));
        looks.windows(2).for_each(|two| heat.note_growth(&two[0], &two[1]));
        // What went and came again was touched again.
        assert_eq!((heat.touches[0], heat.touches[1]), (10.0 + 8.0, 7.0));
        heat.note_growth(&Heat::new(PageCount(5)), &looks[4]);
        assert_eq!(heat.touches[0], 18.0);
    }

    #[test]
    fn what_is_touched_least_is_asked_back_first() {
        type Row = (&'static [Option<f64>], &'static [usize]);
        let table: [Row; 6] = [
            (&[], &[]),
            (&[Some(0.0), Some(0.0), Some(0.0)], &[2, 1, 0]),
            (&[Some(0.9), Some(0.1), Some(0.5)], &[1, 2, 0]),
            (&[None, Some(1.0), Some(0.99), None], &[2, 3, 1, 0]),
            (&[Some(0.301), Some(0.304), Some(0.296)], &[2, 1, 0]),
            (&[Some(f64::NAN), Some(7.0), Some(-1.0)], &[2, 0, 1]),
        ];
        for (touched, order) in table {
            assert_eq!(coldest_first(touched), order, "{touched:?}");
        }
    }

    proptest! {
        #[test]
        fn each_page_is_in_one_range(pages in 1u64..5_000_000, page in 0u64..5_000_000) {
            let heat = Heat::new(PageCount(pages));
            let page = page % pages;
            let ends = |range: usize| heat.start_of(range).0..heat.start_of(range + 1).0;
            let ranges: Vec<usize> = (0..RANGES).filter(|range| ends(*range).contains(&page)).collect();
            prop_assert_eq!(&ranges, &[heat.range_of(page)]);
            prop_assert_eq!((0..RANGES).map(|range| ends(range).count() as u64).sum::<u64>(), pages);
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
