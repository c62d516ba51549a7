//! The state of a guest's devices, without its RAM: captured in milliseconds, loaded by another QEMU that has the same
//! memory.
//!
//! ```text
//!           capture                     resume
//!  runs ──────────────► Frozen ─────────────────────────► runs     (a checkpoint)
//!    ▲                    │ hand_over
//!    │ failed             ▼
//!    └──────────        stands, until `cont` or the end of this QEMU   (a takeover)
//!
//!  -incoming defer ──► Standby ── load ──► Loaded ── run ──► runs
//! ```
//!
//! It is QEMU's own migration with RAM left out that both sides map (`x-ignore-shared`), into a memfd. QEMU makes the
//! guest stand by itself once nothing but devices is left to send, so no `stop` comes before it: that would only make
//! the pause longer. What gnomon waits for is QEMU's events, and it tells durations by their time stamps.
//!
//! Before QEMU 9.1 the memfd is given by name (`fd:`) and sealed at its largest size, so that the kernel holds QEMU to
//! it. Newer ones want files to be called files (`file:` on a set of descriptors) and warn of the other way; these
//! truncate the file first, so the size is judged afterwards. That RAM is not sent along is made sure of before.
//!
//! Source: QEMU `qapi/migration.json`; QEMU documentation, "Migration" and "Deprecated features".

mod blob;
mod capture;
mod channel;
mod error;
mod load;

pub use blob::{STATE_LIMIT, StateBlob};
pub use capture::{CaptureOptions, CapturePhases, Checkpoint, Frozen, capture};
pub use error::StateError;
pub use load::{Loaded, Standby, load};

use std::time::{Duration, Instant};

use crate::{
    migrate::{DEFAULT_DOWNTIME, UNPACED, status_of},
    qmp::{EventError, EventStream, MigrationStatus, Qmp, QmpError, QmpEvent},
};

/// What must be on to send or load devices alone.
const WANTED: [&str; 2] = ["events", "x-ignore-shared"];

/// Prepares a QEMU: our capabilities on, all others off (a native move or another tool may have left some on), and no
/// limit to its rate. Two or three questions of a tenth of a millisecond, while the guest runs.
fn prepare(qmp: &Qmp) -> Result<(), QmpError> {
    let present = qmp.query_migrate_capabilities()?;
    let changes: Vec<(&str, bool)> = changes(&present);
    if !changes.is_empty() {
        qmp.migrate_set_capabilities(&changes)?;
    }
    Ok(())
}

/// No limit to the rate, for ROMs and whatever else comes before the guest stands.
fn unpace(qmp: &Qmp) -> Result<(), QmpError> {
    qmp.migrate_set_parameters(UNPACED, DEFAULT_DOWNTIME)
}

/// What to switch. A wanted capability that QEMU does not list is asked for all the same, so that its refusal tells.
fn changes(present: &[(String, bool)]) -> Vec<(&str, bool)> {
    let off = present.iter().filter(|(name, on)| *on && !WANTED.contains(&name.as_str()));
    let is_on = |wanted: &str| present.iter().any(|(name, on)| *on && name == wanted);
    off.map(|(name, _)| (name.as_str(), false))
        .chain(WANTED.into_iter().filter(|wanted| !is_on(wanted)).map(|wanted| (wanted, true)))
        .collect()
}

/// Waits for the end of a migration. `note` sees each event on the way.
fn await_end(
    events: &EventStream,
    timeout: Duration,
    mut note: impl FnMut(&QmpEvent),
) -> Result<MigrationStatus, EventError> {
    events.wait_for(timeout, |event| {
        note(event);
        status_of(event).filter(|status| {
            matches!(status, MigrationStatus::Completed | MigrationStatus::Failed | MigrationStatus::Cancelled)
        })
    })
}

/// Makes the guest run and waits until it does; returns when it did, by QEMU's clock.
fn run(qmp: &Qmp, events: &EventStream, timeout: Duration) -> Result<Duration, StateError> {
    let started = Instant::now();
    let stands = |why: String| StateError::StillStands { why };
    qmp.cont_after_migration(timeout).map_err(|e| stands(e.to_string()))?;
    let left = timeout.saturating_sub(started.elapsed());
    let resumed = events.wait_for(left, |event| (event.name == "RESUME").then_some(event.at));
    resumed.map_err(|e| stands(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_switched() {
        type Switches = &'static [(&'static str, bool)];
        let table: [(Switches, Switches); 4] = [
            (&[("events", true), ("x-ignore-shared", true), ("xbzrle", false)], &[]),
            (&[("events", false), ("x-ignore-shared", true)], &[("events", true)]),
            (
                &[("multifd", true), ("events", false), ("x-ignore-shared", false)],
                &[("multifd", false), ("events", true), ("x-ignore-shared", true)],
            ),
            (&[], &[("events", true), ("x-ignore-shared", true)]),
        ];
        for (present, expected) in table {
            let present: Vec<(String, bool)> = present.iter().map(|(name, on)| (name.to_string(), *on)).collect();
            assert_eq!(changes(&present), expected, "{present:?}");
        }
    }
}
