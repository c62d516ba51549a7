//! Routes of trust groups and of VMs' memory.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{Path as Segment, State},
    routing::{get, post},
};
use utoipa::OpenApi;

use super::{Answer, Daemoned, blocking};
use crate::{
    api::types::{CreateGroup, GroupView, MemoryChange, MemoryView, ResizeMemory, SetHorizon, SetMemoryAuto},
    daemon::{
        Daemon,
        memory::{groups, resize},
    },
};

/// What describes them.
#[derive(OpenApi)]
#[openapi(paths(
    all_groups,
    create_group,
    group,
    remove_group,
    join_group,
    leave_group,
    enable_shadowing,
    disable_shadowing,
    set_shadowing_horizon,
    vm_memory,
    resize_vm,
    follow_vm
))]
pub(super) struct Document;

pub(super) fn router() -> Router<Arc<Daemon>> {
    Router::new()
        .route("/v1/groups", get(all_groups).post(create_group))
        .route("/v1/groups/{name}", get(group).delete(remove_group))
        .route("/v1/groups/{name}/members/{vm}", post(join_group).delete(leave_group))
        .route("/v1/groups/{name}/enable", post(enable_shadowing))
        .route("/v1/groups/{name}/disable", post(disable_shadowing))
        .route("/v1/groups/{name}/horizon", post(set_shadowing_horizon))
        .route("/v1/vms/{name}/memory", get(vm_memory).post(resize_vm))
        .route("/v1/vms/{name}/memory/auto", post(follow_vm))
}

/// All trust groups.
#[utoipa::path(get, path = "/v1/groups", responses((status = 200, body = [GroupView])))]
async fn all_groups(State(daemon): Daemoned) -> Answer<Vec<GroupView>> {
    blocking(daemon, groups::list).await
}

/// Makes a trust group.
#[utoipa::path(post, path = "/v1/groups", request_body = CreateGroup, responses((status = 200, body = GroupView)))]
async fn create_group(State(daemon): Daemoned, Json(ask): Json<CreateGroup>) -> Answer<GroupView> {
    blocking(daemon, move |daemon| groups::create(daemon, &ask)).await
}

/// A trust group and how its staged memory does (getShadowingStats).
#[utoipa::path(get, path = "/v1/groups/{name}", responses((status = 200, body = GroupView)))]
async fn group(State(daemon): Daemoned, Segment(name): Segment<String>) -> Answer<GroupView> {
    blocking(daemon, move |daemon| groups::show(daemon, &name)).await
}

/// Removes a trust group; tells what it was.
#[utoipa::path(delete, path = "/v1/groups/{name}", responses((status = 200, body = GroupView)))]
async fn remove_group(State(daemon): Daemoned, Segment(name): Segment<String>) -> Answer<GroupView> {
    blocking(daemon, move |daemon| groups::remove(daemon, &name)).await
}

/// Adds a VM to a trust group.
#[utoipa::path(post, path = "/v1/groups/{name}/members/{vm}", responses((status = 200, body = GroupView)))]
async fn join_group(State(daemon): Daemoned, Segment((name, vm)): Segment<(String, String)>) -> Answer<GroupView> {
    blocking(daemon, move |daemon| groups::join(daemon, &name, &vm)).await
}

/// Takes a VM out of a trust group.
#[utoipa::path(delete, path = "/v1/groups/{name}/members/{vm}", responses((status = 200, body = GroupView)))]
async fn leave_group(State(daemon): Daemoned, Segment((name, vm)): Segment<(String, String)>) -> Answer<GroupView> {
    blocking(daemon, move |daemon| groups::leave(daemon, &name, &vm)).await
}

/// Makes memory ready for a group (enableShadowing).
#[utoipa::path(post, path = "/v1/groups/{name}/enable", responses((status = 200, body = GroupView)))]
async fn enable_shadowing(State(daemon): Daemoned, Segment(name): Segment<String>) -> Answer<GroupView> {
    blocking(daemon, move |daemon| groups::set_shadowing(daemon, &name, true)).await
}

/// Makes no more memory ready for a group (disableShadowing).
#[utoipa::path(post, path = "/v1/groups/{name}/disable", responses((status = 200, body = GroupView)))]
async fn disable_shadowing(State(daemon): Daemoned, Segment(name): Segment<String>) -> Answer<GroupView> {
    blocking(daemon, move |daemon| groups::set_shadowing(daemon, &name, false)).await
}

/// Says how far ahead is looked (setShadowingHorizon).
#[utoipa::path(post, path = "/v1/groups/{name}/horizon", request_body = SetHorizon, responses((status = 200, body = GroupView)))]
async fn set_shadowing_horizon(
    State(daemon): Daemoned,
    Segment(name): Segment<String>,
    Json(ask): Json<SetHorizon>,
) -> Answer<GroupView> {
    blocking(daemon, move |daemon| groups::set_horizon(daemon, &name, ask.seconds)).await
}

/// A VM's memory.
#[utoipa::path(get, path = "/v1/vms/{name}/memory", responses((status = 200, body = MemoryView)))]
async fn vm_memory(State(daemon): Daemoned, Segment(name): Segment<String>) -> Answer<MemoryView> {
    blocking(daemon, move |daemon| resize::look(daemon, &name)).await
}

/// Gives a running guest memory, or asks for some back.
#[utoipa::path(post, path = "/v1/vms/{name}/memory", request_body = ResizeMemory, responses((status = 200, body = MemoryChange)))]
async fn resize_vm(
    State(daemon): Daemoned,
    Segment(name): Segment<String>,
    Json(ask): Json<ResizeMemory>,
) -> Answer<MemoryChange> {
    blocking(daemon, move |daemon| resize::resize(daemon, &name, &ask)).await
}

/// Has a VM's memory follow what its guest needs, or not any more.
#[utoipa::path(post, path = "/v1/vms/{name}/memory/auto", request_body = SetMemoryAuto, responses((status = 200, body = MemoryView)))]
async fn follow_vm(
    State(daemon): Daemoned,
    Segment(name): Segment<String>,
    Json(ask): Json<SetMemoryAuto>,
) -> Answer<MemoryView> {
    blocking(daemon, move |daemon| resize::follow(daemon, &name, ask.on)).await
}
