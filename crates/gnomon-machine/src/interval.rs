//! How often a guest is checkpointed: as often as its pauses and the link allow.
//!
//! Two costs set the least interval: the guest stands for each checkpoint, and its standing may take only a share of
//! its time; and a checkpoint has to be at the shadow before the next one is ready, or the shadow falls behind. What
//! the next checkpoint will cost is forecast from what the last ones did, weighted to the recent.

use std::time::Duration;

use gnomon_terms::{Bytes, BytesPerSecond};

/// What a checkpoint cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// How long the guest stood.
    pub pause: Duration,
    /// What was carried.
    pub bytes: Bytes,
    /// How long it had been since the checkpoint before.
    pub after: Duration,
}

/// What the user allows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Allowance {
    /// The share of its time that the guest may stand, 0.0–1.0.
    pub standing: f64,
    /// Never more often than this.
    pub shortest: Duration,
    /// Never less often than this, whatever it costs: what may be lost when the primary dies.
    pub longest: Duration,
}

impl Default for Allowance {
    /// A tenth of its time: below that, users of a protected guest do not notice. A shorter interval than 20 ms is all
    /// pause; a longer one than two seconds is no protection worth the name.
    fn default() -> Allowance {
        Allowance { standing: 0.1, shortest: Duration::from_millis(20), longest: Duration::from_secs(2) }
    }
}

/// How much a new checkpoint counts against those before it: three of them are half of the forecast.
const NEWEST: f64 = 0.2;

/// Room left on the link for what was not forecast.
const HEADROOM: f64 = 1.25;

/// Chooses intervals.
#[derive(Clone, Debug)]
pub struct Adaptive {
    allowance: Allowance,
    pause: Option<f64>,
    /// Bytes a second that the guest's changes make.
    change: Option<f64>,
}

impl Adaptive {
    /// Nothing known yet.
    pub fn new(allowance: Allowance) -> Adaptive {
        Adaptive { allowance, pause: None, change: None }
    }

    /// A checkpoint was taken.
    pub fn observe(&mut self, cost: Cost) {
        let span = cost.after.max(Duration::from_millis(1)).as_secs_f64();
        blend(&mut self.pause, cost.pause.as_secs_f64());
        blend(&mut self.change, cost.bytes.0 as f64 / span);
    }

    /// How long to wait from one checkpoint to the next, over a link of this rate (`None`: not known, or no limit).
    pub fn interval(&self, link: Option<BytesPerSecond>) -> Duration {
        let Allowance { standing, shortest, longest } = self.allowance;
        let Some(pause) = self.pause else { return shortest.max(Duration::from_millis(100)).min(longest) };
        let for_pause = pause / standing.max(0.001);
        let wanted = match link {
            // Changes that come faster than the link carries them are bounded by the pages there are: the longest
            // interval lets most of them fall together.
            Some(rate) if self.change.unwrap_or(0.0) * HEADROOM >= rate.0 as f64 => longest.as_secs_f64(),
            _ => for_pause,
        };
        Duration::from_secs_f64(wanted.min(longest.as_secs_f64())).clamp(shortest, longest)
    }
}

fn blend(forecast: &mut Option<f64>, new: f64) {
    *forecast = Some(forecast.map_or(new, |old| old + NEWEST * (new - old)));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(costs: &[(u64, u64)]) -> Adaptive {
        let mut adaptive = Adaptive::new(Allowance::default());
        for (pause_ms, bytes) in costs {
            adaptive.observe(Cost {
                pause: Duration::from_millis(*pause_ms),
                bytes: Bytes(*bytes),
                after: Duration::from_millis(100),
            });
        }
        adaptive
    }

    #[test]
    fn pauses_and_the_link_set_the_interval() {
        let link = Some(BytesPerSecond(50_000_000));
        type Row = (&'static str, &'static [(u64, u64)], Option<BytesPerSecond>, u64);
        let table: [Row; 6] = [
            ("nothing known", &[], link, 100),
            ("pauses of 5 ms may be every 50", &[(5, 4096)], link, 50),
            ("short pauses meet the shortest", &[(1, 4096)], link, 20),
            ("long pauses meet the longest", &[(900, 4096)], link, 2000),
            ("changes outrun the link", &[(5, 6_000_000)], link, 2000),
            ("no limit to the link", &[(5, 6_000_000)], None, 50),
        ];
        for (name, costs, link, millis) in table {
            assert_eq!(after(costs).interval(link).as_millis() as u64, millis, "{name}");
        }
    }

    #[test]
    fn one_slow_checkpoint_does_not_change_the_rhythm() {
        let calm: Vec<(u64, u64)> = vec![(5, 4096); 20];
        let with_one: Vec<(u64, u64)> = calm.iter().copied().chain([(50, 4096)]).collect();
        let (calm, with_one) = (after(&calm).interval(None), after(&with_one).interval(None));
        assert!(with_one > calm && with_one < calm * 3, "{calm:?} {with_one:?}");
    }
}
