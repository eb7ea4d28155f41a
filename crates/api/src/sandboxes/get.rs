//! `GET /sandboxes/{sandboxID}`.

use std::sync::Arc;

use atoll_wire::rest;
use axum::{Json, extract::State};

use super::{detail, find_shown};
use crate::{auth::Caller, control::Control, error::ApiResult, extract::SandboxPath};

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
    let entry = find_shown(&control, &team, &id).await?;
    Ok(Json(detail(&control, &entry)))
}
