//! Who to believe: multiplicative weights over experts.
//!
//! Each time the truth is known every expert is charged a loss between 0 and 1 and its weight shrinks by
//! `exp(-rate × loss)`; then weights are scaled to sum to one and none is let below a floor, so that an expert that
//! was wrong for a day can come back within minutes.
//!
//! Where experts say chances and their weighted mean is what is told, the best mean is not the best expert: two that are
//! wrong at different times are better together. Then each is charged by what more of it would have been worth to the
//! mean ([`Hedge::charge_chances`]).
//!
//! Source: Littlestone and Warmuth, "The weighted majority algorithm"; Freund and Schapire's Hedge; the floor is
//! the fixed share of Herbster and Warmuth. Chances: Orseau, Lattimore and Legg, "Soft-Bayes: Prod for mixtures of experts
//! with log-loss" (2017).

/// Weights over `N` experts; they sum to one.
#[derive(Clone, Debug)]
pub struct Hedge<const N: usize> {
    weights: [f32; N],
    rate: f32,
    floor: f32,
}

impl<const N: usize> Hedge<N> {
    /// Equal weights. `rate` is how strongly a loss of 1 counts; `floor` is the least weight, below `1 / N`.
    pub fn new(rate: f32, floor: f32) -> Hedge<N> {
        Hedge { weights: [1.0 / N as f32; N], rate, floor: floor.min(1.0 / N as f32) }
    }

    /// The first expert has all the weight, the others the least: they are to earn what they get.
    pub fn led_by_the_first(rate: f32, floor: f32) -> Hedge<N> {
        let mut hedge = Hedge::new(rate, floor);
        hedge.weights = [hedge.floor; N];
        hedge.weights[0] = 1.0 - hedge.floor * (N - 1) as f32;
        hedge
    }

    /// Takes from one expert all that it has earned.
    pub fn forget(&mut self, expert: usize) {
        self.weights[expert] = self.weights[expert].min(self.floor);
    }

    /// Charges each expert its loss, 0 (would have served the guest) to 1 (would have let it wait).
    pub fn charge(&mut self, losses: &[f32; N]) {
        let least = losses.iter().copied().fold(f32::INFINITY, f32::min);
        for (weight, loss) in self.weights.iter_mut().zip(losses) {
            // Only differences matter; charging them instead of the losses keeps the weights from vanishing. The
            // exponent is at most `rate`, so one term of the series is enough while the rate is small.
            *weight = (*weight * (1.0 - self.rate * (loss - least)).max(0.0)).max(self.floor);
        }
        let sum: f32 = self.weights.iter().sum();
        self.weights.iter_mut().for_each(|weight| *weight /= sum);
    }

    /// Charges each expert by the chance that it had given to what came. `rate` is then the share of each weight that is
    /// dealt out anew, by how far each was above the mean. Chances of which none is above nothing change no weight.
    pub fn charge_chances(&mut self, chances: &[f32; N]) {
        let mean: f32 = self.weights.iter().zip(chances).map(|(weight, chance)| weight * chance).sum();
        if !(mean > 0.0 && mean.is_finite()) {
            return;
        }
        for (weight, chance) in self.weights.iter_mut().zip(chances) {
            *weight = (*weight * (1.0 - self.rate + self.rate * chance / mean)).max(self.floor);
        }
        let sum: f32 = self.weights.iter().sum();
        self.weights.iter_mut().for_each(|weight| *weight /= sum);
    }

    /// The weights.
    pub fn weights(&self) -> &[f32; N] {
        &self.weights
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_better_expert_takes_over_and_can_lose_again() {
        let mut hedge = Hedge::<2>::new(0.05, 0.01);
        (0..500).for_each(|_| hedge.charge(&[0.0, 1.0]));
        assert!(hedge.weights()[0] > 0.98);
        (0..500).for_each(|_| hedge.charge(&[1.0, 0.0]));
        assert!(hedge.weights()[1] > 0.98);
    }

    #[test]
    fn who_enters_has_to_earn_and_can_lose_all() {
        let mut hedge = Hedge::<3>::led_by_the_first(0.05, 0.01);
        assert_eq!(hedge.weights(), &[0.98, 0.01, 0.01]);
        (0..300).for_each(|_| hedge.charge(&[0.5, 0.0, 0.5]));
        assert!(hedge.weights()[1] > 0.9 && hedge.weights()[2] < 0.02);
        hedge.forget(1);
        assert!(hedge.weights()[1] <= 0.01);
    }

    #[test]
    fn two_that_are_right_in_turns_share_what_is_believed() {
        let (mut mixing, mut choosing) = (Hedge::<3>::new(0.05, 0.01), Hedge::<3>::new(0.05, 0.01));
        for round in 0..2000 {
            // The first knows two of three times, the second the third; the last never says anything but one half.
            let chances = if round % 3 < 2 { [0.9, 0.1, 0.4] } else { [0.1, 0.9, 0.4] };
            mixing.charge_chances(&chances);
            choosing.charge(&chances.map(|chance: f32| (-chance.ln() / 9.2).min(1.0)));
        }
        // The mean is best where each has the share of the times that it is right, but for the floor of the last.
        let [first, second, _] = *mixing.weights();
        assert!((first - 0.7).abs() < 0.06 && (second - 0.29).abs() < 0.06, "{:?}", mixing.weights());
        assert!(choosing.weights()[1] < 0.05, "{:?}", choosing.weights());
    }

    #[test]
    fn chances_that_are_none_move_nothing() {
        let mut hedge = Hedge::<2>::new(0.05, 0.01);
        for chances in [[0.0, 0.0], [f32::NAN, 0.5], [f32::INFINITY, 0.5], [-1.0, 0.5]] {
            hedge.charge_chances(&chances);
            assert_eq!(hedge.weights(), &[0.5, 0.5], "{chances:?}");
        }
    }

    proptest! {
        #[test]
        fn weights_stay_a_distribution_whatever_chances_were_given(
            all in prop::collection::vec(prop::array::uniform3(0f32..=1.0), 0..300)
        ) {
            let mut hedge = Hedge::<3>::new(0.1, 0.02);
            all.iter().for_each(|chances| hedge.charge_chances(chances));
            prop_assert!((hedge.weights().iter().sum::<f32>() - 1.0).abs() < 1e-4);
            prop_assert!(hedge.weights().iter().all(|w| *w >= 0.01));
        }

        #[test]
        fn weights_stay_a_distribution(losses in prop::collection::vec(prop::array::uniform3(0f32..=1.0), 0..300)) {
            let mut hedge = Hedge::<3>::new(0.1, 0.02);
            for loss in losses {
                hedge.charge(&loss);
            }
            prop_assert!((hedge.weights().iter().sum::<f32>() - 1.0).abs() < 1e-4);
            prop_assert!(hedge.weights().iter().all(|w| *w >= 0.01));
        }
    }
}
