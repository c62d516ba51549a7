//! A VM's shadows on other nodes: `protect`, `unprotect`, `switchover`, `failover`.
//!
//! ```text
//!   primary's node                                   shadow's node
//!   primary ── checkpoints ── sessions ────────────► seat ── shadow (a second memory, a QEMU that waits)
//!      │ switch: freeze, given on record ──────────► takeover: promoted on record, runs
//!      │                          the operator ────► takeover, after the primary was asked, or is said to be fenced
//!      └ ended: asks, and gives the guest up ◄────── promoted
//! ```
//! Who may run a guest is on record, at one node each: *given* at the primary, *promoted* at the shadow. Without a witness
//! nobody can tell a dead host from a cut cable, so nothing happens by itself: the primary goes on when its shadow is
//! lost, and the shadow goes on when an operator says that the primary cannot. A primary that returns asks before its
//! disks are served ([`ask_first`]), for a moment only: silence is not a reason to stop a guest. With a witness, a store
//! that both nodes see, [`guarding`] decides by its leases, and *promoted* follows from that.
//!
//! A VM may have several shadows. Each has a driver, sessions and a pace of its own, and they share the [`family`]: one guest
//! that stands once for all of them. At most one of them takes over: a node whose operator wants it to asks the others
//! first ([`siblings`]), and with a witness only one can have the term.
//!
//! Read in this order: [`primary`] and [`shadow`] with its [`seat`], then [`switch`] and [`takeover`], then [`ended`] and
//! [`doubt`], then [`guarding`] and the [`leash`] by which it holds a guest; [`strict`] says when frames leave, and [`pulse`]
//! is what a user is told.

mod copies;
mod doubt;
mod ended;
mod family;
mod guarding;
mod leash;
mod primary;
mod pulse;
mod rpc;
mod run;
mod seat;
mod shadow;
mod shared;
mod siblings;
mod story;
mod strict;
mod switch;
mod takeover;
mod volumes;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use gnomon_machine::primary::Pace;
use gnomon_proto::frame::Stream;
use parking_lot::Mutex;

pub use rpc::Ask;
pub use seat::Seat;
pub use shadow::Shadows;
pub use takeover::failover;

use self::{
    family::Family,
    primary::Primary,
    rpc::Fate,
    shared::{Order, Shared},
    story::Story,
    volumes::Volumes,
};
use super::{Daemon, moving, records::ProtectRecord};
use crate::api::{
    ApiError,
    types::{JobView, ProtectVm, ProtectionState, ProtectionView, SwitchVm, UnprotectVm, VmView},
};

/// The guest's number in its session; its volumes are counted from zero.
const STREAM: Stream = Stream(u32::MAX);
/// How long a checkpoint may take to come to its end when the daemon stops.
const REST_WITHIN: Duration = Duration::from_secs(5);
/// How often a QEMU is looked at whose monitor did not answer when the daemon started.
const ANSWERS_WITHIN: Duration = Duration::from_millis(200);
/// The intervals that may be asked for. Under 10 ms a guest would do little but stand; what is lost after more than a
/// minute is a restore from a backup, and no failover.
const INTERVALS_MS: std::ops::RangeInclusive<u64> = 10..=60_000;

/// The protections that this node is the primary of, by VM.
#[derive(Default)]
pub struct Protections {
    active: Mutex<BTreeMap<String, Arc<Family>>>,
}

impl Protections {
    /// That of a VM.
    fn get(&self, vm: &str) -> Option<Arc<Family>> {
        self.active.lock().get(vm).cloned()
    }

    /// All of them.
    fn list(&self) -> Vec<Arc<Family>> {
        self.active.lock().values().cloned().collect()
    }

    /// One more shadow of a VM.
    fn add(&self, daemon: &Daemon, record: ProtectRecord) -> Arc<Shared> {
        let mut active = self.active.lock();
        let begin = || Family::new(&record, daemon.vms.gate(&record.vm));
        let family = Arc::clone(active.entry(record.vm.clone()).or_insert_with(begin));
        family.add(record)
    }

    /// A shadow is none any more; with the last one the protection is over.
    fn over(&self, shared: &Arc<Shared>) {
        let family = &shared.family;
        let mut active = self.active.lock();
        if family.leave(shared) && active.get(&family.vm).is_some_and(|known| Arc::ptr_eq(known, family)) {
            active.remove(&family.vm);
            family.leash.end();
            // What holds it lets go of the rest.
            drop(family.guard.lock().take());
        }
        drop(active);
        shared.order.send_replace(Order::GivenUp);
    }

    /// Refuses what would be done to a VM, or its QEMU, behind the back of its shadows.
    pub fn refuse_if_protected(&self, vm: &str) -> Result<(), ApiError> {
        match self.get(vm) {
            None => Ok(()),
            Some(family) => {
                let nodes = family.nodes().join(", ");
                Err(ApiError::refused(format!("VM '{vm}' is protected by node {nodes}"))
                    .then(format!("end that first: `gnomon vm unprotect {vm}`")))
            }
        }
    }
}

// ---- what comes before the doors open --------------------------------------------------------------------------------

/// A VM with the shadow that has taken over, and the epoch at which.
pub type Lost = (Arc<Shared>, u64);

/// Brings back the protections on record, and asks the nodes of shadows whether they have taken over: before this node
/// serves a disk. The volumes of those that have are fenced when this returns. A node that does not answer within two
/// seconds is not waited for.
pub async fn ask_first(daemon: &Arc<Daemon>) -> Result<Vec<Lost>, ApiError> {
    for record in daemon.records.shadows()? {
        daemon.vms.reserve(&record.vm, &record.from);
    }
    for record in daemon.records.protections()? {
        if record.given.is_some() {
            Volumes::of(daemon, &record)?.give(&daemon.keeper, &record.to)?;
        }
        strict::bring_back(daemon, &record);
        daemon.protections.add(daemon, record);
    }
    let mut asked = Vec::new();
    for family in daemon.protections.list() {
        if let Err(error) = guarding::begin(daemon, &family, true) {
            tracing::error!(vm = family.vm, %error, "its guard cannot be brought back");
        }
        let daemon = Arc::clone(daemon);
        asked.push(tokio::spawn(async move { who_took_over(&daemon, &family).await }));
    }
    let mut lost = Vec::new();
    for answer in asked {
        let Some((shared, epoch)) = answer.await.map_err(ApiError::internal)? else { continue };
        let record = shared.record.lock().clone();
        daemon.vms.gate(&record.vm).fence();
        Volumes::of(daemon, &record)?.lose(&daemon.keeper, &record.to)?;
        lost.push((shared, epoch));
    }
    Ok(lost)
}

/// Asks the nodes of all shadows of a VM at once. One that it was given to in a switchover is left out: that ends as it
/// would have.
async fn who_took_over(daemon: &Arc<Daemon>, family: &Arc<Family>) -> Option<Lost> {
    let mut asked = Vec::new();
    for shared in family.members() {
        let (daemon, record) = (Arc::clone(daemon), shared.record.lock().clone());
        if record.given.is_none() {
            asked.push((shared, tokio::spawn(async move { ended::fate(&daemon, &record).await })));
        }
    }
    let mut is_silent = false;
    for (shared, fate) in asked {
        match fate.await {
            Ok(Ok(Fate::Promoted { epoch })) => return Some((shared, epoch)),
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                is_silent = true;
                tracing::warn!(vm = family.vm, %error, "a shadow cannot be asked: the guest goes on here");
            }
            Err(error) => tracing::error!(vm = family.vm, %error, "a shadow was not asked"),
        }
    }
    if !is_silent || family.given_to().is_some() {
        return None;
    }
    let holder = guarding::superseded_by(family).await?;
    let shared = family.member(&holder).or_else(|| family.members().first().cloned())?;
    let epoch = shared.record.lock().epoch + 1;
    Some((shared, epoch))
}

/// Ends the VMs that were lost, and brings back the shadows on record: once there are VMs and their disks are served.
pub async fn open(daemon: &Arc<Daemon>, lost: Vec<Lost>) -> Result<(), ApiError> {
    for (shared, epoch) in lost {
        ended::given_up(daemon, &shared, epoch).await?;
        shared.family.members().iter().for_each(|member| daemon.protections.over(member));
    }
    let opener = Arc::clone(daemon);
    blocking(move || Shadows::open(&opener)).await
}

/// The daemon stops: checkpoints that are under way come to their end, so that no guest is left standing.
pub async fn rest(daemon: &Daemon) {
    let active = daemon.protections.list();
    for family in &active {
        family.members().iter().for_each(|member| _ = member.order.send_replace(Order::Rest));
        family.leash.end();
    }
    for family in active {
        let resting = async {
            for member in family.members() {
                member.resting().await;
            }
            guarding::rest(&family).await;
        };
        if tokio::time::timeout(REST_WITHIN, resting).await.is_err() {
            tracing::warn!(vm = family.vm, "a checkpoint, or the store, is not waited for any longer");
        }
    }
}

/// Goes on with every protection on record, and with every shadow.
pub fn resume(daemon: &Arc<Daemon>) -> Result<(), ApiError> {
    for shared in daemon.protections.list().iter().flat_map(|family| family.members()) {
        tracing::info!(vm = shared.family.vm, "its protection by node {} goes on", shared.node());
        tokio::spawn(go_on(Arc::clone(daemon), shared));
    }
    for keeping in daemon.shadows.list() {
        doubt::ask_when_alone(daemon, &keeping);
    }
    Ok(())
}

/// Starts the driver of a protection on record.
async fn go_on(daemon: Arc<Daemon>, shared: Arc<Shared>) {
    let record = shared.record.lock().clone();
    let is_lost = || matches!(*shared.order.borrow(), Order::Lost);
    while daemon.vms.get(&record.vm).is_ok_and(|vm| vm.is_unreachable()) && !is_lost() {
        // It runs, and its monitor is asked until it answers.
        tokio::time::sleep(ANSWERS_WITHIN).await;
    }
    let Some(vm) = daemon.vms.get(&record.vm).ok().filter(|vm| vm.qemu().is_some()) else {
        let story = Story::new(&daemon, &record.vm, &record.to);
        return ended::stand_by(daemon, shared, story).await;
    };
    let (begin, with) = (Arc::clone(&daemon), Arc::clone(&shared));
    let volumes = Volumes::of(&daemon, &record);
    let begun = blocking(move || {
        if let Some(qemu) = vm.qemu().filter(|_| !with.family.leash.lets_run()) {
            // It ran on while this daemon was away, and who holds it is not known yet.
            qemu.qmp().stop()?;
        }
        let volumes = volumes?;
        if with.family.given_to().is_none() {
            volumes.resume()?;
        }
        Primary::new(&begin, &with, vm, volumes)
    });
    match begun.await {
        Ok(primary) => primary.run(None).await,
        Err(error) => {
            tracing::error!(vm = record.vm, %error, "it cannot be protected any more; it stays on record");
            shared.pulse.lost(&error.to_string());
        }
    }
}

// ---- verbs -----------------------------------------------------------------------------------------------------------

/// Begins to keep a shadow of a running VM, beside those that it has.
pub fn protect(daemon: &Arc<Daemon>, name: &str, ask: ProtectVm) -> Result<JobView, ApiError> {
    daemon.check_peer(&ask.on)?;
    check_interval(ask.interval_ms)?;
    let vm = daemon.vms.get(name)?;
    if vm.qemu().is_none() {
        return Err(ApiError::refused(format!("VM '{name}' does not run")).then("start it with `gnomon vm run`"));
    }
    let _still = daemon.memory.hold_still(&vm)?;
    let record = match daemon.protections.get(name) {
        Some(family) => siblings::record_beside(daemon, &family, ask)?,
        None => record_of_first(daemon, name, ask)?,
    };
    let volumes = Volumes::of(daemon, &record)?;
    daemon.records.put_protection(&record)?;
    let shared = daemon.protections.add(daemon, record.clone());
    let begun = volumes
        .begin(&daemon.keeper, &record.id)
        .and_then(|()| Primary::new(daemon, &shared, vm, Arc::clone(&volumes)));
    let begun = begun.and_then(|primary| guarding::begin(daemon, &shared.family, false).map(|()| primary));
    let primary = begun.inspect_err(|_| {
        let is_last = shared.family.leave(&shared);
        daemon.protections.over(&shared);
        let undone = volumes.end(&daemon.keeper, is_last);
        if let Err(error) = undone.and_then(|()| daemon.records.remove_protection(name, &record.to)) {
            tracing::error!(vm = name, %error, "a protection that did not begin is still on record");
        }
    })?;
    let job = daemon.jobs.begin("protect", name);
    let view = job.view();
    tokio::spawn(primary.run(Some(job)));
    Ok(view)
}

/// The record of a VM's first shadow.
fn record_of_first(daemon: &Arc<Daemon>, name: &str, ask: ProtectVm) -> Result<ProtectRecord, ApiError> {
    let vm = daemon.vms.get(name)?;
    vm.refuse_unless_updatable()?;
    let lease_s = if ask.auto_failover { Some(lease_of(daemon)?) } else { None };
    let record = vm.record();
    if record.beside.is_some() {
        return Err(ApiError::refused(format!("VM '{name}' is being updated")).then("see `gnomon job ls`"));
    }
    if daemon.records.moves()?.iter().any(|moving| moving.vm.as_deref() == Some(name)) {
        return Err(ApiError::refused(format!("VM '{name}' is being moved")).then("let the move end, or cancel it"));
    }
    let record = ProtectRecord {
        id: format!("{}-{}-p{}", daemon.config.node, daemon.jobs.start(), daemon.jobs.count() + 1),
        vm: name.to_string(),
        to: ask.on,
        interval_ms: ask.interval_ms,
        epoch: record.epoch,
        volumes: record.disks,
        given: None,
        strict: ask.strict,
        // Until there is a first checkpoint.
        exposed: ask.strict,
        lease_s,
        term: None,
        generation: 0,
    };
    Volumes::of(daemon, &record)?.refuse_unless_free()?;
    Ok(record)
}

/// How long a lease is that decides who runs a guest; refused without a store that answers.
fn lease_of(daemon: &Daemon) -> Result<u64, ApiError> {
    guarding::store(daemon)?.scan("guard/")?;
    Ok(daemon.config.lease.as_secs())
}

fn check_interval(interval_ms: Option<u64>) -> Result<(), ApiError> {
    match interval_ms {
        Some(ms) if !INTERVALS_MS.contains(&ms) => Err(ApiError::usage(format!(
            "an interval of {ms} ms: write one from {} to {}, or leave it to be chosen",
            INTERVALS_MS.start(),
            INTERVALS_MS.end()
        ))),
        _ => Ok(()),
    }
}

fn pace(interval_ms: Option<u64>) -> Pace {
    match interval_ms {
        Some(ms) => Pace::Every(Duration::from_millis(ms)),
        None => Pace::Adaptive(Default::default()),
    }
}

/// The shadows of a VM are not wanted any more, or one of them: on the primary's node, or on the shadow's when the primary
/// is gone for good. Returns when nothing is left of them.
pub async fn unprotect(daemon: &Arc<Daemon>, name: &str, ask: UnprotectVm) -> Result<(), ApiError> {
    if let Some(keeping) = daemon.shadows.get(name) {
        return discard(daemon, keeping).await;
    }
    let family = daemon.protections.get(name).ok_or_else(|| not_protected(daemon, name))?;
    let ended = match ask.on {
        None => family.members(),
        Some(node) => {
            let by = || ApiError::refused(format!("VM '{name}' is not protected by node {node}"));
            vec![family.member(&node).ok_or_else(by)?]
        }
    };
    if family.given_to().is_some() {
        return Err(ApiError::refused(format!("VM '{name}' was given to the node of its shadow"))
            .then("it has to answer first what became of it: see `gnomon vm show`"));
    }
    if let Some(guard) = family.guard() {
        let (all, nodes) = (ended.len() == family.members().len(), ended.clone());
        let strike = move || match all {
            true => guard.suspend(),
            false => nodes.iter().try_for_each(|shared| guard.strike_off(shared.node())),
        };
        blocking(strike).await?;
    }
    for shared in &ended {
        shared.order.send_replace(Order::End);
    }
    for shared in ended {
        let _ = shared.order.subscribe().wait_for(|order| matches!(order, Order::GivenUp)).await;
    }
    siblings::tell_siblings(daemon, &family);
    Ok(())
}

fn not_protected(daemon: &Arc<Daemon>, name: &str) -> ApiError {
    match daemon.vms.get(name) {
        Ok(_) => ApiError::refused(format!("VM '{name}' is not protected")),
        Err(error) => error,
    }
}

/// Throws a shadow away whose primary is silent. One that answers decides by itself.
async fn discard(daemon: &Arc<Daemon>, keeping: Arc<shadow::Keeping>) -> Result<(), ApiError> {
    let record = keeping.record().clone();
    let question = Ask::Wanted { id: record.id, vm: record.vm.clone() };
    if let Ok(true) = ended::one_question::<bool>(daemon, &record.from, question).await {
        return Err(ApiError::refused(format!("node {} protects VM '{}' by this shadow", record.from, record.vm))
            .then(format!("ask there: `gnomon vm unprotect {}`", record.vm)));
    }
    let daemon = Arc::clone(daemon);
    blocking(move || daemon.shadows.forget(&daemon, &keeping)).await
}

/// Begins to hand a protected guest over to the node of a shadow: that which was asked for, or the first one on record
/// that is protected.
pub fn switchover(daemon: &Arc<Daemon>, name: &str, ask: SwitchVm) -> Result<JobView, ApiError> {
    let family = daemon.protections.get(name).ok_or_else(|| not_protected(daemon, name))?;
    if family.members().iter().any(|member| matches!(*member.order.borrow(), Order::Switch(_))) {
        return Err(
            ApiError::refused(format!("VM '{name}' is being handed over already")).then("see `gnomon job ls`")
        );
    }
    let is_asked = |shared: &Arc<Shared>| ask.to.as_deref().is_none_or(|to| to == shared.node());
    let asked: Vec<Arc<Shared>> = family.members().into_iter().filter(is_asked).collect();
    let ready = asked.iter().find(|shared| shared.view().state == ProtectionState::Protected);
    let Some(shared) = ready else { return Err(not_ready(name, &ask, &asked)) };
    let job = daemon.jobs.begin("switchover", name);
    let told = job.view();
    shared.order.send_replace(Order::Switch(job));
    Ok(told)
}

fn not_ready(name: &str, ask: &SwitchVm, asked: &[Arc<Shared>]) -> ApiError {
    let Some(view) = asked.first().map(|shared| shared.view()) else {
        let to = ask.to.as_deref().unwrap_or_default();
        return ApiError::refused(format!("VM '{name}' has no shadow at node {to}")).then("see `gnomon vm show`");
    };
    let state = serde_json::to_value(view.state).ok();
    let state = state.as_ref().and_then(|state| state.as_str()).unwrap_or("not protected").to_string();
    let why = view.why.map(|why| format!(": {why}")).unwrap_or_default();
    ApiError::refused(format!("the shadow of VM '{name}' is {state}{why}"))
        .then("wait until `gnomon vm show` says that it is protected")
}

// ---- views -----------------------------------------------------------------------------------------------------------

/// A VM of this node, or the shadow of one of another.
pub fn show(daemon: &Arc<Daemon>, name: &str) -> Result<VmView, ApiError> {
    if let Some(landing) = daemon.moves.landing(name) {
        return Ok(landing.view(daemon));
    }
    match daemon.shadows.get(name) {
        Some(keeping) => Ok(keeping.vm_view(daemon)),
        None => {
            let view = with_protection(daemon, daemon.vms.view(&*daemon.vms.get(name)?));
            let ram = moving::ram::outlook(&*daemon.vms.get(name)?);
            Ok(VmView { agent: daemon.vitals.agent(name), ram, ..view })
        }
    }
}

/// All VMs and shadows of this node, by name.
pub fn list(daemon: &Arc<Daemon>) -> Vec<VmView> {
    let own = daemon.vms.list().into_iter().map(|view| with_protection(daemon, view));
    let shadows = daemon.shadows.list();
    let landings = daemon.moves.landings().into_iter().map(|landing| landing.view(daemon));
    let others = shadows.iter().map(|keeping| keeping.vm_view(daemon)).chain(landings);
    let mut all: Vec<VmView> = own.chain(others).collect();
    all.sort_by(|one, other| one.name.cmp(&other.name));
    all
}

fn with_protection(daemon: &Arc<Daemon>, view: VmView) -> VmView {
    let members = daemon.protections.get(&view.name).map(|family| family.members()).unwrap_or_default();
    let protections: Vec<ProtectionView> = members.iter().map(|shared| shared.view()).collect();
    VmView { protection: best_of(&protections).cloned(), protections, ..view }
}

/// The shadow that does best, the first of those that do as well: a guest that was given away before all, for that is what
/// matters then.
fn best_of(protections: &[ProtectionView]) -> Option<&ProtectionView> {
    let rank = |view: &&ProtectionView| match view.state {
        ProtectionState::Given => 0,
        ProtectionState::Protected => 1,
        ProtectionState::Behind => 2,
        ProtectionState::Syncing => 3,
        ProtectionState::Lost => 4,
        ProtectionState::Ended => 5,
    };
    protections.iter().min_by_key(rank)
}

// ---- helpers ---------------------------------------------------------------------------------------------------------

/// Asks the other side of a protection.
async fn ask<A: serde::de::DeserializeOwned>(rpc: &moving::rpc::Rpc, question: Ask) -> Result<A, ApiError> {
    rpc.ask(&moving::rpc::Ask::Shadow { question }).await
}

/// Runs what blocks on a thread of its own.
async fn blocking<T: Send + 'static>(
    deed: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(deed).await.map_err(ApiError::internal)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_is_neither_a_blink_nor_an_hour() {
        let table = [(None, true), (Some(9), false), (Some(10), true), (Some(60_000), true), (Some(60_001), false)];
        for (ms, good) in table {
            assert_eq!(check_interval(ms).is_ok(), good, "{ms:?}");
        }
    }
}
