//! The update tried on a copy of the guest: its RAM, devices and disks of one moment, in the new QEMU, apart from the
//! world. The guest itself stands for some milliseconds and notices nothing else.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use gnomon_machine::{
    snapshot::{Snapshot, snapshot},
    verdict::{Sign, Verdict, judge},
};
use gnomon_qemu::{CaptureOptions, Difference, Inventory, NetSpec, Qemu, Standby, TrackTarget, capture, track};

use super::{
    probe::Probe,
    report,
    target::Target,
    watch::{Pulse, Watch},
};
use crate::{
    api::{
        ApiError,
        types::{CommandView, UpdateVm},
    },
    daemon::{
        Daemon,
        agent::Ear,
        jobs::Job,
        vms::{Beside, Forks, Purpose, VmHandle, makeup},
    },
};

/// How long the copy may take to be loaded and to run.
const STEP: Duration = Duration::from_secs(30);

/// What a trial told.
pub struct Told {
    /// Whether the update may go on, and what speaks against it.
    pub verdict: Verdict,
    /// How long the guest itself stood for it.
    pub pause: Duration,
    /// How the command of the update ended in the copy, when it has one and that was told.
    pub command: Option<CommandView>,
}

/// Tries `target` on a copy of the guest. The copy is gone when this returns.
pub fn run(
    daemon: &Arc<Daemon>,
    vm: &Arc<VmHandle>,
    target: &Target,
    ask: &UpdateVm,
    job: &Job,
) -> Result<Told, ApiError> {
    let qemu = vm.qemu().ok_or_else(|| ApiError::refused("the VM does not run"))?;
    refuse_network(&qemu)?;
    let name = vm.record().name;
    let (expected, beats) = (daemon.vitals.expected(&name), daemon.vitals.beats(&name));
    let copy = copy_of(daemon, vm, &qemu)?;
    let pause = copy.pause;
    let beside = daemon.vms.launch_beside(
        vm,
        (&target.program, &target.names),
        (&copy.made_of, copy.memory.shared()),
        Purpose::Trial(copy.at_rest),
    )?;
    let look = Look { copy: &beside.qemu, name: &name, target, ask, job };
    let mut command = None;
    let tried = try_on(&beside, &copy.blob, |copy| {
        let watch = Watch::begin(copy, if beats { Pulse::Copy(Ear::of(copy)) } else { Pulse::None });
        // A probe looks at what the update has made of the guest: after its command, if it has one.
        (watch, if target.command.is_none() { look.probe() } else { Ok(None) })
    })
    .and_then(|(mut watch, probe)| {
        let mut signs = look.at(&mut watch, probe?, &mut command)?;
        signs.extend(watch.compare(expected.as_ref()));
        signs.extend(unlike(&beside.qemu, &copy.blob.inspect()?));
        Ok(signs)
    });
    daemon.vms.end_beside(vm, beside)?;
    let verdict = match tried {
        Ok(signs) => judge(&signs),
        // A QEMU that does not take the guest is the clearest of answers.
        Err(error) => Verdict { passed: false, reasons: vec![format!("the copy did not come to run: {error}")] },
    };
    Ok(Told { verdict, pause, command })
}

/// A copy that is looked at.
struct Look<'a> {
    copy: &'a Arc<Qemu>,
    name: &'a str,
    target: &'a Target,
    ask: &'a UpdateVm,
    job: &'a Job,
}

impl Look<'_> {
    /// Starts the probe, if there is one.
    fn probe(&self) -> io::Result<Option<Probe>> {
        let start = |probe| Probe::start(probe, self.name, self.copy, seconds(self.ask.probe_timeout));
        self.ask.probe.as_deref().map(start).transpose()
    }

    /// What is seen of the copy: of the update's command, by the probe (which may be under way), and by watching.
    fn at(
        &self,
        watch: &mut Watch,
        mut probe: Option<Probe>,
        told: &mut Option<CommandView>,
    ) -> io::Result<Vec<Sign>> {
        if let Some(command) = &self.target.command {
            report(self.job, "command", &format!("{command} runs in the copy"));
            let outcome = command.run(self.copy, watch, || self.job.is_cancelled());
            *told = outcome.view;
            if !outcome.signs.is_empty() || self.job.is_cancelled() {
                return Ok(outcome.signs);
            }
            watch.measure_anew();
            probe = self.probe()?;
        }
        let until = Instant::now() + seconds(self.ask.observe);
        let mut signs: Vec<Sign> =
            probe.and_then(|probe| probe.wait(|| self.job.is_cancelled())).into_iter().collect();
        if signs.is_empty() {
            signs = watch.until(until, || self.job.is_cancelled());
        }
        Ok(signs)
    }
}

/// A copy of the guest, and forks of its disks, of one moment.
fn copy_of(daemon: &Arc<Daemon>, vm: &VmHandle, qemu: &Qemu) -> Result<Snapshot<Forks>, ApiError> {
    let (made_of, memory) = makeup::whole(qemu)?;
    let mut tracking = track(&TrackTarget::of_memory(qemu.record().pid, &memory)?)?;
    let record = vm.record();
    let forks = || -> Result<Forks, String> {
        let fork = |disk: &String| daemon.keeper.fork(disk).map(|fork| (disk.clone(), fork));
        record.disks.iter().map(fork).collect::<Result<_, _>>().map_err(|error| error.to_string())
    };
    Ok(snapshot(qemu, made_of, tracking.tracker.as_mut(), forks)?)
}

/// Loads the copy and makes it run; `begin` is called in between, so that nothing of its life is missed.
fn try_on<T>(
    beside: &Beside,
    blob: &gnomon_qemu::StateBlob,
    begin: impl FnOnce(&Arc<Qemu>) -> T,
) -> Result<T, ApiError> {
    let loaded = Standby::new(&beside.qemu)?.load(blob, STEP)?;
    let begun = begin(&beside.qemu);
    loaded.run(STEP)?;
    Ok(begun)
}

/// Devices that the new QEMU has and the old one had not, or the other way round: they load without a word and fail a
/// guest later. Versions of a device's format may differ between releases.
fn unlike(copy: &Qemu, original: &Inventory) -> Vec<Sign> {
    let carried = copy.record().resolved.as_ref().map(CaptureOptions::of).unwrap_or_default();
    let Ok(frozen) = capture(copy, &carried) else { return Vec::new() };
    let Ok(inventory) = frozen.blob().inspect() else { return Vec::new() };
    let counts = |difference: &Difference| match difference {
        Difference::Device { this, other, .. } => this.is_none() != other.is_none(),
        Difference::Machine { .. } | Difference::Ram { .. } => true,
    };
    let differences = original.differences(&inventory);
    let told = differences.into_iter().filter(counts).map(|difference| difference.to_string());
    told.map(|what| Sign::OtherDevices { what }).collect()
}

/// A copy with a network would speak in the name of the guest.
fn refuse_network(qemu: &Qemu) -> Result<(), ApiError> {
    match qemu.record().spec.as_ref().map(|spec| &spec.net) {
        Some(NetSpec::None) | None => Ok(()),
        Some(NetSpec::User { .. }) => {
            Err(ApiError::refused("a guest with a network card cannot be tried on a copy yet")
                .then("give --untried to update it without a trial"))
        }
    }
}

fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::from_secs(3600))
}
