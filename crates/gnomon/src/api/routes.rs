//! The routes: each turns a request into a call on the daemon, and the result into JSON.
//!
//! What blocks (disks, QEMU, the store) runs on blocking threads, so that a slow guest never holds up the API.

mod memory;

use std::{os::unix::fs::PermissionsExt, path::Path, sync::Arc};

use axum::{
    Json, Router,
    body::Body,
    extract::{Path as Segment, Query, State},
    http::header::CONTENT_TYPE,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use tokio::net::UnixListener;
use utoipa::OpenApi;

use super::{
    ApiError,
    types::{
        AdoptVm, Confirm, CreateVolume, EventView, FailoverVm, FeedView, ForecastQuery, ForecastView, ImportVolume,
        JobView, MoveOutlook, MoveRequest, NodeView, PeerView, ProtectVm, RemoveQuery, Rollback, RunVm, SetBandwidth,
        StopVm, SwitchVm, TraceQuery, UnprotectVm, UpdateOutlook, UpdateVm, VerifyRequest, VmView, VolumeView,
        WatchQuery,
    },
};
use crate::{
    daemon::{Daemon, forecasts, learned::Beginning, moving, protecting, updating},
    metrics, trace,
};

type Daemoned = State<Arc<Daemon>>;
type Answer<T> = Result<Json<T>, ApiError>;

/// Binds the API's socket, for its owner only. One that is left over from a daemon that is gone is replaced.
pub fn bind(socket: &Path) -> Result<UnixListener, ApiError> {
    if let Some(dir) = socket.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let _ = std::fs::remove_file(socket);
    let listener = UnixListener::bind(socket)
        .map_err(|error| ApiError::unavailable(format!("cannot listen on {}: {error}", socket.display())))?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves the API until the process ends.
pub async fn serve(listener: UnixListener, daemon: Arc<Daemon>) -> Result<(), ApiError> {
    Ok(axum::serve(listener, router(daemon)).await?)
}

/// The document that describes the API.
#[derive(OpenApi)]
#[openapi(
    info(title = "gnomon", description = "Predictive shadowing for virtual machines, beside stock QEMU."),
    paths(
        node,
        nodes,
        volumes,
        create_volume,
        import_volume,
        volume,
        remove_volume,
        move_volume,
        volume_bandwidth,
        cancel_volume,
        rollback_volume,
        confirm_volume,
        verify_volume,
        volume_outlook,
        vm_outlook,
        trace_volume,
        forecast_volume,
        forecast_vm,
        feeds,
        vms,
        run_vm,
        adopt_vm,
        vm,
        stop_vm,
        move_vm,
        cancel_vm,
        rollback_vm,
        update_vm,
        update_outlook_vm,
        approve_vm,
        events_vm,
        protect_vm,
        unprotect_vm,
        switchover_vm,
        failover_vm,
        jobs,
        job,
        cancel_job
    ),
    nest((path = "/", api = memory::Document))
)]
struct Document;

fn router(daemon: Arc<Daemon>) -> Router {
    Router::new()
        .route("/openapi.json", get(|| async { Json(Document::openapi()) }))
        .route("/metrics", get(metrics_page))
        .route("/v1/node", get(node))
        .route("/v1/nodes", get(nodes))
        .route("/v1/volumes", get(volumes).post(create_volume))
        .route("/v1/volumes/import", post(import_volume))
        .route("/v1/volumes/{name}", get(volume).delete(remove_volume))
        .route("/v1/volumes/{name}/move", post(move_volume))
        .route("/v1/volumes/{name}/bandwidth", post(volume_bandwidth))
        .route("/v1/volumes/{name}/cancel", post(cancel_volume))
        .route("/v1/volumes/{name}/rollback", post(rollback_volume))
        .route("/v1/volumes/{name}/confirm", post(confirm_volume))
        .route("/v1/volumes/{name}/outlook", post(volume_outlook))
        .route("/v1/vms/{name}/outlook", post(vm_outlook))
        .route("/v1/volumes/{name}/verify", post(verify_volume))
        .route("/v1/volumes/{name}/trace", get(trace_volume))
        .route("/v1/volumes/{name}/forecast", get(forecast_volume))
        .route("/v1/vms/{name}/forecast", get(forecast_vm))
        .route("/v1/feeds", get(feeds))
        .route("/v1/vms", get(vms).post(run_vm))
        .route("/v1/vms/adopt", post(adopt_vm))
        .route("/v1/vms/{name}", get(vm))
        .route("/v1/vms/{name}/stop", post(stop_vm))
        .route("/v1/vms/{name}/move", post(move_vm))
        .route("/v1/vms/{name}/cancel", post(cancel_vm))
        .route("/v1/vms/{name}/rollback", post(rollback_vm))
        .route("/v1/vms/{name}/update", post(update_vm))
        .route("/v1/vms/{name}/update/outlook", post(update_outlook_vm))
        .route("/v1/vms/{name}/approve", post(approve_vm))
        .route("/v1/vms/{name}/events", get(events_vm))
        .route("/v1/vms/{name}/protect", post(protect_vm))
        .route("/v1/vms/{name}/unprotect", post(unprotect_vm))
        .route("/v1/vms/{name}/switchover", post(switchover_vm))
        .route("/v1/vms/{name}/failover", post(failover_vm))
        .merge(memory::router())
        .route("/v1/jobs", get(jobs))
        .route("/v1/jobs/{id}", get(job))
        .route("/v1/jobs/{id}/cancel", post(cancel_job))
        .fallback(|| async { ApiError::new(super::Kind::NotFound, "there is no such route: see /openapi.json") })
        .with_state(daemon)
}

/// Runs what blocks on a thread of its own.
async fn blocking<T: Send + 'static>(
    daemon: Arc<Daemon>,
    deed: impl FnOnce(&Arc<Daemon>) -> Result<T, ApiError> + Send + 'static,
) -> Answer<T> {
    tokio::task::spawn_blocking(move || deed(&daemon)).await.map_err(ApiError::internal)?.map(Json)
}

async fn metrics_page(State(daemon): Daemoned) -> Result<Response, ApiError> {
    let page = tokio::task::spawn_blocking(move || metrics::page(&daemon)).await.map_err(ApiError::internal)??;
    Ok(([(CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], page).into_response())
}

/// This daemon.
#[utoipa::path(get, path = "/v1/node", responses((status = 200, body = NodeView)))]
async fn node(State(daemon): Daemoned) -> Json<NodeView> {
    Json(daemon.view())
}

/// This node and those it knows.
#[utoipa::path(get, path = "/v1/nodes", responses((status = 200, body = [PeerView])))]
async fn nodes(State(daemon): Daemoned) -> Json<Vec<PeerView>> {
    Json(daemon.peers().await)
}

/// All volumes.
#[utoipa::path(get, path = "/v1/volumes", responses((status = 200, body = [VolumeView])))]
async fn volumes(State(daemon): Daemoned) -> Json<Vec<VolumeView>> {
    Json(daemon.keeper.list())
}

/// Makes an empty volume.
#[utoipa::path(post, path = "/v1/volumes", request_body = CreateVolume, responses((status = 200, body = VolumeView)))]
async fn create_volume(State(daemon): Daemoned, Json(ask): Json<CreateVolume>) -> Answer<VolumeView> {
    let begins = begins(&daemon, ask.like.as_deref()).await?;
    blocking(daemon, move |daemon| {
        let handle = daemon.keeper.create(&ask.name, ask.size, &begins)?;
        Ok(daemon.keeper.view(&handle))
    })
    .await
}

/// Makes a volume of a disk image.
#[utoipa::path(post, path = "/v1/volumes/import", request_body = ImportVolume, responses((status = 200, body = JobView)))]
async fn import_volume(State(daemon): Daemoned, Json(ask): Json<ImportVolume>) -> Answer<JobView> {
    let begins = begins(&daemon, ask.like.as_deref()).await?;
    crate::daemon::importing::start(&daemon, ask, begins).map(Json)
}

/// What the forecasts of a new volume begin with.
async fn begins(daemon: &Daemon, like: Option<&str>) -> Result<Beginning, ApiError> {
    match like {
        Some(name) => Beginning::like(&*daemon.keeper.get(name)?).await,
        None => Ok(Beginning::default()),
    }
}

/// One volume.
#[utoipa::path(get, path = "/v1/volumes/{name}", responses((status = 200, body = VolumeView)))]
async fn volume(State(daemon): Daemoned, Segment(name): Segment<String>) -> Answer<VolumeView> {
    let handle = daemon.keeper.get(&name)?;
    Ok(Json(daemon.keeper.view(&handle)))
}

/// Removes a volume and its data; tells what it was.
#[utoipa::path(delete, path = "/v1/volumes/{name}", params(RemoveQuery), responses((status = 200, body = VolumeView)))]
async fn remove_volume(
    State(daemon): Daemoned,
    Segment(name): Segment<String>,
    Query(query): Query<RemoveQuery>,
) -> Answer<VolumeView> {
    moving::remove(&daemon, &name, query.force).await.map(Json)
}

/// Moves a volume to another node while it is in use.
#[utoipa::path(post, path = "/v1/volumes/{name}/move", request_body = MoveRequest, responses((status = 200, body = JobView)))]
async fn move_volume(
    State(daemon): Daemoned,
    Segment(name): Segment<String>,
    Json(ask): Json<MoveRequest>,
) -> Answer<JobView> {
    moving::start_volume(&daemon, &name, ask).map(Json)
}

/// Changes what a running move may use.
#[utoipa::path(post, path = "/v1/volumes/{name}/bandwidth", request_body = SetBandwidth, responses((status = 200, body = JobView)))]
async fn volume_bandwidth(
    State(daemon): Daemoned,
    Segment(name): Segment<String>,
    Json(ask): Json<SetBandwidth>,
) -> Answer<JobView> {
    moving::set_bandwidth(&daemon, &name, ask.rate).map(Json)
}

/// Cancels a volume's move that has not switched yet.
#[utoipa::path(post, path = "/v1/volumes/{name}/cancel", responses((status = 200, body = JobView)))]
async fn cancel_volume(State(daemon): Daemoned, Segment(name): Segment<String>) -> Answer<JobView> {
    moving::cancel_volume(&daemon, &name).map(Json)
}

/// Makes this node the writer again of a volume whose move has switched.
#[utoipa::path(post, path = "/v1/volumes/{name}/rollback", request_body = Rollback, responses((status = 200, body = JobView)))]
async fn rollback_volume(
    State(daemon): Daemoned,
    Segment(name): Segment<String>,
    Json(ask): Json<Rollback>,
) -> Answer<JobView> {
    moving::rollback::volume(&daemon, &name, &ask).map(Json)
}

/// Makes this node the primary of a volume whose move's source is gone for good.
#[utoipa::path(post, path = "/v1/volumes/{name}/confirm", request_body = Confirm, responses((status = 200, body = VolumeView)))]
async fn confirm_volume(
    State(daemon): Daemoned,
    Segment(name): Segment<String>,
    Json(ask): Json<Confirm>,
) -> Answer<VolumeView> {
    moving::confirm::volume(&daemon, &name, &ask).await.map(Json)
}

/// Brings a VM back whose move has switched, or whose QEMU was changed.
#[utoipa::path(post, path = "/v1/vms/{name}/rollback", request_body = Rollback, responses((status = 200, body = JobView)))]
async fn rollback_vm(
    State(daemon): Daemoned,
    Segment(name): Segment<String>,
    Json(ask): Json<Rollback>,
) -> Answer<JobView> {
    daemon.protections.refuse_if_protected(&name)?;
    let is_moving = daemon.records.moves()?.iter().any(|record| record.vm.as_deref() == Some(&name));
    let was_updated = daemon.vms.get(&name).is_ok_and(|vm| vm.record().before.is_some());
    match was_updated && !is_moving && ask.fenced.is_none() {
        true => blocking(daemon, move |daemon| updating::rollback(daemon, &name)).await,
        false => moving::rollback::vm(&daemon, &name, &ask).map(Json),
    }
}

/// Gives a running VM another QEMU, after a trial on a copy.
#[utoipa::path(post, path = "/v1/vms/{name}/update", request_body = UpdateVm, responses((status = 200, body = JobView)))]
async fn update_vm(
    State(daemon): Daemoned,
    Segment(name): Segment<String>,
    Json(ask): Json<UpdateVm>,
) -> Answer<JobView> {
    daemon.protections.refuse_if_protected(&name)?;
    blocking(daemon, move |daemon| updating::start(daemon, &name, ask)).await
}

/// What an update would be like, by what it would change and by those before it. Nothing is touched.
#[utoipa::path(post, path = "/v1/vms/{name}/update/outlook", request_body = UpdateVm, responses((status = 200, body = UpdateOutlook)))]
async fn update_outlook_vm(
    State(daemon): Daemoned,
    Segment(name): Segment<String>,
    Json(ask): Json<UpdateVm>,
) -> Answer<UpdateOutlook> {
    blocking(daemon, move |daemon| updating::impact::outlook(daemon, &name, &ask)).await
}

/// Lets a VM switch whose copy did well.
#[utoipa::path(post, path = "/v1/vms/{name}/approve", responses((status = 200)))]
async fn approve_vm(State(daemon): Daemoned, Segment(name): Segment<String>) -> Answer<()> {
    updating::approve(&daemon, &name).map(Json)
}

/// What was done to a VM as a whole.
#[utoipa::path(get, path = "/v1/vms/{name}/events", responses((status = 200, body = [EventView])))]
async fn events_vm(State(daemon): Daemoned, Segment(name): Segment<String>) -> Answer<Vec<EventView>> {
    blocking(daemon, move |daemon| daemon.records.events(&name)).await
}

/// Keeps a shadow of a running VM on another node, beside those that it has.
#[utoipa::path(post, path = "/v1/vms/{name}/protect", request_body = ProtectVm, responses((status = 200, body = JobView)))]
async fn protect_vm(
    State(daemon): Daemoned,
    Segment(name): Segment<String>,
    Json(ask): Json<ProtectVm>,
) -> Answer<JobView> {
    blocking(daemon, move |daemon| protecting::protect(daemon, &name, ask)).await
}

/// Gives a VM's shadows up, or one of them; nothing is left of it.
#[utoipa::path(post, path = "/v1/vms/{name}/unprotect", request_body = UnprotectVm, responses((status = 200)))]
async fn unprotect_vm(
    State(daemon): Daemoned,
    Segment(name): Segment<String>,
    Json(ask): Json<UnprotectVm>,
) -> Answer<()> {
    protecting::unprotect(&daemon, &name, ask).await.map(Json)
}

/// Hands a protected VM over to the node of a shadow.
#[utoipa::path(post, path = "/v1/vms/{name}/switchover", request_body = SwitchVm, responses((status = 200, body = JobView)))]
async fn switchover_vm(
    State(daemon): Daemoned,
    Segment(name): Segment<String>,
    Json(ask): Json<SwitchVm>,
) -> Answer<JobView> {
    protecting::switchover(&daemon, &name, ask).map(Json)
}

/// Goes on with a VM whose shadow is here, its primary being dead.
#[utoipa::path(post, path = "/v1/vms/{name}/failover", request_body = FailoverVm, responses((status = 200, body = JobView)))]
async fn failover_vm(
    State(daemon): Daemoned,
    Segment(name): Segment<String>,
    Json(ask): Json<FailoverVm>,
) -> Answer<JobView> {
    protecting::failover(&daemon, &name, ask).map(Json)
}

/// Compares a volume with another copy of it; tells its digest when there is none.
#[utoipa::path(post, path = "/v1/volumes/{name}/verify", request_body = VerifyRequest, responses((status = 200, body = JobView)))]
async fn verify_volume(
    State(daemon): Daemoned,
    Segment(name): Segment<String>,
    Json(ask): Json<VerifyRequest>,
) -> Answer<JobView> {
    moving::verify(&daemon, &name, ask).await.map(Json)
}

/// What the move of a volume would be like; nothing is moved.
#[utoipa::path(post, path = "/v1/volumes/{name}/outlook", request_body = MoveRequest, responses((status = 200, body = MoveOutlook)))]
async fn volume_outlook(
    State(daemon): Daemoned,
    Segment(name): Segment<String>,
    Json(ask): Json<MoveRequest>,
) -> Answer<MoveOutlook> {
    moving::outlook::of_volume(&daemon, &name, ask).await.map(Json)
}

/// What the move of a VM would be like; nothing is moved.
#[utoipa::path(post, path = "/v1/vms/{name}/outlook", request_body = MoveRequest, responses((status = 200, body = MoveOutlook)))]
async fn vm_outlook(
    State(daemon): Daemoned,
    Segment(name): Segment<String>,
    Json(ask): Json<MoveRequest>,
) -> Answer<MoveOutlook> {
    moving::outlook::of_vm(&daemon, &name, ask).await.map(Json)
}

/// A volume's accesses as they happen, as lines of CSV.
#[utoipa::path(get, path = "/v1/volumes/{name}/trace", params(TraceQuery), responses((status = 200, body = String)))]
async fn trace_volume(
    State(daemon): Daemoned,
    Segment(name): Segment<String>,
    Query(query): Query<TraceQuery>,
) -> Result<Response, ApiError> {
    let handle = daemon.keeper.get(&name)?;
    let lines = trace::follow(handle.watcher.record(), query.for_s);
    Ok(([(CONTENT_TYPE, "text/csv")], Body::from_stream(lines)).into_response())
}

/// What is expected of a volume, why, and how good it was.
#[utoipa::path(get, path = "/v1/volumes/{name}/forecast", params(ForecastQuery), responses((status = 200, body = ForecastView)))]
async fn forecast_volume(
    State(daemon): Daemoned,
    Segment(name): Segment<String>,
    Query(query): Query<ForecastQuery>,
) -> Answer<ForecastView> {
    forecasts::of_volume(&daemon, &name, query).await.map(Json)
}

/// The same of each volume of a VM.
#[utoipa::path(get, path = "/v1/vms/{name}/forecast", params(ForecastQuery), responses((status = 200, body = [ForecastView])))]
async fn forecast_vm(
    State(daemon): Daemoned,
    Segment(name): Segment<String>,
    Query(query): Query<ForecastQuery>,
) -> Answer<Vec<ForecastView>> {
    forecasts::of_vm(&daemon, &name, query).await.map(Json)
}

/// All VMs.
#[utoipa::path(get, path = "/v1/vms", responses((status = 200, body = [VmView])))]
async fn vms(State(daemon): Daemoned) -> Answer<Vec<VmView>> {
    blocking(daemon, |daemon| Ok(protecting::list(daemon))).await
}

/// What the world outside says.
#[utoipa::path(get, path = "/v1/feeds", responses((status = 200, body = [FeedView])))]
async fn feeds(State(daemon): Daemoned) -> Json<Vec<FeedView>> {
    Json(daemon.feeds.views())
}

/// Starts a VM on volumes.
#[utoipa::path(post, path = "/v1/vms", request_body = RunVm, responses((status = 200, body = VmView)))]
async fn run_vm(State(daemon): Daemoned, Json(ask): Json<RunVm>) -> Answer<VmView> {
    daemon.protections.refuse_if_protected(&ask.name)?;
    blocking(daemon, move |daemon| {
        let view = crate::daemon::memory::run(daemon, &ask)?;
        daemon.balancing.arrive(&view.name, &daemon.config.node);
        Ok(view)
    })
    .await
}

/// Looks after a QEMU that is running already.
#[utoipa::path(post, path = "/v1/vms/adopt", request_body = AdoptVm, responses((status = 200, body = VmView)))]
async fn adopt_vm(State(daemon): Daemoned, Json(ask): Json<AdoptVm>) -> Answer<VmView> {
    blocking(daemon, move |daemon| daemon.vms.adopt(&ask.name, &ask.qmp)).await
}

/// One VM.
#[utoipa::path(get, path = "/v1/vms/{name}", responses((status = 200, body = VmView)))]
async fn vm(State(daemon): Daemoned, Segment(name): Segment<String>) -> Answer<VmView> {
    blocking(daemon, move |daemon| protecting::show(daemon, &name)).await
}

/// Stops a VM.
#[utoipa::path(post, path = "/v1/vms/{name}/stop", request_body = StopVm, responses((status = 200, body = VmView)))]
async fn stop_vm(State(daemon): Daemoned, Segment(name): Segment<String>, Json(ask): Json<StopVm>) -> Answer<VmView> {
    daemon.protections.refuse_if_protected(&name)?;
    let stop = move |daemon: &Arc<Daemon>| match moving::landing::stop(daemon, &name, ask.force) {
        Some(stopped) => stopped,
        None => daemon.vms.stop(&name, ask.force),
    };
    blocking(daemon, stop).await
}

/// Moves a VM with its volumes to another node while it runs.
#[utoipa::path(post, path = "/v1/vms/{name}/move", request_body = MoveRequest, responses((status = 200, body = JobView)))]
async fn move_vm(
    State(daemon): Daemoned,
    Segment(name): Segment<String>,
    Json(ask): Json<MoveRequest>,
) -> Answer<JobView> {
    daemon.protections.refuse_if_protected(&name)?;
    moving::start_vm(&daemon, &name, ask).map(Json)
}

/// Cancels a VM's move that has not switched yet.
#[utoipa::path(post, path = "/v1/vms/{name}/cancel", responses((status = 200, body = JobView)))]
async fn cancel_vm(State(daemon): Daemoned, Segment(name): Segment<String>) -> Answer<JobView> {
    moving::cancel_vm(&daemon, &name).map(Json)
}

/// All jobs, oldest first.
#[utoipa::path(get, path = "/v1/jobs", responses((status = 200, body = [JobView])))]
async fn jobs(State(daemon): Daemoned) -> Json<Vec<JobView>> {
    Json(daemon.jobs.list())
}

/// One job; with `watch=true` a line of JSON at each change until it is over.
#[utoipa::path(get, path = "/v1/jobs/{id}", params(WatchQuery), responses((status = 200, body = JobView)))]
async fn job(
    State(daemon): Daemoned,
    Segment(id): Segment<String>,
    Query(query): Query<WatchQuery>,
) -> Result<Response, ApiError> {
    let job = daemon.jobs.get(&id)?;
    if !query.watch {
        return Ok(Json(job.view()).into_response());
    }
    let lines = futures_util::stream::unfold(Some(job.follow()), |follower| async {
        let mut follower = follower?;
        let view = follower.borrow_and_update().clone();
        let mut line = serde_json::to_string(&view).unwrap_or_default();
        line.push('\n');
        let next = if view.state.is_over() || follower.changed().await.is_err() { None } else { Some(follower) };
        Some((Ok::<_, std::convert::Infallible>(line), next))
    });
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response())
}

/// Wishes a job to end early.
#[utoipa::path(post, path = "/v1/jobs/{id}/cancel", responses((status = 200, body = JobView)))]
async fn cancel_job(State(daemon): Daemoned, Segment(id): Segment<String>) -> Answer<JobView> {
    let job = daemon.jobs.get(&id)?;
    job.cancel();
    Ok(Json(job.view()))
}
