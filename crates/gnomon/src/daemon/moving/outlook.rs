//! What a move would be like, without moving anything: `--dry-run`.
//!
//! The volume, the destination and the link are asked as they are now. What the real move would refuse is told as the
//! outlook's refusal, in the same words; what would only make it wait (a node that is away) is an error.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::try_join_all;
use gnomon_terms::BytesPerSecond;

use super::{
    decide::STALL_HORIZON,
    hub::Hub,
    moved_with, ram, refuse_unless_free,
    rpc::{Ask, Surveyed},
};
use crate::{
    api::{
        ApiError, Kind,
        types::{MoveMode, MoveOutlook, MoveRequest, RateOrigin, VolumeOutlook},
    },
    daemon::{Daemon, keeper::VolumeHandle, vms::makeup::all_memory},
};

/// Bytes in one question that measures the link: half of what a question may have.
const PROBE: usize = 128 << 10;
/// Questions that measure the link at once: 2 MiB, more than is under way on a link of 1 Gbit/s and 10 ms.
const PROBES: usize = 16;

/// What the move of a volume would be like.
pub async fn of_volume(daemon: &Arc<Daemon>, name: &str, ask: MoveRequest) -> Result<MoveOutlook, ApiError> {
    outlook(daemon, Ok(vec![name.to_string()]), ask).await
}

/// What the move of a VM with its volumes would be like.
pub async fn of_vm(daemon: &Arc<Daemon>, name: &str, ask: MoveRequest) -> Result<MoveOutlook, ApiError> {
    let (asked, rate_of) = (ask.ram, ask.mode);
    let told = outlook(daemon, moved_with(daemon, name), ask).await?;
    let Some(qemu) = daemon.vms.get(name).ok().and_then(|vm| vm.qemu()) else { return Ok(told) };
    let looked = tokio::task::spawn_blocking(move || (all_memory(&qemu), ram::foresee(asked, &qemu)));
    let (memory, foreseen) = looked.await.map_err(ApiError::internal)?;
    let mut told = MoveOutlook { memory, ..told };
    match foreseen {
        Ok(choice) => told.ram = Some(choice),
        Err(error) => {
            told.refused.get_or_insert(error);
        }
    }
    if told.rate > 0 && rate_of != MoveMode::Post {
        told.priming_s += memory as f64 / told.rate as f64;
    }
    Ok(told)
}

async fn outlook(
    daemon: &Arc<Daemon>,
    volumes: Result<Vec<String>, ApiError>,
    ask: MoveRequest,
) -> Result<MoveOutlook, ApiError> {
    let mut told = MoveOutlook::to(&ask.to);
    let volumes = match (volumes, daemon.check_peer(&ask.to)) {
        (Ok(volumes), Ok(())) => volumes,
        (Err(error), _) | (_, Err(error)) => return refused(told, error),
    };
    let handles: Vec<Arc<VolumeHandle>> =
        volumes.iter().map(|name| daemon.keeper.get(name)).collect::<Result<_, _>>()?;
    for handle in &handles {
        told.volumes.push(look(handle)?);
        if let Err(error) = refuse_unless_free(handle) {
            told.refused.get_or_insert(error);
        }
    }
    let (hub, _inbox) = Hub::start(daemon.dial(&ask.to).await?);
    let asked = survey(daemon, &hub, &ask, &mut told).await;
    hub.end("the outlook is told").await;
    asked?;
    forecast(&handles, &mut told).await?;
    let needed = told.volumes.iter().map(|volume| volume.allocated).sum::<u64>();
    told.priming_s = match ask.mode {
        MoveMode::Post => 0.0,
        MoveMode::Pre | MoveMode::Hybrid => needed as f64 / told.rate.max(1) as f64,
    };
    Ok(told)
}

/// A refusal is what was asked for; any other error is one.
fn refused(told: MoveOutlook, error: ApiError) -> Result<MoveOutlook, ApiError> {
    match error.kind {
        Kind::Refused => Ok(MoveOutlook { refused: Some(error), ..told }),
        _ => Err(error),
    }
}

fn look(handle: &VolumeHandle) -> Result<VolumeOutlook, ApiError> {
    let allocated = handle.volume.allocated()?.iter().map(|extent| extent.bytes().0).sum();
    let record = handle.record();
    Ok(VolumeOutlook { name: record.name, size: record.size, allocated, ..VolumeOutlook::default() })
}

/// Asks the destination for its space, and finds out how fast the link is.
async fn survey(daemon: &Daemon, hub: &Hub, ask: &MoveRequest, told: &mut MoveOutlook) -> Result<(), ApiError> {
    for volume in &told.volumes {
        let ask = Ask::Survey { volume: volume.name.clone(), needed: volume.allocated };
        let begun = Instant::now();
        let surveyed: Surveyed = hub.rpc.ask(&ask).await?;
        told.round_trip_s = begun.elapsed().as_secs_f64();
        told.free = surveyed.free;
        if let Some(error) = surveyed.refused {
            told.refused.get_or_insert(error);
        }
    }
    let configured = daemon.config.link.as_ref().and_then(|link| link.rate);
    (told.rate, told.rate_is) = match (ask.bandwidth, configured) {
        (Some(given), configured) => (configured.map_or(given, |most| given.min(most.0)), RateOrigin::Given),
        (None, Some(rate)) => (rate.0, RateOrigin::Configured),
        (None, None) => (measure(hub).await?, RateOrigin::Measured),
    };
    Ok(())
}

/// Bytes a second that the link carried for a moment.
async fn measure(hub: &Hub) -> Result<u64, ApiError> {
    let begun = Instant::now();
    let probe = Ask::Probe { pad: "0".repeat(PROBE) };
    try_join_all((0..PROBES).map(|_| hub.rpc.ask::<()>(&probe))).await?;
    Ok(((PROBES * PROBE) as f64 / begun.elapsed().as_secs_f64().max(1e-6)) as u64)
}

/// What each guest would feel if it switched now, with nothing at the destination: the accesses of the last seconds
/// again.
async fn forecast(handles: &[Arc<VolumeHandle>], told: &mut MoveOutlook) -> Result<(), ApiError> {
    let (rate, round_trip) = (BytesPerSecond(told.rate.max(1)), Duration::from_secs_f64(told.round_trip_s));
    for (handle, volume) in handles.iter().zip(&mut told.volumes) {
        let tap = Arc::clone(handle.volume.tap());
        let stall = handle
            .watcher
            .run(move |cycle, _| cycle.expected_stall_at_once(tap.now(), STALL_HORIZON, rate, round_trip))
            .await?;
        volume.reads_expected = stall.reads_expected;
        volume.reads_stalling = stall.reads_stalling;
        volume.stall_s = stall.stall.as_secs_f64();
    }
    Ok(())
}

/// Answers another node's survey.
pub fn answer(daemon: &Daemon, volume: &str, needed: u64) -> Result<Surveyed, ApiError> {
    let keeper = &daemon.keeper;
    let copy = format!("node {}: the copy of volume '{volume}'", daemon.config.node);
    let fits = keeper.place_for(volume).and_then(|_| keeper.check_space(needed, &copy));
    let refused = fits.err().map(|error| ApiError { kind: Kind::Refused, ..error });
    Ok(Surveyed { free: keeper.free_space()?, refused })
}
