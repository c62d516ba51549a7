//! `/metrics`: what a monitoring system wants to see, in the OpenMetrics text format.
//!
//! Everything is read when it is asked for; nothing is counted twice.

use std::sync::atomic::AtomicU64;

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::{
    api::ApiError,
    daemon::{Daemon, memory::groups},
};

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct VolumeLabel {
    volume: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RoleLabel {
    volume: String,
    role: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StateLabel {
    state: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct GroupLabel {
    group: String,
}

/// The page.
pub fn page(daemon: &Daemon) -> Result<String, ApiError> {
    let mut registry = Registry::with_prefix("gnomon");
    volumes(daemon, &mut registry);
    staged(daemon, &mut registry);
    let vms = Family::<StateLabel, Gauge>::default();
    registry.register("vms", "VMs of this node by QEMU's state", vms.clone());
    for vm in daemon.vms.list() {
        vms.get_or_create(&StateLabel { state: vm.status }).inc();
    }
    let jobs = Family::<StateLabel, Gauge>::default();
    registry.register("jobs", "Jobs by state", jobs.clone());
    for job in daemon.jobs.list() {
        jobs.get_or_create(&StateLabel { state: format!("{:?}", job.state).to_lowercase() }).inc();
    }
    let mut text = String::new();
    encode(&mut text, &registry).map_err(ApiError::internal)?;
    Ok(text)
}

fn volumes(daemon: &Daemon, registry: &mut Registry) {
    let counter = |registry: &mut Registry, name: &str, help: &str| {
        let family = Family::<VolumeLabel, Counter>::default();
        registry.register(name, help, family.clone());
        family
    };
    let reads = counter(registry, "volume_reads", "Read requests of guests");
    let writes = counter(registry, "volume_writes", "Write requests of guests");
    let read_bytes = counter(registry, "volume_read_bytes", "Bytes read by guests");
    let written_bytes = counter(registry, "volume_written_bytes", "Bytes written by guests");
    let lost = counter(registry, "volume_accesses_lost", "Accesses the loop did not see because its tap was full");
    let missing = Family::<VolumeLabel, Gauge>::default();
    registry.register("volume_missing_bytes", "Bytes that are only at the source of a move", missing.clone());
    let owed = Family::<VolumeLabel, Gauge>::default();
    registry.register("volume_owed_bytes", "Bytes that the other node of a move lacks", owed.clone());
    let epoch = Family::<RoleLabel, Gauge>::default();
    registry.register("volume_epoch", "Who may write: rises with each handover", epoch.clone());
    for handle in daemon.keeper.all() {
        let view = daemon.keeper.view(&handle);
        let label = VolumeLabel { volume: view.name.clone() };
        reads.get_or_create(&label).inc_by(view.accesses.reads);
        writes.get_or_create(&label).inc_by(view.accesses.writes);
        read_bytes.get_or_create(&label).inc_by(view.accesses.read_bytes);
        written_bytes.get_or_create(&label).inc_by(view.accesses.written_bytes);
        lost.get_or_create(&label).inc_by(view.accesses.lost);
        let owes = handle.volume.outbox().map_or(0, |outbox| outbox.owed().bytes().0);
        missing.get_or_create(&label).set(gauge(handle.volume.missing().bytes().0));
        owed.get_or_create(&label).set(gauge(owes));
        epoch.get_or_create(&RoleLabel { volume: view.name, role: view.role }).set(gauge(view.epoch));
    }
}

/// Memory that is ready, by trust group: sums of the host's own accounts, nothing of one guest.
fn staged(daemon: &Daemon, registry: &mut Registry) {
    let gauges = |registry: &mut Registry, name: &str, help: &str| {
        let family = Family::<GroupLabel, Gauge>::default();
        registry.register(name, help, family.clone());
        family
    };
    let counter = |registry: &mut Registry, name: &str, help: &str| {
        let family = Family::<GroupLabel, Counter>::default();
        registry.register(name, help, family.clone());
        family
    };
    let staged = gauges(registry, "memory_staged_bytes", "Bytes staged for a trust group");
    let assigned = gauges(registry, "memory_assigned_bytes", "Bytes of staged blocks that guests have");
    let hit = counter(registry, "memory_hit_bytes", "Bytes asked for that were staged");
    let missed = counter(registry, "memory_missed_bytes", "Bytes asked for that were not staged");
    let held = Gauge::<i64>::default();
    registry.register("memory_held_back", "1 while the host has too little memory to stage any", held.clone());
    let looks = Counter::<f64, AtomicU64>::default();
    registry.register(
        "memory_looks_seconds",
        "Processor time that it took to see where guests use memory",
        looks.clone(),
    );
    looks.inc_by(daemon.memory.spent_looking().as_secs_f64());
    let (figures, held_back) = groups::figures(daemon);
    held.set(i64::from(held_back));
    for figures in figures {
        let label = GroupLabel { group: figures.group };
        staged.get_or_create(&label).set(gauge(figures.accounts.staged));
        assigned.get_or_create(&label).set(gauge(figures.accounts.assigned));
        hit.get_or_create(&label).inc_by(figures.hit);
        missed.get_or_create(&label).inc_by(figures.missed);
    }
}

fn gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
