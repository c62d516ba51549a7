//! Capturing: the guest stands for some milliseconds while its devices are written down.

use std::time::Duration;

use gnomon_terms::{Bytes, ErrorKind};

use super::{
    STATE_LIMIT, StateBlob, StateError, await_end,
    channel::{Channel, truncates},
    prepare, run, unpace,
};
use crate::{
    migrate::status_of,
    process::Qemu,
    qmp::{EventError, EventStream, MigrationStatus, Qmp},
};

/// How long a guest may take to run again after a capture that failed: QEMU reopens its disks for that.
const RESUME_TIMEOUT: Duration = Duration::from_secs(30);

/// How devices are captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CaptureOptions {
    /// The most bytes of the state.
    pub limit: Bytes,
    /// How long QEMU may take. A disk whose server is away makes it wait.
    pub timeout: Duration,
}

impl Default for CaptureOptions {
    /// 64 MiB and ten seconds: a thousand times what it takes.
    fn default() -> CaptureOptions {
        CaptureOptions { limit: STATE_LIMIT, timeout: Duration::from_secs(10) }
    }
}

/// What a capture cost, by QEMU's own time stamps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CapturePhases {
    /// From the beginning until the guest stood; it ran meanwhile.
    pub approach: Duration,
    /// From then until its devices were written down. Zero for a guest that stood before.
    pub saving: Duration,
}

/// A guest that stands, with the state of its devices. Its RAM does not change any more. Dropping it makes the guest run
/// again, if it ran before, so that no error path can leave it standing.
#[derive(Debug)]
pub struct Frozen {
    blob: StateBlob,
    phases: CapturePhases,
    stood: Duration,
    events: EventStream,
    guard: Guard,
    /// Taken back after the guest runs again: not on its time.
    channel: Channel,
}

/// A capture after which the guest has gone on.
#[derive(Debug)]
pub struct Checkpoint {
    /// The state of the devices.
    pub blob: StateBlob,
    /// What capturing cost.
    pub phases: CapturePhases,
    /// How long the guest stood in all, what the caller did meanwhile included; zero for a guest that stood before and
    /// still does.
    pub pause: Duration,
}

/// Makes the guest run again unless it is disarmed.
#[derive(Debug)]
struct Guard {
    qmp: Qmp,
    was_running: bool,
    armed: bool,
}

/// Makes the guest of `qemu` stand and writes down its devices. Blocks for some 5 ms, `options.timeout` at most (and 30 s
/// for a guest that has to be made to run again). After an error the guest runs as before; if even that fails, the error
/// says so. Refused at once for a guest whose RAM is not shared, and by QEMU for one that stands because of an earlier
/// migration or capture: it has to run in between.
pub fn capture(qemu: &Qemu, options: &CaptureOptions) -> Result<Frozen, StateError> {
    let qmp = qemu.qmp();
    refuse_unless_shared(qmp)?;
    prepare(qmp)?;
    unpace(qmp)?;
    let mut guard = Guard { qmp: qmp.clone(), was_running: qmp.query_status()?.running, armed: false };
    let mut blob = StateBlob::room()?;
    if !truncates(qmp)? {
        blob.confine(options.limit)?;
    }
    let channel = Channel::give(qmp, blob.reopen(true)?)?;
    let events = qmp.events();
    if let Err(error) = qmp.migrate(&channel.uri()) {
        // A refusal has changed nothing. Without an answer it may have begun all the same.
        if error.kind() != ErrorKind::Refused {
            give_back(qmp, &events, guard.was_running, true)?;
        }
        return Err(error.into());
    }
    let mut times = Times::default();
    let end = await_end(&events, options.timeout, |event| times.note(&event.name, status_of(event), event.at));
    let written = channel.position();
    match end {
        Ok(MigrationStatus::Completed) => {}
        other => return Err(failed(qemu, &events, &guard, other, written, options)),
    }
    guard.armed = true;
    if written > options.limit.0 {
        return Err(StateError::TooLarge { limit: options.limit });
    }
    blob.cut(written)?;
    Ok(Frozen { blob, phases: times.phases(), stood: times.stood.unwrap_or_default(), events, guard, channel })
}

impl Frozen {
    /// The state of the devices.
    pub fn blob(&self) -> &StateBlob {
        &self.blob
    }

    /// What it has cost so far.
    pub fn phases(&self) -> CapturePhases {
        self.phases
    }

    /// Makes the guest run again, if it ran before, and waits until it does.
    pub fn resume(mut self, timeout: Duration) -> Result<Checkpoint, StateError> {
        self.guard.armed = false;
        let pause = match self.guard.was_running {
            true => run(&self.guard.qmp, &self.events, timeout)?.saturating_sub(self.stood),
            false => Duration::ZERO,
        };
        Ok(Checkpoint { blob: self.blob, phases: self.phases, pause })
    }

    /// Leaves the guest standing here for good: another QEMU goes on with its RAM. To run it here again after all, when
    /// it is sure that it runs nowhere else: [`Qmp::cont_after_migration`].
    pub fn hand_over(mut self) -> StateBlob {
        self.guard.armed = false;
        self.channel.leave();
        self.blob
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.armed && self.was_running {
            // Nobody is left to be told; the guest's run state tells.
            if let Err(error) = self.qmp.cont_after_migration(RESUME_TIMEOUT) {
                tracing::error!(%error, "a guest could not be made to run after its devices were captured");
            }
        }
    }
}

/// When what happened, by QEMU's clock.
#[derive(Clone, Copy, Debug, Default)]
struct Times {
    begun: Option<Duration>,
    stood: Option<Duration>,
    saved: Option<Duration>,
}

impl Times {
    fn note(&mut self, name: &str, status: Option<MigrationStatus>, at: Duration) {
        let slot = match (name, status) {
            ("STOP", _) => &mut self.stood,
            (_, Some(MigrationStatus::Setup)) => &mut self.begun,
            (_, Some(MigrationStatus::Completed)) => &mut self.saved,
            _ => return,
        };
        slot.get_or_insert(at);
    }

    /// A guest that stood before has no `STOP`, and all its time is approach.
    fn phases(&self) -> CapturePhases {
        let saved = self.saved.unwrap_or_default();
        let stood = self.stood.unwrap_or(saved);
        let begun = self.begun.unwrap_or(stood);
        CapturePhases { approach: stood.saturating_sub(begun), saving: saved.saturating_sub(stood) }
    }
}

/// QEMU leaves out shared RAM only: any other would be sent along, all of it, while the guest stands.
fn refuse_unless_shared(qmp: &Qmp) -> Result<(), StateError> {
    match qmp.query_memdev()?.into_iter().find(|block| !block.share) {
        Some(block) => Err(StateError::RamNotShared { id: block.id.unwrap_or_default() }),
        None => Ok(()),
    }
}

/// What a capture that did not succeed is called, once the guest runs again.
fn failed(
    qemu: &Qemu,
    events: &EventStream,
    guard: &Guard,
    end: Result<MigrationStatus, EventError>,
    written: u64,
    options: &CaptureOptions,
) -> StateError {
    if let Err(EventError::Closed(reason)) = &end {
        let said = qemu.last_words();
        return StateError::Gone { said: if said.is_empty() { reason.to_string() } else { said } };
    }
    let why = qemu.qmp().query_migrate().ok().and_then(|progress| progress.error);
    if let Err(worse) = give_back(qemu.qmp(), events, guard.was_running, end.is_err()) {
        return worse;
    }
    match end {
        Err(_) => StateError::Timeout { what: "write down the devices", after: options.timeout },
        Ok(_) if written >= options.limit.0 => StateError::TooLarge { limit: options.limit },
        Ok(_) => StateError::Failed { why: why.unwrap_or_else(|| "QEMU gives no reason; see its log".into()) },
    }
}

/// The guest runs again as before. QEMU sees to it by itself once its migration has ended; one that has not is cancelled.
fn give_back(qmp: &Qmp, events: &EventStream, was_running: bool, goes_on: bool) -> Result<(), StateError> {
    if goes_on {
        qmp.migrate_cancel()?;
        let cancelled = await_end(events, RESUME_TIMEOUT, |_| {});
        cancelled.map_err(|e| StateError::StillStands { why: e.to_string() })?;
    }
    match was_running {
        true => qmp.cont_after_migration(RESUME_TIMEOUT).map_err(|e| StateError::StillStands { why: e.to_string() }),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_are_told_by_the_events_in_any_order() {
        let ms = Duration::from_millis;
        let phases = |events: &[(&str, Option<MigrationStatus>, u64)]| {
            let mut times = Times::default();
            events.iter().for_each(|(name, status, at)| times.note(name, status.clone(), ms(*at)));
            times.phases()
        };
        let (setup, completed) = (Some(MigrationStatus::Setup), Some(MigrationStatus::Completed));
        let running = [("MIGRATION", setup.clone(), 10), ("STOP", None, 12), ("MIGRATION", completed.clone(), 17)];
        assert_eq!(phases(&running), CapturePhases { approach: ms(2), saving: ms(5) });
        let standing = [("MIGRATION", setup, 10), ("MIGRATION", completed, 17)];
        assert_eq!(phases(&standing), CapturePhases { approach: ms(7), saving: ms(0) });
        assert_eq!(phases(&[]), CapturePhases::default());
    }
}
