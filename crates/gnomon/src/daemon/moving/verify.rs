//! Verifying: whether both copies of a volume agree, or else what its bytes are.
//!
//! ```text
//!   a move is on ─────────► compare over its session       --with NODE ────► compare over a session of its own
//!   nothing to compare ───► digest                         --against FILE ─► compare with a raw image of this host
//! ```

use std::{path::Path, sync::Arc, time::Instant};

use gnomon_proto::frame::{Message, Stream};
use gnomon_terms::{Bytes, Extent};
use gnomon_volume::{
    disk::{Disk, FileDisk, Mode},
    mover::{Mover, Phase},
    plane::Carrier,
    shadow::Shadow,
    verify::{Asker, Compared, Replies, Side, compare_here},
};
use serde_json::json;

use super::{
    hub::Hub,
    rpc::{Ask, lost},
};
use crate::{
    api::{
        ApiError,
        types::{DifferingExtent, JobView, Progress, Verified, VerifyRequest},
    },
    daemon::{
        Daemon,
        jobs::Job,
        keeper::VolumeHandle,
        records::{MoveRecord, StandingRecord},
    },
};

/// Bytes read at once for a digest.
const CHUNK: u64 = 1 << 20;
/// The volume's number in a session that is for nothing else.
const ONLY: Stream = Stream(0);

/// What a volume is compared with.
enum Other {
    /// Nothing: its digest is told.
    Nothing,
    /// The destination of the move under way.
    Destination(Arc<Mover>, String),
    /// The source of the move under way.
    Source(Arc<Shadow>, String),
    /// The volume of this name on another node.
    Node(String),
    /// A raw image on this host.
    File(FileDisk, String),
}

/// Begins to verify a volume.
pub async fn start(daemon: &Arc<Daemon>, name: &str, ask: VerifyRequest) -> Result<JobView, ApiError> {
    let handle = daemon.keeper.get(name)?;
    let other = choose(daemon, &handle, ask).await?;
    let job = daemon.jobs.begin("verify", name);
    let (view, daemon) = (job.view(), Arc::clone(daemon));
    tokio::spawn(async move {
        let ended = verify(&daemon, &handle, other, &job).await;
        job.finish(ended);
    });
    Ok(view)
}

async fn choose(daemon: &Arc<Daemon>, handle: &VolumeHandle, ask: VerifyRequest) -> Result<Other, ApiError> {
    if let Some(file) = ask.against {
        return Ok(Other::File(open_image(handle, &file)?, file.display().to_string()));
    }
    let of_move = of_move(daemon, handle).await?;
    match (ask.with, of_move) {
        (None, other) => Ok(other),
        (Some(node), Other::Destination(mover, peer)) if node == peer => Ok(Other::Destination(mover, peer)),
        (Some(node), Other::Source(shadow, peer)) if node == peer => Ok(Other::Source(shadow, peer)),
        (Some(node), _) => {
            daemon.check_peer(&node)?;
            Ok(Other::Node(node))
        }
    }
}

/// The other copy of the move that the volume takes part in.
async fn of_move(daemon: &Arc<Daemon>, handle: &VolumeHandle) -> Result<Other, ApiError> {
    let record = handle.record();
    if let (Some(shadow), StandingRecord::Shadow(source)) = (handle.volume.shadow(), &record.standing) {
        return Ok(Other::Source(shadow, source.node.clone()));
    }
    if let (Some(shadow), StandingRecord::Draining(source)) = (handle.volume.shadow(), &record.standing) {
        refuse_unless_mirrored(&record.name, source.reverse)?;
        return Ok(Other::Source(shadow, source.node.clone()));
    }
    let Some(moving) = move_on_record(daemon, &record.name)? else { return Ok(Other::Nothing) };
    match handle.watcher.run(|_, plane| plane.carrier().clone()).await? {
        Carrier::Source { mover, phase, .. } => {
            refuse_unless_mirrored(&record.name, moving.reverse || phase == Phase::Priming)?;
            Ok(Other::Destination(mover, moving.to))
        }
        _ => Err(lost(&moving.to, "the move has no session at present")),
    }
}

fn move_on_record(daemon: &Arc<Daemon>, volume: &str) -> Result<Option<MoveRecord>, ApiError> {
    Ok(daemon.records.moves()?.into_iter().find(|record| record.volumes.iter().any(|name| name == volume)))
}

fn refuse_unless_mirrored(name: &str, is_mirrored: bool) -> Result<(), ApiError> {
    match is_mirrored {
        true => Ok(()),
        false => {
            Err(ApiError::refused(format!("volume '{name}' drains without writing back: its copies must differ"))
                .then("its move was begun with --no-reverse; let it end"))
        }
    }
}

fn open_image(handle: &VolumeHandle, file: &Path) -> Result<FileDisk, ApiError> {
    let (image, size) = (FileDisk::open(file, None, Mode::ReadOnly)?, handle.volume.size());
    match image.size() == size {
        true => Ok(image),
        false => {
            let (name, file, its) = (handle.record().name, file.display(), image.size());
            Err(ApiError::refused(format!("volume '{name}' has {} bytes and {file} has {}", size.0, its.0))
                .then("name a raw image of the same size; `qemu-img convert -O raw` makes one"))
        }
    }
}

async fn verify(
    daemon: &Arc<Daemon>,
    handle: &Arc<VolumeHandle>,
    other: Other,
    job: &Job,
) -> Result<serde_json::Value, ApiError> {
    let (total, worker) = (handle.volume.size(), job.clone());
    let mut watch = watcher(job.clone(), total);
    let (found, with) = match other {
        Other::Nothing => {
            let handle = Arc::clone(handle);
            return blocking(move || digest(&handle, &worker)).await;
        }
        Other::Destination(mover, node) => (blocking(move || Ok(mover.verify(&mut watch)?)).await?, node),
        Other::Source(shadow, node) => (blocking(move || Ok(shadow.verify(&mut watch)?)).await?, node),
        Other::Node(node) => (with_node(daemon, handle, &node, watch).await?, node),
        Other::File(image, name) => {
            let (ours, theirs) = (handle.volume.side(), lone(image));
            (blocking(move || Ok(compare_here(ours, theirs, &mut watch)?)).await?, name)
        }
    };
    let verified = tell(&found, with);
    let message = format!("{} of {} differ", Bytes(verified.differing_bytes), handle.record().name);
    job.report(Progress { phase: "done".to_string(), message, ..job.view().progress });
    serde_json::to_value(verified).map_err(ApiError::internal)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work).await.map_err(ApiError::internal)?
}

/// A raw image that nobody else writes.
fn lone(image: FileDisk) -> Side {
    Side { local: Arc::new(image), stripes: Arc::default(), valid: None, outbox: None }
}

/// Compares with the volume of the same name on another node, over a session that is for nothing else.
async fn with_node(
    daemon: &Arc<Daemon>,
    handle: &VolumeHandle,
    node: &str,
    mut watch: impl FnMut(Bytes) -> bool + Send + 'static,
) -> Result<Compared, ApiError> {
    let (hub, _inbox) = Hub::start(daemon.dial(node).await?);
    let (replies, ended) = (Arc::new(Replies::default()), Arc::clone(hub.session()));
    let engine = Arc::clone(&replies);
    hub.serve(
        ONLY,
        Arc::new(move |message| {
            if let Message::Hashes { id, start, hashes, .. } = message {
                engine.answer(id, start, hashes);
            }
        }),
    );
    let record = handle.record();
    let (ours, wire, asking) = (handle.volume.side(), hub.wire(), Arc::clone(&replies));
    let work = async {
        hub.rpc.ask::<()>(&Ask::Compare { volume: record.name, size: record.size, stream: ONLY.0 }).await?;
        blocking(move || Ok(Asker { ours, replies: &asking, wire: &*wire, stream: ONLY }.compare(&mut watch)?)).await
    };
    let outcome = tokio::select! {
        outcome = work => outcome,
        reason = ended.closed() => Err(lost(node, &reason.to_string())),
    };
    // The thread that compares ends by this, whoever was first.
    replies.end();
    hub.end("the comparison is over").await;
    outcome
}

/// Answers another node's comparison with a volume of this one.
pub fn answer(daemon: &Arc<Daemon>, hub: &Hub, volume: &str, size: u64, stream: Stream) -> Result<(), ApiError> {
    let handle = daemon.keeper.get(volume)?;
    let has = handle.volume.size().0;
    if has != size {
        let node = &daemon.config.node;
        return Err(ApiError::refused(format!("volume '{volume}' has {has} bytes on node {node} and {size} there"))
            .then("only copies of the same size can be compared"));
    }
    let (side, wire) = (handle.volume.side(), hub.wire());
    hub.serve(
        stream,
        Arc::new(move |message| {
            if let Message::HashRange { id, extent, .. } = message {
                let hashes = side.answer(extent);
                // A closed link ends the comparison at the other side by itself.
                let _ = wire.send(Message::Hashes { stream, id, start: extent.start, hashes });
            }
        }),
    );
    Ok(())
}

/// Reports how far a comparison is; answers whether it is still wanted.
fn watcher(job: Job, total: Bytes) -> impl FnMut(Bytes) -> bool + Send + 'static {
    let begun = Instant::now();
    move |done| {
        let rate = done.0 as f64 / begun.elapsed().as_secs_f64().max(1e-3);
        let eta_s = (rate > 0.0).then(|| (total.0 - done.0.min(total.0)) as f64 / rate);
        let phase = "comparing".to_string();
        let (done_bytes, total_bytes, rate) = (done.0, total.0, rate as u64);
        job.report(Progress { phase, done_bytes, total_bytes, rate, eta_s, message: String::new() });
        !job.is_cancelled()
    }
}

/// What was found, as the API tells it.
fn tell(found: &Compared, with: String) -> Verified {
    let extents = found.differences.extents();
    Verified {
        same: found.differences.is_empty(),
        with,
        compared_bytes: found.same.0 + found.differences.bytes().0,
        differing_bytes: found.differences.bytes().0,
        extents: extents.iter().map(|e| DifferingExtent { at: e.start.byte(), len: e.bytes().0 }).collect(),
        unlisted_bytes: found.differences.unlisted().0,
        lacking_bytes: found.lacking.0,
        unsettled_bytes: found.unsettled.0,
    }
}

/// Reads a whole volume and tells its BLAKE3 digest.
fn digest(handle: &VolumeHandle, job: &Job) -> Result<serde_json::Value, ApiError> {
    let disk = handle.volume.disk();
    let size = disk.size().0;
    let mut hasher = blake3::Hasher::new();
    let mut bytes = vec![0; CHUNK as usize];
    let mut at = 0;
    while at < size {
        if job.is_cancelled() {
            return Err(ApiError::refused("cancelled"));
        }
        let len = CHUNK.min(size - at);
        let part = &mut bytes[..len as usize];
        disk.read_at(part, at)?;
        hasher.update(part);
        at += len;
        job.report(Progress {
            phase: "reading".to_string(),
            done_bytes: at,
            total_bytes: size,
            ..Progress::default()
        });
    }
    let digest = hasher.finalize().to_hex().to_string();
    let message = format!("{} of {}: blake3 {digest}", handle.record().name, Bytes(size));
    job.report(Progress { phase: "done".to_string(), message, ..job.view().progress });
    Ok(json!({ "blake3": digest, "bytes": size, "whole": Extent::touching(0, size).len.0 }))
}
