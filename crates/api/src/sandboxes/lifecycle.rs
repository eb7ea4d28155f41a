//! Deadlines, connect and kill.
//!
//! A deadline never goes beyond the tier's longest run, counted from the sandbox's start.

use std::sync::Arc;

use atoll_core::{
    SandboxId,
    error::codes,
    limits::{DEFAULT_TIMEOUT_V2, MAX_REFRESH, MIN_REFRESH},
};
use atoll_state::{
    catalogue::{Deadline, Entry, Phase},
    model::Team,
};
use atoll_wire::{node::EndReason, rest};
use axum::{Json as JsonAnswer, extract::State};
use http::StatusCode;
use jiff::Timestamp;

use super::{create::check_timeout, find, find_running, summary};
use crate::{
    auth::Caller,
    control::{Control, after},
    error::{ApiError, ApiResult},
    extract::{Json, OptionalJson, SandboxPath, seconds},
};

/// Ends a sandbox. It is gone when this answers.
#[utoipa::path(delete, path = "/sandboxes/{sandboxID}", tag = "sandboxes",
    params(("sandboxID" = String, Path)),
    responses(
        (status = 204, description = "It is gone"), (status = 400, body = rest::Error),
        (status = 401, body = rest::Error), (status = 404, body = rest::Error),
        (status = 500, body = rest::Error),
    ))]
pub(crate) async fn kill_sandbox(
    State(control): State<Arc<Control>>,
    Caller(team): Caller,
    SandboxPath(id): SandboxPath,
) -> ApiResult<StatusCode> {
    find(&control, &team, &id).await?;
    if control.kill(&id, EndReason::Killed).await? {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(ApiError::sandbox_not_found(&id))
    }
}

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
    let entry = find_running(&control, &team, &id).await?;
    let now = Timestamp::now();
    let latest = latest_end(&team, &entry);
    if latest <= now {
        return Err(ApiError::fixed(codes::INVALID_REQUEST, "Max instance length exceeded"));
    }
    move_deadline(&control, &id, Deadline::Set(after(now, timeout).min(latest))).await?;
    Ok(StatusCode::NO_CONTENT)
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
    let least = MIN_REFRESH.as_secs().cast_signed();
    let most = MAX_REFRESH.as_secs().cast_signed();
    let duration = match body.duration {
        Some(duration) => seconds("duration", duration)?,
        None => least,
    };
    if duration > most {
        return Err(ApiError::validation(format!(
            "duration must be {most} or less, got {duration}"
        )));
    }
    let entry = find_running(&control, &team, &id).await?;
    extend(&control, &team, &entry, duration.max(least)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Returns a running sandbox and lets it live at least as long as asked.
#[utoipa::path(post, path = "/sandboxes/{sandboxID}/connect", tag = "sandboxes",
    params(("sandboxID" = String, Path)), request_body = rest::ConnectRequest,
    responses(
        (status = 200, description = "It runs", body = rest::Sandbox),
        (status = 400, body = rest::Error), (status = 401, body = rest::Error),
        (status = 404, body = rest::Error), (status = 409, body = rest::Error),
        (status = 500, body = rest::Error),
    ))]
pub(crate) async fn connect_sandbox(
    State(control): State<Arc<Control>>,
    Caller(team): Caller,
    SandboxPath(id): SandboxPath,
    Json(body): Json<rest::ConnectRequest>,
) -> ApiResult<JsonAnswer<rest::Sandbox>> {
    let timeout = body.timeout.ok_or_else(|| ApiError::validation("missing field `timeout`"))?;
    connect(&control, &team, &id, timeout, body.memory).await
}

/// As the v1 connect; the timeout is 300 seconds by default.
#[utoipa::path(post, path = "/v2/sandboxes/{sandboxID}/connect", tag = "sandboxes",
    params(("sandboxID" = String, Path)), request_body = Option<rest::ConnectRequest>,
    responses(
        (status = 200, description = "It runs", body = rest::Sandbox),
        (status = 400, body = rest::Error), (status = 401, body = rest::Error),
        (status = 404, body = rest::Error), (status = 409, body = rest::Error),
        (status = 500, body = rest::Error),
    ))]
pub(crate) async fn connect_sandbox_v2(
    State(control): State<Arc<Control>>,
    Caller(team): Caller,
    SandboxPath(id): SandboxPath,
    OptionalJson(body): OptionalJson<rest::ConnectRequest>,
) -> ApiResult<JsonAnswer<rest::Sandbox>> {
    const DEFAULT: i32 = DEFAULT_TIMEOUT_V2.as_secs() as i32;
    connect(&control, &team, &id, body.timeout.unwrap_or(DEFAULT), body.memory).await
}

async fn connect(
    control: &Arc<Control>,
    team: &Team,
    id: &SandboxId,
    timeout: i32,
    memory: Option<bool>,
) -> ApiResult<JsonAnswer<rest::Sandbox>> {
    let timeout = seconds("timeout", timeout)?;
    if memory.is_some() {
        return Err(ApiError::new(
            codes::MEMORY_OVERRIDE_DISABLED,
            "The field 'memory' is not available on this deployment.",
        ));
    }
    let entry = find_running(control, team, id).await?;
    check_timeout(team, timeout)?;
    let entry = extend(control, team, &entry, timeout).await?;
    Ok(JsonAnswer(summary(control, &entry)))
}

/// Lets a sandbox live for `seconds` from now, or as long as it may; never less than it had.
async fn extend(
    control: &Arc<Control>,
    team: &Team,
    entry: &Entry,
    seconds: i64,
) -> ApiResult<Entry> {
    let end = after(Timestamp::now(), seconds).min(latest_end(team, entry));
    move_deadline(control, &entry.record.id, Deadline::Extend(end)).await
}

/// The tier's longest run, from the sandbox's start.
fn latest_end(team: &Team, entry: &Entry) -> Timestamp {
    after(entry.record.started_at, i64::from(team.tier.max_length_hours) * 3600)
}

async fn move_deadline(
    control: &Arc<Control>,
    id: &SandboxId,
    deadline: Deadline,
) -> ApiResult<Entry> {
    let Some(entry) = control.catalogue.set_deadline(id, deadline).await? else {
        return Err(ApiError::sandbox_not_found(id));
    };
    if entry.phase == Phase::Killing {
        return Err(ApiError::being_killed(id));
    }
    control.mirror_deadline(&entry);
    Ok(entry)
}
