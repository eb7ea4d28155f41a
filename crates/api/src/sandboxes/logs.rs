//! `GET /sandboxes/{sandboxID}/logs` and `GET /v2/sandboxes/{sandboxID}/logs` (control-plane contract,
//! sections 9.2 and 9.3).
//!
//! Times in queries are milliseconds, a line's own time is finer: a page begins with its millisecond
//! when read forward, and ends before it when read backward. A sandbox that is not known, or is
//! another team's, has an empty log, which clients take for "not found".

use std::sync::Arc;

use atoll_core::{
    Error, SandboxId,
    error::codes,
    limits::{LOG_PAGE_SIZE, LOG_RETENTION, LOG_SEARCH_LENGTH},
};
use atoll_state::model::{Direction, LogQuery, Team};
use atoll_wire::{
    log::LogLevel,
    node::LogLine,
    rest::{self, SandboxLog, SandboxLogEntry, SandboxLogs, SandboxLogsV2Response},
};
use axum::{Json, extract::State};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::{
    auth::Caller,
    control::Control,
    error::{ApiError, ApiResult},
    extract::{Query, SandboxPath},
};

/// The query of the v1 route.
#[derive(Debug, Deserialize)]
pub(crate) struct ForwardQuery {
    start: Option<i64>,
    limit: Option<i64>,
}

/// The query of the v2 route.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct PageQuery {
    cursor: Option<i64>,
    limit: Option<i64>,
    direction: Option<String>,
    level: Option<String>,
    search: String,
}

/// A sandbox's log from a time on, oldest line first.
#[utoipa::path(get, path = "/sandboxes/{sandboxID}/logs", tag = "sandboxes",
    params(
        ("sandboxID" = String, Path),
        ("start" = Option<i64>, Query, description = "Unix milliseconds; 7 days ago by default"),
        ("limit" = Option<i64>, Query, description = "Most lines: 1000, which is the default, or fewer"),
    ),
    responses(
        (status = 200, body = SandboxLogs), (status = 400, body = rest::Error),
        (status = 401, body = rest::Error), (status = 500, body = rest::Error),
    ))]
pub(crate) async fn sandbox_logs(
    State(control): State<Arc<Control>>,
    Caller(team): Caller,
    SandboxPath(id): SandboxPath,
    Query(query): Query<ForwardQuery>,
) -> ApiResult<Json<SandboxLogs>> {
    let start = milliseconds("start", query.start)?;
    // This route has no upper bound in the specification, and clients may ask for more.
    let limit = limit(query.limit.map(|limit| limit.min(i64::from(LOG_PAGE_SIZE))))?;
    let query = LogQuery { limit, ..window(&team, &id, start, Direction::Forward) };
    let lines = control.database.logs(&query).await?;
    let logs = lines.iter().map(text_of).collect::<ApiResult<Vec<_>>>()?;
    Ok(Json(SandboxLogs { logs, log_entries: lines.into_iter().map(entry).collect() }))
}

/// A page of a sandbox's log.
#[utoipa::path(get, path = "/v2/sandboxes/{sandboxID}/logs", tag = "sandboxes",
    params(
        ("sandboxID" = String, Path),
        ("cursor" = Option<i64>, Query, description = "Unix milliseconds: lines from then on, or from before then when read backward"),
        ("limit" = Option<i64>, Query, description = "Most lines: 1000, which is the default, or fewer"),
        ("direction" = Option<String>, Query, description = "`backward` from the newest line (default) or `forward`"),
        ("level" = Option<String>, Query, description = "The least level: `debug` (default), `info`, `warn` or `error`"),
        ("search" = Option<String>, Query, description = "What messages must contain, letter for letter; up to 256 characters"),
    ),
    responses(
        (status = 200, body = SandboxLogsV2Response), (status = 400, body = rest::Error),
        (status = 401, body = rest::Error), (status = 500, body = rest::Error),
    ))]
pub(crate) async fn sandbox_logs_v2(
    State(control): State<Arc<Control>>,
    Caller(team): Caller,
    SandboxPath(id): SandboxPath,
    Query(query): Query<PageQuery>,
) -> ApiResult<Json<SandboxLogsV2Response>> {
    let cursor = milliseconds("cursor", query.cursor)?;
    let direction = direction(query.direction.as_deref())?;
    if query.search.chars().count() > LOG_SEARCH_LENGTH {
        return Err(ApiError::validation(format!(
            "search may have {LOG_SEARCH_LENGTH} characters at most"
        )));
    }
    let query = LogQuery {
        limit: limit(query.limit)?,
        level: level(query.level.as_deref())?,
        search: query.search,
        ..window(&team, &id, cursor, direction)
    };
    let lines = control.database.logs(&query).await?;
    Ok(Json(SandboxLogsV2Response { logs: lines.into_iter().map(entry).collect() }))
}

/// All that the team's sandbox logged on one side of `cursor`, as far as it is kept.
fn window(
    team: &Team,
    id: &SandboxId,
    cursor: Option<Timestamp>,
    direction: Direction,
) -> LogQuery {
    let oldest = Timestamp::now() - LOG_RETENTION;
    let (from, until) = match direction {
        Direction::Forward => (cursor.unwrap_or(oldest).max(oldest), Timestamp::MAX),
        Direction::Backward => (oldest, cursor.unwrap_or(Timestamp::MAX)),
    };
    LogQuery {
        team: team.id.to_string(),
        sandbox: id.to_string(),
        from,
        until,
        direction,
        level: LogLevel::Debug,
        search: String::new(),
        limit: LOG_PAGE_SIZE,
    }
}

/// A time in a query; one that no clock will show is the last there is.
pub(crate) fn milliseconds(name: &str, value: Option<i64>) -> ApiResult<Option<Timestamp>> {
    match value {
        Some(value) if value < 0 => {
            Err(ApiError::validation(format!("{name} must be 0 or more, got {value}")))
        }
        value => {
            Ok(value.map(|value| Timestamp::from_millisecond(value).unwrap_or(Timestamp::MAX)))
        }
    }
}

fn limit(value: Option<i64>) -> ApiResult<u32> {
    let value = value.unwrap_or(i64::from(LOG_PAGE_SIZE));
    match u32::try_from(value) {
        Ok(limit) if limit <= LOG_PAGE_SIZE => Ok(limit),
        _ => Err(ApiError::validation(format!("limit must be 0 to {LOG_PAGE_SIZE}, got {value}"))),
    }
}

pub(crate) fn direction(name: Option<&str>) -> ApiResult<Direction> {
    match name {
        None | Some("backward") => Ok(Direction::Backward),
        Some("forward") => Ok(Direction::Forward),
        Some(other) => Err(ApiError::validation(format!(
            "direction must be 'forward' or 'backward', got '{other}'"
        ))),
    }
}

pub(crate) fn level(name: Option<&str>) -> ApiResult<LogLevel> {
    match name {
        None | Some("debug") => Ok(LogLevel::Debug),
        Some("info") => Ok(LogLevel::Info),
        Some("warn") => Ok(LogLevel::Warn),
        Some("error") => Ok(LogLevel::Error),
        Some(other) => Err(ApiError::validation(format!(
            "level must be 'debug', 'info', 'warn' or 'error', got '{other}'"
        ))),
    }
}

/// The line as the JSON text that the CLI takes apart: it needs `level` to be a text.
fn text_of(line: &LogLine) -> ApiResult<SandboxLog> {
    let mut object: Map<String, Value> =
        line.fields.iter().map(|(name, value)| (name.clone(), value.clone().into())).collect();
    // Last, so that no field can take their place.
    object.insert("timestamp".to_owned(), line.timestamp.to_string().into());
    object.insert("level".to_owned(), line.level.as_str().into());
    object.insert("logger".to_owned(), line.logger.clone().into());
    object.insert("message".to_owned(), line.message.clone().into());
    let text = serde_json::to_string(&object)
        .map_err(|error| Error::new(codes::INTERNAL, format!("a line of a log: {error}.")))?;
    Ok(SandboxLog { timestamp: line.timestamp, line: text })
}

fn entry(line: LogLine) -> SandboxLogEntry {
    let LogLine { timestamp, level, logger, message, mut fields, .. } = line;
    fields.insert("logger".to_owned(), logger);
    SandboxLogEntry { timestamp, level, message, fields }
}
