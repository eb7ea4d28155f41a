//! `GET /v2/sandboxes` and `GET /sandboxes`.

use std::sync::Arc;

use atoll_core::{TemplateId, error::codes, reference::Reference};
use atoll_state::{catalogue::Entry, model::Team};
use atoll_wire::rest::{self, SandboxState};
use axum::{Json, extract::State};
use http::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;

use super::{
    filter::{MetadataFilter, order, started_after, states},
    listed, shown_state,
};
use crate::{
    auth::Caller,
    control::Control,
    cursor::{Key, Order},
    error::{ApiError, ApiResult},
    extract::Query,
    page::Page,
};

const TOTAL_RUNNING: HeaderName = HeaderName::from_static("x-total-running");

/// The query of `GET /v2/sandboxes`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ListQuery {
    metadata: Option<String>,
    state: Option<String>,
    order: Option<String>,
    started_after: Option<String>,
    template: Option<String>,
    limit: Option<i64>,
    next_token: Option<String>,
}

/// The query of `GET /sandboxes`.
#[derive(Debug, Deserialize)]
pub(crate) struct RunningQuery {
    metadata: Option<String>,
}

/// Lists the team's running sandboxes, newest first, on one page.
#[utoipa::path(get, path = "/sandboxes", tag = "sandboxes",
    params(("metadata" = Option<String>, Query, description = "Labels to match, form-encoded twice")),
    responses(
        (status = 200, body = Vec<rest::ListedSandbox>), (status = 400, body = rest::Error),
        (status = 401, body = rest::Error), (status = 500, body = rest::Error),
    ))]
pub(crate) async fn list_running_sandboxes(
    State(control): State<Arc<Control>>,
    Caller(team): Caller,
    Query(query): Query<RunningQuery>,
) -> ApiResult<Json<Vec<rest::ListedSandbox>>> {
    let metadata = MetadataFilter::parse(query.metadata.as_deref().unwrap_or_default())?;
    let mut entries = control.catalogue.list(&team.id.to_string()).await?;
    entries.retain(|entry| is_in(entry, SandboxState::Running) && metadata.matches(entry));
    entries.sort_by(|a, b| key(a).compare(&key(b), Order::Descending));
    Ok(Json(entries.iter().map(listed).collect()))
}

/// Lists the team's sandboxes in pages.
#[utoipa::path(get, path = "/v2/sandboxes", tag = "sandboxes",
    params(
        ("metadata" = Option<String>, Query, description = "Labels to match, form-encoded twice"),
        ("state" = Option<String>, Query, description = "`running`, `paused` or both, comma-separated; both by default"),
        ("order" = Option<String>, Query, description = "By start: `desc` (default) or `asc`"),
        ("startedAfter" = Option<String>, Query, description = "RFC 3339, inclusive"),
        ("template" = Option<String>, Query, description = "Name or id, without a tag"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 100, description = "100 by default"),
        ("nextToken" = Option<String>, Query, description = "`X-Next-Token` of the page before"),
    ),
    responses(
        (status = 200, body = Vec<rest::ListedSandbox>, headers(
            ("X-Next-Token" = String, description = "Absent on the last page"),
            ("X-Total-Running" = u64, description = "Running sandboxes that match, on all pages"),
        )),
        (status = 400, body = rest::Error), (status = 401, body = rest::Error),
        (status = 500, body = rest::Error),
    ))]
pub(crate) async fn list_sandboxes(
    State(control): State<Arc<Control>>,
    Caller(team): Caller,
    Query(query): Query<ListQuery>,
) -> ApiResult<(HeaderMap, Json<Vec<rest::ListedSandbox>>)> {
    let order = order(query.order.as_deref())?;
    let page = Page::new(query.limit, query.next_token.as_deref(), order)?;
    let states = states(query.state.as_deref())?;
    let mut entries = matching(&control, &team, &query).await?;
    entries.retain(|entry| states.contains(&shown_state(entry.sandbox.state)));

    let mut headers = HeaderMap::new();
    if states.contains(&SandboxState::Running) {
        let running = entries.iter().filter(|entry| is_in(entry, SandboxState::Running)).count();
        headers.insert(TOTAL_RUNNING, HeaderValue::from(running));
    }
    page.cut(&mut entries, key, &mut headers)?;
    Ok((headers, Json(entries.iter().map(listed).collect())))
}

/// The team's sandboxes that pass every filter but that of states.
async fn matching(control: &Control, team: &Team, query: &ListQuery) -> ApiResult<Vec<Entry>> {
    let metadata = MetadataFilter::parse(query.metadata.as_deref().unwrap_or_default())?;
    let started_after = started_after(query.started_after.as_deref())?;
    let template = match &query.template {
        None => None,
        Some(text) => match template(control, team, text).await? {
            Some(template) => Some(template),
            None => return Ok(Vec::new()),
        },
    };
    let mut entries = control.catalogue.list(&team.id.to_string()).await?;
    entries.retain(|entry| {
        metadata.matches(entry)
            && started_after
                .is_none_or(|after| entry.sandbox.record.started_at.as_microsecond() >= after)
            && template.as_ref().is_none_or(|template| entry.sandbox.record.template == *template)
    });
    Ok(entries)
}

/// The template that a filter names; none when there is none that the team may see.
async fn template(control: &Control, team: &Team, text: &str) -> ApiResult<Option<TemplateId>> {
    let invalid =
        |why: String| ApiError::fixed(codes::INVALID_REQUEST, format!("Invalid template: {why}"));
    if text.contains(':') {
        return Err(invalid("a tag cannot be filtered by".to_owned()));
    }
    let reference = Reference::parse(text).map_err(|error| invalid(error.to_string()))?;
    match control.database.find_template(&reference, team).await {
        Ok(named) => Ok(Some(named.template)),
        Err(error) if error.code.status < 500 => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn is_in(entry: &Entry, state: SandboxState) -> bool {
    shown_state(entry.sandbox.state) == state
}

fn key(entry: &Entry) -> Key {
    let record = &entry.sandbox.record;
    Key::new(record.started_at, record.id.as_str())
}
