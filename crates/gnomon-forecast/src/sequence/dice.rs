//! Numbers that look random and that a seed repeats: first weights, and shuffles in tests. No secret hangs on them.
//!
//! Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (OOPSLA 2014): SplitMix64.

/// A generator of which one number is the whole state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dice(pub u64);

impl Dice {
    /// The next 64 bits.
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// A number from -1 to 1, of 24 bits.
    pub fn even(&mut self) -> f32 {
        (self.roll() >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    }

    /// A number below `bound`, which is at least 1.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.roll() % bound.max(1) as u64) as usize
    }

    /// Puts `items` into another order, each as likely as any.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for at in (1..items.len()).rev() {
            items.swap(at, self.below(at + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_numbers_come() {
        // Source: the first outputs for seed 1234567, as the authors' C program prints them.
        let mut dice = Dice(1_234_567);
        assert_eq!([dice.roll(), dice.roll()], [6_457_827_717_110_365_317, 3_203_168_211_198_807_973]);
    }

    #[test]
    fn even_numbers_are_within_one_and_shuffles_keep_all() {
        let mut dice = Dice(7);
        let mean = (0..10_000).map(|_| dice.even()).inspect(|x| assert!(x.abs() <= 1.0)).sum::<f32>() / 10_000.0;
        assert!(mean.abs() < 0.05, "{mean}");
        let mut items: Vec<u32> = (0..50).collect();
        dice.shuffle(&mut items);
        assert!(!items.is_sorted());
        items.sort_unstable();
        assert_eq!(items, (0..50).collect::<Vec<_>>());
    }
}
