//! `GET /templates`, `GET /templates/aliases/{alias}` and `DELETE /templates/{templateID}`
//! (control-plane contract, sections 8, 10.9 and 10.10).

use std::sync::Arc;

use atoll_core::{Error, error::codes, reference::Reference};
use atoll_state::model::{self, Team};
use atoll_wire::rest;
use axum::{Json, extract::State};
use http::StatusCode;
use serde::Deserialize;

use crate::{
    auth::{Caller, Principal, check_standing},
    control::Control,
    error::{ApiError, ApiResult},
    extract::{Query, Segment},
    sandboxes::create::template_error,
    snapshots,
};

/// The query of `GET /templates`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TemplatesQuery {
    #[serde(rename = "teamID")]
    team_id: Option<String>,
}

/// Lists the team's templates and the public ones of the deployment, oldest first.
#[utoipa::path(get, path = "/templates", tag = "templates",
    params(("teamID" = Option<String>, Query, description = "The team; by default the key's, or the user's default one")),
    responses(
        (status = 200, body = Vec<rest::Template>), (status = 400, body = rest::Error),
        (status = 401, body = rest::Error), (status = 403, body = rest::Error),
        (status = 500, body = rest::Error),
    ),
    security(("ApiKeyAuth" = []), ("AdminApiKeyAuth" = [], "AdminTeamAuth" = []), ("AccessTokenAuth" = [])))]
pub(crate) async fn list_templates(
    State(control): State<Arc<Control>>,
    principal: Principal,
    Query(query): Query<TemplatesQuery>,
) -> ApiResult<Json<Vec<rest::Template>>> {
    let team = team_of(&principal, query.team_id.as_deref())?;
    let templates = control.database.templates(team).await?;
    Ok(Json(templates.into_iter().map(listed).collect()))
}

/// The team to list for.
fn team_of<'a>(principal: &'a Principal, wanted: Option<&str>) -> ApiResult<&'a Team> {
    let wanted = wanted.filter(|wanted| !wanted.is_empty());
    let is_wanted = |team: &Team| wanted.is_none_or(|wanted| team.id.to_string() == wanted);
    match principal {
        Principal::Team(team) if is_wanted(team) => Ok(team),
        Principal::Team(_) => {
            Err(ApiError::fixed(codes::INVALID_REQUEST, "Team ID param mismatch with the API key"))
        }
        Principal::User { teams, .. } if teams.is_empty() => {
            Err(ApiError::fixed(codes::FORBIDDEN, "You don't have access to any teams"))
        }
        Principal::User { teams, .. } => {
            let team = teams.iter().find(|team| is_wanted(team)).ok_or_else(|| {
                ApiError::fixed(codes::FORBIDDEN, "You are not allowed to access this team")
            })?;
            check_standing(team, true)?;
            Ok(team)
        }
        Principal::Admin | Principal::Anyone => {
            Err(Error::new(codes::INTERNAL, "a route of teams was reached without one.").into())
        }
    }
}

fn listed(template: model::Template) -> rest::Template {
    rest::Template {
        template_id: template.id.to_string(),
        build_id: template.build.id.to_string(),
        cpu_count: template.build.vcpu,
        memory_mb: template.build.memory_mb,
        disk_size_mb: template.build.disk_mb,
        public: template.public,
        aliases: template.aliases,
        names: template.names,
        created_at: template.created_at,
        updated_at: template.updated_at,
        created_by: None,
        last_spawned_at: template.last_spawned_at,
        spawn_count: template.spawn_count,
        build_count: template.build_count,
        envd_version: template.build.envd_version,
        build_status: rest::BuildStatus::Ready,
    }
}

/// Tells whether a template of this name exists.
#[utoipa::path(get, path = "/templates/aliases/{alias}", tag = "templates",
    params(("alias" = String, Path, description = "`[namespace/]alias[:tag]`, percent-encoded")),
    responses(
        (status = 200, body = rest::TemplateAlias), (status = 400, body = rest::Error),
        (status = 401, body = rest::Error), (status = 403, body = rest::Error),
        (status = 404, body = rest::Error), (status = 500, body = rest::Error),
    ))]
pub(crate) async fn template_alias(
    State(control): State<Arc<Control>>,
    Caller(team): Caller,
    Segment(alias): Segment,
) -> ApiResult<Json<rest::TemplateAlias>> {
    let reference = Reference::parse(&alias).map_err(|error| {
        ApiError::fixed(codes::INVALID_REQUEST, format!("Invalid template reference: {error}"))
    })?;
    let resolved =
        control.database.resolve_template(&reference, &team).await.map_err(|error| match error
            .code
            .status
        {
            403 => {
                ApiError::fixed(codes::FORBIDDEN, "You don't have access to this template alias")
            }
            404 => ApiError::as_fixed(error),
            _ => error.into(),
        })?;
    let public = control.database.find_template(&reference, &team).await?.is_public;
    Ok(Json(rest::TemplateAlias { template_id: resolved.template.to_string(), public }))
}

/// Deletes a snapshot, whatever the tag, with all that was taken under its name. Sandboxes of the
/// team that were made of it stand in the way.
#[utoipa::path(delete, path = "/templates/{templateID}", tag = "templates",
    params(("templateID" = String, Path, description = "`[namespace/]alias-or-id[:tag]`, percent-encoded")),
    responses(
        (status = 204, description = "It is gone"), (status = 400, body = rest::Error),
        (status = 401, body = rest::Error), (status = 403, body = rest::Error),
        (status = 404, body = rest::Error), (status = 500, body = rest::Error),
    ),
    security(("ApiKeyAuth" = []), ("AdminApiKeyAuth" = [], "AdminTeamAuth" = []), ("AccessTokenAuth" = [])))]
pub(crate) async fn delete_template(
    State(control): State<Arc<Control>>,
    principal: Principal,
    Segment(template): Segment,
) -> ApiResult<StatusCode> {
    let team = team_of(&principal, None)?;
    let reference = Reference::parse(&template).map_err(|error| {
        ApiError::fixed(codes::INVALID_REQUEST, format!("Invalid template reference: {error}"))
    })?;
    let named = control.database.find_template(&reference, team).await.map_err(template_error)?;
    if !named.is_own {
        return Err(ApiError::fixed(
            codes::FORBIDDEN,
            format!("you don't have access to template '{}'", reference.name),
        ));
    }
    if !named.is_snapshot {
        return Err(ApiError::new(
            codes::NOT_IMPLEMENTED,
            "Of templates, this release deletes snapshots only.",
        ));
    }
    snapshots::delete(&control, team, named.template).await?;
    Ok(StatusCode::NO_CONTENT)
}
