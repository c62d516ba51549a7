//! Hit bytes over idle bytes: whoever stages has one knob, and is read off where so many bytes are idle.
//!
//! The knob stands the same in all pools and at all times. What it is: of forecasts the level of the quantile, and beyond the
//! highest what it is multiplied by; of a mean so many standard deviations; of a static reserve its size.

/// Levels of quantiles, and what the last is multiplied by beyond.
pub const LEVELS: [f64; 20] = [
    0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.925, 0.95, 0.965, 0.98, 0.99, 0.995,
];
pub const BEYOND: [f64; 6] = [1.2, 1.5, 2.0, 3.0, 5.0, 9.0];
/// Settings of each knob.
pub const SETTINGS: usize = LEVELS.len() + BEYOND.len();
/// A mean plus so many standard deviations: the best simple rule published.
pub const DEVIATIONS: [f64; SETTINGS] = [
    -1.0, -0.8, -0.6, -0.4, -0.2, 0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.3, 2.6, 3.0, 3.5, 4.0,
    5.0, 6.0, 8.0, 11.0, 15.0,
];
/// A reserve of always the same size, in mean requests of the first third.
pub const RESERVES: [f64; SETTINGS] = [
    0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.85, 1.0, 1.15, 1.3, 1.6, 2.0, 2.5, 3.0, 4.0, 5.0, 7.0, 10.0, 14.0, 20.0,
    30.0, 40.0, 50.0, 70.0, 100.0,
];

/// Bytes hit and idle, for each setting of the knob.
#[derive(Clone, Copy, Default)]
pub struct Curve([(f64, f64); SETTINGS]);

impl Curve {
    /// A step in which `asked` was asked for; what each setting had staged.
    pub fn judge(&mut self, staged: &[f64; SETTINGS], asked: f64) {
        for (point, staged) in self.0.iter_mut().zip(staged) {
            let hit = staged.min(asked);
            *point = (point.0 + hit, point.1 + staged - hit);
        }
    }

    pub fn add(&mut self, other: &Curve) {
        self.0.iter_mut().zip(other.0).for_each(|(sum, point)| *sum = (sum.0 + point.0, sum.1 + point.1));
    }

    /// The bytes hit where so many are idle, on straight lines from nothing through all settings; `None` beyond the last.
    pub fn hit_at(&self, idle: f64) -> Option<f64> {
        let mut before = (0.0, 0.0);
        for point in self.0 {
            if point.1 >= idle {
                let share = (idle - before.1) / (point.1 - before.1).max(f64::MIN_POSITIVE);
                return Some(before.0 + share * (point.0 - before.0));
            }
            before = point;
        }
        None
    }
}
