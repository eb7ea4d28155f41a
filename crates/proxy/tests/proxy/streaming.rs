//! Streams pass frame by frame, both ways at once, and stop when the client leaves.

use axum::{Router, body::Body, extract::Request, routing::any};
use bytes::Bytes;
use futures::StreamExt;
use http_body_util::BodyExt;
use hyper::body::Frame;
use tokio::sync::mpsc;

use crate::stack::*;

async fn clients(stack: &Stack) -> [Client; 2] {
    [Client::http1(stack.address).await, Client::http2(stack.address).await]
}

/// A server that sends back each frame of the request as it comes.
fn mirror() -> Router {
    Router::new().fallback(any(async |request: Request| {
        Body::from_stream(request.into_body().into_data_stream())
    }))
}

// Rules: PROXY-30, PROXY-31, TRAP-5
#[tokio::test]
async fn each_event_arrives_before_the_next_is_made() {
    let guest = Guest::new();
    let listener = guest.listen(8080).await;
    let (connections, mut accepted) = mpsc::channel(1);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            read_head(&mut stream).await;
            connections.send(stream).await.unwrap();
        }
    });
    for stack in both(&guest).await {
        for mut client in clients(&stack).await {
            let serving = async {
                let mut stream = accepted.recv().await.unwrap();
                let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\
                            Transfer-Encoding: chunked\r\n\r\n";
                write(&mut stream, head).await;
                stream
            };
            let (response, mut stream) = tokio::join!(client.send(8080, get("/events")), serving);
            let mut body = response.unwrap().into_body();
            for event in ["a", "b", "c"] {
                write(&mut stream, &format!("1\r\n{event}\r\n")).await;
                assert_eq!(next(&mut body).await, event, "{}", stack.name);
            }
            write(&mut stream, "0\r\n\r\n").await;
            ends(&mut body).await;
        }
    }
}

// Rules: PROXY-30
#[tokio::test]
async fn request_and_response_stream_at_the_same_time() {
    let guest = Guest::new();
    guest.serve(8080, mirror()).await;
    guest.serve(ENVD, mirror()).await;
    for stack in both(&guest).await {
        for port in [8080, ENVD] {
            for mut client in clients(&stack).await {
                let (sender, body) = channel();
                sender.send(data("first")).unwrap();
                let mut body = client.send(port, post("/", body)).await.unwrap().into_body();
                assert_eq!(next(&mut body).await, "first", "{}", stack.name);
                for round in ["ping", "pong", "ping"] {
                    sender.send(data(round)).unwrap();
                    assert_eq!(next(&mut body).await, round, "{}", stack.name);
                }
                drop(sender);
                ends(&mut body).await;
            }
        }
    }
}

// Rules: PROXY-40
#[tokio::test]
async fn trailers_pass_both_ways() {
    let guest = Guest::new();
    let app = Router::new().fallback(any(async |request: Request| {
        let body = request.into_body().collect().await.unwrap();
        let sum = body.trailers().unwrap()["x-sum"].to_str().unwrap().to_owned();
        let frames = [
            Ok::<_, std::convert::Infallible>(Frame::data(Bytes::from("done"))),
            Ok(Frame::trailers(
                [("x-back".parse().unwrap(), sum.parse().unwrap())].into_iter().collect(),
            )),
        ];
        let body = Body::new(http_body_util::StreamBody::new(futures::stream::iter(frames)));
        http::Response::builder().header("trailer", "x-back").body(body).unwrap()
    }));
    guest.serve(8080, app).await;
    for stack in both(&guest).await {
        for mut client in clients(&stack).await {
            let (sender, body) = channel();
            sender.send(data("hello")).unwrap();
            let trailers = [("x-sum".parse().unwrap(), "7".parse().unwrap())];
            sender.send(Frame::trailers(trailers.into_iter().collect())).unwrap();
            drop(sender);
            let mut request = post("/", body);
            request.headers_mut().insert("te", "trailers".parse().unwrap());
            request.headers_mut().insert("trailer", "x-sum".parse().unwrap());
            let response = client.send(8080, request).await.unwrap();
            let body = response.into_body().collect().await.unwrap();
            assert_eq!(body.trailers().unwrap()["x-back"], "7", "{}", stack.name);
            assert_eq!(body.to_bytes(), "done");
        }
    }
}

// Rules: PROXY-38
#[tokio::test]
async fn a_client_that_leaves_is_noticed_in_the_sandbox() {
    let guest = Guest::new();
    let listener = guest.listen(ENVD).await;
    let (left, mut gone) = mpsc::channel(1);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let left = left.clone();
            tokio::spawn(async move {
                let head = read_head(&mut stream).await;
                if head.starts_with("GET /stream") {
                    write(
                        &mut stream,
                        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n",
                    )
                    .await;
                }
                left.send("arrived").await.unwrap();
                closed(&mut stream).await;
                left.send("left").await.unwrap();
            });
        }
    });
    for stack in both(&guest).await {
        for mut client in clients(&stack).await {
            // In the middle of a response.
            let mut body = client.send(ENVD, get("/stream")).await.unwrap().into_body();
            assert_eq!(next(&mut body).await, "a");
            assert_eq!(soon(gone.recv()).await, Some("arrived"));
            drop((body, client));
            assert_eq!(soon(gone.recv()).await, Some("left"), "{}", stack.name);
        }
        for mut client in clients(&stack).await {
            // While it waits for one.
            let waiting = tokio::spawn(async move { client.send(ENVD, get("/wait")).await });
            assert_eq!(soon(gone.recv()).await, Some("arrived"));
            waiting.abort();
            assert_eq!(soon(gone.recv()).await, Some("left"), "{}", stack.name);
        }
        for mut client in clients(&stack).await {
            // In the middle of an upload.
            let (sender, body) = channel();
            sender.send(data("part")).unwrap();
            let waiting = tokio::spawn(async move { client.send(ENVD, post("/up", body)).await });
            assert_eq!(soon(gone.recv()).await, Some("arrived"));
            waiting.abort();
            assert_eq!(soon(gone.recv()).await, Some("left"), "{}", stack.name);
        }
    }
}

#[tokio::test]
async fn a_server_that_stops_reading_stops_the_client() {
    let guest = Guest::new();
    let listener = guest.listen(8080).await;
    tokio::spawn(async move {
        let mut held = Vec::new();
        loop {
            held.push(listener.accept().await.unwrap());
        }
    });
    for stack in both(&guest).await {
        let sent = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counter = std::sync::Arc::clone(&sent);
        let endless = futures::stream::repeat_with(move || {
            counter.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            Ok(Frame::data(Bytes::from(vec![0; 64 << 10])))
        });
        let body = BodyExt::boxed_unsync(http_body_util::StreamBody::new(endless));
        let mut client = Client::http2(stack.address).await;
        let sending = tokio::spawn(async move { client.send(8080, post("/", body)).await });
        // All is quiet once every buffer on the way is full.
        let mut before = usize::MAX;
        loop {
            tokio::time::sleep(std::time::Duration::from_millis(300)).await;
            let now = sent.load(std::sync::atomic::Ordering::SeqCst);
            if now == before {
                break;
            }
            assert!(now < 4096, "{}: 256 MiB sent to a server that reads nothing", stack.name);
            before = now;
        }
        sending.abort();
    }
}

// Rules: PROXY-28, PROXY-31
#[tokio::test]
async fn an_event_stream_of_axum_passes() {
    let guest = Guest::new();
    let app = Router::new().fallback(any(async || {
        let events = futures::stream::iter(0..3)
            .map(|n| Ok::<_, std::convert::Infallible>(format!("data: {n}\n\n")));
        ([("content-type", "text/event-stream")], Body::from_stream(events))
    }));
    guest.serve(8080, app).await;
    for stack in both(&guest).await {
        let answer = fetch(stack.address, 8080, get("/")).await;
        assert_eq!(answer.body, "data: 0\n\ndata: 1\n\ndata: 2\n\n");
        assert!(!answer.headers.contains_key("content-encoding"), "{}", stack.name);
    }
}
