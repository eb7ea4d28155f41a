//! `POST /v3/templates` and `POST /v2/templates` (control-plane contract, section 10.2).

use std::sync::Arc;

use atoll_core::{
    Error, TemplateId,
    error::codes,
    limits::{TEMPLATE_MEMORY_MB, TEMPLATE_VCPU},
    reference::{DEFAULT_TAG, Reference},
};
use atoll_state::{
    builds::{BuildStatus, NewTemplateBuild, Registered},
    model::{Build, Team},
};
use atoll_wire::rest;
use axum::{Json as JsonAnswer, extract::State};
use http::StatusCode;
use uuid::Uuid;

use super::{invalid, list::listed, parse_tag, parse_tags};
use crate::{
    auth::Caller,
    control::Control,
    error::{ApiError, ApiResult},
    extract::Json,
    sandboxes::create::template_error,
};

/// Registers a build, of a template of that name or of a new one.
#[utoipa::path(post, path = "/v3/templates", tag = "templates", request_body = rest::TemplateRequest,
    responses(
        (status = 202, description = "It waits", body = rest::RegisteredTemplate),
        (status = 400, body = rest::Error), (status = 401, body = rest::Error),
        (status = 403, body = rest::Error), (status = 409, body = rest::Error),
        (status = 429, body = rest::Error), (status = 500, body = rest::Error),
    ))]
pub(crate) async fn register_template(
    State(control): State<Arc<Control>>,
    Caller(team): Caller,
    Json(body): Json<rest::TemplateRequest>,
) -> ApiResult<(StatusCode, JsonAnswer<rest::RegisteredTemplate>)> {
    let new = check(&team, &body)?;
    let registered = register(&control, &team, &new).await?;
    let answer = rest::RegisteredTemplate {
        template_id: registered.template.to_string(),
        build_id: new.build.id.to_string(),
        public: registered.public,
        names: registered.names,
        tags: new.tags,
        aliases: registered.aliases,
    };
    Ok((StatusCode::ACCEPTED, JsonAnswer(answer)))
}

/// The same for older clients.
#[utoipa::path(post, path = "/v2/templates", tag = "templates", request_body = rest::TemplateRequest,
    responses(
        (status = 202, description = "It waits", body = rest::Template),
        (status = 400, body = rest::Error), (status = 401, body = rest::Error),
        (status = 403, body = rest::Error), (status = 409, body = rest::Error),
        (status = 429, body = rest::Error), (status = 500, body = rest::Error),
    ))]
pub(crate) async fn register_template_v2(
    State(control): State<Arc<Control>>,
    Caller(team): Caller,
    Json(body): Json<rest::TemplateRequest>,
) -> ApiResult<(StatusCode, JsonAnswer<rest::Template>)> {
    if body.alias.is_none() {
        return Err(ApiError::validation("alias is required"));
    }
    let new = check(&team, &rest::TemplateRequest { name: None, tags: None, ..body })?;
    let registered = register(&control, &team, &new).await?;
    let templates = control.database.templates(&team).await?;
    let template = templates.into_iter().find(|template| template.id == registered.template);
    let template = template.ok_or_else(|| {
        Error::new(codes::CONFLICT, "the template was deleted as soon as it was registered.")
    })?;
    let mut answer = listed(template, &team);
    answer.build_id = new.build.id.to_string();
    answer.build_status = super::shown_status(BuildStatus::Waiting);
    Ok((StatusCode::ACCEPTED, JsonAnswer(answer)))
}

async fn register(
    control: &Arc<Control>,
    team: &Team,
    new: &NewTemplateBuild,
) -> ApiResult<Registered> {
    let registered = control.database.register_build(new, team).await;
    registered.map_err(|error| match error.code {
        code if code == codes::BUILD_LIMIT => error.into(),
        _ => template_error(error),
    })
}

/// All checks, in the contract's order.
fn check(team: &Team, body: &rest::TemplateRequest) -> ApiResult<NewTemplateBuild> {
    let given = |text: &Option<String>| {
        text.as_deref().map(str::trim).filter(|text| !text.is_empty()).map(str::to_owned)
    };
    let name = given(&body.name).or_else(|| given(&body.alias));
    let name = name.ok_or_else(|| invalid("Name is required"))?;
    let reference =
        Reference::parse(&name).map_err(|error| invalid(format!("Invalid name: {error}")))?;
    if let Some(namespace) = reference.namespace.filter(|namespace| *namespace != team.slug) {
        return Err(invalid(format!(
            "namespace '{namespace}' must match your team '{}'",
            team.slug
        )));
    }
    if given(&body.team_id).is_some_and(|id| id != team.id.to_string()) {
        return Err(invalid("Team ID param mismatch with the API key"));
    }
    let mut tags = parse_tags(body.tags.as_deref().unwrap_or_default())?;
    let own_tag = name.split_once(':').map(|(_, tag)| parse_tag(tag)).transpose()?;
    if let Some(tag) = own_tag.filter(|tag| !tags.contains(tag)) {
        tags.insert(0, tag);
    }
    if tags.is_empty() {
        tags.push(DEFAULT_TAG.to_owned());
    }
    let build = Build {
        id: Uuid::new_v4(),
        vcpu: vcpu(team, body.cpu_count)?,
        memory_mb: memory(team, body.memory_mb)?,
        disk_mb: team.tier.disk_mb,
        envd_version: String::new(),
    };
    let template = TemplateId::generate().map_err(|error| {
        Error::new(codes::INTERNAL, format!("the system gives no randomness: {error}."))
    })?;
    Ok(NewTemplateBuild { template, alias: reference.name, tags, build })
}

fn vcpu(team: &Team, wanted: Option<i64>) -> ApiResult<u32> {
    let (default, most) = TEMPLATE_VCPU;
    let limit = team.tier.max_vcpu;
    let wanted = wanted.unwrap_or(i64::from(default.min(limit)));
    if wanted < 1 {
        return Err(invalid("CPU count must be at least 1"));
    }
    if wanted > i64::from(most) {
        return Err(invalid(format!("CPU count must be at most {most}")));
    }
    if wanted != 1 && wanted % 2 != 0 {
        return Err(invalid("CPU count must be 1 or an even number"));
    }
    u32::try_from(wanted).ok().filter(|count| *count <= limit).ok_or_else(|| {
        invalid(format!(
            "CPU count can't be higher than {limit} (if you need to increase this limit, please \
             contact support)"
        ))
    })
}

fn memory(team: &Team, wanted: Option<i64>) -> ApiResult<u32> {
    let (default, least) = TEMPLATE_MEMORY_MB;
    let limit = team.tier.max_ram_mb;
    let wanted = wanted.unwrap_or(i64::from(default.min(limit)));
    if wanted < i64::from(least) {
        return Err(invalid(format!("Memory must be at least {least} MiB")));
    }
    if wanted % 2 != 0 {
        return Err(invalid("Memory must be divisible by 2"));
    }
    u32::try_from(wanted).ok().filter(|size| *size <= limit).ok_or_else(|| {
        invalid(format!(
            "Memory can't be higher than {limit} MiB (if you need to increase this limit, please \
             contact support)"
        ))
    })
}
