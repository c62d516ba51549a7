//! Whether an update may be trusted: what was seen of a copy of the guest that runs on it, and what follows.
//!
//! Hard signs end the trial by themselves. Soft ones are numbers that are not as the guest's own history lets expect:
//! one alone may be chance, so they count by how far they are off and only in the direction that hurts.

use std::fmt;

/// Something that was seen.
#[derive(Clone, Debug, PartialEq)]
pub enum Sign {
    /// The guest's kernel gave up, as QEMU was told by it or as its console shows.
    Panic {
        /// Its words.
        said: String,
    },
    /// Its QEMU ended.
    Ended {
        /// How, and its last words.
        how: String,
    },
    /// The guest restarted or shut down.
    Restarted {
        /// QEMU's event.
        event: String,
    },
    /// A disk failed to do as told.
    DiskFailed {
        /// QEMU's words.
        what: String,
    },
    /// The probe did not succeed.
    ProbeFailed {
        /// Its exit code; `None` when a signal ended it.
        code: Option<i32>,
        /// The end of what it said.
        said: String,
    },
    /// The probe did not come to an end in time.
    ProbeHung,
    /// A command in the guest did not succeed.
    CommandFailed {
        /// Its exit code; `None` when a signal ended it.
        code: Option<i32>,
        /// The end of what it said.
        said: String,
    },
    /// A command in the guest did not come to an end in time.
    CommandHung,
    /// A command could not be run in the guest, or its end was not told.
    NoCommand {
        /// Why.
        why: String,
    },
    /// Something that the guest tells all the time was not heard any more.
    Silent {
        /// What.
        what: String,
    },
    /// It has a device that its original has not, or lacks one.
    OtherDevices {
        /// Which.
        what: String,
    },
    /// A number that is not as it was.
    Unlike {
        /// Of what.
        what: &'static str,
        /// What was seen.
        seen: f64,
        /// The least that was expected.
        low: f64,
        /// The most that was expected.
        high: f64,
        /// Which side hurts.
        hurts: Side,
    },
}

/// A side of an interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Less than expected is bad: work done.
    Below,
    /// More than expected is bad: effort.
    Above,
}

/// How far beyond its interval, in widths of it, a number has to be to speak against an update. An interval that holds
/// nine of ten values is left by one of ten; three widths away is another manner.
const FAR: f64 = 3.0;

/// What follows from what was seen.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// Whether the update may go on.
    pub passed: bool,
    /// Every sign that speaks against it, in words.
    pub reasons: Vec<String>,
}

impl Sign {
    /// Whether it alone speaks against the update.
    pub fn is_against(&self) -> bool {
        match self {
            Sign::Unlike { seen, low, high, hurts, .. } => {
                let width = (high - low).max(high.abs().max(low.abs()) / 100.0).max(f64::MIN_POSITIVE);
                let beyond = match hurts {
                    Side::Below => low - seen,
                    Side::Above => seen - high,
                };
                beyond / width > FAR
            }
            _ => true,
        }
    }
}

/// Judges.
pub fn judge(signs: &[Sign]) -> Verdict {
    let reasons: Vec<String> = signs.iter().filter(|sign| sign.is_against()).map(Sign::to_string).collect();
    Verdict { passed: reasons.is_empty(), reasons }
}

impl fmt::Display for Sign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Sign::Panic { said } => write!(f, "the guest panicked: {said}"),
            Sign::Ended { how } => write!(f, "its QEMU ended: {how}"),
            Sign::Restarted { event } => write!(f, "the guest restarted ({event})"),
            Sign::DiskFailed { what } => write!(f, "a disk failed: {what}"),
            Sign::ProbeFailed { code: Some(code), said } => write!(f, "the probe ended with {code}: {said}"),
            Sign::ProbeFailed { code: None, said } => write!(f, "the probe was killed: {said}"),
            Sign::ProbeHung => write!(f, "the probe did not come to an end in time"),
            Sign::CommandFailed { code: Some(code), said } => {
                write!(f, "the command in the guest ended with {code}: {said}")
            }
            Sign::CommandFailed { code: None, said } => write!(f, "the command in the guest was killed: {said}"),
            Sign::CommandHung => write!(f, "the command in the guest did not come to an end in time"),
            Sign::NoCommand { why } => write!(f, "the command could not be followed in the guest: {why}"),
            Sign::OtherDevices { what } => write!(f, "the machine is another one: {what}"),
            Sign::Silent { what } => write!(f, "{what} was not heard any more"),
            Sign::Unlike { what, seen, low, high, .. } => {
                write!(f, "{what} was {seen:.2}, and {low:.2} to {high:.2} was expected from its history")
            }
        }
    }
}

/// Words on a console that mean that a kernel has given up or is about to.
const LAST_WORDS: [&str; 5] = ["Kernel panic", "BUG: ", "Oops: ", "soft lockup", "Unable to mount root"];

/// The first line of a console's output that tells of a kernel's trouble. Bytes of a guest: whatever they are, this is
/// a look at them and nothing else.
pub fn trouble_on_console(output: &[u8]) -> Option<String> {
    let line = output
        .split(|byte| *byte == b'\n')
        .find(|line| LAST_WORDS.iter().any(|words| line.windows(words.len()).any(|part| part == words.as_bytes())))?;
    const LONGEST: usize = 200;
    let printable = |byte: &u8| if byte.is_ascii_graphic() || *byte == b' ' { char::from(*byte) } else { '?' };
    Some(line.iter().take(LONGEST).map(printable).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpu(seen: f64) -> Sign {
        Sign::Unlike { what: "processor time", seen, low: 0.2, high: 0.4, hurts: Side::Above }
    }

    #[test]
    fn hard_signs_speak_for_themselves_and_numbers_by_how_far_off_they_are() {
        let ended = Sign::Ended { how: "signal 11".into() };
        let table: [(&[Sign], bool, usize); 6] = [
            (&[], true, 0),
            (&[cpu(0.3)], true, 0),
            (&[cpu(0.9)], true, 0),
            (&[cpu(1.2)], false, 1),
            (&[cpu(0.0)], true, 0),
            (&[ended, Sign::ProbeHung, cpu(0.3)], false, 2),
        ];
        for (signs, passed, reasons) in table {
            let verdict = judge(signs);
            assert_eq!((verdict.passed, verdict.reasons.len()), (passed, reasons), "{signs:?}");
        }
    }

    #[test]
    fn a_constant_history_does_not_make_every_change_a_reason() {
        let unlike = |seen| Sign::Unlike { what: "x", seen, low: 100.0, high: 100.0, hurts: Side::Below };
        assert!(!unlike(99.0).is_against() && unlike(50.0).is_against());
    }

    #[test]
    fn trouble_is_found_among_any_bytes() {
        let table: [(&[u8], Option<&str>); 4] = [
            (b"booted\nall is well\n", None),
            (b"", None),
            (
                b"x\n[ 1.0] Kernel panic - not syncing\xff\x1b[0m\nmore",
                Some("[ 1.0] Kernel panic - not syncing??[0m"),
            ),
            (b"watchdog: BUG: soft lockup", Some("watchdog: BUG: soft lockup")),
        ];
        for (output, found) in table {
            assert_eq!(trouble_on_console(output).as_deref(), found);
        }
    }
}
