//! The update tried on a copy of the guest: its RAM, devices and disks of one moment, in the new QEMU, apart from the
//! world. The guest itself stands for some milliseconds and notices nothing else.

use std::{
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
    target::Target,
    watch::{Pulse, Watch},
};
use crate::{
    api::{ApiError, types::UpdateVm},
    daemon::{
        Daemon,
        agent::Ear,
        jobs::Job,
        vms::{Beside, Forks, Purpose, VmHandle},
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
        copy.ram.shared(),
        Purpose::Trial(copy.at_rest),
    )?;
    let tried = try_on(&beside, &copy.blob, |copy| {
        let watch = Watch::begin(copy, if beats { Pulse::Copy(Ear::of(copy)) } else { Pulse::None });
        let probe = ask.probe.as_deref().map(|probe| Probe::start(probe, &name, copy, seconds(ask.probe_timeout)));
        (watch, probe)
    })
    .and_then(|(mut watch, probe)| {
        let until = Instant::now() + seconds(ask.observe);
        let mut signs: Vec<Sign> = Vec::new();
        if let Some(probe) = probe.transpose()? {
            signs.extend(probe.wait(|| job.is_cancelled()));
        }
        if signs.is_empty() {
            signs.extend(watch.until(until, || job.is_cancelled()));
        }
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
    Ok(Told { verdict, pause })
}

/// A copy of the guest, and forks of its disks, of one moment.
fn copy_of(daemon: &Arc<Daemon>, vm: &VmHandle, qemu: &Qemu) -> Result<Snapshot<Forks>, ApiError> {
    let ram = qemu.open_ram()?.ok_or_else(|| {
        ApiError::refused("the guest's RAM is QEMU's own, and cannot be copied while it runs")
            .then("restart the VM with `gnomon vm run`: since this version its RAM is shared")
    })?;
    let mut tracking = track(&TrackTarget::new(qemu.record().pid, &ram)?)?;
    let record = vm.record();
    let forks = || -> Result<Forks, String> {
        let fork = |disk: &String| daemon.keeper.fork(disk).map(|fork| (disk.clone(), fork));
        record.disks.iter().map(fork).collect::<Result<_, _>>().map_err(|error| error.to_string())
    };
    Ok(snapshot(qemu, tracking.tracker.as_mut(), forks)?)
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
    let Ok(frozen) = capture(copy, &CaptureOptions::default()) else { return Vec::new() };
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
