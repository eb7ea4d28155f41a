//! Health, and stopping: what is under way may finish, but not for ever.

use std::{sync::Arc, time::Duration};

use axum::{Router, body::Body, extract::Request, routing::any};
use http_body_util::BodyExt;
use tokio::net::TcpStream;

use crate::stack::*;

/// A client proxy that gives requests under way `grace` to finish, and a server that mirrors.
async fn stack(grace: Duration) -> Stack {
    let guest = Guest::new();
    let mirror = Router::new().fallback(any(async |request: Request| {
        Body::from_stream(request.into_body().into_data_stream())
    }));
    guest.serve(8080, mirror).await;
    let node = Arc::<Node>::default();
    node.set(ID, Some(guest));
    edge(node, grace).await
}

async fn refused(address: std::net::SocketAddr) {
    while TcpStream::connect(address).await.is_ok() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_request_under_way_finishes_while_health_says_draining() {
    let mut stack = stack(Duration::from_secs(600)).await;
    let healthy = fetch(stack.health, 0, get("/health")).await;
    assert_eq!((healthy.status.as_u16(), healthy.body.as_str()), (200, "healthy"));
    assert_eq!(fetch(stack.health, 0, get("/other")).await.status, 404);

    let mut idle = Client::http1(stack.address).await;
    idle.send(8080, get("/")).await.unwrap().into_body().collect().await.unwrap();
    let _silent = TcpStream::connect(stack.address).await.unwrap();
    let mut client = Client::http1(stack.address).await;
    let (sender, body) = channel();
    sender.send(data("before")).unwrap();
    let mut body = client.send(8080, post("/", body)).await.unwrap().into_body();
    assert_eq!(next(&mut body).await, "before");

    stack.handle.shutdown();
    refused(stack.address).await;
    assert_eq!(fetch(stack.health, 0, get("/health")).await.status, 503);
    sender.send(data("after")).unwrap();
    assert_eq!(next(&mut body).await, "after");
    assert!(!stack.run.is_finished());
    drop(sender);
    ends(&mut body).await;
    soon(&mut stack.run).await.unwrap();
    refused(stack.health).await;
}

#[tokio::test]
async fn what_does_not_finish_is_aborted() {
    let mut stack = stack(Duration::ZERO).await;
    let mut open = Vec::new();
    for mut client in [Client::http1(stack.address).await, Client::http2(stack.address).await] {
        let (sender, body) = channel();
        sender.send(data("x")).unwrap();
        let mut body = client.send(8080, post("/", body)).await.unwrap().into_body();
        assert_eq!(next(&mut body).await, "x");
        open.push((client, sender, body));
    }
    stack.handle.shutdown();
    soon(&mut stack.run).await.unwrap();
    for (_client, _sender, mut body) in open {
        let end = soon(body.frame()).await;
        assert!(matches!(end, Some(Err(_))), "{end:?}");
    }
    refused(stack.address).await;
}
