//! Chances over places, and what can be read off them.

use super::{MAX_PLACES, Region};

/// What every place has at least, before all are scaled to sum to one: nothing is impossible.
const LEAST: f32 = 1e-4;

/// A chance for each place; they sum to one and none is nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct Chances {
    all: Vec<f32>,
}

impl Chances {
    /// From weights, one a place (at most [`MAX_PLACES`], at least one), of any sum. What is no weight counts as nothing.
    pub fn of(mut weights: Vec<f32>) -> Chances {
        weights.truncate(MAX_PLACES);
        if weights.is_empty() {
            weights.push(1.0);
        }
        let weight = |weight: f32| if weight.is_finite() { f64::from(weight.max(0.0)) } else { 0.0 };
        // In 64 bits: the sum of the largest weights is a number, and that of the least is not nothing.
        let sum: f64 = weights.iter().copied().map(weight).sum();
        let whole = f64::from(u8::from(sum > 0.0));
        let share = |given: f32| if sum > 0.0 { weight(given) / sum } else { 0.0 };
        let (least, places) = (f64::from(LEAST), weights.len() as f64);
        Chances {
            all: weights.iter().map(|given| ((share(*given) + least) / (whole + least * places)) as f32).collect(),
        }
    }

    /// All places alike.
    pub fn even(places: usize) -> Chances {
        Chances::of(vec![1.0; places.clamp(1, MAX_PLACES)])
    }

    /// The chance of each place, by its number.
    pub fn all(&self) -> &[f32] {
        &self.all
    }

    /// The chance of a place.
    pub fn at(&self, place: Region) -> f32 {
        self.all.get(place.number()).copied().unwrap_or(LEAST)
    }

    /// The chances if it is known not to be `here`: of where somebody goes who goes.
    pub fn elsewhere(&self, here: Region) -> Chances {
        let weights = self.all.iter().enumerate();
        Chances::of(weights.map(|(at, chance)| if at == here.number() { 0.0 } else { *chance }).collect())
    }

    /// The `k` likeliest places, the likeliest first, with their chances. Those of equal chance by their numbers.
    pub fn top(&self, k: usize) -> Vec<(Region, f32)> {
        let mut places: Vec<(Region, f32)> =
            self.all.iter().enumerate().filter_map(|(at, chance)| Some((Region::new(at).ok()?, *chance))).collect();
        places.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        places.truncate(k);
        places
    }

    /// The same, or nothing when their chances together are less than `enough`: to say nothing is an answer too.
    pub fn top_if(&self, k: usize, enough: f32) -> Option<Vec<(Region, f32)>> {
        let top = self.top(k);
        (top.iter().map(|(_, chance)| chance).sum::<f32>() >= enough).then_some(top)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn top_place(chances: &Chances) -> Region {
        chances.top(1)[0].0
    }

    #[test]
    fn the_likeliest_come_first_and_silence_when_too_unlikely() {
        let chances = Chances::of(vec![1.0, 5.0, 2.0, 2.0]);
        let top: Vec<usize> = chances.top(3).iter().map(|(place, _)| place.number()).collect();
        assert_eq!(top, [1, 2, 3]);
        assert!(chances.top_if(1, 0.45).is_some() && chances.top_if(1, 0.55).is_none());
        assert!(chances.top_if(2, 0.65).is_some());
        let (likeliest, chance) = chances.elsewhere(top_place(&chances)).top(1)[0];
        assert!(likeliest.number() == 2 && (chance - 0.4).abs() < 0.01, "{chance}");
    }

    #[test]
    fn the_least_and_the_largest_weights_are_weights() {
        for weight in [4.6e-40, f32::MAX] {
            assert_eq!(Chances::of(vec![weight; 3]), Chances::even(3), "{weight}");
        }
        assert_eq!(Chances::of(vec![f32::NAN, -1.0, f32::INFINITY]), Chances::even(3));
    }

    proptest! {
        #[test]
        fn any_weights_become_chances(weights in prop::collection::vec(any::<f32>(), 0..200)) {
            let chances = Chances::of(weights);
            prop_assert!((chances.all().iter().sum::<f32>() - 1.0).abs() < 1e-3);
            prop_assert!(chances.all().iter().all(|chance| *chance > 0.0 && chance.is_finite()));
        }
    }
}
