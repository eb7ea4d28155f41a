//! What tags of a template mean: the newest assignment of a tag to a ready build counts.

use atoll_core::{Result, TemplateId};
use sqlx::sqlite::SqliteRow;
use uuid::Uuid;

use super::{SqliteDatabase, columns::Columns, error::Context, templates::assign};
use crate::builds::TagAssignment;

pub(super) async fn assignments(
    db: &SqliteDatabase,
    template: &TemplateId,
) -> Result<Vec<TagAssignment>> {
    sqlx::query(
        "SELECT a.id, a.tag, a.build_id, a.created_at, b.created_at AS registered_at, \
             b.finished_at \
         FROM env_build_assignments a JOIN env_builds b ON b.id = a.build_id \
         WHERE a.env_id = $1 AND b.status_group = 'ready' ORDER BY a.id DESC",
    )
    .bind(template.as_str())
    .fetch_all(&db.pool)
    .await
    .coded()?
    .iter()
    .map(read)
    .collect()
}

fn read(row: &SqliteRow) -> Result<TagAssignment> {
    Ok(TagAssignment {
        id: row.number("id")?,
        tag: row.value("tag")?,
        build: row.id("build_id")?,
        assigned_at: row.time("created_at")?,
        build_created_at: row.time("registered_at")?,
        build_finished_at: row.optional_time("finished_at")?,
    })
}

pub(super) async fn assign_all(
    db: &SqliteDatabase,
    template: &TemplateId,
    build: Uuid,
    tags: &[String],
) -> Result<()> {
    let mut tx = db.begin_write().await?;
    for tag in tags {
        assign(&mut tx, template, build, tag).await?;
    }
    tx.commit().await.coded()
}

pub(super) async fn remove(
    db: &SqliteDatabase,
    template: &TemplateId,
    tags: &[String],
) -> Result<()> {
    let mut tx = db.begin_write().await?;
    for tag in tags {
        // One that is under way keeps the tag that it was asked for.
        sqlx::query(
            "DELETE FROM env_build_assignments WHERE env_id = $1 AND tag = $2 AND build_id IN \
             (SELECT id FROM env_builds WHERE env_id = $1 AND status_group IN ('ready', 'failed'))",
        )
        .bind(template.as_str())
        .bind(tag)
        .execute(&mut *tx)
        .await
        .coded()?;
    }
    tx.commit().await.coded()
}
