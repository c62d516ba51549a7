//! `vm update`: a running guest gets another QEMU, other names for what it has, or what a command does in it, after that
//! was tried on a copy of it.
//!
//! ```text
//!   check ──► trial on a copy ──► verdict ──passed──► (approval) ──► switch ──► watch ──well──► done
//!     │             │                │                     │            │         │ a hard sign
//!     └── refused ──┴── the guest never noticed ───────────┘            │         ▼
//!                                            runs on in the old one ◄───┘    switch back
//! ```
//!
//! On one host: no RAM is copied for the switch, both QEMUs map the same memory. Before the new one has run, the way
//! back is to let the old one run on; afterwards it is a switch in the other direction, by the old program. What an
//! update did to its guest is kept, and told before the next one (`impact.rs`). A command in the guest (`command.rs`) takes
//! the place of the switch; it has no way back.

mod command;
pub mod impact;
mod probe;
mod processors;
mod target;
mod trial;
mod watch;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use gnomon_machine::{
    takeover::{Disks, Phases, take_over},
    verdict::Sign,
};
use parking_lot::{Condvar, Mutex};
use serde_json::json;

use self::{
    target::Target,
    watch::{Pulse, Watch},
};
use super::{
    Daemon,
    jobs::Job,
    keeper::Keeper,
    vitals::Rates,
    vms::{Purpose, VmHandle, makeup},
};
use crate::api::{
    ApiError,
    types::{Approve, CommandView, EventView, ImpactView, JobView, PhaseView, Progress, UpdateVerdict, UpdateVm},
};

/// How long one wait for an approval is: how soon a wish to cancel is seen.
const LOOK: Duration = Duration::from_millis(200);

/// Updates under way, and those of them that wait for somebody to approve them, by VM.
#[derive(Default)]
pub struct Updates {
    under_way: Mutex<HashSet<String>>,
    waiting: Mutex<HashMap<String, bool>>,
    approved: Condvar,
}

impl Updates {
    /// Whether a VM is being updated, from before anything is looked at until the job has ended.
    pub fn is_under_way(&self, vm: &str) -> bool {
        self.under_way.lock().contains(vm)
    }
}

/// That no other update of a VM begins while this one is under way: a command in the guest is cut off by a change of
/// QEMU, and a copy that is tried is not of the guest that would switch.
struct Turn {
    daemon: Arc<Daemon>,
    name: String,
}

impl Turn {
    fn take(daemon: &Arc<Daemon>, name: &str) -> Result<Turn, ApiError> {
        match daemon.updates.under_way.lock().insert(name.to_string()) {
            true => Ok(Turn { daemon: Arc::clone(daemon), name: name.to_string() }),
            false => {
                Err(ApiError::refused(format!("VM '{name}' is being updated already")).then("see `gnomon job ls`"))
            }
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.daemon.updates.under_way.lock().remove(&self.name);
    }
}

/// Begins an update.
pub fn start(daemon: &Arc<Daemon>, name: &str, ask: UpdateVm) -> Result<JobView, ApiError> {
    let vm = daemon.vms.get(name)?;
    let target = Target::of(daemon, &vm, &ask)?;
    let turn = Turn::take(daemon, name)?;
    let _still = daemon.memory.hold_still(&vm)?;
    target.check(&vm)?;
    let work = Update { daemon: Arc::clone(daemon), vm, target, name: name.to_string(), what: "update" };
    let id = daemon.jobs.spawn_blocking("update", name, move |job| {
        let ended = work.run(job, &ask);
        // Before the job has ended: whoever waits for that may begin the next one at once.
        drop(turn);
        ended
    });
    Ok(daemon.jobs.get(&id.to_string())?.view())
}

/// Goes back to the program before the last update: a switch like any other, without a trial.
pub fn rollback(daemon: &Arc<Daemon>, name: &str) -> Result<JobView, ApiError> {
    let vm = daemon.vms.get(name)?;
    let target = Target::before(daemon, &vm)?;
    let turn = Turn::take(daemon, name)?;
    let _still = daemon.memory.hold_still(&vm)?;
    target.check(&vm)?;
    let work = Update { daemon: Arc::clone(daemon), vm, target, name: name.to_string(), what: "rollback" };
    let id = daemon.jobs.spawn_blocking("rollback", name, move |job| {
        let switched = work.switch(job);
        drop(turn);
        Ok(json!({ "qemu": work.target.program.version.to_string(), "gap_ms": millis(switched?.gap()) }))
    });
    Ok(daemon.jobs.get(&id.to_string())?.view())
}

/// Approves the update that waits for it.
pub fn approve(daemon: &Daemon, name: &str) -> Result<(), ApiError> {
    match daemon.updates.waiting.lock().get_mut(name) {
        Some(approved) => *approved = true,
        None => return Err(ApiError::refused(format!("no update of VM '{name}' waits for an approval"))),
    }
    daemon.updates.approved.notify_all();
    Ok(())
}

/// An update under way.
struct Update {
    daemon: Arc<Daemon>,
    vm: Arc<VmHandle>,
    target: Target,
    name: String,
    what: &'static str,
}

/// What has come of an update so far.
#[derive(Default)]
struct Course {
    verdict: Option<UpdateVerdict>,
    pause: Option<Duration>,
    gap: Option<Duration>,
    command: Option<CommandView>,
    after: Option<Rates>,
}

impl Update {
    fn run(&self, job: &Job, ask: &UpdateVm) -> Result<serde_json::Value, ApiError> {
        let expected = self.daemon.vitals.expected(&self.name);
        let mut course = Course::default();
        let ended = self.go(job, ask, &mut course);
        let verdict = match &ended {
            Ok(()) => Some(UpdateVerdict::Done),
            Err(_) => course.verdict,
        };
        let impact = verdict.map(|verdict| ImpactView {
            kind: self.target.kind,
            from: self.target.from.clone(),
            to: self.target.to_string(),
            verdict,
            gap_ms: course.gap.map(millis),
            series: impact::series(expected, course.after),
            command: course.command.clone(),
            ..ImpactView::now(&self.name)
        });
        // What cannot be kept is only missed by the next forecast.
        if let Some(Err(error)) = impact.as_ref().map(|impact| self.daemon.records.put_impact(impact)) {
            tracing::warn!(vm = self.name, %error, "what the update did could not be kept");
        }
        ended.map(|()| {
            json!({
                "qemu": self.target.program.version.to_string(),
                "gap_ms": course.gap.map(millis),
                "trial_pause_ms": course.pause.map(millis),
                "command": course.command,
                "impact": impact,
            })
        })
    }

    fn go(&self, job: &Job, ask: &UpdateVm, course: &mut Course) -> Result<(), ApiError> {
        if !ask.untried {
            let earlier = impact::earlier(&self.daemon, &self.name, self.target.kind)?;
            report(job, "trial", &format!("a copy of the guest runs in {}; {earlier}", self.target));
            let told = trial::run(&self.daemon, &self.vm, &self.target, ask, job)?;
            course.pause = Some(told.pause);
            refuse_if_cancelled(job)?;
            if !told.verdict.passed {
                course.verdict = Some(UpdateVerdict::Refused);
                course.command = told.command;
                return Err(self.refuse(course, told.verdict.reasons));
            }
        }
        if ask.approve == Approve::Manual {
            self.await_approval(job)?;
        }
        // Known before the guest has a new QEMU, which nobody has heard anything from.
        let beats = self.daemon.vitals.beats(&self.name);
        let pulse = || match beats {
            true => Pulse::Own(Arc::clone(&self.daemon.vitals), self.name.clone()),
            false => Pulse::None,
        };
        course.verdict = Some(UpdateVerdict::Failed);
        match &self.target.command {
            None => course.gap = Some(self.switch(job)?.gap()),
            Some(command) => self.carry_out(command, job, course, pulse())?,
        }
        report(job, "watch", &format!("the guest runs in {}", self.target));
        let (reasons, after) = self.watch(ask, job, pulse())?;
        course.after = after;
        match (reasons.is_empty(), &self.target.command) {
            (true, _) => report(job, "done", &format!("{} runs in {}", self.name, self.target)),
            (false, None) => {
                course.verdict = Some(UpdateVerdict::TakenBack);
                return Err(self.go_back(job, &reasons));
            }
            (false, Some(_)) => return Err(self.tell_unwell(course, &reasons)),
        }
        Ok(())
    }

    /// The copy did not do well: nothing has changed, and it is told.
    fn refuse(&self, course: &Course, reasons: Vec<String>) -> ApiError {
        let why = reasons.join("; ");
        self.note(EventView { reasons, command: course.command.clone(), ..self.event("refused") });
        ApiError::refused(format!("the update did not pass its trial: {why}"))
            .then("the guest runs on as before; look into the reasons, or give --untried to update it all the same")
    }

    fn await_approval(&self, job: &Job) -> Result<(), ApiError> {
        report(
            job,
            "approval",
            &format!("the trial went well: `gnomon vm approve {}`, or cancel the job", self.name),
        );
        let mut waiting = self.daemon.updates.waiting.lock();
        waiting.insert(self.name.clone(), false);
        while !waiting.get(&self.name).is_some_and(|approved| *approved) && !job.is_cancelled() {
            self.daemon.updates.approved.wait_for(&mut waiting, LOOK);
        }
        waiting.remove(&self.name);
        drop(waiting);
        refuse_if_cancelled(job)
    }

    /// The guest changes its QEMU.
    fn switch(&self, job: &Job) -> Result<Phases, ApiError> {
        report(job, "switch", "");
        let old = self.vm.qemu().ok_or_else(|| ApiError::refused("the VM does not run any more"))?;
        let (made_of, memory) = makeup::whole(&old)?;
        let next = self.daemon.vms.launch_beside(
            &self.vm,
            (&self.target.program, &self.target.names),
            (&made_of, memory.shared()),
            Purpose::Successor,
        )?;
        let record = self.vm.record();
        let disks =
            VmDisks { keeper: &self.daemon.keeper, vm: &self.name, disks: &record.disks, token: record.token };
        match take_over(&old, &next.qemu, &disks) {
            Ok(phases) => {
                self.daemon.vms.succeed(&self.vm, next)?;
                let named = phases.named().map(|(name, took)| PhaseView { name: name.to_string(), ms: millis(took) });
                let gap_ms = Some(millis(phases.gap()));
                self.note(EventView { gap_ms, phases: named.to_vec(), ..self.event("done") });
                Ok(phases)
            }
            Err(error) => {
                self.daemon.vms.end_beside(&self.vm, next)?;
                let error = ApiError::from(error);
                self.note(EventView { reasons: vec![error.to_string()], ..self.event("failed") });
                Err(error)
            }
        }
    }

    /// Watches the guest after its update: what speaks against it, and what it did meanwhile.
    fn watch(&self, ask: &UpdateVm, job: &Job, pulse: Pulse) -> Result<(Vec<String>, Option<Rates>), ApiError> {
        let qemu = self.vm.qemu().ok_or_else(|| ApiError::unavailable("its QEMU has ended at once"))?;
        let mut watch = Watch::begin(&qemu, pulse);
        let until = Instant::now() + Duration::try_from_secs_f64(ask.observe).unwrap_or_default();
        let signs = watch.until(until, || job.is_cancelled());
        Ok((against(&signs), watch.rates()))
    }

    /// Back to the program before, by a switch in the other direction.
    fn go_back(&self, job: &Job, reasons: &[String]) -> ApiError {
        let why = reasons.join("; ");
        let back = Target::before(&self.daemon, &self.vm).and_then(|target| {
            let (daemon, vm, name) = (Arc::clone(&self.daemon), Arc::clone(&self.vm), self.name.clone());
            Update { daemon, vm, target, name, what: "rollback" }.switch(job)
        });
        match back {
            Ok(_) => ApiError::refused(format!("the update was taken back: {why}"))
                .then("the guest runs in its old QEMU again"),
            Err(error) => ApiError::unavailable(format!("after the update: {why}; and the way back failed: {error}"))
                .then("see `gnomon vm show`"),
        }
    }

    /// What happened now, with no more to tell.
    fn event(&self, status: &str) -> EventView {
        EventView::now(&self.name, self.what, status, self.target.to_string())
    }

    /// Writes down what happened.
    fn note(&self, event: EventView) {
        let (what, status, reasons) = (&event.what, &event.status, event.reasons.join("; "));
        tracing::info!(vm = self.name, what, status, to = event.to, reasons, "an update");
        self.daemon.note(&event);
    }
}

/// What speaks against an update, in words.
fn against(signs: &[Sign]) -> Vec<String> {
    signs.iter().filter(|sign| sign.is_against()).map(ToString::to_string).collect()
}

/// The disks of a VM, as a takeover needs them.
struct VmDisks<'a> {
    keeper: &'a Keeper,
    vm: &'a str,
    disks: &'a [String],
    token: u64,
}

impl Disks for VmDisks<'_> {
    fn fence(&self) -> Result<(), String> {
        self.disks.iter().for_each(|disk| self.keeper.take_back(disk, self.token));
        Ok(())
    }

    fn lend_back(&self) -> Result<(), String> {
        let lend = |disk: &String| self.keeper.lend(disk, self.token, self.vm);
        self.disks.iter().try_for_each(lend).map_err(|error| error.to_string())
    }
}

fn report(job: &Job, phase: &str, message: &str) {
    job.report(Progress { phase: phase.to_string(), message: message.to_string(), ..Progress::default() });
}

fn refuse_if_cancelled(job: &Job) -> Result<(), ApiError> {
    match job.is_cancelled() {
        true => Err(ApiError::refused("the update was cancelled: nothing has changed")),
        false => Ok(()),
    }
}

fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e5).round() / 100.0
}
