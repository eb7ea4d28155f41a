//! Streams through TLS: what passes at once, and what a client sees when the sandbox dies.

use std::sync::{Arc, Mutex};

use axum::{Router, routing::get};
use http_body_util::BodyExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
};

use crate::stack::*;

fn host() -> String {
    format!("8000-{ID}.sbx.localhost")
}

#[tokio::test]
async fn parts_pass_as_they_come_and_a_death_is_a_failure() {
    for which in 0..4 {
        let mut stack = local().await;
        let (send, parts) = mpsc::unbounded_channel();
        let parts = Arc::new(Mutex::new(Some(parts)));
        stack.serve(
            Router::new()
                .route("/", get(async move || stream_of(parts.lock().unwrap().take().unwrap()))),
        );
        let (scheme, mut client) = stack.clients().await.swap_remove(which);
        let mut body = soon(client.get(&host(), "/")).await.unwrap().into_body();
        for part in ["one", "two"] {
            send.send(part).unwrap();
            let frame = soon(body.frame()).await.unwrap().unwrap();
            assert_eq!(frame.into_data().unwrap(), part, "{scheme}");
        }
        stack.ended.cancel();
        let end = loop {
            match soon(body.frame()).await {
                Some(Ok(frame)) if frame.data_ref().is_some_and(|data| data.is_empty()) => {}
                other => break other,
            }
        };
        assert!(matches!(end, Some(Err(_))), "{scheme} {which}: a polite end: {end:?}");
    }
}

#[tokio::test]
async fn a_body_that_only_the_connection_ends_is_cut_off_without_a_farewell() {
    let mut stack = local().await;
    let guest = stack.guest.take().unwrap();
    let mut client = stack.tls(&host(), &["http/1.1"]).await.unwrap();
    let request = format!("GET / HTTP/1.0\r\nHost: {}\r\n\r\n", host());
    client.write_all(request.as_bytes()).await.unwrap();
    let (mut server, _) = soon(guest.accept()).await.unwrap();
    server.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\npart").await.unwrap();
    let mut text = String::new();
    while !text.ends_with("part") {
        let mut buffer = [0; 1024];
        let read = soon(client.read(&mut buffer)).await.unwrap();
        text += std::str::from_utf8(&buffer[..read]).unwrap();
    }
    stack.ended.cancel();
    // TLS tells an end (close_notify) from a cut.
    let end = soon(client.read(&mut [0; 16])).await;
    assert!(end.is_err(), "a polite end");
}

#[tokio::test]
async fn upgrades_pass_through_tls() {
    let mut stack = local().await;
    let guest = stack.guest.take().unwrap();
    tokio::spawn(async move {
        let (mut server, _) = guest.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(server.read_u8().await.unwrap());
        }
        let answer = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
        server.write_all(answer).await.unwrap();
        let (mut read, mut write) = server.split();
        tokio::io::copy(&mut read, &mut write).await.unwrap();
    });
    let mut client = stack.tls(&host(), &["http/1.1"]).await.unwrap();
    let request = format!(
        "GET / HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        host()
    );
    client.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(soon(client.read_u8()).await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "));
    for text in ["hello", "again"] {
        client.write_all(text.as_bytes()).await.unwrap();
        let mut echo = [0; 5];
        soon(client.read_exact(&mut echo)).await.unwrap();
        assert_eq!(echo, text.as_bytes());
    }
    stack.ended.cancel();
    let mut rest = Vec::new();
    let _ = soon(client.read_to_end(&mut rest)).await;
    assert!(rest.is_empty());
}
