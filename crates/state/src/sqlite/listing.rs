//! Templates as listings show them, with their names.

use std::collections::HashMap;

use atoll_core::{Result, TemplateId};
use sqlx::{Sqlite, Transaction, sqlite::SqliteRow};

use super::{
    SqliteDatabase,
    builds::to_status,
    columns::Columns,
    error::Context,
    templates::{build_columns, read_build},
};
use crate::model::{Team, Template};

pub(super) async fn list(db: &SqliteDatabase, team: &Team) -> Result<Vec<Template>> {
    let rows = sqlx::query(concat!(
        "SELECT e.id, e.team_id, e.public, e.created_at, e.updated_at, e.last_spawned_at, \
             e.spawn_count, \
             (SELECT COUNT(*) FROM env_builds n WHERE n.env_id = e.id) AS build_count, \
             (SELECT n.status_group FROM env_builds n WHERE n.env_id = e.id \
              ORDER BY n.created_at DESC, n.id LIMIT 1) AS newest, ",
        build_columns!(),
        " FROM envs e JOIN env_builds b ON b.id = \
             (SELECT r.id FROM env_builds r \
              LEFT JOIN env_build_assignments a ON a.build_id = r.id \
              WHERE r.env_id = e.id \
              ORDER BY r.status_group <> 'ready', COALESCE(a.id, 0) DESC, r.created_at DESC \
              LIMIT 1) \
         WHERE e.deleted_at IS NULL AND e.source = 'template' AND (e.team_id = $1 OR (e.public \
             AND b.status_group = 'ready' \
             AND EXISTS (SELECT 1 FROM env_aliases g \
                         WHERE g.env_id = e.id AND g.namespace IS NULL))) \
         ORDER BY e.created_at, e.id"
    ))
    .bind(team.id.to_string())
    .fetch_all(&db.pool)
    .await
    .coded()?;
    let mut names = names(db, team).await?;
    rows.iter().map(|row| read_template(row, &mut names)).collect()
}

/// Bare aliases and qualified names, by template.
type Names = HashMap<TemplateId, (Vec<String>, Vec<String>)>;

/// The names of the templates that [`list`] shows, and perhaps of more.
async fn names(db: &SqliteDatabase, team: &Team) -> Result<Names> {
    let rows = sqlx::query(
        "SELECT n.env_id, n.alias, n.namespace FROM env_aliases n JOIN envs e ON e.id = n.env_id \
         WHERE e.team_id = $1 OR EXISTS (SELECT 1 FROM env_aliases g \
                                         WHERE g.env_id = e.id AND g.namespace IS NULL) \
         ORDER BY n.id",
    )
    .bind(team.id.to_string())
    .fetch_all(&db.pool)
    .await
    .coded()?;
    let mut all = Names::new();
    for row in &rows {
        add_name(all.entry(row.id("env_id")?).or_default(), row)?;
    }
    Ok(all)
}

fn add_name((aliases, names): &mut (Vec<String>, Vec<String>), row: &SqliteRow) -> Result<()> {
    let alias: String = row.value("alias")?;
    names.push(match row.value::<Option<&str>>("namespace")? {
        Some(namespace) => format!("{namespace}/{alias}"),
        None => alias.clone(),
    });
    if !aliases.contains(&alias) {
        aliases.push(alias);
    }
    Ok(())
}

/// Bare aliases and qualified names of one template.
pub(super) async fn names_of(
    tx: &mut Transaction<'static, Sqlite>,
    template: &TemplateId,
) -> Result<(Vec<String>, Vec<String>)> {
    let rows =
        sqlx::query("SELECT alias, namespace FROM env_aliases WHERE env_id = $1 ORDER BY id")
            .bind(template.as_str())
            .fetch_all(&mut **tx)
            .await
            .coded()?;
    let mut names = <(Vec<String>, Vec<String>)>::default();
    for row in &rows {
        add_name(&mut names, row)?;
    }
    Ok(names)
}

fn read_template(row: &SqliteRow, names: &mut Names) -> Result<Template> {
    let id: TemplateId = row.id("id")?;
    let (aliases, names) = names.remove(&id).unwrap_or_default();
    Ok(Template {
        id,
        team: row.id("team_id")?,
        public: row.value("public")?,
        aliases,
        names,
        created_at: row.time("created_at")?,
        updated_at: row.time("updated_at")?,
        last_spawned_at: row.optional_time("last_spawned_at")?,
        spawn_count: row.number("spawn_count")?,
        build_count: row.number("build_count")?,
        build: read_build(row)?,
        status: to_status("newest", row.value("newest")?)?,
    })
}
