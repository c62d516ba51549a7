//! Growing by itself: when a guest that is short gets more memory, and when it may let go of some.
//!
//! ```text
//!             short twice running                      asked for, and now it is there, or nothing came
//!   Steady ───────────────────────► Grow ──► Waiting ──────────────────────────────────────────────────► Steady
//!     │                                          ▲
//!     │ at ease so many times running            │
//!     └──────────────────────────────► Shrink ───┘
//! ```
//! Growing is quick, shrinking is slow, and slower each time that it was regretted: a guest that is short again soon after it
//! shrank has to be at ease for twice as long before it shrinks again. So one that asks and returns in a loop ends up with
//! what it needs at most, after a number of turns that is the logarithm of the time.
//!
//! A step is never more than the guest can take: for each page of 4 KiB that is added its kernel needs 64 bytes that it has
//! already, a sixty-fourth; half of what is free may be spent on that, so 32 times of what is free can be added.
//!
//! Source: Linux, Documentation/admin-guide/mm/memory-hotplug.rst ("vmemmap"), include/linux/mm_types.h (`struct page`).

use gnomon_terms::Bytes;

use super::{
    BLOCK,
    demand::{SHORT, Said},
};

/// So many times of what is free in a guest can be added to it at once.
pub const STEP_PER_FREE: u64 = 32;
/// Less than this share of a guest's memory available: it is short. More than the other: it is at ease.
const SHARES: (f64, f64) = (0.10, 0.40);
/// What has to be left available after a step was taken away: well above what is short.
const LEFT: f64 = 0.25;
/// Reports that say so in a row before it grows, and before it shrinks; agents report once a second.
const SHORT_REPORTS: u32 = 2;
const EASY_REPORTS: u32 = 120;
/// The most reports at ease that are ever asked for: a day.
const MOST_EASY_REPORTS: u32 = 86_400;
/// Reports until what was decided shows in what a guest has; then it is decided anew.
const PATIENCE: u32 = 30;
/// A kernel keeps no more than this part of what it is given for itself: a sixty-fourth for its pages, and some for a kernel
/// that takes over when it crashes.
const KERNELS_OWN: u64 = 8;
/// A guest that is short within so many times of what shrinking took regrets it; when it has regretted nothing for as long,
/// an earlier regret is an old story.
const REGRETS: u32 = 4;

/// Within what a VM grows and shrinks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// What it was started with: less it never has.
    pub least: Bytes,
    /// What it may have at most.
    pub most: Bytes,
    /// How much at once; rounded up to whole blocks.
    pub step: Bytes,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Stay,
    /// Give it so much more: whole blocks.
    Grow(Bytes),
    /// Ask it to let go of so much: whole blocks.
    Shrink(Bytes),
}

/// The history of a guest's reports, as far as it matters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pressure {
    short: u32,
    easy: u32,
    /// Reports at ease that are asked for.
    asked: u32,
    /// What it had when something was decided, and how many reports ago.
    decided: Option<(Bytes, u32)>,
    /// Reports since it last shrank, and since it last regretted that.
    since_shrunk: Option<u32>,
    calm: u32,
}

impl Default for Pressure {
    fn default() -> Pressure {
        Pressure { short: 0, easy: 0, asked: EASY_REPORTS, decided: None, since_shrunk: None, calm: 0 }
    }
}

impl Pressure {
    /// Another report of a guest that was `given` so much by now.
    pub fn note(&mut self, said: &Said, given: Bytes, limits: &Limits) -> Verdict {
        self.since_shrunk = self.since_shrunk.map(|reports| reports.saturating_add(1));
        self.calm = self.calm.saturating_add(1);
        if self.is_waiting(given) {
            return Verdict::Stay;
        }
        let waits = said.waiting.is_some_and(|waiting| waiting >= SHORT);
        let (total, available) = (said.total.0 as f64, said.available.0.min(said.total.0) as f64);
        let short = waits || available < SHARES.0 * total;
        let easy = !waits && available > SHARES.1 * total;
        self.short = if short { self.short + 1 } else { 0 };
        self.easy = if easy { self.easy + 1 } else { 0 };
        if self.short >= SHORT_REPORTS {
            return self.grow(said, given, limits);
        }
        if self.easy >= self.asked {
            return self.shrink(said, given, limits);
        }
        Verdict::Stay
    }

    /// How many reports at ease are asked for before it shrinks.
    pub fn patience(&self) -> u32 {
        self.asked
    }

    /// What was decided does not show yet.
    fn is_waiting(&mut self, given: Bytes) -> bool {
        self.decided = self
            .decided
            .and_then(|(before, reports)| (before == given && reports < PATIENCE).then_some((before, reports + 1)));
        self.decided.is_some()
    }

    fn grow(&mut self, said: &Said, given: Bytes, limits: &Limits) -> Verdict {
        if let Some(reports) = self.since_shrunk.take()
            && reports < self.asked.saturating_mul(REGRETS)
        {
            (self.asked, self.calm) = ((self.asked * 2).min(MOST_EASY_REPORTS), 0);
        }
        if is_wasted(said, given, limits) {
            return self.decide(given, 0, Verdict::Grow);
        }
        let takes = said.free.0.saturating_mul(STEP_PER_FREE);
        let room = limits.most.0.saturating_sub(given.0);
        let step = whole_blocks(rounded_up(limits.step).min(takes).min(room));
        self.decide(given, step, Verdict::Grow)
    }

    fn shrink(&mut self, said: &Said, given: Bytes, limits: &Limits) -> Verdict {
        if self.calm >= self.asked.saturating_mul(REGRETS) {
            (self.asked, self.calm) = ((self.asked / 2).max(EASY_REPORTS), 0);
        }
        let spare = said.available.0.saturating_sub((LEFT * said.total.0 as f64) as u64);
        let above = given.0.saturating_sub(limits.least.0);
        let step = whole_blocks(rounded_up(limits.step).min(above).min(spare));
        let verdict = self.decide(given, step, Verdict::Shrink);
        if verdict != Verdict::Stay {
            self.since_shrunk = Some(0);
        }
        verdict
    }

    fn decide(&mut self, given: Bytes, step: u64, verdict: impl Fn(Bytes) -> Verdict) -> Verdict {
        (self.short, self.easy) = (0, 0);
        if step == 0 {
            return Verdict::Stay;
        }
        self.decided = Some((given, 0));
        verdict(Bytes(step))
    }
}

/// Whether a guest was given memory that its kernel does not manage: more than a step beyond what a kernel keeps for itself.
/// One that adds memory and leaves it offline would be given all that it may have, and stay short.
fn is_wasted(said: &Said, given: Bytes, limits: &Limits) -> bool {
    let own = given.0 / KERNELS_OWN;
    given.0.saturating_sub(said.total.0) > own.saturating_add(rounded_up(limits.step))
}

fn rounded_up(bytes: Bytes) -> u64 {
    bytes.0.div_ceil(BLOCK.0).max(1).saturating_mul(BLOCK.0)
}

fn whole_blocks(bytes: u64) -> u64 {
    bytes / BLOCK.0 * BLOCK.0
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn limits() -> Limits {
        Limits { least: Bytes(1024 * MIB), most: Bytes(4096 * MIB), step: Bytes(512 * MIB) }
    }

    /// A guest of which so much is available and free.
    fn said(total: u64, available: u64, free: u64, waiting: u32) -> Said {
        let [total, available, free] = [total, available, free].map(|mib| Bytes(mib * MIB));
        Said { total, available, free, waiting: Some(waiting) }
    }

    fn after(reports: u32, said: &Said, given: u64) -> Verdict {
        let mut pressure = Pressure::default();
        let mut verdicts = (0..reports).map(|_| pressure.note(said, Bytes(given * MIB), &limits()));
        verdicts.find(|verdict| *verdict != Verdict::Stay).unwrap_or(Verdict::Stay)
    }

    #[test]
    fn who_is_short_grows_by_what_it_can_take() {
        let grow = |mib| Verdict::Grow(Bytes(mib * MIB));
        // (reports, total, available, free, waiting, given, verdict), in MiB
        let table = [
            (1, 1000, 50, 50, 0, 1024, Verdict::Stay),
            (2, 1000, 50, 50, 0, 1024, grow(512)),
            (2, 1000, 500, 50, 1000, 1024, grow(512)),
            (2, 1000, 500, 50, 900, 1024, Verdict::Stay),
            // 32 × 10 MiB free are 320: two blocks. Of 3 MiB none at all: it would run out while it takes them.
            (2, 1000, 50, 10, 0, 1024, grow(256)),
            (2, 1000, 50, 3, 0, 1024, Verdict::Stay),
            // No more than it may have.
            (2, 3800, 50, 50, 0, 3840, grow(256)),
            (2, 4000, 50, 50, 0, 4096, Verdict::Stay),
            (2, 4000, 50, 50, 0, 9999, Verdict::Stay),
            // It was given 1.5 GiB that its kernel does not use: what it is given comes to nothing.
            (2, 1000, 50, 50, 0, 2560, Verdict::Stay),
            (2, 2100, 50, 50, 0, 2560, grow(512)),
        ];
        for (reports, total, available, free, waiting, given, verdict) in table {
            let said = said(total, available, free, waiting);
            assert_eq!(after(reports, &said, given), verdict, "{reports} times {said:?} of {given}");
        }
    }

    #[test]
    fn who_is_at_ease_for_long_shrinks_to_what_it_was_started_with() {
        let shrink = |mib| Verdict::Shrink(Bytes(mib * MIB));
        let table = [
            (EASY_REPORTS - 1, 2000, 1900, 2048, Verdict::Stay),
            (EASY_REPORTS, 2000, 1900, 2048, shrink(512)),
            (EASY_REPORTS, 2000, 1900, 1280, shrink(256)),
            (10 * EASY_REPORTS, 2000, 1900, 1024, Verdict::Stay),
            (10 * EASY_REPORTS, 2000, 700, 2048, Verdict::Stay),
            // A quarter is left to it.
            (EASY_REPORTS, 2000, 810, 2048, shrink(256)),
        ];
        for (reports, total, available, given, verdict) in table {
            let said = said(total, available, available, 0);
            assert_eq!(after(reports, &said, given), verdict, "{reports} times {said:?} of {given}");
        }
    }

    #[test]
    fn until_it_shows_nothing_more_is_decided() {
        let (mut pressure, short) = (Pressure::default(), said(1000, 10, 100, 0));
        let mut grown = 0;
        for _ in 0..PATIENCE {
            grown += u32::from(pressure.note(&short, Bytes(1024 * MIB), &limits()) != Verdict::Stay);
        }
        assert_eq!(grown, 1);
        // It shows: and if it is still short, more comes.
        assert_eq!(pressure.note(&short, Bytes(1536 * MIB), &limits()), Verdict::Stay);
        assert_eq!(pressure.note(&short, Bytes(1536 * MIB), &limits()), Verdict::Grow(Bytes(512 * MIB)));
    }

    /// A guest that does what it is told at once and uses what `uses` says.
    fn live(pressure: &mut Pressure, reports: u32, given: &mut u64, uses: impl Fn(u32, u64) -> u64) -> u32 {
        let mut turns = 0;
        for at in 0..reports {
            let available = given.saturating_sub(uses(at, *given));
            let said = said(*given, available, available.max(100), 0);
            match pressure.note(&said, Bytes(*given * MIB), &limits()) {
                Verdict::Stay => continue,
                Verdict::Grow(bytes) => *given += bytes.0 / MIB,
                Verdict::Shrink(bytes) => *given -= bytes.0 / MIB,
            }
            turns += 1;
        }
        turns
    }

    #[test]
    fn who_asks_and_returns_in_a_loop_turns_ever_more_seldom() {
        let (mut pressure, mut given) = (Pressure::default(), 1024);
        // Five minutes nearly all of 1.5 GiB, five minutes nothing.
        let uses = |at: u32, _| if (at / 300).is_multiple_of(2) { 1450 } else { 100 };
        let day = live(&mut pressure, 86_400, &mut given, uses);
        assert!(day <= 8, "{day} turns in 288 changes of mind");
        let next = live(&mut pressure, 86_400, &mut given, uses);
        assert_eq!(next, 0, "turns on the second day");
    }

    #[test]
    fn after_a_calm_day_shrinking_is_quick_again() {
        let (mut pressure, mut given) = (Pressure::default(), 1024);
        live(&mut pressure, 20_000, &mut given, |at, _| if (at / 200).is_multiple_of(2) { 1450 } else { 100 });
        let patience = pressure.patience();
        assert!(patience > EASY_REPORTS);
        for _ in 0..20 {
            given = 4096;
            live(&mut pressure, 200_000, &mut given, |_, _| 100);
            assert_eq!(given, 1024, "it shrinks all the way");
        }
        assert_eq!(pressure.patience(), EASY_REPORTS);
    }
}
