//! Capturing: the guest stands for some milliseconds while its devices are written down.

use std::time::Duration;

use gnomon_terms::{Bytes, ErrorKind};

use super::{
    STATE_LIMIT, StateBlob, StateError, await_end,
    channel::{Channel, truncates},
    prepare, run, unpace,
};
use crate::{
    memory::{AddedMemory, added_memory},
    migrate::status_of,
    process::Qemu,
    qmp::{EventError, EventStream, MigrationStatus, Qmp, QmpEvent, RunState},
    spec::Resolved,
};

/// How long a guest may take to run again after a capture that failed: QEMU reopens its disks for that.
const RESUME_TIMEOUT: Duration = Duration::from_secs(30);

/// How devices are captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaptureOptions {
    /// DIMMs whose memory is carried by whoever captures. The guest has to have these and no others.
    pub dimms: Vec<String>,
    /// The most bytes of the state.
    pub limit: Bytes,
    /// How long QEMU may take. A disk whose server is away makes it wait.
    pub timeout: Duration,
}

impl Default for CaptureOptions {
    /// 64 MiB and ten seconds: a thousand times what it takes. No DIMMs.
    fn default() -> CaptureOptions {
        CaptureOptions { dimms: Vec::new(), limit: STATE_LIMIT, timeout: Duration::from_secs(10) }
    }
}

impl CaptureOptions {
    /// The default, for a guest that has these DIMMs.
    pub fn of(resolved: &Resolved) -> CaptureOptions {
        let dimms = resolved.dimms.iter().map(|dimm| dimm.id.clone()).collect();
        CaptureOptions { dimms, ..CaptureOptions::default() }
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
/// says so. Refused at once for a guest whose RAM is not shared, and for one that stands because of an earlier migration or
/// capture: it has to run in between.
pub fn capture(qemu: &Qemu, options: &CaptureOptions) -> Result<Frozen, StateError> {
    refuse_unless_whole(qemu.qmp(), &options.dimms)?;
    let attempt = Attempt::begin(qemu.qmp(), options.limit)?;
    let mut times = Times::default();
    let note = |event: &QmpEvent| times.note(&event.name, status_of(event), event.at);
    match await_end(&attempt.events, options.timeout, note) {
        Ok(MigrationStatus::Completed) => attempt.complete(times, options.limit),
        other => Err(attempt.give_up(qemu, other, options)),
    }
}

/// A capture that has begun.
struct Attempt {
    qmp: Qmp,
    events: EventStream,
    blob: StateBlob,
    channel: Channel,
    was_running: bool,
}

impl Attempt {
    /// Everything up to the command itself is asked while the guest runs.
    fn begin(qmp: &Qmp, limit: Bytes) -> Result<Attempt, StateError> {
        prepare(qmp)?;
        unpace(qmp)?;
        let status = qmp.query_status()?;
        // QEMU would refuse it too; but one that is asked while the earlier migration still ends may crash (seen of 7.2).
        if matches!(status.state, RunState::FinishMigrate | RunState::Postmigrate) {
            return Err(StateError::Migrated);
        }
        let was_running = status.running;
        let blob = StateBlob::room()?;
        if !truncates(qmp)? {
            blob.confine(limit)?;
        }
        let channel = Channel::give(qmp, blob.reopen(true)?)?;
        let attempt = Attempt { qmp: qmp.clone(), events: qmp.events(), blob, channel, was_running };
        match qmp.migrate(&attempt.channel.uri()) {
            Ok(()) => Ok(attempt),
            // A refusal has changed nothing.
            Err(error) if error.kind() == ErrorKind::Refused => Err(error.into()),
            // Without an answer it may have begun all the same.
            Err(error) => attempt.give_back(true).and(Err(error.into())),
        }
    }

    fn complete(mut self, times: Times, limit: Bytes) -> Result<Frozen, StateError> {
        let guard = Guard { qmp: self.qmp, was_running: self.was_running, armed: true };
        let written = self.channel.position();
        if written > limit.0 {
            return Err(StateError::TooLarge { limit });
        }
        self.blob.cut(written)?;
        let (phases, stood) = (times.phases(), times.stood.unwrap_or_default());
        Ok(Frozen { blob: self.blob, phases, stood, events: self.events, guard, channel: self.channel })
    }

    /// What a capture that did not succeed is called, once the guest runs again.
    fn give_up(self, qemu: &Qemu, end: Result<MigrationStatus, EventError>, options: &CaptureOptions) -> StateError {
        if let Err(EventError::Closed(reason)) = &end {
            let said = qemu.last_words();
            return StateError::Gone { said: if said.is_empty() { reason.to_string() } else { said } };
        }
        let why = self.qmp.query_migrate().ok().and_then(|progress| progress.error);
        let full = self.channel.position() >= options.limit.0;
        if let Err(worse) = self.give_back(end.is_err()) {
            return worse;
        }
        match end {
            Err(_) => StateError::Timeout { what: "write down the devices", after: options.timeout },
            Ok(_) if full => StateError::TooLarge { limit: options.limit },
            Ok(_) => StateError::Failed { why: why.unwrap_or_else(|| "QEMU gives no reason; see its log".into()) },
        }
    }

    /// The guest runs again as before. QEMU sees to it by itself once its migration has ended; one that goes on is
    /// cancelled.
    fn give_back(&self, goes_on: bool) -> Result<(), StateError> {
        let stands = |why: String| StateError::StillStands { why };
        if goes_on {
            self.qmp.migrate_cancel()?;
            await_end(&self.events, RESUME_TIMEOUT, |_| {}).map_err(|e| stands(e.to_string()))?;
        }
        match self.was_running {
            true => self.qmp.cont_after_migration(RESUME_TIMEOUT).map_err(|e| stands(e.to_string())),
            false => Ok(()),
        }
    }
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

/// QEMU leaves out shared RAM only: any other would be sent along, all of it, while the guest stands. And a state with more
/// memory than is carried, or less, could be loaded nowhere, which nobody may learn when the guest is gone.
fn refuse_unless_whole(qmp: &Qmp, carried: &[String]) -> Result<(), StateError> {
    let backends = qmp.query_memdev()?;
    if let Some(block) = backends.iter().find(|block| !block.share) {
        return Err(StateError::RamNotShared { id: block.id.clone().unwrap_or_default() });
    }
    let AddedMemory { dimms, device } = added_memory(qmp, &backends)?;
    if let Some(id) = dimms.iter().find(|id| !carried.contains(id)).or(device.as_ref()) {
        return Err(StateError::RamAdded { id: id.clone() });
    }
    match carried.iter().find(|id| !dimms.contains(id)) {
        Some(id) => Err(StateError::RamGivenBack { id: id.clone() }),
        None => Ok(()),
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
