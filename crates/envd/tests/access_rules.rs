//! Connections, users and web pages, as clients meet them.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use axum::{Router, routing::get};
use http::{Method, StatusCode};
use serde_json::json;
use support::{Envd, soon};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

const CONFIG: &str =
    r#"{ "control_secret": "secret", "sandbox_id": "isbx", "template_id": "base" }"#;
const SECRET: [(&str, &str); 1] = [("x-atoll-control", "secret")];

/// Reads the head of an answer that has no body.
async fn head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(soon(stream.read_u8()).await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

// Rules: BOOT-1, BOOT-13, AUTH-1
#[tokio::test]
async fn one_connection_serves_many_requests() {
    let envd = Envd::with_config(CONFIG);
    let mut stream = TcpStream::connect(envd.address()).await.unwrap();
    for _ in 0..3 {
        stream.write_all(b"GET /health HTTP/1.1\r\nHost: envd\r\n\r\n").await.unwrap();
        assert!(head(&mut stream).await.starts_with("HTTP/1.1 204 "));
    }
    // Two at once are answered in their order.
    let both = b"GET /health HTTP/1.1\r\nHost: e\r\n\r\nHEAD /no HTTP/1.1\r\nHost: e\r\n\r\n";
    stream.write_all(both).await.unwrap();
    assert!(head(&mut stream).await.starts_with("HTTP/1.1 204 "));
    assert!(head(&mut stream).await.starts_with("HTTP/1.1 404 "));
}

// Rules: AUTH-3, AUTH-6
#[tokio::test]
async fn every_call_but_the_exempt_wants_the_token() {
    let envd = Envd::with_config(CONFIG);
    envd.post_with("/init", &SECRET, &json!({ "accessToken": "tok" })).await;
    for method in [
        "process.Process/List",
        "process.Process/Start",
        "process.Process/Connect",
        "process.Process/StreamInput",
        "filesystem.Filesystem/Stat",
        "filesystem.Filesystem/WatchDir",
        "filesystem.Filesystem/RemoveWatcher",
    ] {
        for token in [&[][..], &[("x-access-token", "")], &[("x-access-token", "tok2")]] {
            let (status, body) = envd.post_with(&format!("/{method}"), token, &json!({})).await;
            assert_eq!(
                (status, &body["code"]),
                (StatusCode::UNAUTHORIZED, &json!(401)),
                "{method}"
            );
        }
    }
    for (method, path) in [
        (Method::POST, "/health"),
        (Method::GET, "/init"),
        (Method::PUT, "/files"),
        (Method::DELETE, "/files"),
        (Method::POST, "/files/compose"),
        (Method::GET, "/no/such"),
        (Method::GET, "//health"),
    ] {
        let (status, _, _) = envd.call(method.clone(), path, &[], "").await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{method} {path}");
    }
}

// Rules: USER-2
#[tokio::test]
async fn without_a_default_user_it_is_root() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("only root can run commands as root");
        return;
    }
    let envd = Envd::with_config(CONFIG);
    assert_eq!(envd.sh("id -un", json!({})).await.outcome().await.stdout(), "root\n");
    envd.post_with("/init", &SECRET, &json!({ "defaultUser": "daemon" })).await;
    assert_eq!(envd.sh("id -un", json!({})).await.outcome().await.stdout(), "daemon\n");
    // "root:", and the default does not count.
    let root = [("authorization", "Basic cm9vdDo=")];
    let outcome =
        envd.start_process("/usr/bin/id", &["-un"], json!({}), &root).await.outcome().await;
    assert_eq!(outcome.stdout(), "root\n");
}

// Rules: USER-4, USER-5
#[tokio::test]
async fn what_needs_no_user_does_without() {
    let envd = Envd::with_config(CONFIG);
    envd.post_with("/init", &SECRET, &json!({ "defaultUser": "ghost" })).await;
    let nobody = json!({ "process": { "pid": 4_000_000 } });
    let input = json!({ "process": { "pid": 4_000_000 }, "input": { "stdin": "" } });
    let kill = json!({ "process": { "pid": 4_000_000 }, "signal": "SIGNAL_SIGKILL" });
    let size =
        json!({ "process": { "pid": 4_000_000 }, "pty": { "size": { "cols": 9, "rows": 9 } } });
    for (method, body) in
        [("CloseStdin", &nobody), ("SendInput", &input), ("SendSignal", &kill), ("Update", &size)]
    {
        let (_, answer) = envd.rpc(method, body.clone()).await;
        assert_eq!(answer["code"], "not_found", "{method}");
    }
    for method in ["GetWatcherEvents", "RemoveWatcher"] {
        let path = format!("/filesystem.Filesystem/{method}");
        let (_, answer) = envd.post(&path, &json!({ "watcherId": "none" })).await;
        assert_eq!(answer["code"], "not_found", "{method}");
    }
    let selected = json!({ "start": nobody });
    for (method, body) in [("Connect", &nobody), ("StreamInput", &selected)] {
        let end = envd.stream(method, &[], std::slice::from_ref(body)).await.outcome().await;
        assert_eq!(end.trailer["error"]["code"], "not_found", "{method}");
    }
    let stat = envd.post("/filesystem.Filesystem/Stat", &json!({ "path": "/" })).await;
    let message = "invalid default user: 'ghost'";
    let body = json!({ "code": "unauthenticated", "message": message });
    assert_eq!(stat, (StatusCode::UNAUTHORIZED, body));
}

// Rules: BOOT-9, BOOT-10, TRAP-27
#[tokio::test]
async fn web_pages_may_call_and_read_everything() {
    let envd = Envd::with_config(CONFIG);
    envd.post_with("/init", &SECRET, &json!({ "accessToken": "tok" })).await;
    let origin = [("origin", "https://example.test")];
    for path in ["/health", "/envs", "/no/such", "/process.Process/List"] {
        let (_, headers, _) = envd.call(Method::GET, path, &origin, "").await;
        assert_eq!(headers["access-control-allow-origin"], "*", "{path}");
        let exposed = headers["access-control-expose-headers"].to_str().unwrap().to_lowercase();
        for name in ["grpc-status", "grpc-message", "grpc-status-details-bin", "location"] {
            assert!(exposed.contains(name), "{path}: {exposed}");
        }
        assert!(exposed.contains("cache-control") && exposed.contains("x-content-type-options"));
    }
    for method in ["HEAD", "GET", "POST", "PUT", "PATCH", "DELETE"] {
        let preflight = [
            origin[0],
            ("access-control-request-method", method),
            ("access-control-request-headers", "x-anything,authorization"),
            // Not even a user that there is none of comes before it.
            ("authorization", "Basic Z2hvc3Q6"),
        ];
        let (status, headers, body) = envd.call(Method::OPTIONS, "/envs", &preflight, "").await;
        assert_eq!((status, body.len()), (StatusCode::NO_CONTENT, 0));
        let value = |name: &str| headers[name].to_str().unwrap().to_owned();
        assert_eq!(value("access-control-allow-origin"), "*");
        assert!(value("access-control-allow-methods").contains(method));
        assert_eq!(value("access-control-allow-headers"), "x-anything,authorization");
        assert_eq!(value("access-control-max-age"), "7200");
    }
}

// Rules: CA-1, INIT-12
#[tokio::test]
async fn a_bundle_sets_no_variables() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("only root can hide the machine's certificates behind a mount");
        return;
    }
    let mut command = std::process::Command::new("unshare");
    command.args(["--mount", "--kill-child", "--fork", "sh", "-c"]);
    command.arg(format!(
        "mount -t tmpfs none /etc/ssl && mkdir /etc/ssl/certs && \
         mount -t tmpfs none /usr/local/share && exec {}",
        env!("CARGO_BIN_EXE_envd")
    ));
    let envd = Envd::run(command, CONFIG);
    let pem = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let init = json!({ "caBundle": pem, "envVars": { "A": "1" } });
    assert_eq!(envd.post_with("/init", &SECRET, &init).await.0, StatusCode::NO_CONTENT);
    let bundle = envd.sh("cat /etc/ssl/certs/ca-certificates.crt", json!({})).await.outcome().await;
    assert!(bundle.stdout().contains("AAAA"), "{bundle:?}");
    let (_, variables) = envd.get("/envs", &[]).await;
    let names: Vec<_> = variables.as_object().unwrap().keys().map(String::as_str).collect();
    let own = ["A", "E2B_SANDBOX", "E2B_SANDBOX_ID", "E2B_TEMPLATE_ID"];
    assert_eq!(names, own, "{variables}");
}

// Rules: BOOT-2
#[tokio::test]
async fn a_connection_may_be_idle_longer_than_a_proxy_keeps_it() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (accepted, _) = listener.accept().await.unwrap();
    let app = Router::new().route("/health", get(async || StatusCode::NO_CONTENT));
    tokio::spawn(atoll_envd::connection::serve(accepted, app));
    let idle = async |seconds| {
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(seconds)).await;
        tokio::time::resume();
    };
    for _ in 0..3 {
        stream.write_all(b"GET /health HTTP/1.1\r\nHost: envd\r\n\r\n").await.unwrap();
        assert!(head(&mut stream).await.starts_with("HTTP/1.1 204 "));
        // The clock jumps when the connection waits for the next request.
        tokio::task::yield_now().await;
        idle(639).await;
    }
    // Twice, in case the first jump comes before it waits.
    for _ in 0..2 {
        tokio::task::yield_now().await;
        idle(641).await;
    }
    assert_eq!(soon(stream.read(&mut [0])).await.unwrap(), 0, "the connection is closed");
}
