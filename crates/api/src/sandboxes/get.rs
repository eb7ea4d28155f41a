//! `GET /sandboxes/{sandboxID}`.

use std::sync::Arc;

use atoll_state::catalogue::Phase;
use atoll_wire::rest::{self, OnTimeout, SandboxLifecycle};
use axum::{Json, extract::State};

use super::{find, listed};
use crate::{
    auth::Caller,
    control::Control,
    error::{ApiError, ApiResult},
    extract::SandboxPath,
};

/// Shows a sandbox.
#[utoipa::path(get, path = "/sandboxes/{sandboxID}", tag = "sandboxes",
    params(("sandboxID" = String, Path)),
    responses(
        (status = 200, body = rest::SandboxDetail), (status = 400, body = rest::Error),
        (status = 401, body = rest::Error), (status = 404, body = rest::Error),
        (status = 500, body = rest::Error),
    ))]
pub(crate) async fn get_sandbox(
    State(control): State<Arc<Control>>,
    Caller(team): Caller,
    SandboxPath(id): SandboxPath,
) -> ApiResult<Json<rest::SandboxDetail>> {
    let entry = find(&control, &team, &id).await?;
    if entry.phase == Phase::Killing {
        return Err(ApiError::sandbox_not_found(&id));
    }
    Ok(Json(rest::SandboxDetail {
        listed: listed(&entry),
        envd_access_token: entry.record.envd_access_token.clone(),
        allow_internet_access: entry.record.allow_internet_access,
        domain: control.domain.clone(),
        lifecycle: SandboxLifecycle { auto_resume: false, on_timeout: OnTimeout::Kill },
    }))
}
