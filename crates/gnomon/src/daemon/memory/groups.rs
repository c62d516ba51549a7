//! Trust groups as the API has them: made, changed, looked at, removed.

use std::{sync::Arc, time::Duration};

use gnomon_cycle::staging::Mode;
use gnomon_memory::{Accounts, GroupLimits, NumaNode, PageKind};
use gnomon_terms::Bytes;

use super::{Memory, group::Group, numa};
use crate::{
    api::{
        ApiError,
        types::{AccountsView, BelievedView, CreateGroup, DemandView, GroupView, NumaView, RequestsView, StockView},
    },
    daemon::{Daemon, cold_start, records::GroupRecord},
    names,
};

/// The most groups of a host: each has models of its own, of some MiB.
const MOST_GROUPS: usize = 256;

/// What the staging area is told of a group.
pub(super) fn limits(record: &GroupRecord, mode: Mode) -> GroupLimits {
    // What is kept while nothing is known was asked for by whoever made the group: silence does not end that.
    let max_age = if mode == Mode::Cold { Duration::MAX } else { Duration::from_secs(record.max_age_s) };
    GroupLimits {
        // What a group may not have goes back to the host at once; what it only does not want now lingers.
        budget: Bytes(if record.shadowing { record.budget } else { 0 }),
        max_age,
        pages: pages(record),
        node: record.numa_node.map(NumaNode),
        ..GroupLimits::default()
    }
}

fn pages(record: &GroupRecord) -> PageKind {
    if record.huge_pages { PageKind::Huge } else { PageKind::Small }
}

/// Makes a group; memory is made ready for it from now on.
pub fn create(daemon: &Arc<Daemon>, ask: &CreateGroup) -> Result<GroupView, ApiError> {
    names::check(&ask.name).map_err(|error| ApiError::usage(error.to_string()))?;
    if ask.max_age_s == 0 {
        return Err(ApiError::usage(
            "max_age_s is 0: write for how many seconds a size that nobody asks for is kept",
        ));
    }
    numa::check(ask.numa_node)?;
    let memory = &daemon.memory;
    let record = GroupRecord {
        name: ask.name.clone(),
        members: Vec::new(),
        shadowing: true,
        horizon_s: ask.horizon_s.unwrap_or(memory.config.step.as_secs()),
        budget: ask.budget,
        reserve: ask.reserve.min(ask.budget),
        max_age_s: ask.max_age_s,
        huge_pages: ask.huge_pages,
        numa_node: ask.numa_node,
    };
    let group = Arc::new(Group::new(record.clone(), &memory.config, |vm| most(daemon, vm))?);
    let staging = memory.open_staging()?;
    let _changes = memory.changes.lock();
    let mut groups = memory.groups.write();
    if groups.contains_key(&ask.name) {
        return Err(ApiError::refused(format!("there is a group '{}' already", ask.name))
            .then("choose another name, or remove that one first"));
    }
    if groups.len() >= MOST_GROUPS {
        return Err(ApiError::refused(format!("this node has {MOST_GROUPS} groups, which is the most"))
            .then("remove one that is not needed"));
    }
    // On record first: what is staged for a group that nobody knows would be nobody's.
    memory.records.put_group(&record)?;
    if let Err(error) = staging.add_group(group.name.clone(), limits(&record, group.mode())) {
        memory.records.remove_group(&record.name)?;
        return Err(error.into());
    }
    groups.insert(record.name.clone(), Arc::clone(&group));
    drop(groups);
    memory.aim_alone(&group)?;
    view(daemon, &group)
}

/// Removes a group; its VMs run on and keep what they have.
pub fn remove(daemon: &Arc<Daemon>, name: &str) -> Result<GroupView, ApiError> {
    let memory = &daemon.memory;
    let _changes = memory.changes.lock();
    let group = memory.group(name)?;
    let view = view(daemon, &group)?;
    memory.records.remove_group(name)?;
    memory.groups.write().remove(name);
    memory.open_staging()?.remove_group(&group.name)?;
    Ok(view)
}

/// Adds a VM, which leaves the group that it is in. It need not run yet. Disks of it of which nothing was learned begin with
/// what those of other members have learned.
pub fn join(daemon: &Arc<Daemon>, name: &str, vm: &str) -> Result<GroupView, ApiError> {
    names::check(vm).map_err(|error| ApiError::usage(error.to_string()))?;
    let group = daemon.memory.group(name)?;
    enter(daemon, &group, vm)?;
    let disks = daemon.vms.get(vm).map(|vm| vm.record().disks).unwrap_or_default();
    cold_start::begin(daemon, &group.record().members, vm, &disks).keep(&daemon.keeper);
    view(daemon, &group)
}

/// The same, for one that may be in it already; how much memory it may have is noted anew. In the new group first: when
/// that has no room, the VM stays where it is.
pub(super) fn enter(daemon: &Daemon, group: &Group, vm: &str) -> Result<(), ApiError> {
    let memory = &daemon.memory;
    let _changes = memory.changes.lock();
    // It may have been removed meanwhile, and would be on record again.
    let before = memory.group(group.name.as_str()).map(|_| memory.group_of(vm))?;
    group.join(vm, most(daemon, vm))?;
    if before.as_ref().is_some_and(|before| before.name == group.name) {
        return Ok(());
    }
    group.change(|record| record.members.push(vm.to_string()), |record| memory.records.put_group(record))?;
    numa::settle(daemon, group);
    before.map_or(Ok(()), |before| memory.part(&before, vm))
}

/// Takes a VM out of a group.
pub fn leave(daemon: &Arc<Daemon>, name: &str, vm: &str) -> Result<GroupView, ApiError> {
    let memory = &daemon.memory;
    let _changes = memory.changes.lock();
    let group = memory.group(name)?;
    if !group.has(vm) {
        return Err(ApiError::refused(format!("VM '{vm}' is not in group '{name}'")).then("see `gnomon group ls`"));
    }
    memory.part(&group, vm)?;
    view(daemon, &group)
}

/// Makes memory ready for a group from now on, or no more.
pub fn set_shadowing(daemon: &Arc<Daemon>, name: &str, on: bool) -> Result<GroupView, ApiError> {
    let memory = &daemon.memory;
    let _changes = memory.changes.lock();
    let group = memory.group(name)?;
    group.change(|record| record.shadowing = on, |record| memory.records.put_group(record))?;
    memory.aim_alone(&group)?;
    view(daemon, &group)
}

/// Looks so far ahead from now on.
pub fn set_horizon(daemon: &Arc<Daemon>, name: &str, seconds: u64) -> Result<GroupView, ApiError> {
    let memory = &daemon.memory;
    let _changes = memory.changes.lock();
    let group = memory.group(name)?;
    group.set_horizon(Duration::from_secs(seconds))?;
    group.change(|record| record.horizon_s = seconds, |record| memory.records.put_group(record))?;
    memory.aim_alone(&group)?;
    view(daemon, &group)
}

/// All groups.
pub fn list(daemon: &Arc<Daemon>) -> Result<Vec<GroupView>, ApiError> {
    let groups: Vec<Arc<Group>> = daemon.memory.groups.read().values().cloned().collect();
    groups.iter().map(|group| view(daemon, group)).collect()
}

/// One group.
pub fn show(daemon: &Arc<Daemon>, name: &str) -> Result<GroupView, ApiError> {
    let group = daemon.memory.group(name)?;
    view(daemon, &group)
}

/// What a monitoring system is told of a group.
pub struct Figures {
    /// Its name.
    pub group: String,
    /// Where its blocks are.
    pub accounts: AccountsView,
    /// Bytes asked for since the daemon started that were staged, and that were not.
    pub hit: u64,
    /// See `hit`.
    pub missed: u64,
}

/// The figures of all groups, and whether the host has so little memory that nothing is staged now. Nothing is opened for it.
pub fn figures(daemon: &Daemon) -> (Vec<Figures>, bool) {
    let Some(staging) = daemon.memory.staging() else { return (Vec::new(), false) };
    let accounts = staging.accounts().groups;
    let of = |group: &Arc<Group>| {
        let stats = staging.stats(&group.name).ok()?;
        let own = accounts.iter().find(|(name, _)| *name == group.name);
        let accounts = own.map(|(_, accounts)| places(accounts)).unwrap_or_default();
        Some(Figures { group: group.name.to_string(), accounts, hit: stats.hit.0, missed: stats.missed.0 })
    };
    (daemon.memory.groups.read().values().filter_map(of).collect(), staging.held_back().is_some())
}

/// How much memory a VM may have; one that is not known yet is counted for when it is started.
pub(super) fn most(daemon: &Daemon, vm: &str) -> Bytes {
    let handle = daemon.vms.get(vm).ok();
    let qemu = handle.and_then(|vm| vm.qemu());
    let record = qemu.as_ref().map(|qemu| qemu.record());
    let boot = record.and_then(|record| record.resolved.as_ref()).map_or(0, |resolved| resolved.memory);
    let most = record.and_then(|record| record.spec.as_ref()).and_then(|spec| spec.max_memory);
    Bytes(most.unwrap_or(boot).max(boot))
}

impl Memory {
    /// The group of this name.
    pub(super) fn group(&self, name: &str) -> Result<Arc<Group>, ApiError> {
        self.groups.read().get(name).cloned().ok_or_else(|| ApiError::not_found("group", name))
    }

    /// Has staged for a group what should be, if it still is there.
    pub(super) fn aim(&self, group: &Group) -> Result<(), ApiError> {
        let _changes = self.changes.lock();
        if self.group(group.name.as_str()).is_err() {
            return Ok(());
        }
        self.aim_alone(group)
    }

    /// The same, for who has the lock of changes.
    fn aim_alone(&self, group: &Group) -> Result<(), ApiError> {
        let (record, mut blocks) = (group.record(), group.target().blocks);
        self.open_staging()?.set_group_limits(&group.name, limits(&record, group.mode()))?;
        let page = pages(&record).size().0;
        // A start that is no multiple of the group's pages has no block there.
        blocks.retain(|(size, _)| record.shadowing && size.0.is_multiple_of(page));
        Ok(self.open_staging()?.set_target(&group.name, &blocks)?)
    }

    fn part(&self, group: &Group, vm: &str) -> Result<(), ApiError> {
        group
            .change(|record| record.members.retain(|member| member != vm), |record| self.records.put_group(record))?;
        group.leave(vm)
    }
}

fn view(daemon: &Arc<Daemon>, group: &Group) -> Result<GroupView, ApiError> {
    let (record, staging) = (group.record(), daemon.memory.open_staging()?);
    let (stats, accounts) = (staging.stats(&group.name)?, staging.accounts());
    let own = accounts.groups.iter().find(|(name, _)| *name == group.name);
    let [staged_ms, cold_ms] = group.took();
    let target = if record.shadowing { stock(&group.target().blocks) } else { Vec::new() };
    let aimed: u64 = target.iter().map(|stock| stock.size * u64::from(stock.blocks)).sum();
    let micros = |took: Duration| took.as_secs_f64() * 1e6;
    let decision = stats.decision_p50.zip(stats.decision_p99).map(|(half, most)| [micros(half), micros(most)]);
    let percent = |ratio: Option<f64>| ratio.map(|ratio| ratio * 100.0);
    Ok(GroupView {
        staged: stock(&staging.stock(&group.name)),
        accounts: own.map(|(_, accounts)| places(accounts)).unwrap_or_default(),
        requests: RequestsView {
            requests: stats.requests,
            hit_bytes: stats.hit.0,
            missed_bytes: stats.missed.0,
            far_bytes: stats.far.0,
            hit_percent: percent(stats.hit_ratio()),
            idle_bytes: stats.mean_staged().0,
            static_hit_percent: percent(stats.static_hit_ratio()),
            utilisation_percent: (aimed > 0).then(|| 100.0 * stats.staged_now.0 as f64 / aimed as f64),
            staged_ms,
            cold_ms,
            decision_us: decision,
        },
        expected: expected(group),
        heat: group.picture().map(|picture| picture.map(|members| (members * 10.0).round() / 10.0).to_vec()),
        held_back: staging.held_back().map(|why| why.to_string()),
        target,
        name: record.name,
        members: record.members,
        shadowing: record.shadowing,
        horizon_s: record.horizon_s,
        budget: record.budget,
        reserve: record.reserve,
        max_age_s: record.max_age_s,
        huge_pages: record.huge_pages,
        numa_node: record.numa_node,
        numa: on_nodes(&staging.by_node(&group.name)),
    })
}

fn expected(group: &Group) -> DemandView {
    /// Where the levels 0.5 and 0.95 are among those that models answer.
    const MIDDLE_AND_MOST: [usize; 2] = [2, 5];
    let planned = group.planned();
    let mode = match planned.mode {
        Mode::Cold => "cold",
        Mode::Forecast => "forecast",
        Mode::Silent => "silent",
    };
    DemandView {
        mode: mode.to_string(),
        level: planned.level,
        scale: planned.scale,
        bytes: planned.expected.map(|expected| MIDDLE_AND_MOST.map(|at| expected[at].0)),
        steps: planned.judged,
        covered_percent: (planned.judged > 0).then_some(planned.covered * 100.0),
        gain_percent: planned.gain.map(|gain| gain * 100.0),
        history_percent: planned.history * 100.0,
        believed: planned
            .experts
            .iter()
            .map(|expert| BelievedView { model: expert.name.to_string(), weight: f64::from(expert.weight) })
            .collect(),
    }
}

fn stock(blocks: &[(Bytes, u32)]) -> Vec<StockView> {
    blocks.iter().map(|(size, blocks)| StockView { size: size.0, blocks: *blocks }).collect()
}

fn on_nodes(nodes: &[(NumaNode, Bytes)]) -> Vec<NumaView> {
    nodes.iter().map(|(node, bytes)| NumaView { node: node.0, staged: bytes.0 }).collect()
}

fn places(accounts: &Accounts) -> AccountsView {
    AccountsView {
        created: accounts.created.bytes.0,
        populating: accounts.populating.bytes.0,
        staged: accounts.staged.bytes.0,
        reserved: accounts.reserved.bytes.0,
        assigned: accounts.assigned.bytes.0,
        leaving: accounts.leaving.bytes.0,
        released: accounts.released.bytes.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(shadowing: bool) -> GroupRecord {
        GroupRecord {
            name: "shop".to_string(),
            members: Vec::new(),
            shadowing,
            horizon_s: 300,
            budget: 1 << 30,
            reserve: 1 << 28,
            max_age_s: 60,
            huge_pages: false,
            numa_node: Some(1),
        }
    }

    #[test]
    fn what_is_kept_while_nothing_is_known_does_not_age() {
        let age = |mode| limits(&record(true), mode).max_age;
        assert_eq!(age(Mode::Cold), Duration::MAX);
        assert_eq!([age(Mode::Forecast), age(Mode::Silent)], [Duration::from_secs(60); 2]);
    }

    #[test]
    fn a_groups_wish_for_a_node_reaches_the_staging_area() {
        assert_eq!(limits(&record(true), Mode::Cold).node, Some(NumaNode(1)));
    }

    #[test]
    fn a_group_without_shadowing_may_have_nothing() {
        assert_eq!(limits(&record(false), Mode::Cold).budget, Bytes(0));
        assert_eq!(limits(&record(true), Mode::Cold).budget, Bytes(1 << 30));
    }
}
