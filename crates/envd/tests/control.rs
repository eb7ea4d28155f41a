//! What the node does around a checkpoint, and what `/init` promises of volumes.

#![allow(clippy::unwrap_used)]

mod support;

use http::{Method, StatusCode};
use serde_json::{Value, json};
use support::{Envd, current_user, soon};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const CONFIG: &str = r#"{ "control_secret": "secret", "sandbox_id": "", "template_id": "base" }"#;
const SECRET: [(&str, &str); 1] = [("x-atoll-control", "secret")];

async fn control(envd: &Envd, path: &str) -> (StatusCode, Value) {
    envd.post_with(path, &SECRET, &json!({})).await
}

async fn init(envd: &Envd, body: Value) -> (StatusCode, Value) {
    envd.post_with("/init", &SECRET, &body).await
}

/// The code with which a start fails; none when it does not.
async fn start_error(envd: &Envd) -> Value {
    envd.sh("true", json!({})).await.outcome().await.trailer["error"]["code"].take()
}

// Rules: CTRL-2, INIT-18
#[tokio::test]
async fn nothing_is_started_while_frozen() {
    let envd = Envd::with_config(CONFIG);
    let settings = json!({ "defaultUser": current_user() });
    assert_eq!(init(&envd, settings.clone()).await.0, StatusCode::NO_CONTENT);
    let mut before = envd.sh("cat", json!({})).await;
    let pid = before.pid().await;
    for thaw in ["/unfreeze", "/init"] {
        // Twice is as good as once.
        for path in ["/freeze", "/freeze?mode=hierarchy&maxCgroups=10"] {
            assert_eq!(control(&envd, path).await.0, StatusCode::NO_CONTENT);
        }
        assert_eq!(start_error(&envd).await, "unavailable");
        // What runs can still be reached.
        assert_eq!(envd.list().await, [pid]);
        assert_eq!(envd.type_in(pid, "x").await.0, StatusCode::OK);
        let (status, _) = envd.post_with(thaw, &SECRET, &settings).await;
        assert_eq!(status, StatusCode::NO_CONTENT);
        assert_eq!(start_error(&envd).await, Value::Null);
    }
    envd.kill(pid).await;
}

// Rules: CTRL-2
#[tokio::test]
async fn whoever_waits_for_a_freeze_gets_a_report() {
    let envd = Envd::with_config(CONFIG);
    let (status, report) = control(&envd, "/freeze?mode=legacy&maxWaitMs=50").await;
    assert_eq!((status, &report["mode"]), (StatusCode::OK, &json!("legacy")));
    let names = "visited allowlisted truncated preFrozen requested frozen notFrozen failed \
                 unobservable sweepMs waitMs";
    for name in names.split_whitespace() {
        assert!(report[name].is_number() || report[name].is_boolean(), "{name}: {report}");
    }
    for query in ["mode=none", "maxWaitMs=soon"] {
        let (status, body) = control(&envd, &format!("/freeze?{query}")).await;
        assert_eq!((status, &body["code"]), (StatusCode::BAD_REQUEST, &json!(400)), "{query}");
    }
}

// Rules: CTRL-2, CTRL-3
#[tokio::test]
async fn file_systems_are_flushed_and_go_on() {
    let envd = Envd::with_config(CONFIG);
    for _ in 0..2 {
        assert_eq!(control(&envd, "/fsfreeze").await.0, StatusCode::NO_CONTENT);
        assert_eq!(control(&envd, "/fsthaw").await.0, StatusCode::NO_CONTENT);
    }
    for path in ["/collapse", "/upgrade"] {
        let (status, body) = control(&envd, path).await;
        assert_eq!(status, StatusCode::NOT_IMPLEMENTED);
        assert!(body["message"].as_str().unwrap().contains("not supported"), "{body}");
    }
}

// Rules: CTRL-1
#[tokio::test]
async fn no_spelling_of_a_control_route_gets_around_the_secret() {
    let envd = Envd::with_config(CONFIG);
    let token = json!({ "accessToken": "tok" });
    assert_eq!(init(&envd, token).await.0, StatusCode::NO_CONTENT);
    let mut answers = Vec::new();
    for route in ["init", "freeze", "unfreeze", "fsfreeze", "fsthaw", "collapse", "upgrade"] {
        for target in [
            format!("/{route}"),
            format!("//{route}"),
            format!("/./{route}"),
            format!("/x/../{route}"),
            format!("/{route}/"),
            format!("/{route};a=b"),
            format!("/{}", route.to_uppercase()),
            format!("/%{:02x}{}", route.as_bytes()[0], &route[1..]),
            format!("/%2e%2e/{route}"),
            format!("/x%2f..%2f{route}"),
            format!("http://envd/{route}"),
            format!("http://envd//{route}"),
        ] {
            for token in ["", "x-access-token: tok\r\n"] {
                answers.push((target.clone(), raw(&envd, &target, token).await));
            }
        }
    }
    for (target, status) in answers {
        assert!(matches!(status, 401 | 404), "{target}: {status}");
    }
    // Nothing has happened: the token is as it was, and nothing is frozen.
    let headers = [("x-access-token", "tok")];
    assert_eq!(envd.get("/envs", &headers).await.0, StatusCode::OK);
    assert_eq!(envd.get("/envs", &[]).await.0, StatusCode::UNAUTHORIZED);
    let body = json!({ "process": { "cmd": "/bin/true", "cwd": "/" } });
    let mut started = envd.stream("Start", &headers, &[body]).await;
    assert!(started.pid().await > 0);
}

/// The status for a target that no client library would send.
async fn raw(envd: &Envd, target: &str, headers: &str) -> u16 {
    let mut stream = TcpStream::connect(envd.address()).await.unwrap();
    let request = format!(
        "POST {target} HTTP/1.1\r\nhost: envd\r\n{headers}content-length: 2\r\n\
         connection: close\r\n\r\n{{}}"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    soon(stream.read_to_string(&mut answer)).await.unwrap();
    answer.split(' ').nth(1).unwrap().parse().unwrap()
}

// Rules: INIT-13, INIT-14
#[tokio::test]
async fn a_volume_that_is_not_mounted_is_an_error() {
    let envd = Envd::with_config(CONFIG);
    let volume = |path: &str| {
        json!({
            "accessToken": "tok",
            "lifecycleID": "x",
            "hyperloopIP": "192.0.2.1",
            "volumeMounts": [{ "nfs_target": "192.0.2.1:/v", "path": path }],
        })
    };
    for missing in ["/no/such/volume", "/tmp/../proc", "proc", ""] {
        let (status, body) = init(&envd, volume(missing)).await;
        assert_eq!((status, &body["code"]), (StatusCode::BAD_REQUEST, &json!(400)), "{missing}");
        let message = body["message"].as_str().unwrap();
        assert!(message.contains(&format!("'{missing}' is not mounted")), "{message}");
        // Not applied, not even in part.
        assert_eq!(envd.get("/envs", &[]).await.0, StatusCode::OK);
    }
    assert_eq!(init(&envd, volume("/proc")).await.0, StatusCode::NO_CONTENT);
    assert_eq!(envd.get("/envs", &[]).await.0, StatusCode::UNAUTHORIZED);
}

// Rules: LEGACY-1, LEGACY-2, TRAP-46
#[tokio::test]
async fn very_old_clients_see_the_fields_of_their_time() {
    let envd = Envd::start().await;
    let directory = tempfile::tempdir().unwrap();
    let body = json!({ "path": directory.path() }).to_string();
    let path = "/filesystem.Filesystem/Stat";
    for (agent, legacy) in [("connect-python", true), ("connectrpc/0.12.1", false)] {
        let headers = [("content-type", "application/json"), ("user-agent", agent)];
        let (status, headers, body) = envd.call(Method::POST, path, &headers, body.clone()).await;
        assert_eq!(status, StatusCode::OK);
        let entry = serde_json::from_slice::<Value>(&body).unwrap()["entry"].take();
        let fields: Vec<_> = entry.as_object().unwrap().keys().map(String::as_str).collect();
        if legacy {
            assert_eq!(headers["x-e2b-legacy-sdk"], "true");
            assert_eq!(fields, ["name", "path", "type"]);
        } else {
            assert!(!headers.contains_key("x-e2b-legacy-sdk"));
            assert!(fields.contains(&"owner"), "{fields:?}");
        }
    }
}
