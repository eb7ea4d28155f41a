//! Looking at templates: `GET /templates`, `GET /v2/templates`, `GET /default-templates`,
//! `GET /templates/{templateID}` and `GET /templates/aliases/{alias}` (control-plane contract,
//! sections 10.9 and 10.10).

use std::sync::Arc;

use atoll_core::{error::codes, reference::Reference};
use atoll_state::{
    builds::{BuildRecord, BuildStatus},
    model::{self, Team},
};
use atoll_wire::rest;
use axum::{Json, extract::State};
use http::HeaderMap;
use serde::Deserialize;

use super::{owned, parse_reference, shown_status, team_of};
use crate::{
    auth::{Caller, Principal},
    control::Control,
    cursor::{Key, Order},
    error::{ApiError, ApiResult},
    extract::{Query, Segment},
    page::Page,
};

/// The query of the listings.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct TemplatesQuery {
    #[serde(rename = "teamID")]
    team_id: Option<String>,
    limit: Option<i64>,
    next_token: Option<String>,
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
    Ok(Json(templates.into_iter().map(|template| listed(template, team)).collect()))
}

/// Lists the same in pages, newest first.
#[utoipa::path(get, path = "/v2/templates", tag = "templates",
    params(
        ("teamID" = Option<String>, Query, description = "The team; by default the key's, or the user's default one"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 100, description = "100 by default"),
        ("nextToken" = Option<String>, Query, description = "`X-Next-Token` of the page before"),
    ),
    responses(
        (status = 200, body = Vec<rest::Template>, headers(
            ("X-Next-Token" = String, description = "Absent on the last page"),
        )),
        (status = 400, body = rest::Error), (status = 401, body = rest::Error),
        (status = 403, body = rest::Error), (status = 500, body = rest::Error),
    ),
    security(("ApiKeyAuth" = []), ("AdminApiKeyAuth" = [], "AdminTeamAuth" = []), ("AccessTokenAuth" = [])))]
pub(crate) async fn list_templates_v2(
    State(control): State<Arc<Control>>,
    principal: Principal,
    Query(query): Query<TemplatesQuery>,
) -> ApiResult<(HeaderMap, Json<Vec<rest::Template>>)> {
    let team = team_of(&principal, query.team_id.as_deref())?;
    let page = Page::new(query.limit, query.next_token.as_deref(), Order::Descending)?;
    let mut templates = control.database.templates(team).await?;
    let mut headers = HeaderMap::new();
    let key = |template: &model::Template| Key::new(template.created_at, template.id.as_str());
    page.cut(&mut templates, key, &mut headers)?;
    let templates = templates.into_iter().map(|template| listed(template, team)).collect();
    Ok((headers, Json(templates)))
}

/// Lists the templates that came with the deployment, ordered by id.
#[utoipa::path(get, path = "/default-templates", tag = "templates",
    responses(
        (status = 200, body = Vec<rest::Template>), (status = 401, body = rest::Error),
        (status = 500, body = rest::Error),
    ),
    security(("ApiKeyAuth" = []), ("AdminApiKeyAuth" = [], "AdminTeamAuth" = []), ("AccessTokenAuth" = [])))]
pub(crate) async fn list_default_templates(
    State(control): State<Arc<Control>>,
    principal: Principal,
) -> ApiResult<Json<Vec<rest::Template>>> {
    let team = team_of(&principal, None)?;
    let mut templates = control.database.templates(team).await?;
    templates.retain(model::Template::is_shipped);
    templates.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(Json(templates.into_iter().map(|template| listed(template, team)).collect()))
}

/// How often a template of another team was used is not told.
pub(super) fn listed(template: model::Template, team: &Team) -> rest::Template {
    let is_own = template.team == team.id;
    rest::Template {
        is_default: template.is_shipped(),
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
        last_spawned_at: template.last_spawned_at.filter(|_| is_own),
        spawn_count: if is_own { template.spawn_count } else { 0 },
        build_count: if is_own { template.build_count } else { 0 },
        envd_version: template.build.envd_version,
        build_status: shown_status(template.status),
    }
}

/// The query of one template.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct BuildsQuery {
    limit: Option<i64>,
    next_token: Option<String>,
}

/// One of the team's templates, with a page of its builds, newest first.
#[utoipa::path(get, path = "/templates/{templateID}", tag = "templates",
    params(
        ("templateID" = String, Path),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 100, description = "100 by default"),
        ("nextToken" = Option<String>, Query, description = "`X-Next-Token` of the page before"),
    ),
    responses(
        (status = 200, body = rest::TemplateWithBuilds, headers(
            ("X-Next-Token" = String, description = "Absent on the last page"),
        )),
        (status = 400, body = rest::Error), (status = 401, body = rest::Error),
        (status = 403, body = rest::Error), (status = 404, body = rest::Error),
        (status = 500, body = rest::Error),
    ))]
pub(crate) async fn get_template(
    State(control): State<Arc<Control>>,
    Caller(team): Caller,
    Segment(template): Segment,
    Query(query): Query<BuildsQuery>,
) -> ApiResult<(HeaderMap, Json<rest::TemplateWithBuilds>)> {
    let page = Page::new(query.limit, query.next_token.as_deref(), Order::Descending)?;
    let named = owned(&control, &team, &parse_reference(&template)?).await?;
    let all = control.database.templates(&team).await?;
    // Snapshots are not among them.
    let found = all.into_iter().find(|found| found.id == named.template).ok_or_else(|| {
        ApiError::fixed(codes::TEMPLATE_NOT_FOUND, format!("template '{template}' not found"))
    })?;
    let mut builds = control.database.template_builds(&found.id).await?;
    let mut headers = HeaderMap::new();
    let key = |record: &BuildRecord| Key::new(record.created_at, &record.build.id.to_string());
    page.cut(&mut builds, key, &mut headers)?;
    let builds = builds.into_iter().map(shown_build).collect();
    Ok((headers, Json(rest::TemplateWithBuilds { template: listed(found, &team), builds })))
}

fn shown_build(record: BuildRecord) -> rest::TemplateBuild {
    let is_ready = record.status == BuildStatus::Ready;
    rest::TemplateBuild {
        build_id: record.build.id.to_string(),
        status: shown_status(record.status),
        created_at: record.created_at,
        updated_at: record.updated_at,
        finished_at: record.finished_at,
        cpu_count: record.build.vcpu,
        memory_mb: record.build.memory_mb,
        disk_size_mb: record.build.disk_mb,
        envd_version: is_ready.then_some(record.build.envd_version),
    }
}

/// Tells whether a template of this name exists, with this tag if there is one.
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
    let reference = parse_reference(&alias)?;
    let (template_id, public) = exists(&control, &team, &reference).await?;
    Ok(Json(rest::TemplateAlias { template_id, public }))
}

async fn exists(
    control: &Control,
    team: &Team,
    reference: &Reference,
) -> ApiResult<(String, bool)> {
    let refused = |error: atoll_core::Error| match error.code.status {
        403 => ApiError::fixed(codes::FORBIDDEN, "You don't have access to this template alias"),
        404 => ApiError::as_fixed(error),
        _ => error.into(),
    };
    let named = control.database.find_template(reference, team).await.map_err(refused)?;
    if reference.tag.is_some() {
        control.database.resolve_template(reference, team).await.map_err(refused)?;
    }
    Ok((named.template.to_string(), named.is_public))
}
