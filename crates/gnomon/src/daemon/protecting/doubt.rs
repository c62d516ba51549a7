//! A shadow that is alone asks whether it is still wanted: its primary may have been told to unprotect the VM while this
//! node was away. A primary that cannot be reached leaves it as it is: it may be dead, and this is the moment for which
//! there is a shadow.

use std::{sync::Arc, time::Duration};

use super::{blocking, ended::one_question, rpc::Ask, shadow::Keeping};
use crate::daemon::Daemon;

/// How often it asks. The primary begins a session by itself within half a second.
const ASK_EVERY: Duration = Duration::from_secs(2);

/// Whether this node still wants the shadow of a protection.
pub fn is_wanted(daemon: &Arc<Daemon>, id: &str, vm: &str) -> bool {
    daemon.protections.get(vm).is_some_and(|shared| shared.record.lock().id == id)
}

/// Asks until there is a session again, or it is not wanted, or is no shadow any more.
pub fn ask_when_alone(daemon: &Arc<Daemon>, keeping: &Arc<Keeping>) {
    let (daemon, keeping) = (Arc::clone(daemon), Arc::clone(keeping));
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(ASK_EVERY).await;
            let record = keeping.record().clone();
            let is_kept = daemon.shadows.get(&record.vm).is_some_and(|known| Arc::ptr_eq(&known, &keeping));
            if !is_kept || keeping.is_connected() {
                return;
            }
            let question = Ask::Wanted { id: record.id.clone(), vm: record.vm.clone() };
            match one_question::<bool>(&daemon, &record.from, question).await {
                Ok(true) => {}
                Ok(false) => {
                    let (forgetter, keeping) = (Arc::clone(&daemon), Arc::clone(&keeping));
                    if let Err(error) = blocking(move || forgetter.shadows.forget(&forgetter, &keeping)).await {
                        tracing::error!(vm = record.vm, %error, "its shadow is not wanted and could not be removed");
                    }
                    return;
                }
                Err(error) => tracing::debug!(vm = record.vm, %error, "node {} cannot be asked", record.from),
            }
        }
    });
}
