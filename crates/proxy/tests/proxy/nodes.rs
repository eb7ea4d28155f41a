//! The node proxy admits client proxies only.

use std::{sync::Arc, time::Duration};

use atoll_proxy::node;
use axum::{Router, extract::Request, routing::any};

use crate::stack::*;

async fn node_with_app() -> (Arc<Node>, Arc<Guest>) {
    let guest = Guest::new();
    let app = Router::new().fallback(any(async |request: Request| {
        format!("{:?}", request.headers().get("x-atoll-node-token"))
    }));
    guest.serve(8080, app).await;
    let node = Arc::<Node>::default();
    node.set(ID, Some(Arc::clone(&guest)));
    (node, guest)
}

fn with_token(token: &str) -> http::Request<TestBody> {
    let mut request = get("/");
    request.headers_mut().insert("x-atoll-node-token", token.parse().unwrap());
    request
}

#[tokio::test]
async fn without_the_token_nothing_is_served() {
    let (node, guest) = node_with_app().await;
    let proxy = node_proxy(node, Some(TOKEN)).await;
    for request in [get("/"), with_token("wrong"), with_token(""), with_token("node-secre")] {
        let answer = fetch(proxy.address(), 8080, request).await;
        assert_eq!(answer.status, 401);
        assert_eq!(answer.json()["code"], 401);
    }
    assert_eq!(guest.dials(), 0);
    let answer = fetch(proxy.address(), 8080, with_token(TOKEN)).await;
    assert_eq!((answer.status.as_u16(), answer.body.as_str()), (200, "None"), "token is stripped");
    proxy.shutdown();
}

#[tokio::test]
async fn without_a_token_it_is_for_loopback_only() {
    let (node, _guest) = node_with_app().await;
    let options = |token: Option<&str>| node::Options {
        sandboxes: Arc::clone(&node) as _,
        token: token.map(str::to_owned),
        grace: Duration::ZERO,
    };
    let everywhere = async || tokio::net::TcpListener::bind("0.0.0.0:0").await.unwrap();
    let refused = node::Service::start(options(None), everywhere().await).err().unwrap();
    assert_eq!(refused.code.number, 1008);
    assert!(node::Service::start(options(Some("")), loopback().await).is_err());
    assert!(node::Service::start(options(Some(TOKEN)), everywhere().await).is_ok());
    let proxy = node_proxy(Arc::clone(&node), None).await;
    assert_eq!(fetch(proxy.address(), 8080, get("/")).await.status, 200);
    proxy.shutdown();
}

#[tokio::test]
async fn a_node_that_is_down_is_not_taken_for_a_dead_sandbox() {
    let gone = loopback().await.local_addr().unwrap();
    let directory = Elsewhere { address: gone, token: TOKEN.into() };
    let stack = edge(Arc::new(directory), Duration::ZERO).await;
    let answer = fetch(stack.address, 8080, get("/")).await;
    assert_eq!(answer.status, 502);
    assert_eq!(answer.json()["message"], "The node that runs the sandbox cannot be reached");
}

#[tokio::test]
async fn connections_to_a_node_survive_its_sandboxes() {
    let (node, guest) = node_with_app().await;
    let proxy = node_proxy(Arc::clone(&node), Some(TOKEN)).await;
    let directory = Elsewhere { address: proxy.address(), token: TOKEN.into() };
    let stack = edge(Arc::new(directory), Duration::ZERO).await;
    assert_eq!(fetch(stack.address, 8080, get("/")).await.status, 200);
    guest.ended.cancel();
    assert_eq!(fetch(stack.address, 8080, get("/")).await.status, 502);
    node.set(ID, Some(node_with_app().await.1));
    assert_eq!(fetch(stack.address, 8080, get("/")).await.status, 200);
    proxy.shutdown();
}
