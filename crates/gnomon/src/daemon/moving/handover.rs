//! Driving the handover of a volume's epoch: the machines of gnomon-proto, with records, frames and the gate.
//!
//! The order is the point: the giver fences its writes, then writes "given" down, then says so; the taker forgets
//! what it lacks, then writes "taken" down, then opens its gate, then says so.

use std::{sync::Arc, time::Duration};

use gnomon_proto::{
    bitmap::Bitmap,
    frame::{Message, Step, Stream},
    handover::{Given, Giver, GiverState, Lacking, Taker, TakerRecord, TakerState},
};
use gnomon_terms::Epoch;
use gnomon_volume::{disk::Disk, mover::Mover};

use super::{
    hub::{Hub, Inbox},
    maps, rollback,
    rpc::lost,
};
use crate::{
    api::ApiError,
    daemon::{
        Daemon,
        keeper::{Keeper, VolumeHandle},
        records::{HandoverRecord, StandingRecord},
    },
};

/// How long the other node may take to answer a step: a sync of its store takes milliseconds.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Whether this node has given the volume away and the other may not know it yet.
pub fn is_open(handle: &VolumeHandle) -> bool {
    matches!(handle.record().handover, Some(HandoverRecord::Given(_)))
}

/// Asks the destination whether it can take over. Nothing changes by that; done while the guest still runs, so that
/// neither the question nor most of the flush that [`give`] makes costs it anything.
pub async fn prepare(hub: &Hub, inbox: &mut Inbox, handle: &VolumeHandle, stream: Stream) -> Result<Giver, ApiError> {
    let local = Arc::clone(handle.volume.local());
    tokio::task::spawn_blocking(move || local.flush()).await.map_err(ApiError::internal)??;
    let mut giver = Giver::new(handle.record().epoch());
    giver.begin()?;
    say(hub, stream, &mut giver).await?;
    while giver.state() == GiverState::Asked {
        hear(hub, inbox, stream, &mut giver).await?;
    }
    match giver.state() {
        GiverState::Ready => Ok(giver),
        _ => Err(ApiError::refused(format!("node {} will not take the volume over", hub.session().peer()))),
    }
}

/// A volume that is about to be given away.
pub struct Gift<'a> {
    /// The volume.
    pub handle: &'a VolumeHandle,
    /// Its engine.
    pub mover: &'a Mover,
    /// Its handover, prepared.
    pub giver: Giver,
}

impl Gift<'_> {
    /// No write passes from here on, and what is owed stays as it is.
    fn hold(&self, to: &str) -> Result<(), ApiError> {
        self.handle.volume.fence(self.handle.record().epoch(), to)?;
        self.mover.hand_over(self.giver.epoch());
        Ok(())
    }

    /// This node is the writer as before.
    fn let_go(&self) -> Result<(), ApiError> {
        self.mover.take_back(self.handle.record().epoch());
        Ok(self.handle.volume.unfence()?)
    }
}

/// Gives volumes away, all of them or none: those of one guest change hands in one moment. When this returns `Ok` it is
/// decided and this node never writes again at their epochs; on `Err` it is the writer of all as before.
pub fn give(daemon: &Daemon, gifts: &mut [Gift<'_>], to: &str) -> Result<(), ApiError> {
    for held in 0..gifts.len() {
        if let Err(error) = gifts[held].hold(to) {
            gifts[..held].iter().try_for_each(Gift::let_go)?;
            return Err(error);
        }
    }
    match flush(gifts).and_then(|()| decide(daemon, gifts, to)) {
        Ok(()) => gifts.iter().try_for_each(|gift| Ok(gift.handle.volume.fence(gift.giver.epoch(), to)?)),
        Err(error) => {
            gifts.iter().try_for_each(Gift::let_go)?;
            Err(error)
        }
    }
}

/// What was written here is durable before anybody writes elsewhere: the destination reads it from here as it goes, and
/// its guest, which lives on, would see acknowledged writes vanish in a reboot of this host. QEMU has flushed when its
/// guest stands, so little is left to do.
fn flush(gifts: &[Gift<'_>]) -> Result<(), ApiError> {
    gifts.iter().try_for_each(|gift| Ok(gift.handle.volume.local().flush()?))
}

/// Writes "given" down for all of them at once.
fn decide(daemon: &Daemon, gifts: &mut [Gift<'_>], to: &str) -> Result<(), ApiError> {
    let mut decided = Vec::with_capacity(gifts.len());
    for gift in gifts.iter_mut() {
        gift.giver.decide(lacking_of(&owed(gift.handle)?))?;
        let given = gift.giver.poll_record().ok_or_else(|| ApiError::internal("a decision without a record"))?;
        decided.push((gift.handle, given));
    }
    daemon.keeper.update_all(&decided, |record, given| {
        record.handover = Some(HandoverRecord::Given(*given));
        record.standing = StandingRecord::Fenced(to.to_string());
        record.epoch = given.epoch;
    })?;
    gifts.iter_mut().for_each(|gift| gift.giver.recorded());
    Ok(())
}

/// Tells the destination what was decided, until it says that it is the writer, and notes that it knows.
pub async fn confirm(
    daemon: &Arc<Daemon>,
    hub: &Hub,
    inbox: &mut Inbox,
    handle: &VolumeHandle,
    stream: Stream,
) -> Result<(), ApiError> {
    tell(daemon, hub, inbox, handle, stream).await?;
    note_told(&daemon.keeper, handle)
}

/// The destination knows that it is the writer. Without this on record it is told once more in the next session.
pub fn note_told(keeper: &Keeper, handle: &VolumeHandle) -> Result<(), ApiError> {
    match is_open(handle) {
        true => keeper.update(handle, |record| record.handover = None),
        false => Ok(()),
    }
}

/// Tells the destination what was decided, until it says that it is the writer.
pub async fn tell(
    daemon: &Arc<Daemon>,
    hub: &Hub,
    inbox: &mut Inbox,
    handle: &VolumeHandle,
    stream: Stream,
) -> Result<(), ApiError> {
    let Some(HandoverRecord::Given(given)) = handle.record().handover else { return Ok(()) };
    let (given, bitmap) = as_decided(&daemon.keeper, handle, given)?;
    let mut giver = Giver::resume(given);
    while giver.state() != GiverState::Done {
        maps::send_bitmap(&hub.sender(), stream, giver.epoch(), maps::LACKING, &bitmap).await?;
        giver.connected();
        say(hub, stream, &mut giver).await?;
        hear(hub, inbox, stream, &mut giver).await?;
    }
    Ok(())
}

/// What was decided, with the bitmap that it speaks of.
///
/// After a reboot, or the loss of the map file, the map says something else than at the decision. The destination
/// would ask for the right one for ever, and nobody has it. But this node is fenced and has every block; so it is
/// decided again that *everything* is lacking there, which is right whatever was: a destination that has taken over by
/// the first decision answers so and takes no notice of the second.
fn as_decided(keeper: &Keeper, handle: &VolumeHandle, given: Given) -> Result<(Given, Bitmap), ApiError> {
    let bitmap = owed(handle)?;
    if lacking_of(&bitmap) == given.lacking {
        return Ok((given, bitmap));
    }
    let outbox = handle.volume.outbox().ok_or_else(|| ApiError::internal("a volume on the move has no outbox"))?;
    outbox.map().set(outbox.map().whole());
    let bitmap = owed(handle)?;
    let again = Given { lacking: lacking_of(&bitmap), ..given };
    tracing::warn!(
        volume = handle.record().name,
        decided = given.lacking.count,
        "the map of what the destination lacks is not that of the handover any more: all of it is sent again"
    );
    keeper.update(handle, |record| record.handover = Some(HandoverRecord::Given(again)))?;
    Ok((again, bitmap))
}

/// What the destination lacks: everything that is owed.
fn owed(handle: &VolumeHandle) -> Result<Bitmap, ApiError> {
    let outbox = handle.volume.outbox().ok_or_else(|| ApiError::internal("a volume on the move has no outbox"))?;
    Ok(maps::of_map(outbox.map()))
}

/// A bitmap as a commit speaks of it.
pub fn lacking_of(bitmap: &Bitmap) -> Lacking {
    Lacking { count: bitmap.count(), check: bitmap.check() }
}

/// Sends what the giver has to say.
pub async fn say(hub: &Hub, stream: Stream, giver: &mut Giver) -> Result<(), ApiError> {
    if let Some(step) = giver.poll_transmit() {
        send(hub, stream, giver.epoch(), step).await?;
    }
    Ok(())
}

/// Waits for one step of the destination.
async fn hear(hub: &Hub, inbox: &mut Inbox, stream: Stream, giver: &mut Giver) -> Result<(), ApiError> {
    let peer = hub.session().peer().to_string();
    let message = tokio::time::timeout(ANSWER_WITHIN, inbox.control.recv())
        .await
        .map_err(|_| lost(&peer, "it did not answer in the midst of the switch"))?
        .ok_or_else(|| lost(&peer, "the link ended"))?;
    if let Message::Handover { stream: of, epoch, step } = message
        && of == stream
    {
        giver.hear(epoch, step);
    }
    Ok(())
}

async fn send(hub: &Hub, stream: Stream, epoch: Epoch, step: Step) -> Result<(), ApiError> {
    let message = Message::Handover { stream, epoch, step };
    hub.sender().send(message).await.map_err(|error| lost(hub.session().peer(), &error.to_string()))
}

/// The receiving side of one volume's handover.
pub struct Receiver {
    stream: Stream,
    taker: Taker,
    /// The bitmap of the handover under way, and the epoch it came for.
    lacking: (Epoch, Bitmap),
}

impl Receiver {
    /// Goes on where the record says.
    pub fn resume(handle: &VolumeHandle, stream: Stream) -> Receiver {
        let record = handle.record();
        let taker = match record.handover {
            Some(HandoverRecord::Taker(known)) => Taker::resume(known),
            _ => Taker::new(record.epoch()),
        };
        Receiver { stream, taker, lacking: (Epoch(0), Bitmap::new(handle.volume.blocks().0)) }
    }

    /// Where its machine is.
    pub fn state(&self) -> TakerState {
        self.taker.state()
    }

    /// Takes in a bitmap or a step, and answers.
    pub async fn take_in(
        &mut self,
        daemon: &Arc<Daemon>,
        handle: &Arc<VolumeHandle>,
        hub: &Hub,
        message: Message,
    ) -> Result<(), ApiError> {
        match message {
            Message::Bitmap { epoch, which: maps::LACKING, extent, bits, .. } => {
                if self.lacking.0 != epoch {
                    self.lacking = (epoch, Bitmap::new(handle.volume.blocks().0));
                }
                self.lacking.1.adopt(extent, &bits)?;
            }
            Message::Bitmap { which: maps::ZERO, extent, bits, .. } => note_zeroes(handle, extent, &bits)?,
            Message::Handover { epoch, step: Step::Abort, .. } => {
                if self.taker.hear_abort(epoch) {
                    daemon.keeper.update(handle, |record| record.handover = None)?;
                }
            }
            Message::Handover { epoch, step, .. } => {
                if step == Step::Prepare {
                    self.lacking = (epoch, Bitmap::new(handle.volume.blocks().0));
                }
                let have = (self.lacking.0 == epoch || matches!(step, Step::Commit { lacking: 0, .. }))
                    .then(|| lacking_of(&self.lacking.1));
                self.taker.hear(epoch, step, have);
                self.write_down(daemon, handle)?;
            }
            other => tracing::warn!(kind = %other.kind(), "no part of a handover"),
        }
        if let Some(step) = self.taker.poll_transmit() {
            send(hub, self.stream, self.taker.epoch(), step).await?;
        }
        Ok(())
    }

    /// Makes durable what the machine asks for, and becomes the writer when that is it.
    fn write_down(&mut self, daemon: &Arc<Daemon>, handle: &Arc<VolumeHandle>) -> Result<(), ApiError> {
        let Some(known) = self.taker.poll_record() else { return Ok(()) };
        if let (TakerRecord::Taken(epoch), StandingRecord::Fenced(_)) = (known, handle.record().standing) {
            rollback::take_back(daemon, handle, Epoch(epoch), &self.lacking.1)?;
        } else if let TakerRecord::Taken(epoch) = known {
            handle.volume.forget(Epoch(epoch), &maps::runs(&self.lacking.1))?;
            daemon.keeper.update(handle, |record| {
                record.epoch = epoch;
                record.handover = Some(HandoverRecord::Taker(known));
                if let StandingRecord::Shadow(source) = record.standing.clone() {
                    record.standing = StandingRecord::Draining(source);
                }
            })?;
            handle.volume.activate(Epoch(epoch))?;
        } else {
            daemon.keeper.update(handle, |record| record.handover = Some(HandoverRecord::Taker(known)))?;
        }
        self.taker.recorded();
        Ok(())
    }
}

/// Blocks that are zero at the source are there already: a fresh copy reads as zeroes everywhere.
fn note_zeroes(handle: &VolumeHandle, extent: gnomon_terms::Extent, bits: &[u8]) -> Result<(), ApiError> {
    let fresh = matches!(handle.record().standing, StandingRecord::Shadow(_));
    let Some(valid) = handle.volume.valid().filter(|_| fresh) else { return Ok(()) };
    let mut zero = Bitmap::new(handle.volume.blocks().0);
    zero.adopt(extent, bits)?;
    for run in maps::runs(&zero) {
        valid.set(run);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use gnomon_store::MemStore;

    use super::*;
    use crate::daemon::{records::Records, teacher::Learning};

    #[tokio::test]
    async fn a_map_that_is_not_the_decided_one_becomes_everything_and_is_taken() {
        let dir = tempfile::tempdir().expect("a folder");
        let records = Arc::new(Records::new(Arc::new(MemStore::default())));
        let keeper = Keeper::open(dir.path(), &dir.path().join("nbd"), Arc::clone(&records), Learning::default())
            .expect("a keeper");
        let handle = keeper.create("data", 64 * 4096, &Default::default()).expect("a volume");
        handle.volume.begin_shadow().expect("a shadow");
        let owe = |first, len| handle.volume.outbox().expect("an outbox").owe(gnomon_terms::Extent::new(first, len));
        let whole = gnomon_terms::Extent::new(0, 64);
        handle.volume.outbox().expect("an outbox").acknowledge(whole);
        owe(3, 5);
        let given = Given { epoch: 2, lacking: lacking_of(&owed(&handle).expect("a map")) };
        let same = as_decided(&keeper, &handle, given).expect("the same");
        assert_eq!((same.0, same.1.count()), (given, 5), "nothing has happened to it");
        owe(40, 1);
        let (again, bitmap) = as_decided(&keeper, &handle, given).expect("decided again");
        assert_eq!((bitmap.count(), again.epoch, again.lacking), (64, 2, lacking_of(&bitmap)));
        let kept = records.volumes().expect("records")[0].handover;
        assert_eq!(kept, Some(HandoverRecord::Given(again)), "it is on record before it is said");
        // What the destination makes of it: a promise is kept with the new map, and what was taken stays taken.
        for (record, expect) in
            [(TakerRecord::Prepared(2), TakerState::Taking), (TakerRecord::Taken(2), TakerState::Taken)]
        {
            let mut taker = Taker::resume(record);
            let Lacking { count, check } = again.lacking;
            taker.hear(Epoch(2), Step::Commit { lacking: count, check }, Some(lacking_of(&bitmap)));
            assert_eq!(taker.state(), expect);
        }
    }
}
