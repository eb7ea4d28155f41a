//! A control plane to talk to.

use std::{future::Future, net::SocketAddr, sync::Arc, time::Duration};

use atoll_api::{Options, Service};
use atoll_core::key;
use atoll_state::{
    Catalogue, Database, MemoryCatalogue, SqliteDatabase,
    database::{DEVELOPMENT_ACCESS_TOKEN, DEVELOPMENT_API_KEY, DEVELOPMENT_TEAM, NewBuild, Seed},
    model::Build,
};
use reqwest::{Client, Method, RequestBuilder, StatusCode, header::HeaderMap};
use serde_json::{Value, json};
use sqlx::{ConnectOptions, SqliteConnection, sqlite::SqliteConnectOptions};
use tokio::net::TcpListener;
use uuid::Uuid;

use crate::{builder::FakeBuilder, node::FakeNode};

pub(crate) const KEY: &str = DEVELOPMENT_API_KEY;
pub(crate) const ACCESS_TOKEN: &str = DEVELOPMENT_ACCESS_TOKEN;
pub(crate) const TEAM: Uuid = DEVELOPMENT_TEAM;
pub(crate) const SEED: &str = "testseed";
pub(crate) const ADMIN_TOKEN: &str = "correct horse";

/// A running control plane; its files go when it is dropped.
pub(crate) struct Stack {
    pub(crate) node: Arc<FakeNode>,
    pub(crate) builder: Arc<FakeBuilder>,
    pub(crate) catalogue: Arc<MemoryCatalogue>,
    pub(crate) service: Service,
    pub(crate) client: Client,
    user: Uuid,
    database: SqliteDatabase,
    directory: tempfile::TempDir,
}

/// An answer, read.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Checks that this is a failure of the published shape, and returns its message.
    #[track_caller]
    pub(crate) fn failure(&self, status: u16) -> String {
        assert_eq!(self.status.as_u16(), status, "{self:?}");
        assert_eq!(self.headers["content-type"], "application/json", "{self:?}");
        let body = self.json();
        assert_eq!(body["code"], json!(status), "{self:?}");
        assert!(body["error_code"].is_string(), "{self:?}");
        body["message"].as_str().unwrap_or_else(|| panic!("no message: {self:?}")).to_owned()
    }

    /// Checks for success, and returns the body.
    #[track_caller]
    pub(crate) fn success(&self, status: u16) -> Value {
        assert_eq!(self.status.as_u16(), status, "{self:?}");
        if self.text.is_empty() { Value::Null } else { self.json() }
    }
}

pub(crate) async fn send(request: RequestBuilder) -> Answer {
    let response = request.send().await.unwrap();
    let (status, headers) = (response.status(), response.headers().clone());
    Answer { status, headers, text: response.text().await.unwrap() }
}

/// Waits until `condition` holds.
#[track_caller]
pub(crate) fn eventually<F: Future<Output = bool>>(
    condition: impl Fn() -> F,
) -> impl Future<Output = ()> {
    let caller = std::panic::Location::caller();
    async move {
        let wait = async {
            while !condition().await {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let limit = Duration::from_secs(20);
        assert!(tokio::time::timeout(limit, wait).await.is_ok(), "never came true: {caller}");
    }
}

async fn serve(
    database: &SqliteDatabase,
    catalogue: &Arc<MemoryCatalogue>,
    node: &Arc<FakeNode>,
    builder: &Arc<FakeBuilder>,
    configure: impl FnOnce(&mut Options),
) -> Service {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut options = Options::new(listener, SEED);
    options.admin_token = Some(ADMIN_TOKEN.to_owned());
    configure(&mut options);
    let database = Arc::new(database.clone());
    let (catalogue, node, builder) = (catalogue.clone(), node.clone(), builder.clone());
    Service::start(options, database, catalogue, node, builder).await.unwrap()
}

impl Stack {
    pub(crate) async fn start() -> Self {
        Self::with(FakeNode::default(), |_| {}).await
    }

    pub(crate) async fn with(node: FakeNode, configure: impl FnOnce(&mut Options)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let database = SqliteDatabase::open(directory.path().join("atoll.db")).await.unwrap();
        let user = Uuid::new_v4();
        let seed = Seed {
            api_key: KEY.to_owned(),
            access_token: ACCESS_TOKEN.to_owned(),
            development: true,
            user,
        };
        let team = database.seed(&seed).await.unwrap();
        let build = Build {
            id: Uuid::new_v4(),
            vcpu: 2,
            memory_mb: 512,
            disk_mb: 1024,
            envd_version: "0.6.4".to_owned(),
        };
        let base = NewBuild { alias: "base".to_owned(), build };
        database.publish_global_template(&base, team.id).await.unwrap();

        let (node, catalogue) = (Arc::new(node), Arc::new(MemoryCatalogue::new()));
        let builder = Arc::new(FakeBuilder::default());
        let service = serve(&database, &catalogue, &node, &builder, configure).await;
        Self { node, builder, catalogue, service, client: Client::new(), user, database, directory }
    }

    /// Shuts the control plane down and starts another on the same database and node.
    pub(crate) async fn again(self) -> Self {
        self.service.shutdown().await;
        let catalogue = Arc::new(MemoryCatalogue::new());
        let service = serve(&self.database, &catalogue, &self.node, &self.builder, |_| {}).await;
        Self { catalogue, service, ..self }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.service.handle().local_addr()
    }

    /// A request without credentials.
    pub(crate) fn anonymous(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("http://{}{path}", self.address()))
    }

    /// A request with the development key.
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.anonymous(method, path).header("X-API-KEY", KEY)
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        send(self.request(Method::GET, path)).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        send(self.request(Method::DELETE, path)).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        send(self.request(Method::POST, path).json(&body)).await
    }

    /// A template of this name that is built already: its id and that of its build.
    pub(crate) async fn template(&self, name: &str) -> (String, String) {
        let (template, build) = self.started(name, json!({"fromTemplate": "base"})).await;
        self.builder.finish(&build);
        self.reaches(&template, &build, "ready").await;
        (template, build)
    }

    /// A build that is under way.
    pub(crate) async fn started(&self, name: &str, body: Value) -> (String, String) {
        let (template, build) = self.registered(json!({"name": name})).await;
        let path = format!("/v2/templates/{template}/builds/{build}");
        self.post(&path, body).await.success(202);
        (template, build)
    }

    /// A build that waits.
    pub(crate) async fn registered(&self, body: Value) -> (String, String) {
        let answer = self.post("/v3/templates", body).await.success(202);
        let text = |name: &str| answer[name].as_str().unwrap().to_owned();
        (text("templateID"), text("buildID"))
    }

    pub(crate) async fn status(&self, template: &str, build: &str) -> Value {
        self.get(&format!("/templates/{template}/builds/{build}/status")).await.success(200)
    }

    /// Waits until a build has a status, and returns all of that.
    pub(crate) async fn reaches(&self, template: &str, build: &str, status: &str) -> Value {
        eventually(|| async { self.status(template, build).await["status"] == status }).await;
        self.status(template, build).await
    }

    /// Makes a sandbox of `base` and returns what create answered.
    pub(crate) async fn sandbox(&self, mut body: Value) -> Value {
        body["templateID"] = json!("base");
        self.post("/v2/sandboxes", body).await.success(201)
    }

    /// The id of a new sandbox.
    pub(crate) async fn sandbox_id(&self) -> String {
        id_of(&self.sandbox(json!({})).await)
    }

    /// A second team's key.
    pub(crate) async fn other_team(&self) -> (Uuid, String) {
        let team = Uuid::new_v4();
        self.sql(&format!(
            "INSERT INTO teams (id, name, slug, tier, created_at) \
             VALUES ('{team}', 'Other', 'other', 'development', 0)"
        ))
        .await;
        (team, self.key_for(team).await)
    }

    /// A new key of a team.
    pub(crate) async fn key_for(&self, team: Uuid) -> String {
        let raw = key::generate(key::API_KEY_PREFIX).unwrap();
        self.database.create_api_key(team, self.user, "test", &raw).await.unwrap();
        raw
    }

    /// What an operator does by hand.
    pub(crate) async fn sql(&self, statement: &str) {
        let mut connection: SqliteConnection = SqliteConnectOptions::new()
            .filename(self.directory.path().join("atoll.db"))
            .connect()
            .await
            .unwrap();
        sqlx::raw_sql(sqlx::AssertSqlSafe(statement.to_owned()))
            .execute(&mut connection)
            .await
            .unwrap();
    }

    /// Whether fewer than `limit` places of the team are taken.
    pub(crate) async fn has_place(&self, limit: u32) -> bool {
        let id = "iprobe".parse().unwrap();
        self.catalogue.reserve(&TEAM.to_string(), &id, limit).await.is_ok()
    }
}

pub(crate) fn id_of(sandbox: &Value) -> String {
    sandbox["sandboxID"].as_str().unwrap().to_owned()
}
