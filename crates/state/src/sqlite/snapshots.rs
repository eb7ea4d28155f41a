//! Snapshots.

use std::collections::HashMap;

use atoll_core::{Error, Result, TemplateId, error::codes, lifecycle::Kept};
use jiff::Timestamp;
use sqlx::{Sqlite, Transaction, sqlite::SqliteRow};
use uuid::Uuid;

use super::{
    SqliteDatabase,
    columns::{Columns, bad_value},
    error::Context,
    now,
    templates::{add_alias, add_ready_build, assign, taken},
};
use crate::model::{NewSnapshot, Snapshot, Team};

/// The template that a snapshot of this name is to be of, none if the name is free.
pub(super) async fn template_of(
    db: &SqliteDatabase,
    team: &Team,
    name: &str,
) -> Result<Option<TemplateId>> {
    let mut tx = db.pool.begin().await.coded()?;
    named(&mut tx, team, name).await
}

async fn named(
    tx: &mut Transaction<'static, Sqlite>,
    team: &Team,
    name: &str,
) -> Result<Option<TemplateId>> {
    let mut found = None;
    for taken in taken(tx, team, name).await? {
        if taken.is_global {
            // A name that means something to everybody is not to mean something else to one team.
            return Err(Error::new(codes::FORBIDDEN, format!("Alias '{name}' already used")));
        }
        if taken.source != "snapshot_template" {
            return Err(Error::new(codes::CONFLICT, format!("Alias '{name}' is already used")));
        }
        found = Some(taken.template);
    }
    Ok(found)
}

pub(super) async fn add(db: &SqliteDatabase, new: &NewSnapshot, team: &Team) -> Result<Snapshot> {
    let mut tx = db.begin_write().await?;
    let known = match &new.name {
        Some(name) => named(&mut tx, team, name).await?,
        None => None,
    };
    let template = match known {
        Some(template) => template,
        None => make_template(&mut tx, new, team).await?,
    };
    add_ready_build(&mut tx, &template, &new.build, team.id).await?;
    assign(&mut tx, &template, new.build.id, &new.tag).await?;
    let created_at = now();
    sqlx::query(
        "INSERT INTO snapshots \
             (build_id, env_id, team_id, tag, sandbox_id, base_env_id, kept, created_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind(new.build.id.to_string())
    .bind(template.as_str())
    .bind(team.id.to_string())
    .bind(&new.tag)
    .bind(new.sandbox.as_str())
    .bind(new.base.as_str())
    .bind(kept_name(new.kept))
    .bind(created_at)
    .execute(&mut *tx)
    .await
    .coded()?;
    tx.commit().await.coded()?;
    let all = list(db, team.id).await?;
    all.into_iter().find(|snapshot| snapshot.build == new.build.id).ok_or_else(|| {
        Error::new(codes::CONFLICT, "the snapshot was deleted as soon as it was taken.")
    })
}

async fn make_template(
    tx: &mut Transaction<'static, Sqlite>,
    new: &NewSnapshot,
    team: &Team,
) -> Result<TemplateId> {
    let made = sqlx::query(
        "INSERT INTO envs (id, team_id, public, source, created_at, updated_at) \
         VALUES ($1, $2, FALSE, 'snapshot_template', $3, $3) ON CONFLICT (id) DO NOTHING",
    )
    .bind(new.template.as_str())
    .bind(team.id.to_string())
    .bind(now())
    .execute(&mut **tx)
    .await
    .coded()?;
    if made.rows_affected() == 0 {
        let message = "the snapshots of this name were deleted while this one was taken.";
        return Err(Error::new(codes::CONFLICT, message));
    }
    let Some(name) = &new.name else { return Ok(new.template.clone()) };
    add_alias(tx, &new.template, name, Some(&team.slug)).await?;
    Ok(new.template.clone())
}

pub(super) async fn list(db: &SqliteDatabase, team: Uuid) -> Result<Vec<Snapshot>> {
    let rows = sqlx::query(
        "SELECT s.build_id, s.env_id, s.tag, s.sandbox_id, s.base_env_id, s.kept, s.created_at, \
             s.build_id = (SELECT a.build_id FROM env_build_assignments a \
                           WHERE a.env_id = s.env_id AND a.tag = s.tag \
                           ORDER BY a.id DESC LIMIT 1) AS is_current \
         FROM snapshots s JOIN envs e ON e.id = s.env_id \
         WHERE s.team_id = $1 AND e.deleted_at IS NULL \
         ORDER BY s.created_at DESC, s.build_id",
    )
    .bind(team.to_string())
    .fetch_all(&db.pool)
    .await
    .coded()?;
    let names = names(db, team).await?;
    rows.iter().map(|row| read(row, &names)).collect()
}

/// Qualified names of the team's snapshots, by template.
async fn names(db: &SqliteDatabase, team: Uuid) -> Result<HashMap<TemplateId, Vec<String>>> {
    let rows = sqlx::query(
        "SELECT n.env_id, n.namespace || '/' || n.alias AS name \
         FROM env_aliases n JOIN envs e ON e.id = n.env_id \
         WHERE e.team_id = $1 AND e.source = 'snapshot_template' AND n.namespace IS NOT NULL \
         ORDER BY n.id",
    )
    .bind(team.to_string())
    .fetch_all(&db.pool)
    .await
    .coded()?;
    let mut all = HashMap::<TemplateId, Vec<String>>::new();
    for row in &rows {
        all.entry(row.id("env_id")?).or_default().push(row.value("name")?);
    }
    Ok(all)
}

fn read(row: &SqliteRow, names: &HashMap<TemplateId, Vec<String>>) -> Result<Snapshot> {
    let template: TemplateId = row.id("env_id")?;
    Ok(Snapshot {
        names: names.get(&template).cloned().unwrap_or_default(),
        template,
        build: row.id("build_id")?,
        tag: row.value("tag")?,
        sandbox: row.id("sandbox_id")?,
        base: row.id("base_env_id")?,
        kept: to_kept(row.value("kept")?)?,
        created_at: row.time("created_at")?,
        is_current: row.value("is_current")?,
    })
}

fn kept_name(kept: Kept) -> &'static str {
    match kept {
        Kept::Disk => "disk",
        Kept::Frozen => "frozen",
        Kept::Checkpoint => "checkpoint",
    }
}

fn to_kept(name: &str) -> Result<Kept> {
    [Kept::Disk, Kept::Frozen, Kept::Checkpoint]
        .into_iter()
        .find(|kept| kept_name(*kept) == name)
        .ok_or_else(|| bad_value("kept", name))
}

/// The migrations are of the moment in which it was made, and later.
pub(super) async fn made_at(db: &SqliteDatabase) -> Result<Timestamp> {
    let seconds: i64 = sqlx::query_scalar(
        "SELECT CAST(strftime('%s', MIN(installed_on)) AS INTEGER) FROM _sqlx_migrations",
    )
    .fetch_one(&db.pool)
    .await
    .coded()?;
    Timestamp::from_second(seconds).map_err(|_| bad_value("installed_on", seconds))
}
