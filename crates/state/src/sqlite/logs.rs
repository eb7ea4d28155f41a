//! What sandboxes log.

use std::{collections::BTreeMap, fmt::Display, sync::Arc};

use atoll_core::{Error, Result, error::codes};
use atoll_wire::{log::LogLevel, node::LogLine};
use jiff::Timestamp;
use sqlx::{QueryBuilder, Sqlite, sqlite::SqliteRow};

use super::{SqliteDatabase, batches, columns::Columns, error::Context};
use crate::model::{Direction, LogQuery};

/// Rows of one insert statement; eight values each, and SQLite binds at most 32766.
const INSERT_ROWS: usize = 500;

/// The levels as they are stored, each at its number.
const LEVELS: [LogLevel; 4] = [LogLevel::Debug, LogLevel::Info, LogLevel::Warn, LogLevel::Error];

pub(super) fn level_number(level: LogLevel) -> i64 {
    match level {
        LogLevel::Debug => 0,
        LogLevel::Info => 1,
        LogLevel::Warn => 2,
        LogLevel::Error => 3,
    }
}

/// A level by its number. Another number was not written by Atoll; the line is worth more than it.
pub(super) fn to_level(number: usize) -> LogLevel {
    LEVELS.get(number).copied().unwrap_or(LogLevel::Error)
}

pub(super) async fn put(db: &SqliteDatabase, lines: &[LogLine]) -> Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    let mut tx = db.begin_write().await?;
    for lines in lines.chunks(INSERT_ROWS) {
        let mut query = QueryBuilder::<Sqlite>::new(
            "INSERT INTO sandbox_logs (sandbox_id, timestamp, sequence, team_id, level, logger, \
             message, fields) ",
        );
        let fields = lines.iter().map(fields_text).collect::<Result<Vec<_>>>()?;
        query.push_values(lines.iter().zip(fields), |mut values, (line, fields)| {
            values
                .push_bind(line.sandbox.as_str())
                .push_bind(line.timestamp.as_microsecond())
                .push_bind(i64::try_from(line.sequence).unwrap_or(i64::MAX))
                .push_bind(&line.team)
                .push_bind(level_number(line.level))
                .push_bind(&line.logger)
                .push_bind(&line.message)
                .push_bind(fields);
        });
        query.push(" ON CONFLICT (sandbox_id, timestamp, sequence) DO NOTHING");
        query.build().execute(&mut *tx).await.coded()?;
    }
    tx.commit().await.coded()
}

fn fields_text(line: &LogLine) -> Result<String> {
    serde_json::to_string(&line.fields)
        .map_err(|error| Error::new(codes::INTERNAL, format!("a log line: {error}.")))
}

/// In a task of its own: a search goes on when its caller has gone, and counts until its end.
pub(super) async fn find(db: &SqliteDatabase, wanted: &LogQuery) -> Result<Vec<LogLine>> {
    let (db, wanted) = (db.clone(), wanted.clone());
    let failed =
        |cause: &dyn Display| Error::new(codes::INTERNAL, format!("a log was not read: {cause}."));
    let turn = Arc::clone(&db.log_readers).acquire_owned().await.map_err(|error| failed(&error))?;
    let reading = tokio::spawn(async move {
        let _turn = turn;
        select(&db, &wanted).await
    });
    reading.await.map_err(|error| failed(&error))?
}

async fn select(db: &SqliteDatabase, wanted: &LogQuery) -> Result<Vec<LogLine>> {
    let mut query = QueryBuilder::<Sqlite>::new(
        "SELECT sandbox_id, timestamp, sequence, team_id, level, logger, message, fields \
         FROM sandbox_logs WHERE sandbox_id = ",
    );
    query.push_bind(&wanted.sandbox);
    query.push(" AND timestamp >= ").push_bind(wanted.from.as_microsecond());
    query.push(" AND timestamp < ").push_bind(wanted.until.as_microsecond());
    query.push(" AND team_id = ").push_bind(&wanted.team);
    query.push(" AND level >= ").push_bind(level_number(wanted.level));
    if !wanted.search.is_empty() {
        // What LIKE compares, and how a position is called, differs between databases.
        query.push(" AND replace(message, ").push_bind(&wanted.search).push(", '') <> message");
    }
    query.push(match wanted.direction {
        Direction::Forward => " ORDER BY timestamp, sequence",
        Direction::Backward => " ORDER BY timestamp DESC, sequence DESC",
    });
    query.push(" LIMIT ").push_bind(i64::from(wanted.limit));
    let rows = query.build().fetch_all(&db.pool).await.coded()?;
    rows.iter().map(read_row).collect()
}

fn read_row(row: &SqliteRow) -> Result<LogLine> {
    // An unreadable value was not written by Atoll; the line is worth more than the value.
    let fields: BTreeMap<String, String> =
        serde_json::from_str(row.value("fields")?).unwrap_or_default();
    Ok(LogLine {
        sandbox: row.id("sandbox_id")?,
        team: row.value("team_id")?,
        timestamp: row.time("timestamp")?,
        sequence: row.number("sequence")?,
        level: to_level(row.number("level")?),
        logger: row.value("logger")?,
        message: row.value("message")?,
        fields,
    })
}

pub(super) async fn prune(db: &SqliteDatabase, before: Timestamp, keep: u32) -> Result<()> {
    batches::delete(db, || {
        sqlx::query(
            "DELETE FROM sandbox_logs WHERE id IN (SELECT id FROM sandbox_logs \
             WHERE timestamp < $1 OR id <= (SELECT MAX(id) FROM sandbox_logs) - $2 LIMIT $3)",
        )
        .bind(before.as_microsecond())
        .bind(i64::from(keep))
        .bind(batches::ROWS)
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::super::{CONNECTIONS, LOG_READERS};
    use super::*;

    #[tokio::test]
    async fn a_search_counts_until_its_end_though_its_caller_has_gone() {
        let directory = tempfile::tempdir().unwrap();
        let db = SqliteDatabase::open(directory.path().join("db")).await.unwrap();
        let wanted = LogQuery {
            team: "team".to_owned(),
            sandbox: "i1".to_owned(),
            from: Timestamp::MIN,
            until: Timestamp::MAX,
            direction: Direction::Forward,
            level: LogLevel::Debug,
            search: "x".to_owned(),
            limit: 1000,
        };
        let mut busy = Vec::new();
        for _ in 0..CONNECTIONS {
            busy.push(db.pool.acquire().await.unwrap());
        }
        for _ in 0..2 * LOG_READERS {
            // Polled once: it takes its turn, if there is one, and is dropped.
            assert!(futures::poll!(std::pin::pin!(find(&db, &wanted))).is_pending());
        }
        assert_eq!(db.log_readers.available_permits(), 0);
        drop(busy);
        assert!(find(&db, &wanted).await.unwrap().is_empty());
        db.close().await;
    }
}
