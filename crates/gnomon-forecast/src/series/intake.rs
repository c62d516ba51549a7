//! The door of a series: samples with their times come in, even steps go on. What cannot be is refused and changes nothing.

use std::time::Duration;

use gnomon_terms::{ErrorKind, Instant};

use super::{SeriesForecaster, Step};

/// Steps that may be missing in a row and are told one by one: a week of 5-minute steps. A longer silence counts as this.
pub const MAX_GAP: u64 = 2016;

/// Why a sample was refused. Nothing was changed by it.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum SampleError {
    /// Not a number, or infinite.
    #[error("the sample at {at} is {value}, not a number: look at what measures it")]
    NotANumber {
        /// When it was measured.
        at: Instant,
        /// What was said.
        value: f64,
    },
    /// Less than nothing.
    #[error("the sample at {at} is {value}, and less than nothing cannot be asked for: look at what measures it")]
    Negative {
        /// When it was measured.
        at: Instant,
        /// What was said.
        value: f64,
    },
    /// More than there can be.
    #[error("the sample at {at} is {value}, and {most} is the most there can be: raise the limit or mend the source")]
    TooMuch {
        /// When it was measured.
        at: Instant,
        /// What was said.
        value: f64,
        /// The limit.
        most: f64,
    },
    /// There is one for this step already.
    #[error("a second sample for the step of {at}: it came twice, or samples come more often than every {step:?}")]
    Repeated {
        /// When it was measured.
        at: Instant,
        /// The length of a step.
        step: Duration,
    },
    /// Measured before one that is known already.
    #[error("the sample at {at} is older than the last, of {last}: time does not run backwards; order them")]
    OutOfOrder {
        /// When it was measured.
        at: Instant,
        /// The newest that was accepted.
        last: Instant,
    },
}

impl SampleError {
    /// All of them: bytes that should be trustworthy are not, or come in a wrong order.
    pub fn kind(&self) -> ErrorKind {
        match self {
            SampleError::NotANumber { .. } | SampleError::Negative { .. } | SampleError::TooMuch { .. } => {
                ErrorKind::Corrupt
            }
            SampleError::Repeated { .. } | SampleError::OutOfOrder { .. } => ErrorKind::Refused,
        }
    }
}

/// Checks samples and counts steps.
#[derive(Clone, Debug)]
pub struct Intake {
    step: Duration,
    most: f64,
    first: Option<Instant>,
    last: Option<(Instant, u64)>,
}

impl Intake {
    /// Samples come about every `step` (at least a millisecond) and are `most` at most.
    pub fn new(step: Duration, most: f64) -> Intake {
        Intake { step: step.max(Duration::from_millis(1)), most, first: None, last: None }
    }

    /// Accepts a sample: how many steps before it were not measured, [`MAX_GAP`] at most. A sample belongs to the step
    /// whose middle is nearest, so that a source may be late by half a step.
    pub fn accept(&mut self, at: Instant, value: f64) -> Result<u64, SampleError> {
        self.check(at, value)?;
        let first = *self.first.get_or_insert(at);
        let place = (at.since(first).as_nanos() + self.step.as_nanos() / 2) / self.step.as_nanos();
        let place = u64::try_from(place).unwrap_or(u64::MAX);
        let missing = match self.last {
            Some((_, last)) if place <= last => return Err(SampleError::Repeated { at, step: self.step }),
            Some((_, last)) => place - last - 1,
            None => 0,
        };
        self.last = Some((at, place));
        Ok(missing.min(MAX_GAP))
    }

    fn check(&self, at: Instant, value: f64) -> Result<(), SampleError> {
        match self.last {
            _ if !value.is_finite() => Err(SampleError::NotANumber { at, value }),
            _ if value < 0.0 => Err(SampleError::Negative { at, value }),
            _ if value > self.most => Err(SampleError::TooMuch { at, value, most: self.most }),
            Some((last, _)) if at < last => Err(SampleError::OutOfOrder { at, last }),
            _ => Ok(()),
        }
    }
}

/// A forecaster behind its door.
#[derive(Clone, Debug)]
pub struct Series<F> {
    intake: Intake,
    forecaster: F,
}

impl<F: SeriesForecaster> Series<F> {
    /// `forecaster` is told steps of this length with values up to `most`.
    pub fn new(forecaster: F, step: Duration, most: f64) -> Series<F> {
        Series { intake: Intake::new(step, most), forecaster }
    }

    /// Offers a sample. Steps between it and the one before are told as missing.
    pub fn offer(&mut self, at: Instant, value: f64) -> Result<(), SampleError> {
        let missing = self.intake.accept(at, value)?;
        (0..missing).for_each(|_| self.forecaster.observe(&Step::missing()));
        self.forecaster.observe(&Step::of(value));
        Ok(())
    }

    /// The forecaster.
    pub fn forecaster(&self) -> &F {
        &self.forecaster
    }

    /// The forecaster, to be tended.
    pub fn forecaster_mut(&mut self) -> &mut F {
        &mut self.forecaster
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::series::{EwmaForecaster, SeasonalForecaster};

    const STEP: Duration = Duration::from_secs(300);

    fn at(seconds: u64) -> Instant {
        Instant::from_micros(seconds * 1_000_000)
    }

    #[test]
    fn what_cannot_be_is_refused_and_changes_nothing() {
        let begin = || {
            let mut series = Series::new(EwmaForecaster::new(0.2), STEP, 1000.0);
            (10..30).for_each(|step| series.offer(at(step * 300), step as f64).expect("good samples"));
            series
        };
        type Is = fn(&SampleError) -> bool;
        let table: [(u64, f64, Is); 7] = [
            (9000, f64::NAN, |e| matches!(e, SampleError::NotANumber { .. })),
            (9000, f64::INFINITY, |e| matches!(e, SampleError::NotANumber { .. })),
            (9000, -1.0, |e| matches!(e, SampleError::Negative { .. })),
            (9000, 1001.0, |e| matches!(e, SampleError::TooMuch { .. })),
            (8700, 5.0, |e| matches!(e, SampleError::Repeated { .. })),
            (8760, 5.0, |e| matches!(e, SampleError::Repeated { .. })),
            (8400, 5.0, |e| matches!(e, SampleError::OutOfOrder { .. })),
        ];
        for (seconds, value, is_it) in table {
            let mut series = begin();
            let error = series.offer(at(seconds), value).expect_err("it is refused");
            assert!(is_it(&error), "{seconds} {value}: {error}");
            assert_eq!(format!("{series:?}"), format!("{:?}", begin()), "{seconds} {value}: something was changed");
            series.offer(at(9000), 30.0).expect("the next good sample is taken");
        }
    }

    #[test]
    fn late_samples_are_of_their_step_and_gaps_are_told() {
        // (seconds, steps missing before)
        let mut intake = Intake::new(STEP, f64::MAX);
        for (seconds, missing) in [(1000, 0), (1310, 0), (1590, 0), (2500, 2), (2860, 0), (9_000_000, MAX_GAP)] {
            assert_eq!(intake.accept(at(seconds), 1.0), Ok(missing), "{seconds}");
        }
    }

    #[test]
    fn a_gap_keeps_the_hour_right() {
        let mut series = Series::new(SeasonalForecaster::new(4), STEP, 100.0);
        let day = [10.0, 20.0, 30.0, 40.0];
        let steps = (0..80).filter(|step| !(41..46).contains(step));
        steps.for_each(|step| series.offer(at(step * 300), day[step as usize % 4]).expect("good samples"));
        let middle = |ahead| series.forecaster().forecast(ahead, 0.5).map(|interval| interval.middle);
        assert_eq!([middle(0), middle(1), middle(2)], [Some(10.0), Some(20.0), Some(30.0)]);
    }
}
