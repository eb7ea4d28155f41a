//! What a server in a sandbox sees, and what comes back.

use atoll_proxy::Access;
use axum::{Json, Router, extract::Request, routing::any};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::{io::AsyncReadExt, net::TcpStream};

use crate::stack::*;

/// A server that tells what it got.
fn echo() -> Router {
    Router::new().fallback(any(async |request: Request| {
        let (parts, body) = request.into_parts();
        let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        let headers: serde_json::Map<String, Value> = parts
            .headers
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_str().unwrap().into()))
            .collect();
        Json(json!({
            "method": parts.method.as_str(),
            "uri": parts.uri.to_string(),
            "headers": headers,
            "body": String::from_utf8_lossy(&body),
        }))
    }))
}

async fn echoed(stack: &Stack, port: u16, request: http::Request<TestBody>) -> Value {
    let answer = fetch(stack.address, port, request).await;
    assert_eq!(answer.status, 200, "{}: {}", stack.name, answer.body);
    serde_json::from_str(&answer.body).unwrap()
}

// Rules: PROXY-26
#[tokio::test]
async fn a_request_arrives_as_it_was_sent() {
    let guest = Guest::new();
    guest.serve(8080, echo()).await;
    for stack in both(&guest).await {
        let request = http::Request::builder()
            .method("PATCH")
            .uri("/a%20b/../c//?q=%2F&r")
            .header("x-access-token", "secret")
            .header("e2b-traffic-access-token", "traffic")
            .header("x-atoll-control", "guess")
            .header("x-atoll-node-token", "guess")
            .header("connection", "keep-alive, x-hop")
            .header("x-hop", "1")
            .body(full("hello"))
            .unwrap();
        let seen = echoed(&stack, 8080, request).await;
        assert_eq!(seen["method"], "PATCH");
        assert_eq!(seen["uri"], "/a%20b/../c//?q=%2F&r");
        assert_eq!(seen["body"], "hello");
        let headers = seen["headers"].as_object().unwrap();
        assert_eq!(headers["host"], host(8080), "{}", stack.name);
        assert_eq!(headers["x-access-token"], "secret");
        assert_eq!(headers["e2b-traffic-access-token"], "traffic");
        assert_eq!(headers["x-forwarded-for"], "127.0.0.1", "{}", stack.name);
        assert_eq!(headers["x-forwarded-proto"], "http");
        for gone in ["x-atoll-control", "x-atoll-node-token", "x-hop", "connection"] {
            assert!(!headers.contains_key(gone), "{}: {gone}", stack.name);
        }
    }
}

// Rules: PROXY-12, TRAP-21
#[tokio::test]
async fn headers_route_on_shared_hosts() {
    let guest = Guest::new();
    guest.serve(ENVD, echo()).await;
    for stack in both(&guest).await {
        for name in ["localhost:3002", "127.0.0.1", "[::1]:80", "sandbox.example.com"] {
            let request = http::Request::builder()
                .uri("/health")
                .header("host", name)
                .header("e2b-sandbox-id", ID)
                .header("e2b-sandbox-port", ENVD)
                .body(empty())
                .unwrap();
            assert_eq!(echoed(&stack, ENVD, request).await["headers"]["host"], name);
        }
    }
}

// Rules: PROXY-13
#[tokio::test]
async fn the_host_wins_over_headers_and_over_another_host_header() {
    let guest = Guest::new();
    guest.serve(8080, echo()).await;
    for stack in both(&guest).await {
        let request = http::Request::builder()
            .uri("/")
            .header("e2b-sandbox-id", "iother")
            .header("e2b-sandbox-port", 1)
            .body(empty())
            .unwrap();
        assert_eq!(echoed(&stack, 8080, request).await["method"], "GET", "{}", stack.name);

        // An absolute target names the host, as a client of a forward proxy sends it.
        let mut stream = TcpStream::connect(stack.address).await.unwrap();
        let target = host(8080);
        write(
            &mut stream,
            &format!(
                "GET http://{target}/x HTTP/1.1\r\nHost: 1-iother.y\r\nConnection: close\r\n\r\n"
            ),
        )
        .await;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{}: {answer}", stack.name);
        assert!(answer.contains(&format!("\"host\":\"{target}\"")), "{}: {answer}", stack.name);
    }
}

// Rules: PROXY-27
#[tokio::test]
async fn a_masked_host_is_what_the_server_sees() {
    let access = Access { mask_host: Some("app.test:${PORT}".into()), ..Access::default() };
    let guest = Guest::with_access(access);
    guest.serve(8080, echo()).await;
    guest.serve(ENVD, echo()).await;
    for stack in both(&guest).await {
        let seen = echoed(&stack, 8080, get("/")).await;
        assert_eq!(seen["headers"]["host"], "app.test:8080", "{}", stack.name);
        assert_eq!(seen["headers"]["x-forwarded-host"], host(8080));
        let seen = echoed(&stack, ENVD, get("/")).await;
        assert_eq!(seen["headers"]["host"], host(ENVD), "envd is not masked");
    }
}

// Rules: PROXY-25, TRAP-20
#[tokio::test]
async fn http2_clients_reach_http1_servers() {
    let guest = Guest::new();
    guest.serve(8080, echo()).await;
    for stack in both(&guest).await {
        let mut client = Client::http2(stack.address).await;
        let mut request = post("/x?y", full("hello"));
        request.headers_mut().append("cookie", "a=1".parse().unwrap());
        request.headers_mut().append("cookie", "b=2".parse().unwrap());
        let response = client.send(8080, request).await.unwrap();
        let body = http_body_util::BodyExt::collect(response.into_body()).await.unwrap();
        let seen: Value = serde_json::from_slice(&body.to_bytes()).unwrap();
        assert_eq!(seen["uri"], "/x?y", "{}", stack.name);
        assert_eq!(seen["body"], "hello");
        assert_eq!(seen["headers"]["host"], host(8080));
        assert_eq!(seen["headers"]["cookie"], "a=1; b=2");
    }
}

// Rules: PROXY-28
#[tokio::test]
async fn a_response_comes_back_as_it_was_sent() {
    let guest = Guest::new();
    let listener = guest.listen(8080).await;
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let head = read_head(&mut stream).await;
            let answer = match head.split(' ').nth(1).unwrap() {
                "/status" => {
                    "HTTP/1.1 418 Short And Stout\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n\
                              Connection: close, x-hop\r\nX-Hop: 1\r\nContent-Encoding: br\r\n\
                              Content-Length: 3\r\n\r\nabc"
                }
                "/old" => "HTTP/1.0 200 OK\r\n\r\nuntil the end",
                "/head" => "HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n",
                _ => "HTTP/1.1 204 No Content\r\n\r\n",
            };
            write(&mut stream, answer).await;
        }
    });
    for stack in both(&guest).await {
        let answer = fetch(stack.address, 8080, get("/status")).await;
        assert_eq!((answer.status.as_u16(), answer.body.as_str()), (418, "abc"));
        let cookies: Vec<_> = answer.headers.get_all("set-cookie").iter().collect();
        assert_eq!(cookies, ["a=1", "b=2"]);
        assert_eq!(answer.headers["content-encoding"], "br");
        assert_eq!(answer.headers["content-length"], "3");
        assert!(!answer.headers.contains_key("x-hop"));
        assert_eq!(fetch(stack.address, 8080, get("/old")).await.body, "until the end");
        assert_eq!(fetch(stack.address, 8080, get("/none")).await.status, 204);
        let request = http::Request::builder().method("HEAD").uri("/head").body(empty()).unwrap();
        let answer = fetch(stack.address, 8080, request).await;
        assert_eq!(answer.headers["content-length"], "1234", "{}", stack.name);
        assert_eq!(answer.body, "");
    }
}

#[tokio::test]
async fn a_get_with_a_body_keeps_it() {
    let guest = Guest::new();
    guest.serve(8080, echo()).await;
    for stack in both(&guest).await {
        let request = http::Request::builder()
            .uri("/")
            .header("transfer-encoding", "chunked")
            .body(full(Bytes::from("query")))
            .unwrap();
        assert_eq!(echoed(&stack, 8080, request).await["body"], "query", "{}", stack.name);
    }
}
