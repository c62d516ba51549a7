//! The Mirroring Score: is it worth having a copy there?
//!
//! Both sides are seconds that guests wait. What a copy saves:
//!
//! ```text
//!   saved = chance · ( requests · latency  +  bytes read · share held · seconds a byte )
//!                      └ round trips that need not be made ┘   └ bytes that need not cross the slow link ┘
//! ```
//!
//! where *latency* and *seconds a byte* are those of the link that reads cross without the copy, less those of the local
//! one, and requests too count only for the share that the copy holds. What it costs, in the same coin:
//!
//! ```text
//!   spent = (bytes moved + bytes a second that change · time held) · seconds a byte · crowding  +  bytes held · time · rent
//! ```
//!
//! *Crowding* is the share of those bytes' time on the link that makes others wait: next to nothing at night, one when the
//! link is full. *Rent* is what a byte held for a second is worth to those who would have the room instead. The score is
//! saved over spent: above one a copy saves more waiting than it causes. A full mirror moves all and holds all; a delta
//! mirror moves what changed since the last; a selective mirror moves and holds little, and most of what is read is in it.
//! Example: chance 0.6, 200 requests of 80 ms, 100 MB read of which all is held, over a link of 10 MB/s:
//! saved = 0.6 · (16 + 10) = 15.6 s. Moving 400 MB at a crowding of 0.1 spends 40 · 0.1 = 4 s: the score is 3.9. At noon,
//! with a crowding of 1, it is 0.39, and the copy waits for the night or is made selective.

use std::time::Duration;

use gnomon_terms::{Bytes, BytesPerSecond};

/// What is expected of a place without a copy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MirrorCase {
    /// The chance that anybody reads there before the copy would be given up, 0.0–1.0.
    pub chance: f64,
    /// Requests, if so.
    pub requests: f64,
    /// Bytes of them all together.
    pub read: Bytes,
    /// The share of them that the copy would hold, 0.0–1.0.
    pub held_share: f64,
    /// By how much a request takes longer without the copy.
    pub latency: Duration,
    /// The rate of the link that reads cross without the copy.
    pub rate: BytesPerSecond,
}

/// What a copy costs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MirrorCost {
    /// Bytes that have to be moved to make it.
    pub moved: Bytes,
    /// Bytes that it holds.
    pub held: Bytes,
    /// Bytes that change each second and have to follow.
    pub changing: BytesPerSecond,
    /// For how long it is held.
    pub time: Duration,
    /// How much of its time on the link makes others wait, 0.0 (an idle link) to 1.0 (a full one).
    pub crowding: f64,
    /// Seconds of waiting that a byte held for a second costs.
    pub rent: f64,
}

/// Seconds that are saved over seconds that are spent; worth it above 1.0. 0.0 when nothing is saved, infinite when
/// something is saved and nothing spent. Shares beyond their range count as its end, and what is not a number as 0.0.
pub fn mirroring_score(case: &MirrorCase, cost: &MirrorCost) -> f64 {
    let share = |value: f64| if value.is_nan() { 0.0 } else { value.clamp(0.0, 1.0) };
    let amount = |value: f64| if value.is_nan() { 0.0 } else { value.max(0.0) };
    let on_the_link = |bytes: f64| bytes / (case.rate.0.max(1)) as f64;
    let waits = amount(case.requests) * case.latency.as_secs_f64() + on_the_link(case.read.0 as f64);
    let saved = share(case.chance) * share(case.held_share) * waits;
    let moved = cost.moved.0 as f64 + cost.changing.0 as f64 * cost.time.as_secs_f64();
    let kept = cost.held.0 as f64 * cost.time.as_secs_f64() * amount(cost.rent);
    let spent = on_the_link(moved) * share(cost.crowding) + kept;
    match (saved > 0.0, spent > 0.0) {
        (false, _) => 0.0,
        (true, false) => f64::INFINITY,
        (true, true) => saved / spent,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case() -> MirrorCase {
        MirrorCase {
            chance: 0.6,
            requests: 200.0,
            read: Bytes(100_000_000),
            held_share: 1.0,
            latency: Duration::from_millis(80),
            rate: BytesPerSecond(10_000_000),
        }
    }

    fn cost() -> MirrorCost {
        MirrorCost {
            moved: Bytes(400_000_000),
            held: Bytes(400_000_000),
            changing: BytesPerSecond(0),
            time: Duration::from_secs(3600),
            crowding: 0.1,
            rent: 0.0,
        }
    }

    #[test]
    fn the_arithmetic_of_the_doc() {
        let quiet = cost();
        let noon = MirrorCost { crowding: 1.0, ..quiet };
        let selective = MirrorCost { moved: Bytes(20_000_000), ..noon };
        let most = MirrorCase { held_share: 0.7, ..case() };
        let busy = MirrorCost { changing: BytesPerSecond(100_000), ..quiet };
        let dear = MirrorCost { rent: 1e-12, ..quiet };
        let table = [
            ("at night", case(), quiet, 15.6 / 4.0),
            ("at noon", case(), noon, 15.6 / 40.0),
            ("selective at noon", most, selective, 0.7 * 15.6 / 2.0),
            ("it changes", case(), busy, 15.6 / (76.0 * 0.1)),
            ("room is dear", case(), dear, 15.6 / (4.0 + 1.44)),
            ("nobody comes", MirrorCase { chance: 0.0, ..case() }, quiet, 0.0),
            ("no number", MirrorCase { chance: f64::NAN, ..case() }, quiet, 0.0),
            ("more than certain", MirrorCase { chance: 7.0, ..case() }, quiet, 26.0 / 4.0),
            ("an idle link", case(), MirrorCost { crowding: 0.0, ..quiet }, f64::INFINITY),
        ];
        for (name, case, cost, expected) in table {
            let score = mirroring_score(&case, &cost);
            assert!(score == expected || (score - expected).abs() < 1e-9, "{name}: {score}, {expected} was expected");
        }
    }

    #[test]
    fn it_rises_with_what_is_saved_and_falls_with_what_is_spent() {
        let base = mirroring_score(&case(), &cost());
        for better in [
            MirrorCase { chance: 0.7, ..case() },
            MirrorCase { requests: 300.0, ..case() },
            MirrorCase { read: Bytes(200_000_000), ..case() },
            MirrorCase { latency: Duration::from_millis(90), ..case() },
        ] {
            assert!(mirroring_score(&better, &cost()) > base, "{better:?}");
        }
        for worse in [
            MirrorCost { moved: Bytes(500_000_000), ..cost() },
            MirrorCost { crowding: 0.2, ..cost() },
            MirrorCost { rent: 1e-15, ..cost() },
        ] {
            assert!(mirroring_score(&case(), &worse) < base, "{worse:?}");
        }
    }
}
