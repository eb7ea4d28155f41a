//! The service on a server, with a directory to use it on.

#![allow(unreachable_pub, clippy::unwrap_used)]

use std::path::PathBuf;
use std::sync::Arc;

use atoll_envd::filesystem::FilesystemService;
use atoll_envd::guest::Guest;
use atoll_envd::{auth, files};
use atoll_wire::guest::{BootConfig, InitRequest};
use axum::Router;
use axum::middleware::from_fn;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::http::{Answer, Frames, Server};

/// The service next to the file routes, and a directory to use them on.
pub struct Fixture {
    pub server: Server,
    pub guest: Arc<Guest>,
    pub dir: TempDir,
}

impl Fixture {
    pub async fn new() -> Self {
        let guest = Guest::new(BootConfig::default());
        let init = InitRequest { default_user: Some("daemon".into()), ..InitRequest::default() };
        guest.apply(init, None);
        let service = FilesystemService::new(Arc::clone(&guest));
        let rpc = connectrpc::Router::new().add_service(Arc::new(service)).into_axum_service();
        let router = Router::new()
            .route_service("/filesystem.Filesystem/{method}", rpc)
            .merge(files::router(Arc::clone(&guest)))
            .layer(from_fn(auth::select_user));
        Self { server: Server::start(router).await, guest, dir: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    pub async fn call_as(&self, user: Option<&str>, method: &str, message: Value) -> Answer {
        let basic = user.map(|user| format!("Basic {}", STANDARD.encode(format!("{user}:"))));
        let mut headers = vec![
            ("content-type", "application/json"),
            ("content-encoding", "identity"),
            ("connect-protocol-version", "1"),
        ];
        headers.extend(basic.as_deref().map(|basic| ("authorization", basic)));
        let target = format!("/filesystem.Filesystem/{method}");
        self.server.post(&target, &headers, message.to_string()).await
    }

    pub async fn call(&self, method: &str, message: Value) -> Value {
        let answer = self.call_as(None, method, message).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()
    }

    /// Status, code and sentence of a call that fails.
    pub async fn fail(&self, method: &str, message: Value) -> (u16, String, String) {
        let answer = self.call_as(None, method, message).await;
        let body = answer.json();
        let text = |key: &str| body[key].as_str().unwrap().to_owned();
        (answer.status.as_u16(), text("code"), text("message"))
    }

    pub async fn upload(&self, name: &str, content: &str) {
        let headers = [("content-type", "application/octet-stream")];
        let target = format!("/files?path={}", self.text(name));
        assert_eq!(self.server.post(&target, &headers, content.to_owned()).await.status, 200);
    }

    /// Starts to watch the directory, up to the start message.
    pub async fn watch(&self, headers: &[(&str, &str)], options: Value) -> Frames {
        let mut message = json!({ "path": self.dir.path().to_str().unwrap() });
        message.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
        let target = "/filesystem.Filesystem/WatchDir";
        let mut frames = Frames::open(&self.server, target, headers, message).await;
        assert_eq!(frames.next().await, (0, json!({ "start": {} })));
        frames
    }
}

/// `TYPE name` of each event.
pub fn brief(events: &Value) -> Vec<String> {
    let event = |event: &Value| {
        let kind = event["type"].as_str().unwrap().trim_start_matches("EVENT_TYPE_");
        format!("{kind} {}", event["name"].as_str().unwrap())
    };
    events.as_array().into_iter().flatten().map(event).collect()
}
