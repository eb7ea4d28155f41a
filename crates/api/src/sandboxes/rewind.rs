//! `POST /atoll/sandboxes/{sandboxID}/rewind`.

use std::sync::Arc;

use atoll_core::{SandboxId, error::codes, reference::Reference};
use atoll_state::model::Team;
use atoll_wire::rest;
use axum::{Json as JsonAnswer, extract::State};

use super::{
    create::template_error,
    detail, find,
    refusal::{Refusal, answered},
};
use crate::{
    auth::Caller,
    control::Control,
    error::{ApiError, ApiResult},
    extract::{Json, SandboxPath},
};

/// Takes a running sandbox back to one of its snapshots: what it has done since is lost. It keeps its
/// id and its tokens. Not of E2B's protocol.
#[utoipa::path(post, path = "/atoll/sandboxes/{sandboxID}/rewind", tag = "atoll",
    params(("sandboxID" = String, Path)), request_body = rest::RewindRequest,
    responses(
        (status = 200, description = "It runs, as it was then", body = rest::SandboxDetail),
        (status = 400, body = rest::Error), (status = 401, body = rest::Error),
        (status = 404, body = rest::Error), (status = 409, body = rest::Error),
        (status = 500, body = rest::Error),
    ))]
pub(crate) async fn rewind_sandbox(
    State(control): State<Arc<Control>>,
    Caller(team): Caller,
    SandboxPath(id): SandboxPath,
    Json(body): Json<rest::RewindRequest>,
) -> ApiResult<JsonAnswer<rest::SandboxDetail>> {
    find(&control, &team, &id).await?;
    let build = build(&control, &team, &id, &body.snapshot_id).await?;
    let (worker, name) = (control.clone(), id.clone());
    let work = async move {
        let answer = worker.node.rewind(&name, &build).await;
        let sandbox = answered(&worker, &name, answer).await?;
        Ok(worker.learn(sandbox).await?)
    };
    match control.to_the_end(work).await? {
        Ok(entry) => Ok(JsonAnswer(detail(&control, &entry))),
        Err(Refusal::Paused) => Err(ApiError::fixed(
            codes::SANDBOX_PAUSED,
            format!("Sandbox '{id}' is paused and cannot be rewound; resume it first"),
        )),
        Err(refusal) => Err(refusal.told_of("rewound", &id)),
    }
}

/// The build that is the snapshot of this reference, if it is one of the sandbox.
async fn build(
    control: &Control,
    team: &Team,
    id: &SandboxId,
    snapshot: &str,
) -> ApiResult<String> {
    let reference = Reference::parse(snapshot).map_err(|error| {
        ApiError::fixed(codes::INVALID_REQUEST, format!("Invalid snapshot reference: {error}"))
    })?;
    let resolved = control.database.resolve_template(&reference, team).await;
    let build = resolved.map_err(template_error)?.build.id;
    let snapshots = control.database.snapshots(team.id).await?;
    if !snapshots.iter().any(|known| known.build == build && known.sandbox == *id) {
        return Err(ApiError::fixed(
            codes::INVALID_REQUEST,
            format!("'{snapshot}' is no snapshot of sandbox '{id}'"),
        ));
    }
    Ok(build.to_string())
}
