//! Chance from a seed: a small generator, the Zipf law, and a permutation that scatters ranks over a disk.
//!
//! Everything is repeatable: the same seed asks for the same records in the same order, in the guest and on the host.

/// SplitMix64: 64 bits of state, one multiply-xor cascade per number. Good enough to choose records and fill them.
/// Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// A generator whose whole future is decided by `seed`.
    pub fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    /// The next 64 bits.
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        scramble(self.0)
    }

    /// A number in `[0, 1)` with 53 random bits.
    pub fn unit(&mut self) -> f64 {
        (self.roll() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A number below `bound` (0 when `bound` is 0). The bias of multiply-and-shift is below 2^-32 for our bounds.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.roll()) * u128::from(bound)) >> 64) as u64
    }
}

/// SplitMix64's finisher: a bijection of 64 bits in which each input bit sways all output bits.
pub fn scramble(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// Draws ranks `0..count` with probability proportional to `1 / (rank + 1)^exponent`, without a table.
///
/// Source: Hörmann, Derflinger, "Rejection-inversion to generate variates from monotone discrete distributions",
/// ACM TOMACS 6 (1996).
#[derive(Clone, Debug)]
pub struct Zipf {
    count: u64,
    exponent: f64,
    area_first: f64,
    area_last: f64,
    shortcut: f64,
}

impl Zipf {
    /// A law over `count` ranks (at least one). An exponent near 1 is what block traces show; 0 is uniform.
    pub fn new(count: u64, exponent: f64) -> Zipf {
        let count = count.max(1);
        let exponent = exponent.max(0.0);
        Zipf {
            count,
            exponent,
            area_first: area(1.5, exponent) - 1.0,
            area_last: area(count as f64 + 0.5, exponent),
            shortcut: 2.0 - area_inverse(area(2.5, exponent) - height(2.0, exponent), exponent),
        }
    }

    /// One rank in `0..count`; 0 is the hottest.
    pub fn rank(&self, dice: &mut Dice) -> u64 {
        loop {
            let under = self.area_last + dice.unit() * (self.area_first - self.area_last);
            let x = area_inverse(under, self.exponent);
            let nearest = (x + 0.5).floor().clamp(1.0, self.count as f64);
            let surely = nearest - x <= self.shortcut;
            if surely || under >= area(nearest + 0.5, self.exponent) - height(nearest, self.exponent) {
                return nearest as u64 - 1;
            }
        }
    }
}

/// The hat function `x^-exponent`.
fn height(x: f64, exponent: f64) -> f64 {
    (-exponent * x.ln()).exp()
}

/// The integral of the hat up to `x`, written so that it stays exact as the exponent passes through 1.
fn area(x: f64, exponent: f64) -> f64 {
    let log = x.ln();
    let t = (1.0 - exponent) * log;
    let ratio = if t.abs() > 1e-8 { t.exp_m1() / t } else { 1.0 + t / 2.0 };
    ratio * log
}

/// The inverse of [`area`].
fn area_inverse(y: f64, exponent: f64) -> f64 {
    let t = (y * (1.0 - exponent)).max(-1.0);
    let ratio = if t.abs() > 1e-8 { t.ln_1p() / t } else { 1.0 - t / 2.0 };
    (ratio * y).exp()
}

/// A bijection of `0..count`, decided by a seed: neighbours in rank land far apart on the disk.
///
/// Four Feistel rounds over the next even power of two; a value that falls outside walks on until it is inside.
/// Source: Black, Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002 (cycle walking).
#[derive(Clone, Debug)]
pub struct Scatter {
    count: u64,
    half_bits: u32,
    keys: [u64; 4],
}

impl Scatter {
    /// The bijection of `0..count` that `seed` names.
    pub fn new(count: u64, seed: u64) -> Scatter {
        let bits = 64 - count.saturating_sub(1).leading_zeros();
        let mut dice = Dice::new(seed);
        Scatter { count, half_bits: bits.div_ceil(2).max(1), keys: std::array::from_fn(|_| dice.roll()) }
    }

    /// Where `rank` lands. Ranks outside `0..count` stay where they are.
    pub fn place(&self, rank: u64) -> u64 {
        if rank >= self.count {
            return rank;
        }
        let mut place = self.feistel(rank);
        while place >= self.count {
            place = self.feistel(place);
        }
        place
    }

    fn feistel(&self, value: u64) -> u64 {
        let mask = (1u64 << self.half_bits) - 1;
        let (mut left, mut right) = (value >> self.half_bits, value & mask);
        for key in self.keys {
            (left, right) = (right, left ^ (scramble(right ^ key) & mask));
        }
        (left << self.half_bits) | right
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scatter_is_a_bijection() {
        for count in [1, 2, 3, 7, 64, 1000, 4097] {
            let scatter = Scatter::new(count, 42);
            let mut places: Vec<u64> = (0..count).map(|rank| scatter.place(rank)).collect();
            places.sort_unstable();
            assert_eq!(places, (0..count).collect::<Vec<_>>(), "count {count}");
        }
    }

    #[test]
    fn scatter_depends_on_the_seed_and_parts_neighbours() {
        let (one, two) = (Scatter::new(100_000, 1), Scatter::new(100_000, 2));
        let same = (0..1000).filter(|&rank| one.place(rank) == two.place(rank)).count();
        assert!(same < 10, "{same} of 1000 ranks land alike");
        let near = (0..1000).filter(|&rank| one.place(rank).abs_diff(one.place(rank + 1)) < 100).count();
        assert!(near < 20, "{near} of 1000 neighbours stay near");
    }

    #[test]
    fn zipf_follows_its_law() {
        // (ranks, exponent): the share of each of the first ranks must be within 5 % of 1/k^s over the harmonic sum.
        for (count, exponent) in [(1u64, 1.0), (10, 0.0), (1000, 0.8), (1000, 1.0), (100_000, 0.99), (1000, 1.5)] {
            let law = Zipf::new(count, exponent);
            let mut dice = Dice::new(7);
            const DRAWS: usize = 400_000;
            let mut seen = vec![0u32; count as usize];
            for _ in 0..DRAWS {
                seen[law.rank(&mut dice) as usize] += 1;
            }
            let total: f64 = (1..=count).map(|k| (k as f64).powf(-exponent)).sum();
            for (rank, &seen) in seen.iter().enumerate().take(5) {
                let expected = ((rank + 1) as f64).powf(-exponent) / total * DRAWS as f64;
                let off = (f64::from(seen) - expected).abs() / expected;
                assert!(off < 0.05, "count {count} exponent {exponent} rank {rank}: off by {off:.3}");
            }
        }
    }

    #[test]
    fn below_stays_below() {
        let mut dice = Dice::new(3);
        assert_eq!(dice.below(0), 0);
        assert!((0..1000).all(|_| dice.below(10) < 10));
    }
}
