//! The database in one SQLite file, for a control plane of one process.
//!
//! - [`error`]: what SQLite's failures mean to an operator.
//! - [`columns`]: reading columns. [`batches`]: deleting many rows.
//! - [`keys`]: tiers, teams, users, API keys and access tokens, and the seed.
//! - [`templates`]: templates, aliases, builds and how a reference leads to one; [`listing`] them.
//! - [`builds`]: the life of builds. [`build_logs`]: what they say. [`tags`]: what tags mean.
//! - [`snapshots`]: copies of sandboxes.
//! - [`metrics`]: samples of resource use.
//! - [`logs`]: what sandboxes log.
//!
//! The schema is `migrations/sqlite/`, run at open. Queries keep to what PostgreSQL understands too:
//! `$1` placeholders, ids as text, times as microseconds, `ON CONFLICT`. Writes of more than one
//! statement take the write lock at once (`BEGIN IMMEDIATE`): a transaction that reads first and
//! then wants to write would be refused instead of waiting its turn.

mod batches;
mod build_logs;
mod builds;
mod columns;
mod error;
mod keys;
mod listing;
mod logs;
mod metrics;
mod snapshots;
mod tags;
mod templates;

use std::{
    fs::OpenOptions, io, os::unix::fs::OpenOptionsExt, path::Path, sync::Arc, time::Duration,
};

use async_trait::async_trait;
use atoll_core::{Result, TemplateId, reference::Reference};
use atoll_wire::{
    build::{BuildEvent, BuildLine},
    node::LogLine,
};
use jiff::Timestamp;
use sqlx::{
    Sqlite, SqlitePool, Transaction,
    migrate::Migrator,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use tokio::sync::Semaphore;
use uuid::Uuid;

use self::error::{Context, cannot_create, cannot_migrate};
use crate::{
    builds::{BuildLogQuery, BuildRecord, NewTemplateBuild, Registered, TagAssignment},
    database::{Database, Named, NewBuild, Resolved, Seed},
    model::{KeyOwner, LogQuery, MetricRow, NewSnapshot, Snapshot, Team, Template, TokenOwner},
};

static MIGRATIONS: Migrator = sqlx::migrate!("./migrations/sqlite");

/// Connections that read. A lookup takes microseconds; each connection is a thread.
const CONNECTIONS: u32 = 4;

/// Logs that are searched at a time: one may be long, and others must find a connection meanwhile.
const LOG_READERS: usize = 2;
const _: () = assert!(LOG_READERS < CONNECTIONS as usize);

/// How long is waited for another program that writes, such as a backup, or a checkpoint of the log.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// The database of one data directory. Clones share its connections.
#[derive(Clone)]
pub struct SqliteDatabase {
    pool: SqlitePool,
    /// The connection that writes. There is one writer at a time in any case; here they wait in the
    /// order in which they came, where SQLite would have each try again until it is lucky.
    writer: SqlitePool,
    key_cache: keys::KeyCache,
    log_readers: Arc<Semaphore>,
}

impl SqliteDatabase {
    /// Opens the database file at `path`, makes it if it is not there (readable for the owner
    /// alone), and brings its schema up to date.
    ///
    /// # Errors
    /// - `codes::DATA_DIR_UNUSABLE`: it cannot be created, read or written, is damaged, is not a
    ///   database, or was made by a newer Atoll.
    /// - `codes::DATA_DIR_IN_USE`: another program keeps it locked.
    /// - `codes::DISK_FULL`.
    pub async fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        create_private(path).map_err(|error| cannot_create(path, &error))?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(false)
            .foreign_keys(true)
            .journal_mode(SqliteJournalMode::Wal)
            // A snapshot that was answered is there after a power cut too.
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY_TIMEOUT);
        let connections = |count| {
            SqlitePoolOptions::new()
                .max_connections(count)
                // A connection to a local file does not go stale.
                .idle_timeout(None)
                .max_lifetime(None)
                .test_before_acquire(false)
        };
        let writer = connections(1).connect_lazy_with(options.clone());
        let pool = connections(CONNECTIONS).connect_with(options).await.at(path)?;
        if let Err(error) = MIGRATIONS.run(&pool).await {
            pool.close().await;
            return Err(cannot_migrate(path, error));
        }
        let log_readers = Arc::new(Semaphore::new(LOG_READERS));
        Ok(Self { pool, writer, key_cache: keys::KeyCache::default(), log_readers })
    }

    /// Waits for queries under way, folds the write-ahead log into the file and closes it. Calls
    /// after this fail.
    pub async fn close(&self) {
        self.writer.close().await;
        self.pool.close().await;
    }

    async fn begin_write(&self) -> Result<Transaction<'static, Sqlite>> {
        self.writer.begin_with("BEGIN IMMEDIATE").await.coded()
    }
}

/// Creates `path` for its owner alone, unless it is there: SQLite gives its companion files the
/// same mode. An existing file is not touched, since closing it would drop locks that SQLite may
/// hold on it in this process.
fn create_private(path: &Path) -> io::Result<()> {
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result.map(drop),
    }
}

/// The present, as it is stored.
fn now() -> i64 {
    Timestamp::now().as_microsecond()
}

#[async_trait]
impl Database for SqliteDatabase {
    async fn seed(&self, seed: &Seed) -> Result<Team> {
        keys::seed(self, seed).await
    }

    async fn key_owner(&self, hash: &str) -> Result<Option<KeyOwner>> {
        keys::key_owner(self, hash).await
    }

    async fn token_owner(&self, hash: &str) -> Result<Option<TokenOwner>> {
        keys::token_owner(self, hash).await
    }

    async fn create_api_key(&self, team: Uuid, user: Uuid, name: &str, raw: &str) -> Result<()> {
        keys::create_api_key(self, team, user, name, raw).await
    }

    async fn team(&self, id: Uuid) -> Result<Option<Team>> {
        keys::team(&self.pool, id).await
    }

    async fn publish_global_template(&self, new: &NewBuild, owner: Uuid) -> Result<TemplateId> {
        templates::publish_global(self, new, owner).await
    }

    async fn resolve_template(&self, reference: &Reference, team: &Team) -> Result<Resolved> {
        templates::resolve(self, reference, team).await
    }

    async fn find_template(&self, reference: &Reference, team: &Team) -> Result<Named> {
        templates::named(self, reference, team).await
    }

    async fn delete_template(&self, template: &TemplateId) -> Result<Option<Vec<Uuid>>> {
        templates::delete(self, template).await
    }

    async fn snapshot_template(&self, team: &Team, name: &str) -> Result<Option<TemplateId>> {
        snapshots::template_of(self, team, name).await
    }

    async fn add_snapshot(&self, new: &NewSnapshot, team: &Team) -> Result<Snapshot> {
        snapshots::add(self, new, team).await
    }

    async fn snapshots(&self, team: Uuid) -> Result<Vec<Snapshot>> {
        snapshots::list(self, team).await
    }

    async fn made_at(&self) -> Result<Timestamp> {
        snapshots::made_at(self).await
    }

    async fn known_builds(&self) -> Result<Vec<Uuid>> {
        builds::known(self).await
    }

    async fn templates(&self, team: &Team) -> Result<Vec<Template>> {
        listing::list(self, team).await
    }

    async fn set_public(
        &self,
        template: &TemplateId,
        public: bool,
        reserve: bool,
    ) -> Result<Vec<String>> {
        templates::set_public(self, template, public, reserve).await
    }

    async fn register_build(&self, new: &NewTemplateBuild, team: &Team) -> Result<Registered> {
        builds::register(self, new, team).await
    }

    async fn start_build(&self, build: Uuid) -> Result<Vec<Uuid>> {
        builds::start(self, build).await
    }

    async fn build(&self, id: Uuid) -> Result<Option<BuildRecord>> {
        builds::get(self, id).await
    }

    async fn template_builds(&self, template: &TemplateId) -> Result<Vec<BuildRecord>> {
        builds::of_template(self, template).await
    }

    async fn builds_under_way(&self) -> Result<Vec<Uuid>> {
        builds::under_way(self).await
    }

    async fn record_build_events(&self, events: &[(Uuid, BuildEvent)]) -> Result<Vec<Uuid>> {
        builds::record(self, events).await
    }

    async fn build_log(&self, query: &BuildLogQuery) -> Result<Vec<BuildLine>> {
        build_logs::find(self, query).await
    }

    async fn prune_build_logs(&self, before: Timestamp, keep: u32) -> Result<()> {
        build_logs::prune(self, before, keep).await
    }

    async fn tag_assignments(&self, template: &TemplateId) -> Result<Vec<TagAssignment>> {
        tags::assignments(self, template).await
    }

    async fn assign_tags(&self, template: &TemplateId, build: Uuid, tags: &[String]) -> Result<()> {
        tags::assign_all(self, template, build, tags).await
    }

    async fn remove_tags(&self, template: &TemplateId, tags: &[String]) -> Result<()> {
        tags::remove(self, template, tags).await
    }

    async fn count_spawn(&self, template: &TemplateId) -> Result<()> {
        templates::count_spawn(self, template).await
    }

    async fn put_metrics(&self, rows: &[MetricRow]) -> Result<()> {
        metrics::put(self, rows).await
    }

    async fn metrics(
        &self,
        team: &str,
        sandbox: &str,
        start: Option<i64>,
        end: Option<i64>,
    ) -> Result<Vec<MetricRow>> {
        metrics::range(self, team, sandbox, start, end).await
    }

    async fn prune_metrics(&self, before: i64) -> Result<()> {
        metrics::prune(self, before).await
    }

    async fn put_logs(&self, lines: &[LogLine]) -> Result<()> {
        logs::put(self, lines).await
    }

    async fn logs(&self, query: &LogQuery) -> Result<Vec<LogLine>> {
        logs::find(self, query).await
    }

    async fn prune_logs(&self, before: Timestamp, keep: u32) -> Result<()> {
        logs::prune(self, before, keep).await
    }
}

#[cfg(test)]
mod tests {
    use atoll_core::error::codes;

    use super::*;

    #[tokio::test]
    async fn a_full_disk_is_reported_and_passes() {
        let directory = tempfile::tempdir().unwrap();
        let db = SqliteDatabase::open(directory.path().join("atoll.db")).await.unwrap();
        let limit = async |pages: &'static str| {
            sqlx::query(pages).execute(&db.writer).await.unwrap();
        };
        let rows: Vec<MetricRow> = (0..5000).map(sample).collect();
        limit("PRAGMA max_page_count = 40").await;
        let error = db.put_metrics(&rows).await.unwrap_err();
        assert_eq!(error.code, codes::DISK_FULL, "{error}");
        assert!(db.metrics("team", "i1", None, None).await.unwrap().is_empty(), "half a batch");
        limit("PRAGMA max_page_count = 100000").await;
        db.put_metrics(&rows).await.unwrap();
        db.close().await;
    }

    fn sample(timestamp: i64) -> MetricRow {
        MetricRow {
            team: "team".to_owned(),
            sandbox: "i1".to_owned(),
            timestamp,
            cpu_count: 1,
            cpu_used_pct: 1.0,
            mem_used: 1,
            mem_total: 1,
            mem_cache: 1,
            disk_used: 1,
            disk_total: 1,
        }
    }
}
