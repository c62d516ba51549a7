//! The clock of the memory plane: once a second it looks who has ended and who is short; each step it plans.
//!
//! One thread for all groups, beside everything else: a request never waits for it. Training happens here too, after all
//! targets of a step are set.

use std::{
    sync::{Arc, Weak},
    thread,
    time::{Duration, Instant},
};

use gnomon_memory::GroupStats;
use gnomon_terms::Bytes;

use super::{demand, follow::follow, found, group::Group, heat, numa, resize::settle_owed};
use crate::{api::ApiError, daemon::Daemon};

/// As often as agents report.
const BEAT: Duration = Duration::from_secs(1);

/// Brings back what an earlier daemon has left, and begins to look, until the daemon is gone. Groups are there when this
/// returns; what is staged for them is looked for beside.
pub fn start(daemon: &Arc<Daemon>) -> Result<(), ApiError> {
    found::bring_back_groups(daemon)?;
    let weak = Arc::downgrade(daemon);
    thread::spawn(move || {
        if let Some(daemon) = weak.upgrade()
            && let Err(error) = found::bring_back_blocks(&daemon)
        {
            tracing::error!(%error, "staged memory of an earlier daemon");
        }
        let mut step_ended = Instant::now();
        while beat(&weak, &mut step_ended) {
            thread::sleep(BEAT);
        }
    });
    Ok(())
}

fn beat(daemon: &Weak<Daemon>, step_ended: &mut Instant) -> bool {
    let Some(daemon) = daemon.upgrade() else { return false };
    found::look_at_guests(&daemon);
    settle_ended(&daemon);
    settle_owed(&daemon);
    follow(&daemon);
    heat::look(&daemon);
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
        let Some(_turn) = memory.turns.glance(&vm) else { continue };
        if memory.is_over(daemon, &vm) {
            memory.ended(&vm);
        }
    }
}

/// Ends a group's step: what its members need goes in, what should be staged comes out.
fn end_step(daemon: &Daemon, group: &Group) -> Result<(), ApiError> {
    // It could not be opened when the daemon started, perhaps.
    let staging = daemon.memory.open_staging()?;
    let members = group.record().members;
    group.draw(daemon.memory.heats.picture(&members, &mut random));
    let added = daemon.memory.ask(daemon, members, demand::added).into_iter();
    let demands: Vec<(String, Bytes)> =
        added.filter_map(|(vm, added)| demand::of(daemon, &vm, added).map(|demand| (vm, demand))).collect();
    let stats = staging.stats(&group.name)?;
    group.end_step(&demands, stats.staged_now, unused(&stats), &mut random);
    numa::settle(daemon, group);
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
