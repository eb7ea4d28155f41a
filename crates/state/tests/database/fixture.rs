//! A database of its own for each case, and rows that no method of the trait makes.

use std::{path::PathBuf, time::Duration};

use atoll_core::reference::Reference;
use atoll_state::{
    Database, SqliteDatabase,
    database::{DEVELOPMENT_ACCESS_TOKEN, DEVELOPMENT_API_KEY, NewBuild, Seed},
    model::{Build, Team},
};
use sqlx::{AssertSqlSafe, Connection, SqliteConnection, sqlite::SqliteConnectOptions};
use tempfile::TempDir;
use uuid::Uuid;

pub(crate) const USER: Uuid = Uuid::from_u128(0x9f0b_6c62_5d55_4a4d_8a1c_0b4a_44f2_e7d1);
pub(crate) const OTHER_TEAM: Uuid = Uuid::from_u128(0x2b1e_33aa_94c7_4f0e_b0a5_7f3c_6de8_1902);

pub(crate) trait Fixture: Sized {
    type Db: Database + Clone;

    async fn start() -> Self;
    async fn stop(self);
    fn db(&self) -> &Self::Db;

    /// Runs a statement in the SQL that all backends share.
    async fn execute(&self, sql: &str);
    /// The one integer, or null, that a query answers.
    async fn number(&self, sql: &str) -> Option<i64>;

    /// Seeds with the published keys.
    async fn seed(&self) -> Team {
        self.db().seed(&development()).await.unwrap()
    }

    /// Another team of the development tier, `other`.
    async fn other_team(&self) -> Team {
        self.execute(&format!(
            "INSERT INTO teams (id, name, slug, tier, created_at) \
             VALUES ('{OTHER_TEAM}', 'Other', 'other', 'development', 1)"
        ))
        .await;
        self.db().team(OTHER_TEAM).await.unwrap().unwrap()
    }

    /// A template and its alias, in `namespace` unless that is empty.
    async fn template(&self, id: &str, team: &Team, namespace: &str, alias: &str, public: bool) {
        let team = team.id;
        self.execute(&format!(
            "INSERT INTO envs (id, team_id, public, created_at, updated_at) \
             VALUES ('{id}', '{team}', {public}, 1000000, 2000000)"
        ))
        .await;
        self.alias(id, namespace, alias).await;
    }

    async fn alias(&self, template: &str, namespace: &str, alias: &str) {
        let id = Uuid::now_v7();
        self.execute(&format!(
            "INSERT INTO env_aliases (id, alias, namespace, env_id) \
             VALUES ('{id}', '{alias}', NULLIF('{namespace}', ''), '{template}')"
        ))
        .await;
    }

    /// A build of `template` under `tag`.
    async fn build(&self, template: &str, tag: &str, group: &str) -> Uuid {
        let id = Uuid::new_v4();
        self.execute(&format!(
            "INSERT INTO env_builds (id, team_id, status, status_group, vcpu, ram_mb, disk_mb, \
             envd_version, created_at, updated_at, env_id) \
             SELECT '{id}', team_id, 'x', '{group}', 2, 512, 1024, '0.6.4', 1, 1, id FROM envs \
             WHERE id = '{template}'"
        ))
        .await;
        self.assign(template, id, tag).await;
        id
    }

    async fn assign(&self, template: &str, build: Uuid, tag: &str) {
        self.execute(&format!(
            "INSERT INTO env_build_assignments (env_id, build_id, tag, created_at) \
             VALUES ('{template}', '{build}', '{tag}', 1)"
        ))
        .await;
    }
}

pub(crate) fn development() -> Seed {
    Seed {
        api_key: DEVELOPMENT_API_KEY.to_owned(),
        access_token: DEVELOPMENT_ACCESS_TOKEN.to_owned(),
        development: true,
        user: USER,
    }
}

pub(crate) fn reference(text: &str) -> Reference {
    Reference::parse(text).unwrap()
}

/// A new build to publish under `alias`.
pub(crate) fn new_build(alias: &str) -> NewBuild {
    NewBuild {
        alias: alias.to_owned(),
        build: Build {
            id: Uuid::new_v4(),
            vcpu: 2,
            memory_mb: 512,
            disk_mb: 1024,
            envd_version: "0.6.4".to_owned(),
        },
    }
}

/// Waits until `condition` holds.
pub(crate) async fn eventually(condition: impl AsyncFn() -> bool) {
    let poll = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), poll).await.expect("it never happened");
}

pub(crate) struct SqliteFixture {
    db: SqliteDatabase,
    path: PathBuf,
    _directory: TempDir,
}

impl SqliteFixture {
    async fn connect(&self) -> SqliteConnection {
        let options = SqliteConnectOptions::new().filename(&self.path).foreign_keys(true);
        SqliteConnection::connect_with(&options).await.unwrap()
    }
}

impl Fixture for SqliteFixture {
    type Db = SqliteDatabase;

    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("atoll.db");
        let db = SqliteDatabase::open(&path).await.unwrap();
        Self { db, path, _directory: directory }
    }

    async fn stop(self) {
        self.db.close().await;
    }

    fn db(&self) -> &SqliteDatabase {
        &self.db
    }

    async fn execute(&self, sql: &str) {
        let mut connection = self.connect().await;
        sqlx::query(AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
    }

    async fn number(&self, sql: &str) -> Option<i64> {
        let mut connection = self.connect().await;
        let query = sqlx::query_scalar(AssertSqlSafe(sql));
        let number = query.fetch_one(&mut connection).await.unwrap();
        connection.close().await.unwrap();
        number
    }
}
