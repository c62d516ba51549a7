//! A planned switchover, at the primary.
//!
//! ```text
//!   runs ─freeze─► stands, all of it sealed ─Ready─► loaded there ─fence─► given, on record ─TakeOver─► runs there
//!    ▲                 │                       │                  │                            │ its QEMU here ends
//!    └────── cont ◄────┴───────────────────────┴──────────────────┘              no answer: the next session asks
//! ```
//! The record "given" is the commit point: up to it an error is a `cont`, and after it the guest stands here until the
//! shadow's node has said what became of it. It says one of three things: it runs there; it is loaded and waits, and is
//! told to run; or it has nothing, and never will: then the guest goes on here, at an epoch that is newer than the given
//! one.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use gnomon_machine::primary::Told;
use serde_json::json;

use super::{
    ask, blocking, ended, guarding,
    primary::{End, Primary},
    pulse::millis,
    rpc::{Ask, TakenOver},
    story::Phase,
};
use crate::{
    api::{ApiError, Kind, types::Progress},
    daemon::{jobs::Job, moving::hub::Hub},
};

/// How long a guest may take to run again after a switchover that was called off in a later run of the daemon.
const RESUME: Duration = Duration::from_secs(30);

impl Primary {
    /// Hands the guest over. True when it runs at the shadow's node; false when it was called off, and runs here. An
    /// error ends the session: what became of it is asked in the next.
    pub(super) async fn switch(&mut self, hub: &Hub, job: &Job) -> Result<bool, ApiError> {
        let mut clock = Clock(Instant::now());
        self.daemon.balancing.leave(&self.record().vm);
        if let Some(guard) = self.shared.family.guard() {
            // From here on it is this switchover that decides who runs the guest.
            if let Err(error) = blocking(move || guard.suspend()).await {
                return self.called_off(job, error);
            }
        }
        tell(job, "freeze", "the last checkpoint is made");
        let frozen = match self.freeze().await? {
            Ok(frozen) => frozen,
            Err(error) => return self.called_off(job, error),
        };
        let stood = frozen.stood_at.unwrap_or(clock.0);
        let mut phases = vec![("approach", clock.lap_until(stood)), ("freezing", clock.lap())];
        let epoch = match self.prepare(hub, frozen.checkpoint, &mut phases, &mut clock).await {
            Ok(epoch) => epoch,
            Err(error) => {
                self.go_on().await?;
                return self.called_off(job, error);
            }
        };
        tell(job, "activate", "");
        let taken = match ask::<TakenOver>(&hub.rpc, Ask::TakeOver { id: self.record().id, epoch }).await {
            Ok(taken) => taken,
            Err(error) if error.kind == Kind::Unavailable => {
                job.finish(Err(undecided(&self.record().to, &error)));
                return Err(error);
            }
            Err(error) => {
                // It has said so: it does not run it, and never will.
                self.take_back(epoch).await?;
                return self.called_off(job, error);
            }
        };
        phases.push(("activating", clock.lap()));
        let gap = clock.0 - stood;
        let dropped = self.shared.family.siblings_of(&self.record().to);
        self.moved().await?;
        phases.push(("deactivating", clock.lap()));
        self.done(job, &taken, epoch, gap, &phases, &dropped);
        Ok(true)
    }

    /// The last checkpoint, sealed; the guest stands after it. An error within has left it running.
    async fn freeze(&mut self) -> Result<Result<Told, ApiError>, ApiError> {
        let mut engine = self.engine()?;
        let (engine, frozen) = blocking(move || {
            let frozen = engine.freeze();
            Ok((engine, frozen))
        })
        .await?;
        self.put_engine(engine);
        Ok(frozen.map_err(ApiError::from))
    }

    /// Everything up to the commit point: the devices are loaded there, and the guest is given, on record.
    async fn prepare(
        &self,
        hub: &Hub,
        checkpoint: u64,
        phases: &mut Vec<Phase>,
        clock: &mut Clock,
    ) -> Result<u64, ApiError> {
        ask::<()>(&hub.rpc, Ask::Ready { checkpoint }).await?;
        phases.push(("loading", clock.lap()));
        let epoch = self.record().epoch + 1;
        let (daemon, vm, shared) = (Arc::clone(&self.daemon), Arc::clone(&self.vm), Arc::clone(&self.shared));
        let (volumes, to) = (Arc::clone(&self.volumes), self.record().to);
        blocking(move || {
            daemon.vms.fence(&vm);
            shared.write(&daemon.records, |record| record.given = Some(epoch))?;
            let given = volumes.give(&daemon.keeper, &to);
            // It is decided: what is not fenced on record is so at the next start, and no disk is lent until then.
            given.unwrap_or_else(|error| tracing::error!(%error, "the volumes of a guest that was given away"));
            Ok(())
        })
        .await?;
        phases.push(("fencing", clock.lap()));
        Ok(epoch)
    }

    /// The guest runs on here: nothing was decided.
    async fn go_on(&mut self) -> Result<(), ApiError> {
        let mut engine = self.engine()?;
        let (daemon, vm) = (Arc::clone(&self.daemon), Arc::clone(&self.vm));
        let (engine, went) = blocking(move || {
            daemon.vms.unfence(&vm)?;
            let went = engine.go_on();
            Ok((engine, went))
        })
        .await?;
        self.put_engine(engine);
        Ok(went.map(drop)?)
    }

    fn called_off(&self, job: &Job, error: ApiError) -> Result<bool, ApiError> {
        if let Some(guard) = self.shared.family.guard() {
            guard.go_on();
        }
        self.story.not_taken_over("switchover", &error);
        self.daemon.balancing.arrive(&self.record().vm, &self.daemon.config.node);
        job.finish(Err(error.then("the guest runs on here, as before")));
        Ok(false)
    }

    /// The guest was given away, and the shadow's node will never run it: it goes on here, at a newer epoch.
    pub(super) async fn take_back(&mut self, given: u64) -> Result<(), ApiError> {
        let (daemon, shared) = (Arc::clone(&self.daemon), Arc::clone(&self.shared));
        tracing::warn!(vm = self.record().vm, "node {} does not have the guest: it goes on here", self.record().to);
        for other in self.shared.family.others(&self.shared) {
            // What its standbys have counts no more: its next session is of the epoch to come.
            other.end_session("the guest goes on at another epoch").await;
        }
        let volumes = Arc::clone(&self.volumes);
        blocking(move || {
            volumes.take_back(&daemon.keeper, &shared.family.nodes())?;
            shared.family.write(&daemon.records, |record| record.epoch = given + 1)?;
            // Last: until then nobody begins a session.
            shared.write(&daemon.records, |record| record.given = None)
        })
        .await?;
        self.go_on().await?;
        let (qemu, leash) = (Arc::clone(&self.qemu), Arc::clone(&self.shared.family.leash));
        // The daemon may be another one than that which froze it.
        let went = move || leash.run(|| qemu.qmp().cont_after_migration(RESUME)).unwrap_or(Ok(()));
        blocking(move || Ok(went()?)).await?;
        self.renew_engine()
    }

    /// The guest is loaded at the shadow's node and was given to it: it is told once more.
    pub(super) async fn give_again(&mut self, hub: &Hub, given: u64) -> Result<End, ApiError> {
        ask::<TakenOver>(&hub.rpc, Ask::TakeOver { id: self.record().id, epoch: given }).await?;
        self.moved().await
    }

    /// The guest runs at the shadow's node: what is here of it goes, and so do its other shadows.
    pub(super) async fn moved(&mut self) -> Result<End, ApiError> {
        if let Ok(engine) = self.engine() {
            engine.hand_over();
        }
        let (daemon, record, volumes) = (Arc::clone(&self.daemon), self.record(), Arc::clone(&self.volumes));
        let (qemu, nodes) = (Arc::clone(&self.qemu), self.shared.family.nodes());
        blocking(move || {
            // Asked to end, it would wait for disks that it does not have any more.
            qemu.kill()?;
            daemon.vms.remove(&record.vm)?;
            volumes.release(&daemon.keeper, &record.to)?;
            nodes.iter().try_for_each(|node| daemon.records.remove_protection(&record.vm, node))
        })
        .await?;
        guarding::end(&self.shared.family).await;
        let record = self.record();
        self.daemon.balancing.arrive(&record.vm, &record.to);
        let others = self.shared.family.siblings_of(&record.to);
        self.shared.family.give_up_others(&self.shared);
        // Before anybody is told: it may come back at once.
        self.daemon.protections.over(&self.shared);
        ended::tell_superseded(&self.daemon, &record.id, others, &record.to);
        Ok(End::Moved)
    }

    /// `dropped` are the nodes of its other shadows: at its new node it has none until it is protected there.
    fn done(&self, job: &Job, taken: &TakenOver, epoch: u64, gap: Duration, phases: &[Phase], dropped: &[String]) {
        let record = self.record();
        self.story.took_over("switchover", gap, phases);
        let mut message = format!("{} runs at node {} from checkpoint {}", record.vm, record.to, taken.checkpoint);
        if !dropped.is_empty() {
            message += &format!("; its shadow at {} is dropped: `gnomon vm protect` again there", dropped.join(", "));
        }
        tell(job, "done", &message);
        let phase = |(name, took): &Phase| json!({ "name": name, "ms": millis(*took) });
        job.finish(Ok(json!({
            "to": record.to,
            "dropped": dropped,
            "checkpoint": taken.checkpoint,
            "epoch": epoch,
            "gap_ms": millis(gap),
            "phases": phases.iter().map(phase).collect::<Vec<_>>(),
        })));
    }
}

/// Tells phases apart.
struct Clock(Instant);

impl Clock {
    fn lap(&mut self) -> Duration {
        self.lap_until(Instant::now())
    }

    fn lap_until(&mut self, now: Instant) -> Duration {
        let lap = now.saturating_duration_since(self.0);
        self.0 = now;
        lap
    }
}

fn undecided(to: &str, error: &ApiError) -> ApiError {
    ApiError::unavailable(format!("the guest was given to node {to}, and its answer is lost: {}", error.message))
        .then("it stands here until that node can be asked: see `gnomon vm show`")
}

fn tell(job: &Job, phase: &str, message: &str) {
    job.report(Progress { phase: phase.to_string(), message: message.to_string(), ..Progress::default() });
}
