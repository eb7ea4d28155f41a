//! What tags mean and have meant, in the published clients' specification only:
//! `GET /templates/{templateID}/tags/count`, `/exists`, `/groups` and `/{tag}/assignments`.
//!
//! Only builds that are ready count. A page begins behind the last item of the one before, by what
//! the items are sorted by: so it is right even when some came or went in between.

use std::{cmp::Reverse, sync::Arc};

use atoll_core::{error::codes, limits::PAGE_SIZE, reference::Reference};
use atoll_state::{builds::TagAssignment, model::Team};
use atoll_wire::rest;
use axum::{Json, extract::State};
use serde::Deserialize;
use uuid::Uuid;

use super::{owned, parse_tag, tags::current};
use crate::{
    auth::Caller,
    control::Control,
    error::{ApiError, ApiResult},
    extract::{Query, Segment, Segments},
};

/// Counts the tags of a template.
#[utoipa::path(get, path = "/templates/{templateID}/tags/count", tag = "tags",
    params(("templateID" = String, Path)),
    responses(
        (status = 200, body = rest::TagsCount), (status = 401, body = rest::Error),
        (status = 404, body = rest::Error), (status = 500, body = rest::Error),
    ))]
pub(crate) async fn count_tags(
    State(control): State<Arc<Control>>,
    Caller(team): Caller,
    Segment(template): Segment,
) -> ApiResult<Json<rest::TagsCount>> {
    let tags = current(assignments(&control, &team, &template).await?);
    Ok(Json(rest::TagsCount { total: tags.len() as u64 }))
}

/// The query of `/exists`.
#[derive(Debug, Deserialize)]
pub(crate) struct ExistsQuery {
    tag: String,
}

/// Tells whether a template has a tag.
#[utoipa::path(get, path = "/templates/{templateID}/tags/exists", tag = "tags",
    params(("templateID" = String, Path), ("tag" = String, Query)),
    responses(
        (status = 200, body = rest::TagExists), (status = 400, body = rest::Error),
        (status = 401, body = rest::Error), (status = 404, body = rest::Error),
        (status = 500, body = rest::Error),
    ))]
pub(crate) async fn tag_exists(
    State(control): State<Arc<Control>>,
    Caller(team): Caller,
    Segment(template): Segment,
    Query(query): Query<ExistsQuery>,
) -> ApiResult<Json<rest::TagExists>> {
    let normalized_tag = parse_tag(&query.tag)?;
    let all = assignments(&control, &team, &template).await?;
    let exists = all.iter().any(|assignment| assignment.tag == normalized_tag);
    Ok(Json(rest::TagExists { exists, normalized_tag }))
}

/// The query of `/{tag}/assignments`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct AssignmentsQuery {
    cursor: Option<String>,
    limit: Option<i64>,
}

/// Lists what a tag has meant, the last first.
#[utoipa::path(get, path = "/templates/{templateID}/tags/{tag}/assignments", tag = "tags",
    params(
        ("templateID" = String, Path), ("tag" = String, Path),
        ("cursor" = Option<String>, Query, description = "`nextCursor` of the page before"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 100, description = "50 by default"),
    ),
    responses(
        (status = 200, body = rest::TagAssignments), (status = 400, body = rest::Error),
        (status = 401, body = rest::Error), (status = 404, body = rest::Error),
        (status = 500, body = rest::Error),
    ))]
pub(crate) async fn tag_assignments(
    State(control): State<Arc<Control>>,
    Caller(team): Caller,
    Segments((template, tag)): Segments<(String, String)>,
    Query(query): Query<AssignmentsQuery>,
) -> ApiResult<Json<rest::TagAssignments>> {
    let tag = parse_tag(&tag)?;
    let limit = limit("limit", query.limit, 50)?;
    let behind = query.cursor.as_deref().map(number).transpose()?.unwrap_or(u64::MAX);
    let mut page = assignments(&control, &team, &template).await?;
    page.retain(|assignment| assignment.tag == tag && assignment.id < behind);
    let next_cursor = cut(&mut page, limit).map(|last| last.id.to_string());
    Ok(Json(rest::TagAssignments { data: page.iter().map(shown).collect(), next_cursor }))
}

/// The query of `/groups`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct GroupsQuery {
    assignment_limit: Option<i64>,
    tags_limit: Option<i64>,
    tags_cursor: Option<String>,
    search: String,
    sort: Sort,
}

/// How tags are sorted.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Sort {
    LatestAsc,
    #[default]
    LatestDesc,
    NameAsc,
    NameDesc,
}

/// Lists the tags of a template with what each has meant.
#[utoipa::path(get, path = "/templates/{templateID}/tags/groups", tag = "tags",
    params(
        ("templateID" = String, Path),
        ("assignmentLimit" = Option<u32>, Query, minimum = 1, maximum = 100, description = "Most assignments of a tag; 6 by default"),
        ("tagsLimit" = Option<u32>, Query, minimum = 1, maximum = 100, description = "25 by default"),
        ("tagsCursor" = Option<String>, Query, description = "`nextCursor` of the page before"),
        ("search" = Option<String>, Query, description = "What tags must contain"),
        ("sort" = Option<String>, Query, description = "`latest_desc` (default), `latest_asc`, `name_asc` or `name_desc`"),
    ),
    responses(
        (status = 200, body = rest::TagGroups), (status = 400, body = rest::Error),
        (status = 401, body = rest::Error), (status = 404, body = rest::Error),
        (status = 500, body = rest::Error),
    ))]
pub(crate) async fn tag_groups(
    State(control): State<Arc<Control>>,
    Caller(team): Caller,
    Segment(template): Segment,
    Query(query): Query<GroupsQuery>,
) -> ApiResult<Json<rest::TagGroups>> {
    let most = limit("assignmentLimit", query.assignment_limit, 6)?;
    let size = limit("tagsLimit", query.tags_limit, 25)?;
    let search = query.search.to_lowercase();
    let all = assignments(&control, &team, &template).await?;
    let mut tags = current(all.clone());
    tags.retain(|last| last.tag.contains(&search));
    query.sort.apply(&mut tags, query.tags_cursor.as_deref())?;
    let next_cursor = cut(&mut tags, size).map(|last| query.sort.cursor(last));
    let group = |last: &TagAssignment| {
        let mut own = all.iter().filter(|assignment| assignment.tag == last.tag);
        let assignments = own.by_ref().take(most).map(shown).collect();
        rest::TagGroup { tag: last.tag.clone(), assignments, has_more: own.next().is_some() }
    };
    Ok(Json(rest::TagGroups { tags: tags.iter().map(group).collect(), next_cursor }))
}

impl Sort {
    /// Sorts the last assignment of each tag, and leaves what is behind the cursor.
    fn apply(self, tags: &mut Vec<TagAssignment>, cursor: Option<&str>) -> ApiResult<()> {
        match self {
            Self::LatestAsc => tags.sort_by_key(|last| last.id),
            Self::LatestDesc => tags.sort_by_key(|last| Reverse(last.id)),
            Self::NameAsc => tags.sort_by(|a, b| a.tag.cmp(&b.tag)),
            Self::NameDesc => tags.sort_by(|a, b| b.tag.cmp(&a.tag)),
        }
        let Some(cursor) = cursor else { return Ok(()) };
        match self {
            Self::LatestAsc => {
                let behind = number(cursor)?;
                tags.retain(|last| last.id > behind);
            }
            Self::LatestDesc => {
                let behind = number(cursor)?;
                tags.retain(|last| last.id < behind);
            }
            Self::NameAsc => tags.retain(|last| last.tag.as_str() > cursor),
            Self::NameDesc => tags.retain(|last| last.tag.as_str() < cursor),
        }
        Ok(())
    }

    fn cursor(self, last: &TagAssignment) -> String {
        match self {
            Self::LatestAsc | Self::LatestDesc => last.id.to_string(),
            Self::NameAsc | Self::NameDesc => last.tag.clone(),
        }
    }
}

/// All assignments of the team's template. Another team's is not found, whoever may use it.
async fn assignments(
    control: &Control,
    team: &Team,
    template: &str,
) -> ApiResult<Vec<TagAssignment>> {
    let missing =
        || ApiError::fixed(codes::TEMPLATE_NOT_FOUND, format!("template '{template}' not found"));
    let reference = Reference::parse(template).map_err(|_| missing())?;
    let found = owned(control, team, &reference).await;
    let named = found.map_err(|error| match error.code().status {
        403 | 404 => missing(),
        _ => error,
    })?;
    Ok(control.database.tag_assignments(&named.template).await?)
}

fn limit(name: &str, value: Option<i64>, default: usize) -> ApiResult<usize> {
    let Some(value) = value else { return Ok(default) };
    match usize::try_from(value) {
        Ok(limit) if (1..=PAGE_SIZE as usize).contains(&limit) => Ok(limit),
        _ => Err(ApiError::validation(format!("{name} must be 1 to {PAGE_SIZE}, got {value}"))),
    }
}

fn number(cursor: &str) -> ApiResult<u64> {
    cursor.parse().map_err(|_| ApiError::validation("the cursor is not one of this listing"))
}

/// Leaves a page; its last item if there is more behind it.
fn cut(items: &mut Vec<TagAssignment>, size: usize) -> Option<&TagAssignment> {
    if items.len() <= size {
        return None;
    }
    items.truncate(size);
    items.last()
}

/// The id of an assignment is its number, in the shape that clients expect.
fn shown(assignment: &TagAssignment) -> rest::TagAssignment {
    rest::TagAssignment {
        assignment_id: Uuid::from_u64_pair(0, assignment.id).to_string(),
        build_id: assignment.build.to_string(),
        assigned_at: assignment.assigned_at,
        build_created_at: assignment.build_created_at,
        build_finished_at: assignment.build_finished_at,
    }
}
