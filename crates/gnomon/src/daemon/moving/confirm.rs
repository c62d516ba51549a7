//! The end of a move whose source is gone for good: the destination, which has every block, is the writer without it.
//!
//! ```text
//!   operator ── confirm, "I have fenced a" ──► b: whole? · note and record durable · gate: Primary at e+2
//!   a returns, fenced or promoted ◄── overruled ── b
//! ```
//! Nobody here can tell a dead node from a cut cable: the operator says that the source is fenced, by naming it, and a
//! source that answers is not. Until it has been told, the operator's word is all that keeps it from writing, if it was
//! promoted before it was lost. One that was not is fenced by its own record, and learns it in its next session.
//!
//! The epoch is the next but one: past the one at which the source would be promoted ([`super::rollback`]), so that of
//! the two the node that was confirmed has the newer one, and the other yields.

use std::{sync::Arc, time::Duration};

use gnomon_terms::{BlockCount, Epoch};

use super::{doubt, hub::Hub, rollback, rpc::Ask};
use crate::{
    api::{
        ApiError, Kind,
        types::{Confirm, VolumeView},
    },
    daemon::{
        Daemon,
        keeper::VolumeHandle,
        records::{ConfirmedRecord, SourceRecord, StandingRecord},
    },
};

/// How long to wait before a source that is gone is called again: nobody expects it back.
const TELL_AGAIN: Duration = Duration::from_secs(5);

/// The source may have been promoted at the next epoch.
const PAST_PROMOTION: u64 = 2;

// ---- at the destination ------------------------------------------------------------------------------------------

/// Makes this node the primary of a volume that drains, without its source.
pub async fn volume(daemon: &Arc<Daemon>, name: &str, ask: &Confirm) -> Result<VolumeView, ApiError> {
    let handle = daemon.keeper.get(name)?;
    let (source, move_id) = drained_from(&handle)?;
    if ask.fenced != source.node {
        return Err(ApiError::refused(format!("the move came from node '{}', not '{}'", source.node, ask.fenced))
            .then(format!("make sure that '{0}' cannot write, then name it with --i-have-fenced", source.node)));
    }
    refuse_unless_whole(&handle, &source.node)?;
    if daemon.moves.is_served(&move_id) || doubt::ask(daemon, &source.node, &move_id).await.is_ok() {
        return Err(is_there(&source.node));
    }
    let turn = daemon.moves.try_enter(&move_id).ok_or_else(|| is_there(&source.node))?;
    let taken = take_for_good(daemon, &handle).await;
    drop(turn);
    match taken {
        Ok(confirmed) => tell(daemon, confirmed),
        Err(error) => {
            // Whoever asks the source has seen the turn taken, and believed that it had come.
            doubt::ask_when_alone(daemon, &handle);
            return Err(error);
        }
    }
    Ok(daemon.keeper.view(&handle))
}

/// The source of a volume that drains here, and its move.
fn drained_from(handle: &VolumeHandle) -> Result<(SourceRecord, String), ApiError> {
    let record = handle.record();
    match (record.standing, record.move_id) {
        (StandingRecord::Draining(source), Some(move_id)) => Ok((source, move_id)),
        _ => Err(ApiError::refused(format!("volume '{}' is {} here", record.name, handle.role()))
            .then("only the destination of a move that has switched can be confirmed without its source")),
    }
}

fn is_there(node: &str) -> ApiError {
    ApiError::refused(format!("node '{node}' answers: it is neither gone nor fenced"))
        .then("let the move go on: it ends by itself")
}

fn refuse_unless_whole(handle: &VolumeHandle, source: &str) -> Result<(), ApiError> {
    let missing = handle.volume.missing();
    if missing == BlockCount(0) {
        return Ok(());
    }
    let (name, size) = (handle.record().name, handle.volume.size());
    Err(ApiError::refused(format!(
        "{} of the {size} of volume '{name}' are only at node '{source}'",
        missing.bytes()
    ))
    .then(format!(
        "bring '{source}' back, if only for as long as the move takes: it goes on by itself; what is here can be \
             read meanwhile, as `gnomon volume export {name}` says"
    )))
}

/// Becomes the primary. While this runs no session of the move does.
async fn take_for_good(daemon: &Arc<Daemon>, handle: &Arc<VolumeHandle>) -> Result<ConfirmedRecord, ApiError> {
    // Looked at again: a session may have come and gone.
    let (source, move_id) = drained_from(handle)?;
    refuse_unless_whole(handle, &source.node)?;
    rollback::quiet(handle).await?;
    let (daemon, handle) = (Arc::clone(daemon), Arc::clone(handle));
    let take = move || {
        handle.volume.make_whole()?;
        let record = handle.record();
        let epoch = record.epoch + PAST_PROMOTION;
        let confirmed = ConfirmedRecord { move_id, volume: record.name, source: source.node, epoch, is_told: false };
        // First that the move has ended so: without it a source that returns would ask for a move that nobody knows.
        daemon.records.put_confirmed(&confirmed)?;
        daemon.keeper.update(&handle, |record| {
            record.epoch = epoch;
            record.standing = StandingRecord::Primary;
            record.move_id = None;
            record.handover = None;
        })?;
        handle.volume.outlive(Epoch(epoch))?;
        tracing::warn!(volume = confirmed.volume, epoch, "confirmed as primary without node {}", confirmed.source);
        Ok(confirmed)
    };
    tokio::task::spawn_blocking(take).await.map_err(ApiError::internal)?
}

/// The epoch at which a volume was confirmed without the source of this move.
pub fn confirmed_at(daemon: &Daemon, move_id: &str, volume: &str) -> Result<Option<u64>, ApiError> {
    // A note without its deed is of a daemon that died between the two: the move is still on.
    let is_still_on =
        daemon.keeper.get(volume).is_ok_and(|handle| handle.record().move_id.as_deref() == Some(move_id));
    let mut all = daemon.records.confirmed()?.into_iter();
    let found = all.find(|confirmed| confirmed.move_id == move_id && confirmed.volume == volume);
    Ok(found.filter(|_| !is_still_on).map(|confirmed| confirmed.epoch))
}

/// Sources that have not been told are called again.
pub fn resume(daemon: &Arc<Daemon>) -> Result<(), ApiError> {
    for confirmed in daemon.records.confirmed()?.into_iter().filter(|confirmed| !confirmed.is_told) {
        if confirmed_at(daemon, &confirmed.move_id, &confirmed.volume)?.is_some() {
            tell(daemon, confirmed);
        }
    }
    Ok(())
}

/// Calls the source until it has understood that it is not the writer.
fn tell(daemon: &Arc<Daemon>, confirmed: ConfirmedRecord) {
    let daemon = Arc::clone(daemon);
    tokio::spawn(async move {
        loop {
            match call(&daemon, &confirmed).await {
                Ok(true) => break,
                Ok(false) => {}
                Err(error) if error.kind == Kind::NotFound => return,
                Err(error) => tracing::debug!(volume = confirmed.volume, %error, "its source is still gone"),
            }
            tokio::time::sleep(TELL_AGAIN).await;
        }
        if let Err(error) = daemon.records.put_confirmed(&ConfirmedRecord { is_told: true, ..confirmed }) {
            tracing::warn!(%error, "a source that knows will be told again after the next start");
        }
    });
}

async fn call(daemon: &Arc<Daemon>, confirmed: &ConfirmedRecord) -> Result<bool, ApiError> {
    let (hub, _inbox) = Hub::start(daemon.dial(&confirmed.source).await?);
    let ConfirmedRecord { move_id, volume, epoch, .. } = confirmed.clone();
    let understood = hub.rpc.ask(&Ask::Overruled { move_id, volume, epoch }).await;
    hub.end("the source was told").await;
    understood
}

// ---- at the source -----------------------------------------------------------------------------------------------

/// The destination `peer` of a move that began here was confirmed without this node. True when nothing is left to be
/// done about it.
pub fn overruled(
    daemon: &Arc<Daemon>,
    peer: &str,
    move_id: &str,
    volume: &str,
    epoch: u64,
) -> Result<bool, ApiError> {
    if daemon.records.moves()?.iter().any(|record| record.id == move_id) {
        // Fenced: its next session says so, and ends the move.
        return Ok(false);
    }
    let was_promoted = daemon.records.undone_to(move_id)?.as_deref() == Some(peer);
    let Some(handle) = daemon.keeper.get(volume).ok().filter(|_| was_promoted) else { return Ok(true) };
    let record = handle.record();
    // With another epoch it is another volume of this name, or has been handed on by both.
    if record.epoch + 1 != epoch {
        return Ok(true);
    }
    match (record.standing, record.move_id) {
        (StandingRecord::Primary, None) => lose(daemon, &handle, peer, epoch).map(|()| true),
        (StandingRecord::Primary | StandingRecord::Shadowed, _) => {
            tracing::error!(volume, "node {peer} was confirmed as its writer, and it is being moved from here");
            Ok(false)
        }
        _ => Ok(true),
    }
}

/// This node was promoted, and the other confirmed, each because the operator said that the other was fenced: the newer
/// epoch writes on.
fn lose(daemon: &Arc<Daemon>, handle: &VolumeHandle, peer: &str, epoch: u64) -> Result<(), ApiError> {
    tracing::error!(
        volume = handle.record().name,
        "node {peer} was confirmed as its writer while this node was away: what was written here since the rollback is \
         in the copy here and nowhere else, until `gnomon volume rm` frees it"
    );
    handle.volume.fence(Epoch(epoch), peer)?;
    daemon.keeper.update(handle, |record| {
        record.epoch = epoch;
        record.standing = StandingRecord::Lost(peer.to_string());
    })
}
