//! The last values, in order of time and in order of size.

use std::collections::VecDeque;

/// A window of values whose ranks are known at any moment: O(log n) to find a place, a short move of memory to keep it.
#[derive(Clone, Debug)]
pub(super) struct Ranks {
    most: usize,
    by_time: VecDeque<f64>,
    by_size: Vec<f64>,
}

impl Ranks {
    /// Keeps the last `most` values, at least one.
    pub(super) fn new(most: usize) -> Ranks {
        Ranks { most: most.max(1), by_time: VecDeque::new(), by_size: Vec::new() }
    }

    /// Adds a value; the oldest leaves when the window is full.
    pub(super) fn push(&mut self, value: f64) {
        if self.by_time.len() == self.most
            && let Some(oldest) = self.by_time.pop_front()
        {
            let place = self.place(oldest);
            self.by_size.remove(place);
        }
        self.by_time.push_back(value);
        self.by_size.insert(self.place(value), value);
    }

    /// How many values there are.
    pub(super) fn len(&self) -> usize {
        self.by_size.len()
    }

    /// The value that the next stays below with probability `level`: of n values the next falls below the k-th smallest
    /// with probability k / (n + 1). `None` without values.
    pub(super) fn at(&self, level: f64) -> Option<f64> {
        let last = self.by_size.len().checked_sub(1)?;
        let place = (level * (last as f64 + 2.0) - 1.0).clamp(0.0, last as f64);
        let (below, above) = (self.by_size[place.floor() as usize], self.by_size[place.ceil() as usize]);
        Some(below + (above - below) * place.fract())
    }

    /// Bytes of the values.
    pub(super) fn bytes(&self) -> usize {
        (self.by_time.capacity() + self.by_size.capacity()) * size_of::<f64>()
    }

    fn place(&self, value: f64) -> usize {
        self.by_size.partition_point(|known| known.total_cmp(&value).is_lt())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_is_the_sorted_window(values in prop::collection::vec(-5i8..5, 1..60), most in 1usize..20) {
            let mut ranks = Ranks::new(most);
            values.iter().for_each(|value| ranks.push(f64::from(*value)));
            let mut window: Vec<f64> = values.iter().rev().take(most).map(|value| f64::from(*value)).collect();
            window.sort_by(f64::total_cmp);
            prop_assert_eq!(&ranks.by_size, &window);
            prop_assert_eq!((ranks.at(0.0), ranks.at(1.0)), (window.first().copied(), window.last().copied()));
        }
    }

    #[test]
    fn ranks_are_exact_where_there_are_enough() {
        let mut ranks = Ranks::new(99);
        (1..=99).for_each(|value| ranks.push(f64::from(value)));
        for (level, value) in [(0.01, 1.0), (0.5, 50.0), (0.99, 99.0), (0.255, 25.5)] {
            assert!((ranks.at(level).expect("it has values") - value).abs() < 1e-9, "{level}");
        }
    }
}
