//! Clients that hold on to more than their share.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use atoll_core::{Result, SandboxId};
use atoll_proxy::{Access, Directory, Location, Target};
use axum::{Router, extract::Request, routing::any};
use serde_json::json;
use tokio::{io::AsyncReadExt, net::TcpStream, sync::mpsc};
use tokio_util::sync::CancellationToken;

use crate::stack::*;

/// A sandbox whose connections take until `refusing` to be refused.
#[derive(Clone, Default)]
struct Slow {
    dials: Arc<AtomicUsize>,
    refusing: CancellationToken,
}

#[async_trait]
impl Target for Slow {
    async fn dial(&self, _: u16) -> io::Result<TcpStream> {
        self.dials.fetch_add(1, Ordering::SeqCst);
        self.refusing.cancelled().await;
        Err(io::ErrorKind::NotConnected.into())
    }

    fn ended(&self) -> CancellationToken {
        CancellationToken::new()
    }

    fn access(&self) -> Access {
        Access::default()
    }
}

struct Only(Arc<Slow>);

#[async_trait]
impl Directory for Only {
    async fn locate(&self, _: &SandboxId) -> Result<Option<Location>> {
        Ok(Some(Location::Here(Arc::clone(&self.0) as _)))
    }
}

// Rules: PROXY-23
#[tokio::test]
async fn a_sandbox_has_at_most_1024_connections() {
    let slow = Slow::default();
    let stack = edge(Arc::new(Only(Arc::new(slow.clone()))), Duration::ZERO).await;
    for _ in 0..2 {
        let Client::Http2(sender) = Client::http2(stack.address).await else { unreachable!() };
        for _ in 0..512 {
            let mut client = Client::Http2(sender.clone());
            tokio::spawn(async move { client.send(8080, get("/")).await });
        }
    }
    let all = async {
        while slow.dials.load(Ordering::SeqCst) < 1024 {
            tokio::task::yield_now().await;
        }
    };
    soon(all).await;
    let answer = fetch(stack.address, 8080, get("/")).await;
    assert_eq!(answer.status, 429);
    let message = "The sandbox has too many concurrent incoming connections (limit: 1024)";
    let expected =
        json!({"sandboxId": ID, "message": message, "code": 429, "connectionLimit": 1024});
    assert_eq!(answer.json(), expected);
    assert!(!answer.headers.contains_key("should-retry"));
    slow.refusing.cancel();
    let again = async { while fetch(stack.address, 8080, get("/")).await.status == 429 {} };
    soon(again).await;
}

/// Makes the clock of everything in this process jump.
async fn pass(seconds: u64) {
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(seconds)).await;
    tokio::time::resume();
}

#[tokio::test]
async fn who_does_not_finish_the_first_head_is_cut_off() {
    let stack = one_hop().await;
    // Now the clock jumps whenever nothing else happens, and `soon` is a minute of it.
    tokio::time::pause();
    for start in ["P", "PRI * HTTP/2.0\r\n", "GET / HTTP/1.1\r\nHost: localhost\r\nX-Long: "] {
        let mut stream = TcpStream::connect(stack.address).await.unwrap();
        write(&mut stream, start).await;
        soon(closed(&mut stream)).await;
    }
}

// Rules: PROXY-32, TRAP-20
#[tokio::test]
async fn a_connection_may_idle_but_not_stall_within_a_head() {
    let (tell, mut told) = mpsc::unbounded_channel();
    let mirror = Router::new().fallback(any(async move |request: Request| {
        tell.send(()).unwrap();
        request.into_body()
    }));
    let guest = Guest::new();
    guest.serve(8080, mirror).await;
    let stack = one_hop().await;
    stack.node.set(ID, Some(guest));
    let mut stream = TcpStream::connect(stack.address).await.unwrap();
    let start = format!("POST / HTTP/1.1\r\nHost: {}\r\n", host(8080));
    for _ in 0..2 {
        write(&mut stream, &format!("{start}Content-Length: 1\r\n\r\n")).await;
        soon(told.recv()).await.unwrap();
        // A body may take its time, and so may the next request.
        pass(600).await;
        write(&mut stream, "x").await;
        assert!(soon(read_head(&mut stream)).await.starts_with("HTTP/1.1 200 "));
        while soon(stream.read_u8()).await.unwrap() != b'x' {}
        pass(600).await;
    }
    write(&mut stream, &start).await;
    tokio::time::pause();
    soon(closed(&mut stream)).await;
}

#[tokio::test]
async fn an_http2_connection_may_be_opened_in_advance() {
    let guest = Guest::new();
    guest.serve(8080, Router::new().fallback(any(async || "ok"))).await;
    let stack = one_hop().await;
    stack.node.set(ID, Some(guest));
    let mut client = Client::http2(stack.address).await;
    for _ in 0..2 {
        pass(15).await;
        assert_eq!(soon(client.send(8080, get("/"))).await.unwrap().status(), 200);
    }
}
