//! How a build goes, and what it says: `GET /templates/{templateID}/builds/{buildID}/status` and
//! `…/logs` (control-plane contract, section 10.7).
//!
//! A build's log only grows, so that a client which asks for what is behind the lines that it has
//! gets each once, and nothing more once the build is over.

use std::sync::Arc;

use atoll_core::{
    error::codes,
    limits::{LOG_RETENTION, PAGE_SIZE},
};
use atoll_state::{
    builds::{BuildLogQuery, BuildLogStart, BuildRecord},
    model::Direction,
};
use atoll_wire::{build::BuildLine, log::LogLevel, rest};
use axum::{Json, extract::State};
use jiff::Timestamp;
use serde::Deserialize;
use uuid::Uuid;

use super::{build_of, invalid, is_of, shown_status};
use crate::{
    auth::Principal,
    control::Control,
    error::{ApiError, ApiResult},
    extract::{Query, Segments},
    sandboxes::logs::{direction, level, milliseconds},
};

/// The query of the status.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct StatusQuery {
    logs_offset: Option<i64>,
    limit: Option<i64>,
    level: Option<String>,
}

/// The query of the log.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct LogsQuery {
    cursor: Option<i64>,
    limit: Option<i64>,
    direction: Option<String>,
    level: Option<String>,
    source: Option<String>,
}

/// Where a build stands, with a page of its log.
#[utoipa::path(get, path = "/templates/{templateID}/builds/{buildID}/status", tag = "templates",
    params(
        ("templateID" = String, Path), ("buildID" = String, Path),
        ("logsOffset" = Option<i64>, Query, description = "Lines to leave out; 0 by default"),
        ("limit" = Option<i64>, Query, description = "Most lines: 100, which is the default, or fewer"),
        ("level" = Option<String>, Query, description = "The least level: `debug` (default), `info`, `warn` or `error`"),
    ),
    responses(
        (status = 200, body = rest::TemplateBuildInfo), (status = 400, body = rest::Error),
        (status = 401, body = rest::Error), (status = 403, body = rest::Error),
        (status = 500, body = rest::Error),
    ),
    security(("ApiKeyAuth" = []), ("AdminApiKeyAuth" = [], "AdminTeamAuth" = []), ("AccessTokenAuth" = [])))]
pub(crate) async fn build_status(
    State(control): State<Arc<Control>>,
    principal: Principal,
    Segments((template, build)): Segments<(String, String)>,
    Query(query): Query<StatusQuery>,
) -> ApiResult<Json<rest::TemplateBuildInfo>> {
    let offset = query.logs_offset.unwrap_or(0);
    let offset = u64::try_from(offset)
        .map_err(|_| ApiError::validation(format!("logsOffset must be 0 or more, got {offset}")))?;
    let (limit, level) = (limit(query.limit)?, level(query.level.as_deref())?);
    // Before the lines: what is over says nothing more.
    let record = find(&control, &principal, &template, &build).await?;
    let query =
        BuildLogQuery { build: record.build.id, level, limit, from: BuildLogStart::Offset(offset) };
    let lines = control.database.build_log(&query).await?;
    let log_entries: Vec<_> = lines.into_iter().map(entry).collect();
    Ok(Json(rest::TemplateBuildInfo {
        template_id: record.template.to_string(),
        build_id: record.build.id.to_string(),
        status: shown_status(record.status),
        logs: Vec::new(),
        reason: reason(&record, &log_entries),
        log_entries,
    }))
}

/// A page of a build's log.
#[utoipa::path(get, path = "/templates/{templateID}/builds/{buildID}/logs", tag = "templates",
    params(
        ("templateID" = String, Path), ("buildID" = String, Path),
        ("cursor" = Option<i64>, Query, description = "Unix milliseconds: lines from then on, or from before then when read backward"),
        ("limit" = Option<i64>, Query, description = "Most lines: 100, which is the default, or fewer"),
        ("direction" = Option<String>, Query, description = "`forward` from the oldest line (default) or `backward`"),
        ("level" = Option<String>, Query, description = "The least level: `debug` (default), `info`, `warn` or `error`"),
        ("source" = Option<String>, Query, description = "`temporary` or `persistent`: here they are the same"),
    ),
    responses(
        (status = 200, body = rest::TemplateBuildLogs), (status = 400, body = rest::Error),
        (status = 401, body = rest::Error), (status = 403, body = rest::Error),
        (status = 500, body = rest::Error),
    ),
    security(("ApiKeyAuth" = []), ("AdminApiKeyAuth" = [], "AdminTeamAuth" = []), ("AccessTokenAuth" = [])))]
pub(crate) async fn build_logs(
    State(control): State<Arc<Control>>,
    principal: Principal,
    Segments((template, build)): Segments<(String, String)>,
    Query(query): Query<LogsQuery>,
) -> ApiResult<Json<rest::TemplateBuildLogs>> {
    let cursor = milliseconds("cursor", query.cursor)?;
    let direction = query.direction.as_deref().map(|name| direction(Some(name))).transpose()?;
    let direction = direction.unwrap_or(Direction::Forward);
    let (limit, level) = (limit(query.limit)?, level(query.level.as_deref())?);
    if let Some(source) = query.source.filter(|it| it != "temporary" && it != "persistent") {
        return Err(ApiError::validation(format!(
            "source must be 'temporary' or 'persistent', got '{source}'"
        )));
    }
    let record = find(&control, &principal, &template, &build).await?;
    let start = cursor.unwrap_or_else(|| match direction {
        Direction::Forward => Timestamp::now() - LOG_RETENTION,
        Direction::Backward => Timestamp::MAX,
    });
    let from = BuildLogStart::Time(start, direction);
    let query = BuildLogQuery { build: record.build.id, level, limit, from };
    let lines = control.database.build_log(&query).await?;
    Ok(Json(rest::TemplateBuildLogs { logs: lines.into_iter().map(entry).collect() }))
}

fn limit(value: Option<i64>) -> ApiResult<u32> {
    let value = value.unwrap_or(i64::from(PAGE_SIZE));
    match u32::try_from(value) {
        Ok(limit) if limit <= PAGE_SIZE => Ok(limit),
        _ => Err(ApiError::validation(format!("limit must be 0 to {PAGE_SIZE}, got {value}"))),
    }
}

/// The build, if the caller may look at it.
async fn find(
    control: &Control,
    principal: &Principal,
    template: &str,
    build: &str,
) -> ApiResult<BuildRecord> {
    let id = Uuid::parse_str(build).map_err(|_| invalid("Invalid build id"))?;
    let record = build_of(control, template, id).await?;
    let record = record.ok_or_else(|| invalid(format!("Build '{id}' not found")))?;
    if !is_of(principal, record.team) {
        let message = "You don't have access to this template";
        return Err(ApiError::fixed(codes::FORBIDDEN, message));
    }
    Ok(record)
}

fn entry(line: BuildLine) -> rest::BuildLogEntry {
    let BuildLine { timestamp, level, step, message } = line;
    rest::BuildLogEntry { timestamp, message, level, step }
}

fn reason(record: &BuildRecord, page: &[rest::BuildLogEntry]) -> Option<rest::BuildStatusReason> {
    let failure = record.failure.clone()?;
    let tells = |entry: &&rest::BuildLogEntry| {
        failure.step.is_some() && entry.step == failure.step && entry.level >= LogLevel::Warn
    };
    Some(rest::BuildStatusReason {
        log_entries: page.iter().filter(tells).cloned().collect(),
        message: failure.message,
        step: failure.step,
        code: failure.code,
    })
}
