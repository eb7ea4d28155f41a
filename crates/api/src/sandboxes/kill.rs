//! `DELETE /sandboxes/{sandboxID}`.

use std::sync::Arc;

use atoll_wire::{node::EndReason, rest};
use axum::extract::State;
use http::StatusCode;

use super::find;
use crate::{
    auth::Caller,
    control::Control,
    error::{ApiError, ApiResult},
    extract::SandboxPath,
};

/// Ends a sandbox, whatever its state. Nothing is left of it when this answers.
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
