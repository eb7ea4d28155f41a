//! What tags mean: `POST` and `DELETE /templates/tags`, `GET /templates/{templateID}/tags`
//! (control-plane contract, section 10.10).

use std::{collections::HashSet, sync::Arc};

use atoll_core::{
    error::codes,
    reference::{DEFAULT_TAG, Reference},
};
use atoll_state::builds::TagAssignment;
use atoll_wire::rest;
use axum::{Json as JsonAnswer, extract::State};
use http::StatusCode;

use super::{invalid, owned, parse_reference, parse_tags};
use crate::{
    auth::Caller,
    control::Control,
    error::{ApiError, ApiResult},
    extract::{Json, Segment},
    sandboxes::create::template_error,
};

const NO_TAGS: &str = "At least one tag is required";

/// Lets tags mean the build that another one means.
#[utoipa::path(post, path = "/templates/tags", tag = "tags", request_body = rest::AssignTags,
    responses(
        (status = 201, body = rest::AssignedTags), (status = 400, body = rest::Error),
        (status = 401, body = rest::Error), (status = 403, body = rest::Error),
        (status = 404, body = rest::Error), (status = 500, body = rest::Error),
    ))]
pub(crate) async fn assign_tags(
    State(control): State<Arc<Control>>,
    Caller(team): Caller,
    Json(body): Json<rest::AssignTags>,
) -> ApiResult<(StatusCode, JsonAnswer<rest::AssignedTags>)> {
    let target = Reference::parse(&body.target)
        .map_err(|error| invalid(format!("Invalid target template format: {error}")))?;
    if body.tags.is_empty() {
        return Err(invalid(NO_TAGS));
    }
    let tags = parse_tags(&body.tags)?;
    let tag = target.tag.as_deref().unwrap_or(DEFAULT_TAG);
    let missing = || {
        let name = Reference { tag: None, ..target.clone() };
        ApiError::fixed(
            codes::TEMPLATE_NOT_FOUND,
            format!("Template '{name}' with tag '{tag}' not found"),
        )
    };
    let found = owned(&control, &team, &target).await;
    let named = found.map_err(|error| match error.code().status {
        404 => missing(),
        _ => error,
    })?;
    let resolved = control.database.resolve_template(&target, &team).await;
    let build = resolved.map_err(|error| match error.code.status {
        404 => missing(),
        _ => template_error(error),
    })?;
    let build = build.build.id;
    control.database.assign_tags(&named.template, build, &tags).await?;
    let answer = rest::AssignedTags { tags, build_id: build.to_string() };
    Ok((StatusCode::CREATED, JsonAnswer(answer)))
}

/// Takes tags away from a template's builds.
#[utoipa::path(delete, path = "/templates/tags", tag = "tags", request_body = rest::DeleteTags,
    responses(
        (status = 204, description = "They mean nothing any more"),
        (status = 400, body = rest::Error), (status = 401, body = rest::Error),
        (status = 403, body = rest::Error), (status = 404, body = rest::Error),
        (status = 500, body = rest::Error),
    ))]
pub(crate) async fn delete_tags(
    State(control): State<Arc<Control>>,
    Caller(team): Caller,
    Json(body): Json<rest::DeleteTags>,
) -> ApiResult<StatusCode> {
    if body.name.contains(':') {
        return Err(invalid(
            "Template name should not contain a tag, use the 'tags' field instead",
        ));
    }
    let reference = parse_reference(&body.name)?;
    if body.tags.is_empty() {
        return Err(invalid(NO_TAGS));
    }
    let tags = parse_tags(&body.tags)?;
    if tags.iter().any(|tag| tag == DEFAULT_TAG) {
        return Err(invalid("Cannot delete the 'default' tag"));
    }
    let named = owned(&control, &team, &reference).await?;
    control.database.remove_tags(&named.template, &tags).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Lists the tags of a template, each with the build that it means.
#[utoipa::path(get, path = "/templates/{templateID}/tags", tag = "tags",
    params(("templateID" = String, Path, description = "`[namespace/]alias-or-id`, percent-encoded")),
    responses(
        (status = 200, body = Vec<rest::TemplateTag>), (status = 400, body = rest::Error),
        (status = 401, body = rest::Error), (status = 403, body = rest::Error),
        (status = 404, body = rest::Error), (status = 500, body = rest::Error),
    ))]
pub(crate) async fn list_tags(
    State(control): State<Arc<Control>>,
    Caller(team): Caller,
    Segment(template): Segment,
) -> ApiResult<JsonAnswer<Vec<rest::TemplateTag>>> {
    let named = owned(&control, &team, &parse_reference(&template)?).await?;
    let all = control.database.tag_assignments(&named.template).await?;
    Ok(JsonAnswer(current(all).into_iter().map(shown).collect()))
}

/// Of assignments, the last first, those that count.
pub(super) fn current(mut all: Vec<TagAssignment>) -> Vec<TagAssignment> {
    let mut seen = HashSet::new();
    all.retain(|assignment| seen.insert(assignment.tag.clone()));
    all
}

fn shown(assignment: TagAssignment) -> rest::TemplateTag {
    rest::TemplateTag {
        tag: assignment.tag,
        build_id: assignment.build.to_string(),
        created_at: assignment.assigned_at,
    }
}
