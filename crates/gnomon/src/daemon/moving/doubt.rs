//! A destination that was away asks whether its move is still on.
//!
//! While it was away, the operator may have named it fenced and made the source the writer again. So a volume that
//! drains comes up unconfirmed: its writes wait until the source has opened it in a session, as it does within a
//! second when the move is on, or has said that the move was rolled back. A source that cannot be reached leaves the
//! volume in doubt: nobody else can tell, but the operator ([`super::confirm`]).

use std::{sync::Arc, time::Duration};

use super::{
    hub::Hub,
    rpc::{Ask, Fate},
};
use crate::{
    api::ApiError,
    daemon::{
        Daemon,
        keeper::VolumeHandle,
        records::{HandoverRecord, StandingRecord, VolumeRecord},
    },
};

/// How long to wait before the source is asked again: it begins a session by itself within half a second.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// What this node knows of a move that it is, or was, the source of.
pub fn fate(daemon: &Arc<Daemon>, move_id: &str) -> Result<Fate, ApiError> {
    if daemon.records.undone_to(move_id)?.is_some() {
        return Ok(Fate::Undone);
    }
    let is_on = daemon.records.moves()?.iter().any(|record| record.id == move_id);
    Ok(if is_on { Fate::On } else { Fate::Unknown })
}

/// Asks for every volume that came up without its source.
pub fn resume(daemon: &Arc<Daemon>) {
    for handle in daemon.keeper.all() {
        ask_when_alone(daemon, &handle);
    }
}

/// Asks what became of a volume's move, until a session of it has begun or it is known to have been rolled back. Does
/// nothing for volumes whose source does not have to be asked.
pub fn ask_when_alone(daemon: &Arc<Daemon>, handle: &Arc<VolumeHandle>) {
    let name = handle.record().name;
    // Each session that ends comes by here: one of them asks.
    if source_to_ask(daemon, &handle.record()).is_none() || !daemon.moves.asked.lock().insert(name.clone()) {
        return;
    }
    let (daemon, handle) = (Arc::clone(daemon), Arc::clone(handle));
    tokio::spawn(async move {
        ask_until_known(&daemon, &handle).await;
        daemon.moves.asked.lock().remove(&name);
    });
}

async fn ask_until_known(daemon: &Arc<Daemon>, handle: &Arc<VolumeHandle>) {
    loop {
        tokio::time::sleep(ASK_AGAIN).await;
        let record = handle.record();
        let Some((node, move_id)) = source_to_ask(daemon, &record) else { return };
        if daemon.moves.is_served(&move_id) {
            return;
        }
        match ask(daemon, &node, &move_id).await {
            Ok(Fate::Undone) => {
                // Nobody confirms it meanwhile, nor has since it was asked.
                let Some(_turn) = daemon.moves.try_enter(&move_id) else { continue };
                if source_to_ask(daemon, &handle.record()).is_none() {
                    return;
                }
                if let Err(error) = give_up(daemon, handle, &node) {
                    tracing::error!(volume = record.name, %error, "it could not be given up");
                }
                return;
            }
            Ok(Fate::On) => {}
            Ok(Fate::Unknown) => tracing::error!(
                volume = record.name,
                "node {node} knows nothing of its move: nothing is written here before it does"
            ),
            Err(error) => tracing::debug!(volume = record.name, %error, "node {node} cannot be asked"),
        }
    }
}

/// The source of a volume's move and the move, if this node is its destination and the volume has been handed over.
fn source_to_ask(daemon: &Arc<Daemon>, record: &VolumeRecord) -> Option<(String, String)> {
    let move_id = record.move_id.clone()?;
    match (&record.standing, record.handover) {
        (StandingRecord::Draining(source), _) => Some((source.node.clone(), move_id)),
        (StandingRecord::Fenced(node), Some(HandoverRecord::Given(_))) => {
            // A source has such a record too: then the move is its own.
            let is_own = daemon.moves.shared(&move_id).is_some();
            (!is_own).then(|| (node.clone(), move_id))
        }
        _ => None,
    }
}

/// Asks the source; fails when it does not answer.
pub(super) async fn ask(daemon: &Arc<Daemon>, node: &str, move_id: &str) -> Result<Fate, ApiError> {
    let (hub, _inbox) = Hub::start(daemon.dial(node).await?);
    let fate = hub.rpc.ask(&Ask::Fate { move_id: move_id.to_string() }).await;
    hub.end("the question is answered").await;
    fate
}

/// The source is the writer since this node was away: what was written here and not brought there is lost, and the
/// operator who rolled the move back has said so.
fn give_up(daemon: &Arc<Daemon>, handle: &Arc<VolumeHandle>, node: &str) -> Result<(), ApiError> {
    let record = handle.record();
    tracing::error!(
        volume = record.name,
        "node {node} has rolled the move back while this node was away, and is the writer: \
         `gnomon volume rm` frees the copy here"
    );
    daemon.keeper.update(handle, |record| {
        record.standing = StandingRecord::Lost(node.to_string());
        record.move_id = None;
        record.handover = None;
    })?;
    match record.standing {
        StandingRecord::Draining(_) => Ok(handle.volume.surrender(node)?),
        _ => Ok(handle.volume.leave()?),
    }
}
