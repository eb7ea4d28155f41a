//! Samples of resource use.

use atoll_core::Result;
use sqlx::{QueryBuilder, Sqlite, sqlite::SqliteRow};

use super::{SqliteDatabase, batches, columns::Columns, error::Context};
use crate::model::MetricRow;

/// Rows of one insert statement; ten values each, and SQLite binds at most 32766.
const INSERT_ROWS: usize = 500;

pub(super) async fn put(db: &SqliteDatabase, rows: &[MetricRow]) -> Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let mut tx = db.begin_write().await?;
    for rows in rows.chunks(INSERT_ROWS) {
        let mut query = QueryBuilder::<Sqlite>::new(
            "INSERT INTO sandbox_metrics (sandbox_id, timestamp, team_id, cpu_count, \
             cpu_used_pct, mem_used, mem_total, mem_cache, disk_used, disk_total) ",
        );
        query.push_values(rows, |mut values, row| {
            // Not a number would be stored as null, and refused.
            let percent = if row.cpu_used_pct.is_finite() { row.cpu_used_pct } else { 0.0 };
            values
                .push_bind(&row.sandbox)
                .push_bind(row.timestamp)
                .push_bind(&row.team)
                .push_bind(i64::from(row.cpu_count))
                .push_bind(percent)
                .push_bind(bytes(row.mem_used))
                .push_bind(bytes(row.mem_total))
                .push_bind(bytes(row.mem_cache))
                .push_bind(bytes(row.disk_used))
                .push_bind(bytes(row.disk_total));
        });
        query.push(" ON CONFLICT (sandbox_id, timestamp) DO NOTHING");
        query.build().execute(&mut *tx).await.coded()?;
    }
    tx.commit().await.coded()
}

fn bytes(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

pub(super) async fn range(
    db: &SqliteDatabase,
    team: &str,
    sandbox: &str,
    start: Option<i64>,
    end: Option<i64>,
) -> Result<Vec<MetricRow>> {
    let rows = sqlx::query(
        "SELECT sandbox_id, timestamp, team_id, cpu_count, cpu_used_pct, mem_used, mem_total, \
         mem_cache, disk_used, disk_total FROM sandbox_metrics \
         WHERE sandbox_id = $1 AND timestamp BETWEEN $2 AND $3 AND team_id = $4 \
         ORDER BY timestamp",
    )
    .bind(sandbox)
    .bind(start.unwrap_or(i64::MIN))
    .bind(end.unwrap_or(i64::MAX))
    .bind(team)
    .fetch_all(&db.pool)
    .await
    .coded()?;
    rows.iter().map(read_row).collect()
}

fn read_row(row: &SqliteRow) -> Result<MetricRow> {
    Ok(MetricRow {
        team: row.value("team_id")?,
        sandbox: row.value("sandbox_id")?,
        timestamp: row.value("timestamp")?,
        cpu_count: row.number("cpu_count")?,
        cpu_used_pct: row.value("cpu_used_pct")?,
        mem_used: row.number("mem_used")?,
        mem_total: row.number("mem_total")?,
        mem_cache: row.number("mem_cache")?,
        disk_used: row.number("disk_used")?,
        disk_total: row.number("disk_total")?,
    })
}

pub(super) async fn prune(db: &SqliteDatabase, before: i64) -> Result<()> {
    batches::delete(db, || {
        sqlx::query(
            "DELETE FROM sandbox_metrics WHERE (sandbox_id, timestamp) IN \
             (SELECT sandbox_id, timestamp FROM sandbox_metrics WHERE timestamp < $1 LIMIT $2)",
        )
        .bind(before)
        .bind(batches::ROWS)
    })
    .await
}
