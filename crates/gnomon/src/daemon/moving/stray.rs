//! Spare copies whose move is over: a source that could not reach this node when it gave the move up has told nobody.
//!
//! Such a copy has never been the writer, so nothing is lost with it; but as long as its move is on, or may have
//! switched, it is not a user's to remove. Only the source knows.

use std::sync::Arc;

use gnomon_volume::plane::Carrier;

use super::{doubt, rpc::Fate};
use crate::{
    api::{ApiError, types::VolumeView},
    daemon::{
        Daemon,
        keeper::VolumeHandle,
        records::{HandoverRecord, StandingRecord, VolumeRecord},
    },
};

/// Removes a volume and its data; tells what it was. A spare copy goes when its source says that the move is over, or,
/// with `force`, when the source cannot be asked and the copy has never been promised to take over.
pub async fn remove(daemon: &Arc<Daemon>, name: &str, force: bool) -> Result<VolumeView, ApiError> {
    let copy = daemon.keeper.get(name).ok().and_then(|handle| Some((copy_of(&handle.record())?, handle)));
    let Some((Copy { node, move_id, promised }, handle)) = copy else {
        let daemon = Arc::clone(daemon);
        let name = name.to_string();
        return tokio::task::spawn_blocking(move || daemon.keeper.remove(&name)).await.map_err(ApiError::internal)?;
    };
    daemon.keeper.refuse_if_in_use(name)?;
    let asked = doubt::ask(daemon, &node, &move_id).await;
    if let Some(error) = why_not(name, &node, asked, promised, force) {
        return Err(error);
    }
    if daemon.moves.is_served(&move_id) {
        return Err(is_on(name, &node));
    }
    let view = daemon.keeper.view(&handle);
    discard(daemon, &handle).await?;
    Ok(view)
}

/// A spare copy that may be a stray.
struct Copy {
    node: String,
    move_id: String,
    /// Whether the source may have decided that this node is the writer.
    promised: bool,
}

fn copy_of(record: &VolumeRecord) -> Option<Copy> {
    match (&record.standing, record.move_id.clone()) {
        (StandingRecord::Shadow(source), Some(move_id)) => Some(Copy {
            node: source.node.clone(),
            move_id,
            promised: matches!(record.handover, Some(HandoverRecord::Taker(_))),
        }),
        _ => None,
    }
}

/// Why a spare copy may not go, by what its source said.
fn why_not(name: &str, node: &str, asked: Result<Fate, ApiError>, promised: bool, force: bool) -> Option<ApiError> {
    let unasked = match asked {
        Ok(Fate::On) => return Some(is_on(name, node)),
        Ok(Fate::Undone | Fate::Unknown) => return None,
        Err(error) => error,
    };
    let alone = ApiError::refused(format!(
        "volume '{name}' is a spare copy of node {node}, which cannot be asked: {unasked}"
    ));
    match (promised, force) {
        (true, _) => Some(alone.then(
            "it has promised to take over and the source may have decided so: bring that node back, then remove it",
        )),
        (false, false) => Some(alone.then("if its move is over, say --force: the volume itself is at that node")),
        (false, true) => None,
    }
}

fn is_on(name: &str, node: &str) -> ApiError {
    ApiError::refused(format!("volume '{name}' takes part in a move from node {node}"))
        .then("let the move end, or cancel it there, first")
}

/// The copy goes, as when a move is given up.
pub(super) async fn discard(daemon: &Arc<Daemon>, handle: &Arc<VolumeHandle>) -> Result<(), ApiError> {
    handle.watcher.run(|_, plane| plane.set_carrier(Carrier::Nobody)).await?;
    handle.volume.abandon()?;
    daemon.keeper.discard(handle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_goes_when_its_move_is_over_or_by_force_when_nobody_can_say() {
        let gone = || Err(ApiError::unavailable("no route"));
        let table = [
            (Ok(Fate::On), false, false, Some("cancel it there")),
            (Ok(Fate::On), false, true, Some("cancel it there")),
            (Ok(Fate::Unknown), false, false, None),
            (Ok(Fate::Unknown), true, false, None),
            (Ok(Fate::Undone), true, false, None),
            (gone(), false, false, Some("--force")),
            (gone(), false, true, None),
            (gone(), true, false, Some("promised")),
            (gone(), true, true, Some("promised")),
        ];
        for (asked, promised, force, expect) in table {
            let what = format!("{asked:?} {promised} {force}");
            let why = why_not("data", "a", asked, promised, force).map(|error| error.to_string());
            match expect {
                None => assert_eq!(why, None, "{what}"),
                Some(words) => assert!(why.is_some_and(|why| why.contains(words)), "{what}"),
            }
        }
    }
}
