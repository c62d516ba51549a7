//! How weights follow a gradient: Adam, with the gradient's length bounded.
//!
//! Source: Kingma and Ba, "Adam: a method for stochastic optimization" (2015); Pascanu, Mikolov and Bengio (2013) for
//! the bound.

/// The longest gradient followed (the root of the sum of its squares). A stretch that surprises the network would
/// otherwise throw it far from all that it has learned.
const LONGEST: f32 = 1.0;
/// How much of the mean of gradients, and of their squares, is kept at each step: the authors' values.
const KEPT: (f32, f32) = (0.9, 0.999);

/// The memory of the gradients so far.
#[derive(Clone, Debug, PartialEq)]
pub struct Adam {
    pub(super) mean: Vec<f32>,
    pub(super) square: Vec<f32>,
    /// Steps made, as far as they matter.
    pub(super) steps: u32,
}

impl Adam {
    /// For so many weights.
    pub fn new(weights: usize) -> Adam {
        Adam { mean: vec![0.0; weights], square: vec![0.0; weights], steps: 0 }
    }

    /// Moves `weights` against `gradient` by about `rate` each. A gradient that is not finite moves nothing.
    pub fn follow(&mut self, weights: &mut [f32], gradient: &[f32], rate: f32) {
        let length = super::math::dot(gradient, gradient).sqrt();
        if !length.is_finite() {
            return;
        }
        let scale = if length > LONGEST { LONGEST / length } else { 1.0 };
        self.steps = self.steps.saturating_add(1);
        // The first steps have seen little: what the means lack is made up for.
        let lacks = |kept: f32| 1.0 - kept.powi(self.steps.min(10_000) as i32);
        let (mean_lacks, square_lacks) = (lacks(KEPT.0), lacks(KEPT.1));
        let rate = rate / mean_lacks;
        for (at, weight) in weights.iter_mut().enumerate() {
            let by = gradient[at] * scale;
            self.mean[at] = KEPT.0 * self.mean[at] + (1.0 - KEPT.0) * by;
            self.square[at] = KEPT.1 * self.square[at] + (1.0 - KEPT.1) * by * by;
            *weight -= rate * self.mean[at] / ((self.square[at] / square_lacks).sqrt() + 1e-8);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_finds_the_bottom_of_a_bowl_and_ignores_nonsense() {
        let (mut adam, mut weights) = (Adam::new(2), vec![3.0f32, -200.0]);
        for _ in 0..4000 {
            let gradient = [2.0 * (weights[0] - 1.0), 0.02 * (weights[1] + 199.0)];
            adam.follow(&mut weights, &gradient, 0.01);
        }
        assert!((weights[0] - 1.0).abs() < 0.01 && (weights[1] + 199.0).abs() < 0.1, "{weights:?}");
        let before = weights.clone();
        adam.follow(&mut weights, &[f32::NAN, 1.0], 0.01);
        assert_eq!(weights, before);
    }
}
