//! The source of a move: drives it from the first block to the release, over as many sessions as it takes.
//!
//! ```text
//!   run ─► session ─► open each volume ─► prime ─► switch ─► drain ─► release ─► done
//!    ▲        │ link lost: again, after a while
//!    └────────┘
//! ```
//! What must be known after a crash is in the move's record (where it goes, whether it has switched) and in the
//! volumes' records and map files. Everything else is looked at anew in each session.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use gnomon_proto::frame::Stream;
use gnomon_terms::{BlockCount, Extent, Instant as LoopInstant, Place};
use gnomon_volume::{
    disk::Role,
    mover::{Mover, MoverParts, Phase},
    plane::Carrier,
};
use tokio::sync::Mutex;

use super::{
    Shared, Wish, compare, decide,
    ending::{Totals, leave_nothing},
    handover,
    hub::{Hub, Inbox},
    metadata::Metadata,
    progress::{Meter, shrinking},
    rollback,
    rpc::{Ask, Opened, State, lost},
    transfer::{self, blocking},
};
use crate::{
    api::{ApiError, types::RamChoice},
    daemon::{
        Daemon,
        jobs::Job,
        keeper::VolumeHandle,
        records::{MoveRecord, StandingRecord},
        vms::makeup::all_memory,
    },
};

/// How often the move is looked at: often enough for a person, seldom enough to cost nothing.
pub(super) const TICK: Duration = Duration::from_millis(100);
/// Where the shadow is, as the loop numbers it.
pub(super) const THERE: Place = Place(1);

/// A move that this node is the source of.
pub struct SourceMove {
    pub(super) daemon: Arc<Daemon>,
    pub(super) record: MoveRecord,
    pub(super) volumes: Vec<Arc<VolumeHandle>>,
    pub(super) job: Job,
    pub(super) shared: Arc<Shared>,
    pub(super) begun: Instant,
    pub(super) totals: Totals,
    /// How its guest's memory goes, once that is known.
    pub(super) ram: Option<RamChoice>,
    /// Held by whoever sends its guest: one that a session has left behind comes to its end first.
    pub(super) sending: Arc<Mutex<()>>,
    /// How long draining took, and what had been carried before it.
    pub(super) drained: Option<Duration>,
    pub(super) carried_at_switch: u64,
}

/// How a session ended well.
pub(super) enum End {
    Released,
    Cancelled,
    RolledBack,
    Promoted,
}

/// How draining ended.
#[derive(PartialEq, Eq)]
enum Drained {
    Whole,
    WishedBack,
}

/// A volume in one session.
pub(super) struct Leg {
    pub(super) handle: Arc<VolumeHandle>,
    pub(super) stream: Stream,
    pub(super) mover: Arc<Mover>,
    pub(super) metadata: Mutex<Metadata>,
}

impl SourceMove {
    /// A move of `volumes`, as recorded.
    pub fn new(
        daemon: Arc<Daemon>,
        mut record: MoveRecord,
        volumes: Vec<Arc<VolumeHandle>>,
        job: Job,
        shared: Arc<Shared>,
    ) -> SourceMove {
        // The volumes' own records decide; the move's may be a moment behind.
        record.switched |= volumes.iter().any(|handle| matches!(handle.record().standing, StandingRecord::Fenced(_)));
        SourceMove {
            daemon,
            record,
            volumes,
            job,
            shared,
            begun: Instant::now(),
            totals: Totals::default(),
            ram: None,
            sending: Arc::default(),
            drained: None,
            carried_at_switch: 0,
        }
    }

    /// Drives the move to its end and tells the job.
    pub async fn run(mut self) {
        if let (false, Some(vm)) = (self.record.switched, &self.record.vm) {
            transfer::run_on(&self.daemon, vm).await;
        }
        let outcome = match self.ended_before() {
            Some(end) => Ok(end),
            None => self.sessions().await,
        };
        let ended = match outcome {
            Ok(End::Released) => {
                // Whoever wants it back from now on is told that it is too late.
                self.shared.wish.send_replace(Wish::TooLate);
                self.finish()
            }
            Ok(End::RolledBack) => self.rolled_back().await.and_then(|told| Err(self.was_undone(told))),
            Ok(End::Promoted) => self.promote().await.and_then(|told| Err(self.was_undone(told))),
            Ok(End::Cancelled) => {
                self.undo().and(Err(ApiError::refused("the move was cancelled: nothing has changed")))
            }
            Err(error) if !self.record.switched => self.undo().and(Err(error)),
            Err(error) => Err(error),
        };
        self.daemon.moves.forget(&self.record.id);
        self.note(&ended);
        self.job.finish(ended);
    }

    /// How the move ended when this daemon died in the midst of writing its end down: a volume that was let go, or
    /// that has not been claimed or is free again, tells of all of them.
    fn ended_before(&self) -> Option<End> {
        if self.daemon.records.undone_to(&self.record.id).is_ok_and(|to| to.is_some()) {
            return Some(End::Promoted);
        }
        let records: Vec<_> = self.volumes.iter().map(|handle| handle.record()).collect();
        if records.iter().any(|record| matches!(record.standing, StandingRecord::Released(_))) {
            return Some(End::Released);
        }
        let is_free = records.iter().any(|record| record.move_id.as_deref() != Some(&self.record.id));
        is_free.then_some(End::Cancelled)
    }

    /// Begins sessions until one comes to an end.
    async fn sessions(&mut self) -> Result<End, ApiError> {
        loop {
            let error = match self.session().await {
                Ok(end) => return Ok(end),
                Err(error) => error,
            };
            let Some(wait) = self.wait_before_another(&error) else { return Err(error) };
            if self.wants_cancel() {
                return Ok(End::Cancelled);
            }
            let message = format!("waiting for node {}: {error}", self.record.to);
            tracing::warn!(id = self.record.id, "{message}");
            self.job.report(crate::api::types::Progress { message, ..self.job.view().progress });
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.shared.to_promote() => return Ok(End::Promoted),
                () = self.job.cancelled(), if !self.record.switched => {}
            }
        }
    }

    /// How long to wait before another session is tried; `None` when it would do no better.
    fn wait_before_another(&self, error: &ApiError) -> Option<Duration> {
        let is_fault = self.shared.fault.lock().is_some();
        decide::try_again(self.record.switched, is_fault, error.kind)
    }

    pub(super) fn wants_cancel(&self) -> bool {
        !self.record.switched && self.job.is_cancelled()
    }

    async fn session(&mut self) -> Result<End, ApiError> {
        let session = tokio::select! {
            session = self.daemon.dial(&self.record.to) => session?,
            () = self.shared.to_promote() => return Ok(End::Promoted),
        };
        session.set_rate(self.shared.rate());
        let (hub, mut inbox) = Hub::start(session);
        *self.shared.session.lock() = Some(Arc::clone(hub.session()));
        let mut legs = Vec::new();
        let outcome = self.drive(&hub, &mut inbox, &mut legs).await;
        *self.shared.session.lock() = None;
        // First the session, so that nobody waits for room in it; then the senders, so that the next session's are
        // the only ones.
        self.totals.ram += hub.session().sent_bytes(gnomon_proto::Class::Ram).0;
        hub.end("the session is over").await;
        for leg in legs {
            self.totals.count(&leg.mover);
            tokio::task::spawn_blocking(move || leg.mover.stop()).await.map_err(ApiError::internal)?;
            rollback::quiet(&leg.handle).await?;
        }
        outcome
    }

    async fn drive(&mut self, hub: &Hub, inbox: &mut Inbox, legs: &mut Vec<Leg>) -> Result<End, ApiError> {
        let (ended, peer, shared) = (Arc::clone(hub.session()), self.record.to.clone(), Arc::clone(&self.shared));
        let work = async {
            for (index, handle) in self.volumes.clone().into_iter().enumerate() {
                if rollback::is_back(&handle) {
                    continue;
                }
                legs.push(self.open(hub, inbox, handle, Stream(index as u32)).await?);
            }
            if !self.record.switched {
                if let Some(end) = self.prime_and_switch(hub, inbox, legs).await? {
                    return Ok(end);
                }
            } else if !self.record.back {
                transfer::settle(&self.daemon, hub, &mut self.record).await?;
            }
            if self.drain(hub, legs).await? == Drained::WishedBack {
                self.hand_back(hub, inbox, legs).await?;
                return Ok(End::RolledBack);
            }
            for leg in legs.iter() {
                hub.rpc.ask::<()>(&Ask::Release { stream: leg.stream.0 }).await?;
            }
            Ok(End::Released)
        };
        let outcome = tokio::select! {
            outcome = work => outcome,
            () = shared.to_promote() => Ok(End::Promoted),
            reason = ended.closed() => Err(lost(&peer, &reason.to_string())),
        };
        if let Err(error) = &outcome
            && !self.record.switched
            && self.wait_before_another(error).is_none()
        {
            leave_nothing(hub, legs, self.record.vm.as_ref()).await;
        }
        outcome
    }

    /// Opens a volume at the destination, compares, and starts carrying.
    async fn open(
        &self,
        hub: &Hub,
        inbox: &mut Inbox,
        handle: Arc<VolumeHandle>,
        stream: Stream,
    ) -> Result<Leg, ApiError> {
        let volume = Arc::clone(&handle.volume);
        let record = handle.record();
        let outbox = volume.outbox().ok_or_else(|| ApiError::internal("a volume on the move has no outbox"))?;
        let allocated = volume.allocated()?;
        let needed = allocated.iter().map(|extent| extent.bytes().0).sum();
        let ask = Ask::Open {
            move_id: self.record.id.clone(),
            volume: record.name.clone(),
            size: record.size,
            needed,
            epoch: record.epoch,
            stream: stream.0,
            reverse: self.record.reverse,
            boot: Some(self.daemon.keeper.boot().0),
        };
        let opened: Opened = hub.rpc.ask(&ask).await?;
        let mut valid = compare::received(inbox, volume.blocks(), stream)?;
        let has_let_go = self.record.switched && opened.role == Role::Primary.name();
        if has_let_go {
            // Only its answer was lost, or it was confirmed without us: it is whole, and keeps no map of that.
            valid.set(Extent::new(0, volume.blocks().0), true);
            self.daemon.keeper.update(&handle, |record| record.handover = None)?;
        }
        if handover::is_open(&handle) {
            // It is decided and not known there: nothing else comes before that.
            handover::confirm(&self.daemon, hub, inbox, &handle, stream).await?;
            if opened.epoch == handle.record().epoch {
                compare::go_on_draining(&volume, &outbox, &valid);
            }
        } else if self.record.switched {
            compare::go_on_draining(&volume, &outbox, &valid);
        } else if opened.fresh {
            compare::begin_fresh(hub, &volume, stream, &allocated, &outbox).await?;
        } else {
            compare::go_on_priming(&volume, &outbox, &valid);
        }
        let phase = if self.record.switched { Phase::Draining } else { Phase::Priming };
        let mover = Mover::start(MoverParts {
            resource: volume.resource(),
            place: THERE,
            stream,
            local: Arc::clone(volume.local()),
            outbox: Arc::clone(&outbox),
            stripes: Arc::clone(volume.stripes()),
            tap: Arc::clone(volume.tap()),
            wire: hub.wire(),
            phase,
            epoch: volume.disk().state().0,
        });
        let engine = Arc::clone(&mover);
        hub.serve(stream, Arc::new(move |message| engine.handle(message)));
        let carrier = Carrier::Source { mover: Arc::clone(&mover), place: THERE, phase };
        let lacking = compare::lacking(&volume, &outbox);
        handle
            .watcher
            .run(move |cycle, plane| {
                plane.set_carrier(carrier);
                cycle.end_shadow();
                cycle.begin_shadow(THERE, lacking)?;
                if phase == Phase::Draining {
                    cycle.switched(LoopInstant::ORIGIN);
                }
                Ok::<(), ApiError>(())
            })
            .await??;
        let metadata = Mutex::new(Metadata::new(&handle));
        Ok(Leg { handle, stream, mover, metadata })
    }

    // ---- drain ----------------------------------------------------------------------------------------------

    /// Until everything is there and nothing is owed back, or the move is to come back.
    async fn drain(&mut self, hub: &Hub, legs: &[Leg]) -> Result<Drained, ApiError> {
        let mut meter = Meter::new();
        let mut ticks = tokio::time::interval(TICK);
        let begun = Instant::now();
        // What keeps the destination from storing copies, until it stores some again.
        let (mut fault, mut missing_then) = (None, u64::MAX);
        self.carried_at_switch =
            self.totals.carried() + legs.iter().map(|leg| leg.mover.carried().pushed()).sum::<u64>();
        loop {
            if self.shared.wishes(Wish::Back) {
                return Ok(Drained::WishedBack);
            }
            ticks.tick().await;
            let look = self.look(hub, legs, &mut meter).await?;
            self.drained = Some(begun.elapsed());
            let (mut missing, mut owed, mut degraded) = (0, 0, false);
            for leg in legs {
                let state: State = hub.rpc.ask(&Ask::State { stream: leg.stream.0 }).await?;
                missing += state.missing;
                owed += if self.record.reverse { state.owed } else { 0 };
                degraded |= state.degraded;
                fault = state.fault.or(fault);
                if look.lacking == BlockCount(0) && state.missing > 0 {
                    self.reconcile(leg).await?;
                }
            }
            if missing < missing_then {
                fault = None;
            }
            missing_then = missing;
            let message = match (self.record.guest_lost, &fault, degraded) {
                (true, ..) => transfer::GUEST_LOST.to_string(),
                (false, Some(fault), _) => format!("node {} cannot keep what arrives: {fault}", self.record.to),
                (false, None, true) => "writes are not mirrored back at present".to_string(),
                (false, None, false) => String::new(),
            };
            let lacking = BlockCount(missing + owed).bytes().0;
            self.job.report(shrinking("drain", lacking, self.total(), meter.rate(), message));
            if (missing, look.lacking) == (0, BlockCount(0)) {
                match (owed, degraded) {
                    (0, _) => return Ok(Drained::Whole),
                    // What could not be stored here is sent again in a new session, and in none before.
                    (_, true) => return Err(lost(&self.record.to, "mirrored writes were not stored here")),
                    _ => {}
                }
            }
        }
    }

    /// The loop believes that everything is there and the destination knows better: a demand's answer was lost. A
    /// new session compares anew.
    async fn reconcile(&self, leg: &Leg) -> Result<(), ApiError> {
        Err(lost(&self.record.to, &format!("volume '{}' has to be compared again", leg.handle.record().name)))
    }

    /// Bytes of its guest's memory, DIMMs included; zero when no guest goes along.
    pub(super) async fn memory(&self) -> u64 {
        let qemu = self.record.vm.as_ref().and_then(|vm| self.daemon.vms.get(vm).ok()?.qemu());
        let Some(qemu) = qemu else { return 0 };
        blocking(move || Ok(all_memory(&qemu))).await.unwrap_or_default()
    }

    /// Bytes of all volumes.
    pub(super) fn total(&self) -> u64 {
        self.volumes.iter().map(|handle| handle.volume.size().0).sum()
    }
}
