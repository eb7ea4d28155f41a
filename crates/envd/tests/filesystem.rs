//! The Filesystem service, over HTTP as the SDKs call it: JSON in Connect's framing.

#![allow(clippy::unwrap_used)]

mod http;

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
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
use http::{Answer, Frames, Server, until};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The service next to the file routes, and a directory to use them on.
struct Fixture {
    server: Server,
    dir: TempDir,
}

impl Fixture {
    async fn new() -> Self {
        let guest = Guest::new(BootConfig::default());
        let init = InitRequest { default_user: Some("daemon".into()), ..InitRequest::default() };
        guest.apply(init, None);
        let service = FilesystemService::new(Arc::clone(&guest));
        let rpc = connectrpc::Router::new().add_service(Arc::new(service)).into_axum_service();
        let router = Router::new()
            .route_service("/filesystem.Filesystem/{method}", rpc)
            .merge(files::router(guest))
            .layer(from_fn(auth::select_user));
        Self { server: Server::start(router).await, dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    async fn call_as(&self, user: Option<&str>, method: &str, message: Value) -> Answer {
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

    async fn call(&self, method: &str, message: Value) -> Value {
        let answer = self.call_as(None, method, message).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()
    }

    /// Status, code and sentence of a call that fails.
    async fn fail(&self, method: &str, message: Value) -> (u16, String, String) {
        let answer = self.call_as(None, method, message).await;
        let body = answer.json();
        let text = |key: &str| body[key].as_str().unwrap().to_owned();
        (answer.status.as_u16(), text("code"), text("message"))
    }

    async fn upload(&self, name: &str, content: &str) {
        let headers = [("content-type", "application/octet-stream")];
        let target = format!("/files?path={}", self.text(name));
        assert_eq!(self.server.post(&target, &headers, content.to_owned()).await.status, 200);
    }

    /// Starts to watch the directory, up to the start message.
    async fn watch(&self, headers: &[(&str, &str)], options: Value) -> Frames {
        let mut message = json!({ "path": self.dir.path().to_str().unwrap() });
        message.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
        let target = "/filesystem.Filesystem/WatchDir";
        let mut frames = Frames::open(&self.server, target, headers, message).await;
        assert_eq!(frames.next().await, (0, json!({ "start": {} })));
        frames
    }
}

/// `TYPE name` of each event.
fn brief(events: &Value) -> Vec<String> {
    let event = |event: &Value| {
        let kind = event["type"].as_str().unwrap().trim_start_matches("EVENT_TYPE_");
        format!("{kind} {}", event["name"].as_str().unwrap())
    };
    events.as_array().into_iter().flatten().map(event).collect()
}

#[tokio::test]
async fn an_entry_says_all_about_a_file() {
    let fixture = Fixture::new().await;
    fixture.upload("a.txt", "abc").await;
    let path = fixture.text("a.txt");
    let answer = fixture.call("Stat", json!({ "path": path })).await;
    let mut entry = answer["entry"].clone();
    let modified = entry.as_object_mut().unwrap().remove("modifiedTime").unwrap();
    assert!(modified.as_str().unwrap().ends_with('Z'), "{modified}");
    let expected = json!({
        "name": "a.txt", "type": "FILE_TYPE_FILE", "path": path, "size": "3", "mode": 0o644,
        "permissions": "-rw-r--r--", "owner": "daemon", "group": "daemon",
    });
    assert_eq!(entry, expected);

    symlink("a.txt", fixture.path("link")).unwrap();
    let link = fixture.call("Stat", json!({ "path": fixture.text("link") })).await;
    assert_eq!(link["entry"]["type"], "FILE_TYPE_FILE");
    assert_eq!(link["entry"]["symlinkTarget"], path);
    assert_eq!(link["entry"]["isSymlink"], true);
    assert_eq!(link["entry"]["permissions"], "Lrwxrwxrwx");
}

#[tokio::test]
async fn metadata_of_uploads_is_part_of_the_entry() {
    let fixture = Fixture::new().await;
    let target = format!("/files?path={}", fixture.text("a"));
    let headers = [("content-type", "application/octet-stream"), ("x-metadata-k", "v")];
    fixture.server.post(&target, &headers, "").await;
    let entry = fixture.call("Stat", json!({ "path": fixture.text("a") })).await;
    assert_eq!(entry["entry"]["metadata"], json!({ "k": "v" }));
}

#[tokio::test]
async fn the_caller_decides_where_paths_start() {
    let fixture = Fixture::new().await;
    let answer = fixture.call_as(Some("root"), "Stat", json!({ "path": "~" })).await;
    assert_eq!(answer.json()["entry"]["path"], "/root");
    let answer = fixture.call_as(None, "Stat", json!({ "path": "" })).await;
    assert_eq!(answer.json()["entry"]["path"], "/usr/sbin");
    let answer = fixture.call_as(Some("nosuchuser"), "Stat", json!({ "path": "/" })).await;
    assert_eq!(answer.status, 401);
    let (status, code, message) = fixture.fail("Stat", json!({ "path": "~bob" })).await;
    assert_eq!((status, code.as_str()), (400, "invalid_argument"));
    assert_eq!(message, "cannot expand user-specific home dir");
}

#[tokio::test]
async fn codes_tell_what_sdks_turn_into_booleans() {
    let fixture = Fixture::new().await;
    let (dir, gone) = (fixture.text("a/b"), fixture.text("gone"));
    let (status, code, message) = fixture.fail("Stat", json!({ "path": gone })).await;
    assert_eq!((status, code.as_str()), (404, "not_found"));
    assert!(message.starts_with("file not found: "), "{message}");

    let entry = fixture.call("MakeDir", json!({ "path": dir })).await;
    assert_eq!(entry["entry"]["type"], "FILE_TYPE_DIRECTORY");
    let (status, code, message) = fixture.fail("MakeDir", json!({ "path": dir })).await;
    assert_eq!((status, code.as_str()), (409, "already_exists"));
    assert_eq!(message, format!("directory already exists: {dir}"));

    assert_eq!(fixture.call("Remove", json!({ "path": gone })).await, json!({}));
    assert_eq!(fixture.call("Remove", json!({ "path": fixture.text("a") })).await, json!({}));
    assert!(!fixture.path("a").exists());
}

#[tokio::test]
async fn a_move_answers_with_the_new_place() {
    let fixture = Fixture::new().await;
    fs::write(fixture.path("old"), "x").unwrap();
    let (source, destination) = (fixture.text("old"), fixture.text("sub/new"));
    let message = json!({ "source": source, "destination": destination });
    let answer = fixture.call("Move", message.clone()).await;
    assert_eq!(answer["entry"]["path"], destination);
    let (_, code, message) = fixture.fail("Move", message).await;
    assert_eq!(code, "not_found");
    assert!(message.starts_with("source file not found"), "{message}");
}

#[tokio::test]
async fn a_listing_goes_as_deep_as_asked() {
    let fixture = Fixture::new().await;
    fs::create_dir_all(fixture.path("d/e")).unwrap();
    fs::write(fixture.path("d/f"), "").unwrap();
    fs::write(fixture.path("g"), "").unwrap();
    let names = async |message: Value| {
        let answer = fixture.call("ListDir", message).await;
        let entries = answer["entries"].as_array().unwrap().clone();
        entries.iter().map(|entry| entry["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let path = fixture.dir.path().to_str().unwrap();
    assert_eq!(names(json!({ "path": path })).await, ["d", "g"]);
    assert_eq!(names(json!({ "path": path, "depth": 2 })).await, ["d", "e", "f", "g"]);
    let empty = fixture.call("ListDir", json!({ "path": fixture.text("d/e") })).await;
    assert_eq!(empty, json!({}));
    let (_, code, message) = fixture.fail("ListDir", json!({ "path": fixture.text("g") })).await;
    assert_eq!(code, "invalid_argument");
    assert!(message.starts_with("path is not a directory: "), "{message}");
}

#[tokio::test]
async fn a_poll_right_after_an_upload_sees_exactly_its_events() {
    let fixture = Fixture::new().await;
    for recursive in [false, true] {
        let message = json!({ "path": fixture.dir.path(), "recursive": recursive });
        let answer = fixture.call("CreateWatcher", message).await;
        let id = answer["watcherId"].as_str().unwrap();
        assert!(id.starts_with('w'));
        let poll = async || {
            fixture.call("GetWatcherEvents", json!({ "watcherId": id })).await["events"].take()
        };
        assert_eq!(poll().await, Value::Null);

        let name = format!("{recursive}.txt");
        fixture.upload(&name, "content").await;
        let event = |kind: &str| json!({ "name": name, "type": format!("EVENT_TYPE_{kind}") });
        assert_eq!(poll().await, json!([event("CREATE"), event("CHMOD"), event("WRITE")]));
        fixture.upload(&name, "other").await;
        let events = brief(&poll().await);
        // The kernel may merge the truncation with the write.
        assert_eq!(events[..2], [format!("CHMOD {name}"), format!("WRITE {name}")]);
        assert!(events[2..].iter().all(|event| *event == format!("WRITE {name}")), "{events:?}");

        assert_eq!(fixture.call("RemoveWatcher", json!({ "watcherId": id })).await, json!({}));
        for method in ["GetWatcherEvents", "RemoveWatcher"] {
            let failed = fixture.fail(method, json!({ "watcherId": id })).await;
            let message = format!("watcher with id {id} not found");
            assert_eq!(failed, (404, "not_found".to_owned(), message));
        }
    }
}

#[tokio::test]
async fn a_recursive_poll_sees_what_new_directories_hold() {
    let fixture = Fixture::new().await;
    let message = json!({ "path": fixture.dir.path(), "recursive": true });
    let id = fixture.call("CreateWatcher", message).await["watcherId"].take();
    fixture.call("MakeDir", json!({ "path": fixture.text("new/sub") })).await;
    fixture.upload("new/sub/file", "x").await;
    let answer = fixture.call("GetWatcherEvents", json!({ "watcherId": id })).await;
    let events = brief(&answer["events"]);
    for event in ["CREATE new", "CREATE new/sub", "CREATE new/sub/file", "WRITE new/sub/file"] {
        assert!(events.iter().any(|seen| seen == event), "{event} in {events:?}");
    }
}

#[tokio::test]
async fn a_stream_tells_events_as_they_happen() {
    let fixture = Fixture::new().await;
    let mut frames = fixture.watch(&[], json!({ "includeEntry": true })).await;
    fixture.upload("file", "abc").await;
    for kind in ["CREATE", "CHMOD", "WRITE"] {
        let (flags, message) = frames.next().await;
        assert_eq!(flags, 0);
        let event = &message["filesystem"];
        assert_eq!(event["type"], format!("EVENT_TYPE_{kind}"));
        assert_eq!(event["name"], "file");
        assert_eq!(event["entry"]["path"], fixture.text("file"));
    }
    fs::remove_file(fixture.path("file")).unwrap();
    let (_, message) = frames.next().await;
    assert_eq!(message, json!({ "filesystem": { "name": "file", "type": "EVENT_TYPE_REMOVE" } }));
}

#[tokio::test]
async fn a_silent_stream_gives_signs_of_life() {
    let fixture = Fixture::new().await;
    let mut frames = fixture.watch(&[("keepalive-ping-interval", "1")], json!({})).await;
    assert_eq!(frames.next().await, (0, json!({ "keepalive": {} })));
}

#[tokio::test]
async fn a_stream_ends_at_its_deadline() {
    let fixture = Fixture::new().await;
    let mut frames = fixture.watch(&[("connect-timeout-ms", "200")], json!({})).await;
    let (flags, message) = frames.next().await;
    assert_eq!((flags, &message["error"]["code"]), (2, &json!("deadline_exceeded")));
}

#[tokio::test]
async fn what_cannot_be_watched_says_why() {
    let fixture = Fixture::new().await;
    fs::write(fixture.path("file"), "").unwrap();
    let (missing, file) = (fixture.text("missing"), fixture.text("file"));
    for (path, code, start) in [
        (&missing, "not_found", format!("path {missing} not found: ")),
        (&file, "invalid_argument", format!("path {file} not a directory")),
    ] {
        let (_, seen, message) = fixture.fail("CreateWatcher", json!({ "path": path })).await;
        assert_eq!(seen, code);
        assert!(message.starts_with(&start), "{message}");

        let target = "/filesystem.Filesystem/WatchDir";
        let message = json!({ "path": path });
        let mut frames = Frames::open(&fixture.server, target, &[], message).await;
        let (flags, message) = frames.next().await;
        assert_eq!((flags, &message["error"]["code"]), (2, &json!(code)));
    }
}

#[tokio::test]
async fn a_watch_goes_with_its_client() {
    let fixture = Fixture::new().await;
    // The kernel names the inode of what an inotify instance watches.
    let mark = format!(" ino:{:x} ", fs::metadata(fixture.dir.path()).unwrap().ino());
    let is_watched = || {
        fs::read_dir("/proc/self/fdinfo").unwrap().any(|entry| {
            fs::read_to_string(entry.unwrap().path()).is_ok_and(|text| {
                text.lines().any(|line| line.starts_with("inotify") && line.contains(&mark))
            })
        })
    };
    let frames = fixture.watch(&[], json!({ "recursive": true })).await;
    assert!(is_watched());
    drop(frames);
    until(|| !is_watched()).await;

    let message = json!({ "path": fixture.dir.path() });
    let id = fixture.call("CreateWatcher", message).await["watcherId"].take();
    assert!(is_watched(), "though the request is over");
    fixture.call("RemoveWatcher", json!({ "watcherId": id })).await;
    until(|| !is_watched()).await;
}
