//! A primary whose guest is gone: its QEMU has ended, or the shadow's node runs it by now.
//!
//! A guest whose QEMU has ended is not started again by itself: it may have powered off, and its shadow has what it had.
//! Until the operator says what is to be done (`unprotect` here, `failover` there), the shadow's node is asked now and
//! then whether it has taken over.

use std::{sync::Arc, time::Duration};

use super::{
    ask, blocking, guarding,
    rpc::{Ask, Fate, Yielded},
    shared::{Order, Shared},
    story::Story,
    volumes::Volumes,
};
use crate::{
    api::ApiError,
    daemon::{Daemon, moving::hub::Hub, records::ProtectRecord},
};

/// How often the shadow's node is asked.
const ASK_EVERY: Duration = Duration::from_secs(2);
/// How long a node may take to be reached and to answer a question that others wait for.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// Looks after a protection whose guest does not run here.
pub async fn stand_by(daemon: Arc<Daemon>, shared: Arc<Shared>, story: Story) {
    shared.pulse.ended();
    story.guest_ended();
    let mut orders = shared.order.subscribe();
    loop {
        let record = shared.record.lock().clone();
        let order = orders.borrow_and_update().clone();
        match order {
            Order::End => {
                tell_unwanted(&daemon, &record).await;
                if let Err(error) = forget(&daemon, &shared, &story).await {
                    tracing::error!(vm = record.vm, %error, "its protection is still on record");
                }
                return daemon.protections.over(&shared);
            }
            Order::GivenUp => return daemon.protections.over(&shared),
            Order::Rest => return,
            Order::Lost => {
                let lost = given_up(&daemon, &shared, record.epoch + 1).await;
                lost.unwrap_or_else(|error| tracing::error!(vm = record.vm, %error, "it could not be given up"));
                return daemon.protections.over(&shared);
            }
            Order::Switch(job) => {
                shared.switch_begins();
                job.finish(Err(ApiError::refused(format!("VM '{}' does not run", record.vm)).then(format!(
                    "go on with its shadow: `gnomon vm failover {}` on node {}",
                    record.vm, record.to
                ))));
            }
            Order::None => {}
        }
        if let Ok(Fate::Promoted { epoch }) = fate(&daemon, &record).await {
            if let Err(error) = given_up(&daemon, &shared, epoch).await {
                tracing::error!(vm = record.vm, %error, "it could not be given up");
            }
            return daemon.protections.over(&shared);
        }
        tokio::select! {
            () = tokio::time::sleep(ASK_EVERY) => {}
            _ = orders.changed() => {}
        }
    }
}

/// It is not a shadow of the VM any more: nothing is left of it here; when it was the last one, nothing of the protection.
pub async fn forget(daemon: &Arc<Daemon>, shared: &Arc<Shared>, story: &Story) -> Result<(), ApiError> {
    let (record, family) = (shared.record.lock().clone(), Arc::clone(&shared.family));
    let is_last = family.leave(shared);
    match family.guard() {
        Some(_) if is_last => guarding::end(&family).await,
        Some(guard) => {
            let node = record.to.clone();
            blocking(move || guard.strike_off(&node)).await?;
        }
        None => {}
    }
    Volumes::of(daemon, &record)?.end(&daemon.keeper, is_last)?;
    daemon.records.remove_protection(&record.vm, &record.to)?;
    family.leave_behind(&record.to);
    story.unprotected();
    Ok(())
}

/// What became of a protection at the shadow's node.
pub async fn fate(daemon: &Arc<Daemon>, record: &ProtectRecord) -> Result<Fate, ApiError> {
    one_question(daemon, &record.to, Ask::Fate { id: record.id.clone() }).await
}

/// Tells the shadow's node that the shadow is not wanted any more. One that cannot be reached finds out by asking.
pub async fn tell_unwanted(daemon: &Arc<Daemon>, record: &ProtectRecord) {
    let told = one_question::<()>(daemon, &record.to, Ask::Forget { id: record.id.clone() }).await;
    if let Err(error) = told {
        tracing::warn!(vm = record.vm, %error, "node {} still has its shadow, until it can ask here", record.to);
    }
}

/// Tells the nodes of shadows that the guest lives at another node by now. One that cannot be reached finds out by asking.
pub fn tell_superseded(daemon: &Arc<Daemon>, id: &str, nodes: Vec<String>, by: &str) {
    for node in nodes {
        let (daemon, question) = (Arc::clone(daemon), Ask::Superseded { id: id.to_string(), by: by.to_string() });
        tokio::spawn(async move {
            if let Err(error) = one_question::<()>(&daemon, &node, question).await {
                tracing::warn!(%error, "node {node} still has its shadow, until it can ask");
            }
        });
    }
}

/// Asks a node one question in a session of its own.
pub async fn one_question<A: serde::de::DeserializeOwned>(
    daemon: &Arc<Daemon>,
    node: &str,
    question: Ask,
) -> Result<A, ApiError> {
    let late = || ApiError::unavailable(format!("node {node} did not answer within {ANSWER_WITHIN:?}"));
    let asked = async {
        let (hub, _inbox) = Hub::start(daemon.dial(node).await?);
        let answer = ask(&hub.rpc, question).await;
        hub.end("the question is answered").await;
        answer
    };
    tokio::time::timeout(ANSWER_WITHIN, asked).await.map_err(|_| late())?
}

/// The shadow's node runs the guest from this epoch on: a QEMU that is here is ended before anything of it can be
/// written, its volumes are lost, and the record of the VM says so. What it did since its last checkpoint is lost, and the
/// operator who had the shadow take over has said so. Drivers of its other shadows end.
pub async fn given_up(daemon: &Arc<Daemon>, shared: &Arc<Shared>, epoch: u64) -> Result<(), ApiError> {
    let (daemon, record, family) = (Arc::clone(daemon), shared.record.lock().clone(), Arc::clone(&shared.family));
    let nodes = family.nodes();
    tracing::error!(vm = record.vm, epoch, "its shadow at node {} has taken over: it is given up here", record.to);
    blocking(move || {
        daemon.vms.lose(&record.vm, &lost_words(&record, epoch))?;
        Volumes::of(&daemon, &record)?.lose(&daemon.keeper, &record.to)?;
        nodes.iter().try_for_each(|node| daemon.records.remove_protection(&record.vm, node))?;
        Story::new(&daemon, &record.vm, &record.to).lost_to_shadow(epoch);
        daemon.balancing.arrive(&record.vm, &record.to);
        Ok(())
    })
    .await?;
    family.give_up_others(shared);
    Ok(())
}

fn lost_words(record: &ProtectRecord, epoch: u64) -> String {
    format!(
        "lost: its shadow at node {} took over at epoch {epoch}; `gnomon vm stop {}` forgets it here",
        record.to, record.vm
    )
}

/// The shadow's node wants to take over, its operator having said that this node is fenced. While the guest runs here it
/// is not; when it does not, it is given up for good to the node called `from`.
pub async fn yield_to_shadow(
    daemon: &Arc<Daemon>,
    from: &str,
    id: &str,
    vm: &str,
    epoch: u64,
) -> Result<Yielded, ApiError> {
    let family = daemon.protections.get(vm).filter(|family| family.id == id);
    let Some(shared) = family.and_then(|family| family.member(from)) else { return Ok(Yielded::Unknown) };
    if daemon.vms.get(vm).is_ok_and(|vm| vm.qemu().is_some() || vm.is_unreachable()) {
        return Ok(Yielded::Runs);
    }
    given_up(daemon, &shared, epoch).await?;
    if let Some(guard) = shared.family.guard() {
        blocking(move || guard.let_go()).await?;
    }
    shared.order.send_replace(Order::GivenUp);
    Ok(Yielded::GaveUp)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_vm_says_where_it_is_and_what_to_do() {
        let record = ProtectRecord {
            id: "a-1-1".into(),
            vm: "web".into(),
            to: "b".into(),
            interval_ms: None,
            epoch: 1,
            volumes: Vec::new(),
            given: None,
            strict: false,
            exposed: false,
            lease_s: None,
            term: None,
            generation: 0,
        };
        let words = lost_words(&record, 2);
        assert!(words.contains("node b") && words.contains("epoch 2") && words.contains("vm stop web"), "{words}");
    }
}
