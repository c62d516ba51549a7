//! What a group's planner is told, and what it refuses.

use std::time::Duration;

use gnomon_forecast::series::GroupError;
use gnomon_terms::{Bytes, ErrorKind};

use super::{Aim, Privacy, ahead::MOST_STEPS};

/// A step unless another is wished: what traces and research are made of, and as fast as demand of a group changes.
pub const DEFAULT_STEP: Duration = Duration::from_secs(300);
/// The shortest step: below a second a guest that was given memory has not brought it online yet.
pub const LEAST_STEP: Duration = Duration::from_secs(1);
/// The longest: an hour.
pub const MOST_STEP: Duration = Duration::from_secs(3600);
/// How far ahead is looked unless another is wished. A longer horizon does no harm and is worth little: how much a group asks
/// for changes slowly.
pub const DEFAULT_HORIZON: Duration = Duration::from_secs(300);

/// A day in the models' eyes has at most so many steps: those of half a minute. Shorter ones know no day, and less memory is
/// kept for one.
const LONGEST_DAY: usize = 2880;

/// What the planner of a group is told at its start. All but `step` and `privacy` can be changed later.
#[derive(Clone, Debug, PartialEq)]
pub struct StagingConfig {
    /// The length of a step.
    pub step: Duration,
    /// For how long what is staged should last.
    pub horizon: Duration,
    /// What is staged while too little is known.
    pub floor: Bytes,
    /// The most that is ever staged.
    pub budget: Bytes,
    /// What the reserve is turned towards.
    pub aim: Aim,
    /// What is told of members, and with how much noise.
    pub privacy: Privacy,
}

/// Why something was refused. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum StagingError {
    /// Steps of a length that cannot be planned in.
    #[error("steps of {0:?}: choose between {LEAST_STEP:?} and {MOST_STEP:?}")]
    Step(Duration),
    /// Too far ahead, or not at all.
    #[error("a horizon of {horizon:?} with steps of {step:?}: choose up to {most:?}")]
    Horizon {
        /// What was asked for.
        horizon: Duration,
        /// The length of a step.
        step: Duration,
        /// The most that can be.
        most: Duration,
    },
    /// A member that cannot be added or removed.
    #[error(transparent)]
    Member(#[from] GroupError),
}

impl StagingError {
    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            StagingError::Step(_) | StagingError::Horizon { .. } => ErrorKind::Refused,
            StagingError::Member(error) => error.kind(),
        }
    }
}

impl Default for StagingConfig {
    /// Steps of five minutes, one of them ahead; nothing is staged before a budget is set; 5 % of what members have is idle.
    fn default() -> StagingConfig {
        StagingConfig {
            step: DEFAULT_STEP,
            horizon: DEFAULT_HORIZON,
            floor: Bytes(0),
            budget: Bytes(0),
            aim: Aim::Idle(0.05),
            privacy: Privacy::default(),
        }
    }
}

impl StagingConfig {
    /// Whether a planner can be made of it.
    pub(super) fn check(&self) -> Result<(), StagingError> {
        if !(LEAST_STEP..=MOST_STEP).contains(&self.step) {
            return Err(StagingError::Step(self.step));
        }
        self.check_horizon(self.horizon)
    }

    /// Whether it can look so far ahead.
    pub(super) fn check_horizon(&self, horizon: Duration) -> Result<(), StagingError> {
        let most = self.step.saturating_mul(MOST_STEPS as u32);
        let fits = !horizon.is_zero() && horizon <= most;
        if fits { Ok(()) } else { Err(StagingError::Horizon { horizon, step: self.step, most }) }
    }

    /// Steps within the horizon, at least one.
    pub(super) fn steps_ahead(&self) -> usize {
        usize::try_from(self.horizon.as_millis().div_ceil(self.step.as_millis().max(1))).unwrap_or(MOST_STEPS).max(1)
    }

    /// Steps of a day.
    pub(super) fn day(&self) -> usize {
        ((86_400.0 / self.step.as_secs_f64()).round() as usize).clamp(24, LONGEST_DAY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_planned_in_is_refused() {
        let table = [
            ((300, 300), true, 1),
            ((300, 301), true, 2),
            ((5, 60), true, 12),
            ((1, 288), true, 288),
            ((1, 289), false, 0),
            ((0, 1), false, 0),
            ((300, 0), false, 0),
            ((3601, 3601), false, 0),
        ];
        for ((step, horizon), accepted, steps) in table {
            let [step, horizon] = [step, horizon].map(Duration::from_secs);
            let config = StagingConfig { step, horizon, ..StagingConfig::default() };
            assert_eq!(config.check().is_ok(), accepted, "{config:?}");
            assert!(!accepted || config.steps_ahead() == steps, "{config:?}");
        }
        let error = StagingConfig { step: Duration::ZERO, ..StagingConfig::default() }.check().map_err(|e| e.kind());
        assert_eq!(error, Err(ErrorKind::Refused));
    }
}
