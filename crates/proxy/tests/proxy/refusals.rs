//! What the proxies answer themselves.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use atoll_core::{Error, Result, SandboxId, error::codes};
use atoll_proxy::{Access, Directory, Location};
use axum::{Router, routing::any};
use serde_json::json;

use crate::stack::*;

const CHROME: &str = "Mozilla/5.0 (X11; Linux x86_64) Chrome/140.0 Safari/537.36";

pub(crate) fn page(path: &str) -> http::Request<TestBody> {
    let mut request = get(path);
    request.headers_mut().insert("user-agent", CHROME.parse().unwrap());
    request.headers_mut().insert("accept", "text/html,*/*".parse().unwrap());
    request
}

pub(crate) fn assert_page(answer: &Answer, phrase: &str) {
    assert_eq!(answer.headers["content-type"], "text/html; charset=utf-8");
    assert!(answer.body.starts_with("<html") && answer.body.ends_with("</html>"));
    assert!(answer.body.contains(phrase), "{}", answer.body);
    assert!(answer.body.contains(ID));
}

// Rules: PROXY-17, PROXY-19, TRAP-3, TRAP-48
#[tokio::test]
async fn an_unknown_sandbox_is_502_on_every_port() {
    for stack in [one_hop().await, two_hops().await] {
        for port in [ENVD, 8080] {
            let answer = fetch(stack.address, port, get("/health")).await;
            assert_eq!(answer.status, 502);
            let expected =
                json!({"sandboxId": ID, "message": "The sandbox was not found", "code": 502});
            assert_eq!(answer.json(), expected, "{}", stack.name);
        }
        let answer = fetch(stack.address, 8080, page("/")).await;
        assert_eq!(answer.status, 502);
        assert_page(&answer, "Sandbox Not Found");
    }
}

// Rules: PROXY-18, PROXY-19, PROXY-24, TRAP-3, TRAP-48
#[tokio::test]
async fn a_closed_port_is_502_after_five_tries() {
    let guest = Guest::new();
    for stack in both(&guest).await {
        let before = guest.dials();
        let answer = fetch(stack.address, 8080, get("/")).await;
        assert_eq!(answer.status, 502);
        let expected = json!({
            "sandboxId": ID, "message": "The sandbox is running but port is not open",
            "port": 8080, "code": 502,
        });
        assert_eq!(answer.json(), expected, "{}", stack.name);
        assert_eq!(guest.dials() - before, 5, "{}", stack.name);
        let answer = fetch(stack.address, 8080, page("/")).await;
        assert_page(&answer, "no service running on port 8080");
    }
}

// Rules: PROXY-24
#[tokio::test]
async fn a_server_that_starts_to_listen_meanwhile_is_reached() {
    let guest = Guest::new();
    for (port, stack) in both(&guest).await.into_iter().enumerate() {
        let port = 8080 + u16::try_from(port).unwrap();
        let before = guest.dials();
        let address = stack.address;
        let fetching = tokio::spawn(async move { fetch(address, port, get("/")).await });
        while guest.dials() == before {
            tokio::task::yield_now().await;
        }
        guest.serve(port, Router::new().fallback(any(async || "late"))).await;
        assert_eq!(fetching.await.unwrap().body, "late", "{}", stack.name);
        assert!(guest.dials() > before + 1);
    }
}

// Rules: PROXY-20
#[tokio::test]
async fn what_does_not_speak_http_is_502() {
    let guest = Guest::new();
    let listener = guest.listen(22).await;
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            write(&mut stream, "SSH-2.0-OpenSSH_9.6\r\n").await;
            closed(&mut stream).await;
        }
    });
    for stack in both(&guest).await {
        let answer = fetch(stack.address, 22, get("/")).await;
        assert_eq!(answer.status, 502);
        assert_eq!(answer.json()["port"], 22, "{}", stack.name);
    }
}

// Rules: PROXY-14, PROXY-15
#[tokio::test]
async fn requests_for_nothing_are_400_in_plain_text() {
    for stack in [one_hop().await, two_hops().await] {
        for (host, id, port, expected) in [
            ("localhost", Some(ID), None, "missing header"),
            ("127.0.0.1:3002", None, Some("80"), "missing header"),
            ("localhost", None, None, "Invalid host"),
            ("example.com", Some(ID), Some("80"), "Invalid host"),
            ("80-ABC.example.com", None, None, "Invalid sandbox ID"),
            ("localhost", Some("../x"), Some("80"), "Invalid sandbox ID"),
            ("http-iabc.example.com", None, None, "Invalid sandbox port"),
            ("sandbox.example.com", Some(ID), Some("65536"), "Invalid sandbox port"),
        ] {
            let mut request = http::Request::builder().uri("/").header("host", host);
            if let Some(id) = id {
                request = request.header("E2b-Sandbox-Id", id);
            }
            if let Some(port) = port {
                request = request.header("E2b-Sandbox-Port", port);
            }
            let answer = fetch(stack.address, 0, request.body(empty()).unwrap()).await;
            assert_eq!((answer.status.as_u16(), answer.body.as_str()), (400, expected));
            assert_eq!(answer.headers["content-type"], "text/plain; charset=utf-8");
        }
    }
}

// Rules: PROXY-1, PROXY-3, PROXY-4
#[tokio::test]
async fn control_routes_are_404_whether_or_not_the_sandbox_exists() {
    let guest = Guest::new();
    let envd = || Router::new().fallback(any(async || "reached"));
    guest.serve(ENVD, envd()).await;
    guest.serve(8080, envd()).await;
    for stack in both(&guest).await {
        for exists in [true, false] {
            stack.node.set(ID, exists.then(|| Arc::clone(&guest)));
            for (path, cleaned) in [
                ("/init", "/init"),
                ("//init?x", "/init"),
                ("/x/../%69nit/", "/init"),
                ("/fsthaw", "/fsthaw"),
                ("/%2566reeze", "/freeze"),
            ] {
                let answer = fetch(stack.address, ENVD, post(path, full("{}"))).await;
                assert_eq!(answer.status, 404, "{path}");
                let message = "This endpoint is reserved for the E2B control plane and is not \
                               reachable through the sandbox URL";
                assert_eq!(
                    answer.json(),
                    json!({"message": message, "path": cleaned, "code": 404})
                );
            }
        }
        stack.node.set(ID, Some(Arc::clone(&guest)));
        assert_eq!(fetch(stack.address, ENVD, get("/files")).await.body, "reached");
        assert_eq!(fetch(stack.address, 8080, get("/init")).await.body, "reached");
    }
}

// Rules: PROXY-21
#[tokio::test]
async fn a_private_sandbox_wants_its_traffic_token() {
    let guest =
        Guest::with_access(Access { traffic_token: Some("right".into()), ..Access::default() });
    let app = || Router::new().fallback(any(async || "reached"));
    guest.serve(8080, app()).await;
    guest.serve(ENVD, app()).await;
    for stack in both(&guest).await {
        let with = |token: &str| {
            let mut request = get("/");
            request.headers_mut().insert("e2b-traffic-access-token", token.parse().unwrap());
            request
        };
        let answer = fetch(stack.address, 8080, get("/")).await;
        assert_eq!(answer.status, 403);
        let missing = "Sandbox is secured with traffic access token. Token header \
                       'e2b-traffic-access-token' is missing";
        assert_eq!(answer.json(), json!({"sandboxId": ID, "message": missing, "code": 403}));
        let answer = fetch(stack.address, 8080, with("wrong")).await;
        assert_eq!(answer.status, 403);
        let invalid = "Provided token in header 'e2b-traffic-access-token' is invalid";
        assert_eq!(answer.json(), json!({"sandboxId": ID, "message": invalid, "code": 403}));
        assert_page(&fetch(stack.address, 8080, page("/")).await, "Missing Traffic Access Token");
        assert_eq!(fetch(stack.address, 8080, with("right")).await.body, "reached");
        assert_eq!(fetch(stack.address, ENVD, get("/")).await.body, "reached", "envd is exempt");
    }
}

#[tokio::test]
async fn the_answer_to_a_large_upload_is_read() {
    let guest = Guest::new();
    // Answers before it has read the body.
    let listener = guest.listen(8080).await;
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            read_head(&mut stream).await;
            write(&mut stream, "HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig").await;
            closed(&mut stream).await;
        }
    });
    for stack in both(&guest).await {
        let upload = || post("/", full(vec![0; 16 << 20]));
        assert_eq!(fetch(stack.address, 8080, upload()).await.body, "big", "{}", stack.name);
        stack.node.set(ID, None);
        let answer = fetch(stack.address, 8080, upload()).await;
        assert_eq!(answer.json()["message"], "The sandbox was not found", "{}", stack.name);
    }
}

#[tokio::test]
async fn connect_is_refused() {
    let stack = one_hop().await;
    let mut stream = tokio::net::TcpStream::connect(stack.address).await.unwrap();
    write(&mut stream, "CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n").await;
    assert!(read_head(&mut stream).await.starts_with("HTTP/1.1 405 "));
}

struct Broken;

#[async_trait]
impl Directory for Broken {
    async fn locate(&self, _: &SandboxId) -> Result<Option<Location>> {
        Err(Error::new(codes::INTERNAL, "the catalogue does not answer."))
    }
}

#[tokio::test]
async fn a_directory_that_fails_does_not_make_sandboxes_look_gone() {
    let stack = edge(Arc::new(Broken), Duration::ZERO).await;
    let answer = fetch(stack.address, ENVD, get("/health")).await;
    assert_eq!(answer.status, 500);
    let message = "the catalogue does not answer.";
    assert_eq!(answer.json(), json!({"code": 500, "message": message, "error_code": "ATL-3001"}));
}
