//! The way back of a move that has switched: the source is the writer again, with nothing acknowledged lost.
//!
//! *Planned*, while both nodes live: the same handover in the other direction ([`super::giving_back`] is its other
//! side). The source needs no block to be carried: writes were mirrored while draining, and the destination decides
//! only when all of them are here. A guest comes back as it went, by QEMU's own migration.
//!
//! *Promoted*, when the destination is dead and the operator has said that it cannot write: without asking it.
//!
//! What is on record, in this order: the move's wish `back`; "prepared" here; "given" there; "taken" here with the
//! standing primary; then the copy there goes; then the move. Whoever dies in between, the next session goes on where
//! the records are, and the wish ends only by a refusal before "given".

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use gnomon_proto::{
    bitmap::Bitmap,
    frame::Message,
    handover::{TakerRecord, TakerState},
};
use gnomon_qemu::RunState;
use gnomon_terms::{BlockCount, Bytes, Epoch};
use gnomon_volume::plane::Carrier;
use serde_json::json;
use tokio::sync::mpsc;

use super::{
    Wish,
    arrival::{self, Arrival},
    handover::Receiver,
    hub::{Hub, Inbox},
    launch, move_of_vm, move_of_volume,
    rpc::{Ask, Built, State, lost},
    source::{Leg, SourceMove},
};
use crate::{
    api::{
        ApiError, Kind,
        types::{JobView, Progress, Rollback},
    },
    daemon::{
        Daemon,
        jobs::Job,
        keeper::VolumeHandle,
        records::{HandoverRecord, MoveRecord, StandingRecord},
    },
};

/// How often the other node is asked how far it is.
const LOOK: Duration = Duration::from_millis(50);
/// What may still be owed when writing is stopped for it: a tenth of a second at 320 Mbit/s.
const LITTLE: Bytes = Bytes(4 << 20);
/// How long the other node may take to say its next step.
const STEP_WITHIN: Duration = Duration::from_secs(10);
/// How long a QEMU that was found again may take to let its guest run: its memory is there, or never will be.
const RUNS_WITHIN: Duration = Duration::from_secs(5);

// ---- what is asked for -------------------------------------------------------------------------------------------

/// Rolls the move of a volume back.
pub fn volume(daemon: &Arc<Daemon>, name: &str, ask: &Rollback) -> Result<JobView, ApiError> {
    refuse_at_destination(daemon, name, "volume", name)?;
    let (record, job) = move_of_volume(daemon, name)?;
    match (&ask.fenced, &record.vm) {
        (Some(fenced), _) => promoted(daemon, record, &job, fenced),
        (None, Some(vm)) => Err(ApiError::refused(format!("volume '{name}' moves with VM '{vm}'"))
            .then(format!("`gnomon vm rollback {vm}` brings both back"))),
        (None, None) => planned(daemon, record, &job),
    }
}

/// Rolls the move of a VM back.
pub fn vm(daemon: &Arc<Daemon>, name: &str, ask: &Rollback) -> Result<JobView, ApiError> {
    if let Ok(vm) = daemon.vms.get(name) {
        for disk in vm.record().disks {
            refuse_at_destination(daemon, &disk, "vm", name)?;
        }
    }
    let (record, job) = move_of_vm(daemon, name)?;
    match &ask.fenced {
        Some(fenced) => promoted(daemon, record, &job, fenced),
        None => planned(daemon, record, &job),
    }
}

/// A move is driven from its source: whoever asks elsewhere is told where.
fn refuse_at_destination(daemon: &Arc<Daemon>, volume: &str, what: &str, name: &str) -> Result<(), ApiError> {
    let standing = daemon.keeper.get(volume).map(|handle| handle.record().standing);
    match standing {
        Ok(StandingRecord::Draining(source) | StandingRecord::Shadow(source)) => {
            Err(ApiError::refused(format!("the move of {what} '{name}' is driven from node '{}'", source.node))
                .then(format!("on node '{}': gnomon {what} rollback {name}", source.node)))
        }
        _ => Ok(()),
    }
}

fn planned(daemon: &Arc<Daemon>, record: MoveRecord, job: &JobView) -> Result<JobView, ApiError> {
    if !record.reverse {
        return Err(ApiError::refused("the move does not mirror writes back: the copy here is out of date")
            .then("let it end, and move it back; it was begun with --no-reverse"));
    }
    if !has_switched(daemon, &record)? {
        return Err(ApiError::refused("the move has not switched: the guest is still here")
            .then("cancel it: `gnomon vm move NAME --cancel`, or `gnomon volume cancel NAME`"));
    }
    wish(daemon, record, job, Wish::Back)
}

/// Nobody here can tell a dead node from a cut cable: the operator says that it is fenced, by naming it.
fn promoted(daemon: &Arc<Daemon>, record: MoveRecord, job: &JobView, fenced: &str) -> Result<JobView, ApiError> {
    if fenced != record.to {
        return Err(ApiError::refused(format!("the move went to node '{}', not '{fenced}'", record.to))
            .then(format!("make sure that '{}' cannot write, then name it with --i-have-fenced", record.to)));
    }
    if !record.reverse {
        return Err(ApiError::refused("the move does not mirror writes back: the copy here is out of date")
            .then("bring the destination back; the move was begun with --no-reverse"));
    }
    if !has_switched(daemon, &record)? {
        return Err(ApiError::refused("the move has not switched: this node is the writer")
            .then("cancel it instead: nothing has changed"));
    }
    wish(daemon, record, job, Wish::Promote)
}

fn has_switched(daemon: &Arc<Daemon>, record: &MoveRecord) -> Result<bool, ApiError> {
    let handles: Vec<_> = record.volumes.iter().map(|name| daemon.keeper.get(name)).collect::<Result<_, _>>()?;
    Ok(record.back || handles.iter().any(|handle| matches!(handle.record().standing, StandingRecord::Fenced(_))))
}

/// Tells the driver of the move, and begins a job that ends as the driver does.
fn wish(daemon: &Arc<Daemon>, record: MoveRecord, view: &JobView, wish: Wish) -> Result<JobView, ApiError> {
    let (shared, view) = match daemon.moves.shared(&record.id) {
        Some(shared) => (shared, view.clone()),
        // Its driver has given up: it begins again with what is wished.
        None => {
            let view = launch(daemon, record.clone())?;
            (daemon.moves.shared(&record.id).ok_or_else(too_late)?, view)
        }
    };
    let driven = daemon.jobs.get(&view.id)?;
    // What came of an earlier wish is not the answer to this one.
    driven.tell(serde_json::Value::Null);
    let mut written = Ok(());
    let taken = shared.wish.send_if_modified(|current| {
        if *current == Wish::TooLate {
            return false;
        }
        if wish == Wish::Back {
            // Under the wish's lock: a driver that is about to end must not remove the record before it is written.
            written = daemon.records.put_move(&MoveRecord { switched: true, back: true, ..record.clone() });
        }
        *current = wish;
        written.is_ok()
    });
    written?;
    if !taken {
        return Err(too_late());
    }
    let job = daemon.jobs.begin("rollback", &view.subject);
    let told = job.view();
    tokio::spawn(follow(job, driven));
    Ok(told)
}

fn too_late() -> ApiError {
    ApiError::refused("the move has just ended").then("move it back with `gnomon vm move` or `gnomon volume move`")
}

/// The job of a rollback shows what that of the move does, and ends well when the move is rolled back.
async fn follow(job: Job, driven: Job) {
    let mut follower = driven.follow();
    loop {
        let view = follower.borrow_and_update().clone();
        job.report(view.progress);
        if view.state.is_over() {
            return job.finish(match (view.result, view.error) {
                (Some(result), _) if result["rolled_back"] == true => Ok(result),
                (_, Some(error)) => Err(error),
                _ => Err(too_late()),
            });
        }
        if let Some(why) = view.result.as_ref().and_then(|result| result["rollback_refused"].as_str()) {
            return job.finish(Err(ApiError::refused(why).then("the move goes on: ask again")));
        }
        if follower.changed().await.is_err() {
            return;
        }
    }
}

// ---- the source's records ----------------------------------------------------------------------------------------

/// Whether this node has the volume back, on record.
pub fn is_back(handle: &VolumeHandle) -> bool {
    let record = handle.record();
    let is_taken = matches!(record.handover, Some(HandoverRecord::Taker(TakerRecord::Taken(_))));
    is_taken && matches!(record.standing, StandingRecord::Primary)
}

/// The destination has given the volume back: what was mirrored is made durable, "taken" goes on record, and then the
/// gate opens.
pub fn take_back(
    daemon: &Arc<Daemon>,
    handle: &Arc<VolumeHandle>,
    epoch: Epoch,
    lacking: &Bitmap,
) -> Result<(), ApiError> {
    if lacking.count() > 0 {
        return Err(ApiError::new(
            Kind::Corrupt,
            format!("volume '{}' was handed back with {} blocks owed", handle.record().name, lacking.count()),
        ));
    }
    gnomon_volume::disk::Disk::flush(&**handle.volume.local())?;
    daemon.keeper.update(handle, |record| {
        record.epoch = epoch.0;
        record.standing = StandingRecord::Primary;
        record.handover = Some(HandoverRecord::Taker(TakerRecord::Taken(epoch.0)));
    })?;
    Ok(handle.volume.take_back(epoch)?)
}

/// Waits until a guest that is being sent here stands at the other node.
async fn stands_there(hub: &Hub, guest: &mut Arrival) -> Result<(), ApiError> {
    loop {
        tokio::select! {
            standing = hub.rpc.ask::<bool>(&Ask::Standing) => if standing? { return Ok(()) },
            error = guest.failed() => return Err(error),
        }
    }
}

/// The loop of a volume carries nothing any more: it only watches.
pub async fn quiet(handle: &VolumeHandle) -> Result<(), ApiError> {
    let end = handle.watcher.run(|cycle, plane| {
        plane.set_carrier(Carrier::Nobody);
        cycle.end_shadow();
    });
    end.await
}

// ---- the source's driver -----------------------------------------------------------------------------------------

impl SourceMove {
    /// Brings everything back. On an error before the first volume was given the move goes on draining, and whoever
    /// wished it back is told; afterwards the next session goes on with it.
    pub(super) async fn hand_back(&mut self, hub: &Hub, inbox: &mut Inbox, legs: &[Leg]) -> Result<(), ApiError> {
        self.record.back = true;
        self.daemon.records.put_move(&self.record)?;
        let mut is_given = self.volumes.iter().any(|handle| is_back(handle));
        let brought = match self.bring_back(hub, inbox, legs, &mut is_given).await {
            Ok(()) => self.let_go(hub).await,
            Err(error) if !is_given && error.kind != Kind::Unavailable => return Err(self.stay(&error)),
            Err(error) => Err(error),
        };
        brought.map_err(|error| lost(&self.record.to, &error.to_string()))
    }

    /// It cannot come back now: the move goes on.
    fn stay(&mut self, error: &ApiError) -> ApiError {
        tracing::warn!(id = self.record.id, %error, "the move cannot be rolled back, and goes on");
        self.record.back = false;
        if let Err(error) = self.daemon.records.put_move(&self.record) {
            return error;
        }
        self.shared.wish.send_replace(Wish::None);
        self.job.tell(json!({ "rollback_refused": error.to_string() }));
        lost(&self.record.to, "the rollback was refused: the move goes on in a new session")
    }

    async fn bring_back(
        &self,
        hub: &Hub,
        inbox: &mut Inbox,
        legs: &[Leg],
        is_given: &mut bool,
    ) -> Result<(), ApiError> {
        for leg in legs {
            // What is pushed now would only stand before the guest.
            quiet(&leg.handle).await?;
        }
        let mut receivers = self.prepare_back(hub, inbox, legs, is_given).await?;
        let mut guest = None;
        // A guest whose volumes were given in an earlier session has not come with them.
        if !*is_given {
            self.await_little(hub, legs).await?;
            guest = self.fetch_guest(hub, inbox).await?;
        }
        let yielded = hub.rpc.ask::<()>(&Ask::Yield).await;
        if let Err(error) = yielded {
            if let Some(guest) = guest {
                self.send_away(hub, guest).await?;
            }
            return Err(error);
        }
        *is_given = true;
        for leg in legs.iter().filter(|leg| !is_back(&leg.handle)) {
            // A mirrored write of the old epoch must not land on what is written from now on.
            leg.mover.hand_over(leg.handle.record().epoch().next());
        }
        while receivers.iter().any(|receiver| receiver.state() != TakerState::Taken) {
            self.hear(hub, inbox, legs, &mut receivers).await?;
        }
        if let Some(mut guest) = guest {
            hub.rpc.ask::<()>(&Ask::SendRest).await?;
            guest.running().await?;
        }
        Ok(())
    }

    /// Begins each volume's handover; notes whether one was decided in an earlier session.
    async fn prepare_back(
        &self,
        hub: &Hub,
        inbox: &mut Inbox,
        legs: &[Leg],
        is_given: &mut bool,
    ) -> Result<Vec<Receiver>, ApiError> {
        let mut receivers = Vec::new();
        for leg in legs {
            receivers.push(Receiver::resume(&leg.handle, leg.stream));
            *is_given |= hub.rpc.ask::<bool>(&Ask::HandBack { stream: leg.stream.0 }).await?;
            // What the record says of an earlier session is not enough: the other side waits for an answer in this one.
            self.hear(hub, inbox, legs, &mut receivers).await?;
        }
        Ok(receivers)
    }

    /// Takes in one thing that the destination says of its handovers, and answers.
    async fn hear(
        &self,
        hub: &Hub,
        inbox: &mut Inbox,
        legs: &[Leg],
        receivers: &mut [Receiver],
    ) -> Result<(), ApiError> {
        let peer = hub.session().peer().to_string();
        let message = tokio::time::timeout(STEP_WITHIN, inbox.control.recv())
            .await
            .map_err(|_| lost(&peer, "it did not answer in the midst of the switch back"))?
            .ok_or_else(|| lost(&peer, "the link ended"))?;
        let Message::Handover { stream, .. } = message else {
            tracing::warn!(kind = %message.kind(), "no part of a handover");
            return Ok(());
        };
        match legs.iter().zip(receivers).find(|(leg, _)| leg.stream == stream) {
            Some((leg, receiver)) => receiver.take_in(&self.daemon, &leg.handle, hub, message).await,
            None => Err(lost(&peer, "it speaks of a volume that was not opened")),
        }
    }

    /// Waits until little is owed: writing stops for what is left.
    async fn await_little(&self, hub: &Hub, legs: &[Leg]) -> Result<(), ApiError> {
        let mut ticks = tokio::time::interval(LOOK);
        loop {
            ticks.tick().await;
            let mut owed = BlockCount(0);
            for leg in legs {
                let state: State = hub.rpc.ask(&Ask::State { stream: leg.stream.0 }).await?;
                if let Some(fault) = state.fault {
                    return Err(ApiError::refused(format!("the copy here is not whole: {fault}")));
                }
                owed.0 += state.owed;
            }
            self.tell_back(owed.bytes(), "the last writes are on their way back");
            if owed.bytes() <= LITTLE {
                return Ok(());
            }
        }
    }

    /// Has the guest sent until it stands there, ready for the switch.
    async fn fetch_guest(&self, hub: &Hub, inbox: &mut Inbox) -> Result<Option<Arrival>, ApiError> {
        let Some(vm) = &self.record.vm else { return Ok(None) };
        self.end_qemu(vm).await?;
        let Some(Built { spec, resolved }) = hub.rpc.ask(&Ask::Guest { vm: vm.clone() }).await? else {
            tracing::warn!(vm, "it does not run at node {}: only its volumes come back", self.record.to);
            return Ok(None);
        };
        for handle in &self.volumes {
            handle.volume.await_return()?;
        }
        // A session has one stream of memory, and takes it once.
        let ram = std::mem::replace(&mut inbox.ram, mpsc::channel(1).1);
        let come = async {
            let mut guest = arrival::expect(&self.daemon, hub, spec, resolved, ram).await?;
            hub.rpc.ask::<()>(&Ask::SendGuest { vm: vm.clone() }).await?;
            self.tell_back(Bytes(0), "the guest's memory is on its way back");
            stands_there(hub, &mut guest).await?;
            Ok(guest)
        };
        match come.await {
            Ok(guest) => Ok(Some(guest)),
            Err(error) => {
                // In a session that is lost the other side does so by itself.
                let _ = hub.rpc.ask::<()>(&Ask::KeepGuest).await;
                self.end_qemu(vm).await?;
                self.close_again()?;
                Err(error)
            }
        }
    }

    /// The guest stays there.
    async fn send_away(&self, hub: &Hub, guest: Arrival) -> Result<(), ApiError> {
        hub.rpc.ask::<()>(&Ask::KeepGuest).await?;
        guest.withdraw(&self.daemon).await?;
        self.close_again()
    }

    fn close_again(&self) -> Result<(), ApiError> {
        self.volumes.iter().try_for_each(|handle| Ok(handle.volume.end_return()?))
    }

    /// Ends a QEMU of the guest on this node: one that waited for it in an earlier session.
    async fn end_qemu(&self, vm: &str) -> Result<(), ApiError> {
        let (vms, vm) = (Arc::clone(&self.daemon.vms), vm.to_string());
        let end = move || match vms.get(&vm) {
            Ok(_) => vms.remove(&vm),
            Err(_) => vms.end_leftover(&vm),
        };
        tokio::task::spawn_blocking(end).await.map_err(ApiError::internal)?
    }

    /// All is back, on record: what is at the destination goes.
    pub(super) async fn let_go(&self, hub: &Hub) -> Result<(), ApiError> {
        if let Some(vm) = &self.record.vm {
            hub.rpc.ask::<()>(&Ask::EndGuest { vm: vm.clone() }).await?;
        }
        for handle in &self.volumes {
            let record = handle.record();
            let (move_id, epoch) = (self.record.id.clone(), record.epoch);
            hub.rpc.ask::<()>(&Ask::LetGo { move_id, volume: record.name, epoch }).await?;
        }
        Ok(())
    }

    fn tell_back(&self, owed: Bytes, message: &str) {
        let total_bytes = self.total();
        self.job.report(Progress {
            phase: "rollback".to_string(),
            done_bytes: total_bytes.saturating_sub(owed.0),
            total_bytes,
            message: message.to_string(),
            ..Progress::default()
        });
    }

    // ---- ends -----------------------------------------------------------------------------------------------

    /// Both sides have it on record: the move is over, as if it had been cancelled.
    pub(super) async fn rolled_back(&self) -> Result<serde_json::Value, ApiError> {
        for handle in &self.volumes {
            self.forget(handle)?;
        }
        self.daemon.records.remove_move(&self.record.id)?;
        self.undone("it is here again, and nothing of it is at the other node").await
    }

    /// The destination is dead, and the operator has said so: this node is the writer at the next epoch. That it was
    /// done without the destination goes on record first: it asks when it returns.
    pub(super) async fn promote(&self) -> Result<serde_json::Value, ApiError> {
        self.daemon.records.put_undone(&self.record.id, &self.record.to)?;
        for handle in &self.volumes {
            if let StandingRecord::Fenced(_) = handle.record().standing {
                let epoch = handle.record().epoch().next();
                take_back(&self.daemon, handle, epoch, &Bitmap::new(handle.volume.blocks().0))?;
            }
            self.forget(handle)?;
        }
        self.daemon.records.remove_move(&self.record.id)?;
        self.undone("this node is the writer again; what a guest there was told is durable is here").await
    }

    /// The move's own job did not do what it was begun for; whoever asked for the rollback reads what came of it.
    pub(super) fn was_undone(&self, told: serde_json::Value) -> ApiError {
        self.job.tell(told);
        self.job.cancel();
        ApiError::refused("the move was rolled back").then("everything is where it was before the move")
    }

    async fn undone(&self, well: &str) -> Result<serde_json::Value, ApiError> {
        let guest_runs = match &self.record.vm {
            Some(vm) => Some(self.guest_is_here(vm).await?),
            None => None,
        };
        let told = match guest_runs {
            Some(false) => "its volumes are here again, and it does not run: start it with `gnomon vm run`",
            _ => well,
        };
        self.tell_back(Bytes(0), told);
        let seconds = self.begun.elapsed().as_secs_f64();
        Ok(json!({ "rolled_back": true, "from": self.record.to, "guest_runs": guest_runs, "seconds": seconds }))
    }

    /// Whether the guest runs on this node. A QEMU that got only a part of it ends.
    async fn guest_is_here(&self, vm: &str) -> Result<bool, ApiError> {
        let begun = Instant::now();
        while let Some(qemu) = self.daemon.vms.get(vm).ok().and_then(|vm| vm.qemu()) {
            let status = tokio::task::spawn_blocking(move || qemu.qmp().query_status()).await;
            match status.map_err(ApiError::internal)? {
                Ok(status) if status.running => return Ok(true),
                // It is not on its way: whoever left it like this looks after it.
                Ok(status) if status.state != RunState::Inmigrate => return Ok(false),
                _ if begun.elapsed() > RUNS_WITHIN => break,
                _ => tokio::time::sleep(LOOK).await,
            }
        }
        self.end_qemu(vm).await.map(|()| false)
    }

    fn forget(&self, handle: &VolumeHandle) -> Result<(), ApiError> {
        handle.watcher.story().take();
        self.daemon.keeper.update(handle, |record| {
            record.move_id = None;
            record.handover = None;
        })
    }
}
