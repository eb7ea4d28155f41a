//! `POST /sandboxes/{sandboxID}/timeout` and `POST /sandboxes/{sandboxID}/refreshes`.
//!
//! The node has the deadline and keeps it. It never goes beyond the sandbox's longest run, counted
//! from its start.

use std::sync::Arc;

use atoll_core::{
    error::codes,
    limits::{MAX_REFRESH, MIN_REFRESH},
};
use atoll_state::catalogue::Entry;
use atoll_wire::{node::Deadline, rest};
use axum::extract::State;
use http::StatusCode;
use jiff::{SignedDuration, Timestamp};

use super::{
    find,
    refusal::{Refusal, answered},
    shown_state,
};
use crate::{
    auth::Caller,
    control::Control,
    error::{ApiError, ApiResult},
    extract::{Json, OptionalJson, SandboxPath, seconds},
};

/// Sets the deadline, sooner or later than it was.
#[utoipa::path(post, path = "/sandboxes/{sandboxID}/timeout", tag = "sandboxes",
    params(("sandboxID" = String, Path)), request_body = rest::TimeoutRequest,
    responses(
        (status = 204, description = "The deadline is set"), (status = 400, body = rest::Error),
        (status = 401, body = rest::Error), (status = 404, body = rest::Error),
        (status = 409, body = rest::Error), (status = 500, body = rest::Error),
    ))]
pub(crate) async fn set_timeout(
    State(control): State<Arc<Control>>,
    Caller(team): Caller,
    SandboxPath(id): SandboxPath,
    Json(body): Json<rest::TimeoutRequest>,
) -> ApiResult<StatusCode> {
    let timeout = seconds("timeout", body.timeout)?;
    let entry = find(&control, &team, &id).await?;
    if has_run_longest(&entry) {
        return Err(ApiError::fixed(codes::INVALID_REQUEST, "Max instance length exceeded"));
    }
    move_deadline(&control, &entry, Deadline::In(timeout)).await
}

/// Keeps a sandbox alive for a while longer.
#[utoipa::path(post, path = "/sandboxes/{sandboxID}/refreshes", tag = "sandboxes",
    params(("sandboxID" = String, Path)), request_body = Option<rest::RefreshRequest>,
    responses(
        (status = 204, description = "It lives that long at least"),
        (status = 400, body = rest::Error), (status = 401, body = rest::Error),
        (status = 404, body = rest::Error), (status = 409, body = rest::Error),
    ))]
pub(crate) async fn refresh_sandbox(
    State(control): State<Arc<Control>>,
    Caller(team): Caller,
    SandboxPath(id): SandboxPath,
    OptionalJson(body): OptionalJson<rest::RefreshRequest>,
) -> ApiResult<StatusCode> {
    const LEAST: u32 = MIN_REFRESH.as_secs() as u32;
    const MOST: u32 = MAX_REFRESH.as_secs() as u32;
    let duration = match body.duration {
        Some(duration) => seconds("duration", duration)?,
        None => LEAST,
    };
    if duration > MOST {
        return Err(ApiError::validation(format!(
            "duration must be {MOST} or less, got {duration}"
        )));
    }
    let entry = find(&control, &team, &id).await?;
    move_deadline(&control, &entry, Deadline::AtLeastIn(duration.max(LEAST))).await
}

fn has_run_longest(entry: &Entry) -> bool {
    let record = &entry.sandbox.record;
    let longest = SignedDuration::from_secs(record.longest.into());
    let is_paused = shown_state(entry.sandbox.state) == rest::SandboxState::Paused;
    !is_paused && Timestamp::now().duration_since(record.started_at) >= longest
}

/// A request that is dropped on the way has moved it or not.
async fn move_deadline(
    control: &Control,
    entry: &Entry,
    deadline: Deadline,
) -> ApiResult<StatusCode> {
    let id = &entry.sandbox.record.id;
    match answered(control, id, control.node.set_end(id, deadline).await).await {
        Ok(sandbox) => {
            control.learn(sandbox).await?;
            Ok(StatusCode::NO_CONTENT)
        }
        Err(Refusal::Paused) => Err(ApiError::sandbox_not_found(id)),
        Err(refusal) => Err(refusal.told(id)),
    }
}
