//! What an operator meets when the file is not as it should be, and what is kept across restarts.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    fs,
    io::{Seek, SeekFrom, Write},
    os::unix::fs::PermissionsExt,
    path::Path,
};

use atoll_core::{
    Error,
    error::codes,
    key::{self, API_KEY_PREFIX},
    reference::Reference,
};
use atoll_state::{
    Database, SqliteDatabase,
    builds::BuildStatus,
    database::{DEVELOPMENT_ACCESS_TOKEN, DEVELOPMENT_API_KEY, Seed},
    model::MetricRow,
};
use sqlx::{AssertSqlSafe, Connection, SqliteConnection, sqlite::SqliteConnectOptions};
use tempfile::TempDir;
use uuid::Uuid;

fn seed() -> Seed {
    Seed {
        api_key: DEVELOPMENT_API_KEY.to_owned(),
        access_token: DEVELOPMENT_ACCESS_TOKEN.to_owned(),
        development: true,
        user: Uuid::from_u128(1),
    }
}

async fn refusal(path: &Path) -> Error {
    match SqliteDatabase::open(path).await {
        Ok(_) => panic!("{} was opened", path.display()),
        Err(error) => error,
    }
}

/// A closed database with a seeded team.
async fn closed_database() -> (TempDir, std::path::PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("atoll.db");
    let db = SqliteDatabase::open(&path).await.unwrap();
    db.seed(&seed()).await.unwrap();
    db.close().await;
    (directory, path)
}

#[tokio::test]
async fn what_was_written_is_there_after_a_restart() {
    let (directory, path) = closed_database().await;
    let files: Vec<_> = fs::read_dir(directory.path()).unwrap().collect();
    assert_eq!(files.len(), 1, "the log was not folded in: {files:?}");
    let db = SqliteDatabase::open(&path).await.unwrap();
    let hash = key::hash(API_KEY_PREFIX, DEVELOPMENT_API_KEY).unwrap();
    assert!(db.key_owner(&hash).await.unwrap().is_some());
    db.close().await;
}

#[tokio::test]
async fn what_was_written_survives_a_process_that_did_not_close() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("atoll.db");
    let db = SqliteDatabase::open(&path).await.unwrap();
    let team = db.seed(&seed()).await.unwrap();
    // What SIGKILL leaves: the file and its log.
    let copies = tempfile::tempdir().unwrap();
    for file in ["atoll.db", "atoll.db-wal"] {
        fs::copy(directory.path().join(file), copies.path().join(file)).unwrap();
    }
    let reopened = SqliteDatabase::open(copies.path().join("atoll.db")).await.unwrap();
    assert_eq!(reopened.team(team.id).await.unwrap(), Some(team));
    reopened.close().await;
    db.close().await;
}

#[tokio::test]
async fn only_the_owner_may_read_the_files() {
    let directory = tempfile::tempdir().unwrap();
    let db = SqliteDatabase::open(directory.path().join("atoll.db")).await.unwrap();
    db.seed(&seed()).await.unwrap();
    for file in fs::read_dir(directory.path()).unwrap() {
        let file = file.unwrap();
        let mode = file.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{file:?}");
    }
    db.close().await;
}

#[tokio::test]
async fn a_place_that_cannot_hold_a_file_is_named() {
    let directory = tempfile::tempdir().unwrap();
    for path in [directory.path().join("missing/atoll.db"), directory.path().to_owned()] {
        let error = refusal(&path).await;
        assert_eq!(error.code, codes::DATA_DIR_UNUSABLE, "{error}");
        assert!(error.message.contains(path.to_str().unwrap()), "{error}");
        assert!(error.fix.contains("directory"), "{error}");
    }
}

#[tokio::test]
async fn a_file_that_is_no_database_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("atoll.db");
    let text = "These are somebody's notes, not a database.\n".repeat(100);
    fs::write(&path, &text).unwrap();
    let error = refusal(&path).await;
    assert_eq!(error.code, codes::DATA_DIR_UNUSABLE, "{error}");
    assert!(error.message.contains("is not an SQLite database"), "{error}");
    assert!(error.fix.contains("backup"), "{error}");
    assert_eq!(fs::read_to_string(&path).unwrap(), text);
}

#[tokio::test]
async fn a_damaged_file_is_reported_with_what_to_do() {
    let (_directory, path) = closed_database().await;
    let mut file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    let len = file.metadata().unwrap().len();
    file.seek(SeekFrom::Start(100)).unwrap();
    file.write_all(&vec![0xa5; usize::try_from(len - 100).unwrap()]).unwrap();
    drop(file);
    let error = refusal(&path).await;
    assert_eq!(error.code, codes::DATA_DIR_UNUSABLE, "{error}");
    assert!(error.message.contains("is damaged"), "{error}");
    assert!(error.fix.contains("backup"), "{error}");
}

#[tokio::test]
async fn damage_found_while_running_has_the_same_code() {
    let (_directory, path) = closed_database().await;
    let db = SqliteDatabase::open(&path).await.unwrap();
    db.put_metrics(&many_samples()).await.unwrap();
    db.close().await;
    let mut file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    let len = file.metadata().unwrap().len();
    file.seek(SeekFrom::Start(len / 2)).unwrap();
    file.write_all(&vec![0xa5; usize::try_from(len / 2).unwrap()]).unwrap();
    drop(file);
    let db = SqliteDatabase::open(&path).await.unwrap();
    let error = db.metrics("team", "i1", None, None).await.unwrap_err();
    assert_eq!(error.code, codes::DATA_DIR_UNUSABLE, "{error}");
    assert!(error.fix.contains("backup"), "{error}");
    db.close().await;
}

fn many_samples() -> Vec<MetricRow> {
    (0..5000)
        .map(|timestamp| MetricRow {
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
        })
        .collect()
}

#[tokio::test]
async fn a_newer_schema_is_not_touched() {
    let (_directory, path) = closed_database().await;
    let options = SqliteConnectOptions::new().filename(&path);
    let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
    sqlx::query(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
         VALUES (9000, 'from the future', TRUE, X'00', 1)",
    )
    .execute(&mut connection)
    .await
    .unwrap();
    connection.close().await.unwrap();
    let error = refusal(&path).await;
    assert_eq!(error.code, codes::DATA_DIR_UNUSABLE, "{error}");
    assert!(error.message.contains("newer Atoll"), "{error}");
    assert!(error.fix.contains("--data-dir"), "{error}");
}

#[tokio::test]
async fn a_closed_database_answers_with_an_error() {
    let (_directory, path) = closed_database().await;
    let db = SqliteDatabase::open(&path).await.unwrap();
    db.close().await;
    assert_eq!(db.team(Uuid::nil()).await.unwrap_err().code, codes::INTERNAL);
    db.close().await;
}

#[tokio::test]
async fn builds_of_an_older_atoll_have_their_template() {
    let (_directory, path) = older_database().await;
    let db = SqliteDatabase::open(&path).await.unwrap();
    let team = db.team(OLD).await.unwrap().unwrap();
    assert_eq!(team.tier.concurrent_builds, 20);
    let build = db.build(OLD).await.unwrap().unwrap();
    assert_eq!((build.template.as_str(), build.status), ("old", BuildStatus::Ready));
    let listed = db.templates(&team).await.unwrap();
    assert_eq!((listed[0].build.id, listed[0].build_count), (OLD, 1));
    let by_id = Reference::parse(&format!("old:{OLD}")).unwrap();
    assert_eq!(db.resolve_template(&by_id, &team).await.unwrap().build.id, OLD);
    assert_eq!(db.known_builds().await.unwrap(), [OLD]);
    assert_eq!(db.delete_template(&build.template).await.unwrap(), Some(vec![OLD]));
    db.close().await;
}

const OLD: Uuid = Uuid::from_u128(7);

/// A database from before builds had a life of their own, with a team, a template and its build.
async fn older_database() -> (TempDir, std::path::PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("atoll.db");
    let options = SqliteConnectOptions::new().filename(&path).create_if_missing(true);
    let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
    let mut migrations = sqlx::migrate!("./migrations/sqlite");
    migrations.migrations = migrations.iter().take(3).cloned().collect();
    migrations.run(&mut connection).await.unwrap();
    let rows = format!(
        "INSERT INTO tiers VALUES ('t', 'T', 1, 1, 1, 512, 512); \
         INSERT INTO teams (id, name, slug, tier, created_at) VALUES ('{OLD}', 'Old', 'o', 't', 1); \
         INSERT INTO envs (id, team_id, public, created_at, updated_at) \
             VALUES ('old', '{OLD}', FALSE, 1, 1); \
         INSERT INTO env_builds (id, team_id, status, status_group, vcpu, ram_mb, disk_mb, \
             envd_version, created_at, updated_at) \
             VALUES ('{OLD}', '{OLD}', 'success', 'ready', 1, 512, 512, '0.6.4', 1, 1); \
         INSERT INTO env_build_assignments (env_id, build_id, tag, created_at) \
             VALUES ('old', '{OLD}', 'default', 1)"
    );
    sqlx::raw_sql(AssertSqlSafe(rows)).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    (directory, path)
}
