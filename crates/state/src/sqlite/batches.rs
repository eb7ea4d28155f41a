//! Deleting many rows without keeping other writers waiting.

use atoll_core::Result;
use sqlx::{Sqlite, query::Query, sqlite::SqliteArguments};

use super::{SqliteDatabase, error::Context};

/// Rows of one delete: between two, other writers get their turn.
pub(super) const ROWS: i64 = 10_000;

/// Runs what `delete` makes, which deletes at most [`ROWS`] rows, until there are no more.
pub(super) async fn delete(
    db: &SqliteDatabase,
    delete: impl Fn() -> Query<'static, Sqlite, SqliteArguments>,
) -> Result<()> {
    loop {
        let deleted = delete().execute(&db.writer).await.coded()?.rows_affected();
        if deleted < ROWS.unsigned_abs() {
            return Ok(());
        }
    }
}
