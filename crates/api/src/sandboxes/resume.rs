//! `POST /sandboxes/{sandboxID}/connect`, its v2, and `POST /sandboxes/{sandboxID}/resume`.

use std::sync::Arc;

use atoll_core::{
    SandboxId,
    error::codes,
    lifecycle,
    limits::{DEFAULT_TIMEOUT_V1, DEFAULT_TIMEOUT_V2},
};
use atoll_state::{catalogue::Entry, model::Team};
use atoll_wire::{
    node::{OnTimeout, Resume},
    rest,
};
use axum::{Json as JsonAnswer, extract::State};
use http::StatusCode;

use super::{
    create::{check_timeout, limit_error},
    find,
    refusal::{Refusal, answered, being_snapshotted},
    summary,
};
use crate::{
    auth::Caller,
    control::Control,
    error::{ApiError, ApiResult},
    extract::{Json, OptionalJson, SandboxPath, seconds},
};

type Answer = (StatusCode, JsonAnswer<rest::Sandbox>);

/// Returns a sandbox that runs, after resuming it if it was paused, and lets it live at least as long
/// as asked.
#[utoipa::path(post, path = "/sandboxes/{sandboxID}/connect", tag = "sandboxes",
    params(("sandboxID" = String, Path)), request_body = rest::ConnectRequest,
    responses(
        (status = 200, description = "It ran already", body = rest::Sandbox),
        (status = 201, description = "It was paused", body = rest::Sandbox),
        (status = 400, body = rest::Error), (status = 401, body = rest::Error),
        (status = 404, body = rest::Error), (status = 409, body = rest::Error),
        (status = 429, body = rest::Error), (status = 500, body = rest::Error),
        (status = 503, body = rest::Error), (status = 504, body = rest::Error),
    ))]
pub(crate) async fn connect_sandbox(
    State(control): State<Arc<Control>>,
    Caller(team): Caller,
    SandboxPath(id): SandboxPath,
    Json(body): Json<rest::ConnectRequest>,
) -> ApiResult<Answer> {
    let timeout = body.timeout.ok_or_else(|| ApiError::validation("missing field `timeout`"))?;
    connect(&control, &team, &id, timeout, body.memory).await
}

/// As the v1 connect; the timeout is 300 seconds by default.
#[utoipa::path(post, path = "/v2/sandboxes/{sandboxID}/connect", tag = "sandboxes",
    params(("sandboxID" = String, Path)), request_body = Option<rest::ConnectRequest>,
    responses(
        (status = 200, description = "It ran already", body = rest::Sandbox),
        (status = 201, description = "It was paused", body = rest::Sandbox),
        (status = 400, body = rest::Error), (status = 401, body = rest::Error),
        (status = 404, body = rest::Error), (status = 409, body = rest::Error),
        (status = 429, body = rest::Error), (status = 500, body = rest::Error),
        (status = 503, body = rest::Error), (status = 504, body = rest::Error),
    ))]
pub(crate) async fn connect_sandbox_v2(
    State(control): State<Arc<Control>>,
    Caller(team): Caller,
    SandboxPath(id): SandboxPath,
    OptionalJson(body): OptionalJson<rest::ConnectRequest>,
) -> ApiResult<Answer> {
    const DEFAULT: i32 = DEFAULT_TIMEOUT_V2.as_secs() as i32;
    connect(&control, &team, &id, body.timeout.unwrap_or(DEFAULT), body.memory).await
}

async fn connect(
    control: &Arc<Control>,
    team: &Team,
    id: &SandboxId,
    timeout: i32,
    memory: Option<bool>,
) -> ApiResult<Answer> {
    let timeout = seconds("timeout", timeout)?;
    refuse_memory(memory)?;
    find(control, team, id).await?;
    check_timeout(team, timeout)?;
    let resume = Resume { timeout, on_timeout: None };
    let (entry, was_paused) =
        run_again(control, team, id, resume).await.map_err(|refusal| refusal.told(id))?;
    let status = if was_paused { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, JsonAnswer(summary(control, &entry))))
}

/// Resumes a paused sandbox. Deprecated for connect.
#[utoipa::path(post, path = "/sandboxes/{sandboxID}/resume", tag = "sandboxes",
    params(("sandboxID" = String, Path)), request_body = Option<rest::ResumeRequest>,
    responses(
        (status = 201, description = "It runs", body = rest::Sandbox),
        (status = 400, body = rest::Error), (status = 401, body = rest::Error),
        (status = 404, body = rest::Error), (status = 409, body = rest::Error),
        (status = 429, body = rest::Error), (status = 500, body = rest::Error),
        (status = 503, body = rest::Error), (status = 504, body = rest::Error),
    ))]
pub(crate) async fn resume_sandbox(
    State(control): State<Arc<Control>>,
    Caller(team): Caller,
    SandboxPath(id): SandboxPath,
    OptionalJson(body): OptionalJson<rest::ResumeRequest>,
) -> ApiResult<Answer> {
    const DEFAULT: i32 = DEFAULT_TIMEOUT_V1.as_secs() as i32;
    let timeout = seconds("timeout", body.timeout.unwrap_or(DEFAULT))?;
    refuse_memory(body.memory)?;
    let entry = find(&control, &team, &id).await?;
    if timeout == 0 {
        return Err(ApiError::fixed(codes::INVALID_REQUEST, "Timeout must be greater than 0"));
    }
    check_timeout(&team, timeout)?;
    let runs = || ApiError::fixed(codes::CONFLICT, format!("Sandbox {id} is already running"));
    match entry.sandbox.state {
        lifecycle::State::Running | lifecycle::State::Starting => return Err(runs()),
        lifecycle::State::Snapshotting => return Err(being_snapshotted(&id)),
        lifecycle::State::Ending => return Err(ApiError::sandbox_not_found(&id)),
        _ => {}
    }
    let on_timeout = on_timeout(body.auto_pause, entry.sandbox.record.on_timeout);
    match run_again(&control, &team, &id, Resume { timeout, on_timeout }).await {
        Ok((entry, true)) => Ok((StatusCode::CREATED, JsonAnswer(summary(&control, &entry)))),
        Ok((_, false)) => Err(runs()),
        Err(Refusal::Ending) => Err(ApiError::sandbox_not_found(&id)),
        Err(refusal) => Err(refusal.told(&id)),
    }
}

/// What the field `autoPause` of a resume makes of what there was.
fn on_timeout(auto_pause: Option<bool>, present: OnTimeout) -> Option<OnTimeout> {
    match (auto_pause?, present) {
        (true, OnTimeout::Kill) => Some(OnTimeout::Pause { memory: true }),
        (true, OnTimeout::Pause { .. }) => None,
        (false, _) => Some(OnTimeout::Kill),
    }
}

fn refuse_memory(memory: Option<bool>) -> ApiResult<()> {
    match memory {
        None => Ok(()),
        Some(_) => Err(ApiError::new(
            codes::MEMORY_OVERRIDE_DISABLED,
            "The field 'memory' is not available on this deployment.",
        )),
    }
}

/// Lets the team's sandbox run, and says whether it was paused. However many ask at once, it is
/// resumed once, and takes one place under the team's limit. Goes on when the caller goes away: the
/// place is held until the outcome is known.
pub(crate) async fn run_again(
    control: &Arc<Control>,
    team: &Team,
    id: &SandboxId,
    resume: Resume,
) -> Result<(Entry, bool), Refusal> {
    let limit = team.tier.concurrent_sandboxes;
    let place = control.catalogue.reserve(&team.id.to_string(), id, limit).await;
    let place = place.map_err(|error| limit_error(error, team))?;
    let (worker, id) = (control.clone(), id.clone());
    let work = async move {
        let answer = worker.node.resume(&id, resume).await;
        let resumed = answered(&worker, &id, answer).await?;
        let entry = worker.learn(resumed.sandbox).await?;
        drop(place);
        Ok((entry, resumed.was_paused))
    };
    control.to_the_end(work).await?
}
