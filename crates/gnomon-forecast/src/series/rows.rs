//! Pairs to learn from: what was known then, and what came.

use std::collections::VecDeque;

use super::{
    Step,
    lags::{Features, Lags},
    tree::{Row, coarse},
};

/// What was known at a step about a later one.
#[derive(Clone, Debug)]
pub(super) struct Then {
    /// What a model would have seen.
    pub(super) features: Features,
    /// What it is told against.
    pub(super) centre: f32,
}

/// The distances a model learns for a horizon: the next step, and the horizon if that is another.
pub(super) fn distances(horizon: usize) -> impl Iterator<Item = usize> {
    std::iter::once(0).chain((horizon > 0).then_some(horizon))
}

/// Steps not yet come, and what was known about each when the distance was right. One queue for each distance.
#[derive(Clone, Debug, Default)]
pub(super) struct Past {
    queues: Vec<VecDeque<Option<Then>>>,
}

impl Past {
    /// Notes what is known now, for each of `distances`.
    pub(super) fn note(&mut self, lags: &Lags, distances: &[usize]) {
        self.queues.resize(distances.len(), VecDeque::new());
        for (queue, ahead) in self.queues.iter_mut().zip(distances) {
            let then = lags.features(*ahead).map(|features| Then { features, centre: lags.centre() });
            queue.push_back(then);
            if queue.len() > ahead + 1 {
                queue.pop_front();
            }
        }
    }

    /// What was known about the step that comes now, at the distance of this place among the distances.
    pub(super) fn about_now(&self, place: usize, ahead: usize) -> Option<&Then> {
        self.queues.get(place).filter(|queue| queue.len() == ahead + 1)?.front()?.as_ref()
    }

    /// A step comes: each head is taught what was known about it at its distance, and what is known now is noted.
    pub(super) fn teach<H: Taught>(&mut self, lags: &mut Lags, heads: &mut [H], step: &Step) {
        if let Some(value) = step.value {
            let came = lags.squash(value);
            for (place, head) in heads.iter_mut().enumerate() {
                if let Some(then) = self.about_now(place, head.ahead()) {
                    head.note(Row { known: coarse(&then.features), came: came - then.centre });
                }
            }
        }
        lags.observe(step);
        let distances: Vec<usize> = heads.iter().map(H::ahead).collect();
        self.note(lags, &distances);
    }

    /// Bytes of state.
    pub(super) fn bytes(&self) -> usize {
        self.queues.iter().map(|queue| queue.capacity() * size_of::<Option<Then>>()).sum()
    }
}

/// What learns for one distance.
pub(super) trait Taught {
    /// How many steps after the next it is about.
    fn ahead(&self) -> usize;

    /// What was known about a step, and what came.
    fn note(&mut self, row: Row);
}

/// What is said for `ahead`, from what is said for the nearest and the farthest distance: on a line between them, beyond
/// the farthest as for that.
pub(super) fn at_distance(ahead: usize, near: Vec<f64>, far: Option<(usize, Vec<f64>)>) -> Vec<f64> {
    let Some((horizon, far)) = far else { return near };
    let share = (ahead as f64 / horizon.max(1) as f64).min(1.0);
    near.iter().zip(far).map(|(near, far)| near + share * (far - near)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::series::Step;

    #[test]
    fn a_pair_is_as_far_apart_as_it_says() {
        let (mut lags, mut past) = (Lags::new(24), Past::default());
        let distances = [0, 3];
        let mut known: Vec<[Option<Features>; 2]> = Vec::new();
        for step in 0..40usize {
            for (place, ahead) in distances.into_iter().enumerate() {
                let then = past.about_now(place, ahead).map(|then| then.features);
                let expected = step.checked_sub(ahead + 1).and_then(|at| known[at][place]);
                assert_eq!(then, expected, "step {step}, {ahead} ahead");
                assert_eq!(then.is_some(), step >= 12 + ahead);
            }
            lags.observe(&Step::of((step * step % 31) as f64));
            past.note(&lags, &distances);
            known.push(distances.map(|ahead| lags.features(ahead)));
        }
    }

    #[test]
    fn between_distances_there_is_a_line() {
        for (ahead, value) in [(0, 10.0), (2, 15.0), (4, 20.0), (9, 20.0)] {
            assert_eq!(at_distance(ahead, vec![10.0], Some((4, vec![20.0]))), [value]);
        }
        assert_eq!(at_distance(7, vec![10.0], None), [10.0]);
    }
}
