//! Noise for numbers that leave a group: discrete Laplace, exact, from bits that the caller brings.
//!
//! A sum to which each member adds at most `cap` is told with noise of scale `cap / ε`: whoever sees it can hardly tell
//! whether a member asked for something in that step or for nothing: for any number, its chance differs by at most the factor
//! e^ε. With ε = 1 and a cap of 1 GiB the noise is 1 GiB in the mean; a group of twenty that asks for 20 GiB is told to a
//! twentieth. Sampled with whole numbers alone: rounding of floats is known to give away what noise should hide.
//!
//! Source: C. Canonne, G. Kamath, T. Steinke, "The Discrete Gaussian for Differential Privacy", NeurIPS 2020, algorithms 1
//! and 2; I. Mironov, "On Significance of the Least Significant Bits for Differential Privacy", CCS 2012.

use gnomon_terms::Bytes;

/// What numbers are told in: noise below it would be for nothing.
const GRAIN: u64 = 1 << 20;
/// The largest scale: in grains an exbibyte, which is beyond any host.
const SCALES: u64 = 1 << 40;
/// The finest ε that is kept apart.
const FINEST: f64 = 1e-3;

/// Rounds of a draw after which it ends whatever the bits are: a good generator needs as many once in e^60 draws. One that is
/// stuck gives no noise, and holds nobody up.
const ROUNDS: u64 = 64;

/// Evenly distributed bits. Of a real generator: where it repeats, noise can be taken off again.
pub type Bits<'a> = dyn FnMut() -> u64 + 'a;

/// So many bytes with noise that hides a contribution of `cap` at `epsilon` (above 0.0; the smaller, the more noise), in
/// whole MiB; never less than nothing.
pub fn noised(bytes: f64, cap: Bytes, epsilon: f64, bits: &mut Bits) -> f64 {
    noised_number(bytes / GRAIN as f64, cap.0.div_ceil(GRAIN), epsilon, bits) * GRAIN as f64
}

/// A number, made whole, with noise that hides a contribution of `most`; never less than nothing.
pub(super) fn noised_number(number: f64, most: u64, epsilon: f64, bits: &mut Bits) -> f64 {
    (number.round() + laplace(scale(most, epsilon), bits) as f64).max(0.0)
}

/// The noise's scale.
fn scale(most: u64, epsilon: f64) -> u64 {
    let epsilon = if epsilon.is_finite() { epsilon.max(FINEST) } else { FINEST };
    ((most as f64 / epsilon).ceil() as u64).clamp(1, SCALES)
}

/// A whole number, n with a chance proportional to e^(−|n| / scale).
fn laplace(scale: u64, bits: &mut Bits) -> i64 {
    for _ in 0..ROUNDS {
        let rest = below(scale, bits);
        if !by_exp(rest, scale, bits) {
            continue;
        }
        let mut whole = 0u64;
        while whole < ROUNDS && by_exp(1, 1, bits) {
            whole += 1;
        }
        let size = (rest + scale.saturating_mul(whole)).min(i64::MAX as u64) as i64;
        match (bits() & 1 == 1, size) {
            // Zero would be twice as likely as it should be.
            (true, 0) => continue,
            (true, size) => return -size,
            (false, size) => return size,
        }
    }
    0
}

/// Yes with a chance of e^(−part / whole); part is at most whole.
fn by_exp(part: u64, whole: u64, bits: &mut Bits) -> bool {
    let mut round = 1;
    while round < ROUNDS && below(whole.saturating_mul(round), bits) < part {
        round += 1;
    }
    round % 2 == 1
}

/// A number below `bound`, each as likely as any; 0 of none.
fn below(bound: u64, bits: &mut Bits) -> u64 {
    let Some(over) = u64::MAX.checked_rem(bound) else { return 0 };
    let mut roll = bits();
    for _ in 0..ROUNDS {
        // The last numbers, which do not make a whole round of `bound`, are rolled again.
        if roll < u64::MAX - over {
            break;
        }
        roll = bits();
    }
    roll % bound
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Bits that a seed repeats, for tests.
    pub(crate) fn seeded(mut seed: u64) -> impl FnMut() -> u64 {
        move || {
            seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut bits = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            bits ^ (bits >> 31)
        }
    }

    #[test]
    fn its_chances_are_those_of_the_law() {
        let (mut bits, scale, rolls) = (seeded(3), 4u64, 200_000);
        let mut counts = std::collections::BTreeMap::new();
        (0..rolls).for_each(|_| *counts.entry(laplace(scale, &mut bits)).or_insert(0u32) += 1);
        let alpha = (-1.0 / scale as f64).exp();
        for n in -8i64..=8 {
            let expected = (1.0 - alpha) / (1.0 + alpha) * alpha.powi(n.unsigned_abs() as i32);
            let seen = f64::from(counts.get(&n).copied().unwrap_or(0)) / f64::from(rolls);
            // Five standard deviations of a count.
            let bound = 5.0 * (expected / f64::from(rolls)).sqrt();
            assert!((seen - expected).abs() < bound, "{n}: {seen}, not {expected}");
        }
    }

    #[test]
    fn what_is_seen_with_a_member_is_seen_without_it_too() {
        // Two groups that differ by what one member may add: the chance of each outcome differs by e^ε at most.
        let (epsilon, rolls) = (1.0, 100_000);
        let cap = Bytes(8 << 20);
        let told = |bytes: u64, seed| {
            let mut bits = seeded(seed);
            let mut counts = vec![0u32; 64];
            for _ in 0..rolls {
                let mib = noised((bytes << 20) as f64, cap, epsilon, &mut bits) as u64 >> 20;
                counts[(mib as usize).min(63)] += 1;
            }
            counts
        };
        let (without, with) = (told(20, 5), told(28, 7));
        for (mib, (one, other)) in
            without.iter().zip(&with).enumerate().filter(|(_, (one, other))| **one.min(other) > 500)
        {
            let ratio = f64::from(*one) / f64::from(*other);
            assert!((ratio.ln().abs()) < epsilon + 0.2, "{mib} MiB: {one} and {other}");
        }
    }

    #[test]
    fn a_generator_that_is_stuck_holds_nobody_up() {
        for stuck in [0, 1, u64::MAX, u64::MAX - 1, 1 << 63] {
            let told = noised(1e9, Bytes(1 << 30), 1.0, &mut || stuck);
            assert!(told.is_finite(), "{stuck}: {told}");
        }
    }

    #[test]
    fn no_bits_and_no_scale_are_too_odd() {
        let mut bits = seeded(9);
        for epsilon in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e300, 1e-300] {
            for cap in [0, 1, u64::MAX] {
                let told = noised(1e12, Bytes(cap), epsilon, &mut bits);
                assert!(told.is_finite() && told >= 0.0, "{cap} {epsilon}: {told}");
            }
        }
        assert!(noised(-5.0, Bytes(0), 1e300, &mut seeded(1)) < (64 << 20) as f64, "the least noise is of one MiB");
    }
}
