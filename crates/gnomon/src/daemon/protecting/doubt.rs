//! A shadow that is alone asks whether it is still wanted: its primary may have been told to unprotect the VM while this
//! node was away, or another of the VM's shadows may have taken over. A primary that cannot be reached leaves it as it is:
//! it may be dead, and this is the moment for which there is a shadow.

use std::{sync::Arc, time::Duration};

use super::{
    blocking,
    ended::one_question,
    rpc::{Ask, Fate},
    shadow::Keeping,
    story::Story,
};
use crate::{api::ApiError, daemon::Daemon};

/// How often it asks. The primary begins a session by itself within half a second.
const ASK_EVERY: Duration = Duration::from_secs(2);

/// Whether this node still wants the shadow of a protection that the node called `from` keeps.
pub fn is_wanted(daemon: &Arc<Daemon>, from: &str, id: &str, vm: &str) -> bool {
    daemon.protections.get(vm).is_some_and(|family| family.id == id && family.member(from).is_some())
}

/// Asks until there is a session again, or it is not wanted, or is no shadow any more.
pub fn ask_when_alone(daemon: &Arc<Daemon>, keeping: &Arc<Keeping>) {
    let (daemon, keeping) = (Arc::clone(daemon), Arc::clone(keeping));
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(ASK_EVERY).await;
            let record = keeping.record();
            let is_kept = daemon.shadows.get(&record.vm).is_some_and(|known| Arc::ptr_eq(&known, &keeping));
            if !is_kept || keeping.is_connected() {
                return;
            }
            if let Some(by) = who_took_over(&daemon, &keeping).await {
                if let Err(error) = drop_for(&daemon, Arc::clone(&keeping), &by).await {
                    tracing::error!(vm = record.vm, %error, "its shadow is of no use and could not be removed");
                }
                return;
            }
            let question = Ask::Wanted { id: record.id.clone(), vm: record.vm.clone() };
            match one_question::<bool>(&daemon, &record.from, question).await {
                Ok(true) => {}
                Ok(false) => {
                    let (forgetter, unwanted) = (Arc::clone(&daemon), Arc::clone(&keeping));
                    if let Err(error) = blocking(move || forgetter.shadows.forget(&forgetter, &unwanted)).await {
                        tracing::error!(vm = record.vm, %error, "its shadow is not wanted and could not be removed");
                    }
                    return;
                }
                Err(error) => tracing::debug!(vm = record.vm, %error, "node {} cannot be asked", record.from),
            }
        }
    });
}

/// The node of another shadow that has taken over, as that node says.
async fn who_took_over(daemon: &Arc<Daemon>, keeping: &Keeping) -> Option<String> {
    for node in keeping.siblings() {
        let question = Ask::Fate { id: keeping.record().id.clone() };
        if let Ok(Fate::Promoted { .. }) = one_question(daemon, &node, question).await {
            return Some(node);
        }
    }
    None
}

/// The guest lives at another node: the shadow here is dropped, and that is told.
pub async fn drop_for(daemon: &Arc<Daemon>, keeping: Arc<Keeping>, by: &str) -> Result<(), ApiError> {
    let story = Story::new(daemon, &keeping.record().vm, by);
    let forgetter = Arc::clone(daemon);
    blocking(move || forgetter.shadows.forget(&forgetter, &keeping)).await?;
    story.gone_elsewhere(by);
    Ok(())
}
