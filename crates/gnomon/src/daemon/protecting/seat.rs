//! One session, as the node of a shadow sits in it: questions are answered, and frames go to the engine on a thread of
//! their own.

use std::{sync::Arc, thread};

use gnomon_link::{Session, SessionSender};
use gnomon_machine::wire::{Wire, WireClosed};
use gnomon_proto::frame::Message;
use gnomon_terms::Epoch;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use super::{
    blocking, doubt, ended,
    rpc::{Ask, Ceded, Fate, Kept},
    shadow::{Keeping, Wanted},
    takeover,
};
use crate::{
    api::ApiError,
    daemon::{Daemon, moving::hub::Hub},
};

/// The shadow's side of one session.
#[derive(Default)]
pub struct Seat {
    keeping: Option<(Arc<Keeping>, Epoch)>,
    /// Told when no frame of the session is being handled any more.
    ended: Option<oneshot::Receiver<()>>,
}

impl Seat {
    /// Answers a question of the node called `from`. `ram` is what it sends, until a shadow is kept in this session.
    pub async fn answer(
        &mut self,
        daemon: &Arc<Daemon>,
        from: &str,
        hub: &Hub,
        ram: &mut Option<mpsc::Receiver<Message>>,
        question: Ask,
    ) -> Result<Value, ApiError> {
        let answer = match question {
            Ask::Fate { id } => serde_json::to_value(fate(daemon, &id)?),
            Ask::Keep { id, epoch, spec, resolved, disks, strict, lease_s, siblings, generation } => {
                let (from, epoch, spec, wire) = (from.to_string(), Epoch(epoch), *spec, hub.wire());
                let wanted =
                    Wanted { id, from, epoch, spec, resolved, disks, strict, lease_s, siblings, generation, wire };
                serde_json::to_value(self.keep(daemon, wanted, hub, ram).await?)
            }
            Ask::StartOver => {
                let (keeping, epoch) = self.kept()?;
                serde_json::to_value(blocking(move || keeping.start_over(epoch)).await?)
            }
            Ask::Ready { checkpoint } => {
                let (daemon, keeping) = (Arc::clone(daemon), self.kept()?.0);
                serde_json::to_value(blocking(move || keeping.load(&daemon, checkpoint)).await?)
            }
            Ask::TakeOver { id, epoch } => {
                let daemon = Arc::clone(daemon);
                serde_json::to_value(blocking(move || takeover::planned(&daemon, &id, epoch)).await?)
            }
            Ask::Forget { id } => serde_json::to_value(self.forget(daemon, id).await?),
            Ask::Yield { id, vm, epoch } => {
                serde_json::to_value(ended::yield_to_shadow(daemon, from, &id, &vm, epoch).await?)
            }
            Ask::Wanted { id, vm } => serde_json::to_value(doubt::is_wanted(daemon, from, &id, &vm)),
            Ask::Siblings { id, nodes } => serde_json::to_value(siblings(daemon, from, &id, nodes).await?),
            Ask::Cede { id } => serde_json::to_value(cede(daemon, id).await?),
            Ask::Superseded { id, by } => serde_json::to_value(superseded(daemon, from, &id, &by).await?),
        };
        answer.map_err(ApiError::internal)
    }

    fn kept(&self) -> Result<(Arc<Keeping>, Epoch), ApiError> {
        self.keeping.clone().ok_or_else(|| ApiError::refused("no shadow is kept in this session"))
    }

    async fn keep(
        &mut self,
        daemon: &Arc<Daemon>,
        wanted: Wanted,
        hub: &Hub,
        ram: &mut Option<mpsc::Receiver<Message>>,
    ) -> Result<Kept, ApiError> {
        let frames = ram.take().ok_or_else(|| {
            ApiError::refused("a guest was announced already in this session").then("begin a new session")
        })?;
        let (keeper, epoch) = (Arc::clone(daemon), wanted.epoch);
        let (keeping, kept) = blocking(move || keeper.shadows.keep(&keeper, wanted)).await?;
        let (tell, ended) = oneshot::channel();
        follow_disks(hub, &keeping)?;
        let (listener, session, link) = (Arc::clone(&keeping), keeping.session(), Arc::clone(hub.session()));
        let wire = ShadowWire(hub.sender());
        thread::spawn(move || {
            listen(&listener, session, frames, &wire, &link);
            listener.end(session);
            // Nobody waits any more when the daemon ends.
            let _ = tell.send(());
        });
        (self.keeping, self.ended) = (Some((keeping, epoch)), Some(ended));
        Ok(kept)
    }

    async fn forget(&mut self, daemon: &Arc<Daemon>, id: String) -> Result<(), ApiError> {
        let Some(keeping) = daemon.shadows.by_id(&id) else { return Ok(()) };
        let daemon = Arc::clone(daemon);
        blocking(move || daemon.shadows.forget(&daemon, &keeping)).await
    }

    /// The session is over; what was sealed stays.
    pub async fn let_go(&mut self, daemon: &Arc<Daemon>) {
        if let Some(copies) = self.keeping.as_ref().and_then(|(keeping, _)| keeping.copies().ok()) {
            // First, for who handles a frame may wait for what will not come.
            copies.end();
        }
        if let Some(ended) = self.ended.take() {
            // A thread that is gone is an ended one.
            let _ = ended.await;
        }
        if let Some((keeping, _)) = self.keeping.take() {
            doubt::ask_when_alone(daemon, &keeping);
        }
    }
}

/// Hands frames to the engine until the session is over. After one that cannot be taken the rest of the session is
/// passed over: the primary has been told, and begins another one.
fn listen(keeping: &Keeping, session: u64, mut frames: mpsc::Receiver<Message>, wire: &ShadowWire, link: &Session) {
    let mut is_broken = false;
    while let Some(message) = frames.blocking_recv() {
        if is_broken {
            continue;
        }
        if let Err(error) = keeping.take(session, message, wire) {
            tracing::warn!(vm = keeping.record().vm, %error, "a checkpoint was not taken");
            link.close("a checkpoint was not taken");
            is_broken = true;
        }
    }
}

/// Writes of the guest go to the standbys of its disks.
fn follow_disks(hub: &Hub, keeping: &Keeping) -> Result<(), ApiError> {
    for (stream, receiver) in keeping.copies()?.receivers() {
        let link = Arc::clone(hub.session());
        let vm = keeping.record().vm.clone();
        hub.serve(
            stream,
            Arc::new(move |message| {
                if let Err(error) = receiver.handle(message) {
                    tracing::warn!(vm, %error, "a write of the primary was not taken");
                    link.close("a write was not taken");
                }
            }),
        );
    }
    Ok(())
}

/// What became of a protection here.
fn fate(daemon: &Arc<Daemon>, id: &str) -> Result<Fate, ApiError> {
    if let Some(epoch) = daemon.records.promoted(id)? {
        return Ok(Fate::Promoted { epoch });
    }
    let is_loaded = daemon.shadows.by_id(id).is_some_and(|keeping| keeping.is_loaded());
    Ok(if is_loaded { Fate::Ready } else { Fate::Shadow })
}

/// There is another shadow from now on, or one less.
async fn siblings(daemon: &Arc<Daemon>, from: &str, id: &str, nodes: Vec<String>) -> Result<(), ApiError> {
    let known = daemon.shadows.by_id(id).filter(|keeping| keeping.record().from == from);
    let keeping = known.ok_or_else(|| ApiError::refused("no such shadow is kept here"))?;
    let daemon = Arc::clone(daemon);
    blocking(move || keeping.know_siblings(&daemon, nodes)).await
}

/// Whether the shadow here leaves the guest to another one.
async fn cede(daemon: &Arc<Daemon>, id: String) -> Result<Ceded, ApiError> {
    let daemon = Arc::clone(daemon);
    blocking(move || match daemon.shadows.by_id(&id) {
        Some(keeping) => keeping.cede(&daemon),
        None => Ok(match daemon.records.promoted(&id)? {
            Some(epoch) => Ceded::Promoted { epoch },
            None => Ceded::Free { has: None },
        }),
    })
    .await
}

/// The guest lives at another node, as its primary says, or that node itself.
async fn superseded(daemon: &Arc<Daemon>, from: &str, id: &str, by: &str) -> Result<(), ApiError> {
    let Some(keeping) = daemon.shadows.by_id(id) else { return Ok(()) };
    let may_say_so =
        from == keeping.record().from || (from == by && keeping.siblings().iter().any(|node| node == by));
    match may_say_so {
        true => doubt::drop_for(daemon, keeping, by).await,
        false => Err(ApiError::refused(format!("node {from} has no part in that VM"))),
    }
}

/// What the engine answers.
struct ShadowWire(SessionSender);

impl Wire for ShadowWire {
    fn send(&self, message: Message) -> Result<(), WireClosed> {
        self.0.blocking_send(message).map_err(|_| WireClosed)
    }
}
