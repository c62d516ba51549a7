//! `vm update`: a running guest gets another QEMU, after that was tried on a copy of it.
//!
//! ```text
//!   check ──► trial on a copy ──► verdict ──passed──► (approval) ──► switch ──► watch ──well──► done
//!     │             │                │                     │            │         │ a hard sign
//!     └── refused ──┴── the guest never noticed ───────────┘            │         ▼
//!                                            runs on in the old one ◄───┘    switch back
//! ```
//!
//! On one host: no RAM is copied for the switch, both QEMUs map the same memory. Before the new one has run, the way
//! back is to let the old one run on; afterwards it is a switch in the other direction, by the old program.

mod probe;
mod trial;
mod watch;

use std::{
    collections::HashMap,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use gnomon_machine::takeover::{Disks, Phases, take_over};
use gnomon_qemu::QemuBinary;
use parking_lot::{Condvar, Mutex};
use serde_json::json;

use self::watch::{Pulse, Watch};
use super::{
    Daemon,
    jobs::Job,
    keeper::Keeper,
    records::ProgramRecord,
    vms::{Purpose, VmHandle},
};
use crate::api::{
    ApiError,
    types::{Approve, EventView, JobView, PhaseView, Progress, UpdateVm},
};

/// How long one wait for an approval is: how soon a wish to cancel is seen.
const LOOK: Duration = Duration::from_millis(200);

/// Updates that wait for somebody to approve them, by VM.
#[derive(Default)]
pub struct Updates {
    waiting: Mutex<HashMap<String, bool>>,
    approved: Condvar,
}

/// Begins an update.
pub fn start(daemon: &Arc<Daemon>, name: &str, ask: UpdateVm) -> Result<JobView, ApiError> {
    let vm = daemon.vms.get(name)?;
    let program = program_at(&ask.qemu)?;
    check(&vm, &program)?;
    let work = Update { daemon: Arc::clone(daemon), vm, program, name: name.to_string(), what: "update" };
    let id = daemon.jobs.spawn_blocking("update", name, move |job| work.run(job, &ask));
    Ok(daemon.jobs.get(&id.to_string())?.view())
}

/// Goes back to the program before the last update: a switch like any other, without a trial.
pub fn rollback(daemon: &Arc<Daemon>, name: &str) -> Result<JobView, ApiError> {
    let vm = daemon.vms.get(name)?;
    let before = vm.record().before.ok_or_else(|| {
        ApiError::refused(format!("VM '{name}' has not been updated: there is no QEMU to go back to"))
            .then("see `gnomon vm events`; the rollback of a move is for a move that is draining")
    })?;
    let program = QemuBinary { data_dirs: before.data_dirs.clone(), ..QemuBinary::inspect(&before.path)? };
    check(&vm, &program)?;
    let work = Update { daemon: Arc::clone(daemon), vm, program, name: name.to_string(), what: "rollback" };
    let id = daemon.jobs.spawn_blocking("rollback", name, move |job| {
        let phases = work.switch(job)?;
        Ok(json!({ "qemu": work.program.version.to_string(), "gap_ms": millis(phases.gap()) }))
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

/// The QEMU at a path: a program, or a folder into which packages were unpacked.
fn program_at(path: &Path) -> Result<QemuBinary, ApiError> {
    let unpacked = |root: &Path| root.join("usr/share/qemu").is_dir() && root.parent().is_some();
    let root = if path.is_dir() { Some(path) } else { path.ancestors().nth(3) };
    let program = match root.filter(|root| unpacked(root)) {
        Some(root) => QemuBinary::unpacked(root),
        None => QemuBinary::inspect(path),
    };
    program.map_err(|error| {
        ApiError::refused(format!("{} is no QEMU that could be used: {error}", path.display()))
            .then("name qemu-system-x86_64, or the folder into which its packages were unpacked")
    })
}

/// What can be known to fail without a trial.
fn check(vm: &VmHandle, program: &QemuBinary) -> Result<(), ApiError> {
    vm.refuse_unless_updatable()?;
    let record = vm.record();
    if record.beside.is_some() {
        return Err(
            ApiError::refused(format!("VM '{}' is being updated already", record.name)).then("see `gnomon job ls`")
        );
    }
    let Some(resolved) = record.qemu.as_ref().and_then(|qemu| qemu.resolved.as_ref()) else {
        return Err(ApiError::refused(format!("VM '{}' does not run, or was adopted", record.name))
            .then("only guests that gnomon started are updated while they run"));
    };
    let machines = program.machines()?;
    match machines.iter().any(|machine| machine.name == resolved.machine) {
        true => Ok(()),
        false => Err(ApiError::refused(format!(
            "QEMU {} does not know the machine type {} that VM '{}' has",
            program.version, resolved.machine, record.name
        ))
        .then("choose a QEMU that does; a running guest cannot change its machine type")),
    }
}

/// An update under way.
struct Update {
    daemon: Arc<Daemon>,
    vm: Arc<VmHandle>,
    program: QemuBinary,
    name: String,
    what: &'static str,
}

impl Update {
    fn run(&self, job: &Job, ask: &UpdateVm) -> Result<serde_json::Value, ApiError> {
        let mut pause = None;
        if !ask.untried {
            report(job, "trial", &format!("a copy of the guest runs in QEMU {}", self.program.version));
            let told = trial::run(&self.daemon, &self.vm, &self.program, ask, job)?;
            pause = Some(told.pause);
            refuse_if_cancelled(job)?;
            if !told.verdict.passed {
                return Err(self.refuse(&told.verdict.reasons));
            }
        }
        if ask.approve == Approve::Manual {
            self.await_approval(job)?;
        }
        let beats = self.daemon.vitals.beats(&self.name);
        let phases = self.switch(job)?;
        report(job, "watch", &format!("the guest runs in QEMU {}", self.program.version));
        let pulse = if beats { Pulse::Own(Arc::clone(&self.daemon.vitals), self.name.clone()) } else { Pulse::None };
        let signs = self.watch(ask, job, pulse)?;
        if !signs.is_empty() {
            return Err(self.go_back(job, &signs));
        }
        report(job, "done", &format!("{} runs in QEMU {}", self.name, self.program.version));
        Ok(json!({
            "qemu": self.program.version.to_string(),
            "gap_ms": millis(phases.gap()),
            "trial_pause_ms": pause.map(millis),
        }))
    }

    /// The copy did not do well: nothing has changed, and it is told.
    fn refuse(&self, reasons: &[String]) -> ApiError {
        self.note("refused", self.program.version.to_string(), None, reasons);
        ApiError::refused(format!("the update did not pass its trial: {}", reasons.join("; ")))
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
        let ram = old.open_ram()?.ok_or_else(|| ApiError::refused("the guest's RAM is QEMU's own"))?;
        let next = self.daemon.vms.launch_beside(&self.vm, &self.program, ram.shared(), Purpose::Successor)?;
        let record = self.vm.record();
        let disks =
            VmDisks { keeper: &self.daemon.keeper, vm: &self.name, disks: &record.disks, token: record.token };
        match take_over(&old, &next.qemu, &disks) {
            Ok(phases) => {
                self.daemon.vms.succeed(&self.vm, next)?;
                self.note("done", self.program.version.to_string(), Some(&phases), &[]);
                Ok(phases)
            }
            Err(error) => {
                self.daemon.vms.end_beside(&self.vm, next)?;
                let error = ApiError::from(error);
                self.note("failed", self.program.version.to_string(), None, &[error.to_string()]);
                Err(error)
            }
        }
    }

    /// Watches the guest in its new QEMU.
    fn watch(&self, ask: &UpdateVm, job: &Job, pulse: Pulse) -> Result<Vec<String>, ApiError> {
        let qemu = self.vm.qemu().ok_or_else(|| ApiError::unavailable("its new QEMU has ended at once"))?;
        let mut watch = Watch::begin(&qemu, pulse);
        let until = Instant::now() + Duration::try_from_secs_f64(ask.observe).unwrap_or_default();
        let signs = watch.until(until, || job.is_cancelled());
        Ok(signs.iter().filter(|sign| sign.is_against()).map(ToString::to_string).collect())
    }

    /// Back to the program before, by a switch in the other direction.
    fn go_back(&self, job: &Job, reasons: &[String]) -> ApiError {
        let why = reasons.join("; ");
        let Some(ProgramRecord { path, data_dirs }) = self.vm.record().before else {
            return ApiError::unavailable(format!("after the update: {why}"));
        };
        let back = QemuBinary::inspect(&path).map_err(ApiError::from).and_then(|program| {
            let program = QemuBinary { data_dirs, ..program };
            let (daemon, vm, name) = (Arc::clone(&self.daemon), Arc::clone(&self.vm), self.name.clone());
            Update { daemon, vm, program, name, what: "rollback" }.switch(job)
        });
        match back {
            Ok(_) => ApiError::refused(format!("the update was taken back: {why}"))
                .then("the guest runs in its old QEMU again"),
            Err(error) => ApiError::unavailable(format!("after the update: {why}; and the way back failed: {error}"))
                .then("see `gnomon vm show`"),
        }
    }

    /// Writes down what happened.
    fn note(&self, status: &str, to: String, phases: Option<&Phases>, reasons: &[String]) {
        let named = phases.iter().flat_map(|phases| phases.named());
        let event = EventView {
            gap_ms: phases.map(|phases| millis(phases.gap())),
            phases: named.map(|(name, took)| PhaseView { name: name.to_string(), ms: millis(took) }).collect(),
            reasons: reasons.to_vec(),
            ..EventView::now(&self.name, self.what, status, format!("QEMU {to}"))
        };
        tracing::info!(vm = self.name, what = self.what, status, reasons = reasons.join("; "), "a change of QEMU");
        self.daemon.note(&event);
    }
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
