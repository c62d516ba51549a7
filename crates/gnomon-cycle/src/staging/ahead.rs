//! From forecasts of single steps to one of all steps within the horizon.
//!
//! What is staged has to last for the horizon, so what counts is the quantile of a sum; the sum of quantiles is far above it.
//! So many lives of the group are dealt out: each step's distribution is cut into equally likely slices, and each life gets
//! one slice of each step, shuffled. The sums of lives, sorted, are the distribution of what will be asked for. Of one step
//! they are its own distribution exactly. Steps count as independent; what that leaves out the reserve's knob makes up for.
//!
//! Source: M. McKay, R. Beckman, W. Conover, "A Comparison of Three Methods for Selecting Values of Input Variables",
//! Technometrics 1979 (Latin hypercube sampling).

use gnomon_forecast::sequence::Dice;

/// Lives that are dealt out: with 256 the quantile of 0.99 is that of the third from above.
const LIVES: usize = 256;
/// Distances that models are asked about; between them forecasts change little.
const ASKED: usize = 12;
/// The most steps of a horizon: a day of 5-minute steps.
pub const MOST_STEPS: usize = 288;
/// What lives are shuffled by: the same each time, so that the same past gives the same target.
const SEED: u64 = 9_507_540;

/// What will be asked for within the horizon, as equally likely sums.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Ahead {
    sums: Vec<f64>,
}

impl Ahead {
    /// Of `steps` steps (1 to [`MOST_STEPS`]); `quantiles` answers for the step after the next so many ones. `None` while
    /// it does not know.
    pub(super) fn over(steps: usize, quantiles: impl Fn(usize, &[f64]) -> Option<Vec<f64>>) -> Option<Ahead> {
        let steps = steps.clamp(1, MOST_STEPS);
        let levels: Vec<f64> = (0..LIVES).map(|life| (life as f64 + 0.5) / LIVES as f64).collect();
        let asked = steps.min(ASKED);
        let mut sums = vec![0.0; LIVES];
        let mut dice = Dice(SEED);
        let mut slices = Vec::new();
        for step in 0..steps {
            let (part, before) = (step * asked / steps, step.checked_sub(1).map(|step| step * asked / steps));
            if Some(part) != before {
                slices = quantiles(part * steps / asked, &levels)?;
            }
            if step > 0 {
                dice.shuffle(&mut slices);
            }
            sums.iter_mut().zip(&slices).for_each(|(sum, slice)| *sum += slice.max(0.0));
        }
        sums.sort_by(f64::total_cmp);
        Some(Ahead { sums })
    }

    /// What the sum stays below with this probability.
    pub(super) fn at(&self, level: f64) -> f64 {
        let place = (level * LIVES as f64 - 0.5).clamp(0.0, LIVES as f64 - 1.0);
        let (below, above) = (self.sums[place.floor() as usize], self.sums[place.ceil() as usize]);
        below + (above - below) * place.fract()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Evenly distributed between 0 and 100, whatever the distance.
    fn even(_: usize, levels: &[f64]) -> Option<Vec<f64>> {
        Some(levels.iter().map(|level| level * 100.0).collect())
    }

    #[test]
    fn of_one_step_it_is_that_steps_distribution() {
        let ahead = Ahead::over(1, even).expect("it knows");
        for level in [0.02, 0.5, 0.9, 0.98] {
            assert!((ahead.at(level) - 100.0 * level).abs() < 1e-9, "{level}");
        }
    }

    #[test]
    fn of_many_steps_it_is_far_below_the_sum_of_quantiles() {
        // The sum of n even numbers: mean 50 n, variance 10,000 n / 12.
        for steps in [4usize, 12, 60, 288] {
            let ahead = Ahead::over(steps, even).expect("it knows");
            let (mean, deviation) = (50.0 * steps as f64, (10_000.0 / 12.0 * steps as f64).sqrt());
            assert!((ahead.at(0.5) - mean).abs() < 0.3 * deviation, "{steps}: {}", ahead.at(0.5));
            assert!((ahead.at(0.9) - mean - 1.28 * deviation).abs() < 0.3 * deviation, "{steps}: {}", ahead.at(0.9));
        }
    }

    #[test]
    fn each_distance_has_its_own_say_and_none_knowing_is_silence() {
        let rising = |ahead: usize, levels: &[f64]| Some(vec![ahead as f64; levels.len()]);
        assert_eq!(Ahead::over(4, rising).expect("it knows").at(0.5), 0.0 + 1.0 + 2.0 + 3.0);
        assert_eq!(Ahead::over(4, |_, _| None), None);
        let late = |ahead: usize, levels: &[f64]| (ahead < 2).then(|| vec![1.0; levels.len()]);
        assert_eq!(Ahead::over(4, late), None);
    }
}
