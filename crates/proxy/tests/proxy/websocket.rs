//! WebSockets, and other protocols that a connection is switched to.

use std::sync::Arc;

use futures::{SinkExt, StreamExt};
use tokio::{io::AsyncReadExt, net::TcpStream, sync::mpsc};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Message, client::IntoClientRequest},
};

use crate::stack::*;

/// A server that sends back each message. Tells when a connection is over.
async fn serve(guest: &Guest, port: u16) -> mpsc::UnboundedReceiver<()> {
    let listener = guest.listen(port).await;
    let (tell, told) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let tell = tell.clone();
            tokio::spawn(async move {
                if let Ok(mut socket) = tokio_tungstenite::accept_async(stream).await {
                    while let Some(Ok(message)) = socket.next().await {
                        if message.is_close() || socket.send(message).await.is_err() {
                            break;
                        }
                    }
                    tell.send(()).unwrap();
                }
            });
        }
    });
    told
}

async fn open(stack: &Stack, port: u16) -> WebSocketStream<TcpStream> {
    let stream = TcpStream::connect(stack.address).await.unwrap();
    let request = format!("ws://{}/chat?x=1", host(port)).into_client_request().unwrap();
    client_async(request, stream).await.unwrap().0
}

// Rules: PROXY-29
#[tokio::test]
async fn messages_of_all_sizes_pass_both_ways() {
    let guest = Guest::new();
    let mut over = serve(&guest, 8080).await;
    for stack in both(&guest).await {
        let mut socket = open(&stack, 8080).await;
        for message in
            [Message::text("hello"), Message::binary(vec![]), Message::binary(vec![7; 1 << 20])]
        {
            socket.send(message.clone()).await.unwrap();
            assert_eq!(soon(socket.next()).await.unwrap().unwrap(), message, "{}", stack.name);
        }
        socket.close(None).await.unwrap();
        soon(over.recv()).await.unwrap();
    }
}

#[tokio::test]
async fn a_client_that_vanishes_is_noticed() {
    let guest = Guest::new();
    let mut over = serve(&guest, 8080).await;
    for stack in both(&guest).await {
        let mut socket = open(&stack, 8080).await;
        socket.send(Message::text("hello")).await.unwrap();
        soon(socket.next()).await.unwrap().unwrap();
        drop(socket);
        soon(over.recv()).await.unwrap();
    }
}

// Rules: PROXY-29
#[tokio::test]
async fn the_end_of_the_sandbox_ends_the_socket() {
    let guest = Guest::new();
    let mut over = serve(&guest, 8080).await;
    let stacks = both(&guest).await;
    let mut sockets = Vec::new();
    for stack in &stacks {
        sockets.push(open(stack, 8080).await);
    }
    guest.ended.cancel();
    for mut socket in sockets {
        let end = soon(socket.next()).await;
        assert!(!matches!(end, Some(Ok(_))), "{end:?}");
        soon(over.recv()).await.unwrap();
    }
}

#[tokio::test]
async fn a_server_may_decline() {
    let guest = Guest::new();
    let plain = axum::Router::new().fallback(axum::routing::any(async || "no"));
    guest.serve(8080, plain).await;
    for stack in both(&guest).await {
        let mut request = get("/");
        for (name, value) in [("connection", "upgrade"), ("upgrade", "websocket")] {
            request.headers_mut().insert(name, value.parse().unwrap());
        }
        let answer = fetch(stack.address, 8080, request).await;
        assert_eq!((answer.status.as_u16(), answer.body.as_str()), (200, "no"), "{}", stack.name);
    }
}

// Rules: PROXY-2, PROXY-29
#[tokio::test]
async fn nobody_gets_past_the_checks_by_upgrading() {
    let guest = Guest::new();
    let (tell, mut told) = mpsc::unbounded_channel();
    for port in [ENVD, 8080] {
        let listener = guest.listen(port).await;
        let tell = tell.clone();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                tell.send(read_head(&mut stream).await.to_lowercase()).unwrap();
                let switch = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\n\
                              Upgrade: anything\r\n\r\n";
                write(&mut stream, switch).await;
            }
        });
    }
    for stack in both(&guest).await {
        for (port, protocol) in [(ENVD, "websocket"), (8080, "h2c")] {
            let mut request = get("/");
            request.headers_mut().insert("connection", "upgrade, http2-settings".parse().unwrap());
            request.headers_mut().insert("upgrade", protocol.parse().unwrap());
            request.headers_mut().insert("http2-settings", "AAMAAABkAAQAAP__".parse().unwrap());
            let answer = fetch(stack.address, port, request).await;
            assert_eq!(answer.status, 502, "{} {protocol}", stack.name);
            let seen = soon(told.recv()).await.unwrap();
            assert!(!seen.contains("upgrade") && !seen.contains("http2-settings"), "{seen}");
        }
    }
}

#[tokio::test]
async fn bytes_sent_along_with_the_switch_are_not_lost() {
    let guest = Guest::new();
    let listener = guest.listen(8080).await;
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            read_head(&mut stream).await;
            let switch = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\n\
                          Upgrade: raw\r\n\r\nearly";
            write(&mut stream, switch).await;
            let mut rest = String::new();
            stream.read_to_string(&mut rest).await.unwrap();
            write(&mut stream, &format!("; got {rest}")).await;
        }
    });
    for stack in both(&guest).await {
        let mut stream = TcpStream::connect(stack.address).await.unwrap();
        let request = format!(
            "GET / HTTP/1.1\r\nHost: {}\r\nConnection: upgrade\r\nUpgrade: raw\r\n\r\nmine",
            host(8080)
        );
        write(&mut stream, &request).await;
        tokio::io::AsyncWriteExt::shutdown(&mut stream).await.unwrap();
        assert!(read_head(&mut stream).await.starts_with("HTTP/1.1 101 "), "{}", stack.name);
        let mut rest = String::new();
        stream.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "early; got mine", "{}", stack.name);
    }
}

// Rules: PROXY-21
#[tokio::test]
async fn a_socket_needs_the_traffic_token_too() {
    let access = atoll_proxy::Access { traffic_token: Some("t".into()), ..Default::default() };
    let guest = Guest::with_access(access);
    let _over = serve(&guest, 8080).await;
    let stack = one_hop().await;
    stack.node.set(ID, Some(Arc::clone(&guest)));
    let stream = TcpStream::connect(stack.address).await.unwrap();
    let request = format!("ws://{}/", host(8080)).into_client_request().unwrap();
    assert!(client_async(request, stream).await.is_err());
    assert_eq!(guest.dials(), 0);
}
