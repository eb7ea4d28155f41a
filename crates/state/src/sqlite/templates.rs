//! Templates, their aliases and builds, and how a reference leads to one.

use atoll_core::{
    Error, Result, TemplateId,
    error::codes,
    reference::{DEFAULT_TAG, Reference},
};
use sqlx::{Sqlite, Transaction, sqlite::SqliteRow};
use uuid::Uuid;

use super::{
    SqliteDatabase, builds::cancel, columns::Columns, error::Context, listing::names_of, now,
};
use crate::{
    database::{Named, NewBuild, Resolved},
    model::{Build, Team},
};

/// The columns of [`read_build`], of `env_builds b`.
macro_rules! build_columns {
    () => {
        "b.id AS build_id, b.vcpu, b.ram_mb, b.disk_mb, b.envd_version"
    };
}
pub(super) use build_columns;

pub(super) fn read_build(row: &SqliteRow) -> Result<Build> {
    Ok(Build {
        id: row.id("build_id")?,
        vcpu: row.number("vcpu")?,
        memory_mb: row.number("ram_mb")?,
        disk_mb: row.number("disk_mb")?,
        envd_version: row.value("envd_version")?,
    })
}

/// A template that a name may mean.
struct Candidate {
    id: TemplateId,
    team: Uuid,
    public: bool,
    is_snapshot: bool,
    /// The name is in the global namespace, where everybody sees it.
    global: bool,
    first_alias: Option<String>,
    /// All its names are in the global namespace.
    is_shipped: bool,
}

pub(super) async fn resolve(
    db: &SqliteDatabase,
    reference: &Reference,
    team: &Team,
) -> Result<Resolved> {
    let (candidate, name) = usable(db, reference, team).await?;
    let tag = reference.tag.as_deref().unwrap_or(DEFAULT_TAG);
    let build = tagged_build(db, &candidate.id, tag).await?.ok_or_else(|| {
        Error::new(
            codes::TEMPLATE_NOT_FOUND,
            format!("tag '{tag}' does not exist for template '{name}'"),
        )
    })?;
    Ok(Resolved { template: candidate.id, alias: candidate.first_alias, build })
}

/// The template that a reference means, whatever its tag, if the team may use it.
pub(super) async fn named(
    db: &SqliteDatabase,
    reference: &Reference,
    team: &Team,
) -> Result<Named> {
    let (candidate, _) = usable(db, reference, team).await?;
    Ok(Named {
        is_own: candidate.team == team.id,
        is_public: candidate.public,
        is_snapshot: candidate.is_snapshot,
        is_shipped: candidate.is_shipped,
        alias: candidate.first_alias,
        template: candidate.id,
    })
}

/// The template that the name means if the team may use it, and the name without the tag.
async fn usable(
    db: &SqliteDatabase,
    reference: &Reference,
    team: &Team,
) -> Result<(Candidate, String)> {
    let name = match &reference.namespace {
        Some(namespace) => format!("{namespace}/{}", reference.name),
        None => reference.name.clone(),
    };
    let not_found =
        || Error::new(codes::TEMPLATE_NOT_FOUND, format!("template '{name}' not found"));
    let candidate = find(db, reference, team).await?.ok_or_else(not_found)?;
    if candidate.public || candidate.team == team.id {
        return Ok((candidate, name));
    }
    // A name of another team tells nothing, not even that it exists.
    Err(if candidate.global {
        Error::new(codes::FORBIDDEN, format!("you don't have access to template '{name}'"))
    } else {
        not_found()
    })
}

/// The template that the name means: with a namespace the alias in it; without one the alias in the
/// team's namespace, else the global alias, else the id.
async fn find(
    db: &SqliteDatabase,
    reference: &Reference,
    team: &Team,
) -> Result<Option<Candidate>> {
    let namespace = reference.namespace.as_deref().unwrap_or(&team.slug);
    let row = sqlx::query(
        "SELECT e.id, e.team_id, e.public, e.source, c.place, \
             (SELECT f.alias FROM env_aliases f WHERE f.env_id = e.id ORDER BY f.id LIMIT 1) \
             AS first_alias, \
             (EXISTS (SELECT 1 FROM env_aliases f WHERE f.env_id = e.id) AND NOT EXISTS \
                 (SELECT 1 FROM env_aliases f WHERE f.env_id = e.id AND f.namespace IS NOT NULL)) \
             AS is_shipped \
         FROM (SELECT env_id, 0 AS place FROM env_aliases WHERE alias = $1 AND namespace = $2 \
               UNION ALL \
               SELECT env_id, 1 FROM env_aliases WHERE $3 AND alias = $1 AND namespace IS NULL \
               UNION ALL \
               SELECT id, 2 FROM envs WHERE $3 AND id = $1) c \
         JOIN envs e ON e.id = c.env_id \
         WHERE e.deleted_at IS NULL AND e.source IN ('template', 'snapshot_template') \
         ORDER BY c.place LIMIT 1",
    )
    .bind(&reference.name)
    .bind(namespace)
    .bind(reference.namespace.is_none())
    .fetch_optional(&db.pool)
    .await
    .coded()?;
    let Some(row) = row else { return Ok(None) };
    Ok(Some(Candidate {
        id: row.id("id")?,
        team: row.id("team_id")?,
        public: row.value("public")?,
        is_snapshot: row.value::<&str>("source")? == "snapshot_template",
        global: row.value::<i64>("place")? == 1,
        first_alias: row.value("first_alias")?,
        is_shipped: row.value("is_shipped")?,
    }))
}

/// The ready build that `tag` of the template means: the newest one it was assigned, or the build
/// whose id it is.
async fn tagged_build(
    db: &SqliteDatabase,
    template: &TemplateId,
    tag: &str,
) -> Result<Option<Build>> {
    // No tag looks like a build's id: those that do are refused when they are assigned.
    sqlx::query(concat!(
        "SELECT ",
        build_columns!(),
        " FROM env_builds b LEFT JOIN env_build_assignments a \
             ON a.build_id = b.id AND a.env_id = b.env_id AND a.tag = $2 \
         WHERE b.env_id = $1 AND (a.id IS NOT NULL OR b.id = $2) AND b.status_group = 'ready' \
         ORDER BY a.id DESC LIMIT 1"
    ))
    .bind(template.as_str())
    .bind(tag)
    .fetch_optional(&db.pool)
    .await
    .coded()?
    .as_ref()
    .map(read_build)
    .transpose()
}

pub(super) async fn count_spawn(db: &SqliteDatabase, template: &TemplateId) -> Result<()> {
    sqlx::query(
        "UPDATE envs SET spawn_count = spawn_count + 1, last_spawned_at = $1 WHERE id = $2",
    )
    .bind(now())
    .bind(template.as_str())
    .execute(&db.writer)
    .await
    .coded()?;
    Ok(())
}

pub(super) async fn publish_global(
    db: &SqliteDatabase,
    new: &NewBuild,
    owner: Uuid,
) -> Result<TemplateId> {
    let plain = Reference::parse(&new.alias)
        .is_ok_and(|reference| reference.name == new.alias && reference.tag.is_none());
    if !plain {
        return Err(Error::new(
            codes::INVALID_REQUEST,
            format!("'{}' cannot be the alias of a template.", new.alias),
        ));
    }
    let mut tx = db.begin_write().await?;
    let template = match global_template(&mut tx, &new.alias).await? {
        Some(template) => template,
        None => make_global(&mut tx, &new.alias, owner).await?,
    };
    add_ready_build(&mut tx, &template, &new.build, owner).await?;
    point_default(&mut tx, &template, new.build.id).await?;
    tx.commit().await.coded()?;
    Ok(template)
}

async fn global_template(
    tx: &mut Transaction<'static, Sqlite>,
    alias: &str,
) -> Result<Option<TemplateId>> {
    sqlx::query(
        "SELECT e.id FROM env_aliases n JOIN envs e ON e.id = n.env_id \
         WHERE n.alias = $1 AND n.namespace IS NULL AND e.deleted_at IS NULL",
    )
    .bind(alias)
    .fetch_optional(&mut **tx)
    .await
    .coded()?
    .map(|row| row.id("id"))
    .transpose()
}

async fn make_global(
    tx: &mut Transaction<'static, Sqlite>,
    alias: &str,
    owner: Uuid,
) -> Result<TemplateId> {
    let template = TemplateId::generate().map_err(|error| {
        Error::new(codes::INTERNAL, format!("the system has no random bytes to give ({error})."))
    })?;
    sqlx::query(
        "INSERT INTO envs (id, team_id, public, created_at, updated_at) \
         VALUES ($1, $2, $3, $4, $4)",
    )
    .bind(template.as_str())
    .bind(owner.to_string())
    .bind(true)
    .bind(now())
    .execute(&mut **tx)
    .await
    .coded()?;
    add_alias(tx, &template, alias, None).await?;
    Ok(template)
}

/// Adds the row of a build that can be used; one that is there is left as it is.
pub(super) async fn add_ready_build(
    tx: &mut Transaction<'static, Sqlite>,
    template: &TemplateId,
    build: &Build,
    owner: Uuid,
) -> Result<()> {
    sqlx::query(
        "INSERT INTO env_builds (id, team_id, status, status_group, vcpu, ram_mb, disk_mb, \
         envd_version, created_at, updated_at, finished_at, env_id) \
         VALUES ($1, $2, 'success', 'ready', $3, $4, $5, $6, $7, $7, $7, $8) \
         ON CONFLICT (id) DO NOTHING",
    )
    .bind(build.id.to_string())
    .bind(owner.to_string())
    .bind(i64::from(build.vcpu))
    .bind(i64::from(build.memory_mb))
    .bind(i64::from(build.disk_mb))
    .bind(&build.envd_version)
    .bind(now())
    .bind(template.as_str())
    .execute(&mut **tx)
    .await
    .coded()?;
    Ok(())
}

/// Makes the template's default tag mean `build`, unless it does.
async fn point_default(
    tx: &mut Transaction<'static, Sqlite>,
    template: &TemplateId,
    build: Uuid,
) -> Result<()> {
    let present: Option<String> = sqlx::query_scalar(
        "SELECT build_id FROM env_build_assignments WHERE env_id = $1 AND tag = $2 \
         ORDER BY id DESC LIMIT 1",
    )
    .bind(template.as_str())
    .bind(DEFAULT_TAG)
    .fetch_optional(&mut **tx)
    .await
    .coded()?;
    if present.as_deref() == Some(build.to_string().as_str()) {
        return Ok(());
    }
    assign(tx, template, build, DEFAULT_TAG).await
}

/// Makes a tag of the template mean `build`.
pub(super) async fn assign(
    tx: &mut Transaction<'static, Sqlite>,
    template: &TemplateId,
    build: Uuid,
    tag: &str,
) -> Result<()> {
    sqlx::query(
        "INSERT INTO env_build_assignments (env_id, build_id, tag, created_at) \
         VALUES ($1, $2, $3, $4)",
    )
    .bind(template.as_str())
    .bind(build.to_string())
    .bind(tag)
    .bind(now())
    .execute(&mut **tx)
    .await
    .coded()?;
    sqlx::query("UPDATE envs SET updated_at = $1 WHERE id = $2")
        .bind(now())
        .bind(template.as_str())
        .execute(&mut **tx)
        .await
        .coded()?;
    Ok(())
}

/// What an alias leads to, for a team that is about to take it.
pub(super) struct Taken {
    pub(super) template: TemplateId,
    /// The template's source; `id` when the alias is the id of one.
    pub(super) source: String,
    /// It is in the global namespace, and not in the team's.
    pub(super) is_global: bool,
}

/// All that an alias of the team leads to.
pub(super) async fn taken(
    tx: &mut Transaction<'static, Sqlite>,
    team: &Team,
    alias: &str,
) -> Result<Vec<Taken>> {
    sqlx::query(
        "SELECT e.id, e.source, n.namespace IS NULL AS global \
         FROM env_aliases n JOIN envs e ON e.id = n.env_id \
         WHERE n.alias = $1 AND (n.namespace = $2 OR n.namespace IS NULL) \
             AND e.deleted_at IS NULL \
         UNION ALL \
         SELECT id, 'id', FALSE FROM envs WHERE id = $1",
    )
    .bind(alias)
    .bind(&team.slug)
    .fetch_all(&mut **tx)
    .await
    .coded()?
    .iter()
    .map(|row| {
        Ok(Taken {
            template: row.id("id")?,
            source: row.value("source")?,
            is_global: row.value("global")?,
        })
    })
    .collect()
}

/// Adds a name of a template. That of a template that was deleted is taken over.
pub(super) async fn add_alias(
    tx: &mut Transaction<'static, Sqlite>,
    template: &TemplateId,
    alias: &str,
    namespace: Option<&str>,
) -> Result<()> {
    sqlx::query(
        "INSERT INTO env_aliases (id, alias, namespace, env_id) VALUES ($1, $2, $3, $4) \
         ON CONFLICT (alias, COALESCE(namespace, '')) DO UPDATE SET env_id = excluded.env_id",
    )
    .bind(Uuid::now_v7().to_string())
    .bind(alias)
    .bind(namespace)
    .bind(template.as_str())
    .execute(&mut **tx)
    .await
    .coded()?;
    Ok(())
}

pub(super) async fn set_public(
    db: &SqliteDatabase,
    template: &TemplateId,
    public: bool,
    reserve: bool,
) -> Result<Vec<String>> {
    let mut tx = db.begin_write().await?;
    let (aliases, _) = names_of(&mut tx, template).await?;
    if public
        && reserve
        && let Some(alias) = aliases.first()
    {
        match global_template(&mut tx, alias).await? {
            None => add_alias(&mut tx, template, alias, None).await?,
            Some(found) if found == *template => {}
            Some(_) => {
                let message = format!("Alias '{alias}' is already used");
                return Err(Error::new(codes::CONFLICT, message));
            }
        }
    }
    sqlx::query("UPDATE envs SET public = $1, updated_at = $2 WHERE id = $3")
        .bind(public)
        .bind(now())
        .bind(template.as_str())
        .execute(&mut *tx)
        .await
        .coded()?;
    let (_, names) = names_of(&mut tx, template).await?;
    tx.commit().await.coded()?;
    Ok(names)
}

pub(super) async fn delete(
    db: &SqliteDatabase,
    template: &TemplateId,
) -> Result<Option<Vec<Uuid>>> {
    let mut tx = db.begin_write().await?;
    let deleted =
        sqlx::query("UPDATE envs SET deleted_at = $1 WHERE id = $2 AND deleted_at IS NULL")
            .bind(now())
            .bind(template.as_str())
            .execute(&mut *tx)
            .await
            .coded()?;
    if deleted.rows_affected() == 0 {
        return Ok(None);
    }
    sqlx::query("DELETE FROM env_aliases WHERE env_id = $1")
        .bind(template.as_str())
        .execute(&mut *tx)
        .await
        .coded()?;
    let builds = sqlx::query("SELECT id, status_group FROM env_builds WHERE env_id = $1")
        .bind(template.as_str())
        .fetch_all(&mut *tx)
        .await
        .coded()?;
    let mut ids = Vec::with_capacity(builds.len());
    for row in &builds {
        let id = row.id("id")?;
        if matches!(row.value("status_group")?, "pending" | "in_progress") {
            cancel(&mut tx, id, "The template was deleted.").await?;
        }
        ids.push(id);
    }
    tx.commit().await.coded()?;
    Ok(Some(ids))
}
