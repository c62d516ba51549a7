//! Moves: a volume, or a VM with its volumes, goes to another node while it is used. The Shadow Manager.
//!
//! Read in the order it happens: [`source`] drives a move from here, through [`switching`], with [`looking`] for eyes;
//! [`destination`] serves one that comes; [`hub`] takes a session apart, [`rpc`] asks questions over it; [`decide`] says
//! when to switch, [`handover`] passes the epoch; [`story`] tells afterwards what the guest felt.
//!
//! The guest itself goes in one of two ways, which [`ram`] chooses and [`departure`] begins: by checkpoints ([`sending`],
//! [`landing`]), or by QEMU's own migration ([`transfer`], [`relay`], [`arrival`]). [`window`] bounds what either has under way.
//!
//! [`rollback`] and [`giving_back`] are the way back; [`doubt`] is for a destination that was away, [`confirm`] for one
//! whose source is gone for good, [`stray`] for a spare copy whose move is over.

mod arrival;
mod compare;
pub mod confirm;
pub mod decide;
mod departure;
mod destination;
mod doubt;
mod ending;
mod giving_back;
mod handover;
pub(super) mod hub;
pub mod landing;
mod looking;
mod maps;
mod metadata;
pub mod outlook;
pub mod progress;
pub mod ram;
mod relay;
pub mod rollback;
pub(super) mod rpc;
mod sending;
mod source;
pub mod story;
mod stray;
mod switching;
mod transfer;
mod verify;
mod window;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use gnomon_link::Session;
use gnomon_terms::BytesPerSecond;
use parking_lot::Mutex;
use tokio::sync::{OwnedMutexGuard, watch};

use self::{landing::Landing, source::SourceMove};
use super::{
    Daemon,
    keeper::VolumeHandle,
    records::{MoveRecord, StandingRecord},
};
use crate::api::{
    ApiError,
    types::{JobView, MoveRequest},
};

pub use destination::serve as serve_session;
pub use stray::remove;
pub use verify::start as verify;

/// The moves this node takes part in.
#[derive(Clone, Default)]
pub struct Moves {
    /// Those it is the source of, by id.
    active: Arc<Mutex<HashMap<String, Arc<Shared>>>>,
    /// The session that serves each move as its destination, by id.
    served: Arc<Mutex<HashMap<String, Served>>>,
    /// The volumes whose source is being asked whether their move is still on, by name.
    asked: Arc<Mutex<HashSet<String>>>,
    /// Guests that are landing here by checkpoints, by VM.
    landings: Arc<Mutex<BTreeMap<String, Arc<Landing>>>>,
}

#[derive(Clone, Default)]
struct Served {
    turn: Arc<tokio::sync::Mutex<()>>,
    session: Option<Arc<Session>>,
}

/// What the API and a move's driver share.
#[derive(Default)]
pub struct Shared {
    session: Mutex<Option<Arc<Session>>>,
    rate: Mutex<Option<BytesPerSecond>>,
    fault: Mutex<Option<String>>,
    seen: Mutex<HashMap<String, u64>>,
    /// What was asked of a move that has switched.
    wish: watch::Sender<Wish>,
}

/// What was asked of a move that has switched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wish {
    /// Nothing: it drains.
    #[default]
    None,
    /// It is to come back, both nodes being there.
    Back,
    /// The destination is dead: this node is to be the writer.
    Promote,
    /// It is over: nothing can be asked of it any more.
    TooLate,
}

impl Moves {
    /// A session wants to serve a move as its destination: the one before it ends first. The turn lasts as long as
    /// the guard.
    async fn enter(&self, move_id: &str, session: Arc<Session>) -> OwnedMutexGuard<()> {
        let turn = {
            let mut served = self.served.lock();
            let entry = served.entry(move_id.to_string()).or_default();
            if let Some(before) = entry.session.replace(session) {
                before.close("another session of the same move has begun");
            }
            Arc::clone(&entry.turn)
        };
        turn.lock_owned().await
    }

    /// The turn of a move that no session serves; `None` while one does.
    fn try_enter(&self, id: &str) -> Option<OwnedMutexGuard<()>> {
        let turn = Arc::clone(&self.served.lock().entry(id.to_string()).or_default().turn);
        turn.try_lock_owned().ok()
    }

    /// Whether a session serves this move as its destination now.
    fn is_served(&self, id: &str) -> bool {
        self.served.lock().get(id).is_some_and(|served| served.turn.try_lock().is_err())
    }

    /// The guest of this name that is landing here.
    pub fn landing(&self, vm: &str) -> Option<Arc<Landing>> {
        self.landings.lock().get(vm).cloned()
    }

    /// All guests that are landing here, by name.
    pub fn landings(&self) -> Vec<Arc<Landing>> {
        self.landings.lock().values().cloned().collect()
    }

    fn forget(&self, id: &str) {
        self.active.lock().remove(id);
    }

    fn shared(&self, id: &str) -> Option<Arc<Shared>> {
        self.active.lock().get(id).cloned()
    }
}

impl Shared {
    fn rate(&self) -> Option<BytesPerSecond> {
        *self.rate.lock()
    }

    fn wishes(&self, wish: Wish) -> bool {
        *self.wish.borrow() == wish
    }

    /// Waits until this node is to be the writer without the destination.
    async fn to_promote(&self) {
        // The sender lives as long as `self`.
        let _ = self.wish.subscribe().wait_for(|wish| *wish == Wish::Promote).await;
    }

    /// Requests a guest has made of a volume since this was last asked.
    fn requests_since(&self, handle: &VolumeHandle) -> u64 {
        let counts = handle.watcher.counts();
        let total = counts.reads + counts.writes + counts.discards;
        let before = self.seen.lock().insert(handle.record().name, total);
        total - before.unwrap_or(total)
    }
}

/// Moves on record go on.
pub fn resume(daemon: &Arc<Daemon>) -> Result<(), ApiError> {
    for record in daemon.records.moves()? {
        let name = record.vm.clone().unwrap_or_else(|| record.volumes.join(", "));
        tracing::info!(id = record.id, to = record.to, "the move of {name} goes on");
        if let Err(error) = launch(daemon, record) {
            // One move that cannot go on must not keep the others, and every guest of this node, from their daemon.
            let error =
                error.then("bring the volume's file back and restart the daemon: the move is still on record");
            tracing::error!(%error, "the move of {name} cannot go on");
            daemon.jobs.begin("move", &name).finish(Err(error));
        }
    }
    doubt::resume(daemon);
    confirm::resume(daemon)
}

/// Begins the move of a volume.
pub fn start_volume(daemon: &Arc<Daemon>, name: &str, ask: MoveRequest) -> Result<JobView, ApiError> {
    start(daemon, None, vec![name.to_string()], ask)
}

/// Begins the move of a VM with its volumes.
pub fn start_vm(daemon: &Arc<Daemon>, name: &str, ask: MoveRequest) -> Result<JobView, ApiError> {
    let vm = daemon.vms.get(name)?;
    // Until it is on record, which a change of its memory looks at.
    let _still = daemon.memory.hold_still(&vm)?;
    let disks = moved_with(daemon, name)?;
    start(daemon, Some(name.to_string()), disks, ask)
}

/// The volumes that move with a VM.
fn moved_with(daemon: &Arc<Daemon>, name: &str) -> Result<Vec<String>, ApiError> {
    let vm = daemon.vms.get(name)?;
    if vm.qemu().is_none() {
        return Err(ApiError::refused(format!("VM '{name}' does not run"))
            .then("move its volumes with `gnomon volume move`, and start it there"));
    }
    vm.refuse_unless_movable()?;
    vm.refuse_if_its_device_has_memory()?;
    let disks = vm.record().disks;
    if disks.is_empty() {
        return Err(ApiError::refused(format!("VM '{name}' has no volume of this node"))
            .then("a VM without a gnomon disk is moved by its own tools"));
    }
    Ok(disks)
}

fn start(
    daemon: &Arc<Daemon>,
    vm: Option<String>,
    volumes: Vec<String>,
    ask: MoveRequest,
) -> Result<JobView, ApiError> {
    daemon.check_peer(&ask.to)?;
    let handles: Vec<Arc<VolumeHandle>> =
        volumes.iter().map(|name| daemon.keeper.get(name)).collect::<Result<_, _>>()?;
    for handle in &handles {
        refuse_unless_free(handle)?;
    }
    let record = MoveRecord {
        id: format!("{}-{}-{}", daemon.config.node, daemon.jobs.start(), daemon.jobs.count() + 1),
        vm,
        volumes,
        to: ask.to,
        mode: ask.mode,
        ram: ask.ram,
        bandwidth: ask.bandwidth,
        reverse: ask.reverse,
        switched: false,
        back: false,
        guest_lost: false,
    };
    // The move first: a volume that belongs to a move nobody knows would never be free again.
    daemon.records.put_move(&record)?;
    for handle in &handles {
        handle.volume.begin_shadow()?;
        daemon.keeper.update(handle, |volume| {
            volume.standing = StandingRecord::Shadowed;
            volume.move_id = Some(record.id.clone());
        })?;
    }
    launch(daemon, record)
}

/// Refuses a volume that is not this node's alone.
pub(super) fn refuse_unless_free(handle: &VolumeHandle) -> Result<(), ApiError> {
    let record = handle.record();
    if record.move_id.is_some() {
        return Err(ApiError::refused(format!("volume '{}' takes part in a move already", record.name))
            .then("let it end, or cancel it, first"));
    }
    match record.standing {
        StandingRecord::Primary => Ok(()),
        _ => Err(ApiError::refused(format!("volume '{}' is {} here", record.name, handle.role()))
            .then("move it from the node where it is primary")),
    }
}

/// Starts the driver of a move on record.
fn launch(daemon: &Arc<Daemon>, record: MoveRecord) -> Result<JobView, ApiError> {
    let handles: Vec<Arc<VolumeHandle>> =
        record.volumes.iter().map(|name| daemon.keeper.get(name)).collect::<Result<_, _>>()?;
    let subject = record.vm.clone().unwrap_or_else(|| record.volumes.join(","));
    let job = daemon.jobs.begin("move", &subject);
    let shared = Arc::new(Shared::default());
    *shared.rate.lock() = record.bandwidth.map(BytesPerSecond);
    daemon.moves.active.lock().insert(record.id.clone(), Arc::clone(&shared));
    for handle in &handles {
        *handle.job.lock() = Some(job.id().to_string());
        handle.watcher.story().get_or_insert_default();
    }
    let view = job.view();
    if record.back {
        shared.wish.send_replace(Wish::Back);
    }
    tokio::spawn(SourceMove::new(Arc::clone(daemon), record, handles, job, shared).run());
    Ok(view)
}

/// Changes what a running move may use, at once.
pub fn set_bandwidth(daemon: &Arc<Daemon>, name: &str, rate: Option<u64>) -> Result<JobView, ApiError> {
    let (record, job) = move_of_volume(daemon, name)?;
    if let Some(shared) = daemon.moves.shared(&record.id) {
        *shared.rate.lock() = rate.map(BytesPerSecond);
        if let Some(session) = &*shared.session.lock() {
            session.set_rate(rate.map(BytesPerSecond));
        }
    }
    daemon.records.put_move(&MoveRecord { bandwidth: rate, ..record })?;
    Ok(job)
}

/// Cancels a volume's move.
pub fn cancel_volume(daemon: &Arc<Daemon>, name: &str) -> Result<JobView, ApiError> {
    let (record, job) = move_of_volume(daemon, name)?;
    cancel(daemon, &record, &job)
}

/// Cancels a VM's move.
pub fn cancel_vm(daemon: &Arc<Daemon>, name: &str) -> Result<JobView, ApiError> {
    let (record, job) = move_of_vm(daemon, name)?;
    cancel(daemon, &record, &job)
}

fn cancel(daemon: &Arc<Daemon>, record: &MoveRecord, view: &JobView) -> Result<JobView, ApiError> {
    if record.switched {
        return Err(ApiError::refused("the move has switched: the guest runs at the destination")
            .then("bring it back with `gnomon vm rollback` or `gnomon volume rollback`"));
    }
    let job = daemon.jobs.get(&view.id)?;
    job.cancel();
    Ok(job.view())
}

/// The move a volume takes part in, from the record on disk: it says whether it has switched.
fn move_of_volume(daemon: &Arc<Daemon>, name: &str) -> Result<(MoveRecord, JobView), ApiError> {
    let handle = daemon.keeper.get(name)?;
    find_move(daemon, |record| record.volumes.iter().any(|volume| volume == name), handle.job.lock().clone())
}

fn move_of_vm(daemon: &Arc<Daemon>, name: &str) -> Result<(MoveRecord, JobView), ApiError> {
    let found = daemon.records.moves()?.into_iter().find(|record| record.vm.as_deref() == Some(name));
    let Some(record) = found else {
        return Err(ApiError::refused(format!("VM '{name}' is not being moved from this node")));
    };
    let volume = record.volumes.first().cloned().unwrap_or_default();
    move_of_volume(daemon, &volume)
}

fn find_move(
    daemon: &Arc<Daemon>,
    is_it: impl Fn(&MoveRecord) -> bool,
    job: Option<String>,
) -> Result<(MoveRecord, JobView), ApiError> {
    let none = || ApiError::refused("it is not being moved from this node").then("see `gnomon job ls`");
    let record = daemon.records.moves()?.into_iter().find(is_it).ok_or_else(none)?;
    let job = daemon.jobs.get(&job.ok_or_else(none)?)?;
    Ok((record, job.view()))
}
