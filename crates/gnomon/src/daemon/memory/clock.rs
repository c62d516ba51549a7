//! The clock of the memory plane: once a second it looks who has ended and who is short; each step it plans.
//!
//! One thread for all groups, beside everything else: a request never waits for it. Training happens here too, after all
//! targets of a step are set.

use std::{
    sync::{Arc, Weak},
    thread,
    time::{Duration, Instant},
};

use gnomon_cycle::staging::{Limits, Pressure, Verdict};
use gnomon_memory::GroupStats;
use gnomon_terms::Bytes;

use super::{Memory, demand, found, group::Group, resize};
use crate::{api::ApiError, daemon::Daemon};

/// As often as agents report.
const BEAT: Duration = Duration::from_secs(1);
/// What a guest that is short is given at once.
const STEP: Bytes = Bytes(512 << 20);

/// Brings back what an earlier daemon has left, and begins to look, until the daemon is gone.
pub fn start(daemon: &Arc<Daemon>) {
    let weak = Arc::downgrade(daemon);
    thread::spawn(move || {
        if let Some(daemon) = weak.upgrade()
            && let Err(error) = found::bring_back(&daemon)
        {
            tracing::error!(%error, "staged memory of an earlier daemon");
        }
        let mut step_ended = Instant::now();
        while beat(&weak, &mut step_ended) {
            thread::sleep(BEAT);
        }
    });
}

fn beat(daemon: &Weak<Daemon>, step_ended: &mut Instant) -> bool {
    let Some(daemon) = daemon.upgrade() else { return false };
    if let Err(error) = found::look_at_guests(&daemon) {
        tracing::error!(%error, "staged memory of an earlier daemon");
    }
    settle_ended(&daemon);
    daemon.memory.settle_owed(&daemon);
    follow(&daemon);
    if step_ended.elapsed() >= daemon.memory.config.step {
        *step_ended = Instant::now();
        let groups: Vec<Arc<Group>> = daemon.memory.groups.read().values().cloned().collect();
        for group in &groups {
            if let Err(error) = end_step(&daemon, group) {
                tracing::error!(group = %group.name, %error, "what should be staged");
            }
        }
        groups.iter().for_each(|group| group.tend());
    }
    true
}

/// Gives back to the host what VMs had that have no QEMU any more.
fn settle_ended(daemon: &Daemon) {
    let memory = &daemon.memory;
    let Some(staging) = memory.staging() else { return };
    for vm in staging.guests() {
        let Ok(_turn) = super::Turn::take(memory, &vm) else { continue };
        if daemon.vms.is_free(&vm) {
            memory.ended(&vm);
        }
    }
}

/// Ends a group's step: what its members need goes in, what should be staged comes out.
fn end_step(daemon: &Daemon, group: &Group) -> Result<(), ApiError> {
    let Some(staging) = daemon.memory.staging() else { return Ok(()) };
    let members = group.record().members;
    let demands: Vec<(String, Bytes)> =
        members.into_iter().filter_map(|vm| Some((vm.clone(), demand::of(daemon, &vm)?))).collect();
    let stats = staging.stats(&group.name)?;
    group.end_step(&demands, stats.staged_now, unused(&stats), &mut random);
    daemon.memory.aim(group)
}

/// Bytes that went back to the host without having been of use, since the group was added.
fn unused(stats: &GroupStats) -> Bytes {
    let evicted = [stats.evicted_by_age, stats.evicted_by_budget, stats.evicted_by_floor, stats.evicted_by_target];
    Bytes(evicted.iter().map(|tally| tally.bytes.0).sum())
}

/// Bits for noise.
fn random() -> u64 {
    let mut bytes = [0; 8];
    // It fails for no buffer of this size; if it did, what is shown would be exact, which is no fault of data.
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    u64::from_le_bytes(bytes)
}

/// Gives guests that are short more, and asks those back that are at ease, where that was asked for. Each on a thread of its
/// own: a guest that is slow to answer holds nobody up.
fn follow(daemon: &Arc<Daemon>) {
    for (name, bytes) in daemon.memory.verdicts(daemon) {
        let daemon = Arc::clone(daemon);
        thread::spawn(move || {
            let changed = match bytes {
                Verdict::Grow(bytes) => resize::grow(&daemon, &name, bytes.0),
                Verdict::Shrink(bytes) => resize::shrink(&daemon, &name, bytes.0),
                Verdict::Stay => return,
            };
            match changed {
                Ok(change) => {
                    tracing::info!(vm = name, done = change.done, staged = change.staged, "its memory followed")
                }
                Err(error) => tracing::warn!(vm = name, error = error.message, "its memory did not follow"),
            }
        });
    }
}

impl Memory {
    /// Whether a VM's memory follows what its guest needs.
    pub(super) fn is_auto(&self, vm: &str) -> bool {
        self.following.lock().contains_key(vm)
    }

    /// Lets a VM's memory follow from now on, or no more.
    pub(super) fn set_auto(&self, vm: &str, on: bool) {
        let mut following = self.following.lock();
        match on {
            true => drop(following.entry(vm.to_string()).or_default()),
            false => drop(following.remove(vm)),
        }
    }

    /// What is to be done about the VMs that follow.
    fn verdicts(&self, daemon: &Daemon) -> Vec<(String, Verdict)> {
        let mut following = self.following.lock();
        let verdict =
            |(name, pressure): (&String, &mut Pressure)| Some((name.clone(), judge(daemon, name, pressure)?));
        following.iter_mut().filter_map(verdict).filter(|(_, verdict)| *verdict != Verdict::Stay).collect()
    }
}

fn judge(daemon: &Daemon, name: &str, pressure: &mut Pressure) -> Option<Verdict> {
    let view = daemon.vitals.agent(name).filter(|_| daemon.vitals.beats(name))?;
    let qemu = daemon.vms.get(name).ok()?.qemu()?;
    let (given, most) = (demand::given(&qemu)?, qemu.record().spec.as_ref()?.max_memory?);
    let boot = qemu.record().resolved.as_ref()?.memory;
    let limits = Limits { least: Bytes(boot), most: Bytes(most), step: STEP };
    Some(pressure.note(&demand::said(&view), given, &limits))
}
