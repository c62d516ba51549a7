//! The destination of a move that is rolled back: it is the giver of each volume, and sends the guest.
//!
//! ```text
//!   source asks      this side
//!   HandBack         giver begins: ► Prepare            … ◄ Prepared
//!   SendGuest        QEMU sends; Standing until the guest stands
//!   Yield            hold writes · all of them become durable at the source · "given" on record · ► Commit … ◄ Committed
//!   SendRest         the guest runs at the source
//!   EndGuest, LetGo  QEMU ends, the copy goes
//! ```
//! Until "given" is on record everything can be undone, and is when the session ends. After it this node never
//! writes again, and says `Commit` in every session until the source has it on record.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use gnomon_proto::{
    bitmap::Bitmap,
    frame::{Step, Stream},
    handover::{Giver, GiverState},
};
use gnomon_terms::{BlockCount, Epoch};
use gnomon_volume::plane::Carrier;

use super::{handover, hub::Hub, rpc::Built, transfer::Transfer};
use crate::{
    api::ApiError,
    daemon::{
        Daemon,
        keeper::VolumeHandle,
        records::{HandoverRecord, StandingRecord},
        vms::makeup::{built, refuse_if_qemu_loses_pages},
    },
};

/// How long writes that wait for a block of the source may hold up the fence: many round trips, and short for a
/// client whose requests wait meanwhile.
const HELD_WITHIN: Duration = Duration::from_secs(2);
/// How long nobody may write while what is owed is sent and made durable: the source asks for it when little is.
const SENT_WITHIN: Duration = Duration::from_secs(5);
/// How often it is looked at whether all has been sent.
const LOOK: Duration = Duration::from_millis(1);

/// This side of a rollback, in one session.
#[derive(Default)]
pub struct GivingBack {
    volumes: HashMap<Stream, Giving>,
    guest: Option<(String, Transfer)>,
}

struct Giving {
    handle: Arc<VolumeHandle>,
    giver: Giver,
}

impl GivingBack {
    /// Begins, or goes on when it was decided in an earlier session, which is what it returns.
    pub async fn begin(&mut self, hub: &Hub, handle: &Arc<VolumeHandle>, stream: Stream) -> Result<bool, ApiError> {
        let record = handle.record();
        let mut giver = match (record.handover, &record.standing) {
            (Some(HandoverRecord::Given(given)), _) => Giver::resume(given),
            (_, StandingRecord::Draining(_)) => Giver::new(record.epoch()),
            _ => {
                return Err(ApiError::refused(format!("volume '{}' is {} there", record.name, handle.role()))
                    .then("only a volume that drains can be handed back; move it back instead"));
            }
        };
        if giver.state() == GiverState::Idle {
            giver.begin()?;
        }
        let is_given = giver.state() == GiverState::Given;
        // Most of it becomes durable while the guest still writes, so that little is left when it may not.
        handle.volume.flush_at_source();
        handover::say(hub, stream, &mut giver).await?;
        self.volumes.insert(stream, Giving { handle: Arc::clone(handle), giver });
        Ok(is_given)
    }

    /// The source said something of a handover. False when it is not about one of ours.
    pub async fn hear(&mut self, hub: &Hub, stream: Stream, epoch: Epoch, step: Step) -> bool {
        let Some(giving) = self.volumes.get_mut(&stream) else { return false };
        giving.giver.hear(epoch, step);
        if let Err(error) = handover::say(hub, stream, &mut giving.giver).await {
            tracing::debug!(%error, "the session has ended in the midst of a handover");
        }
        true
    }

    // ---- deciding -------------------------------------------------------------------------------------------

    /// Writes no more, has everything made durable at the source, and decides. On an error before the decision this node is
    /// the writer as before.
    pub async fn yield_all(&mut self, daemon: &Arc<Daemon>, hub: &Hub) -> Result<(), ApiError> {
        if let Some(giving) = self.volumes.values().find(|giving| !giving.is_prepared()) {
            return Err(ApiError::refused(format!(
                "volume '{}' cannot be handed back: the source is not prepared",
                giving.handle.record().name
            )));
        }
        let decided = match self.hold_and_send().await {
            Ok(()) => self.decide(daemon),
            Err(error) => Err(error),
        };
        if let Err(error) = decided {
            self.go_on(hub).await;
            return Err(error);
        }
        for (stream, giving) in &mut self.volumes {
            handover::say(hub, *stream, &mut giving.giver).await?;
        }
        Ok(())
    }

    async fn hold_and_send(&self) -> Result<(), ApiError> {
        for giving in self.undecided() {
            let volume = Arc::clone(&giving.handle.volume);
            let held = tokio::task::spawn_blocking(move || volume.hold(HELD_WITHIN)).await;
            if !held.map_err(ApiError::internal)?? {
                return Err(ApiError::refused(format!(
                    "writes to volume '{}' wait for blocks of its source",
                    giving.handle.record().name
                ))
                .then("roll it back again in a moment"));
            }
        }
        // Durable there before it is given: once it is, nobody would send again what the source loses in a reboot.
        self.undecided().for_each(|giving| giving.handle.volume.flush_at_source());
        let begun = Instant::now();
        while let Some(giving) = self.undecided().find(|giving| giving.handle.volume.at_risk() > BlockCount(0)) {
            if begun.elapsed() > SENT_WITHIN {
                return Err(ApiError::refused(format!(
                    "{} written to volume '{}' could not be made durable at its source in time",
                    giving.handle.volume.at_risk().bytes(),
                    giving.handle.record().name
                ))
                .then("see the log of both nodes, and roll it back again"));
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// The commit point: "given" on record, for all of them in one moment.
    fn decide(&mut self, daemon: &Arc<Daemon>) -> Result<(), ApiError> {
        let mut decided = Vec::with_capacity(self.volumes.len());
        for giving in self.volumes.values_mut().filter(|giving| !giving.is_given()) {
            let nothing = Bitmap::new(giving.handle.volume.blocks().0);
            giving.giver.decide(handover::lacking_of(&nothing))?;
            let given =
                giving.giver.poll_record().ok_or_else(|| ApiError::internal("a decision without a record"))?;
            decided.push((&*giving.handle, (given, source_of(&giving.handle)?)));
        }
        daemon.keeper.update_all(&decided, |record, (given, source)| {
            record.handover = Some(HandoverRecord::Given(*given));
            record.standing = StandingRecord::Fenced(source.clone());
            record.epoch = given.epoch;
        })?;
        // From here on it is decided, whatever else fails: nobody writes here, for all of them are held.
        for (handle, (given, source)) in &decided {
            tracing::info!(volume = handle.record().name, epoch = given.epoch, "handed back to {source}");
            if let Err(error) = handle.volume.give_back(Epoch(given.epoch), source) {
                tracing::error!(%error, "a volume that was handed back keeps its old epoch until the next start");
            }
        }
        self.volumes.values_mut().for_each(|giving| giving.giver.recorded());
        Ok(())
    }

    /// What is not decided stays here: this node writes on.
    async fn go_on(&mut self, hub: &Hub) {
        for (stream, giving) in &mut self.volumes {
            if giving.is_given() {
                continue;
            }
            if let Err(error) = giving.handle.volume.go_on() {
                tracing::error!(%error, "the volume could not be made to go on");
            }
            // Called off, unless its record could not be written: then the machine ends with the session.
            if giving.giver.give_up().is_ok() {
                // A source that does not hear it asks again.
                let _ = handover::say(hub, *stream, &mut giving.giver).await;
            }
        }
    }

    fn undecided(&self) -> impl Iterator<Item = &Giving> {
        self.volumes.values().filter(|giving| !giving.is_given())
    }

    /// The volume is on record at the source: the copy here goes.
    pub async fn let_go(
        &mut self,
        daemon: &Arc<Daemon>,
        move_id: &str,
        volume: &str,
        epoch: u64,
    ) -> Result<(), ApiError> {
        self.volumes.retain(|_, giving| giving.handle.record().name != volume);
        let Ok(handle) = daemon.keeper.get(volume) else { return Ok(()) };
        let record = handle.record();
        if record.move_id.as_deref() != Some(move_id) {
            return Ok(());
        }
        match record.handover {
            Some(HandoverRecord::Given(given)) if given.epoch == epoch => {}
            _ => {
                return Err(ApiError::refused(format!(
                    "volume '{volume}' was not handed back at epoch {epoch}: it is {} at {} here",
                    handle.role(),
                    record.epoch
                )));
            }
        }
        handle.watcher.run(|_, plane| plane.set_carrier(Carrier::Nobody)).await?;
        handle.volume.leave()?;
        daemon.keeper.discard(&handle)
    }

    // ---- the guest ------------------------------------------------------------------------------------------

    /// How a guest of this node is built; `None` when it does not run.
    pub fn built(&self, daemon: &Arc<Daemon>, vm: &str) -> Result<Option<Built>, ApiError> {
        let Some(qemu) = daemon.vms.get(vm).ok().and_then(|vm| vm.qemu()) else { return Ok(None) };
        // It would come back by QEMU's own migration: better refused while nothing has been given.
        refuse_if_qemu_loses_pages(&qemu)?;
        let (spec, resolved) = built(&qemu)?;
        Ok(Some(Built { spec, resolved }))
    }

    /// Begins to send a guest.
    pub async fn send_guest(&mut self, daemon: &Arc<Daemon>, hub: &Hub, vm: &str) -> Result<(), ApiError> {
        let handle = daemon.vms.get(vm)?;
        self.guest = Some((vm.to_string(), Transfer::send(hub, handle).await?));
        Ok(())
    }

    /// Whether the guest stands; waits a tenth of a second for it.
    pub async fn is_standing(&mut self) -> Result<bool, ApiError> {
        let (_, transfer) = self.guest.as_mut().ok_or_else(nobody)?;
        transfer.urge().await?;
        transfer.is_standing().await
    }

    /// Sends the rest.
    pub async fn send_rest(&mut self) -> Result<(), ApiError> {
        self.guest.as_mut().ok_or_else(nobody)?.1.send_rest().await
    }

    /// The guest stays here after all.
    pub async fn keep_guest(&mut self) -> Result<(), ApiError> {
        match self.guest.take() {
            Some((_, transfer)) => transfer.keep().await,
            None => Ok(()),
        }
    }

    /// The guest lives elsewhere: its QEMU ends.
    pub async fn end_guest(&mut self, daemon: &Arc<Daemon>, vm: &str) -> Result<(), ApiError> {
        if daemon.vms.get(vm).is_ok() {
            let (vms, vm) = (Arc::clone(&daemon.vms), vm.to_string());
            tokio::task::spawn_blocking(move || vms.remove(&vm)).await.map_err(ApiError::internal)??;
        }
        self.guest = None;
        Ok(())
    }

    /// The session is over: what was not decided has not happened. A guest whose volumes have gone cannot run here.
    pub async fn end(&mut self, daemon: &Arc<Daemon>) {
        let Some((vm, transfer)) = self.guest.take() else { return };
        let ended = if self.volumes.values().any(Giving::is_given) {
            tracing::error!(vm, "the link was lost in the midst of the switch back: the guest starts from its disk");
            self.end_guest(daemon, &vm).await
        } else {
            transfer.keep().await
        };
        if let Err(error) = ended {
            tracing::error!(vm, %error, "a guest that was being sent");
        }
    }
}

impl Giving {
    fn is_prepared(&self) -> bool {
        self.is_given() || self.giver.state() == GiverState::Ready
    }

    fn is_given(&self) -> bool {
        matches!(self.giver.state(), GiverState::Given | GiverState::Done)
    }
}

/// The node that a volume which drains came from.
fn source_of(handle: &VolumeHandle) -> Result<String, ApiError> {
    match handle.record().standing {
        StandingRecord::Draining(source) => Ok(source.node),
        _ => Err(ApiError::internal("a volume that does not drain was handed back")),
    }
}

fn nobody() -> ApiError {
    ApiError::refused("no guest is being sent in this session")
}
