//! Connections, health, CORS and shutting down.

use std::{sync::atomic::Ordering, time::Duration};

use http_body_util::{BodyExt, Empty};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use reqwest::Method;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    node::FakeNode,
    stack::{KEY, Stack, eventually, send},
};

#[tokio::test]
async fn health_follows_the_node() {
    let stack = Stack::start().await;
    let healthy = send(stack.anonymous(Method::GET, "/health")).await;
    assert_eq!((healthy.status.as_u16(), healthy.text.as_str()), (200, "Health check successful"));
    stack.node.is_down.store(true, Ordering::SeqCst);
    let answer = send(stack.anonymous(Method::GET, "/health")).await;
    assert_eq!(answer.failure(503), "Service is unavailable");
}

#[tokio::test]
async fn http2_in_clear_text() {
    let stack = Stack::start().await;
    let client = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
    for _ in 0..2 {
        let request = http::Request::get(format!("http://{}/v2/sandboxes", stack.address()))
            .header("x-api-key", KEY)
            .body(Empty::<bytes::Bytes>::new())
            .unwrap();
        let response = client.request(request).await.unwrap();
        assert_eq!((response.status().as_u16(), response.version()), (200, http::Version::HTTP_2));
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "[]");
    }
}

#[tokio::test]
async fn web_pages_of_any_origin_may_ask() {
    let stack = Stack::start().await;
    let preflight = stack
        .anonymous(Method::OPTIONS, "/v2/sandboxes")
        .header("Origin", "https://example.com")
        .header("Access-Control-Request-Method", "POST")
        .header("Access-Control-Request-Headers", "x-api-key,content-type");
    let answer = send(preflight).await;
    assert!(answer.status.is_success(), "{answer:?}");
    assert_eq!(answer.headers["access-control-allow-origin"], "*");
    let allowed = answer.headers["access-control-allow-headers"].to_str().unwrap();
    for name in ["x-api-key", "content-type", "authorization", "x-team-id", "package_version"] {
        assert!(allowed.split(',').any(|allowed| allowed == name), "{name} in {allowed}");
    }
    // Failures carry the headers too, or the page could not read them.
    let request = stack.anonymous(Method::GET, "/v2/sandboxes");
    let answer = send(request.header("Origin", "https://example.com")).await;
    answer.failure(401);
    assert_eq!(answer.headers["access-control-allow-origin"], "*");
    let exposed = answer.headers["access-control-expose-headers"].to_str().unwrap();
    assert!(exposed.contains("x-next-token") && exposed.contains("x-total-running"), "{exposed}");
}

#[tokio::test]
async fn a_connection_goes_on_after_a_refusal_whose_body_came_late() {
    let stack = Stack::start().await;
    let mut stream = TcpStream::connect(stack.address()).await.unwrap();
    for _ in 0..3 {
        let head = "POST /v2/sandboxes HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        // Let it be refused before there is a body, as far as that depends on us.
        tokio::task::yield_now().await;
        stream.write_all(b"{}").await.unwrap();
        let mut answer = String::new();
        while !answer.ends_with('}') {
            let mut part = [0; 4096];
            let length = stream.read(&mut part).await.unwrap();
            assert!(length > 0, "closed after {answer:?}");
            answer.push_str(std::str::from_utf8(&part[..length]).unwrap());
        }
        assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
    }
}

#[tokio::test]
async fn a_head_that_does_not_come_is_not_waited_for() {
    let stack = Stack::with(FakeNode::default(), |options| {
        options.read_timeout = Duration::from_millis(100);
    })
    .await;
    for start in ["", "P", "GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: "] {
        let mut stream = TcpStream::connect(stack.address()).await.unwrap();
        stream.write_all(start.as_bytes()).await.unwrap();
        let mut rest = Vec::new();
        // Closed, without a word or with a refusal.
        let _ = stream.read_to_end(&mut rest).await;
        assert!(!rest.starts_with(b"HTTP/1.1 200"));
    }
}

#[tokio::test]
async fn an_idle_connection_is_kept() {
    let stack = Stack::with(FakeNode::default(), |options| {
        options.read_timeout = Duration::from_millis(50);
    })
    .await;
    let mut stream = TcpStream::connect(stack.address()).await.unwrap();
    for _ in 0..2 {
        stream.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"successful") {
            assert_ne!(stream.read_buf(&mut answer).await.unwrap(), 0, "it was closed");
        }
        // Longer than a head may take: nothing arrives, the end of the stream neither.
        let mut byte = [0];
        let idle = tokio::time::timeout(Duration::from_millis(200), stream.read(&mut byte)).await;
        assert!(idle.is_err(), "the idle connection was closed: {idle:?}");
    }
}

#[tokio::test]
async fn shutting_down_lets_requests_finish() {
    let stack = Stack::with(FakeNode::holding(), |_| {}).await;
    let request = stack.request(Method::POST, "/v2/sandboxes");
    let create = tokio::spawn(send(request.json(&json!({"templateID": "base"}))));
    eventually(|| async { stack.node.sandboxes().len() == 1 }).await;

    let address = stack.address();
    let node = stack.node.clone();
    let shutdown = tokio::spawn(stack.service.shutdown());
    eventually(|| async { TcpStream::connect(address).await.is_err() }).await;
    assert!(!shutdown.is_finished());
    node.gate.add_permits(1);
    create.await.unwrap().success(201);
    shutdown.await.unwrap();
    assert_eq!(node.sandboxes().len(), 1);
}
