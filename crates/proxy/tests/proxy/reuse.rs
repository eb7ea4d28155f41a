//! Connections to envd are used again, others are not, and none outlives its run of the sandbox.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use axum::{Router, extract::Request, routing::any};
use tokio::sync::mpsc;

use crate::stack::*;

fn ok(name: &'static str) -> Router {
    Router::new().fallback(any(async move |request: Request| {
        let _ = axum::body::to_bytes(request.into_body(), usize::MAX).await;
        name
    }))
}

#[tokio::test]
async fn only_connections_to_envd_are_used_again() {
    let guest = Guest::new();
    guest.serve(ENVD, ok("envd")).await;
    guest.serve(8080, ok("app")).await;
    for stack in both(&guest).await {
        for (port, expected) in [(ENVD, 1), (8080, 5)] {
            let before = guest.dials();
            for n in 0..5 {
                let request = if n % 2 == 0 { get("/") } else { post("/", full("body")) };
                assert_eq!(fetch(stack.address, port, request).await.status, 200);
            }
            assert_eq!(guest.dials() - before, expected, "{} {port}", stack.name);
        }
    }
}

#[tokio::test]
async fn the_end_of_a_run_closes_its_idle_connections() {
    let guest = Guest::new();
    let listener = guest.listen(ENVD).await;
    let (tell, mut told) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let tell = tell.clone();
            tokio::spawn(async move {
                read_head(&mut stream).await;
                write(&mut stream, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
                closed(&mut stream).await;
                tell.send(()).unwrap();
            });
        }
    });
    let stacks = both(&guest).await;
    for stack in &stacks {
        assert_eq!(fetch(stack.address, ENVD, get("/")).await.body, "ok");
    }
    assert!(told.try_recv().is_err(), "still open");
    guest.ended.cancel();
    for _ in &stacks {
        soon(told.recv()).await.unwrap();
    }
}

#[tokio::test]
async fn another_run_of_the_same_sandbox_gets_connections_of_its_own() {
    for stack in [one_hop().await, two_hops().await] {
        for run in ["first", "second", "third"] {
            let guest = Guest::new();
            guest.serve(ENVD, ok(run)).await;
            stack.node.set(ID, Some(Arc::clone(&guest)));
            for _ in 0..3 {
                assert_eq!(fetch(stack.address, ENVD, get("/")).await.body, run, "{}", stack.name);
            }
            // The last run's is not even told that it is over.
            if run != "second" {
                guest.ended.cancel();
            }
        }
    }
}

#[tokio::test]
async fn a_connection_that_died_while_idle_is_replaced() {
    let guest = Guest::new();
    let listener = guest.listen(ENVD).await;
    let served = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&served);
    // Serves one request for each connection, and hangs up on the second without an answer.
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let count = Arc::clone(&count);
            tokio::spawn(async move {
                read_head(&mut stream).await;
                write(&mut stream, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
                count.fetch_add(1, Ordering::SeqCst);
                read_head(&mut stream).await;
            });
        }
    });
    for stack in both(&guest).await {
        let before = served.load(Ordering::SeqCst);
        for _ in 0..4 {
            let answer = fetch(stack.address, ENVD, get("/health")).await;
            assert_eq!(
                (answer.status.as_u16(), answer.body.as_str()),
                (200, "ok"),
                "{}",
                stack.name
            );
        }
        assert_eq!(served.load(Ordering::SeqCst) - before, 4);
        // What might have had an effect is not sent twice.
        let before = guest.dials();
        let answer = fetch(stack.address, ENVD, post("/run", empty())).await;
        assert_eq!(answer.status, 502, "{}", stack.name);
        assert_eq!(guest.dials(), before, "{}", stack.name);
    }
}

#[tokio::test]
async fn a_connection_is_not_used_again_while_its_request_is_still_sent() {
    let guest = Guest::new();
    let listener = guest.listen(ENVD).await;
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                read_head(&mut stream).await;
                write(&mut stream, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nearly").await;
                closed(&mut stream).await;
            });
        }
    });
    for stack in both(&guest).await {
        let before = guest.dials();
        for _ in 0..2 {
            let (_sender, body) = channel();
            let mut client = Client::http1(stack.address).await;
            let mut body = client.send(ENVD, post("/", body)).await.unwrap().into_body();
            assert_eq!(next(&mut body).await, "early");
        }
        assert_eq!(guest.dials() - before, 2, "{}", stack.name);
    }
}
