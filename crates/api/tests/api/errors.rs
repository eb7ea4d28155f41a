//! Whatever goes wrong is answered in JSON with a numeric code.

use std::time::Duration;

use reqwest::{Body, Method};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    node::FakeNode,
    stack::{ACCESS_TOKEN, ADMIN_TOKEN, KEY, Stack, TEAM, send},
};

#[tokio::test]
async fn unknown_routes_and_methods() {
    let stack = Stack::start().await;
    for path in
        ["/", "/nothing", "/sandboxes/", "/sandboxes/i1/nothing", "/v9/sandboxes", "//sandboxes"]
    {
        let answer = stack.get(path).await;
        answer.failure(404);
        assert_eq!(answer.json()["error_code"], "ATL-2012", "{path}");
    }
    for old in ["/instances", "/envs/x"] {
        assert!(stack.get(old).await.failure(404).contains("update the SDK"));
    }
    let answer = send(stack.request(Method::PUT, "/v2/sandboxes")).await;
    answer.failure(405);
    let allowed = answer.headers["allow"].to_str().unwrap();
    assert!(allowed.contains("GET") && allowed.contains("POST"), "{allowed}");
    send(stack.request(Method::DELETE, "/health")).await.failure(405);
}

#[tokio::test]
async fn bodies_that_are_not_what_they_should_be() {
    let stack = Stack::start().await;
    for body in [
        "",
        "  ",
        "{",
        "nonsense",
        "[]",
        "null",
        "\"x\"",
        "{}",
        "{\"templateID\": 1}",
        "{\"templateID\": \"base\", \"metadata\": {\"a\": 1}}",
        "{\"templateID\": \"base\"} trailing",
        "{\"templateID\": \"base\", \"secure\": \"yes\"}",
        &"[".repeat(100_000),
    ] {
        let request = stack.request(Method::POST, "/v2/sandboxes").body(body.to_owned());
        let message = send(request).await.failure(400);
        assert!(message.starts_with("validation error: "), "{message}");
    }
    let request = stack.request(Method::POST, "/v2/sandboxes").body(vec![0xff, 0xfe]);
    send(request).await.failure(400);
    for content_type in ["text/plain", "application/json; charset=utf-8", "nonsense"] {
        let request = stack.request(Method::POST, "/v2/sandboxes");
        let request = request.header("content-type", content_type);
        send(request.body("{\"templateID\": \"base\"}")).await.success(201);
    }
}

#[tokio::test]
async fn a_body_in_chunks_is_read() {
    let stack = Stack::start().await;
    let chunks = ["{\"templateID\"", ": \"base\"}"].map(Ok::<_, std::io::Error>);
    let body = Body::wrap_stream(futures::stream::iter(chunks));
    send(stack.request(Method::POST, "/v2/sandboxes").body(body)).await.success(201);
}

/// Sends raw bytes and reads the answer to its end.
async fn raw(stack: &Stack, parts: &[&[u8]]) -> (String, serde_json::Value) {
    let mut stream = TcpStream::connect(stack.address()).await.unwrap();
    for part in parts {
        stream.write_all(part).await.unwrap();
    }
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), serde_json::from_str(body).unwrap())
}

fn head(length: &str) -> String {
    format!(
        "POST /v2/sandboxes HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {KEY}\r\n\
         Connection: close\r\n{length}\r\n\r\n"
    )
}

#[tokio::test]
async fn odd_request_targets() {
    let stack = Stack::start().await;
    for (target, status) in [
        ("/sandboxes/..", 400),
        ("/sandboxes/%2e%2e", 400),
        ("/sandboxes/../sandboxes", 404),
        ("/sandboxes/%", 400),
        ("/sandboxes/%zz", 400),
        ("/sandboxes/i1?x=%ff&%", 404),
        ("/v2/sandboxes?limit=%", 400),
        ("http://elsewhere/sandboxes/i1", 404),
        ("/sandboxes/i1;a=b", 400),
    ] {
        let request = format!(
            "GET {target} HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {KEY}\r\n\
             Connection: close\r\n\r\n"
        );
        let (head, body) = raw(&stack, &[request.as_bytes()]).await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{target}: {head}");
        assert_eq!(body["code"], json!(status), "{target}");
    }
}

#[tokio::test]
async fn oversized_bodies() {
    let stack = Stack::start().await;
    let announced = head("Content-Length: 16777217");
    let (status, body) = raw(&stack, &[announced.as_bytes()]).await;
    assert!(status.starts_with("HTTP/1.1 413 "), "{status}");
    assert_eq!((&body["code"], &body["error_code"]), (&json!(413), &json!("ATL-2006")));

    // Unannounced; what is behind the limit is not waited for.
    let mut chunk = b"1000001\r\n".to_vec();
    chunk.resize(chunk.len() + 0x0100_0001, b' ');
    let (status, body) =
        raw(&stack, &[head("Transfer-Encoding: chunked").as_bytes(), &chunk]).await;
    assert!(status.starts_with("HTTP/1.1 413 "), "{status}");
    assert_eq!(body["code"], json!(413));

    // The largest that is allowed.
    let padding = " ".repeat(16 * 1024 * 1024 - 22);
    let body = format!("{{\"templateID\": \"base\"}}{padding}");
    assert_eq!(body.len(), 16 * 1024 * 1024);
    send(stack.request(Method::POST, "/v2/sandboxes").body(body)).await.success(201);
}

#[tokio::test]
async fn a_truncated_body() {
    let stack = Stack::start().await;
    let mut stream = TcpStream::connect(stack.address()).await.unwrap();
    let request = format!("{}{{\"templateID\"", head("Content-Length: 1000"));
    stream.write_all(request.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    // The client said it was done: it gets an answer in JSON, or none at all.
    assert!(answer.is_empty() || answer.contains("\"code\":400"), "{answer}");
    assert!(stack.node.sandboxes().is_empty());
    stack.get("/v2/sandboxes").await.success(200);
}

#[tokio::test]
async fn a_body_that_does_not_come() {
    let stack = Stack::with(FakeNode::default(), |options| {
        options.read_timeout = Duration::from_millis(100);
    })
    .await;
    let (status, body) = raw(&stack, &[head("Content-Length: 10").as_bytes(), b"{"]).await;
    assert!(status.starts_with("HTTP/1.1 408 "), "{status}");
    assert_eq!((&body["code"], &body["error_code"]), (&json!(408), &json!("ATL-2014")));
}

/// Method and path of the rows of docs/compatibility.md that say `support`.
fn rows(support: &str) -> Vec<(Method, String)> {
    let text = atoll_api::compatibility_markdown();
    let row = |line: &str| {
        let mut cells = line.split('|').map(str::trim).skip(1);
        let endpoint = cells.next()?.trim_matches('`').to_owned();
        if cells.next()? != support {
            return None;
        }
        let (method, path) = endpoint.split_once(' ')?;
        let path: Vec<&str> = path
            .split('/')
            .map(|segment| if segment.starts_with('{') { "a%2Fb%3Ac" } else { segment })
            .collect();
        Some((method.parse().ok()?, path.join("/")))
    };
    text.lines().filter_map(row).collect()
}

#[tokio::test]
async fn what_is_not_built_says_so_to_those_who_may_ask() {
    let stack = Stack::start().await;
    let rows = rows("not yet");
    assert!(rows.len() > 20, "{rows:?}");
    for (method, path) in rows {
        let anonymous = send(stack.anonymous(method.clone(), &path)).await;
        assert_eq!(anonymous.failure(401), "authorization header is missing", "{method} {path}");

        let request = stack
            .request(method.clone(), &path)
            .header("X-Admin-Token", ADMIN_TOKEN)
            .header("X-Team-ID", TEAM.to_string())
            .bearer_auth(ACCESS_TOKEN);
        let answer = send(request.body("not read")).await;
        // Only an identity provider's token would do, and there is none.
        if path.starts_with("/access-tokens") || (method == Method::POST && path == "/api-keys") {
            answer.failure(401);
            continue;
        }
        let message = answer.failure(501);
        assert!(message.contains("docs/compatibility.md"), "{message}");
        assert_eq!(answer.json()["error_code"], "ATL-2007", "{method} {path}");
        assert_eq!(answer.headers["should-retry"], "false");
    }
}

#[tokio::test]
async fn builds_by_docker_push_are_told_what_takes_their_place() {
    let stack = Stack::start().await;
    let rows = rows("replaced");
    assert_eq!(rows.len(), 3);
    for (method, path) in rows {
        send(stack.anonymous(method.clone(), &path)).await.failure(401);
        let request = stack.anonymous(method, &path).bearer_auth(ACCESS_TOKEN);
        let message = send(request).await.failure(501);
        assert!(message.contains("update the E2B CLI"), "{message}");
        assert!(message.contains("POST /v3/templates"), "{message}");
    }
}

#[tokio::test]
async fn secrets_are_not_available() {
    let stack = Stack::start().await;
    let rows = rows("not available");
    assert_eq!(rows.len(), 5);
    for (method, path) in rows {
        let refused = send(stack.request(method.clone(), &path)).await;
        assert_eq!(refused.failure(403), "Secrets are not available for this team");
        let anonymous = send(stack.anonymous(method.clone(), &path)).await;
        assert_eq!(anonymous.failure(401), "You are not authenticated");
        let request = stack.anonymous(method, &path).header("X-API-Key", "e2b_00");
        let wrong = send(request).await;
        assert_eq!(wrong.failure(401), "You are not authenticated");
        for answer in [refused, anonymous, wrong] {
            assert_eq!(answer.headers["cache-control"], "no-store");
        }
    }
}
