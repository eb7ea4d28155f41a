//! The life of a template's build: registered, under way, ready or failed.

use atoll_core::{Error, Result, TemplateId, error::codes, limits::BUILD_WINDOW};
use atoll_wire::{
    build::{BuildEvent, BuildFailure, BuildLine},
    log::LogLevel,
};
use jiff::Timestamp;
use sqlx::{QueryBuilder, Sqlite, Transaction, sqlite::SqliteRow};
use uuid::Uuid;

use super::{
    SqliteDatabase, build_logs,
    columns::{Columns, bad_value},
    error::Context,
    listing::names_of,
    now,
    templates::{add_alias, assign, build_columns, read_build, taken},
};
use crate::{
    builds::{BuildRecord, BuildStatus, NewTemplateBuild, Registered, SUPERSEDED},
    model::Team,
};

type Tx = Transaction<'static, Sqlite>;

/// A group of states as it is stored.
pub(super) fn to_status(column: &str, group: &str) -> Result<BuildStatus> {
    match group {
        "pending" => Ok(BuildStatus::Waiting),
        "in_progress" => Ok(BuildStatus::Building),
        "ready" => Ok(BuildStatus::Ready),
        "failed" => Ok(BuildStatus::Failed),
        other => Err(bad_value(column, other)),
    }
}

pub(super) async fn register(
    db: &SqliteDatabase,
    new: &NewTemplateBuild,
    team: &Team,
) -> Result<Registered> {
    let mut tx = db.begin_write().await?;
    let template = match named(&mut tx, team, &new.alias).await? {
        Some(template) => template,
        None => make_template(&mut tx, new, team).await?,
    };
    for build in overlapping(&mut tx, &template, &new.tags, "pending").await? {
        cancel(&mut tx, build, SUPERSEDED).await?;
    }
    check_limit(&mut tx, team, &template, &new.tags).await?;
    insert(&mut tx, new, &template, team).await?;
    for tag in &new.tags {
        assign(&mut tx, &template, new.build.id, tag).await?;
    }
    let (aliases, names) = names_of(&mut tx, &template).await?;
    let public = sqlx::query_scalar("SELECT public FROM envs WHERE id = $1")
        .bind(template.as_str())
        .fetch_one(&mut *tx)
        .await
        .coded()?;
    tx.commit().await.coded()?;
    Ok(Registered { template, public, aliases, names })
}

/// The team's template of this alias; none if the alias is free.
async fn named(tx: &mut Tx, team: &Team, alias: &str) -> Result<Option<TemplateId>> {
    let mut is_global = false;
    let mut found = None;
    for taken in taken(tx, team, alias).await? {
        if taken.is_global {
            is_global = true;
        } else if taken.source == "template" {
            found = Some(taken.template);
        } else {
            return Err(Error::new(codes::CONFLICT, format!("Alias '{alias}' is already used")));
        }
    }
    if is_global && found.is_none() {
        // A name that means something to everybody is not to mean something else to one team.
        return Err(Error::new(codes::FORBIDDEN, format!("Alias '{alias}' already used")));
    }
    Ok(found)
}

async fn make_template(tx: &mut Tx, new: &NewTemplateBuild, team: &Team) -> Result<TemplateId> {
    sqlx::query(
        "INSERT INTO envs (id, team_id, public, created_at, updated_at) \
         VALUES ($1, $2, FALSE, $3, $3)",
    )
    .bind(new.template.as_str())
    .bind(team.id.to_string())
    .bind(now())
    .execute(&mut **tx)
    .await
    .coded()?;
    add_alias(tx, &new.template, &new.alias, Some(&team.slug)).await?;
    Ok(new.template.clone())
}

async fn insert(
    tx: &mut Tx,
    new: &NewTemplateBuild,
    template: &TemplateId,
    team: &Team,
) -> Result<()> {
    sqlx::query(
        "INSERT INTO env_builds (id, team_id, status, status_group, vcpu, ram_mb, disk_mb, \
         envd_version, created_at, updated_at, env_id) \
         VALUES ($1, $2, 'waiting', 'pending', $3, $4, $5, '', $6, $6, $7)",
    )
    .bind(new.build.id.to_string())
    .bind(team.id.to_string())
    .bind(i64::from(new.build.vcpu))
    .bind(i64::from(new.build.memory_mb))
    .bind(i64::from(new.build.disk_mb))
    .bind(now())
    .bind(template.as_str())
    .execute(&mut **tx)
    .await
    .coded()?;
    Ok(())
}

/// The template's builds of a group that have one of these tags.
async fn overlapping(
    tx: &mut Tx,
    template: &TemplateId,
    tags: &[String],
    group: &str,
) -> Result<Vec<Uuid>> {
    let mut query = QueryBuilder::<Sqlite>::new(
        "SELECT DISTINCT b.id FROM env_builds b \
         JOIN env_build_assignments a ON a.build_id = b.id WHERE b.env_id = ",
    );
    query.push_bind(template.as_str());
    query.push(" AND b.status_group = ").push_bind(group).push(" AND a.tag IN (");
    let mut list = query.separated(", ");
    for tag in tags {
        list.push_bind(tag);
    }
    query.push(")");
    let rows = query.build().fetch_all(&mut **tx).await.coded()?;
    rows.iter().map(|row| row.id("id")).collect()
}

/// Refuses one build more than the team may have under way. Those whose place it is to take do not
/// count.
async fn check_limit(
    tx: &mut Tx,
    team: &Team,
    template: &TemplateId,
    tags: &[String],
) -> Result<()> {
    let superseded = overlapping(tx, template, tags, "in_progress").await?;
    let since = Timestamp::now() - BUILD_WINDOW;
    let active = sqlx::query(
        "SELECT id FROM env_builds WHERE team_id = $1 \
             AND status_group IN ('pending', 'in_progress') AND created_at > $2",
    )
    .bind(team.id.to_string())
    .bind(since.as_microsecond())
    .fetch_all(&mut **tx)
    .await
    .coded()?;
    let mut count = 0;
    for row in &active {
        count += u32::from(!superseded.contains(&row.id("id")?));
    }
    let limit = team.tier.concurrent_builds;
    if count < limit {
        return Ok(());
    }
    Err(Error::new(
        codes::BUILD_LIMIT,
        format!(
            "Team '{}' already has {limit} builds under way or waiting, the most that its tier \
             '{}' allows.",
            team.slug, team.tier_name
        ),
    ))
}

pub(super) async fn start(db: &SqliteDatabase, build: Uuid) -> Result<Vec<Uuid>> {
    let mut tx = db.begin_write().await?;
    let waiting =
        sqlx::query("SELECT env_id FROM env_builds WHERE id = $1 AND status_group = 'pending'")
            .bind(build.to_string())
            .fetch_optional(&mut *tx)
            .await
            .coded()?;
    let Some(waiting) = waiting else {
        return Err(Error::new(codes::INVALID_REQUEST, "build is not in waiting state"));
    };
    let template = waiting.id("env_id")?;
    let tags: Vec<String> =
        sqlx::query_scalar("SELECT tag FROM env_build_assignments WHERE build_id = $1")
            .bind(build.to_string())
            .fetch_all(&mut *tx)
            .await
            .coded()?;
    let superseded = overlapping(&mut tx, &template, &tags, "in_progress").await?;
    for build in &superseded {
        cancel(&mut tx, *build, SUPERSEDED).await?;
    }
    sqlx::query(
        "UPDATE env_builds SET status = 'building', status_group = 'in_progress', \
         updated_at = $1 WHERE id = $2",
    )
    .bind(now())
    .bind(build.to_string())
    .execute(&mut *tx)
    .await
    .coded()?;
    tx.commit().await.coded()?;
    Ok(superseded)
}

/// Lets a build fail that was cancelled for this reason, and says so in its log.
pub(super) async fn cancel(tx: &mut Tx, build: Uuid, reason: &str) -> Result<()> {
    let line = BuildLine {
        timestamp: Timestamp::now(),
        level: LogLevel::Warn,
        step: None,
        message: reason.to_owned(),
    };
    build_logs::add(tx, build, &line).await?;
    let failure = BuildFailure {
        step: None,
        code: codes::BUILD_CANCELLED.to_string(),
        message: reason.to_owned(),
        parent: None,
    };
    fail(tx, build, &failure).await
}

/// Lets a build fail, unless it is over.
async fn fail(tx: &mut Tx, build: Uuid, failure: &BuildFailure) -> Result<()> {
    let reason = serde_json::to_string(failure)
        .map_err(|error| Error::new(codes::INTERNAL, format!("a build's failure: {error}.")))?;
    sqlx::query(
        "UPDATE env_builds SET status = 'failed', status_group = 'failed', reason = $1, \
         updated_at = $2, finished_at = $2 \
         WHERE id = $3 AND status_group IN ('pending', 'in_progress')",
    )
    .bind(reason)
    .bind(now())
    .bind(build.to_string())
    .execute(&mut **tx)
    .await
    .coded()?;
    Ok(())
}

pub(super) async fn record(
    db: &SqliteDatabase,
    events: &[(Uuid, BuildEvent)],
) -> Result<Vec<Uuid>> {
    let mut unwanted = Vec::new();
    if events.is_empty() {
        return Ok(unwanted);
    }
    let mut tx = db.begin_write().await?;
    for (build, event) in events {
        match event {
            BuildEvent::Line(line) => build_logs::add(&mut tx, *build, line).await?,
            BuildEvent::Failed(failure) => fail(&mut tx, *build, failure).await?,
            BuildEvent::Ready { envd_version } => {
                if !finish(&mut tx, *build, envd_version).await? {
                    unwanted.push(*build);
                }
            }
        }
    }
    tx.commit().await.coded()?;
    Ok(unwanted)
}

/// Lets a build that was under way be ready. False for one that is not to be.
async fn finish(tx: &mut Tx, build: Uuid, envd_version: &str) -> Result<bool> {
    let template: Option<String> = sqlx::query_scalar(
        "UPDATE env_builds SET status = 'success', status_group = 'ready', envd_version = $1, \
         updated_at = $2, finished_at = COALESCE(finished_at, $2) \
         WHERE id = $3 AND status_group IN ('in_progress', 'ready') RETURNING env_id",
    )
    .bind(envd_version)
    .bind(now())
    .bind(build.to_string())
    .fetch_optional(&mut **tx)
    .await
    .coded()?;
    let Some(template) = template else { return Ok(false) };
    sqlx::query("UPDATE envs SET updated_at = $1 WHERE id = $2")
        .bind(now())
        .bind(template)
        .execute(&mut **tx)
        .await
        .coded()?;
    Ok(true)
}

/// The columns of [`read`], of `env_builds b` and `envs e`.
macro_rules! record_columns {
    () => {
        concat!(
            build_columns!(),
            ", b.team_id, b.status_group, b.reason, b.created_at, b.updated_at, b.finished_at, \
             b.env_id, (SELECT f.alias FROM env_aliases f WHERE f.env_id = e.id \
                        ORDER BY f.id LIMIT 1) AS first_alias"
        )
    };
}

fn read(row: &SqliteRow) -> Result<BuildRecord> {
    let reason: Option<&str> = row.value("reason")?;
    let failure = reason.map(serde_json::from_str).transpose();
    Ok(BuildRecord {
        build: read_build(row)?,
        template: row.id("env_id")?,
        alias: row.value("first_alias")?,
        team: row.id("team_id")?,
        status: to_status("status_group", row.value("status_group")?)?,
        failure: failure.map_err(|error| bad_value("reason", error))?,
        created_at: row.time("created_at")?,
        updated_at: row.time("updated_at")?,
        finished_at: row.optional_time("finished_at")?,
    })
}

pub(super) async fn get(db: &SqliteDatabase, id: Uuid) -> Result<Option<BuildRecord>> {
    sqlx::query(concat!(
        "SELECT ",
        record_columns!(),
        " FROM env_builds b JOIN envs e ON e.id = b.env_id \
         WHERE b.id = $1 AND e.deleted_at IS NULL"
    ))
    .bind(id.to_string())
    .fetch_optional(&db.pool)
    .await
    .coded()?
    .as_ref()
    .map(read)
    .transpose()
}

pub(super) async fn of_template(
    db: &SqliteDatabase,
    template: &TemplateId,
) -> Result<Vec<BuildRecord>> {
    sqlx::query(concat!(
        "SELECT ",
        record_columns!(),
        " FROM env_builds b JOIN envs e ON e.id = b.env_id \
         WHERE b.env_id = $1 AND e.deleted_at IS NULL"
    ))
    .bind(template.as_str())
    .fetch_all(&db.pool)
    .await
    .coded()?
    .iter()
    .map(read)
    .collect()
}

pub(super) async fn under_way(db: &SqliteDatabase) -> Result<Vec<Uuid>> {
    sqlx::query("SELECT id FROM env_builds WHERE status_group = 'in_progress'")
        .fetch_all(&db.pool)
        .await
        .coded()?
        .iter()
        .map(|row| row.id("id"))
        .collect()
}

pub(super) async fn known(db: &SqliteDatabase) -> Result<Vec<Uuid>> {
    sqlx::query(
        "SELECT b.id FROM env_builds b JOIN envs e ON e.id = b.env_id \
         WHERE e.deleted_at IS NULL AND b.status_group <> 'failed'",
    )
    .fetch_all(&db.pool)
    .await
    .coded()?
    .iter()
    .map(|row| row.id("id"))
    .collect()
}
