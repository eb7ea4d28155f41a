//! What is not of E2B's protocol: `POST /atoll/templates/builds/{buildID}/shell`,
//! `DELETE /atoll/templates/builds/{buildID}` and `POST /atoll/templates/prune`.

use std::sync::Arc;

use atoll_core::{Error, error::codes};
use atoll_state::{
    builds::{BuildRecord, BuildStatus},
    database::Resolved,
    model::Team,
};
use atoll_wire::{build::BuildEvent, build::BuildFailure, rest};
use axum::{Json, extract::State};
use http::StatusCode;
use uuid::Uuid;

use super::invalid;
use crate::{
    auth::Caller,
    control::Control,
    error::{ApiError, ApiResult},
    extract::{OptionalJson, Segment},
    sandboxes::create,
};

const CANCELLED: &str = "The build was cancelled.";

/// Starts a sandbox in which things are as the failed step of a build found them; of a build that is
/// ready, as it left them. Not of E2B's protocol.
#[utoipa::path(post, path = "/atoll/templates/builds/{buildID}/shell", tag = "atoll",
    params(("buildID" = String, Path)), request_body = Option<rest::ShellRequest>,
    responses(
        (status = 201, description = "It runs", body = rest::Sandbox),
        (status = 400, body = rest::Error), (status = 401, body = rest::Error),
        (status = 403, body = rest::Error), (status = 404, body = rest::Error),
        (status = 409, body = rest::Error), (status = 429, body = rest::Error),
        (status = 500, body = rest::Error), (status = 503, body = rest::Error),
    ))]
pub(crate) async fn build_shell(
    State(control): State<Arc<Control>>,
    Caller(team): Caller,
    Segment(build): Segment,
    OptionalJson(body): OptionalJson<rest::ShellRequest>,
) -> ApiResult<(StatusCode, Json<rest::Sandbox>)> {
    let record = own_build(&control, &team, &build).await?;
    let state = state_of(&record)?;
    let body = rest::NewSandbox {
        timeout: body.timeout,
        metadata: body.metadata,
        env_vars: body.env_vars,
        ..rest::NewSandbox::default()
    };
    let resolved = Resolved { template: record.template, alias: record.alias, build: record.build };
    create::of_build(&control, &team, body, resolved, state).await
}

/// The build that holds what a sandbox is to be made of.
fn state_of(record: &BuildRecord) -> ApiResult<String> {
    let id = record.build.id;
    match (record.status, &record.failure) {
        (BuildStatus::Ready, _) => Ok(id.to_string()),
        (BuildStatus::Failed, Some(failure)) if failure.parent.is_some() => {
            Ok(failure.parent.clone().unwrap_or_default())
        }
        (BuildStatus::Failed, _) => Err(ApiError::fixed(
            codes::CONFLICT,
            format!("Build '{id}' ended before there was anything to look at"),
        )),
        (BuildStatus::Waiting | BuildStatus::Building, _) => {
            Err(ApiError::fixed(codes::CONFLICT, format!("Build '{id}' is not over yet")))
        }
    }
}

/// Cancels a build. Not of E2B's protocol.
#[utoipa::path(delete, path = "/atoll/templates/builds/{buildID}", tag = "atoll",
    params(("buildID" = String, Path)),
    responses(
        (status = 204, description = "It is being stopped"), (status = 400, body = rest::Error),
        (status = 401, body = rest::Error), (status = 404, body = rest::Error),
        (status = 409, body = rest::Error), (status = 500, body = rest::Error),
    ))]
pub(crate) async fn cancel_build(
    State(control): State<Arc<Control>>,
    Caller(team): Caller,
    Segment(build): Segment,
) -> ApiResult<StatusCode> {
    let record = own_build(&control, &team, &build).await?;
    let id = record.build.id;
    if matches!(record.status, BuildStatus::Ready | BuildStatus::Failed) {
        return Err(ApiError::fixed(codes::CONFLICT, format!("Build '{id}' is over")));
    }
    // The builder says how it ended, and with it what is left to look at.
    if !control.builder.cancel(&id.to_string(), CANCELLED).await? {
        let failure = BuildFailure {
            step: None,
            code: codes::BUILD_CANCELLED.to_string(),
            message: CANCELLED.to_owned(),
            parent: None,
        };
        control.database.record_build_events(&[(id, BuildEvent::Failed(failure))]).await?;
    }
    Ok(StatusCode::NO_CONTENT)
}

/// Deletes what builds of the team left for later ones and nothing needs any more. Not of E2B's
/// protocol.
#[utoipa::path(post, path = "/atoll/templates/prune", tag = "atoll",
    responses(
        (status = 200, description = "What is deleted", body = rest::PrunedTemplates),
        (status = 401, body = rest::Error), (status = 500, body = rest::Error),
    ))]
pub(crate) async fn prune_templates(
    State(control): State<Arc<Control>>,
    Caller(team): Caller,
) -> ApiResult<Json<rest::PrunedTemplates>> {
    let (builder, team) = (control.builder.clone(), team.id.to_string());
    let pruned = control.to_the_end(async move { builder.prune(&team).await }).await??;
    Ok(Json(rest::PrunedTemplates {
        steps: pruned.steps,
        archives: pruned.archives,
        archive_bytes: pruned.archive_bytes,
    }))
}

/// The team's build of this id.
async fn own_build(control: &Control, team: &Team, build: &str) -> ApiResult<BuildRecord> {
    let id =
        Uuid::parse_str(build).map_err(|error| invalid(format!("Invalid build ID: {error}")))?;
    let record = control.database.build(id).await?.filter(|record| record.team == team.id);
    record.ok_or_else(|| Error::new(codes::NOT_FOUND, format!("There is no build {id}.")).into())
}
