//! What is written down of a protection, for `gnomon vm events`.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use super::pulse::millis;
use crate::{
    api::{
        ApiError,
        types::{EventView, PhaseView},
    },
    daemon::Daemon,
};

/// Writes events of one VM down. Clones tell the same story.
#[derive(Clone)]
pub struct Story {
    daemon: Arc<Daemon>,
    vm: String,
    to: String,
    /// Whether the loss of the shadow has been told.
    told_lost: Arc<AtomicBool>,
}

/// A phase of a switch, with its name.
pub type Phase = (&'static str, Duration);

impl Story {
    /// The story of `vm` and its shadow at node `to`.
    pub fn new(daemon: &Arc<Daemon>, vm: &str, to: &str) -> Story {
        Story { daemon: Arc::clone(daemon), vm: vm.to_string(), to: to.to_string(), told_lost: Arc::default() }
    }

    /// The shadow has a checkpoint, the first one or the first after trouble.
    pub fn protected(&self, checkpoint: u64) {
        self.told_lost.store(false, Ordering::Relaxed);
        tracing::info!(vm = self.vm, checkpoint, "protected by node {}", self.to);
        self.note("protect", "done", &[]);
    }

    /// There is no session with the shadow. Told once for each loss.
    pub fn lost(&self, why: &ApiError) {
        if !self.told_lost.swap(true, Ordering::Relaxed) {
            tracing::warn!(vm = self.vm, error = %why, "its shadow at node {} is lost", self.to);
            self.note("shadow-lost", "failed", std::slice::from_ref(&why.message));
        }
    }

    /// Strict mode is suspended for this shadow: the guest goes on without it, waiting for the others or for nobody.
    pub fn exposed(&self, why: &str, has_others: bool) {
        let follows = match has_others {
            true => {
                "what the guest says waits for its other shadows only, and a failover to this one would lose some of it"
            }
            false => "what the guest says leaves at once, and a failover would lose that",
        };
        let what = format!("its shadow at node {} is not waited for, {why}: {follows}", self.to);
        tracing::warn!(vm = self.vm, "{what}");
        self.note("exposed", "done", &[what]);
    }

    /// The guest's QEMU has ended.
    pub fn guest_ended(&self) {
        let what =
            format!("the guest does not run here: `gnomon vm failover {}` on node {} goes on", self.vm, self.to);
        tracing::warn!(vm = self.vm, "{what}");
        self.note("guest-ended", "failed", &[what]);
    }

    /// It is not protected any more.
    pub fn unprotected(&self) {
        self.note("unprotect", "done", &[]);
    }

    /// The shadow has taken over without this node.
    pub fn lost_to_shadow(&self, epoch: u64) {
        let what =
            format!("the shadow took over at epoch {epoch}; what was done here since its last checkpoint is lost");
        self.note("failover", "lost", &[what]);
    }

    /// Another of the VM's shadows runs it: this one is dropped.
    pub fn gone_elsewhere(&self, by: &str) {
        let what = format!("the guest runs at node {by} by now: the shadow here is dropped");
        tracing::warn!(vm = self.vm, "{what}");
        self.note("shadow-dropped", "done", &[what]);
    }

    /// A takeover, planned or not, and how long the guest stood for it.
    pub fn took_over(&self, what: &str, gap: Duration, phases: &[Phase]) {
        self.write(what, "done", Some(gap), phases, &[]);
    }

    /// A takeover without the primary; `why` is empty when it was an operator's word alone.
    pub fn failed_over(&self, gap: Duration, phases: &[Phase], why: &str) {
        let why = (!why.is_empty()).then(|| why.to_string());
        self.write("failover", "done", Some(gap), phases, why.as_slice());
    }

    /// The disks were taken over, and the guest does not run.
    pub fn disks_only(&self, what: &str, why: &str) {
        self.note(what, "disks-only", &[why.to_string()]);
    }

    /// A takeover that did not come about.
    pub fn not_taken_over(&self, what: &str, error: &ApiError) {
        self.note(what, "failed", std::slice::from_ref(&error.message));
    }

    fn note(&self, what: &str, status: &str, reasons: &[String]) {
        self.write(what, status, None, &[], reasons);
    }

    fn write(&self, what: &str, status: &str, gap: Option<Duration>, phases: &[Phase], reasons: &[String]) {
        let phase = |(name, took): &Phase| PhaseView { name: name.to_string(), ms: millis(*took) };
        self.daemon.note(&EventView {
            gap_ms: gap.map(millis),
            phases: phases.iter().map(phase).collect(),
            reasons: reasons.to_vec(),
            ..EventView::now(&self.vm, what, status, format!("node {}", self.to))
        });
    }
}
