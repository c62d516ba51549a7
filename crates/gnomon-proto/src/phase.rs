//! The phases of a move, and which event leads from which to which.
//!
//! ```text
//!                 cancel
//!      ┌───────────────────────────▶ Cancelled
//!      │                    failure
//!      │  ┌────────────────────────▶ Failed
//!    Prime ──Primed──▶ Switch ──Committed──▶ Drain ──Drained──▶ Release ──Released──▶ Done
//!      ▲                 │                     │
//!      └──SwitchUndone───┘                     └──HandedBack──▶ RolledBack
//! ```
//!
//! Prime may end by cancelling, for the source is still the writer and loses nothing. Switch is a two-phase
//! handover ([`crate::handover`]) and ends by its rules only: committed, or undone (back to prime). From drain on
//! the destination is the writer: the way back is another handover, which ends in rolled back. In drain a failure
//! does not end the move: the volume has a writer and two halves, and the move waits for both or for a handover
//! back. A release only gives a spare copy up; it can be repeated and cannot be cancelled.

use std::fmt;

use gnomon_terms::ErrorKind;
use serde::{Deserialize, Serialize};

/// Where a move is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Blocks are copied in forecast order; the source is the writer.
    Prime,
    /// The epoch is being handed over.
    Switch,
    /// The destination is the writer; the rest follows, and its writes are mirrored back.
    Drain,
    /// The destination is whole; the source gives its copy up.
    Release,
    /// Ended: the volume is at the destination.
    Done,
    /// Ended: called off before the switch.
    Cancelled,
    /// Ended: could not be carried on before the switch.
    Failed,
    /// Ended: handed back; the source is the writer again.
    RolledBack,
}

/// What happens to a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PhaseEvent {
    /// Enough is there to switch.
    Primed,
    /// The handover is committed.
    Committed,
    /// The handover was aborted; the source is still the writer.
    SwitchUndone,
    /// Every block is at the destination.
    Drained,
    /// A handover back to the source is committed.
    HandedBack,
    /// The source has given its copy up.
    Released,
    /// Somebody called it off.
    Cancel,
    /// It cannot be carried on.
    Failure,
}

/// An event that the phase does not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a move in phase {phase} does not take '{event}': {}", advice(*phase))]
pub struct Refused {
    /// Where the move is.
    pub phase: Phase,
    /// What was refused.
    pub event: PhaseEvent,
}

impl Refused {
    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Refused
    }
}

/// The phase after `event`.
///
/// # Errors
/// [`Refused`] if the phase does not allow the event; the move stays where it is.
pub fn step(phase: Phase, event: PhaseEvent) -> Result<Phase, Refused> {
    match (phase, event) {
        (Phase::Prime, PhaseEvent::Primed) => Ok(Phase::Switch),
        (Phase::Prime, PhaseEvent::Cancel) => Ok(Phase::Cancelled),
        (Phase::Prime, PhaseEvent::Failure) => Ok(Phase::Failed),
        (Phase::Switch, PhaseEvent::Committed) => Ok(Phase::Drain),
        (Phase::Switch, PhaseEvent::SwitchUndone) => Ok(Phase::Prime),
        (Phase::Drain, PhaseEvent::Drained) => Ok(Phase::Release),
        (Phase::Drain, PhaseEvent::HandedBack) => Ok(Phase::RolledBack),
        (Phase::Release, PhaseEvent::Released) => Ok(Phase::Done),
        (phase, event) => Err(Refused { phase, event }),
    }
}

impl Phase {
    /// Every phase, in the order of a move's life, then the other ends.
    pub const ALL: [Phase; 8] = [
        Phase::Prime,
        Phase::Switch,
        Phase::Drain,
        Phase::Release,
        Phase::Done,
        Phase::Cancelled,
        Phase::Failed,
        Phase::RolledBack,
    ];

    /// True if the move can be called off without a handover.
    pub fn is_cancellable(self) -> bool {
        step(self, PhaseEvent::Cancel).is_ok()
    }

    /// True if nothing more will happen.
    pub fn is_over(self) -> bool {
        matches!(self, Phase::Done | Phase::Cancelled | Phase::Failed | Phase::RolledBack)
    }

    /// Its name, as in the API.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Prime => "prime",
            Phase::Switch => "switch",
            Phase::Drain => "drain",
            Phase::Release => "release",
            Phase::Done => "done",
            Phase::Cancelled => "cancelled",
            Phase::Failed => "failed",
            Phase::RolledBack => "rolled-back",
        }
    }
}

impl PhaseEvent {
    /// Every event.
    pub const ALL: [PhaseEvent; 8] = [
        PhaseEvent::Primed,
        PhaseEvent::Committed,
        PhaseEvent::SwitchUndone,
        PhaseEvent::Drained,
        PhaseEvent::HandedBack,
        PhaseEvent::Released,
        PhaseEvent::Cancel,
        PhaseEvent::Failure,
    ];

    /// Its name, as in the API.
    pub fn name(self) -> &'static str {
        match self {
            PhaseEvent::Primed => "primed",
            PhaseEvent::Committed => "committed",
            PhaseEvent::SwitchUndone => "switch-undone",
            PhaseEvent::Drained => "drained",
            PhaseEvent::HandedBack => "handed-back",
            PhaseEvent::Released => "released",
            PhaseEvent::Cancel => "cancel",
            PhaseEvent::Failure => "failure",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for PhaseEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What to do instead.
fn advice(phase: Phase) -> &'static str {
    match phase {
        Phase::Prime => "it is still being copied",
        Phase::Switch => "the handover is under way and ends by itself; wait for it",
        Phase::Drain => "the destination is the writer; hand it back with `gnomon vm rollback`, or wait",
        Phase::Release => "the destination is whole; move it back with a new move",
        _ => "it is over",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_these_steps_exist() {
        let allowed = [
            (Phase::Prime, PhaseEvent::Primed, Phase::Switch),
            (Phase::Prime, PhaseEvent::Cancel, Phase::Cancelled),
            (Phase::Prime, PhaseEvent::Failure, Phase::Failed),
            (Phase::Switch, PhaseEvent::Committed, Phase::Drain),
            (Phase::Switch, PhaseEvent::SwitchUndone, Phase::Prime),
            (Phase::Drain, PhaseEvent::Drained, Phase::Release),
            (Phase::Drain, PhaseEvent::HandedBack, Phase::RolledBack),
            (Phase::Release, PhaseEvent::Released, Phase::Done),
        ];
        for phase in Phase::ALL {
            for event in PhaseEvent::ALL {
                let expected = allowed.iter().find(|(from, by, _)| (*from, *by) == (phase, event));
                let expected = expected.map(|(_, _, to)| *to).ok_or(Refused { phase, event });
                assert_eq!(step(phase, event), expected);
            }
        }
    }

    #[test]
    fn nothing_leaves_an_end_and_every_phase_reaches_one() {
        for phase in Phase::ALL {
            let next: Vec<Phase> = PhaseEvent::ALL.into_iter().filter_map(|event| step(phase, event).ok()).collect();
            assert_eq!(next.is_empty(), phase.is_over(), "{phase}");
        }
    }

    #[test]
    fn only_a_move_whose_source_is_the_writer_can_be_cancelled() {
        let cancellable: Vec<Phase> = Phase::ALL.into_iter().filter(|phase| phase.is_cancellable()).collect();
        assert_eq!(cancellable, [Phase::Prime]);
    }

    #[test]
    fn names_are_those_of_the_api() {
        for phase in Phase::ALL {
            assert_eq!(serde_json::to_string(&phase).expect("an enum"), format!("\"{phase}\""));
        }
        for event in PhaseEvent::ALL {
            assert_eq!(serde_json::to_string(&event).expect("an enum"), format!("\"{event}\""));
        }
    }
}
