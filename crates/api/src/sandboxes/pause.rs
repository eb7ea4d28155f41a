//! `POST /sandboxes/{sandboxID}/pause`.

use std::sync::Arc;

use atoll_core::error::codes;
use atoll_wire::rest;
use axum::extract::State;
use http::StatusCode;

use super::{
    find,
    refusal::{Refusal, answered},
};
use crate::{
    auth::Caller,
    control::Control,
    error::{ApiError, ApiResult},
    extract::{OptionalJson, SandboxPath},
};

/// Pauses a sandbox. It takes no memory and no processor when this answers, and goes on when it is
/// resumed, as far as `kept` says.
#[utoipa::path(post, path = "/sandboxes/{sandboxID}/pause", tag = "sandboxes",
    params(("sandboxID" = String, Path)), request_body = Option<rest::PauseRequest>,
    responses(
        (status = 204, description = "It is paused"), (status = 400, body = rest::Error),
        (status = 401, body = rest::Error), (status = 404, body = rest::Error),
        (status = 409, body = rest::Error), (status = 500, body = rest::Error),
    ))]
pub(crate) async fn pause_sandbox(
    State(control): State<Arc<Control>>,
    Caller(team): Caller,
    SandboxPath(id): SandboxPath,
    OptionalJson(body): OptionalJson<rest::PauseRequest>,
) -> ApiResult<StatusCode> {
    if body.require_healthy_guest == Some(true) {
        return Err(ApiError::unsupported("requireHealthyGuest"));
    }
    find(&control, &team, &id).await?;
    let memory = body.memory.unwrap_or(true);
    let (worker, name) = (control.clone(), id.clone());
    let work = async move {
        let answer = worker.node.pause(&name, memory).await;
        let sandbox = answered(&worker, &name, answer).await?;
        worker.learn(sandbox).await?;
        Ok(())
    };
    match control.to_the_end(work).await? {
        Ok(()) => Ok(StatusCode::NO_CONTENT),
        Err(Refusal::Paused) => Err(ApiError::fixed(
            codes::SANDBOX_PAUSED,
            format!("Error pausing sandbox - sandbox '{id}' is already paused"),
        )),
        Err(refusal) => Err(refusal.told_of("paused", &id)),
    }
}
