//! What builds say. A build's log only grows: an offset into it keeps its meaning.

use atoll_core::{Result, limits::MOST_BUILD_LINES};
use atoll_wire::{build::BuildLine, log::LogLevel};
use jiff::Timestamp;
use sqlx::{QueryBuilder, Sqlite, Transaction, sqlite::SqliteRow};
use uuid::Uuid;

use super::{
    SqliteDatabase, batches,
    columns::Columns,
    error::Context,
    logs::{level_number, to_level},
};
use crate::{
    builds::{BuildLogQuery, BuildLogStart},
    model::Direction,
};

/// Adds a line to the log of a build, unless that is over or has as many as it may. The last one it
/// may have says so instead.
pub(super) async fn add(
    tx: &mut Transaction<'static, Sqlite>,
    build: Uuid,
    line: &BuildLine,
) -> Result<()> {
    let lines: Option<i64> = sqlx::query_scalar(
        "UPDATE env_builds SET log_lines = log_lines + 1 WHERE id = $1 AND log_lines < $2 \
             AND status_group IN ('pending', 'in_progress') RETURNING log_lines",
    )
    .bind(build.to_string())
    .bind(i64::from(MOST_BUILD_LINES))
    .fetch_optional(&mut **tx)
    .await
    .coded()?;
    let Some(lines) = lines else { return Ok(()) };
    let is_last = lines == i64::from(MOST_BUILD_LINES);
    let (level, message) = if is_last {
        (LogLevel::Warn, "The log is full: later lines are left out.")
    } else {
        (line.level, line.message.as_str())
    };
    sqlx::query(
        "INSERT INTO build_logs (build_id, timestamp, level, step, message) \
         VALUES ($1, $2, $3, $4, $5)",
    )
    .bind(build.to_string())
    .bind(line.timestamp.as_microsecond())
    .bind(level_number(level))
    .bind(&line.step)
    .bind(message)
    .execute(&mut **tx)
    .await
    .coded()?;
    Ok(())
}

pub(super) async fn find(db: &SqliteDatabase, wanted: &BuildLogQuery) -> Result<Vec<BuildLine>> {
    let mut query = QueryBuilder::<Sqlite>::new(
        "SELECT timestamp, level, step, message FROM build_logs WHERE build_id = ",
    );
    query.push_bind(wanted.build.to_string());
    query.push(" AND level >= ").push_bind(level_number(wanted.level));
    let offset = match wanted.from {
        BuildLogStart::Offset(offset) => {
            query.push(" ORDER BY id");
            offset
        }
        BuildLogStart::Time(from, Direction::Forward) => {
            query.push(" AND timestamp >= ").push_bind(from.as_microsecond());
            query.push(" ORDER BY id");
            0
        }
        BuildLogStart::Time(until, Direction::Backward) => {
            query.push(" AND timestamp < ").push_bind(until.as_microsecond());
            query.push(" ORDER BY id DESC");
            0
        }
    };
    query.push(" LIMIT ").push_bind(i64::from(wanted.limit));
    query.push(" OFFSET ").push_bind(i64::try_from(offset).unwrap_or(i64::MAX));
    let rows = query.build().fetch_all(&db.pool).await.coded()?;
    rows.iter().map(read).collect()
}

fn read(row: &SqliteRow) -> Result<BuildLine> {
    Ok(BuildLine {
        timestamp: row.time("timestamp")?,
        level: to_level(row.number("level")?),
        step: row.value("step")?,
        message: row.value("message")?,
    })
}

pub(super) async fn prune(db: &SqliteDatabase, before: Timestamp, keep: u32) -> Result<()> {
    batches::delete(db, || {
        sqlx::query(
            "DELETE FROM build_logs WHERE id IN (SELECT id FROM build_logs \
             WHERE timestamp < $1 OR id <= (SELECT MAX(id) FROM build_logs) - $2 LIMIT $3)",
        )
        .bind(before.as_microsecond())
        .bind(i64::from(keep))
        .bind(batches::ROWS)
    })
    .await
}
