//! A sandbox that ends in the middle of something: the client must see a failure, never an end.

use std::sync::Arc;

use http_body_util::BodyExt;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
};

use crate::stack::*;

/// A server that starts the response asked for and then does nothing more. Tells when a connection
/// has been closed.
fn stall(listener: TcpListener) -> mpsc::UnboundedReceiver<&'static str> {
    let (tell, told) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let tell = tell.clone();
            tokio::spawn(async move {
                let head = read_head(&mut stream).await;
                let part = match head.split(' ').nth(1).unwrap() {
                    "/chunked" => {
                        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npart\r\n"
                    }
                    "/length" => "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npart",
                    "/close" => "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\npart",
                    _ => "",
                };
                write(&mut stream, part).await;
                tell.send("started").unwrap();
                closed(&mut stream).await;
                tell.send("closed").unwrap();
            });
        }
    });
    told
}

const FRAMINGS: [&str; 3] = ["/chunked", "/length", "/close"];

// Rules: PROXY-33, PROXY-34, TRAP-2
#[tokio::test]
async fn a_response_under_way_is_aborted() {
    for framing in FRAMINGS {
        for port in [ENVD, 8080] {
            for http2 in [false, true] {
                let guest = Guest::new();
                let mut told = stall(guest.listen(port).await);
                let stacks = both(&guest).await;
                let mut bodies = Vec::new();
                for stack in &stacks {
                    let mut client = if http2 {
                        Client::http2(stack.address).await
                    } else {
                        Client::http1(stack.address).await
                    };
                    let mut body = client.send(port, get(framing)).await.unwrap().into_body();
                    assert_eq!(next(&mut body).await, "part");
                    assert_eq!(soon(told.recv()).await, Some("started"));
                    bodies.push((stack, client, body));
                }
                guest.ended.cancel();
                for (stack, _client, mut body) in bodies {
                    let end = soon(body.frame()).await;
                    let context = format!("{framing} {port} http2={http2} {}", stack.name);
                    assert!(matches!(end, Some(Err(_))), "{context}: {end:?}");
                    assert_eq!(soon(told.recv()).await, Some("closed"), "{context}");
                    let answer = fetch(stack.address, port, get("/health")).await;
                    assert_eq!(answer.status, 502);
                    assert_eq!(answer.json()["message"], "The sandbox was not found");
                }
            }
        }
    }
}

// Rules: PROXY-33, TRAP-2
#[tokio::test]
async fn on_the_wire_there_is_no_terminal_chunk() {
    let guest = Guest::new();
    let mut told = stall(guest.listen(8080).await);
    let stacks = both(&guest).await;
    let mut streams = Vec::new();
    for stack in &stacks {
        let mut stream = TcpStream::connect(stack.address).await.unwrap();
        write(&mut stream, &format!("GET /chunked HTTP/1.1\r\nHost: {}\r\n\r\n", host(8080))).await;
        let head = read_head(&mut stream).await;
        assert!(head.to_lowercase().contains("transfer-encoding: chunked"), "{head}");
        assert_eq!(soon(told.recv()).await, Some("started"));
        streams.push(stream);
    }
    guest.ended.cancel();
    for mut stream in streams {
        let mut rest = Vec::new();
        // A reset is as good as an end.
        let _ = soon(tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut rest)).await;
        let rest = String::from_utf8(rest).unwrap();
        assert!(rest.is_empty() || rest == "4\r\npart\r\n", "{rest:?}");
    }
}

// Rules: PROXY-41
#[tokio::test]
async fn a_server_that_dies_by_itself_aborts_its_response() {
    let guest = Guest::new();
    let listener = guest.listen(8080).await;
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            read_head(&mut stream).await;
            let part = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npart\r\n";
            write(&mut stream, part).await;
        }
    });
    for stack in both(&guest).await {
        for http2 in [false, true] {
            let mut client = if http2 {
                Client::http2(stack.address).await
            } else {
                Client::http1(stack.address).await
            };
            // The head may be lost with the rest.
            if let Ok(response) = client.send(8080, get("/")).await {
                let body = response.into_body().collect().await;
                assert!(body.is_err(), "{} http2={http2}", stack.name);
            }
        }
    }
}

// Rules: PROXY-17
#[tokio::test]
async fn a_request_that_waits_for_its_response_is_answered() {
    for port in [ENVD, 8080] {
        let guest = Guest::new();
        let mut told = stall(guest.listen(port).await);
        let stacks = both(&guest).await;
        let mut waiting = Vec::new();
        for stack in &stacks {
            let address = stack.address;
            waiting.push(tokio::spawn(async move { fetch(address, port, get("/wait")).await }));
            assert_eq!(soon(told.recv()).await, Some("started"));
        }
        guest.ended.cancel();
        for answer in waiting {
            let answer = soon(answer).await.unwrap();
            assert_eq!(answer.status, 502);
            assert_eq!(answer.json()["message"], "The sandbox was not found");
        }
    }
}

#[tokio::test]
async fn a_request_that_waits_for_its_port_is_answered() {
    let guest = Guest::new();
    let stack = one_hop().await;
    stack.node.set(ID, Some(Arc::clone(&guest)));
    let address = stack.address;
    let waiting = tokio::spawn(async move { fetch(address, 8080, get("/")).await });
    while guest.dials() == 0 {
        tokio::task::yield_now().await;
    }
    guest.ended.cancel();
    let answer = soon(waiting).await.unwrap();
    assert_eq!(answer.json()["message"], "The sandbox was not found");
}
