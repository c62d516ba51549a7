//! The shadow becomes the VM: planned, when its primary has given the guest away, or after a failure, when the operator
//! has made sure that the primary cannot run it any more, or by itself, when its guard has claimed the term.
//!
//! ```text
//!   devices loaded ──► promoted, on record ──► volumes are its own ──► the guest runs ──► a VM of this node
//!        │ failed: nothing has changed  ▲ the commit point: from here on the primary has lost it, whatever comes
//! ```
//! A daemon that dies after the commit point finds the QEMU again, which has loaded the guest, and lets it run. If that
//! has ended too, the memory is lost: the volumes are this node's, and the operator starts the guest from them; the primary
//! must not run it all the same.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use gnomon_machine::shadow::TookOver;
use gnomon_qemu::Qemu;
use serde_json::{Value, json};

use super::{
    blocking,
    copies::Copies,
    ended,
    pulse::millis,
    rpc::{Ask, TakenOver, Yielded},
    shadow::{Keeping, STEP, nothing},
    siblings,
    story::{Phase, Story},
};
use crate::{
    api::{
        ApiError, Kind,
        types::{FailoverVm, JobView, Progress},
    },
    daemon::{
        Daemon,
        jobs::Job,
        records::{ShadowRecord, VmRecord},
    },
};

/// What a takeover cost, step by step.
struct Told {
    checkpoint: u64,
    /// How old the checkpoint was.
    age: Duration,
    /// The devices were loaded.
    loading: Duration,
    /// The volumes were made its own, and that it runs here went on record.
    claiming: Duration,
    /// It was made to run.
    starting: Duration,
}

/// The primary has given its guest away at this epoch.
pub fn planned(daemon: &Arc<Daemon>, id: &str, epoch: u64) -> Result<TakenOver, ApiError> {
    let keeping = daemon.shadows.by_id(id).ok_or_else(nothing)?;
    if !keeping.is_loaded() {
        return Err(nothing());
    }
    let told = take_over(daemon, &keeping, epoch)?;
    let phases = [("loading", told.loading), ("claiming", told.claiming), ("starting", told.starting)];
    let gap = phases.iter().map(|(_, took)| *took).sum();
    Story::new(daemon, &keeping.record().vm, &daemon.config.node).took_over("switchover", gap, &phases);
    Ok(TakenOver {
        checkpoint: told.checkpoint,
        loading_ms: millis(told.loading),
        claiming_ms: millis(told.claiming),
        starting_ms: millis(told.starting),
    })
}

/// Begins a failover: refused unless the operator says that the primary is fenced, and while it answers and runs.
pub fn failover(daemon: &Arc<Daemon>, name: &str, ask: FailoverVm) -> Result<JobView, ApiError> {
    let keeping = daemon.shadows.get(name).ok_or_else(|| no_shadow(daemon, name))?;
    check_fence(keeping.record(), &keeping.siblings(), &ask.fenced)?;
    if !keeping.has_memory() && keeping.found_copies(daemon)?.sealed().is_none() {
        return Err(nothing());
    }
    if !keeping.is_busy_from_now() {
        let refused = ApiError::refused(format!("the shadow of VM '{name}' takes over already"));
        return Err(refused.then("see `gnomon job ls`"));
    }
    let job = daemon.jobs.begin("failover", name);
    let (view, daemon) = (job.view(), Arc::clone(daemon));
    tokio::spawn(async move {
        let done = fail_over(&daemon, Arc::clone(&keeping), &job, &ask.fenced).await;
        keeping.is_not_busy();
        job.finish(done);
    });
    Ok(view)
}

fn no_shadow(daemon: &Arc<Daemon>, name: &str) -> ApiError {
    match daemon.vms.get(name) {
        Ok(_) => ApiError::refused(format!("VM '{name}' is this node's own: there is nothing to take over"))
            .then("ask the node of its shadow, or hand it over from here with `gnomon vm switchover`"),
        Err(error) => error,
    }
}

/// Without a witness nobody here can tell a dead host from a cut cable. Named are the primary, and siblings that cannot be
/// asked.
fn check_fence(record: &ShadowRecord, siblings: &[String], fenced: &[String]) -> Result<(), ApiError> {
    let (vm, from) = (&record.vm, &record.from);
    if let Some(other) = fenced.iter().find(|node| *node != from && !siblings.contains(node)) {
        return Err(ApiError::usage(format!("the guest of VM '{vm}' runs at node {from}, not at {other}")));
    }
    match fenced.contains(from) {
        true => Ok(()),
        false => Err(ApiError::refused(format!(
            "node {from} may still run VM '{vm}': from here a dead host and a cut cable look the same, and two running \
             guests destroy their disks"
        ))
        .then(format!(
            "make sure that node {from} cannot run or write any more (power it off, or kill its QEMU), then say so: \
             `gnomon vm failover {vm} --i-have-fenced {from}`"
        ))),
    }
}

async fn fail_over(
    daemon: &Arc<Daemon>,
    keeping: Arc<Keeping>,
    job: &Job,
    fenced: &[String],
) -> Result<Value, ApiError> {
    let begun = Instant::now();
    let record = keeping.record().clone();
    tell(job, "fence", &format!("asking node {} whether it runs the guest", record.from));
    let Some(guard) = keeping.guard() else {
        siblings::ask_to_cede(daemon, &keeping, fenced).await?;
        let epoch = keeping.epoch() + 1;
        refuse_if_it_runs(daemon, &record, epoch).await?;
        return go_on(daemon, keeping, job, ("fencing", begun.elapsed()), "").await;
    };
    refuse_if_it_runs(daemon, &record, keeping.epoch() + 1).await?;
    tell(job, "claim", "claiming its term at the shared store");
    let term = guard.seize(&record).await?;
    let why = format!("an operator asked for it, and term {term} was claimed at the shared store");
    let went = go_on(daemon, keeping, job, ("fencing", begun.elapsed()), &why).await;
    went.inspect_err(|_| guard.came_to_nothing())
}

/// The guard has claimed the term: the lease of the primary has ended. The shadow takes over, and nobody was asked.
pub async fn by_itself(daemon: Arc<Daemon>, keeping: Arc<Keeping>, term: u64) {
    let record = keeping.record().clone();
    let job = daemon.jobs.begin("failover", &record.vm);
    let why = format!("the lease of node {} ended at the shared store, and term {term} was claimed", record.from);
    tracing::warn!(vm = record.vm, term, "{why}: its shadow takes over");
    let (silence, guard) = (keeping.silence(), keeping.guard());
    let went = go_on(&daemon, keeping, &job, ("silence", silence), &why).await;
    if let (Err(error), Some(guard)) = (&went, guard) {
        tracing::error!(vm = record.vm, %error, "its shadow could not take over: `gnomon vm failover` tries again");
        guard.came_to_nothing();
    }
    job.finish(went);
}

/// Goes on with what there is. `first` is what came before.
async fn go_on(
    daemon: &Arc<Daemon>,
    keeping: Arc<Keeping>,
    job: &Job,
    first: Phase,
    why: &str,
) -> Result<Value, ApiError> {
    let begun = Instant::now();
    let (record, epoch) = (keeping.record().clone(), keeping.epoch() + 1);
    tell(job, "takeover", why);
    let (here, claimer) = (daemon.config.node.clone(), Arc::clone(daemon));
    let story = Story::new(daemon, &record.vm, &here);
    if !keeping.has_memory() {
        blocking(move || take_disks_over(&claimer, &keeping, epoch)).await?;
        let why = format!("its memory was lost here: start {} with `gnomon vm run` from its disks", record.vm);
        story.disks_only("failover", &why);
        tell(job, "done", &why);
        return Ok(json!({ "from": record.from, "epoch": epoch, "guest_runs": false }));
    }
    let told = blocking(move || take_over(&claimer, &keeping, epoch)).await;
    let told = told.inspect_err(|error| story.not_taken_over("failover", error))?;
    let phases = [first, ("loading", told.loading), ("claiming", told.claiming), ("starting", told.starting)];
    story.failed_over(phases.iter().map(|(_, took)| *took).sum(), &phases, why);
    let message =
        format!("{} runs here from checkpoint {}, {:.0} ms old", record.vm, told.checkpoint, millis(told.age));
    tell(job, "done", &message);
    Ok(json!({
        "from": record.from,
        "guest_runs": true,
        "checkpoint": told.checkpoint,
        "epoch": epoch,
        "age_ms": millis(told.age),
        "loading_ms": millis(told.loading),
        "claiming_ms": millis(told.claiming),
        "starting_ms": millis(told.starting),
        "seconds": (first.1 + begun.elapsed()).as_secs_f64(),
    }))
}

/// A primary that answers knows better than the operator. One that cannot be asked is as fenced as the operator says.
async fn refuse_if_it_runs(daemon: &Arc<Daemon>, record: &ShadowRecord, epoch: u64) -> Result<(), ApiError> {
    let question = Ask::Yield { id: record.id.clone(), vm: record.vm.clone(), epoch };
    let (vm, from) = (&record.vm, &record.from);
    match ended::one_question(daemon, from, question).await {
        Ok(Yielded::GaveUp) => Ok(()),
        Ok(Yielded::Runs) => {
            Err(ApiError::refused(format!("node {from} answers, and VM '{vm}' runs there: it is not fenced"))
                .then(format!("hand it over with `gnomon vm switchover {vm}` there, or end its QEMU first")))
        }
        Ok(Yielded::Unknown) => {
            Err(ApiError::refused(format!("node {from} answers, and does not protect VM '{vm}' any more"))
                .then("what is here is of no use: it goes by itself"))
        }
        Err(error) => {
            tracing::warn!(vm, %error, "node {from} cannot be asked; its operator says that it is fenced");
            Ok(())
        }
    }
}

/// Makes the guest run here at this epoch. An error that is not `Unavailable` has changed nothing; after any other it may
/// have been decided that the guest lives here, and whoever wants to know asks.
fn take_over(daemon: &Arc<Daemon>, keeping: &Arc<Keeping>, epoch: u64) -> Result<Told, ApiError> {
    let record = keeping.record();
    let mut slot = keeping.engine();
    let engine = slot.as_mut().ok_or_else(nothing)?;
    if !keeping.is_loaded() {
        keeping.awaken(daemon, engine)?;
    } else if engine.qemu.exit_watch().exited().is_some() {
        return Err(nothing());
    }
    engine.load()?;
    let begun = Instant::now();
    let copies = keeping.copies()?;
    copies.freeze()?;
    let decided = |error: ApiError| ApiError { kind: Kind::Unavailable, ..error };
    daemon.records.put_promoted(&record.id, epoch).map_err(decided)?;
    let claimed = copies.claim(daemon);
    let claiming = begun.elapsed();
    let taken = claimed.and_then(|()| Ok(engine.shadow.take_over(STEP)?));
    let qemu = Arc::clone(&engine.qemu);
    *slot = None;
    drop(slot);
    let TookOver { checkpoint, age, loading, starting, .. } = match taken {
        Ok(taken) => taken,
        Err(error) => return Err(broken(daemon, record, &qemu, error)),
    };
    settle(daemon, record, epoch, qemu).map_err(decided)?;
    ended::tell_superseded(daemon, &record.id, keeping.siblings(), &daemon.config.node);
    tracing::info!(vm = record.vm, checkpoint, epoch, "the shadow has taken over and runs here");
    Ok(Told { checkpoint, age, loading, claiming, starting })
}

/// This node's daemon has lost the guest's memory, and not its disks: they are at the last checkpoint they had, as after
/// a power cut.
fn take_disks_over(daemon: &Arc<Daemon>, keeping: &Arc<Keeping>, epoch: u64) -> Result<(), ApiError> {
    let record = keeping.record();
    let mut slot = keeping.engine();
    keeping.found_copies(daemon)?.freeze()?;
    // First: what waits has loaded nothing, and must not be taken for a guest.
    if let Some(engine) = slot.take() {
        engine.qemu.kill()?;
    }
    daemon.records.put_promoted(&record.id, epoch)?;
    finish_promotion(daemon, record)
}

/// It was decided that the guest lives here, and it did not come to run.
fn broken(daemon: &Arc<Daemon>, record: &ShadowRecord, qemu: &Qemu, error: ApiError) -> ApiError {
    let ended = qemu.kill().map_err(ApiError::from).and_then(|_| finish_promotion(daemon, record));
    if let Err(worse) = ended {
        tracing::error!(vm = record.vm, error = %worse, "after a takeover that failed");
    }
    ApiError::unavailable(format!("the guest was taken over and does not run: {}", error.message))
        .then(format!("its volumes are this node's: start it from them with `gnomon vm run {}`", record.vm))
}

/// The guest runs in `qemu`: it is a VM of this node, and no shadow any more.
fn settle(daemon: &Arc<Daemon>, record: &ShadowRecord, epoch: u64, qemu: Arc<Qemu>) -> Result<(), ApiError> {
    let ours = VmRecord::new(&record.vm, record.volumes.clone(), record.token);
    let vm = VmRecord { epoch, qemu: Some(qemu.record().clone()), ..ours };
    daemon.vms.take_in(vm, qemu)?;
    daemon.balancing.arrive(&record.vm, &daemon.config.node);
    daemon.shadows.remove(daemon, record)
}

/// This daemon died in the midst of a takeover that was decided. Devices are loaded before that, and the QEMU outlives the
/// daemon: the guest goes on in it, unless that has ended too.
pub fn finish_promotion(daemon: &Arc<Daemon>, record: &ShadowRecord) -> Result<(), ApiError> {
    // It died when only the shadow was left to forget: the VM is looked after, and nobody else can ask its QEMU.
    if daemon.vms.has_taken_in(&record.vm, record.token) {
        return daemon.shadows.remove(daemon, record);
    }
    let epoch = daemon.records.promoted(&record.id)?.unwrap_or_default();
    claim_late(daemon, record)?;
    if let Some(qemu) = daemon.vms.find_loaded(&record.vm) {
        tracing::warn!(vm = record.vm, pid = qemu.record().pid, "its takeover was decided: it runs on here");
        let qemu = Arc::new(qemu);
        settle(daemon, record, epoch, Arc::clone(&qemu))?;
        // Nothing is lent any more after a restart.
        daemon.vms.unfence(&*daemon.vms.get(&record.vm)?)?;
        return Ok(qemu.qmp().cont_after_migration(STEP)?);
    }
    tracing::error!(vm = record.vm, "its takeover was decided and cut off: start it from its disks, which are here");
    daemon.vms.end_leftover(&record.vm)?;
    daemon.vms.forget_waiting(&record.vm, &record.volumes, record.token);
    daemon.shadows.remove(daemon, record)
}

/// Volumes that were not claimed yet when the daemon died.
fn claim_late(daemon: &Arc<Daemon>, record: &ShadowRecord) -> Result<(), ApiError> {
    let is_ours = |name: &String| {
        let handle = daemon.keeper.get(name);
        handle.is_ok_and(|handle| handle.record().move_id.as_deref() == Some(&record.id))
    };
    // All of them were claimed at once, or none.
    if !record.volumes.iter().any(is_ours) {
        return Ok(());
    }
    let copies = Copies::of_record(daemon, record)?;
    copies.freeze()?;
    copies.claim(daemon)
}

fn tell(job: &Job, phase: &str, message: &str) {
    job.report(Progress { phase: phase.to_string(), message: message.to_string(), ..Progress::default() });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_primary_named_fenced_lets_a_shadow_go_on() {
        let record = ShadowRecord::of("web", "a");
        let siblings = ["c".to_string()];
        let table: [(&[&str], Option<Kind>); 6] = [
            (&["a"], None),
            (&["b"], Some(Kind::Usage)),
            (&["a", "b"], Some(Kind::Usage)),
            (&[], Some(Kind::Refused)),
            (&["c"], Some(Kind::Refused)),
            (&["c", "a"], None),
        ];
        for (fenced, expected) in table {
            let fenced: Vec<String> = fenced.iter().map(|node| node.to_string()).collect();
            let refused = check_fence(&record, &siblings, &fenced).err();
            assert_eq!(refused.map(|error| error.kind), expected, "{fenced:?}");
        }
        let why = check_fence(&record, &siblings, &[]).expect_err("no word").to_string();
        assert!(why.contains("cut cable") && why.contains("--i-have-fenced a"), "{why}");
    }
}
